"""Cells in processes of this machine, by loky.

Each slot is a pool of one process of its own: loky ends a whole pool with any worker of it, and a
cell that is killed must not take the others along. A process is in a session of its own, so that
Ctrl-C in a terminal reaches the sweep alone: it asks each cell once to save what it has.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, TypeVar

from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.process_executor import BrokenProcessPool

from tokgolf.errors import ConfigError
from tokgolf.signals import ended_as_by_ctrl_c
from tokgolf.sweep.engines import Ended, Engine, Job
from tokgolf.sweep.spec import EngineConfig
from tokgolf.threads import short_spin

Result = TypeVar("Result")
SAVE_SECONDS = 30.0
"""How long cells may take to save what they have when the sweep is interrupted."""
ALONE_SECONDS = 1.0
"""How often a process looks whether the sweep that started it is still there."""
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")


class LocalEngine(Engine):
    """`jobs` processes, each with its share of the cores and, if asked for, GPUs of its own."""

    def __init__(self, config: EngineConfig, job: Job, store: str) -> None:
        self.slots = config.jobs
        self.workers = [
            _Worker(_environment(config, slot), job, store) for slot in range(self.slots)
        ]

    def submit(self, cell: str) -> None:
        next(worker for worker in self.workers if worker.cell is None).start(cell)

    def ended(self, seconds: float) -> list[Ended]:
        futures = [worker.future for worker in self.workers if worker.future is not None]
        wait(futures, timeout=seconds, return_when=FIRST_COMPLETED)
        busy = (worker for worker in self.workers if worker.cell is not None)
        return [worker.take() for worker in busy if worker.future and worker.future.done()]

    def close(self) -> None:
        for worker in self.workers:
            worker.interrupt()
        try:
            wait([w.future for w in self.workers if w.future is not None], timeout=SAVE_SECONDS)
        finally:  # a second Ctrl-C waits no longer
            for worker in self.workers:
                worker.stop()


class _Worker:
    """A slot: its process is started with its first cell, and again after a death."""

    def __init__(self, environment: dict[str, str], job: Job, store: str) -> None:
        self.environment, self.job, self.store = environment, job, store
        self.executor: ProcessPoolExecutor | None = None
        self.process: Future[int] | None = None
        self.cell: str | None = None
        self.future: Future[str] | None = None

    def start(self, cell: str) -> None:
        """Run a cell."""
        if self.executor is None:
            self.executor = ProcessPoolExecutor(
                max_workers=1, env=self.environment, initializer=_begin, initargs=(os.getpid(),)
            )
            self.process = self._submitted(os.getpid)
        self.cell = cell
        self.future = self._submitted(_run, self.job, self.store, cell)

    def _submitted(self, function: Callable[..., Result], *arguments: Any) -> "Future[Result]":
        assert self.executor is not None
        future: Future[Result] = self.executor.submit(function, *arguments)
        return future

    def take(self) -> Ended:
        """How the cell ended; the slot is free then."""
        assert self.cell is not None and self.future is not None
        cell, error = self.cell, self.future.exception()
        self.cell = self.future = None
        if error is None:
            return Ended(cell=cell)
        died = isinstance(error, BrokenProcessPool)
        if died:
            self.stop()
        problem = " ".join(f"{type(error).__name__}: {error}".split())
        return Ended(cell=cell, problem=problem, died=died)

    def interrupt(self) -> None:
        """Ask the cell to save what it has and stop; a process that is still starting has none."""
        if self.cell is None or self.process is None:
            return
        if not self.process.done():
            self.stop()
            return
        with contextlib.suppress(ProcessLookupError, BrokenProcessPool):
            os.kill(self.process.result(), signal.SIGTERM)

    def stop(self) -> None:
        """End the process, whatever it does."""
        if self.executor is not None:
            self.executor.shutdown(wait=True, kill_workers=True)
        self.executor = self.process = None


def _begin(sweep: int) -> None:
    """What a process does first; `sweep` is the process that it works for."""
    os.setsid()

    def watch() -> None:
        while os.getppid() == sweep:
            time.sleep(ALONE_SECONDS)
        end = time.monotonic() + SAVE_SECONDS  # a sweep that was killed leaves nothing running
        while time.monotonic() < end:
            os.kill(os.getpid(), signal.SIGTERM)  # the first ends a cell, the next one the process
            time.sleep(ALONE_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run(job: Job, store: str, cell: str) -> str:
    """The job, which a SIGTERM ends as Ctrl-C does."""
    with ended_as_by_ctrl_c():
        return job(store, cell)


def _environment(config: EngineConfig, slot: int) -> dict[str, str]:
    """Read by a worker's libraries when they load: threads, and which GPUs there are."""
    threads = config.threads or max(1, (os.cpu_count() or 1) // config.jobs)
    found = dict.fromkeys(THREADS, str(threads)) | short_spin()
    if config.gpus:
        first, given = slot * config.gpus, os.environ.get("CUDA_VISIBLE_DEVICES")
        own = given.split(",") if given else [*map(str, range(first + config.gpus))]
        if len(own) < config.jobs * config.gpus and given:
            raise ConfigError(
                f"{config.jobs} jobs of {config.gpus} GPUs need {config.jobs * config.gpus}, and "
                f"CUDA_VISIBLE_DEVICES={given} names {len(own)}; lower engine.jobs or engine.gpus"
            )
        found["CUDA_VISIBLE_DEVICES"] = ",".join(own[first : first + config.gpus])
    return found
