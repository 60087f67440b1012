"""What each tensor's error costs: measured against a dense fp64 divergence, and the model stays."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from quantize_support import VOCAB, batches, small_model
from torch import Tensor

from tokgolf.model import LanguageModel
from tokgolf.quantize import allocate
from tokgolf.quantize.allocate import divergence, gaussian_bits, probe_tokens, sensitivities
from tokgolf.quantize.rows import METHODS, QuantConfig, Rounder

MASKED: dict[str, object] = {"add": {"canonical-mask": {}}}
heads = pytest.mark.parametrize(
    "head", [{}, MASKED, {"name": "untied"}, {"name": "vq", "codes": 20}], ids=str
)


def log_probs(model: LanguageModel, tokens: list[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return [model.log_probs(rows).flatten(0, 1) for rows in tokens]


def dense_divergence(reference: list[Tensor], got: list[Tensor]) -> float:
    """Sums over tokens one by one, in fp64, of what can occur."""
    total, count = 0.0, 0
    for p, q in zip(torch.cat(reference).double(), torch.cat(got).double(), strict=True):
        can = p > -math.inf
        total += float((p[can].exp() * (p[can] - q[can])).sum())
        count += 1
    return total / count


@heads
def test_the_divergence_is_zero_from_itself_and_else_that_of_the_definition(
    head: dict[str, object],
) -> None:
    tokens = batches()
    model, other = small_model(0, **head), small_model(0, **head)
    reference = log_probs(model, tokens)
    assert ("add" in head) == any(bool(p.isinf().any()) for p in reference)
    assert divergence(model, tokens, reference) == 0
    for size in (0.3, 0.01):
        for parameter, own in zip(other.parameters(), model.parameters(), strict=True):
            parameter.copy_(own + size * torch.randn_like(own))
        expected = dense_divergence(reference, log_probs(other, tokens))
        found = divergence(other, tokens, reference)
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-6) and found > 0


@heads
def test_every_stored_tensor_has_a_damage_and_the_model_is_as_before(
    head: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model(1, **head)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rounder = Rounder(model, QuantConfig(), batches())
    seen: list[tuple[str, float]] = []
    measured = allocate._damage

    def noted(model: LanguageModel, rounder: Rounder, steps: dict[str, float], *rest: Any) -> float:
        damage = measured(model, rounder, steps, *rest)
        names = {n.rpartition(".")[2] if rounder.stored[n].kind == "vector" else n for n in steps}
        assert len(names) == 1
        seen.append((names.pop(), damage))
        return damage

    monkeypatch.setattr(allocate, "_damage", noted)
    found = sensitivities(model, rounder)
    assert set(found) == {s.name for s in model.stored() if s.kind != "codes"}
    assert all(math.isfinite(c) and c > 0 for c in found.values())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert len({name for name, _ in seen}) == len(seen) < len(found)  # vectors go together
    assert "mlp_scale" in dict(seen) and all(damage > 0 for _, damage in seen)
    monkeypatch.undo()
    assert sensitivities(model, rounder) == found


def test_a_failure_on_the_way_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rounder = Rounder(model, QuantConfig(), batches())
    whole = LanguageModel.log_probs
    calls = []

    def failing(self: LanguageModel, tokens: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > 20:
            raise KeyboardInterrupt
        return whole(self, tokens)

    monkeypatch.setattr(LanguageModel, "log_probs", failing)
    with pytest.raises(KeyboardInterrupt):
        sensitivities(model, rounder)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_tensor_that_matters_more_costs_more() -> None:
    model = small_model(3)
    weights = {s.name: s.tensor for s in model.stored()}
    weights["trunk.blocks.1.mlp.out.weight"].zero_()
    weights["trunk.blocks.0.mlp.out.weight"].mul_(3)
    found = sensitivities(model, Rounder(model, QuantConfig(), batches()))
    up = [found[f"trunk.blocks.{block}.mlp.up.weight"] for block in (0, 1)]
    assert up[0] > 1e6 * up[1] > 0  # of the second nothing is left to hear


def test_the_damage_grows_with_the_square_of_the_step() -> None:
    model, tokens = small_model(4), batches()
    rounder = Rounder(model, QuantConfig(rate_weight=0.0), tokens)
    name, reference = "trunk.blocks.0.mlp.up.weight", log_probs(model, tokens)
    measured = sensitivities(model, rounder)[name]
    for relative in (0.4, 0.2, 0.1):
        step = relative * rounder.spread(name)
        before = rounder.stored[name].tensor.clone()
        rounder.restore(name, rounder.quantize(name, step))
        found = divergence(model, tokens, reference) / step**2
        rounder.stored[name].tensor.copy_(before)
        assert 1 / 2.5 < found / measured < 2.5


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_measured(method: str) -> None:
    model = small_model(5)
    rounder = Rounder(model, QuantConfig(method=method), batches())  # type: ignore[arg-type]
    assert min(sensitivities(model, rounder).values()) > 0


def test_vectors_of_one_name_share_their_damage_by_size() -> None:
    model = small_model(6)
    found = sensitivities(model, Rounder(model, QuantConfig(), batches()))
    rounder = Rounder(model, QuantConfig(), batches())
    names = [f"trunk.blocks.{block}.mlp_scale" for block in (0, 1)]
    parts = [found[name] * (0.5 * rounder.spread(name)) ** 2 for name in names]
    assert parts[0] == pytest.approx(parts[1], rel=1e-6)


@pytest.mark.parametrize(("rows", "length"), [(1, 8), (5, 16), (100, 64), (900, 8)])
def test_probes_are_whole_windows_spread_over_the_batches(rows: int, length: int) -> None:
    numbers = torch.arange(rows)[:, None].expand(rows, length)
    chosen = probe_tokens(torch.split(numbers, 7), VOCAB)
    assert all(window.shape == (1, length) for window in chosen)
    firsts = [int(window[0, 0]) for window in chosen]
    assert firsts == sorted(set(firsts)) and firsts[0] == 0
    assert len(firsts) == min(rows, 4096 // length)
    if rows > 4096 // length:
        gaps = np.diff(firsts)
        assert gaps.min() == gaps.max() == rows // (4096 // length)


def test_a_large_vocabulary_is_probed_with_fewer_tokens() -> None:
    windows = torch.zeros((64, 64), dtype=torch.long)
    assert [len(probe_tokens([windows], vocab)) for vocab in (1 << 14, 1 << 17, 1 << 30)] == [
        64, 8, 1,
    ]  # fmt: skip


# --- bits by the step ---


@given(st.floats(1e-3, 10), st.floats(1.001, 10))
def test_a_larger_step_takes_fewer_bits(step: float, factor: float) -> None:
    assert gaussian_bits(step) > gaussian_bits(step * factor) > 0


def test_halving_a_fine_step_costs_one_bit() -> None:
    assert gaussian_bits(0.01) - gaussian_bits(0.02) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("step", [0.05, 0.1, 0.25, 0.5, 1.0, 2.0])
def test_bits_are_near_the_entropy_of_a_rounded_gaussian(step: float) -> None:
    edges = torch.arange(-1000, 1001, dtype=torch.float64) + 0.5
    p = torch.special.ndtr(edges * step).diff()
    entropy = -float(torch.special.xlogy(p, p).sum()) / math.log(2)
    assert gaussian_bits(step) == pytest.approx(entropy, abs=0.06)
