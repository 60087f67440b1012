"""Cells as tasks of a Ray cluster, or of a local one that is started and ended here.

Needs the extra `tokgolf[ray]`, and a store that every node sees.
"""

from typing import Any

from tokgolf.sweep.engines import Ended, Engine, Job, extra_module
from tokgolf.sweep.spec import EngineConfig
from tokgolf.threads import short_spin


class RayEngine(Engine):
    """At most `jobs` tasks at a time."""

    def __init__(self, config: EngineConfig, job: Job, store: str) -> None:
        self.ray = extra_module("ray", "ray")
        self.slots, self.store = config.jobs, store
        threads = max(1, config.threads)
        self.ours = not self.ray.is_initialized()
        if self.ours:
            where: dict[str, Any] = {"num_cpus": config.jobs * threads}
            if config.address:
                where = {"address": config.address}
            self.ray.init(
                include_dashboard=False, log_to_driver=False, configure_logging=False, **where
            )
        remote = self.ray.remote(job)
        self.task = remote.options(
            num_cpus=threads,
            num_gpus=config.gpus,
            max_retries=0,  # the sweep counts how often a cell's process dies
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads), **short_spin()}},
        )
        self.flying: dict[Any, str] = {}

    def submit(self, cell: str) -> None:
        self.flying[self.task.remote(self.store, cell)] = cell

    def ended(self, seconds: float) -> list[Ended]:
        if not self.flying:
            return []
        ready, _ = self.ray.wait([*self.flying], num_returns=1, timeout=seconds)
        return [self._how(reference) for reference in ready]

    def _how(self, reference: Any) -> Ended:
        cell = self.flying.pop(reference)
        try:
            self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:  # raised by the function
            return Ended(cell=cell, problem=" ".join(str(error.cause).split()))
        except self.ray.exceptions.RayError as error:
            problem = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            return Ended(cell=cell, problem=problem, died=True)
        return Ended(cell=cell)

    def close(self) -> None:
        for reference in self.flying:
            self.ray.cancel(reference, force=False)  # as Ctrl-C does
        if self.ours:
            if self.flying:
                self.ray.wait([*self.flying], num_returns=len(self.flying), timeout=20.0)
            self.ray.shutdown()
