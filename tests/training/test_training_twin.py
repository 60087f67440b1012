"""Whole runs against their slow twin (`training_reference.py`).

`train` rounds to fp32, and in Muon to bf16: with that, no bound on a run of several steps is sharp,
as an error is fed back into the next gradient. So both are compared in double precision, with
nothing narrower than it: then they differ by fp64's rounding only, and any wrong constant shows.
One more test has `train` as it is.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from training_reference import Twin
from training_support import CONFIG, DOCUMENTS, TOKENIZER, run_it

from tokgolf.artifact.checkpoint import read_checkpoint
from tokgolf.config import from_dict, merged, to_dict
from tokgolf.heads import HEADS
from tokgolf.training import RunConfig, StepReport

LOSS_OFF = 12 * 5 * 2**-53 * 1024
"""In each of 12 steps a loss of about 5 is rounded by 2^-53 of it, and an update by as much times
what Newton-Schulz makes of a small singular value: 3.4445^5 = 485, or 1,026 by Polar Express."""

WEIGHT_OFF = 12 * 0.6 * 2**-53 / 1e-8
"""Where a gradient is no more than rounding, 2^-53, Adam divides it by its eps, 1e-8, and by
nothing larger: so 12 steps at the highest rate, 0.6, differ by 8e-8 at most."""


@dataclass(frozen=True)
class Found:
    """What a run has reported and left."""

    losses: list[float]
    scales: list[float]
    exported: dict[str, Tensor]
    live: dict[str, Tensor]


@contextlib.contextmanager
def exactly() -> Iterator[None]:
    """All numbers in fp64, and no rounding to fp32 or bf16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "bfloat16", torch.Tensor.double)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


def trained(config: RunConfig, run: Path) -> Found:
    """What `train` does."""
    reports: list[StepReport] = []
    run_it(run, config, on_step=reports.append)
    tensors, _ = read_checkpoint(run)

    def named(prefix: str) -> dict[str, Tensor]:
        return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

    return Found(
        losses=[report.loss for report in reports],
        scales=[report.learning_rate_scale for report in reports],
        exported=named("model."),
        live=named("model.") | named("live."),
    )


def slowly(config: RunConfig, kind: type[Twin] = Twin) -> Found:
    """What the twin does."""
    twin = kind(config, TOKENIZER, DOCUMENTS).run()
    return Found(twin.losses, twin.scales, twin.exported(), twin.weights())


def differences(one: Found, two: Found) -> list[str]:
    """What is not the same but for fp64's rounding; `two` names the tensors."""

    def far(a: Tensor, b: Tensor) -> bool:
        return bool((a - b).abs().max() > WEIGHT_OFF)

    off = [abs(a - b) > LOSS_OFF for a, b in zip(one.losses, two.losses, strict=True)]
    found = [f"loss of step {step + 1}" for step, is_off in enumerate(off) if is_off]
    found += ["rates"] if one.scales != pytest.approx(two.scales, abs=1e-12) else []
    found += [f"exported {n}" for n, t in two.exported.items() if far(one.exported[n], t)]
    return found + [f"live {n}" for n, t in two.live.items() if far(one.live[n], t)]


def changed(values: dict[str, Any], base: RunConfig = CONFIG) -> RunConfig:
    """The config with other values, as nested tables."""
    return from_dict(RunConfig, merged(to_dict(base), values), "test")


LOOPS = {"loop_blocks": 1, "loops": 3}
MANY = changed(
    {
        "trunk": {**LOOPS, "loop_rank": 2, "value_embeddings": 1},
        "head": {"name": "untied", "untie_at": 0.5, "add": {"bigram-hash": {"dim": 4}}},
        "optimizer": {"muon_rows": True, "muon_decay": 0.1, "muon_momentum_steps": 4},
        "average": {"ema": 0.5},
        "warmdown_to": 0.1,
        "loops_from": 0.25,
        "short_length": 8,
        "short_until": 0.75,
    }
)
ADDONS = {
    "unigram-bias": {},
    "bigram-hash": {"buckets": 64, "dim": 4},
    "bigram-logits": {"rank": 3},
}
CASES: dict[str, dict[str, Any]] = {
    "baseline": {},
    "constant rate": {"warmdown_steps": 0},
    "warmdown over all": {"warmdown_steps": 0, "warmdown_fraction": 1.0},
    "warmdown to a third": {"warmdown_steps": 0, "warmdown_fraction": 0.6, "warmdown_to": 0.3},
    "polar express": {"optimizer": {"muon_coefficients": "polar-express", "muon_iterations": 4}},
    "last polynomial": {"optimizer": {"muon_coefficients": "polar-express", "muon_iterations": 9}},
    "equal rows": {"optimizer": {"muon_rows": True, "muon_momentum_steps": 3}},
    "decay": {"optimizer": {"muon_decay": 0.3, "lr_matrix": 0.02}},
    "constants of Adam": {"optimizer": {"adam_beta1": 0.7, "adam_beta2": 0.99, "adam_eps": 1e-6}},
    "exponential": {"average": {"ema": 0.9}},
    "mean": {"average": {"swa_from": 0.5, "swa_every": 3}, "steps": 11},
    "mean of none": {"average": {"swa_from": 0.95, "swa_every": 5}},
    "short": {"short_length": 4, "short_until": 0.5, "micro_batch_tokens": 16},
    "loops": {"trunk": LOOPS, "loops_from": 0.4},
    "a product that rounds up": {
        "steps": 25,
        "trunk": LOOPS,
        "loops_from": 0.28,
        "short_length": 8,
        "short_until": 0.28,
    },
    "loops of a rank": {"trunk": {**LOOPS, "loop_rank": 2}, "optimizer": {"muon_decay": 0.1}},
    "untied midway": {"head": {"name": "untied", "untie_at": 0.4}, "average": {"swa_from": 0.1}},
    "add-ons": {"head": {"name": "factorized", "rank": 4, "shared": False, "add": ADDONS}},
    "factorized": {"head": {"name": "factorized", "rank": 4}},
    **{name: {"head": {"name": name}} for name in HEADS if name not in ("tied", "factorized")},
}


@pytest.mark.parametrize("name", CASES)
def test_a_run_is_that_of_its_slow_twin(name: str, tmp_path: Path) -> None:
    config = changed(CASES[name])
    with exactly():
        assert differences(trained(config, tmp_path / "run"), slowly(config)) == []


@st.composite
def configs(draw: st.DrawFn) -> RunConfig:
    """Any options together. Fractions are eighths: no rounding says which step they mean."""
    eighths = st.integers(1, 7).map(lambda part: part / 8)
    loops = draw(st.sampled_from([{}, LOOPS, {**LOOPS, "loop_rank": 2}]))
    head: dict[str, Any] = {"name": draw(st.sampled_from(["tied", "untied", "factorized"]))}
    if head["name"] == "untied":
        head["untie_at"] = draw(st.just(0.0) | eighths)
    if head["name"] == "factorized":
        head["rank"] = draw(st.integers(1, 8))
    head["add"] = draw(
        st.fixed_dictionaries({}, optional={n: st.just(o) for n, o in ADDONS.items()})
    )
    averages = st.builds(
        lambda start, every: {"swa_from": start, "swa_every": every}, eighths, st.integers(1, 4)
    )
    values = {
        "trunk": {**loops, "value_embeddings": draw(st.integers(0, 2))},
        "head": head,
        "optimizer": {
            "muon_coefficients": draw(st.sampled_from(["constant", "polar-express"])),
            "muon_rows": draw(st.booleans()),
            "muon_decay": draw(st.sampled_from([0.0, 0.1])),
            "muon_momentum_steps": draw(st.integers(1, 12)),
        },
        "average": draw(st.just({}) | st.just({"ema": 0.6}) | averages),
        "micro_batch_tokens": draw(st.sampled_from([16, 32, 96])),
        "steps": draw(st.integers(5, 12)),
        "warmdown_steps": draw(st.integers(0, 12)),
        "warmdown_to": draw(st.sampled_from([0.0, 0.2])),
        "loops_from": draw(st.just(0.0) | eighths) if loops else 0.0,
        "seed": draw(st.integers(0, 9)),
    }
    if draw(st.booleans()):
        values |= {"short_length": draw(st.sampled_from([4, 8])), "short_until": draw(eighths)}
    return changed(values)


@settings(max_examples=15, derandomize=True, deadline=None)
@given(configs())
def test_runs_of_any_options_are_those_of_their_slow_twins(
    tmp_path_factory: pytest.TempPathFactory, config: RunConfig
) -> None:
    with exactly():
        found = trained(config, tmp_path_factory.mktemp("any") / "run")
        assert differences(found, slowly(config)) == []


@pytest.mark.parametrize("freeze", [True, False])
def test_a_run_on_a_trained_trunk_is_that_of_its_slow_twin(freeze: bool, tmp_path: Path) -> None:
    first = changed({"average": {"ema": 0.5}, "steps": 6})
    config = changed({"trunk_from": str(tmp_path / "first"), "freeze_trunk": freeze})
    with exactly():
        trained(first, tmp_path / "first")
        assert differences(trained(config, tmp_path / "run"), slowly(config)) == []


# --- The comparison sees what is wrong


class NoNesterov(Twin):
    def direction(self, name: str, grad: Tensor, step: int) -> Tensor:
        super().direction(name, grad, step)
        return self.momentum[name]


class MeanMomentum(Twin):  # beta * momentum + (1 - beta) * gradient: torch's, not Jordan's
    def direction(self, name: str, grad: Tensor, step: int) -> Tensor:
        o = self.config.optimizer
        part = min(1.0, step / o.muon_momentum_steps)
        beta = o.muon_momentum_start + part * (o.muon_momentum - o.muon_momentum_start)
        self.momentum[name] = grad.lerp(self.momentum.get(name, torch.zeros_like(grad)), beta)
        return grad.lerp(self.momentum[name], beta)


class TwiceTheEps(Twin):
    muon_eps = 2e-7


class NoShapeScale(Twin):
    def shape_scale(self, p: Tensor) -> float:
        return 1.0


class LateWarmdown(Twin):
    def rate_scale(self, step: int) -> float:
        return super().rate_scale(max(step - 1, 0))


class LateOptions(Twin):
    def due(self, step: int, fraction: float) -> bool:
        return super().due(step - 1, fraction)


class BiasedAverage(Twin):
    def decay(self, step: int) -> float:
        return self.config.average.ema


class EarlyAverage(Twin):
    def decay(self, step: int) -> float:
        return super().decay(step - 1)


class UncorrectedAdam(Twin):
    def adam(self, name: str, grad: Tensor, step: int) -> Tensor:
        return super().adam(name, grad, 1_000_000)


class FreshMoments(Twin):
    def untie(self, head: Any) -> None:
        super().untie(head)
        self.moments = {n: m for n, m in self.moments.items() if n != "head.output"}


class DecayAfterTheStep(Twin):
    def update(self, name: str, p: nn.Parameter, grad: Tensor, step: int) -> None:
        plain = self.config
        self.config = changed({"optimizer": {"muon_decay": 0.0}}, plain)
        super().update(name, p, grad, step)
        self.config = plain
        if self.roles[name] == "matrix":
            rate = plain.optimizer.lr_matrix * self.rate_scale(step)
            p.mul_(1 - rate * plain.optimizer.muon_decay)


WRONG: dict[str, dict[str, Any] | type[Twin]] = {
    "momentum": {"optimizer": {"muon_momentum": 0.94}},
    "first momentum": {"optimizer": {"muon_momentum_start": 0.84}},
    "momentum a step later": {"optimizer": {"muon_momentum_steps": 5}},
    "beta1": {"optimizer": {"adam_beta1": 0.89}},
    "beta2": {"optimizer": {"adam_beta2": 0.951}},
    "eps": {"optimizer": {"adam_eps": 1.1e-8}},
    "iterations": {"optimizer": {"muon_iterations": 6}},
    "coefficients": {"optimizer": {"muon_coefficients": "polar-express"}},
    "rows": {"optimizer": {"muon_rows": False}},
    "decay": {"optimizer": {"muon_decay": 0.0}},
    "more decay": {"optimizer": {"muon_decay": 0.101}},
    "rate of tables": {"optimizer": {"lr_tied": 0.0501}},
    "rate of vectors": {"optimizer": {"lr_vector": 0.0401}},
    "rate of matrices": {"optimizer": {"lr_matrix": 0.0401}},
    "warmdown": {"warmdown_steps": 6},
    "end of the warmdown": {"warmdown_to": 0.0},
    "average": {"average": {"ema": 0.51}},
    "no average": {"average": {"ema": 0.0}},
    "loops": {"loops_from": 0.3},
    "short": {"short_until": 0.8},
    "untying": {"head": {"untie_at": 0.55}},
    "seed": {"seed": 1338},
    "batches": {"batch_tokens": 48},
    "length": {"short_length": 4},
    **{
        kind.__name__: kind
        for kind in (
            NoNesterov,
            MeanMomentum,
            TwiceTheEps,
            NoShapeScale,
            LateWarmdown,
            LateOptions,
            BiasedAverage,
            EarlyAverage,
            UncorrectedAdam,
            FreshMoments,
            DecayAfterTheStep,
        )
    },
}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Found:
    with exactly():
        return trained(MANY, tmp_path_factory.mktemp("many") / "run")


def test_a_run_of_many_options_is_that_of_its_slow_twin(many: Found) -> None:
    with exactly():
        assert differences(many, slowly(MANY)) == []


@pytest.mark.parametrize("name", WRONG)
def test_a_twin_that_is_wrong_in_one_thing_differs(name: str, many: Found) -> None:
    wrong = WRONG[name]
    with exactly():
        twin = slowly(changed(wrong, MANY)) if isinstance(wrong, dict) else slowly(MANY, wrong)
    assert differences(many, twin)


# --- In the precision of real runs


class Narrow(Twin):
    """Rounds to bf16 where `train` does."""

    def narrow(self, x: Tensor) -> Tensor:
        return x.bfloat16().double()


def distance(one: Found, two: Found) -> float:
    """Between the weights, in parts of their norm."""
    pairs = [(one.live[name].double(), weight) for name, weight in two.live.items()]
    off = sum(float((a - b).square().sum()) for a, b in pairs)
    return math.sqrt(off / sum(float(b.square().sum()) for _, b in pairs))


@pytest.mark.parametrize("name", ["baseline", "equal rows", "decay", "untied", "add-ons"])
def test_in_fp32_a_run_is_off_by_what_bf16_rounds_in_muon(name: str, tmp_path: Path) -> None:
    config = changed(CASES[name])
    exact, run = slowly(config), trained(config, tmp_path / "run")
    # fp32 adds nothing to speak of, and bf16's rounding is as large when it is rounded otherwise.
    rounding = distance(slowly(config, Narrow), exact)
    assert distance(run, exact) < 1.5 * rounding
    assert distance(run, slowly(config, NoNesterov)) > 1.5 * rounding
