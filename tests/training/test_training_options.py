"""Options of the optimizers, averages of the weights and the learning rate's floor."""

import dataclasses
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_support import assert_same_checkpoint, nothing, stops_at
from training_support import run_it as train_it

from tokgolf.artifact.checkpoint import load_run, read_checkpoint
from tokgolf.config import TrunkConfig
from tokgolf.corpora import Corpus, Document
from tokgolf.errors import ConfigError, TrainingError
from tokgolf.model import LanguageModel
from tokgolf.training import RunConfig
from tokgolf.training.averages import AverageConfig, Averages
from tokgolf.training.config import MAX_SEED, MOST_BATCH_TOKENS
from tokgolf.training.optimizers import (
    POLAR_EXPRESS,
    SAFETY,
    Muon,
    OptimizerConfig,
    orthogonalize,
)
from tokgolf.training.qat import QatConfig

TRUNK = TrunkConfig(layers=1, d_model=16, heads=2, kv_heads=1, mlp_hidden=24, sequence_length=16)
CONFIG = RunConfig(
    trunk=TRUNK, batch_tokens=64, steps=12, warmdown_steps=3, precision="fp32", compile="off"
)
LOOPED = TrunkConfig(loop_blocks=1, loops=2)
DOCUMENTS = [Document(str(i), f"an average of {i} weights. ".encode()) for i in range(30)]
CORPUS = Corpus(name="tiny", split=None, source=lambda: iter(DOCUMENTS))


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def run_it(run: Path, *, resume: bool = False, on_step: Any = nothing, **changes: Any) -> None:
    config = dataclasses.replace(CONFIG, **changes)
    train_it(run, config, corpus=CORPUS, resume=resume, on_step=on_step)


# --- Muon


@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (16, 48)], ids=str)
def test_polar_express_brings_singular_values_nearer_to_one(shape: tuple[int, int]) -> None:
    x = torch.randn(6, *shape)
    lifted = torch.linalg.svdvals(x) / x.norm(dim=(-2, -1), keepdim=True).squeeze(-1) > 0.01
    off = {
        express: (torch.linalg.svdvals(orthogonalize(x, polar_express=express).float()) - 1).abs()
        for express in (False, True)
    }
    assert float(off[True][lifted].mean()) < 0.6 * float(off[False][lifted].mean())
    assert float(off[True][lifted].max()) < 0.2


@pytest.mark.parametrize(
    ("iterations", "off"), [(5, 0.16), (6, 7e-3), (7, 2e-5), *((n, 1e-14) for n in (8, 9, 10))]
)
def test_singular_values_converge_with_the_steps_of_polar_express(
    iterations: int, off: float
) -> None:
    """In doubles, one by one; and as singular values of a matrix, but for the rounding to bf16."""
    x = torch.logspace(-3, 0, 10_001, dtype=torch.float64) / SAFETY
    for step in range(iterations):
        a, b, c = POLAR_EXPRESS[min(step, len(POLAR_EXPRESS) - 1)]
        x = a * x + b * x**3 + c * x**5
    assert float((x - 1).abs().max()) < off
    values = torch.logspace(-2.5, 0, 16, dtype=torch.float64)
    one, two = (torch.linalg.qr(torch.randn(n, 16, dtype=torch.float64)).Q for n in (24, 16))
    found = orthogonalize((one * values @ two.mT)[None], iterations, polar_express=True)
    assert float((torch.linalg.svdvals(found.double()) - 1).abs().max()) < off + 2**-7


def muon_step(config: OptimizerConfig, start: Tensor, gradient: Tensor) -> Tensor:
    parameter = nn.Parameter(start.clone())
    parameter.grad = gradient.clone()
    Muon({"p": parameter}, config).step(0, 0.5)
    return parameter.detach()


def test_rows_are_brought_to_one_length_before_they_are_orthogonalised() -> None:
    start, gradient = torch.randn(12, 20), torch.randn(12, 20)
    uneven = gradient * torch.logspace(-3, 3, 12)[:, None]
    by_rows = OptimizerConfig(muon_rows=True)
    torch.testing.assert_close(
        muon_step(by_rows, start, uneven), muon_step(by_rows, start, gradient), rtol=0, atol=1e-3
    )
    plain = OptimizerConfig()
    lengths = uneven.norm(dim=1, keepdim=True)
    torch.testing.assert_close(
        muon_step(by_rows, start, uneven),
        muon_step(plain, start, uneven / lengths),
        rtol=0,
        atol=1e-3,
    )


@pytest.mark.parametrize("express", [False, True])
@pytest.mark.parametrize("iterations", [1, 6])
def test_a_step_is_the_rate_times_a_gradient_orthogonalised_as_is_asked(
    iterations: int, express: bool
) -> None:
    start, gradient = torch.randn(20, 12), torch.randn(20, 12)
    found = muon_step(
        OptimizerConfig(
            muon_iterations=iterations,
            muon_coefficients="polar-express" if express else "constant",
        ),
        start,
        gradient,
    )
    update = orthogonalize(gradient[None], iterations, polar_express=express)[0].float()
    expected = start - 0.04 * 0.5 * (20 / 12) ** 0.5 * update
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_polar_express_starts_below_the_end_of_its_range() -> None:
    """A matrix of rank 1 has one singular value, its norm, which rounding may not make larger."""
    a, b, c = POLAR_EXPRESS[0]
    found = float(orthogonalize(torch.ones(1, 1, 1), 1, polar_express=True))
    below, at_the_end = (a * x + b * x**3 + c * x**5 for x in (1 / SAFETY, 1.0))
    assert abs(found - below) < abs(found - at_the_end)


def test_decay_takes_its_part_of_the_rate_from_a_matrix() -> None:
    start, gradient = torch.randn(20, 12), torch.randn(20, 12)
    plain = muon_step(OptimizerConfig(), start, gradient)
    decayed = muon_step(OptimizerConfig(muon_decay=0.3), start, gradient)
    torch.testing.assert_close(plain - decayed, 0.04 * 0.5 * 0.3 * start)


@pytest.mark.parametrize(
    "changes", [{"muon_coefficients": "polar-express"}, {"muon_rows": True}, {"muon_decay": 0.2}]
)
def test_every_option_of_muon_changes_a_run_that_learns(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    losses: dict[str, list[float]] = {"plain": [], "changed": []}
    for name, more in (("plain", {}), ("changed", changes)):
        run_it(
            tmp_path / name,
            optimizer=OptimizerConfig(**more),
            on_step=lambda report, name=name: losses[name].append(report.loss),
        )
    assert losses["plain"][0] == losses["changed"][0]
    assert losses["plain"][-1] != losses["changed"][-1] < losses["changed"][0]


# --- averages


def weights_over_time(steps: int) -> Iterator[tuple[nn.Linear, int]]:
    layer = nn.Linear(3, 2)
    for step in range(1, steps + 1):
        yield layer, step
        with torch.no_grad():
            layer.weight.copy_(torch.randn(2, 3))


def test_an_exponential_average_equals_its_slow_twin() -> None:
    averages, expected = None, torch.zeros(2, 3)
    for layer, step in weights_over_time(40):
        if averages is None:
            averages = Averages(layer, AverageConfig(ema=0.6))
            expected = layer.weight.detach().clone()
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * layer.weight.detach()
        averages.update(step, 0.0)
        torch.testing.assert_close(averages.exported()["weight"], expected)


@pytest.mark.parametrize(
    ("swa_from", "named"), [(0.0, range(4, 21, 4)), (0.6, (12, 16, 20)), (1.0, ())]
)
def test_a_plain_average_is_the_mean_of_the_steps_it_names(
    swa_from: float, named: Collection[int]
) -> None:
    averages, seen = None, []
    for layer, step in weights_over_time(20):
        averages = averages or Averages(layer, AverageConfig(swa_from=swa_from, swa_every=4))
        averages.update(step, step / 20)
        if step in named:
            seen.append(layer.weight.detach().clone())
        if not seen:
            assert averages.exported() == {}
    assert averages is not None and averages.count == len(seen)
    if seen:
        torch.testing.assert_close(averages.exported()["weight"], torch.stack(seen).mean(0))


AVERAGES: dict[str, dict[str, Any]] = {
    "ema": {"average": AverageConfig(ema=0.9)},
    "swa": {"average": AverageConfig(swa_from=0.4, swa_every=2)},
    "ema of a head that unties": {
        "average": AverageConfig(ema=0.9),
        "head": {"name": "untied", "untie_at": 0.5},
    },
}


@pytest.mark.parametrize("name", AVERAGES)
def test_the_average_is_what_a_run_exports_and_changes_no_step(name: str, tmp_path: Path) -> None:
    changes = AVERAGES[name]
    run_it(tmp_path / "with", **changes)
    run_it(tmp_path / "without", **{**changes, "average": AverageConfig()})
    averaged, plain = (read_checkpoint(tmp_path / run)[0] for run in ("with", "without"))
    model = load_run(tmp_path / "with").model.state_dict()
    for parameter, value in model.items():
        assert torch.equal(averaged[f"live.{parameter}"], plain[f"model.{parameter}"])
        assert torch.equal(averaged[f"model.{parameter}"], value)
        assert not value.numel() or not torch.equal(averaged[f"live.{parameter}"], value)
    assert not any(key.startswith("live.") for key in plain)


@pytest.mark.parametrize("at", [1, 7])
@pytest.mark.parametrize("name", AVERAGES)
def test_an_averaged_run_resumes_bit_by_bit(name: str, at: int, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="interrupted"):
        run_it(tmp_path / "cut", on_step=stops_at(at), **AVERAGES[name])
    run_it(tmp_path / "cut", resume=True, **AVERAGES[name])
    run_it(tmp_path / "whole", **AVERAGES[name])
    assert_same_checkpoint(tmp_path / "cut", tmp_path / "whole")


# --- short sequences first

SHORT: dict[str, Any] = {"short_length": 4, "short_until": 0.5}


def test_sequences_are_short_until_their_part_of_the_budget_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = LanguageModel.loss
    batches: list[Tensor] = []

    def watched(model: LanguageModel, tokens: Tensor, targets: Tensor) -> Tensor:
        assert torch.equal(tokens[:, 1:], targets[:, :-1])
        batches.append(tokens)
        return loss(model, tokens, targets)

    monkeypatch.setattr(LanguageModel, "loss", watched)
    run_it(tmp_path / "short", micro_batch_tokens=32, **SHORT)
    run_it(tmp_path / "whole", micro_batch_tokens=32)
    short, whole = batches[:24], batches[24:]
    assert [tuple(tokens.shape) for tokens in short] == [(8, 4)] * 12 + [(2, 16)] * 12
    for one, two in zip(short, whole, strict=True):
        assert torch.equal(one.flatten(), two.flatten())  # the same text in the same order


@pytest.mark.parametrize("at", [3, 8])
def test_a_run_of_short_sequences_resumes_bit_by_bit(at: int, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="interrupted"):
        run_it(tmp_path / "cut", on_step=stops_at(at), **SHORT)
    run_it(tmp_path / "cut", resume=True, **SHORT)
    run_it(tmp_path / "whole", **SHORT)
    assert_same_checkpoint(tmp_path / "cut", tmp_path / "whole")


# --- the floor of the rate, and what is refused


def test_the_rate_falls_to_its_floor(tmp_path: Path) -> None:
    scales: list[float] = []
    run_it(
        tmp_path / "run",
        steps=8,
        warmdown_steps=4,
        warmdown_to=0.2,
        on_step=lambda report: scales.append(report.learning_rate_scale),
    )
    assert scales == pytest.approx([1, 1, 1, 1, 1, 0.8, 0.6, 0.4])


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        (AverageConfig, {"ema": 1.0}, r"ema is 1\.0"),
        (AverageConfig, {"ema": -0.1}, r"ema is -0\.1"),
        (AverageConfig, {"swa_from": -0.5}, r"swa_from is -0\.5"),
        (AverageConfig, {"swa_from": 1.5}, r"swa_from is 1\.5"),
        (AverageConfig, {"swa_every": 0}, "swa_every is 0"),
        (AverageConfig, {"ema": 0.9, "swa_from": 0.5}, "set ema to 0 or swa_from to 1"),
        (OptimizerConfig, {"muon_decay": -0.1}, r"muon_decay -0\.1"),
        (OptimizerConfig, {"muon_decay": 25.0}, r"muon_decay 25\.0 times lr_matrix 0\.04"),
        (OptimizerConfig, {"muon_momentum_start": 1.0}, r"muon_momentum_start is 1\.0"),
        (OptimizerConfig, {"muon_momentum_steps": 0}, "muon_momentum_steps is 0"),
        (OptimizerConfig, {"muon_iterations": 0}, "muon_iterations is 0"),
        (OptimizerConfig, {"adam_eps": 0.0}, r"adam_eps is 0\.0"),
        (RunConfig, {"warmdown_to": 1.0}, r"warmdown_to is 1\.0"),
        (RunConfig, {"warmdown_to": -0.1}, r"warmdown_to is -0\.1"),
        (RunConfig, {"warmdown_steps": 0, "warmdown_fraction": -0.5}, r"fraction is -0\.5"),
        (RunConfig, {"micro_batch_tokens": 0}, "micro_batch_tokens is 0"),
        (RunConfig, {"micro_batch_tokens": 512}, "micro_batch_tokens 512, and both of .* 1024"),
        (RunConfig, {"loops_from": -0.1, "trunk": LOOPED}, r"loops_from is -0\.1"),
        (RunConfig, {"max_gradient": 0.0}, r"max_gradient is 0\.0"),
        (RunConfig, {"short_length": 100, "short_until": 0.5}, "short_length 100 .* 1024"),
        (RunConfig, {"short_length": 64}, r"short_until is 0\.0 and short_length 64; set both"),
        (RunConfig, {"short_length": 64, "short_until": 1.5}, r"short_until is 1\.5"),
        (RunConfig, {"short_length": 64, "short_until": -0.5}, r"short_until is -0\.5"),
        (RunConfig, {"short_length": -64, "short_until": 0.5}, "short_length -64 does not divide"),
        (RunConfig, {"short_until": 0.5}, r"short_until is 0\.5 and short_length 0; set both"),
    ],
)
def test_values_without_a_meaning_are_refused(
    part: Any, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        part(**values)


@pytest.mark.parametrize(
    ("part", "values"),
    [
        (OptimizerConfig, {"adam_beta1": 0.0, "adam_beta2": 0.0}),
        (OptimizerConfig, {"muon_momentum": 0.0, "muon_momentum_start": 0.0}),
        (RunConfig, {"warmdown_steps": 0, "warmdown_fraction": 1.0}),
        (RunConfig, {"short_length": 512, "short_until": 1.0}),
        (RunConfig, {"seed": 0}),
        (RunConfig, {"seed": MAX_SEED}),
        (RunConfig, {"batch_tokens": MOST_BATCH_TOKENS}),
        (RunConfig, {"loops_from": 0.5, "trunk": LOOPED, "qat": QatConfig(start=0.5)}),
        (
            RunConfig,  # a trained trunk's later passes are trained
            {
                "loops_from": 0.5,
                "trunk": dataclasses.replace(LOOPED, loop_rank=2),
                "trunk_from": "a run",
                "qat": QatConfig(start=0.5),
            },
        ),
        (
            RunConfig,
            {"head": {"name": "untied", "untie_at": 0.5}, "qat": QatConfig(start=0.5)},
        ),
    ],
)
def test_the_ends_of_what_is_allowed_are_allowed(part: Any, values: dict[str, Any]) -> None:
    made = part(**values)
    assert {name: getattr(made, name) for name in values} == values
