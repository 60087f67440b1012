"""Second moments of every layer's inputs and of the gradients behind it, against definitions."""

from typing import Any

import numpy as np
import pytest
import torch
from quantize_support import batches, small_model
from torch import Tensor

from tokgolf.config import TrunkConfig
from tokgolf.heads import HeadShape, head_config
from tokgolf.heads.base import LinearHead
from tokgolf.model import LanguageModel, build_model
from tokgolf.quantize.gptq import input_hessians, looked_up, output_gradients
from tokgolf.quantize.rows import QuantConfig, Rounder, quarters
from tokgolf.quantize.trellis import error_spread

TRUNK = TrunkConfig(layers=2, d_model=16, heads=2, kv_heads=1, mlp_hidden=24, sequence_length=8)
SHAPE = HeadShape(vocab_size=300, d_model=16, bos_id=256)


@pytest.mark.parametrize("name", ["tied", "factorized"])
def test_every_linear_layer_and_the_stored_classifier_has_a_hessian(name: str) -> None:
    tokens = torch.randint(0, 300, (4, 8), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    options = {"rank": 8} if name == "factorized" else {}
    model = build_model(TRUNK, head_config({"name": name, **options}), SHAPE)
    hessians = input_hessians(model, [tokens[:2], tokens[2:]])
    linear = {s.name for s in model.stored() if s.kind == "matrix" and "trunk" in s.name}
    assert set(hessians) == linear | {"head.table"}
    assert isinstance(model.head, LinearHead)
    hidden = model.hidden(tokens).flatten(0, 1)
    hidden = model.head.features(hidden, tokens.flatten()).detach().double()
    expected = (hidden.T @ hidden / tokens.numel()).numpy()
    np.testing.assert_allclose(hessians["head.table"], expected, rtol=1e-5, atol=1e-8)
    for hessian in hessians.values():
        assert (hessian == hessian.T).all() and np.linalg.eigvalsh(hessian).min() > -1e-9


# --- gradients

UP = "trunk.blocks.0.mlp.up.weight"


def moved_by(model: LanguageModel, tokens: Tensor, place: str, way: Tensor) -> Tensor:
    """Log-probabilities with `way` added to the embedded tokens ("") or to a layer's outputs."""
    if place:
        layer = model.get_submodule(place.removesuffix(".weight"))
        hook = layer.register_forward_hook(lambda _, inputs, outputs: outputs + way)
    else:
        hook = model.trunk.register_forward_pre_hook(lambda _, i: (i[0] + way, *i[1:]))
    try:
        return model.log_probs(tokens)[0]
    finally:
        hook.remove()


def jacobian(model: LanguageModel, tokens: Tensor, place: str, width: int) -> Tensor:
    """Of every log-probability, one window: # -> (time, vocab, time, width)"""
    way = torch.zeros(tokens.size(1), width)
    found: Any = torch.autograd.functional.jacobian(  # type: ignore[no-untyped-call]
        lambda w: moved_by(model, tokens, place, w), way, vectorize=True
    )
    return torch.as_tensor(found).double()


def test_gradients_are_those_of_a_loop_over_tokens() -> None:
    model = small_model(1)
    tokens = torch.randint(0, 60, (3, 5), generator=torch.Generator().manual_seed(3))
    found, embedded = output_gradients(model, [tokens[:2], tokens[2:]])
    assert set(found) == {s.name for s in model.stored() if s.kind == "matrix"}
    draw = torch.Generator().manual_seed(0)
    drawn = [
        torch.multinomial(model.log_probs(batch).flatten(0, 1).exp(), 1, generator=draw)[:, 0]
        for batch in (tokens[:2], tokens[2:])
    ]
    for place, width in (("", 16), (UP, 40), ("trunk.blocks.1.attention.value.weight", 8)):
        expected = np.zeros((width, width))
        for window, wanted in zip(tokens, torch.cat(drawn).view(3, 5), strict=True):
            way = torch.zeros(5, width, requires_grad=True)
            total = np.zeros((5, width))
            for t in range(5):
                log_probs = moved_by(model, window[None], place, way)
                (gradient,) = torch.autograd.grad(log_probs[t, wanted[t]], way)
                total += gradient.double().numpy()
            for at in total:
                expected += np.outer(at, at) / tokens.numel()
        got = found[place] if place else embedded
        scale = expected.diagonal().max()
        np.testing.assert_allclose(
            got, expected.diagonal() if place else expected, rtol=1e-3, atol=1e-5 * scale
        )
    again, _ = output_gradients(model, [tokens[:2], tokens[2:]])
    assert all((again[name] == found[name]).all() for name in found)
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


def test_gradients_of_many_draws_are_the_curvature_of_the_divergence() -> None:
    model = small_model(2)
    tokens = torch.randint(0, 60, (1, 4), generator=torch.Generator().manual_seed(5))
    found, embedded = output_gradients(model, [tokens.expand(4000, 4)])
    p = model.log_probs(tokens)[0].double().exp()
    for place, width in (("", 16), (UP, 40)):
        slopes = jacobian(model, tokens, place, width)
        curvature = (torch.einsum("tv,tvsi,tvsj->ij", p, slopes, slopes) / 4).numpy()
        got = np.diag(found[place]) if place else embedded
        expected = np.diag(curvature.diagonal()) if place else curvature
        assert np.abs(got - expected).max() < 0.1 * expected.max()
        assert got.trace() == pytest.approx(expected.trace(), rel=0.05)


def test_the_curvature_is_what_a_small_error_costs() -> None:
    model = small_model(2)
    tokens = torch.randint(0, 60, (1, 4), generator=torch.Generator().manual_seed(5))
    before = model.log_probs(tokens)[0].double()
    slopes = jacobian(model, tokens, UP, 40)
    way = 0.02 * torch.randn(4, 40, generator=torch.Generator().manual_seed(0))
    after = moved_by(model, tokens, UP, way).double()
    cost = (before.exp() * (before - after)).sum()
    change = torch.einsum("tvsi,si->tv", slopes, way.double())
    assert cost == pytest.approx(float((before.exp() * change**2).sum() / 2), rel=0.1)


TABLES = {"tied": "head.table", "untied": "head.input", "factorized": None, "hashed": None}


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("name", TABLES)
def test_the_table_that_is_looked_up_is_the_one_whose_rows_tokens_become(
    name: str, adds: bool
) -> None:
    options: dict[str, Any] = {"rank": 8} if name == "factorized" else {}
    if adds:
        options["add"] = {"bigram-hash": {"dim": 4, "buckets": 64}}
    model = small_model(3, name=name, **options)
    token, previous = torch.tensor([[7]]), torch.tensor([[5]])
    before = model.head.embed(token, previous)[0, 0]
    way = torch.linspace(-1, 2, 16)
    for stored in model.stored():
        moved = stored.tensor.shape == (60, 16)
        if moved:
            with torch.no_grad():
                stored.tensor[7] += way
            moved = torch.allclose(model.head.embed(token, previous)[0, 0] - before, way, atol=1e-5)
            with torch.no_grad():
                stored.tensor[7] -= way
        assert moved == (stored.name == TABLES[name])
    assert looked_up(model) == TABLES[name]
    assert not any(p.requires_grad for p in model.parameters())


def test_a_table_that_only_predicts_is_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(3)
    monkeypatch.setattr(model.head, "embed", lambda tokens, previous: torch.ones(1, 60, 16))
    assert looked_up(model) is None
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_a_table_that_is_looked_up_has_steps_by_both_its_uses(name: str) -> None:
    model = small_model(4, name=name)
    rounder = Rounder(model, QuantConfig(), batches())
    table = TABLES[name]
    assert table is not None
    read = input_hessians(model, batches(), [table]).get(table, 0)
    assert (name == "tied") == np.any(read)  # the untied one is no classifier
    _, embedded = output_gradients(model, [row[None] for batch in batches() for row in batch])
    order = rounder.orders[table]
    spread = error_spread((read + embedded)[np.ix_(order, order)])
    columns = rounder.columns_of(table)
    assert columns is not None and np.ptp(columns) > 0
    assert np.array_equal(columns[order], quarters(spread.diagonal()))
