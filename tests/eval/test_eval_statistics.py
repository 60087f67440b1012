"""The bootstrap and the t-test against exact values, slow twins and seeded simulations."""

import math
import tracemalloc

import mpmath  # type: ignore[import-untyped]  # torch brings it
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokgolf.eval import statistics
from tokgolf.eval.saved import Doubles
from tokgolf.eval.statistics import (
    TTest,
    incomplete_beta,
    paired,
    ratio_interval,
    student_cdf,
    student_quantile,
    welch,
)

positive = st.floats(0.05, 500)
freedoms = st.floats(0.5, 1e4)

# --- Student's t


@settings(max_examples=60, deadline=None)
@given(positive, positive, st.floats(0, 1))
def test_the_incomplete_beta_is_that_of_mpmath(a: float, b: float, x: float) -> None:
    exact = float(mpmath.betainc(a, b, 0, x, regularized=True))
    assert incomplete_beta(a, b, x) == pytest.approx(exact, abs=1e-11)


@given(positive, positive, st.integers(0, 1024))
def test_the_incomplete_beta_and_its_mirror_sum_to_one(a: float, b: float, x: int) -> None:
    total = incomplete_beta(a, b, x / 1024) + incomplete_beta(b, a, 1 - x / 1024)
    assert total == pytest.approx(1, abs=2e-11)


@given(st.floats(-50, 50))
def test_one_and_two_degrees_of_freedom_have_closed_forms(t: float) -> None:
    assert student_cdf(t, 1) == pytest.approx(0.5 + math.atan(t) / math.pi, abs=1e-12)
    assert student_cdf(t, 2) == pytest.approx(0.5 + t / (2 * math.sqrt(2 + t * t)), abs=1e-12)


# Two-sided 5 % and 1 % points as every table has them.
@pytest.mark.parametrize(
    ("freedom", "five", "one"),
    [(1, 12.706, 63.657), (4, 2.776, 4.604), (10, 2.228, 3.169), (120, 1.980, 2.617)],
)
def test_quantiles_are_those_of_the_tables(freedom: int, five: float, one: float) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(five, abs=5e-4)
    assert student_quantile(0.995, freedom) == pytest.approx(one, abs=5e-4)


@given(st.floats(0.001, 0.999), freedoms)
def test_the_quantile_inverts_the_cdf(p: float, freedom: float) -> None:
    assert student_cdf(student_quantile(p, freedom), freedom) == pytest.approx(p, abs=1e-9)


@given(st.floats(0, 100), freedoms)
def test_the_distribution_is_symmetric(t: float, freedom: float) -> None:
    assert student_cdf(t, freedom) + student_cdf(-t, freedom) == pytest.approx(1, abs=1e-12)


def test_tails_far_out_keep_their_digits() -> None:
    exact = float(mpmath.betainc(10, 0.5, 0, mpmath.mpf(20) / (20 + 30**2), regularized=True)) / 2
    assert 0 < exact < 1e-17
    assert student_cdf(-30, 20) == pytest.approx(exact, rel=1e-10)


# --- tests over seeds


def test_welch_is_the_textbooks_formula() -> None:
    a, b = [27.5, 21.0, 19.0, 23.6, 17.0], [27.1, 22.0, 20.8, 23.4, 23.4, 23.5]
    test = welch(a, b)
    va, vb = np.var(a, ddof=1) / 5, np.var(b, ddof=1) / 6
    assert test.difference == pytest.approx(np.mean(b) - np.mean(a))
    assert test.error == pytest.approx(math.sqrt(va + vb))
    assert test.freedom == pytest.approx((va + vb) ** 2 / (va**2 / 4 + vb**2 / 5))
    t = test.difference / test.error
    assert test.p_equal == pytest.approx(2 * (1 - student_cdf(t, test.freedom)))


def test_the_paired_test_removes_what_pairs_share() -> None:
    a, b = [1.0, 2.0, 3.5], [0.9, 1.91, 3.39]
    assert paired(a, b).freedom == 2
    assert paired(a, b).p_equal < 0.02 < 0.5 < welch(a, b).p_equal


def test_p_and_interval_tell_the_same_story() -> None:
    test = TTest(kind="Welch", difference=-0.01, error=0.003, freedom=3.7)
    for level in (0.8, 0.95, 0.99):
        low, high = test.interval(level)
        assert test.p_below(high) == pytest.approx((1 - level) / 2)
        assert test.p_below(low) == pytest.approx((1 + level) / 2)
    assert test.p_below(0) == pytest.approx(test.p_equal / 2)


def test_without_spread_p_is_the_limit() -> None:
    test = paired([1.0, 2.0], [0.5, 1.5])
    assert (test.p_below(0), test.p_below(-0.5), test.p_below(-0.6)) == (0.0, 0.5, 1.0)
    assert (test.p_equal, paired([1.0, 2.0], [1.0, 2.0]).p_equal) == (0.0, 1.0)
    assert welch([1.0, 1.0], [2.0, 2.0]).p_equal == 0.0


@pytest.mark.parametrize("name", ["welch", "paired"])
def test_p_is_uniform_where_nothing_differs(name: str) -> None:
    rng = np.random.default_rng(0)
    run = {"welch": welch, "paired": paired}[name]
    ps = np.sort([run(list(x[0]), list(x[1])).p_equal for x in rng.normal(size=(2000, 2, 5))])
    distance = np.abs(ps - (np.arange(2000) + 0.5) / 2000).max()
    assert distance < 0.035  # Kolmogorov's 1 % point is 1.63 / sqrt(2000) = 0.036


def test_intervals_over_seeds_cover_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    draws = rng.normal(size=(2000, 2, 4)) * [[1.0], [3.0]]
    intervals = [welch(list(a), list(b)).interval(0.9) for a, b in draws]
    assert 0.88 < np.mean([low <= 0 <= high for low, high in intervals]) < 0.925


# --- the bootstrap over documents


def documents(rng: np.random.Generator, count: int) -> tuple[Doubles, Doubles]:
    """Bits of difference and bytes: sizes far apart, and a difference that grows with them."""
    size = np.exp(rng.normal(7, 1, count)).round() + 1
    return size * (-0.01 + 0.002 * np.log(size) + 0.02 * rng.normal(size=count)), size


def test_intervals_cover_the_pooled_ratio_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2)
    difference, size = documents(rng, 1_000_000)
    truth = difference.sum() / size.sum()
    hits = 0
    for _ in range(400):
        found = ratio_interval(*documents(rng, 60), level=0.9, resamples=400)
        assert found is not None
        hits += found[0] <= truth <= found[1]
    assert 0.84 < hits / 400 < 0.94


def test_the_interval_is_that_of_a_slow_twin() -> None:
    rng = np.random.default_rng(3)
    difference, size = documents(rng, 40)
    ratios = []
    for _ in range(4000):
        drawn = [int(rng.integers(40)) for _ in range(40)]
        ratios.append(sum(difference[i] for i in drawn) / sum(size[i] for i in drawn))
    found = ratio_interval(difference, size, level=0.9)
    assert found is not None
    width = np.ptp(np.quantile(ratios, [0.05, 0.95]))
    np.testing.assert_allclose(found, np.quantile(ratios, [0.05, 0.95]), atol=0.06 * width)


def test_documents_weigh_by_their_bytes() -> None:
    difference, size = np.array([1000.0, -1.0, -1.0, -1.0]), np.array([1e6, 1.0, 1.0, 1.0])
    low, high = ratio_interval(difference, size, level=0.95) or (0.0, 0.0)
    assert high == pytest.approx(1e-3, rel=0.01) and low == pytest.approx(-1)


def test_a_constant_difference_has_an_interval_of_no_width() -> None:
    size = np.array([5.0, 0.0, 7.0, 100.0])
    assert ratio_interval(0.5 * size, size, level=0.95) == pytest.approx((0.5, 0.5))


def test_the_interval_is_the_same_each_time_and_moves_with_the_seed() -> None:
    difference, size = documents(np.random.default_rng(4), 30)
    first = ratio_interval(difference, size, level=0.95)
    assert first == ratio_interval(difference, size, level=0.95)
    assert first != ratio_interval(difference, size, level=0.95, seed=1)


def test_memory_is_bounded_by_drawing_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    difference, size = documents(np.random.default_rng(5), 2000)
    tracemalloc.start()
    whole = ratio_interval(difference, size, level=0.9)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert whole is not None and peak < 60e6  # all the draws at once are 160 MB
    monkeypatch.setattr(statistics, "DRAWS_AT_ONCE", 70)  # one resample at a time
    assert ratio_interval(difference, size, level=0.9) == pytest.approx(whole, rel=0.05)


@pytest.mark.parametrize("sizes", [[], [9.0], [9.0, 0.0]])
def test_fewer_than_two_documents_have_no_interval(sizes: list[float]) -> None:
    assert ratio_interval(np.array(sizes), np.array(sizes), level=0.95) is None
