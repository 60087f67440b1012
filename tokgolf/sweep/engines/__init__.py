"""What runs cells: local processes, Slurm, Ray. All that an engine knows is a function and ids.

A job function takes the store and a cell's id, both text, and returns a status. It is idempotent
and locks its cell, so an engine may lose a cell, or run it twice, at no harm.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from tokgolf.errors import ConfigError
from tokgolf.sweep.spec import EngineConfig

Job = Callable[[str, str], str]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A cell that an engine is through with.

    `problem` is None if the job function returned; otherwise it says what happened, and `died`
    whether to its process (killed, out of memory, its node lost) rather than in the function.
    """

    cell: str
    problem: str | None = None
    died: bool = False


class Engine(ABC):
    """Runs up to `slots` cells at a time."""

    slots: int

    @abstractmethod
    def submit(self, cell: str) -> None:
        """Start a cell; there must be a free slot."""

    @abstractmethod
    def ended(self, seconds: float) -> list[Ended]:
        """Cells that have ended since the last call; waits for one, but not longer than this."""

    @abstractmethod
    def close(self) -> None:
        """Stop what runs, so that cells can save what they have, and give everything back."""


def open_engine(config: EngineConfig, job: Job, store: str) -> Engine:
    """The engine of this name. Raises `ConfigError` if what it needs is not installed."""
    if config.name == "local":
        from tokgolf.sweep.engines.local import LocalEngine

        return LocalEngine(config, job, store)
    if config.name == "slurm":
        from tokgolf.sweep.engines.slurm import SlurmEngine

        return SlurmEngine(config, job, store)
    from tokgolf.sweep.engines.ray_cluster import RayEngine

    return RayEngine(config, job, store)


def extra_module(module: str, extra: str) -> Any:
    """A module of an optional package. Raises `ConfigError` that says how to get it."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{extra} needs {module}, which is not here; pip install 'tokgolf[{extra}]'"
        ) from error
