"""Sweeps of dummy cells: nothing is lost, done twice or changed, whatever kills or stops them."""

import json
import os
import random
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sweep_support import BAD_SEED, STEPS, crashing, dummy, quick, write_texts

from tokgolf.errors import ConfigError, Interrupted
from tokgolf.locks import locked
from tokgolf.sweep.attempts import fail, reopen
from tokgolf.sweep.cells import Cell, Sweep, read_cell, read_sweep, write_cell
from tokgolf.sweep.driver import Progress
from tokgolf.sweep.engines import Ended, Engine, Job
from tokgolf.sweep.engines import local as local_engine
from tokgolf.sweep.run import picked, run_sweep
from tokgolf.sweep.spec import EngineConfig, SearchConfig, SweepSpec


class Inline(Engine):
    """Runs a cell when it is asked what has ended; `stop_after` so many it is interrupted."""

    def __init__(self, config: EngineConfig, job: Job, store: str, stop_after: int = 10**9) -> None:
        self.slots, self.job, self.store = config.jobs, job, store
        self.waiting: list[str] = []
        self.left = stop_after
        self.closed = False

    def submit(self, cell: str) -> None:
        assert len(self.waiting) < self.slots
        self.waiting.append(cell)

    def ended(self, seconds: float) -> list[Ended]:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        cell = self.waiting.pop(0)
        self.job(self.store, cell)
        return [Ended(cell=cell)]

    def close(self) -> None:
        self.closed = True


class Late(Engine):
    """Does a cell when it is asked what has ended, and says so when it is asked again."""

    def __init__(self, config: EngineConfig, job: Job, store: str) -> None:
        self.slots, self.job, self.store = 1, job, store
        self.waiting: list[str] = []
        self.done: list[str] = []

    def submit(self, cell: str) -> None:
        self.waiting.append(cell)

    def ended(self, seconds: float) -> list[Ended]:
        if self.done:
            return [Ended(cell=self.done.pop())]
        self.done.append(self.waiting.pop())
        self.job(self.store, self.done[0])
        return []

    def close(self) -> None:
        assert not self.waiting


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, Any]:
    return write_texts(tmp_path)


def sweep(texts: dict[str, Any], store: Path, seeds: int = 6, **more: Any) -> Sweep:
    """A sweep of dummy cells, inline unless there is an engine."""
    chosen = {"axes": {"seed": [*range(1, seeds + 1)]}, **more.pop("spec", {})}
    one = SweepSpec(name="s", cap="1MB", **texts, **chosen)
    options = {"job": quick, "sound": lambda run: True, "engine_of": Inline, **more}
    return run_sweep(one, store, device="cpu", **options)


def numbers(result: Sweep) -> dict[str, tuple[str, float | None]]:
    return {cell.id: (cell.status, cell.bpb) for cell in result.cells}


def test_every_cell_ends_and_the_results_say_so(texts: dict[str, Any], tmp_path: Path) -> None:
    result = sweep(texts, tmp_path / "runs")
    assert [cell.status for cell in result.cells] == ["done"] * 6
    again = read_sweep(tmp_path / "runs" / "sweeps" / "s")
    assert numbers(again) == numbers(result) and again.axes["seed"] == [1, 2, 3, 4, 5, 6]
    assert all(cell.run and read_cell(cell.run).attempts == 1 for cell in again.cells)
    sweep(texts, tmp_path / "runs")  # nothing is left to do
    assert all(cell.run and read_cell(cell.run).attempts == 1 for cell in again.cells)


def test_a_cell_that_has_ended_is_not_shown_as_running_before_its_engine_says_so(
    texts: dict[str, Any], tmp_path: Path
) -> None:
    seen: list[Progress] = []
    sweep(texts, tmp_path, seeds=3, engine_of=Late, watch=seen.append)
    assert [(one.count("done"), len(one.running)) for one in seen[::2]] == [
        (1, 0),
        (2, 0),
        (3, 0),
        (3, 0),
    ]
    assert all(one.left >= len(one.running) for one in seen)


def test_a_failed_cell_has_its_reason_and_stops_no_other(
    texts: dict[str, Any], tmp_path: Path
) -> None:
    spec = {"axes": {"seed": [1, BAD_SEED, 2]}}
    result = sweep(texts, tmp_path, spec=spec)
    assert [cell.status for cell in result.cells] == ["done", "failed", "done"]
    assert result.cells[1].reason == "1013 is an unlucky seed"
    assert sweep(texts, tmp_path, spec=spec).cells[1].attempts == 1
    assert sweep(texts, tmp_path, spec=spec, retry_failed=True).cells[1].attempts == 2


def test_a_spec_with_a_mistake_does_not_take_the_name(
    texts: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="needs a cap to fill"):
        run_sweep(
            SweepSpec(name="s", equal="bytes", axes={"seed": [1]}, **texts), tmp_path, device="cpu"
        )
    assert not (tmp_path / "sweeps" / "s").exists()


def test_a_search_takes_no_only(texts: dict[str, Any], tmp_path: Path) -> None:
    spec = {"search": SearchConfig(trials=2)}
    with pytest.raises(ConfigError, match="--only seed=1 picks cells, and search.trials = 2"):
        sweep(texts, tmp_path, spec=spec, only=["seed=1"])


def test_a_sweep_that_is_interrupted_goes_on(texts: dict[str, Any], tmp_path: Path) -> None:
    seen: list[Progress] = []
    with pytest.raises(Interrupted, match="2 of 6 cells done"):
        sweep(texts, tmp_path, engine_of=partial(Inline, stop_after=2), watch=seen.append)
    assert [c.status for c in read_sweep(tmp_path / "sweeps" / "s").cells].count("done") == 2
    assert (seen[-1].count("done"), seen[-1].left) == (2, 4)
    result = sweep(texts, tmp_path, watch=seen.append)
    assert [cell.attempts for cell in result.cells] == [1] * 6
    assert seen[-1].best == min(result.cells, key=lambda cell: cell.bpb or 0)


def test_sweeps_that_share_cells_share_their_work_under_their_own_names(
    texts: dict[str, Any], tmp_path: Path
) -> None:
    sweep(texts, tmp_path)
    spec: dict[str, Any] = {"axes": {"seed": [2, 99], "trunk.layers": [4]}}
    one = SweepSpec(name="other", cap="1MB", **texts, **spec)
    result = run_sweep(
        one, tmp_path, device="cpu", job=quick, sound=lambda run: True, engine_of=Inline
    )
    assert result.cells[0].settings["trunk.layers"] == 4
    assert {cell.id for cell in result.cells} & {*numbers(read_sweep(tmp_path / "sweeps" / "s"))}
    assert len([path for path in tmp_path.iterdir() if (path / "job.json").is_file()]) == 7


def test_another_spec_under_a_name_that_is_taken_is_refused(
    texts: dict[str, Any], tmp_path: Path
) -> None:
    sweep(texts, tmp_path)
    sweep(texts, tmp_path, spec={"engine": EngineConfig(jobs=3)})
    with pytest.raises(ConfigError, match=r"another axes: .*\[1, 2, 3, 4, 5, 6\].* there, .*\[7\]"):
        sweep(texts, tmp_path, spec={"axes": {"seed": [7]}})


def test_a_cell_that_is_not_what_it_says_is_done_again(
    texts: dict[str, Any], tmp_path: Path
) -> None:
    first = sweep(texts, tmp_path, seeds=3)
    assert first.cells[0].run is not None and first.cells[1].run is not None
    (first.cells[0].run / "cell.json").write_text("{}")
    lost = first.cells[1].id
    result = sweep(texts, tmp_path, seeds=3, sound=lambda run: run.name != lost)
    assert numbers(result) == numbers(first)
    assert [cell.attempts for cell in result.cells] == [1, 2, 1]


@pytest.mark.parametrize(
    ("only", "seeds"),
    [
        (["seed=2", "seed=3"], {2, 3}),
        (["seed=2", "vocab_size=1024"], {2}),
        ([], {1, 2, 3, 4, 5, 6}),
    ],
)
def test_only_picks_cells(
    only: list[str], seeds: set[int], texts: dict[str, Any], tmp_path: Path
) -> None:
    result = sweep(texts, tmp_path, only=only)
    assert {cell.settings["seed"] for cell in result.cells if cell.status == "done"} == seeds
    assert len(result.cells) == 6


def test_only_that_leaves_nothing_is_refused() -> None:
    cells = [Cell(id="ab", settings={"seed": 1})]
    assert picked(cells, ["a"]) == ["ab"]
    with pytest.raises(ConfigError, match="leaves none of the 1 cells"):
        picked(cells, ["b"])
    with pytest.raises(ConfigError, match="did you mean 'seed'"):
        picked(cells, ["sead=1"])


def test_a_cell_that_another_worker_has_is_left_to_it(tmp_path: Path) -> None:
    run = tmp_path / "c"
    run.mkdir()
    write_cell(Cell(id="c", settings={}), run)
    with locked(run / ".lock", wait=False) as ours:
        assert ours
        assert quick(str(tmp_path), "c") == "busy"
        assert fail(run, "late").status == reopen(run).status == "pending"
    assert fail(run, "two\nlines").reason == "two lines"


# --- local processes


def test_cells_run_in_processes_give_what_they_give_inline(
    texts: dict[str, Any], tmp_path: Path
) -> None:
    found = []
    for jobs in (1, 3):
        spec = {"engine": EngineConfig(jobs=jobs)}
        options: dict[str, Any] = {
            "job": dummy,
            "engine_of": local_engine.LocalEngine,
            "spec": spec,
        }
        found.append(numbers(sweep(texts, tmp_path / str(jobs), **options)))
    assert found[0] == found[1] == numbers(sweep(texts, tmp_path / "inline"))


def test_a_cell_that_always_kills_its_process_fails_after_so_many_deaths(
    texts: dict[str, Any], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"job": crashing, "engine_of": local_engine.LocalEngine}
    [cell] = sweep(texts, tmp_path, seeds=1, deaths=2, **options).cells
    assert cell.status == "failed"
    assert cell.reason is not None and cell.reason.startswith("its process died 2 times")


def killed(texts: dict[str, Any], store: Path, kills: int, seeds: int) -> int:
    """Kill a random worker again and again while a sweep runs; returns how often."""
    processes: set[int] = set()
    done = threading.Event()
    count = 0
    randoms = random.Random(kills)

    def reaper() -> None:
        nonlocal count
        while count < kills and not done.is_set():
            time.sleep(randoms.uniform(0.02, 0.25))
            holders = [*store.glob("*/holder")]
            if not holders:
                continue
            try:
                process = int(randoms.choice(holders).read_text())
                os.kill(process, signal.SIGKILL)
            except (ValueError, OSError):
                continue
            processes.add(process)
            count += 1

    thread = threading.Thread(target=reaper)
    thread.start()
    try:
        spec = {"engine": EngineConfig(jobs=2)}
        options: dict[str, Any] = {
            "job": dummy,
            "engine_of": local_engine.LocalEngine,
            "spec": spec,
        }
        while count < kills:  # until it was disturbed often enough
            result = sweep(texts, store, seeds, deaths=10**6, **options)
            if count < kills:
                for cell in result.cells:
                    assert cell.run is not None
                    (cell.run / "steps").unlink()
                    (cell.run / "finished").unlink()
                    reopen(cell.run)
        done.set()
    finally:
        done.set()
        thread.join()
    assert numbers(sweep(texts, store, seeds)) == numbers(sweep(texts, store / "calm", seeds))
    for cell in result.cells:
        assert cell.run is not None and (cell.run / "steps").read_text() == str(STEPS)
        written = json.loads((cell.run / "cell.json").read_text())
        assert written["status"] == "done", written["reason"]
    assert not (store / "overlap").exists()
    return count


def test_workers_killed_at_random_lose_and_change_nothing(
    texts: dict[str, Any], tmp_path: Path
) -> None:
    assert killed(texts, tmp_path / "runs", 5, 8) >= 5


@pytest.mark.slow
def test_fifty_workers_killed_at_random_lose_and_change_nothing(
    texts: dict[str, Any], tmp_path: Path
) -> None:
    assert killed(texts, tmp_path / "runs", 50, 40) >= 50
