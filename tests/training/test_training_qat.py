"""Quantization-aware training: the errors are an export's, and a compiled step really sees them."""

import dataclasses
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from training_support import assert_same_checkpoint, nothing, stops_at
from training_support import run_it as train_it

from tokgolf.artifact.checkpoint import FloatModel, load_run, read_checkpoint
from tokgolf.artifact.export import Fit, calibration_tokens, export_model
from tokgolf.config import TrunkConfig
from tokgolf.corpora import Corpus, Document
from tokgolf.errors import ConfigError, TrainingError
from tokgolf.quantize import Quantized
from tokgolf.quantize.gptq import some_windows
from tokgolf.quantize.rows import QuantConfig, Rounder
from tokgolf.tokenizers import build_tokenizer
from tokgolf.training import RunConfig
from tokgolf.training.qat import TOKENS, QatConfig, Quantizer, shifted
from tokgolf.training.session import Session

TRUNK = TrunkConfig(layers=1, d_model=16, heads=2, kv_heads=1, mlp_hidden=24, sequence_length=16)
CPU = torch.device("cpu")
QAT = QatConfig(start=0.5, bits=2.5)
QUICK = QatConfig(start=0.5, bits=2.5, every=2, method="nearest")
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


def run_it(run: Path, *, resume: bool = False, on_step: Any = nothing, **changes: Any) -> list[str]:
    said: list[str] = []
    config = dataclasses.replace(CONFIG, **changes)
    train_it(run, config, corpus=CORPUS, resume=resume, on_step=on_step, say=said.append)
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
def quantizer(source: FloatModel, plain: Path) -> Quantizer:
    return Quantizer(source.trunk, source.head, source.tokenizer, plain, QAT, CPU)


@pytest.fixture(scope="module")
def errors(source: FloatModel, quantizer: Quantizer) -> dict[str, Tensor]:
    return quantizer.errors(source.model.state_dict())


# --- the errors


def test_weights_with_their_errors_are_what_an_export_gives_back(
    source: FloatModel, quantizer: Quantizer, errors: dict[str, Tensor], plain: Path
) -> None:
    tokens = some_windows(calibration_tokens(plain, source), TOKENS)
    exported = export_model(source, QuantConfig(bits=QAT.bits), tokens)
    expected = {s.name: s.tensor for s in exported.artifact.model.stored()}
    assert quantizer.steps == exported.plan.steps
    assert errors.keys() == expected.keys()
    before = {name: p.clone() for name, p in source.model.named_parameters()}
    with shifted(source.model, errors):
        for name, parameter in source.model.named_parameters():
            if name in expected:  # all but those without a weight
                torch.testing.assert_close(parameter, expected[name], rtol=1e-6, atol=1e-7)
    assert sum(bool(error.any()) for error in errors.values()) > 8
    assert all(torch.equal(p, before[name]) for name, p in source.model.named_parameters())


@pytest.mark.parametrize("method", ["trellis", "gptq", "nearest"])
def test_a_row_that_rounds_to_zero_stays_as_it_is(
    method: Any, source: FloatModel, plain: Path
) -> None:
    """Of a token that was not met yet. A gradient at a zero row ended runs with `untied`."""
    config = dataclasses.replace(QAT, method=method)
    quantizer = Quantizer(source.trunk, source.head, source.tokenizer, plain, config, CPU)
    values = {name: value.clone() for name, value in source.model.state_dict().items()}
    table = values["head.table"]
    table[200:] *= 1e-6  # of no token in the text
    found = quantizer.errors(values)["head.table"]
    assert not found[200:].any() and found[:128].any()
    assert ((table + found).square().sum(1) > 0).all()


def test_errors_are_found_anew_at_the_steps_of_the_first_time(
    source: FloatModel, plain: Path, quantizer: Quantizer, errors: dict[str, Tensor]
) -> None:
    first = dict(quantizer.steps)
    moved = {name: value * 1.01 for name, value in source.model.state_dict().items()}
    again = quantizer.errors(moved)
    assert quantizer.steps == first
    assert not torch.equal(again["head.table"], errors["head.table"])
    resumed = Quantizer(source.trunk, source.head, source.tokenizer, plain, QAT, CPU, first)
    assert all(torch.equal(e, again[name]) for name, e in resumed.errors(moved).items())


def test_of_weights_that_have_grown_nothing_is_cut_off(
    source: FloatModel, plain: Path, quantizer: Quantizer, errors: dict[str, Tensor]
) -> None:
    """The steps of the first time would be too fine for the integers that there are."""
    first = dict(quantizer.steps)
    later = Quantizer(source.trunk, source.head, source.tokenizer, plain, QUICK, CPU, first)
    grown = {name: value * 1000 for name, value in source.model.state_dict().items()}
    for name, error in later.errors(grown).items():
        assert float(error.norm()) <= 0.5 * float(grown[name].norm()), name


def test_errors_are_found_as_the_model_is_scored(quantizer: Quantizer) -> None:
    """Which may repeat blocks more often than in training."""
    assert not any(module.training for module in quantizer.source.model.modules())


@pytest.mark.parametrize("method", ["trellis", "gptq", "nearest"])
def test_the_first_time_the_integers_of_the_measured_file_are_taken(
    method: Any, source: FloatModel, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding them once more would take as long and change nothing."""
    config = dataclasses.replace(QAT, method=method)
    settle, quantize = Fit.settle, Rounder.quantize
    rounded: list[str] = []

    def settled(fit: Fit, cap: int | None) -> None:
        settle(fit, cap)
        rounded.clear()

    def counted(rounder: Rounder, name: str, step: float) -> Quantized:
        rounded.append(name)
        return quantize(rounder, name, step)

    monkeypatch.setattr(Fit, "settle", settled)
    monkeypatch.setattr(Rounder, "quantize", counted)
    values = source.model.state_dict()
    first = Quantizer(source.trunk, source.head, source.tokenizer, plain, config, CPU)
    found = first.errors(values)
    assert not rounded
    given = Quantizer(source.trunk, source.head, source.tokenizer, plain, config, CPU, first.steps)
    again = given.errors(values)
    assert rounded == list(again) == list(found)
    assert all(torch.equal(error, found[name]) for name, error in again.items())


def test_the_weights_are_put_back_when_the_step_fails(
    source: FloatModel, errors: dict[str, Tensor]
) -> None:
    before = {name: p.clone() for name, p in source.model.named_parameters()}
    with pytest.raises(ValueError, match="of the step"), shifted(source.model, errors):
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


def test_gradients_are_those_at_the_weights_with_errors(
    source: FloatModel, errors: dict[str, Tensor], batch: tuple[Tensor, Tensor]
) -> None:
    aware, twin = session_of(source, micro_batch_tokens=32), session_of(source)
    aware.rounding.errors = errors
    found = aware.gradients(*batch)
    with torch.no_grad():
        for name, parameter in twin.model.named_parameters():
            if name in errors:
                parameter.add_(errors[name])
    torch.testing.assert_close(found, twin.gradients(*batch), rtol=1e-4, atol=1e-6)
    for one, two in zip(aware.model.parameters(), twin.model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-3, atol=1e-6)


def test_a_compiled_step_sees_errors_that_are_found_after_compiling(
    source: FloatModel,
    errors: dict[str, Tensor],
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
    compiled.rounding.errors = eager.rounding.errors = errors
    after = float(compiled.gradients(*batch)[0])
    assert abs(after - before) > 1e-3
    assert after == pytest.approx(float(eager.gradients(*batch)[0]), abs=1e-5)


@pytest.mark.parametrize(
    ("step", "remaining", "due"),
    [(9, 10.0, False), (9, 8.9, True), (30, 10.0, True), (30, 2.0, True), (30, 1.9, False)],
)
def test_errors_start_at_their_part_of_a_budget_of_time_too(
    step: int, remaining: float, due: bool, source: FloatModel, plain: Path
) -> None:
    session = session_of(source, qat=QUICK)
    session.step = step
    assert session.rounding_errors_due(remaining) == due
    if due:
        session.find_rounding_errors(plain)
        assert session.rounding.errors and session.clock.compile_seconds > 0


def test_errors_start_where_a_product_would_round_up(source: FloatModel) -> None:
    session = session_of(source, qat=dataclasses.replace(QUICK, start=0.28))
    session.step = 7  # of 25; 0.28 * 25 is 7.000000000000001
    assert session.rounding_errors_due(18.0)


def test_errors_are_found_anew_after_so_many_steps(source: FloatModel, plain: Path) -> None:
    session = session_of(source, qat=dataclasses.replace(QUICK, every=3))
    found = []
    for session.step in range(9, 16):
        if session.rounding_errors_due(7.0):
            session.find_rounding_errors(plain)
        found.append(session.rounding.errors)
    assert [one is two for one, two in pairwise(found)] == [True, True, False] * 2


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
            [
                "qat       from step 7 on, weights have the errors of an export at 2.5 bits, "
                "found anew after every 2 steps"
            ]
            * (run == "aware")
        )
        tensors = read_checkpoint(tmp_path / run)[0]
        assert any(key.startswith("error.") for key in tensors) == (run == "aware")
    assert losses["plain"][:6] == losses["aware"][:6]
    assert all(a != b for a, b in zip(losses["plain"][6:], losses["aware"][6:], strict=True))
    load_run(tmp_path / "aware")


@pytest.mark.parametrize("at", [3, 8, 9])
def test_a_run_with_errors_resumes_bit_by_bit(at: int, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="interrupted"):
        run_it(tmp_path / "cut", on_step=stops_at(at), qat=QUICK)
    run_it(tmp_path / "cut", resume=True, qat=QUICK)
    run_it(tmp_path / "whole", qat=QUICK)
    assert_same_checkpoint(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"start": 0.0}, r"qat\.start is 0\.0; it must be above 0"),
        ({"start": 1.2}, r"qat\.start is 1\.2"),
        ({"bits": 9.0}, r"bits is 9\.0; at most 8"),
        ({"every": 0}, "every"),
        ({"method": "truncate"}, "method is 'truncate'"),
    ],
)
def test_values_without_a_meaning_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QatConfig(**values)


def test_steps_cannot_be_chosen_before_a_table_is_there() -> None:
    with pytest.raises(ConfigError, match=r"qat\.start is 0\.5 and head\.untie_at 0\.75"):
        dataclasses.replace(CONFIG, qat=QAT, head={"name": "untied", "untie_at": 0.75})
    # Without errors it is the head that refuses what is no part of the budget.
    dataclasses.replace(CONFIG, head={"name": "untied", "untie_at": 1.5})
