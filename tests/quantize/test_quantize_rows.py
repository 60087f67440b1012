"""Quantized rows: the error bound, the steps' grid, the clip, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokgolf.errors import ArtifactError, ConfigError
from tokgolf.heads.base import StoredKind
from tokgolf.quantize import STEPS, Quantized, dequantize, row_steps
from tokgolf.quantize.rows import QuantConfig, quantize, step_bits

Floats = NDArray[np.float32]
KINDS: tuple[StoredKind, ...] = ("table", "matrix", "vector")
SMALLEST = 2.0**-95
HALF_NOTCH = 2 ** (1 / 16) * (1 + 2**-8)  # rows' steps come 8 to the octave, of one rounded too


def gaussian(seed: int, rows: int, columns: int, scale: float = 1.0) -> Floats:
    draws = np.random.default_rng(seed).standard_normal((rows, columns))
    return (scale * draws).astype(np.float32)


def largest_code(kind: StoredKind, config: QuantConfig) -> int:
    bits = {"table": config.table_bits, "matrix": config.matrix_bits, "vector": 8}[kind]
    return (1 << bits - 1) - 1


def wish(rows: NDArray[np.float64], kind: StoredKind, config: QuantConfig) -> NDArray[np.float64]:
    """The step that the documentation promises each row, for rows of mean below deviation."""
    if kind == "vector":
        return np.asarray(np.abs(rows).max(keepdims=True) / 127)
    clip = config.table_clip if kind == "table" else config.matrix_clip
    spread = rows.std(axis=1, keepdims=True) if kind == "table" else rows.std(keepdims=True)
    return np.asarray(clip * spread / largest_code(kind, config))


def steps(quantized: Quantized) -> NDArray[np.float64]:
    return row_steps(quantized).astype(np.float64)


def entropy_bits(codes: NDArray[np.int16]) -> float:
    _, counts = np.unique(codes, return_counts=True)
    p = counts / counts.sum()
    return float(-(p * np.log2(p)).sum())


def test_steps_are_bfloat16_times_eighths_of_an_octave() -> None:
    eighths = np.array([0, 8, -8, 1, -128, 127], np.int8)
    found = steps(Quantized(np.zeros((6, 1), np.int16), 0x3F80, eighths))[:, 0]
    assert found[[0, 1, 2, 4]].tolist() == [1.0, 2.0, 0.5, 2.0**-16]
    np.testing.assert_allclose(found, np.exp2(eighths / 8), rtol=6e-8)
    for bits in (STEPS[0], STEPS[-1]):  # no row's step leaves float32, nor does a weight
        ends = Quantized(np.full((2, 1), 511, np.int16), bits, np.array([-128, 127], np.int8))
        assert np.isfinite(dequantize(ends, True)).all() and (steps(ends) > 2.0**-126).all()


def test_the_bits_of_a_step_are_those_of_the_nearest_or_the_next_larger() -> None:
    wishes = [1.0, 2.0, 0.5, 1 + 2**-9, 1 + 3 * 2**-9, 0.0, 1e300]
    nearest = [0x3F80, 0x4000, 0x3F00, 0x3F80, 0x3F81, STEPS[0], STEPS[-1]]
    assert [step_bits(wish) for wish in wishes] == nearest
    larger = [0x3F80, 0x4000, 0x3F00, 0x3F81, 0x3F81, STEPS[0], STEPS[-1]]
    assert [step_bits(wish, up=True) for wish in wishes] == larger


def test_dequantize_is_codes_times_the_rows_steps() -> None:
    codes = np.array([[1, -2, 0], [127, -127, 3]], np.int16)
    got = dequantize(Quantized(codes, 0x3F80, np.array([0, -8], np.int8)), False)
    assert got.dtype == np.float32
    assert got.tolist() == [[1.0, -2.0, 0.0], [63.5, -63.5, 1.5]]
    got = dequantize(Quantized(codes, 0x3F00, None), False)
    assert got.tolist() == [[0.5, -1.0, 0.0], [63.5, -63.5, 1.5]]


def test_a_small_matrix_has_these_codes() -> None:
    # std 1, 2 bits of magnitude less the sign: largest code 3; clip 3 makes the step exactly 1.
    config = QuantConfig(matrix_bits=3, matrix_clip=3.0)
    codes, step, rows = quantize("m", np.array([[1.0, -1.0]], np.float32), "matrix", config)
    assert (codes.tolist(), step, rows) == ([[1, -1]], 0x3F80, None)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    kind=st.sampled_from(KINDS),
    log2=st.integers(-8, 6),
    bits=st.integers(2, 8),
    clip=st.floats(0.5, 40),
    columns=st.integers(2, 80),
)
def test_the_error_is_at_most_half_a_step_inside_the_clip(
    seed: int, kind: StoredKind, log2: int, bits: int, clip: float, columns: int
) -> None:
    config = QuantConfig(matrix_bits=bits, matrix_clip=clip, table_bits=bits, table_clip=clip)
    weights = gaussian(seed, 5, columns, 2.0**log2)
    quantized = quantize("w", weights, kind, config)
    codes, _, rows = quantized
    assert codes.shape == weights.shape and codes.dtype == np.int16
    assert (rows is None) == (kind != "table")
    assert rows is None or rows.shape == (5,) and rows.dtype == np.int8
    limit = largest_code(kind, config)
    assert np.abs(codes.astype(int)).max() <= limit
    step = steps(quantized)
    clipped = np.clip(weights.astype(np.float64), -limit * step, limit * step)
    error = np.abs(clipped - dequantize(quantized, False))
    assert (error <= step / 2 * (1 + 1e-6)).all()
    if kind == "vector":
        assert (clipped == weights).all()


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_within_half_a_notch_of_the_wish(kind: StoredKind) -> None:
    config = QuantConfig()
    weights = gaussian(1, 400, 30) * np.exp2(np.linspace(-8, 8, 400, dtype=np.float32))[:, None]
    weights -= weights.mean(axis=1, keepdims=True)
    quantized = quantize("w", weights, kind, config)
    ratio = steps(quantized) / wish(weights.astype(np.float64), kind, config)
    if kind == "vector":  # rounded up, so that the largest entry fits
        assert (ratio >= 1 - 1e-6).all() and (ratio <= 1 + 2**-7).all()
    elif kind == "matrix":
        assert (np.abs(ratio - 1) <= 2**-8).all()
    else:
        assert (ratio >= 1 / HALF_NOTCH * (1 - 1e-6)).all()
        assert (ratio <= HALF_NOTCH * (1 + 1e-6)).all()
        assert np.abs(ratio - 1).max() < 0.049


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-25_000, 25_000, width=32), min_size=1, max_size=20).filter(
        lambda values: max(map(abs, values)) > 1e-4
    )
)
def test_a_vectors_largest_entry_is_representable(values: list[float]) -> None:
    weights = np.array(values, np.float32)
    quantized = quantize("v", weights, "vector", QuantConfig())
    place = int(np.abs(weights).argmax())
    # A step is at most 0.8 % over the wish.
    assert 126 <= abs(int(quantized.codes[0, place])) <= 127
    step = steps(quantized).item()
    restored = float(dequantize(quantized, False)[0, place])
    assert abs(restored - float(weights[place])) <= step / 2 * (1 + 1e-6)


def test_a_vector_is_one_row_and_has_one_step() -> None:
    assert quantize("v", gaussian(0, 1, 12)[0], "vector", QuantConfig()).codes.shape == (1, 12)
    assert steps(quantize("v", gaussian(0, 2, 12), "vector", QuantConfig())).shape == (1, 1)


@pytest.mark.parametrize("kind", ["table", "matrix"])
def test_a_larger_clip_makes_codes_smaller_and_never_larger(kind: StoredKind) -> None:
    weights = gaussian(2, 64, 64)
    sizes = []
    for clip in (4.0, 8.0, 16.0, 32.0, 64.0):
        config = QuantConfig(matrix_clip=clip, table_clip=clip)
        sizes.append(entropy_bits(quantize("w", weights, kind, config).codes))
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)


def test_the_ratio_of_step_and_deviation_alone_sets_the_size() -> None:
    # log2(std / step) + 2.05 bits a weight, whatever `bits` is, while nothing is clipped.
    for bits, clip in ((8, 16.0), (7, 16.0 * 63 / 127), (6, 16.0 * 31 / 127)):
        config = QuantConfig(matrix_bits=bits, matrix_clip=clip)
        codes = quantize("w", gaussian(3, 128, 256), "matrix", config).codes
        assert entropy_bits(codes) == pytest.approx(np.log2(127 / 16) + 2.05, abs=0.05)


def test_a_row_of_zeros_stays_zero_and_leaves_the_others_of_a_table_alone() -> None:
    weights = gaussian(4, 3, 16)
    weights[1] = 0
    codes, _, rows = quantized = quantize("w", weights, "table", QuantConfig())
    assert rows is not None and rows[1] == -128 and not codes[1].any()
    error = np.abs(dequantize(quantized, False) - weights)
    assert (error <= steps(quantized) / 2 * (1 + 1e-6)).all()
    assert (steps(quantized)[[0, 2]] < 0.4).all()


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stay_zero(kind: StoredKind) -> None:
    quantized = quantize("w", np.zeros((3, 16), np.float32), kind, QuantConfig())
    assert quantized.step == STEPS[0] and not quantized.codes.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [1, 16])
@pytest.mark.parametrize("value", [0.37, -2.0, 1e-3])
def test_a_row_without_deviation_survives(kind: StoredKind, columns: int, value: float) -> None:
    weights = np.full((2, columns), value, np.float32)
    quantized = quantize("w", weights, kind, QuantConfig())
    step = steps(quantized)
    restored = dequantize(quantized, False)
    assert (np.abs(restored - weights) <= step / 2 * (1 + 1e-6)).all()
    assert (np.abs(restored / value - 1) < 0.25).all()


@pytest.mark.parametrize("kind", KINDS)
def test_scales_beyond_the_range_of_steps_take_its_ends(kind: StoredKind) -> None:
    huge = quantize("w", gaussian(5, 2, 16, 1e37), kind, QuantConfig())
    assert huge.step == STEPS[-1]
    assert np.abs(huge.codes).max() == largest_code(kind, QuantConfig())
    assert np.isfinite(dequantize(huge, True)).all()
    subnormal = quantize("w", gaussian(6, 2, 16, 1e-40), kind, QuantConfig())
    assert subnormal.step == STEPS[0] and not subnormal.codes.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(kind: StoredKind, bad: float) -> None:
    weights = gaussian(7, 30, 50)
    weights[3, 4] = weights[9, 0] = bad
    with pytest.raises(ArtifactError, match="^trunk.blocks.0.up has 2 of 1,500 weights"):
        quantize("trunk.blocks.0.up", weights, kind, QuantConfig())


def test_quantization_is_deterministic_and_odd() -> None:
    weights = gaussian(8, 6, 40)
    first = quantize("w", weights, "vector", QuantConfig())
    again = quantize("w", weights.copy(), "vector", QuantConfig())
    assert (first.codes == again.codes).all() and first.step == again.step
    restored = dequantize(first, False)
    negated = quantize("w", -weights, "vector", QuantConfig())
    assert (dequantize(negated, False) == -restored).all()


@pytest.mark.parametrize("field", ["matrix_bits", "table_bits"])
@pytest.mark.parametrize("bits", [-1, 0, 1, 9])
def test_bits_out_of_range_are_refused(field: str, bits: int) -> None:
    with pytest.raises(ConfigError, match=f"{field} is {bits}; it must be 2 to 8"):
        QuantConfig(**{field: bits})  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["matrix_clip", "table_clip"])
@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan")])
def test_a_clip_that_is_not_positive_is_refused(field: str, clip: float) -> None:
    with pytest.raises(ConfigError, match=field):
        QuantConfig(**{field: clip})  # type: ignore[arg-type]
