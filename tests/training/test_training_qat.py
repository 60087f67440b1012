"""Quantization-aware training: the grid is the export's, and the compiled step really sees it."""

import dataclasses
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tokgolf.artifact.checkpoint import FloatModel, load_run, read_checkpoint
from tokgolf.artifact.export import calibration_tokens, export_model
from tokgolf.config import TrunkConfig
from tokgolf.corpora import Corpus, Document
from tokgolf.errors import ConfigError, TrainingError
from tokgolf.heads.base import StoredKind
from tokgolf.quantize import Quantized, restored, steps_of
from tokgolf.quantize.rows import QuantConfig, Rounder, step_bits
from tokgolf.tokenizers import build_tokenizer
from tokgolf.training import RunConfig, StepReport, train
from tokgolf.training.qat import QatConfig, export_grids, rounded
from tokgolf.training.session import Session

TRUNK = TrunkConfig(layers=1, d_model=16, heads=2, kv_heads=1, mlp_hidden=24, sequence_length=16)
QAT = QatConfig(start=0.5, bits=2.5)
QUICK = QatConfig(start=0.5, bits=2.5, method="nearest")
CONFIG = RunConfig(
    trunk=TRUNK, batch_tokens=64, steps=12, warmdown_steps=3, precision="fp32", compile="off"
)
DOCUMENTS = [Document(str(i), f"weights on {i} grids. ".encode()) for i in range(30)]
CORPUS = Corpus(name="tiny", split=None, source=lambda: iter(DOCUMENTS))
TOKENIZER = build_tokenizer("byte", [], None)
HEADS: dict[str, dict[str, Any]] = {
    "tied": {"name": "tied"},
    "vq": {"name": "vq", "codes": 8},
    "unties": {"name": "untied", "untie_at": 0.25},
}


def run_it(run: Path, *, resume: bool = False, on_step: Any = None, **changes: Any) -> list[str]:
    said: list[str] = []
    train(
        dataclasses.replace(CONFIG, **changes),
        TOKENIZER,
        CORPUS,
        run,
        device="cpu",
        resume=resume,
        on_step=on_step or (lambda report: None),
        say=said.append,
    )
    return said


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without rounding."""
    run = tmp_path_factory.mktemp("qat") / "plain"
    run_it(run)
    return run


@pytest.fixture(scope="module")
def source(plain: Path) -> FloatModel:
    return load_run(plain)


@pytest.fixture(scope="module")
def grids(source: FloatModel, plain: Path) -> dict[str, Tensor]:
    values = source.model.state_dict()
    return export_grids(values, source.trunk, source.head, source.tokenizer, plain, QAT)


@pytest.fixture(scope="module")
def nearest(source: FloatModel, plain: Path) -> dict[str, tuple[Quantized, StoredKind]]:
    """Every tensor as the default export's own plan rounds it to the nearest."""
    tokens = [*calibration_tokens(plain, source)]
    plan = export_model(source, QuantConfig(bits=QAT.bits), tokens).plan
    rounder = Rounder(source.model, QuantConfig(), tokens)

    def quantized(name: str, step: float) -> Quantized:
        weights = rounder.weights(name)
        factors = rounder.rows_of(name), rounder.columns_of(name)
        empty = Quantized(np.zeros(weights.shape, np.int16), step_bits(step), *factors)
        return empty._replace(codes=np.rint(weights / steps_of(empty)).astype(np.int16))

    return {
        name: (quantized(name, step), rounder.stored[name].kind)
        for name, step in plan.steps.items()
    }


# --- the grid


def test_the_steps_are_those_that_an_export_of_these_weights_chooses(
    grids: dict[str, Tensor], nearest: dict[str, tuple[Quantized, StoredKind]]
) -> None:
    assert grids.keys() == nearest.keys()
    for name, (quantized, _) in nearest.items():
        np.testing.assert_array_equal(grids[name].numpy(), steps_of(quantized))
    assert grids["head.table"].shape == (257, TRUNK.d_model)
    assert len(set(grids["head.table"].flatten().tolist())) > 4


def test_a_rounded_weight_is_what_an_export_to_the_nearest_gives_back(
    source: FloatModel,
    grids: dict[str, Tensor],
    nearest: dict[str, tuple[Quantized, StoredKind]],
) -> None:
    before = {name: p.clone() for name, p in source.model.named_parameters()}
    changed = 0
    with rounded(source.model, grids):
        for name, parameter in source.model.named_parameters():
            if parameter.numel():
                expected = restored(*nearest[name], trellis=False, width=0, lead=[])
                np.testing.assert_array_equal(parameter.numpy().reshape(expected.shape), expected)
                changed += not torch.equal(parameter, before[name])
    assert changed > 8
    assert all(torch.equal(p, before[name]) for name, p in source.model.named_parameters())


def test_the_weights_are_put_back_when_the_step_fails(
    source: FloatModel, grids: dict[str, Tensor]
) -> None:
    before = {name: p.clone() for name, p in source.model.named_parameters()}
    with pytest.raises(ValueError, match="of the step"), rounded(source.model, grids):
        raise ValueError("of the step")
    assert all(torch.equal(p, before[name]) for name, p in source.model.named_parameters())


# --- the step


def session_of(source: FloatModel, **changes: Any) -> Session:
    config = dataclasses.replace(CONFIG, **changes)
    session = Session(config, TOKENIZER, np.ones(257, np.int64), "cpu")
    session.model.load_state_dict(source.model.state_dict())
    return session


@pytest.fixture
def batch() -> Iterator[tuple[Tensor, Tensor]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        tokens = torch.randint(0, 257, (4, 17))
        yield tokens[:, :-1], tokens[:, 1:]


def test_gradients_are_those_at_the_rounded_weights(
    source: FloatModel, grids: dict[str, Tensor], batch: tuple[Tensor, Tensor]
) -> None:
    aware, twin = session_of(source, micro_batch_tokens=32), session_of(source)
    aware.grids = grids
    found = aware.gradients(*batch)
    with torch.no_grad():
        for name, parameter in twin.model.named_parameters():
            if name in grids:
                rows = parameter.view(-1, parameter.shape[-1])
                rows.copy_((rows / grids[name]).round() * grids[name])
    torch.testing.assert_close(found, twin.gradients(*batch), rtol=1e-4, atol=1e-6)
    for one, two in zip(aware.model.parameters(), twin.model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-3, atol=1e-6)


def test_a_compiled_step_sees_the_grid_that_is_set_after_compiling(
    source: FloatModel,
    grids: dict[str, Tensor],
    batch: tuple[Tensor, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A public record's rounding never ran: its switch was folded into the compiled graph."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: real(f, backend="aot_eager"))
    compiled, eager = session_of(source, compile="on"), session_of(source)
    compiled.compile(*batch)
    assert compiled.loss_of is not compiled.model.loss
    before = float(compiled.gradients(*batch)[0])
    compiled.grids = eager.grids = grids
    after = float(compiled.gradients(*batch)[0])
    assert abs(after - before) > 1e-3
    assert after == pytest.approx(float(eager.gradients(*batch)[0]), abs=1e-5)


@pytest.mark.parametrize(
    ("step", "remaining", "due"), [(9, 10.0, False), (9, 8.9, True), (30, 10.0, True)]
)
def test_rounding_starts_at_its_part_of_a_budget_of_time_too(
    step: int,
    remaining: float,
    due: bool,
    source: FloatModel,
    grids: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("tokgolf.training.session.export_grids", lambda *arguments: grids)
    session = session_of(source, qat=QAT)
    session.step = step
    session.quantize_if_due(remaining, tmp_path)
    assert bool(session.grids) == due
    assert (session.compile_seconds > 0) == due


# --- the run


@pytest.mark.parametrize("name", HEADS)
def test_a_run_is_as_without_it_until_then_and_another_one_after(name: str, tmp_path: Path) -> None:
    losses: dict[str, list[float]] = {}
    for run, qat in (("plain", QatConfig()), ("aware", QUICK)):
        losses[run] = []
        said = run_it(
            tmp_path / run,
            qat=qat,
            head=HEADS[name],
            on_step=lambda report, run=run: losses[run].append(report.loss),
        )
        assert said == (
            ["qat       from step 6 on, weights are rounded as for 2.5 bits"] * (run == "aware")
        )
        tensors = read_checkpoint(tmp_path / run)[0]
        assert any(key.startswith("grid.") for key in tensors) == (run == "aware")
    assert losses["plain"][:6] == losses["aware"][:6]
    assert all(a != b for a, b in zip(losses["plain"][6:], losses["aware"][6:], strict=True))
    load_run(tmp_path / "aware")


@pytest.mark.parametrize("at", [3, 8])
def test_a_run_with_rounding_resumes_bit_by_bit(at: int, tmp_path: Path) -> None:
    def interrupt(report: StepReport) -> None:
        if report.step == at:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingError, match="interrupted"):
        run_it(tmp_path / "cut", on_step=interrupt, qat=QUICK)
    run_it(tmp_path / "cut", resume=True, qat=QUICK)
    run_it(tmp_path / "whole", qat=QUICK)
    cut, whole = (read_checkpoint(tmp_path / run)[0] for run in ("cut", "whole"))
    assert cut.keys() == whole.keys()
    assert all(torch.equal(cut[key], whole[key]) for key in whole)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"start": 0.0}, r"qat\.start is 0\.0; it must be above 0"),
        ({"start": 1.2}, r"qat\.start is 1\.2"),
        ({"bits": 9.0}, r"bits is 9\.0; at most 8"),
        ({"method": "truncate"}, "method is 'truncate'"),
    ],
)
def test_values_without_a_meaning_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QatConfig(**values)


def test_steps_cannot_be_chosen_before_a_table_is_there() -> None:
    with pytest.raises(ConfigError, match=r"qat\.start is 0\.5 and head\.untie_at 0\.75"):
        dataclasses.replace(CONFIG, qat=QAT, head={"name": "untied", "untie_at": 0.75})
