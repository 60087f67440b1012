"""A sweep from its spec: the call behind `tokgolf sweep`."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from tokgolf.config import nearest
from tokgolf.errors import ConfigError, Interrupted
from tokgolf.signals import ended_as_by_ctrl_c
from tokgolf.sweep.attempts import reopen
from tokgolf.sweep.cells import CELL_FILE, RESULTS_FILE, Cell, Sweep, read_cell, read_sweep
from tokgolf.sweep.driver import DEATHS, Board, Watch, nobody, open_sweep, run_cells, summary
from tokgolf.sweep.engines import Engine, open_engine
from tokgolf.sweep.engines import Job as JobFunction
from tokgolf.sweep.job import is_sound, run_cell
from tokgolf.sweep.plan import (
    Job,
    Outline,
    Texts,
    job_of,
    outline,
    plan,
    read_texts,
    write_job,
)
from tokgolf.sweep.search import Search
from tokgolf.sweep.spec import EngineConfig, Settings, SweepSpec


def run_sweep(
    spec: SweepSpec,
    store: Path,
    *,
    device: str = "auto",
    only: Sequence[str] = (),
    retry_failed: bool = False,
    watch: Watch = nobody,
    job: JobFunction = run_cell,
    sound: Callable[[Path], bool] = is_sound,
    engine_of: Callable[[EngineConfig, JobFunction, str], Engine] = open_engine,
    deaths: int = DEATHS,
) -> Sweep:
    """Run what is left of a sweep, and return its results; they are in the store too.

    `only` picks cells, see `picked`. Cells that failed stay so without `retry_failed`. `job` and
    `sound` do a cell and look whether one that is done has what it says, `engine_of` opens what
    runs them. Raises `ConfigError` for
    a spec that makes no cells, or another one under this name, and `Interrupted` on Ctrl-C or a
    SIGTERM, when cells have saved what they have; a cell that fails raises nothing.
    """
    if only and spec.search.trials:
        raise ConfigError(
            f"--only {' '.join(only)} picks cells, and search.trials = {spec.search.trials} lets "
            "the search pick them; leave out one of them"
        )
    texts = read_texts(spec)
    jobs = {one.id: one for one in plan(spec, texts, device)}
    folder = open_sweep(spec, store)  # last: a spec with a mistake must not take the name
    before = read_sweep(folder) if (folder / RESULTS_FILE).is_file() else None
    board = Board(spec, folder, watch, before)
    search = _search(spec, texts, device, before)
    for one in jobs.values():
        if search is None or one.id in search.chosen:
            board.put(_opened(store, one, retry_failed, sound))
    wanted = picked(board.cells.values(), only)
    left = [cell for cell in wanted if board.cells[cell].status not in ("done", "failed")]
    board.save(at_once=True)

    def more(known: Board, flying: int) -> list[str]:
        assert search is not None
        cell = search.next(known.cells)
        if cell is None:
            return []
        known.put(_opened(store, jobs[cell], retry_failed, sound))
        ended = known.cells[cell].status in ("done", "failed")  # another sweep did it
        return more(known, flying) if ended else [cell]

    if left or search is not None:
        try:
            with ended_as_by_ctrl_c():
                engine = engine_of(spec.engine, job, str(store.resolve()))
                run_cells(left, engine, board, deaths=deaths, more=None if search is None else more)
        except KeyboardInterrupt:
            done = sum(cell.status == "done" for cell in board.cells.values())
            raise Interrupted(
                f"interrupted with {done} of {len(board.cells)} cells done; the others have what "
                "they saved, and the same command goes on with them"
            ) from None
    return summary(spec, board.cells.values(), before)


def outline_sweep(
    spec: SweepSpec, store: Path, *, device: str = "auto", only: Sequence[str] = ()
) -> list[Outline]:
    """What every cell will be, and what of it is done. Tokenizers are built, and kept."""
    texts = read_texts(spec)
    jobs = {one.id: one for one in plan(spec, texts, device)}
    cells = (Cell(id=one.id, settings=one.settings) for one in jobs.values())
    return [outline(store, jobs[cell], texts.corpus) for cell in picked(cells, only)]


def picked(cells: Iterable[Cell], only: Sequence[str]) -> list[str]:
    """Ids of the cells that `only` leaves, in order.

    Each word is `axis=value`, or the start of an id. Words of one axis are alternatives, all axes
    must fit: ["head=tied", "head=vq", "vocab_size=1024"]. Raises `ConfigError` if none is left.
    """
    cells = list(cells)
    wanted: dict[str, set[str]] = {}
    for word in only:
        axis, equals, value = word.partition("=")
        wanted.setdefault(axis if equals else "", set()).add(value if equals else word)
    for axis in wanted:
        axes = {name for cell in cells for name in cell.settings}
        if axis and axis not in axes:
            raise ConfigError(f"--only {axis}: no cell has it; {nearest(axis, axes)}")

    def fits(cell: Cell) -> bool:
        return all(
            any(cell.id.startswith(start) for start in values)
            if not axis
            else str(cell.settings.get(axis)) in values
            for axis, values in wanted.items()
        )

    found = [cell.id for cell in cells if fits(cell)]
    if only and not found:
        raise ConfigError(f"--only {' '.join(only)} leaves none of the {len(cells)} cells")
    return found


def _opened(store: Path, job: Job, retry_failed: bool, sound: Callable[[Path], bool]) -> Cell:
    """A job's cell, written if it was not there; pending again if it must be done again."""
    run = write_job(store, job)
    try:
        cell = read_cell(run)
    except ConfigError:  # damaged; all it says can be found again
        (run / CELL_FILE).unlink()
        write_job(store, job)
        cell = read_cell(run)
    again = retry_failed if cell.status == "failed" else cell.status == "done" and not sound(run)
    return replace(reopen(run) if again else cell, settings=job.settings)


def _search(spec: SweepSpec, texts: Texts, device: str, before: Sweep | None) -> Search | None:
    """The search of a spec that has one, told of what is known."""
    if not spec.search.trials:
        return None

    def id_of(settings: Settings) -> str:
        return job_of(spec, settings, texts, device).id

    known = {} if before is None else {cell.id: cell for cell in before.cells}
    return Search(spec, id_of, known)
