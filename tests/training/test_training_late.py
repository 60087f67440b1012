"""What a run on a GPU does otherwise, tried on a CPU: losses read late, batches made ahead."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from training_support import TOKENIZER, assert_same_run, losses_of, nothing, stops_at
from training_support import run_it as train_it

from tokgolf.artifact.checkpoint import read_checkpoint
from tokgolf.config import TrunkConfig
from tokgolf.corpora import Corpus, Document
from tokgolf.errors import TrainingError
from tokgolf.model import LanguageModel
from tokgolf.training import RunConfig, StepReport
from tokgolf.training import session as sessions
from tokgolf.training.data import Batches, Prefetcher, TokenStream
from tokgolf.training.guards import STEPS_TO_MOVE, tied_self_logit
from tokgolf.training.qat import QatConfig
from tokgolf.training.session import Session, Step

TRUNK = TrunkConfig(layers=1, d_model=16, heads=2, kv_heads=1, mlp_hidden=24, sequence_length=16)
CONFIG = RunConfig(
    trunk=TRUNK, batch_tokens=64, steps=12, warmdown_steps=3, precision="fp32", compile="off"
)
DOCUMENTS = [Document(str(i), f"late is as good as early, {i}. ".encode()) for i in range(30)]
CORPUS = Corpus(name="tiny", split=None, source=lambda: iter(DOCUMENTS))


def run_it(
    run: Path, *, on_step: Callable[[StepReport], None] = nothing, **changes: Any
) -> list[str]:
    """Train; returns what was said."""
    said: list[str] = []
    resume = changes.pop("resume", False)
    config = dataclasses.replace(CONFIG, **changes)
    train_it(run, config, corpus=CORPUS, resume=resume, on_step=on_step, say=said.append)
    return said


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "reads_late", lambda session: session.step > STEPS_TO_MOVE)


@pytest.fixture(scope="module")
def early(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, float]]]:
    """A run that reads every loss at once, and what it reported."""
    path, reports = tmp_path_factory.mktemp("runs") / "early", list[tuple[int, float]]()
    run_it(path, on_step=lambda report: reports.append((report.step, report.loss)))
    return path, reports


@pytest.mark.usefixtures("late")
def test_reading_late_reports_the_same_steps_with_the_same_losses(
    early: tuple[Path, list[tuple[int, float]]], tmp_path: Path
) -> None:
    path, expected = early
    reports: list[tuple[int, float]] = []
    run_it(tmp_path / "run", on_step=lambda report: reports.append((report.step, report.loss)))
    assert reports == expected
    assert_same_run(tmp_path / "run", path)


@pytest.mark.usefixtures("late")
def test_a_loss_that_is_read_late_still_names_its_step_and_spoils_no_checkpoint(
    early: tuple[Path, list[tuple[int, float]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, calls = LanguageModel.loss, 0

    def broken(model: LanguageModel, tokens: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return loss(model, tokens, targets) * (math.nan if calls == 8 else 1.0)

    monkeypatch.setattr(LanguageModel, "loss", broken)
    with pytest.raises(TrainingError, match="the loss is nan at step 8"):
        run_it(tmp_path / "run", checkpoint_minutes=1e-9)
    monkeypatch.undo()
    tensors, state = read_checkpoint(tmp_path / "run")
    assert state["step"] == 7
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    run_it(tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", early[0])


@pytest.mark.usefixtures("late")
def test_a_tensor_that_a_step_found_spoiled_is_named_when_that_is_read_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Session.update

    def spoils(session: Session, step: Step) -> None:
        update(session, step)
        if step.number == 6:  # after which every tensor is
            with torch.no_grad():
                session.model.get_parameter("head.table")[5] = math.nan

    monkeypatch.setattr(Session, "update", spoils)
    match = (
        r"the loss is nan at step 8; not all numbers are finite of head\.table; .*lr_tied=0\.025"
    )
    with pytest.raises(TrainingError, match=match):
        run_it(tmp_path / "run")


@pytest.mark.parametrize("stops", [(1, 7), (3, 9)])  # the checks are after 4 and 10
def test_a_run_resumed_just_after_a_head_was_untied_still_sees_that_both_tables_move(
    stops: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[bool] = []
    monkeypatch.setattr(
        sessions, "check_moved", lambda initial, model: looked.append("head.output" in initial)
    )

    head = {"name": "untied", "untie_at": 0.5}
    for step in stops:
        with pytest.raises(TrainingError, match="interrupted"):
            run_it(tmp_path, on_step=stops_at(step), head=head, resume=step != stops[0])
    run_it(tmp_path, head=head, resume=True)
    assert looked == [False, True]


@pytest.mark.parametrize("how", ["off", "auto", "on"])
@pytest.mark.parametrize(
    ("micro", "way"),
    [
        (64, "start again in another -o with --set micro_batch_tokens=32"),
        (1 << 17, "start again in another -o with --set micro_batch_tokens=32"),
        (32, "start again in another -o with --set micro_batch_tokens=16"),
        (16, "train a smaller model or shorter sequences"),
    ],
)
def test_a_device_without_memory_for_a_step_is_said(
    micro: int, way: str, how: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(session: Session, *batch: Tensor) -> Tensor:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB"
        )

    monkeypatch.setattr(Session, "accumulate", full)
    monkeypatch.setattr(torch, "compile", lambda f, **options: f)
    with pytest.raises(TrainingError) as raised:
        run_it(tmp_path, micro_batch_tokens=micro, compile=how)
    assert str(raised.value) == (
        f"the device's memory does not hold a step of {min(micro, 64)} tokens at a time: CUDA out "
        f"of memory. Tried to allocate 2.00 GiB; {way}"
    )


@pytest.mark.usefixtures("late")
def test_the_step_before_a_head_is_untied_may_be_read_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = {"name": "untied", "untie_at": 0.5}
    run_it(tmp_path / "late", head=head)
    monkeypatch.undo()
    run_it(tmp_path / "early", head=head)
    assert read_checkpoint(tmp_path / "late")[1]["untied"]
    assert_same_run(tmp_path / "late", tmp_path / "early")


def test_what_a_step_found_is_read_when_it_is_there() -> None:
    class Arrives:
        """An event of a GPU, after which numbers are there."""

        def synchronize(self) -> None:
            step.loss.copy_(started.loss)
            step.gradient_norms.copy_(started.gradient_norms)

    session = Session(CONFIG, TOKENIZER, np.ones(257, np.int64), "cpu")
    tokens = torch.zeros(4, 16, dtype=torch.long)
    started = session.start(12.0, tokens, tokens)
    step = dataclasses.replace(
        started,
        loss=torch.full_like(started.loss, math.nan),
        gradient_norms=torch.full_like(started.gradient_norms, math.nan),
        ready=cast(torch.cuda.Event, Arrives()),
    )
    session.judge(step)
    assert session.loss == started.loss.item()


def test_the_first_loss_is_judged_by_what_head_and_text_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judged: list[tuple[float, ...]] = []
    monkeypatch.setattr(sessions, "check_first_loss", lambda *given: judged.append(given))
    session = Session(CONFIG, TOKENIZER, np.ones(257, np.int64), "cpu")
    rows = torch.arange(8).repeat_interleave(4).repeat(2)[:64].view(4, 16)
    tokens, targets = rows, rows.roll(-1, 1)
    for _ in range(2):
        step = session.start(12.0 - session.step, tokens, targets)
        session.judge(step)
        session.update(step)
    repeats = float((tokens == targets).double().mean())
    assert 0.5 < repeats < 1
    score = tied_self_logit(session.model.head)
    ((_, declared, *others),) = judged
    assert declared == pytest.approx(math.log(257))
    assert others == [score, repeats]


@pytest.mark.usefixtures("late")
def test_an_interrupt_waits_for_the_step_that_is_under_way(
    early: tuple[Path, list[tuple[int, float]]], tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="interrupted after step 7"):
        run_it(tmp_path / "run", on_step=stops_at(6))
    assert read_checkpoint(tmp_path / "run")[1]["step"] == 7
    run_it(tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", early[0])


def test_batches_made_ahead_are_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = TokenStream([np.arange(1000, dtype=np.uint16)])
    plain, made = (Batches(stream, rows=3, length=8, seed=1) for _ in range(2))
    steps: list[int] = []
    step_of = made.step

    def watched(step: int) -> tuple[Tensor, Tensor]:
        steps.append(step)
        return step_of(step)

    monkeypatch.setattr(made, "step", watched)
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)  # it needs a GPU
    with Prefetcher(made, torch.device("cuda")) as ahead:
        for step in (0, 0, 1, 2, 50, 51, 3):
            for one, two in zip(ahead.step(step), plain.step(step), strict=True):
                assert torch.equal(one, two)
    assert steps == [0, 1, 0, 1, 2, 3, 50, 51, 52, 3, 4]
    with Prefetcher(plain, torch.device("cpu")) as ahead:
        assert torch.equal(ahead.step(4)[0], made.step(4)[0])


def test_a_model_that_does_not_compile_says_why_and_runs_all_the_same(
    early: tuple[Path, list[tuple[int, float]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any, **options: Any) -> Any:
        def call(*inputs: Any) -> Any:
            raise RuntimeError("no C++ compiler\nand more lines")

        return call

    monkeypatch.setattr(torch, "compile", fails)
    said = run_it(tmp_path / "run", compile="auto")
    assert said[0].startswith("compile   a step with sequences of 16; it can take a minute or two")
    assert said[1:] == [
        "compile   the model does not compile here and runs slower: no C++ compiler"
    ]
    assert_same_run(tmp_path / "run", early[0])
    with pytest.raises(TrainingError, match=r"does not compile here: no C\+\+ compiler$"):
        run_it(tmp_path / "other", compile="on")


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The calls of each graph that is made, where torch keeps one of a function, not eight."""
    made: list[int] = []
    real = torch.compile

    def backend(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        made.append(0)
        number = len(made) - 1

        def call(*given: Any) -> Any:
            made[number] += 1
            return module.forward(*given)

        return call

    monkeypatch.setattr(torch, "compile", lambda f, **options: real(f, backend=backend, **options))
    torch.compiler.reset()
    with torch._dynamo.config.patch(recompile_limit=1):
        yield made


def test_every_run_of_a_process_is_compiled_and_as_an_eager_one(
    graphs: list[int], early: tuple[Path, list[tuple[int, float]]], tmp_path: Path
) -> None:
    """From the ninth model on, cells of a sweep ran as slowly as if nothing had been compiled."""
    for layers in (1, 2, 3):
        trunk = dataclasses.replace(TRUNK, layers=layers)
        run_it(tmp_path / str(layers), compile="on", trunk=trunk)
    assert graphs == [13] * 3  # once to compile, then every step
    eager, compiled = ([x[1] for x in losses_of(run)] for run in (early[0], tmp_path / "1"))
    # To compile trains nothing; bf16 in the updates makes more of the order of sums.
    assert compiled == pytest.approx(eager, rel=1e-3)


def test_a_model_that_torch_keeps_no_graph_of_is_one_that_does_not_compile(
    graphs: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    changes: dict[str, Any] = {"short_length": 4, "short_until": 0.5}
    said = run_it(tmp_path / "auto", compile="auto", **changes)
    assert graphs == [7] and len(said) == 3
    assert said[2].startswith("compile   the model does not compile here and runs slower: ")
    with pytest.raises(TrainingError, match="the model does not compile here: "):
        run_it(tmp_path / "on", compile="on", **changes)


def test_what_changes_at_one_step_is_compiled_once_and_a_resumed_run_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[tuple[int, int, int, bool]] = []

    def counted(session: Session, *batch: Tensor) -> None:
        loops = session.model.trunk.config.loops
        compiled.append((session.step, session.length, loops, session.untied))

    monkeypatch.setattr(Session, "compile", counted)
    changes: dict[str, Any] = {
        "trunk": dataclasses.replace(TRUNK, loop_blocks=1, loops=2),
        "loops_from": 0.5,
        "short_length": 4,
        "short_until": 0.5,
        "head": {"name": "untied", "untie_at": 0.5},
    }
    with pytest.raises(TrainingError, match="interrupted"):
        run_it(tmp_path, on_step=stops_at(8), **changes)
    assert compiled == [(0, 4, 1, False), (6, 16, 2, True)]
    run_it(tmp_path, resume=True, **changes)
    assert compiled[2:] == [(8, 16, 2, True)]
    run_it(tmp_path, resume=True, **changes)  # it has ended
    assert len(compiled) == 3


@pytest.mark.usefixtures("late")
def test_a_loss_that_is_read_late_is_judged_before_errors_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients = Session.gradients

    def broken(session: Session, *batch: Tensor) -> Tensor:
        found = gradients(session, *batch)
        if session.step == 7:
            table = session.model.get_parameter("head.table")
            assert table.grad is not None
            table.grad.fill_(math.nan)
            found[1:] = session.optimizers.gradient_norms()
        return found

    monkeypatch.setattr(Session, "gradients", broken)
    qat = QatConfig(start=0.5, bits=2.5, every=2, method="nearest")
    with pytest.raises(TrainingError, match=r"at step 8 the gradient's norm .* head\.table \(nan"):
        run_it(tmp_path / "run", qat=qat)
