"""Runs that are killed, damaged or starved: what goes on is the run that nothing disturbed."""

import contextlib
import dataclasses
import errno
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_support import TOKENIZER, assert_same_run, nothing
from training_support import run_it as train_it

from tokgolf.artifact.checkpoint import (
    holds_checkpoint,
    read_checkpoint,
    read_sound_checkpoint,
    write_checkpoint,
)
from tokgolf.artifact.export import export_run
from tokgolf.config import TrunkConfig
from tokgolf.corpora import Corpus, Document, ShardWriter
from tokgolf.errors import ArtifactError, TrainingError
from tokgolf.quantize.rows import QuantConfig
from tokgolf.training import RunConfig, StepReport, TrainResult, data, train
from tokgolf.training.averages import AverageConfig
from tokgolf.training.directory import RunDirectory
from tokgolf.training.qat import QatConfig
from tokgolf.training.session import Session

TRUNK = TrunkConfig(layers=1, d_model=16, heads=2, kv_heads=1, mlp_hidden=24, sequence_length=16)
STEPS = 24
CONFIG = RunConfig(
    trunk=TRUNK,
    batch_tokens=64,
    steps=STEPS,
    warmdown_steps=8,
    precision="fp32",
    compile="off",
    checkpoint_minutes=1e-9,  # after every step
)
BEGUN: dict[str, Any] = {
    "trunk": dataclasses.replace(TRUNK, loop_blocks=1, loops=2, loop_rank=2, smear=True),
    "head": {"name": "untied", "untie_at": 0.3},
    "loops_from": 0.2,
    "short_length": 8,
    "short_until": 0.5,
    "average": AverageConfig(ema=0.9),
    "qat": QatConfig(start=0.6, bits=3.0, every=3, method="nearest"),
}
"""What changes a run on its way, all of it."""
DOCUMENTS = [Document(str(i), f"a killed run goes on, {i} times. ".encode()) for i in range(30)]
CORPUS = Corpus(name="tiny", split=None, source=lambda: iter(DOCUMENTS))


def run_it(
    run: Path,
    *,
    on_step: Callable[[StepReport], None] = nothing,
    say: Callable[[str], None] = nothing,
    resume: bool = False,
    **changes: Any,
) -> TrainResult:
    config = dataclasses.replace(CONFIG, **changes)
    return train_it(run, config, corpus=CORPUS, resume=resume, on_step=on_step, say=say)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing disturbs."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    run_it(path)
    return path


def artifact_of(run: Path) -> str:
    """SHA-256 of what is exported."""
    config = QuantConfig(method="nearest", bits=4.0)
    export_run(run, run / "model.golf", cap=10**6, config=config)
    return sha256((run / "model.golf").read_bytes()).hexdigest()


def killed(run: Path, delay: float, changes: dict[str, Any]) -> bool:
    """Train in a child that is killed after `delay` seconds; whether it had ended before."""
    child = os.fork()
    if child == 0:
        try:
            run_it(
                run,
                resume=holds_checkpoint(run),
                on_step=lambda report: time.sleep(0.002),
                **changes,
            )
            os._exit(0)
        finally:
            os._exit(1)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or status == 0
    return not os.WIFSIGNALED(status)


@pytest.mark.parametrize("changes", [{}, BEGUN], ids=["plain", "begun on the way"])
def test_a_run_killed_at_random_moments_ends_as_the_one_that_was_not(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    run_it(whole, **changes)
    run, rng = tmp_path / "run", random.Random(20)
    hits = 0
    while hits < 20:
        ended = killed(run, rng.uniform(0.02, 0.3), changes)
        hits += not ended
        if ended:
            shutil.rmtree(run)  # and from the start again, until it has been hit often enough
    run_it(run, resume=holds_checkpoint(run), **changes)
    assert_same_run(run, whole)
    assert artifact_of(run) == artifact_of(whole)


def stopped_at(run: Path, step: int) -> None:
    """A run that stopped as if killed after a step, its checkpoint written."""

    def on_step(report: StepReport) -> None:
        if report.step == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_it(run, on_step=on_step)


def newest(run: Path) -> Path:
    return max((run / "checkpoints").glob("step-*.safetensors"))


def test_two_checkpoints_are_kept_and_a_damaged_latest_one_is_said_and_passed_over(
    whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    stopped_at(run, 9)
    assert len(list((run / "checkpoints").glob("step-*.safetensors"))) == 2
    damaged = bytearray(newest(run).read_bytes())
    damaged[-1] ^= 1
    newest(run).write_bytes(damaged)
    with pytest.raises(ArtifactError, match="was damaged or edited"):
        read_checkpoint(run)
    said: list[str] = []
    run_it(run, resume=True, say=said.append)
    assert len(said) == 1 and "damaged" in said[0] and said[0].endswith("step 7")
    assert_same_run(run, whole)


def test_two_damaged_checkpoints_are_an_error(tmp_path: Path) -> None:
    run = tmp_path / "run"
    stopped_at(run, 5)
    for path in (run / "checkpoints").glob("step-*.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(ArtifactError, match="was damaged or edited"):
        run_it(run, resume=True)


def test_a_run_whose_latest_pointer_is_lost_goes_on_from_the_one_before(
    whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    stopped_at(run, 9)
    (run / "checkpoints" / "latest.json").unlink()
    with pytest.raises(TrainingError, match="already holds a run; use --resume"):
        run_it(run)
    said: list[str] = []
    run_it(run, resume=True, say=said.append)
    assert len(said) == 1 and "latest.json is missing; going on from the one before" in said[0]
    assert_same_run(run, whole)


@pytest.mark.parametrize("step", [2, 9])
def test_a_checkpoint_of_before_it_held_when_to_look_is_resumed(
    step: int, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    stopped_at(run, step)
    tensors, state = read_checkpoint(run)
    del state["check_at"]
    write_checkpoint(run, tensors, state)
    run_it(run, resume=True)
    assert_same_run(run, whole)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda tensors, state: tensors.pop("model.head.table"), "resumed from: KeyError"),
        (
            lambda tensors, state: tensors.pop("muon.trunk.blocks.0.mlp.up.weight"),
            r"holds no optimizer state 'muon\.trunk\.blocks\.0\.mlp\.up\.weight'",
        ),
        (
            lambda tensors, state: tensors.update({"model.head.table": torch.ones(3)}),
            "resumed from: RuntimeError",
        ),
        (lambda tensors, state: state.pop("corpus"), "resumed from: KeyError"),
        (lambda tensors, state: state.update(corpus=3), "resumed from: TypeError"),
        (lambda tensors, state: state.update(loss="small"), "resumed from: ValueError"),
        (lambda tensors, state: state.update(quantizer_steps=[]), "resumed from: AttributeError"),
        (lambda tensors, state: state.update(tokens_at_once="x"), "resumed from: ValueError"),
    ],
)
def test_a_checkpoint_of_other_content_is_refused_in_one_line(
    damage: Callable[..., Any], reason: str, whole: Path, tmp_path: Path
) -> None:
    """Sound as a file: its seal is right."""
    tensors, state = read_checkpoint(whole)
    damage(tensors, state)
    shutil.copytree(whole, tmp_path / "run")
    write_checkpoint(tmp_path / "run", tensors, state)
    with pytest.raises(TrainingError, match=reason) as error:
        run_it(tmp_path / "run", resume=True, steps=STEPS + 1)
    assert "\n" not in str(error.value)


def test_a_checkpoint_that_cannot_be_read_is_passed_over(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    stopped_at(run, 9)
    broken, real = newest(run), Path.read_bytes

    def read(path: Path) -> bytes:
        if path == broken and not said:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path)

    said: list[str] = []
    monkeypatch.setattr(Path, "read_bytes", read)
    with pytest.raises(
        ArtifactError, match=r"latest\.json, or what it points to, cannot be read: .*Errno 5"
    ):
        read_checkpoint(run)
    run_it(run, resume=True, say=said.append)
    assert len(said) == 1 and said[0].endswith("going on from the one before, step 7")
    assert_same_run(run, whole)


def test_a_folder_in_a_checkpoints_place_is_passed_over(tmp_path: Path) -> None:
    for step in (10, 20):
        write_checkpoint(tmp_path, {"x": torch.full((2,), step)}, {"step": step})
    path = newest(tmp_path)
    path.unlink()
    path.mkdir()
    assert read_sound_checkpoint(tmp_path, nothing)[1]["step"] == 10
    write_checkpoint(tmp_path, {"x": torch.zeros(2)}, {"step": 15})
    assert read_checkpoint(tmp_path)[1]["step"] == 15


def test_what_may_change_is_said_and_a_budget_that_is_spent_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    said: list[str] = []
    run_it(run, steps=4)
    with pytest.raises(TrainingError, match="has done 4 steps, and is to end after 3;"):
        run_it(run, resume=True, steps=3)
    assert "\nsteps = 4\n" in (run / "config.toml").read_text()
    run_it(run, resume=True, steps=4, say=said.append)
    assert said == []
    run_it(run, resume=True, steps=6, minutes=5.0, max_gradient=1e7, say=said.append)
    assert said == [
        "resume    with other options than the run had: max_gradient 1000000.0 (now 10000000.0), "
        "minutes unset (now 5.0), steps 4 (now 6)"
    ]
    assert read_checkpoint(run)[1]["step"] == 6


@pytest.mark.parametrize(
    ("before", "now", "differs"),
    [
        ((1, 96), (1, 96), False),
        ((1, 48), (2, 48), False),  # g1 + g2, by one or by two
        ((1, 24), (4, 24), False),
        ((1, 24), (2, 24), True),  # ((g1 + g2) + g3) + g4, or (g1 + g2) + (g3 + g4)
        ((1, 96), (2, 48), True),
    ],
)
def test_another_order_of_sums_is_said(
    before: tuple[int, int], now: tuple[int, int], differs: bool, tmp_path: Path
) -> None:
    said: list[str] = []
    config = {"config": {"batch_tokens": 96}}
    one, two = (config | {"processes": n, "tokens_at_once": m} for n, m in (before, now))
    directory = RunDirectory(tmp_path, said.append, contextlib.ExitStack())
    directory.say_changes(config, two)  # of an older checkpoint, which does not know
    assert said == []
    directory.say_changes(one, two)
    assert ["summed in another order" in line for line in said] == [True] * differs


def test_a_run_that_another_process_trains_is_left_alone(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    refused: list[str] = []

    def second(report: StepReport) -> None:
        if report.step == 9:
            with pytest.raises(TrainingError, match="another process is training") as error:
                run_it(run, resume=True, steps=STEPS + 1)
            refused.append(str(error.value))

    run_it(run, on_step=second)
    assert len(refused) == 1
    assert f"\nsteps = {STEPS}\n" in (run / "config.toml").read_text()
    assert_same_run(run, whole)
    run_it(run, resume=True)  # it is free again


def test_a_run_that_was_trained_while_this_one_read_its_corpus_is_left_alone(
    whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"

    def documents() -> Iterator[Document]:
        if not run.exists():
            run_it(run)  # by another process
        return iter(DOCUMENTS)

    slow = Corpus(name="tiny", split=None, source=documents)
    with pytest.raises(TrainingError, match="already holds a run"):
        train(dataclasses.replace(CONFIG, seed=7), TOKENIZER, slow, run, device="cpu")
    assert_same_run(run, whole)


def test_a_run_is_held_before_its_checkpoint_is_read(tmp_path: Path) -> None:
    """Or it would go on from where another process has gone on, too."""
    run = tmp_path / "run"
    run_it(run, steps=4)
    refused: list[str] = []

    def documents() -> Iterator[Document]:
        if not refused:
            with pytest.raises(TrainingError, match="another process is training") as error:
                run_it(run, resume=True, steps=8)
            refused.append(str(error.value))
        return iter(DOCUMENTS)

    slow = Corpus(name="tiny", split=None, source=documents)
    longer = dataclasses.replace(CONFIG, steps=6)
    train(longer, TOKENIZER, slow, run, device="cpu", resume=True)
    assert refused and read_checkpoint(run)[1]["step"] == 6


def fails_to_lock(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def none(*given: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tokgolf.locks.fcntl.flock", none)


@pytest.mark.parametrize("name", ["ENOSYS", "ENOTSUP", "EOPNOTSUPP", "ENOLCK"])
def test_a_file_system_without_locks_is_said(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_to_lock(monkeypatch, getattr(errno, name))
    said: list[str] = []
    run_it(tmp_path / "run", say=said.append, steps=2)
    assert [line.split()[0] for line in said] == ["lock"]


def test_a_lock_that_fails_otherwise_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_to_lock(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        run_it(tmp_path / "run")


def test_a_missing_shard_is_made_again(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "ShardWriter", partial(ShardWriter, shard_tokens=300))
    run = tmp_path / "run"
    stopped_at(run, 9)
    *others, last = sorted((run / "tokens").glob("*.bin"))
    assert len(others) > 1  # without the last one they would still make a corpus
    before = last.read_bytes()
    last.unlink()
    said: list[str] = []
    run_it(run, resume=True, say=said.append)
    shards = f"{len(others)} of {len(others) + 1} token shards"
    assert said == [f"tokens    {run / 'tokens'} holds {shards}: the corpus is tokenized again"]
    assert last.read_bytes() == before
    assert_same_run(run, whole)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("train_000001.bin", lambda data: data[:-2] + b"\1\1", "were damaged or edited"),
        ("train_000001.bin", lambda data: data[:-2], "but its header says"),
        ("train_000001.bin", lambda data: b"", "has 0 bytes, a shard's header alone has 1024"),
        ("train_000001.json", lambda data: data[:-9], "is no sound sidecar"),
    ],
)
def test_a_damaged_shard_is_said_and_made_again(
    name: str,
    change: Callable[[bytes], bytes],
    said: str,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(data, "ShardWriter", partial(ShardWriter, shard_tokens=300))
    run = tmp_path / "run"
    stopped_at(run, 9)
    path = run / "tokens" / name
    before = path.read_bytes()
    path.write_bytes(change(before))
    lines: list[str] = []
    run_it(run, resume=True, say=lines.append)
    assert len(lines) == 1 and said in lines[0] and str(path) in lines[0]
    assert lines[0].endswith("): the corpus is tokenized again")
    assert path.read_bytes() == before
    assert_same_run(run, whole)


def test_a_full_disk_stops_the_run_and_keeps_the_checkpoint_before(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    real, calls = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 40:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run_it(run)
    monkeypatch.undo()
    assert 0 < read_checkpoint(run)[1]["step"] < STEPS
    assert not list(run.rglob("*tokgolf-tmp"))
    run_it(run, resume=True)
    assert_same_run(run, whole)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_names_the_metrics(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"

    def fill(report: StepReport) -> None:
        if report.step == 2:
            path.unlink()
            path.symlink_to("/dev/full")

    with pytest.raises(OSError, match="No space left") as error:
        run_it(tmp_path / "run", on_step=fill)
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(path))


def test_a_jump_of_the_wall_clock_changes_nothing(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(10**9, 0, -(10**6)))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    result = run_it(tmp_path / "run")
    assert 0 < result.seconds < 60
    assert_same_run(tmp_path / "run", whole)


def test_no_step_draws_random_numbers_of_torch(tmp_path: Path) -> None:
    """What is random is a function of the seed and the step: there is no generator to save."""
    states: list[Tensor] = []
    run_it(tmp_path / "run", on_step=lambda report: states.append(torch.get_rng_state()), **BEGUN)
    assert all(torch.equal(states[0], state) for state in states)


@pytest.mark.parametrize(
    ("value", "said"),
    [(float("nan"), r"head\.table \(nan\)"), (1e9, r"head\.table \(1e\+09\)")],
)
def test_a_gradient_that_explodes_stops_the_run_and_is_named(
    value: float, said: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients = Session.gradients

    def broken(session: Session, tokens: Tensor, targets: Tensor) -> Tensor:
        found = gradients(session, tokens, targets)
        if session.step == 6:
            table = session.model.get_parameter("head.table")
            assert table.grad is not None
            table.grad[3, 5] = value
            found[1:] = session.optimizers.gradient_norms()
        return found

    monkeypatch.setattr(Session, "gradients", broken)
    match = (
        rf"at step 7 the gradient's norm is above max_gradient 1e\+06 for {said}; the checkpoint"
    )
    with pytest.raises(TrainingError, match=match):
        run_it(tmp_path / "run")
    monkeypatch.undo()
    assert read_checkpoint(tmp_path / "run")[1]["step"] == 6
    run_it(tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize(("step", "left"), [(1, "there is no checkpoint yet"), (9, "of step 8 is")])
def test_weights_that_an_update_spoils_are_not_saved(
    step: int, left: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Session.update

    def broken(session: Session, *given: Any) -> None:
        update(session, *given)
        if session.step == step:
            session.model.get_parameter("head.table").data[3, 5] = float("inf")

    monkeypatch.setattr(Session, "update", broken)
    match = rf"after step {step} not all numbers are finite of model\.head\.table; .*{left}"
    with pytest.raises(TrainingError, match=match):
        run_it(tmp_path / "run")
    monkeypatch.undo()
    run_it(tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole)


def test_a_damaged_checkpoint_does_not_take_the_place_of_the_sound_one_before(
    tmp_path: Path,
) -> None:
    paths = []
    for step in (10, 20, 25):
        paths.append(write_checkpoint(tmp_path, {"x": torch.full((2,), step)}, {"step": step}))
        if step == 20:
            paths[-1].write_bytes(b"damaged")
    assert [path.exists() for path in paths] == [True, False, True]
    paths[-1].write_bytes(b"damaged, too")
    assert read_sound_checkpoint(tmp_path, nothing)[1]["step"] == 10
