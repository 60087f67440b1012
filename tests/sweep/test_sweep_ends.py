"""What is left running, and what is saved, when a sweep, a cell or its ranks are ended."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sweep_support import TINY, lives, write_texts
from test_sweep_run import Inline, numbers

from tokgolf.artifact.checkpoint import read_checkpoint
from tokgolf.errors import TrainingError
from tokgolf.locks import locked
from tokgolf.signals import ended_as_by_ctrl_c
from tokgolf.sweep import job as sweep_job
from tokgolf.sweep import ranks
from tokgolf.sweep.attempts import reopen
from tokgolf.sweep.cells import read_cell, read_sweep
from tokgolf.sweep.engines.local import _run
from tokgolf.sweep.plan import plan, read_texts, write_job
from tokgolf.sweep.ranks import LEASH_PREFIX, RANKS_FILE
from tokgolf.sweep.run import run_sweep
from tokgolf.sweep.spec import SweepSpec
from tokgolf.training import StepReport, train

SECONDS = 240.0
"""After which a test gives up, on a machine that is very busy too."""
HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")


def until(what: Callable[[], object]) -> None:
    """Wait until it is so."""
    end = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


@contextmanager
def python(script: str, *arguments: object) -> Iterator["subprocess.Popen[str]"]:
    """A Python that runs `script`, killed in the end."""
    paths = os.pathsep.join([str(HERE.parents[1]), str(HERE)])
    with subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


# --- a signal to this process


def test_of_many_signals_the_first_alone_is_a_ctrl_c() -> None:
    old = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where nohup started the tests
    try:
        before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
        with ended_as_by_ctrl_c():
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGHUP)
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGTERM)
        assert before == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    finally:
        signal.signal(signal.SIGHUP, old)


def test_where_ctrl_c_is_ignored_a_signal_still_ends() -> None:
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with ended_as_by_ctrl_c(), pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, old)


def test_a_cell_told_to_end_saves_the_step_it_is_at_and_goes_on_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = write_texts(tmp_path)
    spec = SweepSpec(name="s", cap="45KB", run=TINY, axes={"vocab_size": 270, "tune": 0}, **texts)
    [job] = plan(spec, read_texts(spec), "cpu")
    write_job(tmp_path / "a", job)

    def told(*arguments: Any, on_step: Any, **options: Any) -> Any:
        def end(report: StepReport) -> None:
            if report.step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)  # a second one must not cut the saving off

        return train(*arguments, on_step=end, **options)

    with monkeypatch.context() as patch:
        patch.setattr(sweep_job, "train", told)
        assert _run(sweep_job.run_cell, str(tmp_path / "a"), job.id) == "pending"
    _, state = read_checkpoint(tmp_path / "a" / job.id)
    assert 3 <= state["step"] < TINY["steps"]
    again = run_sweep(spec, tmp_path / "a", device="cpu", engine_of=Inline)
    assert numbers(again) == numbers(
        run_sweep(spec, tmp_path / "b", device="cpu", engine_of=Inline)
    )


# --- a local sweep

SWEEP = """
import sys
from pathlib import Path
from sweep_support import endless, write_texts
from tokgolf.sweep.run import run_sweep
from tokgolf.sweep.spec import EngineConfig, SweepSpec

folder = Path(sys.argv[1])
spec = SweepSpec(
    name="s", cap="1MB", axes={"seed": [1, 2, 3]}, engine=EngineConfig(jobs=2),
    **write_texts(folder),
)
run_sweep(spec, folder / "runs", device="cpu", job=endless)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_sweep_that_is_ended_leaves_no_cell_running(
    number: signal.Signals, tmp_path: Path
) -> None:
    def holders() -> list[Path]:
        return [*tmp_path.glob("runs/*/holder")]

    with python(SWEEP, tmp_path) as process:
        until(lambda: len(holders()) == 2)
        workers = [int(path.read_text()) for path in holders()]
        process.send_signal(number)
        _, err = process.communicate(timeout=SECONDS)
    try:
        until(lambda: not any(map(lives, workers)))
    finally:
        for worker in filter(lives, workers):
            os.kill(worker, signal.SIGKILL)
    assert not holders()  # each has cleared up
    cells = read_sweep(tmp_path / "runs" / "sweeps" / "s").cells
    assert all(cell.run and read_cell(cell.run).status == "pending" for cell in cells)
    if number != signal.SIGKILL:
        assert process.returncode == 1
        assert "interrupted with 0 of 3 cells done" in err and err.count("Traceback") == 1


# --- ranks

RANK = """
import sys, time
from pathlib import Path
import tokgolf.cli
from tokgolf.sweep.ranks import main

def run(arguments):
    Path(arguments[0]).touch()
    time.sleep(600)

tokgolf.cli.run = run
sys.exit(main())
"""


def test_a_rank_ends_with_its_cell_and_is_waited_for(tmp_path: Path) -> None:
    leash, began = tmp_path / f"{LEASH_PREFIX}1", tmp_path / "began"
    cell = ExitStack()
    cell.enter_context(locked(leash, wait=True))
    with python(RANK, leash, began) as rank:
        until(began.exists)
        with locked(tmp_path / RANKS_FILE, wait=False) as free:
            assert not free and rank.poll() is None
        cell.close()
        assert rank.wait(SECONDS) == -signal.SIGTERM
    with locked(tmp_path / RANKS_FILE, wait=False) as free:
        assert free


def test_a_rank_that_comes_when_its_cell_has_ended_does_nothing(tmp_path: Path) -> None:
    with python(RANK, tmp_path / f"{LEASH_PREFIX}1", tmp_path / "began") as rank:
        assert rank.wait(SECONDS) == 1
    assert not (tmp_path / "began").exists()


def test_ranks_that_do_not_end_are_an_error_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "END_SECONDS", 0.2)
    with locked(tmp_path / RANKS_FILE, wait=True), pytest.raises(TrainingError, match="0 s; end"):
        ranks.run_ranks(["train"], 2, tmp_path, lambda: None)


CELL = """
import sys
from tokgolf.sweep.job import run_cell

run_cell(*sys.argv[1:])
"""


def ranks_of(run: Path) -> dict[int, int]:
    """The processes that are the ranks of this run, each with its parent."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes()
            if b"tokgolf.sweep.ranks" in line and os.fsencode(run) in line:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                found[int(entry.name)] = parent
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
def test_a_cell_of_two_ranks_is_that_of_one_whoever_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE.parents[1]))
    texts, base = write_texts(tmp_path), {**TINY, "micro_batch_tokens": 32, "steps": 400}
    one = SweepSpec(name="s", cap="45KB", run=base, axes={"vocab_size": 270, "tune": 0}, **texts)
    two = replace(one, run={**base, "checkpoint_minutes": 1e-9}, processes=2)
    store = tmp_path / "two"
    [job] = plan(two, read_texts(two), "cpu")
    run = write_job(store, job)
    for victim in ("torchrun", "the cell", "nobody"):
        before = _steps(run)
        with python(CELL, store, job.id) as cell:
            if victim == "nobody":
                cell.wait(SECONDS)
                break
            until(lambda before=before: _steps(run) > before)  # type: ignore[misc]
            found = ranks_of(run)
            torchrun = next(parent for parent in found.values() if parent in found)
            os.kill(torchrun if victim == "torchrun" else cell.pid, signal.SIGKILL)
            cell.wait(SECONDS)
            if victim == "torchrun":
                assert not ranks_of(run)
                assert "torchrun of 2 processes ended with -9" in str(read_cell(run).reason)
                reopen(run)
        until(lambda: not ranks_of(run))
    [done] = run_sweep(one, tmp_path / "one", device="cpu", engine_of=Inline).cells
    assert read_cell(run).bpb == done.bpb and read_cell(run).attempts == 3
    assert done.run and (run / "model.golf").read_bytes() == (done.run / "model.golf").read_bytes()


def _steps(run: Path) -> int:
    """Steps in the latest checkpoint."""
    path = run / "checkpoints" / "latest.json"
    return int(json.loads(path.read_text())["state"]["step"]) if path.exists() else 0
