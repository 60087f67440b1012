"""Running a sweep: cells to an engine, ended ones into `results.json`, until none is left.

The driver keeps nothing that it could lose. What is done stands in the cells' own folders, so a
sweep that was killed, or stopped with Ctrl-C, goes on when it is started again.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w

from tokgolf.config import from_dict, read_toml, to_dict
from tokgolf.errors import ConfigError
from tokgolf.files import write_text
from tokgolf.sweep.attempts import fail
from tokgolf.sweep.cells import Cell, Sweep, read_cell, write_sweep
from tokgolf.sweep.engines import Ended, Engine
from tokgolf.sweep.spec import SweepSpec

SPEC_FILE = "spec.toml"
SAVE_SECONDS = 1.0
WAIT_SECONDS = 0.5
BUSY_SECONDS = 2.0
DEATHS = 10
"""A cell whose process died so often has failed: most likely it is out of memory."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a display shows. `seconds_left` is None until a cell has ended here."""

    cells: tuple[Cell, ...]
    running: tuple[Cell, ...]
    seconds_left: float | None

    def count(self, status: str) -> int:
        """How many cells have this status."""
        return sum(cell.status == status for cell in self.cells)

    @property
    def left(self) -> int:
        """Cells that have not ended."""
        return sum(cell.status not in ("done", "failed") for cell in self.cells)

    @property
    def best(self) -> Cell | None:
        """The cell with the fewest bits per byte."""
        found = [cell for cell in self.cells if cell.bpb is not None]
        return min(found, key=lambda cell: cell.bpb or 0.0, default=None)


Watch = Callable[[Progress], None]


def nobody(progress: Progress) -> None:
    """Watches nothing."""


def open_sweep(spec: SweepSpec, store: Path) -> Path:
    """The sweep's folder, with its spec in it.

    Raises `ConfigError` if a sweep of this name was made from another spec (its engine apart).
    """
    folder = store / "sweeps" / spec.name
    path = folder / SPEC_FILE
    now = _decisive(spec)
    if path.is_file():
        before = _decisive(from_dict(SweepSpec, read_toml(path), str(path)))
        for key in now:
            if before[key] != now[key]:
                raise ConfigError(
                    f"the sweep {spec.name!r} in {folder} was made with another {key}: "
                    f"{_short(before[key])} there, {_short(now[key])} here; give this one another "
                    "name (cells that they share are not done again)"
                )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, tomli_w.dumps(to_dict(spec)))
    return folder


def _decisive(spec: SweepSpec) -> dict[str, Any]:
    return {key: value for key, value in asdict(spec).items() if key != "engine"}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:120]}..."


def summary(spec: SweepSpec, cells: Iterable[Cell], before: Sweep | None = None) -> Sweep:
    """The sweep's results as they stand; predictions of an earlier one are kept."""
    cells = tuple(cells)
    axes: dict[str, list[Any]] = {}
    for cell in cells:
        for axis, value in cell.settings.items():
            values = axes.setdefault(axis, [])
            if value not in values:
                values.append(value)
    return Sweep(
        name=spec.name,
        equal=spec.equal,
        cap=spec.cap_bytes(),
        corpus=spec.corpus,
        scored=spec.scored,
        axes=axes,
        cells=cells,
        predictions=() if before is None else before.predictions,
    )


class Board:
    """The cells of a sweep as last read, in order, and its results file."""

    def __init__(self, spec: SweepSpec, folder: Path, watch: Watch, before: Sweep | None) -> None:
        self.spec, self.folder, self.watch, self.before = spec, folder, watch, before
        self.cells: dict[str, Cell] = {}
        self.saved = 0.0
        self.seconds: list[float] = []  # of cells that ended here

    def put(self, cell: Cell) -> None:
        """Take a cell's state; its settings stay as this sweep calls them."""
        known = self.cells.get(cell.id)
        self.cells[cell.id] = cell if known is None else replace(cell, settings=known.settings)

    def read(self, cell: str) -> Cell:
        """Read a cell's file again."""
        run = self.cells[cell].run
        assert run is not None
        self.put(read_cell(run))
        return self.cells[cell]

    def save(self, *, at_once: bool = False) -> None:
        """Write the results, at most every so often."""
        if at_once or time.monotonic() - self.saved >= SAVE_SECONDS:
            write_sweep(summary(self.spec, self.cells.values(), self.before), self.folder)
            self.saved = time.monotonic()

    def show(self, flying: Iterable[str], slots: int) -> None:
        """Tell the watcher."""
        # A cell's file says that it has ended before its engine does.
        running = tuple(
            self.cells[cell] for cell in flying if self.cells[cell].status not in ("done", "failed")
        )
        progress = Progress(cells=tuple(self.cells.values()), running=running, seconds_left=None)
        if self.seconds:
            mean = sum(self.seconds) / len(self.seconds)
            progress = replace(progress, seconds_left=mean * progress.left / slots)
        self.watch(progress)


def run_cells(
    cells: Sequence[str],
    engine: Engine,
    board: Board,
    *,
    deaths: int = DEATHS,
    more: Callable[[Board, int], list[str]] | None = None,
) -> None:
    """Run cells that are on the board until all have ended.

    `more(board, flying)` is asked for further cells whenever a slot is free. A cell whose process
    dies is run again, up to `deaths` times. On an exception the engine is closed and the results
    are written.
    """
    waiting = deque(cells)
    later: list[tuple[float, str]] = []  # held by another sweep's worker: looked at again
    flying: dict[str, float] = {}
    died: dict[str, int] = {}

    def settle(ended: Ended) -> None:
        began = flying.pop(ended.cell)
        cell = board.read(ended.cell)
        if ended.died:
            died[cell.id] = died.get(cell.id, 0) + 1
            if died[cell.id] < deaths and cell.status not in ("done", "failed"):
                waiting.append(cell.id)
                return
        if ended.problem is not None and cell.status not in ("done", "failed"):
            assert cell.run is not None
            times = f"its process died {died[cell.id]} times, " if ended.died else ""
            board.put(
                fail(
                    cell.run, f"{times}the last time by {ended.problem}" if times else ended.problem
                )
            )
        elif cell.status not in ("done", "failed"):
            later.append((time.monotonic() + BUSY_SECONDS, cell.id))
            return
        board.seconds.append(time.monotonic() - began)

    try:
        while True:
            now = time.monotonic()
            waiting.extend(cell for when, cell in later if when <= now)
            later = [(when, cell) for when, cell in later if when > now]
            if more is not None and not waiting and len(flying) < engine.slots:
                waiting.extend(more(board, len(flying) + len(later)))
            while waiting and len(flying) < engine.slots:
                cell = waiting.popleft()
                flying[cell] = time.monotonic()
                engine.submit(cell)
            if not flying and not later and not waiting:
                break
            if not flying:
                time.sleep(WAIT_SECONDS)
                continue
            for ended in engine.ended(WAIT_SECONDS):
                settle(ended)
            for cell in flying:
                board.read(cell)
            board.save()
            board.show(flying, engine.slots)
    finally:
        try:
            engine.close()
        finally:
            for cell in flying:
                board.read(cell)
            board.save(at_once=True)
            board.show((), engine.slots)
