"""Quantized rows: the error bound, the steps' grid, the clip, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokgolf.errors import ArtifactError, ConfigError
from tokgolf.heads.base import StoredKind
from tokgolf.quantize import dequantize, steps
from tokgolf.quantize.rows import QuantConfig, quantize

Floats = NDArray[np.float32]
KINDS: tuple[StoredKind, ...] = ("table", "matrix", "vector")
SMALLEST, LARGEST = 2.0**-24, 2.0 ** (255 / 8 - 24)
HALF_NOTCH = 2 ** (1 / 16)  # steps come 8 to the octave: half a notch is 4.43 %


def gaussian(seed: int, rows: int, columns: int, scale: float = 1.0) -> Floats:
    draws = np.random.default_rng(seed).standard_normal((rows, columns))
    return (scale * draws).astype(np.float32)


def largest_code(kind: StoredKind, config: QuantConfig) -> int:
    bits = {"table": config.table_bits, "matrix": config.matrix_bits, "vector": 8}[kind]
    return (1 << bits - 1) - 1


def wish(rows: NDArray[np.float64], kind: StoredKind, config: QuantConfig) -> NDArray[np.float64]:
    """The step that the documentation promises each row, for rows of mean below deviation."""
    if kind == "vector":
        return np.asarray(np.abs(rows).max(axis=1) / 127)
    clip = config.table_clip if kind == "table" else config.matrix_clip
    return np.asarray(clip * rows.std(axis=1) / largest_code(kind, config))


def entropy_bits(codes: NDArray[np.int8]) -> float:
    _, counts = np.unique(codes, return_counts=True)
    p = counts / counts.sum()
    return float(-(p * np.log2(p)).sum())


def test_exponents_have_these_steps() -> None:
    exponents = np.array([192, 200, 184, 0, 255], np.uint8)
    assert steps(exponents).tolist() == [1.0, 2.0, 0.5, 2.0**-24, float(np.float32(LARGEST))]
    ratios = np.diff(np.log2(steps(np.arange(256, dtype=np.uint8)).astype(np.float64)))
    np.testing.assert_allclose(ratios, 1 / 8, atol=1e-6)


def test_dequantize_is_codes_times_the_rows_steps() -> None:
    codes = np.array([[1, -2, 0], [127, -127, 3]], np.int8)
    got = dequantize(codes, np.array([192, 184], np.uint8))
    assert got.dtype == np.float32
    assert got.tolist() == [[1.0, -2.0, 0.0], [63.5, -63.5, 1.5]]


def test_a_small_matrix_has_these_codes() -> None:
    # std 1, 2 bits of magnitude less the sign: largest code 3; clip 3 makes the step exactly 1.
    config = QuantConfig(matrix_bits=3, matrix_clip=3.0)
    codes, exponents = quantize("m", np.array([[1.0, -1.0]], np.float32), "matrix", config)
    assert (codes.tolist(), exponents.tolist()) == ([[1, -1]], [192])


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
    codes, exponents = quantize("w", weights, kind, config)
    assert codes.shape == weights.shape and codes.dtype == np.int8
    assert exponents.shape == (5,) and exponents.dtype == np.uint8
    limit = largest_code(kind, config)
    assert np.abs(codes.astype(int)).max() <= limit
    step = steps(exponents).astype(np.float64)[:, None]
    clipped = np.clip(weights.astype(np.float64), -limit * step, limit * step)
    error = np.abs(clipped - dequantize(codes, exponents))
    assert (error <= step / 2 * (1 + 1e-6)).all()
    if kind == "vector":
        assert (clipped == weights).all()


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_within_half_a_notch_of_the_wish(kind: StoredKind) -> None:
    config = QuantConfig()
    weights = gaussian(1, 400, 30) * np.exp2(np.linspace(-8, 8, 400, dtype=np.float32))[:, None]
    weights -= weights.mean(axis=1, keepdims=True)
    _, exponents = quantize("w", weights, kind, config)
    ratio = steps(exponents) / wish(weights.astype(np.float64), kind, config)
    if kind == "vector":  # rounded up, so that the largest entry fits
        assert (ratio >= 1 - 1e-6).all() and (ratio <= HALF_NOTCH**2 * (1 + 1e-6)).all()
    else:
        assert (ratio >= 1 / HALF_NOTCH * (1 - 1e-6)).all()
        assert (ratio <= HALF_NOTCH * (1 + 1e-6)).all()
        assert np.abs(ratio - 1).max() < 0.045


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-25_000, 25_000, width=32), min_size=1, max_size=20).filter(
        lambda values: max(map(abs, values)) > 1e-4
    )
)
def test_a_vectors_largest_entry_is_representable(values: list[float]) -> None:
    weights = np.array(values, np.float32)
    codes, exponents = quantize("v", weights, "vector", QuantConfig())
    place = int(np.abs(weights).argmax())
    # A step is at most one notch (9.05 %) over the wish: the largest code is 116 to 127.
    assert 116 <= abs(int(codes[0, place])) <= 127
    step = float(steps(exponents)[0])
    restored = float(dequantize(codes, exponents)[0, place])
    assert abs(restored - float(weights[place])) <= step / 2 * (1 + 1e-6)


def test_a_vector_is_one_row() -> None:
    codes, exponents = quantize("v", gaussian(0, 1, 12)[0], "vector", QuantConfig())
    assert codes.shape == (1, 12) and exponents.shape == (1,)


@pytest.mark.parametrize("kind", ["table", "matrix"])
def test_a_larger_clip_makes_codes_smaller_and_never_larger(kind: StoredKind) -> None:
    weights = gaussian(2, 64, 64)
    sizes = []
    for clip in (4.0, 8.0, 16.0, 32.0, 64.0):
        config = QuantConfig(matrix_clip=clip, table_clip=clip)
        sizes.append(entropy_bits(quantize("w", weights, kind, config)[0]))
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)


def test_the_ratio_of_step_and_deviation_alone_sets_the_size() -> None:
    # log2(std / step) + 2.05 bits a weight, whatever `bits` is, while nothing is clipped.
    for bits, clip in ((8, 16.0), (7, 16.0 * 63 / 127), (6, 16.0 * 31 / 127)):
        config = QuantConfig(matrix_bits=bits, matrix_clip=clip)
        codes, _ = quantize("w", gaussian(3, 128, 256), "matrix", config)
        assert entropy_bits(codes) == pytest.approx(np.log2(127 / 16) + 2.05, abs=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_zeros_stays_zero_and_leaves_the_others_alone(kind: StoredKind) -> None:
    weights = gaussian(4, 3, 16)
    alone = quantize("w", weights, kind, QuantConfig())
    weights[1] = 0
    codes, exponents = quantize("w", weights, kind, QuantConfig())
    assert exponents[1] == 0 and not codes[1].any()
    assert (codes[[0, 2]] == alone[0][[0, 2]]).all()
    assert (exponents[[0, 2]] == alone[1][[0, 2]]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [1, 16])
@pytest.mark.parametrize("value", [0.37, -2.0, 1e-3])
def test_a_row_without_deviation_survives(kind: StoredKind, columns: int, value: float) -> None:
    weights = np.full((2, columns), value, np.float32)
    codes, exponents = quantize("w", weights, kind, QuantConfig())
    step = float(steps(exponents)[0])
    restored = dequantize(codes, exponents)
    assert (np.abs(restored - weights) <= step / 2 * (1 + 1e-6)).all()
    assert (np.abs(restored / value - 1) < 0.25).all()


@pytest.mark.parametrize("kind", KINDS)
def test_scales_beyond_the_grid_take_its_ends(kind: StoredKind) -> None:
    huge = quantize("w", gaussian(5, 2, 16, 1e20), kind, QuantConfig())
    assert (huge[1] == 255).all() and np.abs(huge[0]).max() == largest_code(kind, QuantConfig())
    assert np.isfinite(dequantize(*huge)).all()
    tiny = gaussian(6, 2, 16, 1e-7)
    codes, exponents = quantize("w", tiny, kind, QuantConfig())
    assert (exponents == 0).all()
    assert (np.abs(dequantize(codes, exponents) - tiny) <= SMALLEST / 2).all()
    subnormal = quantize("w", gaussian(6, 2, 16, 1e-40), kind, QuantConfig())
    assert not subnormal[0].any()


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
    assert (first[0] == again[0]).all() and (first[1] == again[1]).all()
    restored = dequantize(*first)
    assert (dequantize(*quantize("w", -weights, "vector", QuantConfig())) == -restored).all()


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
