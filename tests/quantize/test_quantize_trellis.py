"""Paths through the trellis against slow twins, the exact identity behind them, and what they save.

The twins are a Viterbi search in plain Python where every survivor carries its own remainder, all
paths of a few columns one by one, and GPTQ by its definition.
"""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokgolf.quantize import LARGEST, Quantized, dequantize, trellis_parities
from tokgolf.quantize import trellis as search
from tokgolf.quantize.trellis import DAMPING, error_spread, round_rows

Array = NDArray[np.float64]
Codes = NDArray[np.int16]
both = pytest.mark.parametrize("trellis", [False, True])


class Problem(NamedTuple):
    """Weights (rows, columns), the Hessian of correlated inputs, and a step for each row."""

    weights: Array
    hessian: Array
    step: Array


def problem(seed: int, rows: int, columns: int, step: float = 0.4) -> Problem:
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(columns, columns)) / columns**0.5
    inputs = random.normal(size=(4 * columns, columns)) @ mixing
    weights = random.normal(size=(rows, columns))
    hessian = inputs.T @ inputs / len(inputs)
    return Problem(weights, hessian, step * np.sqrt((weights**2).mean(axis=1)))


def damped(hessian: Array) -> Array:
    damping: Array = DAMPING * hessian.diagonal().mean() * np.eye(len(hessian))
    return hessian + damping


def restored(codes: Codes, step: Array, trellis: bool) -> Array:
    unit = Quantized(codes, 0x3F80, None)
    weights: Array = dequantize(unit, trellis).astype(np.float64) * step[:, None]
    return weights


def damage(weights: Array, hessian: Array, codes: Codes, step: Array, trellis: bool) -> Array:
    """dW H dW^T of every row."""
    error = weights - restored(codes, step, trellis)
    of_rows: Array = np.einsum("ri,ij,rj->r", error, hessian, error)
    return of_rows


# --- twins ---


def slow_viterbi(
    weights: list[float], spread: Array, step: float, price: Array, trellis: bool
) -> tuple[float, list[int]]:
    """Cost and symbols of one row's best survivor, in fp64."""
    survivors: dict[int, tuple[float, Array, list[int]]] = {0: (0.0, np.array(weights), [])}
    for c, charge in enumerate(price):
        found: dict[int, tuple[float, Array, list[int]]] = {}
        for state, (cost, rest, symbols) in survivors.items():
            best = rest[c] / (1 + charge * spread[c, c] ** 2) / step
            w1, w2, w3 = state & 1, state >> 1 & 1, state >> 2 & 1
            for b in (0, 1) if trellis else (0,):
                if trellis:  # of the integers 2k + w1 with k & 1 = b, the nearest
                    j = 4 * int(np.clip(np.rint((best - 2 * b - w1) / 4), -255, 255)) + 2 * b + w1
                    following = (w2 ^ w1) | (w3 ^ b) << 1 | w1 << 2
                else:
                    j, following = int(np.clip(np.rint(best), -LARGEST, LARGEST)), 0
                error = (rest[c] - j * step) / spread[c, c]
                total = cost + error**2 + charge * (j * step) ** 2
                if following not in found or total < found[following][0]:
                    symbol = (j - w1) // 2 if trellis else j
                    found[following] = total, rest - error * spread[c], [*symbols, symbol]
        survivors = found
    cost, _, symbols = min(survivors.values(), key=lambda survivor: survivor[0])
    return cost, symbols


def slow_gptq(weights: Array, hessian: Array, step: Array) -> Codes:
    """Optimal brain surgery by its definition: a fresh inverse of what is left, each column."""
    hessian, rest = damped(hessian), weights.copy()
    codes = np.zeros(weights.shape, np.int16)
    for column in range(weights.shape[1]):
        inverse = np.linalg.inv(hessian[column:, column:])
        codes[:, column] = np.rint(rest[:, column] / step).clip(-LARGEST, LARGEST)
        error = rest[:, column] - codes[:, column] * step
        rest[:, column:] -= np.outer(error, inverse[0] / inverse[0, 0])
    return codes


@both
@pytest.mark.parametrize("rate_weight", [0.0, 0.5])
@pytest.mark.parametrize("columns", [1, 2, 9, 33, 70])
def test_paths_are_those_of_a_plain_viterbi_search(
    columns: int, rate_weight: float, trellis: bool
) -> None:
    rows = 6
    weights, hessian, step = problem(columns, rows, columns, 0.3)
    spread = error_spread(hessian)
    codes = round_rows(weights, spread, step, trellis=trellis, rate_weight=rate_weight)
    # The price of a value: Gaussian bits at its row's and column's variance, times 2 * error.
    power = weights**2
    variance = np.outer(power.mean(axis=1), power.mean(axis=0) / power.mean(axis=0).mean())
    error = ((1 + trellis) * step) ** 2 / 12 * np.mean(spread.diagonal() ** -2.0)
    price = rate_weight * error[:, None] / variance
    equal, costs, slow_costs = 0, 0.0, 0.0
    for r in range(rows):
        cost, symbols = slow_viterbi(weights[r].tolist(), spread, step[r], price[r], trellis)
        equal += codes[r].tolist() == symbols
        slow_costs += cost
        q = restored(codes[r : r + 1], step[r : r + 1], trellis)[0]
        costs += float(damage(weights, damped(hessian), codes, step, trellis)[r])
        costs += float(price[r] @ q**2)
    assert equal >= rows - 1  # a near tie may fall either way in fp32
    assert costs == pytest.approx(slow_costs, rel=1e-3)


def cheapest(problem: Problem, hessian: Array) -> Array:
    """The least cost of every row, over all paths of a few columns."""
    columns = len(hessian)
    choices = np.arange(-4, 5, dtype=np.int16)
    every = np.stack(np.meshgrid(*[choices] * columns), axis=-1).reshape(-1, columns)
    steps = [np.full(len(every), step) for step in problem.step]
    rows = zip(problem.weights, steps, strict=True)
    return np.array([damage(row, hessian, every, step, True).min() for row, step in rows])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), columns=st.integers(1, 4))
def test_of_all_paths_it_finds_the_cheapest_where_columns_are_independent(
    seed: int, columns: int
) -> None:
    weights, _, step = problem(seed, 6, columns, 0.8)
    codes = round_rows(weights, None, step, trellis=True)
    found = damage(weights, np.eye(columns), codes, step, True)
    least = cheapest(Problem(weights, np.eye(columns), step), np.eye(columns))
    np.testing.assert_allclose(found, least, rtol=1e-5)


def test_of_all_paths_it_finds_one_nearly_as_cheap_where_they_are_not() -> None:
    # One survivor a state, and what it would cost later is not known: good, not perfect.
    weights, hessian, step = task = problem(0, 60, 4, 0.8)
    codes = round_rows(weights, error_spread(hessian), step, trellis=True)
    found = damage(weights, damped(hessian), codes, step, True)
    least = cheapest(task, damped(hessian))
    assert (found >= least * (1 - 1e-5)).all()
    assert found.sum() < 1.2 * least.sum()


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 7), (8, 130), (3, 257)])
def test_with_one_state_it_is_gptq(rows: int, columns: int) -> None:
    weights, hessian, step = problem(rows, rows, columns)
    codes = round_rows(weights, error_spread(hessian), step, trellis=False)
    assert (codes != slow_gptq(weights, hessian, step)).mean() < 0.01  # a tie may fall either way


@both
def test_without_a_hessian_every_column_counts_alike(trellis: bool) -> None:
    weights, _, step = problem(0, 16, 40)
    codes = round_rows(weights, None, step, trellis=trellis)
    assert (codes == round_rows(weights, np.eye(40), step, trellis=trellis)).all()
    if not trellis:
        assert (codes == np.rint(weights / step[:, None])).all()


# --- the identity ---


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), columns=st.integers(1, 40))
def test_the_spread_is_the_upper_cholesky_factor_of_the_damped_inverse(
    seed: int, columns: int
) -> None:
    hessian = problem(seed, 1, columns).hessian
    spread = error_spread(hessian)
    inverse = np.linalg.inv(damped(hessian))
    assert (
        np.abs(np.tril(spread, -1)).max() < 1e-12 * spread.max() and (spread.diagonal() > 0).all()
    )
    np.testing.assert_allclose(spread.T @ spread, inverse, atol=1e-9 * np.abs(inverse).max())
    oracle = np.linalg.cholesky(inverse).T
    np.testing.assert_allclose(spread, oracle, atol=1e-9 * np.abs(oracle).max())


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), columns=st.integers(1, 40))
def test_the_outputs_error_is_the_sum_of_the_columns_errors(seed: int, columns: int) -> None:
    # tr(dW H dW^T) = the sum of (error / diagonal)^2 as errors are moved on, for any integers.
    weights, hessian, step = problem(seed, 3, columns)
    codes = np.random.default_rng(seed).integers(-5, 6, weights.shape).astype(np.int16)
    spread, rest, total = error_spread(hessian), weights.copy(), 0.0
    for c in range(columns):
        error = (rest[:, c] - codes[:, c] * step) / spread[c, c]
        rest -= np.outer(error, spread[c])
        total += float((error**2).sum())
    expected = damage(weights, damped(hessian), codes, step, False).sum()
    assert total == pytest.approx(float(expected), rel=1e-8)


def test_inputs_that_never_occur_do_no_harm() -> None:
    weights, hessian, step = problem(0, 4, 8)
    hessian[3] = hessian[:, 3] = 0
    for h in (hessian, np.zeros((8, 8)), np.ones((8, 8)), hessian * 1e-30, hessian * 1e30):
        codes = round_rows(weights, error_spread(h), step, trellis=True)
        error = np.abs(restored(codes, step, True) - weights)
        assert (error.mean(axis=1) < 4 * step).all()


# --- what it is for ---


@pytest.mark.parametrize("seed", range(3))
def test_outputs_are_closer_than_with_rounding_to_the_nearest(seed: int) -> None:
    weights, hessian, step = problem(seed, 32, 64)
    spread = error_spread(hessian)
    nearest = np.rint(weights / step[:, None]).astype(np.int16)
    losses = [
        damage(weights, hessian, codes, step / (1 + trellis), trellis).sum()
        for codes, trellis in (
            (nearest, False),
            (round_rows(weights, spread, step, trellis=False), False),
            (round_rows(weights, spread, step / 2, trellis=True), True),
        )
    ]
    assert losses[1] < 0.8 * losses[0] and losses[2] < 0.92 * losses[1]


def conditional_bits(codes: Codes, trellis: bool) -> float:
    """Ideal bits a weight when the parity of the state is known."""
    parities = trellis_parities(codes) if trellis else np.zeros_like(codes)
    bits = 0.0
    for parity in (0, 1):
        _, n = np.unique(codes[parities == parity], return_counts=True)
        bits -= float((n * np.log2(n / n.sum())).sum()) if n.size else 0.0
    return bits / codes.size


def rate_and_error(weights: Array, step: float, trellis: bool) -> tuple[float, float]:
    grid = np.full(len(weights), step / (1 + trellis))
    codes = round_rows(weights, None, grid, trellis=trellis)
    error = restored(codes, grid, trellis) - weights
    return conditional_bits(codes, trellis), float((error**2).mean())


@pytest.mark.parametrize(("step", "saved"), [(0.41, 0.045), (0.8, 0.06), (1.2, 0.08)])
def test_a_trellis_takes_fewer_bits_than_a_scalar_at_the_same_error(
    step: float, saved: float
) -> None:
    weights = np.random.default_rng(0).standard_normal((64, 512))
    bits, error = rate_and_error(weights, step, True)
    low, high = step / 2, step
    for _ in range(20):  # the scalar's step with this error: its error grows with the step
        middle = (low + high) / 2
        low, high = (
            (middle, high) if rate_and_error(weights, middle, False)[1] < error else (low, middle)
        )
    assert bits < (1 - saved) * rate_and_error(weights, low, False)[0]


@both
def test_a_weight_on_the_rate_takes_fewer_bits_and_leaves_more_error(trellis: bool) -> None:
    weights, hessian, step = problem(1, 128, 96, 0.8 / (1 + trellis))
    spread, bits, losses = error_spread(hessian), [], []
    for rate_weight in (0.0, 0.5, 1.0, 2.0):
        codes = round_rows(weights, spread, step, trellis=trellis, rate_weight=rate_weight)
        bits.append(conditional_bits(codes, trellis))
        losses.append(float(damage(weights, hessian, codes, step, trellis).sum()))
    assert bits == sorted(bits, reverse=True) and bits[-1] < 0.97 * bits[0]
    assert losses[-1] > 1.05 * losses[1] and losses[-1] > 1.05 * losses[0]


def test_a_massive_column_is_better_off_after_a_few_that_matter_little() -> None:
    # First, its path is in the one first state: only every other point of the grid is there.
    weights, _, step = problem(2, 256, 24)
    moments = np.ones(24)
    moments[7] = 200.0
    losses = {}
    for name, order in (
        ("first", [7, 0, 1, 2, *range(3, 7), *range(8, 24)]),
        ("after three", [0, 1, 2, 7, *range(3, 7), *range(8, 24)]),
    ):
        hessian = np.diag(moments[order])
        columns = weights[:, order]
        codes = round_rows(columns, error_spread(hessian), step, trellis=True)
        losses[name] = float(damage(columns, hessian, codes, step, True).sum())
    assert losses["after three"] < 0.5 * losses["first"]


# --- what it does not depend on ---


@both
def test_a_rows_path_does_not_depend_on_the_other_rows(
    trellis: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, hessian, step = problem(3, 23, 75)
    spread = error_spread(hessian)
    codes = round_rows(weights, spread, step, trellis=trellis)
    order = np.random.default_rng(0).permutation(23)
    shuffled = round_rows(weights[order], spread, step[order], trellis=trellis)
    assert (shuffled == codes[order]).all()
    alone = [
        round_rows(weights[r : r + 1], spread, step[r : r + 1], trellis=trellis) for r in (0, 9)
    ]
    assert (np.concatenate(alone) == codes[[0, 9]]).all()
    monkeypatch.setattr(search, "ROWS", 4)
    assert (round_rows(weights, spread, step, trellis=trellis) == codes).all()


@both
def test_columns_in_blocks_give_the_path_of_columns_in_one_block(
    trellis: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, hessian, step = problem(4, 9, 75)
    spread = error_spread(hessian)
    found = []
    for block in (1, 32, 100):
        monkeypatch.setattr(search, "BLOCK", block)
        found.append(round_rows(weights, spread, step, trellis=trellis, rate_weight=0.5))
    assert (found[0] == found[1]).all() and (found[0] == found[2]).all()


@both
def test_codes_are_the_same_in_every_run_and_with_two_threads(trellis: bool) -> None:
    weights, hessian, step = problem(5, 40, 100)
    spread = error_spread(hessian)
    first = round_rows(weights, spread, step, trellis=trellis, rate_weight=0.5)
    assert (round_rows(weights, spread, step, trellis=trellis, rate_weight=0.5) == first).all()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        again = round_rows(weights, spread, step, trellis=trellis, rate_weight=0.5)
    finally:
        torch.set_num_threads(threads)
    assert (again == first).all()


@both
@pytest.mark.parametrize("log2", [-90, -60, -20, 20, 90])
def test_codes_do_not_depend_on_the_unit_of_weights_or_inputs(log2: int, trellis: bool) -> None:
    weights, hessian, step = problem(6, 8, 40)
    spread, unit = error_spread(hessian), 2.0**log2
    codes = round_rows(weights, spread, step, trellis=trellis, rate_weight=0.5)
    other = round_rows(unit * weights, spread, unit * step, trellis=trellis, rate_weight=0.5)
    assert (other == codes).all()
    spread = error_spread(hessian * 4.0 ** (log2 // 10))
    assert (round_rows(weights, spread, step, trellis=trellis, rate_weight=0.5) == codes).all()


# --- the ends ---


@both
def test_zeros_stay_zero_and_one_row_of_zeros_does_no_harm(trellis: bool) -> None:
    weights, hessian, step = problem(7, 4, 20)
    spread = error_spread(hessian)
    assert not round_rows(0 * weights, spread, step, trellis=trellis, rate_weight=0.5).any()
    codes = round_rows(weights, spread, step, trellis=trellis)
    weights[1] = 0
    with_zeros = round_rows(weights, spread, step, trellis=trellis)
    assert not with_zeros[1].any() and (np.delete(with_zeros - codes, 1, axis=0) == 0).all()


@both
def test_constant_rows_and_columns_of_zeros_survive(trellis: bool) -> None:
    weights = np.full((3, 12), 0.37)
    weights[:, 5] = 0
    step = np.full(3, 0.1)
    codes = round_rows(weights, None, step, trellis=trellis, rate_weight=0.5)
    assert np.abs(restored(codes, step, trellis) - weights).max() < 0.2


@both
def test_integers_stay_within_the_largest(trellis: bool) -> None:
    weights, hessian, step = problem(8, 16, 32)
    for scale in (1e3, 1e6, 1e12):
        codes = round_rows(weights, error_spread(hessian), step / scale, trellis=trellis)
        largest = np.abs(codes.astype(int)).max()
        assert LARGEST - 2 <= largest <= LARGEST
