"""The rounder: steps, error bounds, the order of columns, extremes, and what is refused."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantize_support import VOCAB, WIDTH, batches, small_model

from tokgolf.errors import ArtifactError, ConfigError
from tokgolf.model import LanguageModel
from tokgolf.quantize import (
    FARTHEST,
    LARGEST,
    STEPS,
    Quantized,
    dequantize,
    octaves,
    path,
    steps_of,
)
from tokgolf.quantize.rows import (
    METHODS,
    QuantConfig,
    Rounder,
    frequency_weights,
    lead_columns,
    lead_length,
    quarters,
    step_bits,
)
from tokgolf.quantize.trellis import DAMPING

every_method = pytest.mark.parametrize("method", METHODS)
NEAREST = QuantConfig(method="nearest")
UP = "trunk.blocks.0.mlp.up.weight"
SCALE = "trunk.blocks.1.mlp_scale"
TABLE = "head.table"


def rounder_of(
    model: LanguageModel, method: str = "trellis", rate_weight: float = 0.5, count: int = 3
) -> Rounder:
    config = QuantConfig(method=method, rate_weight=rate_weight)  # type: ignore[arg-type]
    return Rounder(model, config, batches(count) if count else ())


def stored(model: LanguageModel, name: str) -> torch.Tensor:
    return next(s.tensor for s in model.stored() if s.name == name)


# --- steps ---


def test_steps_are_bfloat16_times_quarters_of_an_octave() -> None:
    far = np.array([0, 4, -4, 1, -FARTHEST, FARTHEST], np.int8)
    found = steps_of(Quantized(np.zeros((6, 6), np.int16), 0x3F80, far, far))
    assert found[0, [0, 1, 2, 4]].tolist() == [1.0, 2.0, 0.5, 2.0**-10]
    np.testing.assert_allclose(found, np.exp2(np.add.outer(far / 4, far / 4)), rtol=2e-7)
    for bits in (STEPS[0], STEPS[-1]):  # no step leaves float32, nor does a weight
        ends = Quantized(np.full((6, 6), 511, np.int16), bits, far, far)
        assert np.isfinite(dequantize(ends, True)).all() and (steps_of(ends) > 2.0**-126).all()


def test_quarters_are_beside_the_geometric_mean_and_in_range() -> None:
    assert quarters(np.array([1.0, 2.0, 4.0])).tolist() == [-4, 0, 4]
    assert quarters(np.array([7.0, 7.0])).tolist() == [0, 0]
    assert quarters(np.array([1e-30, 1.0, 1e30])).tolist() == [-FARTHEST, 0, FARTHEST]


def test_the_bits_of_a_step_are_those_of_the_nearest() -> None:
    wishes = [1.0, 2.0, 0.5, 1 + 2**-9, 1 + 3 * 2**-9, 1e-40, 0.0, 1e300, 2.0**-95, 2.0**-96]
    nearest = [0x3F80, 0x4000, 0x3F00, 0x3F80, 0x3F81, *[STEPS[0]] * 2, STEPS[-1], *[STEPS[0]] * 2]
    assert [step_bits(wish) for wish in wishes] == nearest


@given(st.floats(2.0**-95, 2.0**96))
def test_a_step_is_within_half_a_percent_of_the_wish(wish: float) -> None:
    step = float(steps_of(Quantized(np.zeros((1, 1), np.int16), step_bits(wish), None))[0, 0])
    assert abs(step / wish - 1) <= 2**-8


def test_dequantize_is_codes_times_the_rows_steps() -> None:
    codes = np.array([[1, -2, 0], [127, -127, 3]], np.int16)
    got = dequantize(Quantized(codes, 0x3F80, np.array([0, -4], np.int8)), False)
    assert got.dtype == np.float32
    assert got.tolist() == [[1.0, -2.0, 0.0], [63.5, -63.5, 1.5]]
    got = dequantize(Quantized(codes, 0x3F00, None), False)
    assert got.tolist() == [[0.5, -1.0, 0.0], [63.5, -63.5, 1.5]]


def test_frequent_tokens_take_finer_steps_and_the_mean_stays() -> None:
    weights = frequency_weights(np.array([0, 3, 10, 5000]))
    assert (np.diff(weights) < 0).all()
    np.testing.assert_allclose(np.log(weights).mean(), 0, atol=1e-12)


def test_only_tables_of_one_row_a_token_have_steps_by_frequency() -> None:
    model = small_model(add={"bigram-hash": {"buckets": 32, "dim": 4}})
    rounder = rounder_of(model)
    counts = torch.bincount(torch.cat([b.flatten() for b in batches()]), minlength=VOCAB).numpy()
    expected = np.rint(4 * np.log2(frequency_weights(counts)))
    assert np.array_equal(rounder.rows_of(TABLE), expected)  # type: ignore[arg-type]
    assert len(set(expected.tolist())) > 3
    buckets = rounder.rows_of("head.addons.bigram-hash.table")
    assert buckets is not None and buckets.shape == (32,) and not buckets.any()
    plain = rounder_of(model, "nearest", count=0)
    for found in (plain.rows_of(TABLE), plain.rows_of(UP), plain.columns_of(UP)):
        assert found is not None and not found.any()
    assert rounder.rows_of(SCALE) is None and rounder.columns_of(SCALE) is None


def test_columns_that_cost_more_take_finer_steps_and_the_rounding_is_in_these_steps() -> None:
    rounder = rounder_of(small_model(10))
    moments = np.geomspace(1e-2, 1e2, WIDTH)
    rounder.orders[UP] = np.arange(WIDTH)
    rounder.look(UP, np.diag(moments))
    columns = rounder.columns_of(UP)
    assert columns is not None
    expected = -4 * np.log2(moments + DAMPING * moments.mean()) / 2
    np.testing.assert_allclose(columns, expected - expected.mean(), atol=0.51)
    # In units of its step every column now costs alike, but for what quarters round away.
    assert np.ptp(np.log2(rounder.spreads[UP].diagonal() / octaves(columns))) < 0.251


def test_a_column_beyond_the_largest_integer_alone_has_a_coarser_step() -> None:
    model = small_model(10)
    stored(model, UP)[:, 3] *= 100
    rounder = rounder_of(model)
    step, before = rounder.finest(UP), rounder.weights(UP).copy()
    usual, at_step = rounder.columns_of(UP), rounder.columns_of(UP, step)
    assert usual is not None and at_step is not None
    assert at_step[3] > usual[3] and (at_step == usual).sum() >= WIDTH // 2
    rounder.restore(UP, rounder.quantize(UP, step))
    error = np.abs(rounder.weights(UP) - before)[:, 3]
    assert error.max() < 4 * np.abs(before[:, 3]).max() / LARGEST


def test_rows_that_nothing_depends_on_take_coarser_steps() -> None:
    model = small_model(11)
    out = "trunk.blocks.0.mlp.out.weight"
    stored(model, out)[:, 3] = 0.0  # what unit 3 of `up` says is not heard
    stored(model, out)[:, 5] *= 30.0
    rows = rounder_of(model).rows_of(UP)
    assert rows is not None
    assert rows[3] == rows.max() > np.sort(rows)[-2] and rows[5] == rows.min()


# --- the order of columns ---


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.data())
def test_a_path_visits_every_column_once_and_the_lead_first(
    columns: int, data: st.DataObject
) -> None:
    lead = data.draw(st.lists(st.integers(0, columns - 1), unique=True))
    found = path(columns, columns, lead).tolist()
    assert found[: len(lead)] == lead and sorted(found) == list(range(columns))
    assert found[len(lead) :] == sorted(found[len(lead) :])


def test_the_lead_has_those_that_matter_least_and_then_those_that_matter_most() -> None:
    moments = np.random.default_rng(0).permutation(256) + 1.0
    order = np.argsort(-moments)
    hessians = {"a": np.diag(moments), "b": np.diag(moments * 1e-9), "other": np.eye(7)}
    lead = lead_columns(hessians, 256)
    assert lead == [*order[253:], *order[:13]] and len(lead) == lead_length(256) == 16
    assert [lead_length(width) for width in (1, 7, 16, 64, 128, 4096)] == [1, 1, 2, 8, 16, 16]
    for width in (1, 2, 8, 16, 40):
        found = lead_columns({"a": np.eye(width)}, width)
        assert len(set(found)) == len(found) == lead_length(width)
    assert len(lead_columns({}, 16)) == 2


# --- errors ---


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), log2=st.integers(-70, 70), step=st.floats(0.02, 3))
def test_the_nearest_integers_are_within_half_a_step(seed: int, log2: int, step: float) -> None:
    model = small_model(seed % 1000)
    for parameter in model.parameters():
        parameter.mul_(2.0**log2)
    rounder = Rounder(model, NEAREST, batches())
    for name in (UP, SCALE, TABLE):
        wish = max(step * rounder.spread(name), rounder.finest(name))
        quantized, before = rounder.quantize(name, wish), rounder.weights(name)
        assert np.abs(quantized.codes.astype(int)).max() <= LARGEST
        error = np.abs(dequantize(quantized, False) - before)
        assert (error <= steps_of(quantized) / 2 * (1 + 1e-6)).all()


@every_method
@pytest.mark.parametrize("log2", [-100, -60, -20, 0, 20, 60])
def test_at_the_finest_step_nothing_is_clipped_at_any_scale(log2: int, method: str) -> None:
    model = small_model(1)
    rounder = rounder_of(model, method)
    for name in (UP, SCALE, TABLE):  # after the Hessians: only the scale of the weights changes
        stored(model, name).mul_(2.0**log2)
        quantized = rounder.quantize(name, rounder.finest(name))
        assert np.abs(quantized.codes.astype(int)).max() <= LARGEST
        trellis = method == "trellis" and name != SCALE
        before, steps = rounder.weights(name), steps_of(quantized) * (1 + trellis)
        rounder.restore(name, quantized)
        error = np.abs(rounder.weights(name) - before)
        if log2 > -80:
            assert error.max() < 0.05 * np.abs(before).max()
        assert (error < 8 * steps).all()  # GPTQ moves a weight by a few steps


@every_method
@pytest.mark.parametrize("value", [0.0, 0.37, -2.0, 1e-30])
def test_constant_tensors_come_back(value: float, method: str) -> None:
    model = small_model(2)
    rounder = rounder_of(model, method)
    for name in (UP, SCALE, TABLE):
        stored(model, name).fill_(value)
        assert rounder.spread(name) >= 0
        quantized = rounder.quantize(name, max(0.05 * rounder.spread(name), rounder.finest(name)))
        rounder.restore(name, quantized)
        assert np.isfinite(rounder.weights(name)).all()
        error = np.abs(rounder.weights(name) - value)
        assert error.max() <= (0.5 if abs(value) > 1e-20 else 3) * max(abs(value), 2.0**-89)
        if value == 0:
            assert not quantized.codes.any()


@every_method
def test_finer_steps_leave_less_error_and_the_error_is_that_of_the_step(method: str) -> None:
    model = small_model(3)
    rounder = rounder_of(model, method, rate_weight=0.0)
    for name in (UP, TABLE):
        before, errors = rounder.weights(name), []
        for relative in (0.5, 0.25, 0.125, 0.0625):
            quantized = rounder.quantize(name, relative * rounder.spread(name))
            rounder.restore(name, quantized)
            errors.append(float(np.square(rounder.weights(name) - before).mean()))
            stored(model, name).copy_(torch.from_numpy(before).view(stored(model, name).shape))
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < errors[0] / 8  # 64 if every weight had the same step, and none moved


@every_method
def test_a_tensor_is_the_same_in_every_run_and_in_any_order(method: str) -> None:
    found = []
    for names in ((UP, TABLE, SCALE), (SCALE, UP, TABLE)):
        rounder = rounder_of(small_model(4), method)
        found.append({n: rounder.quantize(n, 0.4 * rounder.spread(n)) for n in names})
    for name, quantized in found[0].items():
        again = found[1][name]
        assert np.array_equal(quantized.codes, again.codes) and quantized.step == again.step
        for axis in (2, 3):
            assert np.array_equal(quantized[axis], again[axis])  # type: ignore[arg-type]


def test_a_trellis_visits_the_streams_columns_in_the_order_of_the_lead() -> None:
    model = small_model(5)
    rounder = rounder_of(model)
    assert len(rounder.lead) == lead_length(WIDTH) == 2
    for name in (UP, TABLE):  # as wide as the stream: columns are moved, and back
        before = rounder.weights(name)
        quantized = rounder.quantize(name, rounder.finest(name))
        moved = dequantize(quantized, True)
        order = path(WIDTH, WIDTH, rounder.lead)
        assert np.abs(moved - before[:, order]).max() < 0.05 * np.abs(before).max()
        rounder.restore(name, quantized)
        assert (rounder.weights(name)[:, order] == moved).all()
    wide = "trunk.blocks.0.mlp.out.weight"  # 40 columns: in order
    quantized = rounder.quantize(wide, rounder.finest(wide))
    rounder.restore(wide, quantized)
    assert (rounder.weights(wide) == dequantize(quantized, True)).all()


def test_vectors_are_scalar_and_one_row_with_one_step() -> None:
    rounder = rounder_of(small_model(6))
    found = rounder.quantize(SCALE, 0.3 * rounder.spread(SCALE))
    step = float(steps_of(found)[0, 0])
    assert found.codes.shape == (1, WIDTH) and found.rows is None
    assert (found.codes == np.rint(rounder.weights(SCALE) / step)).all()
    mix = "trunk.blocks.0.residual_mix"
    assert rounder.quantize(mix, rounder.finest(mix)).codes.shape == (2, WIDTH)


def test_the_step_is_the_distance_between_choices_so_a_trellis_grid_is_half() -> None:
    model = small_model(7)
    steps = [rounder_of(model, method).quantize(UP, 0.25).step for method in METHODS]
    assert steps == [step_bits(0.125), *[step_bits(0.25)] * 2]
    assert rounder_of(model).quantize(SCALE, 0.25).step == step_bits(0.25)


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_gptq_and_the_trellis_keep_the_layers_outputs(scale: float) -> None:
    model = small_model(8)
    losses = {}
    for method in METHODS:
        rounder = rounder_of(model, method, rate_weight=0.0)
        stored(model, UP).mul_(scale)
        known = rounder_of(model, "gptq")
        hessian, importance = known.hessians[UP], known.importance[UP]
        before = rounder.weights(UP)
        # At one step: what rows and columns multiply it by has the geometric mean 1.
        rounder.restore(UP, rounder.quantize(UP, 0.5 * float(before.std())))
        error = rounder.weights(UP) - before
        losses[method] = float(np.einsum("r,ri,ij,rj->", importance, error, hessian, error))
        stored(model, UP).copy_(torch.from_numpy(before / scale))
    assert losses["gptq"] < losses["nearest"] and losses["trellis"] < losses["nearest"]


# --- what is refused ---


@every_method
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(bad: float, method: str) -> None:
    for name in (UP, SCALE, TABLE):
        model = small_model(9)
        tensor = stored(model, name).view(-1)
        tensor[3] = tensor[9] = bad
        with pytest.raises(ArtifactError, match=f"^{name} has 2 of {tensor.numel():,} weights"):
            rounder_of(model, method)


@pytest.mark.parametrize("method", ["trellis", "gptq"])
def test_nothing_to_calibrate_on_is_refused_with_a_way_out(method: str) -> None:
    with pytest.raises(ArtifactError, match=f"{method} needs calibration tokens .* use --method"):
        rounder_of(small_model(), method, count=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "nearst"}, "method is 'nearst'; it must be one of trellis, gptq, nearest"),
        ({"bits": 0.0}, "bits is 0.0; it must be greater than 0"),
        ({"bits": -1.0}, "bits is -1.0"),
        ({"bits": math.nan}, "bits is nan"),
        ({"bits": 8.5}, "bits is 8.5; at most 8.0 bits a weight"),
        ({"rate_weight": -0.1}, "rate_weight is -0.1; it must be 0 to 2"),
        ({"rate_weight": math.nan}, "rate_weight is nan; it must be 0 to 2"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QuantConfig(**options)  # type: ignore[arg-type]
