"""Cells as Slurm jobs, by submitit: one job a cell, logs in `store/slurm/`.

Needs the extra `tokgolf[slurm]`, and a store that every node sees. A sweep that is stopped cancels
its jobs; started again, it goes on. submitit's own local executor serves where there is no Slurm.
"""

import contextlib
import time
from pathlib import Path
from typing import Any

from tokgolf.sweep.engines import Ended, Engine, Job, extra_module
from tokgolf.sweep.spec import EngineConfig

POLL_SECONDS = 0.2


class SlurmEngine(Engine):
    """At most `jobs` jobs at a time are with Slurm. `cluster` is submitit's name of an executor."""

    def __init__(self, config: EngineConfig, job: Job, store: str, cluster: str = "slurm") -> None:
        submitit = extra_module("submitit", "slurm")
        self.slots, self.job, self.store = config.jobs, job, store
        self.executor = submitit.AutoExecutor(folder=Path(store) / "slurm", cluster=cluster)
        asked: dict[str, Any] = {
            "name": "tokgolf",
            "timeout_min": config.minutes,
            "cpus_per_task": max(1, config.threads),
            "mem_gb": config.memory_gb,
            **config.slurm,
        }
        if config.gpus:
            asked["gpus_per_node"] = config.gpus
        self.executor.update_parameters(**asked)
        self.flying: dict[str, Any] = {}

    def submit(self, cell: str) -> None:
        self.flying[cell] = self.executor.submit(self.job, self.store, cell)

    def ended(self, seconds: float) -> list[Ended]:
        until = time.monotonic() + seconds
        while True:
            found = [cell for cell, job in self.flying.items() if job.done()]
            if found or time.monotonic() >= until:
                return [_how(cell, self.flying.pop(cell)) for cell in found]
            time.sleep(POLL_SECONDS)

    def close(self) -> None:
        for job in self.flying.values():
            with contextlib.suppress(Exception):  # it may have ended just now
                job.cancel(check=False)


def _how(cell: str, job: Any) -> Ended:
    """How a job ended: without a result it died."""
    error = job.exception()
    if error is None:
        return Ended(cell=cell)
    died = "UncompletedJobError" in {kind.__name__ for kind in type(error).__mro__}
    failed = died and "FailedJobError" in {kind.__name__ for kind in type(error).__mro__}
    reason = str(error).strip().splitlines()
    return Ended(
        cell=cell,
        problem=f"{type(error).__name__}: {reason[-1] if reason else ''} (job {job.job_id})",
        died=died and not failed,
    )
