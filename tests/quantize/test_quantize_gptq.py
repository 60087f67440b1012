"""GPTQ against a slow twin, and the property it exists for: less error in the outputs."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tokgolf.config import TrunkConfig
from tokgolf.heads import HeadShape, head_config
from tokgolf.heads.base import LinearHead
from tokgolf.model import build_model
from tokgolf.quantize.gptq import DAMPING, input_hessians, round_columns
from tokgolf.quantize.rows import frequency_weights

Array = NDArray[np.float64]


def problem(seed: int, rows: int, columns: int) -> tuple[Array, Array, Array]:
    """Weights, the Hessian of correlated inputs, and a step for each row."""
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(columns, columns)) / columns**0.5
    inputs = random.normal(size=(4 * columns, columns)) @ mixing
    weights = random.normal(size=(rows, columns))
    return weights, inputs.T @ inputs / len(inputs), 0.4 * np.sqrt((weights**2).mean(axis=1))


def slow_twin(weights: Array, hessian: Array, step: Array, largest: int) -> NDArray[np.int8]:
    """Optimal brain surgery by its definition: a fresh inverse of what is left, each column."""
    columns = weights.shape[1]
    hessian = hessian + DAMPING * hessian.diagonal().mean() * np.eye(columns)
    rest = weights.copy()
    left = [int(c) for c in np.argsort(-(hessian.diagonal()), kind="stable")]
    codes = np.zeros(weights.shape, dtype=np.int8)
    while left:
        column = left[0]
        inverse = np.linalg.inv(hessian[np.ix_(left, left)])
        code = np.rint(rest[:, column] / step).clip(-largest, largest)
        codes[:, column] = code
        error = rest[:, column] - code * step
        rest[:, left] -= np.outer(error, inverse[0] / inverse[0, 0])
        left = left[1:]
    return codes


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 7), (8, 130), (3, 257)])
def test_codes_equal_the_slow_twins(rows: int, columns: int) -> None:
    weights, hessian, step = problem(rows, rows, columns)
    fast = round_columns(weights, hessian, step, 31)
    slow = slow_twin(weights, hessian, step, 31)
    assert (fast != slow).mean() < 0.01  # a tie may fall either way


@pytest.mark.parametrize("seed", range(5))
def test_outputs_are_closer_than_with_rounding_to_the_nearest(seed: int) -> None:
    weights, hessian, step = problem(seed, 32, 64)

    def damage(codes: Array) -> float:
        error = weights - codes * step[:, None]
        return float(np.trace(error @ hessian @ error.T))

    nearest = np.rint(weights / step[:, None])
    gptq = round_columns(weights, hessian, step, 127).astype(np.float64)
    assert damage(gptq) < 0.8 * damage(nearest)


def test_codes_stay_within_the_largest() -> None:
    weights, hessian, step = problem(0, 16, 32)
    assert np.abs(round_columns(weights, hessian, step, 2)).max() == 2


def test_with_independent_inputs_it_is_rounding_to_the_nearest() -> None:
    weights, _, step = problem(0, 16, 32)
    codes = round_columns(weights, np.eye(32), step, 127)
    assert (codes == np.rint(weights / step[:, None])).all()


def test_inputs_that_never_occur_do_no_harm() -> None:
    weights, hessian, step = problem(0, 4, 8)
    hessian[3] = hessian[:, 3] = 0
    assert np.isfinite(round_columns(weights, hessian, step, 31)).all()
    assert (round_columns(weights, np.zeros((8, 8)), step, 31) != 0).any()


def test_every_linear_layer_and_the_stored_classifier_has_a_hessian() -> None:
    trunk = TrunkConfig(layers=2, d_model=16, heads=2, kv_heads=1, mlp_hidden=24, sequence_length=8)
    shape = HeadShape(vocab_size=300, d_model=16, bos_id=256)
    tokens = torch.randint(0, 300, (4, 8), generator=torch.Generator().manual_seed(0))
    for name, classifier in (("tied", "head.table"), ("factorized", "head.table")):
        torch.manual_seed(0)
        options = {"rank": 8} if name == "factorized" else {}
        model = build_model(trunk, head_config({"name": name, **options}), shape)
        hessians = input_hessians(model, [tokens[:2], tokens[2:]])
        linear = {s.name for s in model.stored() if s.kind == "matrix" and "trunk" in s.name}
        assert set(hessians) == linear | {classifier}
        assert isinstance(model.head, LinearHead)
        hidden = model.hidden(tokens).flatten(0, 1)
        hidden = model.head.features(hidden, tokens.flatten()).detach().double()
        expected = (hidden.T @ hidden / tokens.numel()).numpy()
        np.testing.assert_allclose(hessians[classifier], expected, rtol=1e-5, atol=1e-8)


def test_frequent_tokens_take_finer_steps_and_the_mean_stays() -> None:
    weights = frequency_weights(np.array([0, 3, 10, 5000]))
    assert (np.diff(weights) < 0).all()
    np.testing.assert_allclose(np.log(weights).mean(), 0, atol=1e-12)
