"""Cells in processes of this machine, by loky.

Each slot is a pool of one process of its own: loky ends a whole pool with any worker of it, and a
cell that is killed must not take the others along.
"""

import contextlib
import os
import signal
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import TypeVar

from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.process_executor import BrokenProcessPool

from tokgolf.errors import ConfigError
from tokgolf.sweep.engines import Ended, Engine, Job
from tokgolf.sweep.spec import EngineConfig

Result = TypeVar("Result")
SAVE_SECONDS = 20.0
"""How long cells may take to save what they have when the sweep is interrupted."""
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
        wait([w.future for w in self.workers if w.future is not None], timeout=SAVE_SECONDS)
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
            self.executor = ProcessPoolExecutor(max_workers=1, env=self.environment)
            self.process = self._submitted(os.getpid)
        self.cell = cell
        self.future = self._submitted(self.job, self.store, cell)

    def _submitted(self, function: Callable[..., Result], *arguments: str) -> "Future[Result]":
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
        """Ask the cell to save what it has and stop, as Ctrl-C does."""
        if self.cell is None or self.process is None or not self.process.done():
            return
        with contextlib.suppress(ProcessLookupError, BrokenProcessPool):
            os.kill(self.process.result(), signal.SIGINT)

    def stop(self) -> None:
        """End the process, whatever it does."""
        if self.executor is not None:
            self.executor.shutdown(wait=True, kill_workers=True)
        self.executor = self.process = None


def _environment(config: EngineConfig, slot: int) -> dict[str, str]:
    """Read by a worker's libraries when they load: threads, and which GPUs there are."""
    threads = config.threads or max(1, (os.cpu_count() or 1) // config.jobs)
    found = dict.fromkeys(THREADS, str(threads))
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
