"""Real cells, tiny: what they leave, what they share, how they go on, and how they fail."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sweep_support import TINY, write_texts
from test_sweep_run import Inline, numbers

from tokgolf.artifact.checkpoint import load_run
from tokgolf.artifact.export import read_plan
from tokgolf.errors import Interrupted, TrainingError
from tokgolf.eval.saved import read_score
from tokgolf.sweep import job as sweep_job
from tokgolf.sweep.attempts import reopen
from tokgolf.sweep.cells import Cell, Sweep, read_cell
from tokgolf.sweep.plan import outline, plan, prepared, read_texts, write_job
from tokgolf.sweep.run import run_sweep
from tokgolf.sweep.spec import EngineConfig, SweepSpec

CAP = 45_000


def spec_of(texts: dict[str, Any], **values: Any) -> SweepSpec:
    axes = {"vocab_size": [270], "head": ["tied", "factorized"], "head.rank": [4]}
    chosen = {"run": TINY, "equal": "bytes", "cap": str(CAP), "axes": axes, **texts, **values}
    return SweepSpec(name="tiny", **chosen)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def whole(texts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A sweep that nothing disturbs; its runs are in the store."""
    store = tmp_path_factory.mktemp("store")
    return run_sweep(spec_of(texts), store, device="cpu", engine_of=Inline)


def run_of(cell: Cell) -> Path:
    assert cell.run is not None
    return cell.run


def test_a_cell_is_a_run_directory_with_its_numbers(whole: Sweep) -> None:
    assert [cell.status for cell in whole.cells] == ["done", "done"], whole.cells
    for cell in whole.cells:
        run = run_of(cell)
        names = ("config.toml", "metrics.jsonl", "model.golf", "model.golf.plan.json", "score.json")
        assert all((run / name).is_file() for name in names)
        assert cell.bpb == read_score(run).bpb
        assert cell.artifact_bytes is not None and CAP - 6000 < cell.artifact_bytes <= CAP
        assert cell.steps == 6 and cell.tokens == 6 * 64
        assert cell.train_bytes is not None and cell.train_bytes > cell.tokens
        assert cell.bpb_before_export and cell.params and cell.asset_bytes


def test_cells_share_their_tokenizer_and_their_tokens(whole: Sweep) -> None:
    runs = [run_of(cell) for cell in whole.cells]
    store = runs[0].parent
    assert len([*(store / "tokenizers").glob("*.tok")]) == 1
    [shard] = store.glob("tokens/*/train_000000.bin")
    assert all((run / "tokens" / shard.name).samefile(shard) for run in runs)


def test_the_outline_has_the_sizes_that_are_then_measured(
    whole: Sweep, texts: dict[str, Any]
) -> None:
    spec, store = spec_of(texts), run_of(whole.cells[0]).parent
    sources = read_texts(spec)
    for cell, job in zip(whole.cells, plan(spec, sources, "cpu"), strict=True):
        found = outline(store, job, sources.corpus)
        assert (found.problem, found.params) == (None, cell.params)
        assert found.cell.status == "done" and found.cell.bpb == cell.bpb
        assert found.artifact_bytes is not None and cell.artifact_bytes is not None
        assert abs(found.artifact_bytes - cell.artifact_bytes) < 3000


@pytest.mark.parametrize(
    "lost",
    [
        ["model.golf"],
        ["checkpoints", "model.golf", "score.json", "float.json"],
    ],
)
def test_what_is_lost_of_a_cell_is_made_again_alike(
    lost: list[str], whole: Sweep, texts: dict[str, Any], tmp_path: Path
) -> None:
    cell = whole.cells[1]
    store = tmp_path / "store"
    shutil.copytree(run_of(cell).parent, store)
    run = store / cell.id
    for name in lost:
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    assert not sweep_job.is_sound(run)
    again = run_sweep(spec_of(texts), store, device="cpu", engine_of=Inline)
    assert numbers(again) == numbers(whole)
    assert [one.attempts for one in again.cells] == [1, 2]
    assert (run / "model.golf").read_bytes() == (run_of(cell) / "model.golf").read_bytes()


def test_weights_that_are_gone_take_along_what_was_made_of_them(
    whole: Sweep, texts: dict[str, Any], tmp_path: Path
) -> None:
    cell = whole.cells[1]
    store = tmp_path / "store"
    shutil.copytree(run_of(cell).parent, store)
    run = store / cell.id
    shutil.rmtree(run / "checkpoints")
    (run / "score.json").unlink()
    (run / "model.golf.plan.json").write_text("of the old weights")
    again = run_sweep(spec_of(texts), store, device="cpu", engine_of=Inline)
    assert numbers(again) == numbers(whole)
    assert read_plan(run / "model.golf.plan.json").steps


def test_a_cell_that_is_interrupted_is_pending_and_goes_on(
    whole: Sweep, texts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, (first, _) = spec_of(texts), whole.cells
    store = tmp_path / "store"
    shutil.copytree(run_of(first).parent, store)
    reopen(store / first.id)
    (store / first.id / "score.json").unlink()

    def interrupted(*arguments: Any) -> float:
        raise Interrupted("interrupted after step 3")

    with monkeypatch.context() as patch:
        patch.setattr(sweep_job, "_score", interrupted)
        assert sweep_job.run_cell(str(store), first.id) == "pending"
    cell = read_cell(store / first.id)
    assert (cell.status, cell.reason, cell.attempts) == ("pending", None, 2)
    result = run_sweep(spec, store, device="cpu", engine_of=Inline)
    assert numbers(result) == numbers(whole)


def test_cells_that_cannot_be_built_fail_with_the_reason_before_training(
    texts: dict[str, Any], tmp_path: Path
) -> None:
    axes = {"head": ["tied", "factorized"], "head.rank": [999], "trunk.d_model": [15, 16]}
    axes |= {"vocab_size": [270, 60_000]}
    spec = spec_of(texts, equal="steps", axes=axes, run={**TINY, "steps": 4})
    sources = read_texts(spec)
    found = {
        tuple(job.settings[a] for a in ("head", "trunk.d_model", "vocab_size")): outline(
            tmp_path, job, sources.corpus
        ).problem
        for job in plan(spec, sources, "cpu")
    }
    assert found.pop(("tied", 16, 270)) is None and len(found) == 7
    assert all(found.values())
    assert "d_model 15 does not split" in str(found["tied", 15, 270])
    assert "rank" in str(found["factorized", 16, 270])
    assert "supports only" in str(found["tied", 16, 60_000])
    result = run_sweep(spec, tmp_path, device="cpu", engine_of=Inline)
    reasons = {
        tuple(cell.settings[a] for a in ("head", "trunk.d_model", "vocab_size")): cell.reason
        for cell in result.cells
        if cell.status == "failed"
    }
    assert reasons == found
    failed = [run_of(cell) for cell in result.cells if cell.status == "failed"]
    assert not any((run / "checkpoints").exists() for run in failed)


def test_a_cap_that_is_too_small_fails_with_both_numbers(
    texts: dict[str, Any], tmp_path: Path
) -> None:
    axes = {"bits": [4.0], "vocab_size": 270, "cap": ["9KB", 10_000]}
    for equal, words in (("bytes", "under the cap of 9,000"), ("steps", "(at 4.0 bits); leave")):
        spec = replace(spec_of(texts, equal=equal, axes=axes, cap=None), name=equal)
        result = run_sweep(spec, tmp_path, device="cpu", engine_of=Inline)
        assert [cell.status for cell in result.cells] == ["failed"] * 2
        assert words in str(result.cells[0].reason)


def test_a_text_that_has_changed_fails_its_cells(tmp_path: Path) -> None:
    texts = write_texts(tmp_path)
    spec = spec_of(texts)
    [job, _] = plan(spec, read_texts(spec), "cpu")
    run = tmp_path / "store" / job.id
    sweep_job_file = run_sweep(spec, tmp_path / "store", device="cpu", engine_of=_Nothing)
    assert [cell.status for cell in sweep_job_file.cells] == ["failed", "failed"]
    reopen(run)
    with open(texts["corpus"], "a") as file:
        file.write(json.dumps({"text": "One more."}) + "\n")
    assert sweep_job.run_cell(str(tmp_path / "store"), job.id) == "failed"
    assert "has changed since the sweep was planned" in str(read_cell(run).reason)


class _Nothing(Inline):
    """Fails every cell."""

    def ended(self, seconds: float) -> list[Any]:
        from tokgolf.sweep.engines import Ended

        return [Ended(cell=self.waiting.pop(0), problem="OSError: no room")]


def test_equal_time_needs_minutes_and_ends_by_them(texts: dict[str, Any], tmp_path: Path) -> None:
    spec = spec_of(texts, equal="time", run={**TINY, "minutes": 0.01}, axes={"vocab_size": 270})
    [cell] = run_sweep(spec, tmp_path, device="cpu", engine_of=Inline).cells
    assert cell.status == "done" and cell.steps is not None and cell.steps != TINY["steps"]


def nobody(step: int) -> None:
    """Is told of steps."""


@pytest.mark.slow
def test_training_started_by_torchrun_gives_the_same_and_tells_its_error(
    whole: Sweep, texts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    spec = spec_of(texts)
    sources = read_texts(spec)
    job = plan(spec, sources, "cpu")[0]
    run = write_job(tmp_path, job)
    ready = prepared(tmp_path, job, sources.corpus)
    result = sweep_job.trained_by_torchrun(job, ready, run, nobody)  # of one process
    assert (result.steps, result.params) == (whole.cells[0].steps, whole.cells[0].params)
    before = load_run(run).model.state_dict()
    after = load_run(run_of(whole.cells[0])).model.state_dict()
    assert all((before[name] == after[name]).all() for name in after)
    (run / "checkpoints" / "latest.json").write_text("{}")
    with pytest.raises(TrainingError, match="ended with 1: .*latest.json is damaged"):
        sweep_job.trained_by_torchrun(job, ready, run, nobody)


@pytest.mark.slow
def test_real_cells_in_processes_give_what_they_give_inline(
    whole: Sweep, texts: dict[str, Any], tmp_path: Path
) -> None:
    spec = spec_of(texts, engine=EngineConfig(jobs=2))
    assert numbers(run_sweep(spec, tmp_path, device="cpu")) == numbers(whole)
