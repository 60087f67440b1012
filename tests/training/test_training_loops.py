"""Blocks that are repeated from some part of the budget on."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytest import approx
from training_support import TOKENIZER, assert_same_checkpoint, nothing, run_it, stops_at

from tokgolf.artifact.checkpoint import load_run, read_checkpoint, write_checkpoint
from tokgolf.config import TrunkConfig
from tokgolf.corpora import Corpus, Document
from tokgolf.errors import ConfigError, TrainingError
from tokgolf.training import RunConfig, StepReport
from tokgolf.training.averages import AverageConfig
from tokgolf.training.optimizers import OptimizerConfig
from tokgolf.training.qat import QatConfig
from tokgolf.training.session import Session

TRUNK = TrunkConfig(
    layers=2,
    d_model=16,
    heads=2,
    kv_heads=1,
    mlp_hidden=24,
    sequence_length=16,
    loop_blocks=1,
    loops=3,
)
CONFIG = RunConfig(
    trunk=TRUNK, batch_tokens=64, steps=8, warmdown_steps=3, precision="fp32", compile="off"
)
DOCUMENTS = [Document(str(i), f"round and round, {i} times. ".encode()) for i in range(30)]
CORPUS = Corpus(name="tiny", split=None, source=lambda: iter(DOCUMENTS))


def losses_of(
    run: Path,
    *,
    resume: bool = False,
    until: int = 0,
    say: Callable[[str], None] = nothing,
    **changes: Any,
) -> list[float]:
    losses: list[float] = []
    stop = stops_at(until)

    def on_step(report: StepReport) -> None:
        losses.append(report.loss)
        stop(report)

    config = replace(CONFIG, **changes)
    run_it(run, config, corpus=CORPUS, resume=resume, on_step=on_step, say=say)
    return losses


def test_blocks_are_applied_once_until_then_and_repeated_after(tmp_path: Path) -> None:
    once = replace(TRUNK, loops=1)
    plain = losses_of(tmp_path / "once", trunk=once)
    midway = losses_of(tmp_path / "midway", loops_from=0.5)
    assert midway[:4] == plain[:4]
    assert midway[4] != plain[4]
    assert load_run(tmp_path / "midway").trunk == TRUNK
    assert losses_of(tmp_path / "always")[1:4] != plain[1:4]


@pytest.mark.parametrize(("at", "rank"), [(2, 0), (6, 0), (2, 3), (5, 3)])
def test_a_run_that_repeats_midway_resumes_bit_by_bit(at: int, rank: int, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"loops_from": 0.5, "trunk": replace(TRUNK, loop_rank=rank)}
    with pytest.raises(TrainingError, match="interrupted"):
        losses_of(tmp_path / "cut", until=at, **changes)
    until_now = TRUNK if at >= 4 else replace(TRUNK, loops=1)
    assert load_run(tmp_path / "cut").trunk == replace(until_now, loop_rank=rank if at >= 4 else 0)
    losses_of(tmp_path / "cut", resume=True, **changes)
    losses_of(tmp_path / "whole", **changes)
    assert_same_checkpoint(tmp_path / "cut", tmp_path / "whole")


def test_what_a_later_pass_adds_waits_for_it_and_then_moves() -> None:
    """With decay, which would shrink what waits."""
    trunk = replace(TRUNK, loop_rank=3)
    optimizer = OptimizerConfig(muon_decay=5.0)
    session = Session(
        replace(CONFIG, trunk=trunk, loops_from=0.5, optimizer=optimizer),
        TOKENIZER,
        np.ones(257, np.int64),
        "cpu",
    )
    batch = torch.arange(64).view(4, 16), torch.arange(64).view(4, 16) + 1
    late = {n: p for n, p in session.model.named_parameters() if ".loops." in n}
    assert len(late) == 2 * 2 * 6  # two passes, six matrices, both factors
    begun = {name: p.detach().clone() for name, p in late.items()}
    session.watch()
    for _ in range(4):
        session.update(session.start(8.0 - session.step, *batch))
    assert all(torch.equal(p, begun[name]) for name, p in late.items())
    session.begin_loops_if_due(4.0)
    for _ in range(4):  # whose end is checked
        session.update(session.start(8.0 - session.step, *batch))
    assert session.check_at == 8 and not session.initial
    assert not any(torch.equal(p, begun[name]) for name, p in late.items())


@pytest.mark.parametrize("loops_from", [0.0, 0.5])
def test_errors_wait_until_what_a_later_pass_adds_is_trained(
    loops_from: float, tmp_path: Path
) -> None:
    """Found while it is zero, their steps were so coarse that it stayed so, and the run ended."""
    late: dict[str, Any] = {
        "loops_from": loops_from,
        "trunk": replace(TRUNK, loops=2, loop_rank=3),
        "steps": 16,
    }
    said: list[str] = []
    qat = QatConfig(start=loops_from + 0.01, every=2, method="gptq")
    losses = losses_of(tmp_path / "run", say=said.append, qat=qat, **late)
    first = int(loops_from * 16) + 4
    assert len(said) == 1 and f"from step {first + 1} on" in said[0]
    assert losses[:first] == losses_of(tmp_path / "plain", **late)[:first]
    tensors, state = read_checkpoint(tmp_path / "run")
    assert state["looped_from"] == first - 4
    for name in tensors:
        if ".loops." in name and name.startswith("error."):
            kept = name.removeprefix("error.")
            assert (tensors[name] + tensors[f"model.{kept}"]).any(), kept


def test_a_larger_budget_undoes_no_part_of_the_schedule(tmp_path: Path) -> None:
    """After half of 8 steps there are whole sequences and repeats; they stay when 32 are asked."""
    seen: list[tuple[int, int, int]] = []
    start = Session.start

    def watched(session: Session, *given: Any) -> Any:
        seen.append((session.step, session.length, session.model.trunk.config.loops))
        return start(session, *given)

    changes: dict[str, Any] = {
        "loops_from": 0.5,
        "trunk": replace(TRUNK, loop_rank=2),
        "short_length": 4,
        "short_until": 0.5,
        "average": AverageConfig(swa_from=0.5, swa_every=2),
    }
    losses_of(tmp_path, **changes)
    assert read_checkpoint(tmp_path)[1]["averaged"] == 3
    with pytest.MonkeyPatch.context() as patch, pytest.raises(TrainingError, match="interrupted"):
        patch.setattr(Session, "start", watched)
        losses_of(tmp_path, resume=True, until=10, steps=32, **changes)
    assert seen == [(8, 16, 3), (9, 16, 3)]
    # Of what is now an early part of the budget nothing is averaged, of before neither.
    tensors, state = read_checkpoint(tmp_path)
    assert state["averaged"] == 0 and not any(name.startswith("live.") for name in tensors)
    for key in ("looped_from", "length"):  # as checkpoints were before these were kept
        del state[key]
    session = Session(replace(CONFIG, **changes), TOKENIZER, np.ones(257, np.int64), "cpu")
    session.load(tensors, state)
    assert (session.length, session.looped_from) == (4, None)
    losses_of(tmp_path, resume=True, steps=32, **changes)
    assert read_checkpoint(tmp_path)[1]["averaged"] == 9  # 16, 18, ... 32


def test_what_never_began_is_said_and_passes_that_nobody_trained_are_not_loaded(
    tmp_path: Path,
) -> None:
    said: list[str] = []
    trunk = replace(TRUNK, loop_rank=3, loops_scored=4)
    losses_of(
        tmp_path,
        say=said.append,
        trunk=trunk,
        loops_from=0.9,
        short_length=8,
        short_until=0.9,
        head={"name": "untied", "untie_at": 0.95},
        average=AverageConfig(swa_from=0.9, swa_every=3),
        qat=QatConfig(start=0.95, every=2),
    )
    assert said == [
        f"late      {what} never began in 8 steps; start it earlier, or train longer"
        for what in (
            "untying (head.untie_at 0.95)",
            "repeating blocks (loops_from 0.9)",
            "whole sequences (short_until 0.9)",
            "the mean of weights (average.swa_from 0.9, average.swa_every 3)",
            "quantization-aware training (qat.start 0.95, qat.every 2)",
        )
    ]
    run = load_run(tmp_path)
    assert run.trunk == replace(TRUNK, loops=1)
    assert not any(".loops." in name for name in run.model.state_dict())
    tensors, state = read_checkpoint(tmp_path)
    del state["looped_from"]  # as checkpoints were before it was kept
    write_checkpoint(tmp_path, tensors, state)
    whole = load_run(tmp_path)
    assert whole.trunk == trunk
    tokens = torch.arange(32).view(2, 16)
    assert not torch.equal(whole.model.log_probs(tokens), run.model.log_probs(tokens))
    whole.model.trunk.config = run.trunk
    assert torch.equal(whole.model.log_probs(tokens), run.model.log_probs(tokens))


def test_sequences_that_are_short_to_the_end_are_no_option_that_never_began(tmp_path: Path) -> None:
    said: list[str] = []
    losses_of(tmp_path, say=said.append, steps=1, short_length=8, short_until=1.0)
    assert said == []


def test_a_pass_that_adds_nothing_is_an_error_once_it_is_due() -> None:
    trunk = replace(TRUNK, loop_rank=3)
    config = replace(CONFIG, trunk=trunk, loops_from=0.5)
    session = Session(config, TOKENIZER, np.ones(257, np.int64), "cpu")
    batch = torch.arange(64).view(4, 16), torch.arange(64).view(4, 16) + 1
    session.step = 4
    session.begin_loops_if_due(4.0)
    session.model.trunk.config = replace(trunk, loop_rank=0)
    with pytest.raises(TrainingError, match=r"blocks\.0\.loops\.into\.0 received no gradient"):
        session.start(4.0, *batch)


def test_a_compiled_model_repeats_from_then_on_too(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, **options: real(f, fullgraph=True, backend="aot_eager")
    )
    counts = np.ones(257, np.int64)
    whole = replace(CONFIG, trunk=replace(TRUNK, loop_rank=3))
    config = replace(whole, compile="on", loops_from=0.5)
    session, eager = (Session(c, TOKENIZER, counts, "cpu") for c in (config, whole))
    with torch.no_grad():
        for one, two in zip(session.model.parameters(), eager.model.parameters(), strict=True):
            one.copy_(two.normal_(0, 0.3))
    tokens = torch.arange(68).view(4, 17)
    batch = tokens[:, :-1], tokens[:, 1:]
    session.compile(*batch)
    before = float(session.gradients(*batch)[0])
    session.step = 8
    assert session.begin_loops_if_due(8.0) and not session.begin_loops_if_due(8.0)
    session.compile(*batch)
    after, expected = (float(s.gradients(*batch)[0]) for s in (session, eager))
    assert abs(after - before) > 1e-3
    assert after == approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loops_from": 1.0}, r"loops_from is 1\.0 and trunk\.loops 3"),
        ({"loops_from": 0.5, "trunk": replace(TRUNK, loops=1)}, r"trunk\.loops 1;"),
        (
            {"loops_from": 0.5, "trunk": replace(TRUNK, loop_rank=3), "qat": QatConfig(start=0.5)},
            r"qat\.start is 0\.5 and loops_from 0\.5; .*loop_rank 3.* set qat\.start to more",
        ),
    ],
)
def test_values_without_a_meaning_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(CONFIG, **changes)


@pytest.mark.parametrize("changes", [{"value_embeddings": 1}, {"loops": 2, "loop_rank": 2}])
@pytest.mark.parametrize("head", [{"name": "untied"}, {"name": "vq", "codes": 16}])
def test_tensors_that_wait_for_one_another_are_given_time_to_move(
    head: dict[str, Any], changes: dict[str, Any], tmp_path: Path
) -> None:
    """An output table of zeros, attention's, values, their scales: the last moves in step 4."""
    trunk = replace(TRUNK, **{"loops": 1, "loop_rank": 0, **changes})
    assert len(losses_of(tmp_path, head=head, trunk=trunk, steps=5, loops_from=0.0)) == 5
