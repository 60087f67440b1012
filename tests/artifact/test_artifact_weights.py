"""The weight sections: what is written comes back exactly, and nothing else is read."""

import lzma
import math
from collections.abc import Iterator
from hashlib import sha256

import brotli
import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokgolf.artifact import rans, weights
from tokgolf.artifact.contexts import choose_plan, factors, lists_of, packed_lists
from tokgolf.artifact.encode import encode, pack_codes
from tokgolf.artifact.sizes import stream_bits
from tokgolf.artifact.tables import pack_tables
from tokgolf.config import TrunkConfig
from tokgolf.errors import ArtifactError
from tokgolf.heads import HEADS, HeadShape, Stored, head_config
from tokgolf.heads.base import StoredKind
from tokgolf.model import LanguageModel, build_model
from tokgolf.quantize import (
    FARTHEST,
    LARGEST,
    NEXT_STATE,
    STEPS,
    Quantized,
    dequantize,
    path,
    steps_of,
)
from tokgolf.quantize.rows import step_bits

TRUNK = TrunkConfig(layers=2, d_model=16, heads=2, kv_heads=1, mlp_hidden=24, sequence_length=16)
TOKENS = *(bytes([byte]) for byte in range(256)), b"", *(bytes([97, b]) for b in range(43))
SHAPE = HeadShape(vocab_size=300, d_model=16, bos_id=256, token_bytes=TOKENS)
OPTIONS: dict[str, dict[str, object]] = {
    "factorized": {"name": "factorized", "rank": 6, "shared": False},
    "vq": {"name": "vq", "codes": 70, "residual_rank": 3},
    "bigram-hash": {"name": "tied", "add": {"bigram-hash": {"buckets": 64, "dim": 4}}},
}
CASES = {name: OPTIONS.get(name, {"name": name}) for name in HEADS} | {
    "vq-published": {"name": "vq"},
    "vq-random": {"name": "vq", "assignment": "random"},
    "rank-one": {"name": "factorized", "rank": 1},
    "bigram-hash-on-vq": {"name": "vq", "add": {"bigram-hash": {"buckets": 9, "dim": 1}}},
}
every_case = pytest.mark.parametrize("case", CASES)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def blank(case: str, counts: torch.Tensor | None = None) -> LanguageModel:
    return build_model(TRUNK, head_config(CASES[case]), SHAPE, counts)


def randomised(case: str) -> LanguageModel:
    """A model whose weights have all sorts of scales, and whose codes follow token counts."""
    model = blank(case, torch.randint(0, 1000, (SHAPE.vocab_size,)))
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.normal_(0, 10.0 ** (index % 5 - 3))
    return model


def as_quantized(stored: Stored) -> Quantized:
    """Rounded to the nearest; the rows of a table at steps of their own."""
    values = stored.tensor.detach().double().numpy().reshape(-1, stored.tensor.shape[-1])
    power = np.square(values)
    step = step_bits(0.3 * math.sqrt(power.mean()))
    rows = None
    if stored.kind == "table":
        octaves = np.log2(power.mean(axis=1).clip(1e-60) / power.mean().clip(1e-60)) / 2
        rows = np.rint(4 * octaves).clip(-FARTHEST, FARTHEST).astype(np.int8)
    empty = Quantized(np.zeros(values.shape, np.int16), step, rows)
    codes = np.rint(values / steps_of(empty)).clip(-LARGEST, LARGEST)
    return empty._replace(codes=codes.astype(np.int16))


def decode(stored: list[Stored], sections: dict[str, bytes], trellis: bool) -> None:
    """With the columns of all tensors in order."""
    weights.decode(stored, sections, trellis, width=0, lead=[])


both = pytest.mark.parametrize("trellis", [False, True])


@both
@every_case
def test_a_model_comes_back_as_its_quantized_weights_exactly(case: str, trellis: bool) -> None:
    model, restored = randomised(case), blank(case)
    sections = encode(model.stored(), as_quantized, trellis)
    decode(restored.stored(), sections, trellis)
    for (name, tensor, kind), (_, found, _) in zip(model.stored(), restored.stored(), strict=True):
        if kind == "codes":
            assert tensor.any() and torch.equal(found, tensor), name
        else:
            stored = Stored(name, tensor, kind)
            expected = dequantize(as_quantized(stored), trellis and kind != "vector")
            assert expected.any()
            assert (found.detach().numpy().reshape(expected.shape) == expected).all()
    assert encode(model.stored(), as_quantized, trellis) == sections


@both
@every_case
def test_every_section_is_needed_and_none_may_be_longer_or_shorter(
    case: str, trellis: bool
) -> None:
    sections = encode(randomised(case).stored(), as_quantized, trellis)
    target = blank(case).stored()
    for name, data in sections.items():
        changes = [data + b"\0"] + ([data[:-1], b""] if data else [])
        for changed in changes:
            with pytest.raises(ArtifactError):
                decode(target, {**sections, name: changed}, trellis)


@both
@pytest.mark.parametrize("lead", [[], [15], [3, 0, 7]])
def test_columns_of_the_streams_width_come_back_to_their_places(
    lead: list[int], trellis: bool
) -> None:
    model, plain, led = randomised("factorized"), blank("factorized"), blank("factorized")
    sections = encode(model.stored(), as_quantized, trellis)
    decode(plain.stored(), sections, trellis)
    weights.decode(led.stored(), sections, trellis, TRUNK.d_model, lead)
    moved = path(TRUNK.d_model, TRUNK.d_model, lead)
    assert sorted(moved) == list(range(16)) and list(moved[: len(lead)]) == lead
    for (name, before, kind), (_, after, _) in zip(plain.stored(), led.stored(), strict=True):
        dense = kind != "vector" and before.shape[-1] == TRUNK.d_model
        assert torch.equal(after[:, moved] if dense else after, before), name


def test_frequency_codes_are_stored_and_random_ones_are_not() -> None:
    packed = {
        case: encode(randomised(case).stored(), as_quantized, False)["packed"] for case in CASES
    }
    assert {case for case, data in packed.items() if data} == {
        "vq", "vq-published", "bigram-hash-on-vq", "product", "adaptive",
    }  # fmt: skip
    # 300 tokens, 70 or 75 codes: 7 bits each, and a byte that says so.
    assert len(packed["vq"]) == len(packed["vq-published"]) == 1 + math.ceil(300 * 7 / 8)


def one(values: NDArray[np.float32], kind: str = "matrix") -> Stored:
    return Stored("w", torch.from_numpy(values), kind)  # type: ignore[arg-type]


def round_trip(stored: Stored) -> NDArray[np.float32]:
    sections = encode([stored], as_quantized, False)
    target = torch.full_like(stored.tensor, math.nan)
    decode([stored._replace(tensor=target)], sections, False)
    return np.asarray(target.numpy())


@pytest.mark.parametrize("kind", ["table", "matrix", "vector"])
def test_rows_of_zeros_and_of_one_value_come_back(kind: str) -> None:
    assert not round_trip(one(np.zeros((4, 8), np.float32), kind)).any()
    constant = round_trip(one(np.full((4, 8), 0.75, np.float32), kind))
    assert (constant == constant[0, 0]).all()
    assert constant[0, 0] == pytest.approx(0.75, rel=0.25)


@pytest.mark.parametrize("kind", ["table", "matrix"])
@pytest.mark.parametrize("log2", [-120, -60, -25, -10, 0, 10, 30, 100])
def test_huge_and_small_scales_come_back_as_quantized(log2: int, kind: StoredKind) -> None:
    values = np.random.default_rng(0).standard_normal((5, 12)).astype(np.float32)
    values *= np.exp2(np.array([log2, 0, log2, 0, 0], np.float32))[:, None]
    expected = dequantize(as_quantized(one(values, kind)), False)
    got = round_trip(one(values, kind))
    assert np.isfinite(got).all() and (got == expected).all() and got.any()


# --- any integers ---


@st.composite
def models(draw: st.DrawFn) -> tuple[list[Stored], dict[str, Quantized]]:
    """Tensors of odd shapes with integers of odd distributions."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    stored, numbers = [], dict[str, Quantized]()
    kinds = st.sampled_from(["table", "matrix", "vector"])
    for index, kind in enumerate(draw(st.lists(kinds, min_size=1, max_size=5))):
        shape = draw(st.tuples(st.sampled_from([1, 2, 7, 40]), st.sampled_from([1, 2, 33])))
        largest = draw(st.sampled_from([0, 1, 3, LARGEST]))
        codes = rng.integers(-largest, largest + 1, shape).astype(np.int16)
        if draw(st.booleans()):  # rows and columns of all spreads, and one value only in others
            codes >>= rng.integers(0, 10, (shape[0], 1), np.int16)
            codes >>= rng.integers(0, 10, (1, shape[1]), np.int16)
        some = kind != "vector" and draw(st.booleans())  # with factors, or with none
        far = [rng.integers(-FARTHEST, FARTHEST + 1, n).astype(np.int8) for n in shape]
        rows, columns = far if some else (None, None)
        before = list(numbers.values())[-1:]
        if some and before and before[0].columns is not None and draw(st.booleans()):
            columns = np.resize(before[0].columns, shape[1])  # as those of one that reads the same
        step = draw(st.sampled_from([STEPS[0], 0x3F80, STEPS[-1]]))
        stored.append(Stored(f"t{index}", torch.empty(shape), kind))  # type: ignore[arg-type]
        numbers[f"t{index}"] = Quantized(codes, step, rows, columns)
    return stored, numbers


def slow_parities(codes: NDArray[np.int16]) -> list[list[int]]:
    parities = []
    for row in codes.tolist():
        state, of_row = 0, []
        for k in row:
            of_row.append(state & 1)
            w1, w2, w3, b = state & 1, state >> 1 & 1, state >> 2 & 1, k & 1
            state = (w2 ^ w1) | (w3 ^ b) << 1 | w1 << 2
        parities.append(of_row)
    return parities


class SlowStream:
    """The weights section, one symbol at a time in Python integers."""

    def __init__(self, data: bytes, lanes: int, tables: list[rans.Table]) -> None:
        self.states = [int.from_bytes(data[4 * i : 4 * i + 4], "little") for i in range(lanes)]
        self.data, self.at, self.tables = data, 4 * lanes, tables

    def symbol(self, lane: int, context: int) -> int:
        table, x = self.tables[context], self.states[lane]
        place, rest = 0, x % rans.TOTAL
        while rest >= table.frequencies[place]:
            rest -= int(table.frequencies[place])
            place += 1
        x = int(table.frequencies[place]) * (x // rans.TOTAL) + rest
        if x < 1 << 16:
            x = x << 16 | int.from_bytes(self.data[self.at : self.at + 2], "little")
            self.at += 2
        self.states[lane] = x
        return table.first + place


def slow_read(
    stored: list[Stored], sections: dict[str, bytes], trellis: bool
) -> tuple[dict[str, list[list[int]]], dict[str, list[list[int]]]]:
    """The integers of all tensors, and the factors of the rows and columns of those that have any,
    read as the formats page says."""
    dense = [s for s in stored if s.kind in ("table", "matrix")]
    dense.sort(key=lambda s: -s.tensor.shape[1])
    vectors = [s for s in stored if s.kind == "vector"]
    contexts, unit = sections["tables"][:2]
    bases = np.frombuffer(sections["steps"][2 * len(dense + vectors) :], np.int8).tolist()
    abouts = sections["steps"][2 * len(dense + vectors) + len(dense) :]
    weight_tables = max((about & 31 for about in abouts), default=-1) + 1
    vector_table = weight_tables + contexts * (1 + trellis)
    tables = rans.unpack_tables(sections["tables"][2:], vector_table + bool(vectors))
    axes = [(axis, s) for _ in range(2 if unit else 1) for axis in (0, 1) for s in dense]
    assert len(axes) == len(abouts)
    count = sum(s.tensor.shape[axis] for axis, s in axes)
    lanes = rans.lanes_of(count + sum(s.tensor.numel() for s in [*dense, *vectors]))
    stream = SlowStream(sections["weights"], lanes, tables)
    turn = 0
    lists: list[list[int]] = []
    for (axis, s), about in zip(axes, abouts, strict=True):
        numbers = []
        for i in range(s.tensor.shape[axis]):
            number = stream.symbol(turn % lanes, about & 31)
            number += lists[len(lists) - (about >> 5)][i] if about >> 5 else 0
            numbers.append(number)
            turn += 1
        lists.append(numbers)
    d = len(dense)
    found = {s.name: [lists[i], lists[d + i]] for i, s in enumerate(dense)}
    classes = [
        [(lists[2 * d + i][k] if unit else 0) - math.floor(e * unit / 4) for k, e in enumerate(es)]
        for i, es in enumerate(lists[: 2 * d])
    ]
    row_class, column_class = classes[:d], classes[d:]
    codes: dict[str, list[list[int]]] = {s.name: [[] for _ in s.tensor] for s in dense}
    for c in range(max((s.tensor.shape[1] for s in dense), default=0)):
        turn = 0
        for t, s in enumerate(dense):
            if s.tensor.shape[1] > c:
                for r, row in enumerate(codes[s.name]):
                    context = bases[t] + row_class[t][r] + column_class[t][c]
                    context = max(0, min(context, contexts - 1))
                    if trellis:
                        before = np.array([[*row, 0]], np.int16)
                        context = 2 * context + slow_parities(before)[0][-1]
                    row.append(stream.symbol(turn % lanes, weight_tables + context))
                    turn += 1
    turn = 0
    for s in vectors:
        codes[s.name] = [[0] * s.tensor.shape[1] for _ in s.tensor]
        for row in codes[s.name]:
            for c in range(len(row)):
                row[c] = stream.symbol(turn % lanes, vector_table)
                turn += 1
    assert stream.at == len(stream.data) and set(stream.states) == {1 << 16}
    return codes, found


@both
@settings(max_examples=25, deadline=None)
@given(models())
def test_any_integers_and_steps_come_back_and_the_slow_twin_reads_the_same(
    trellis: bool, model: tuple[list[Stored], dict[str, Quantized]]
) -> None:
    stored, numbers = model
    sections = encode(stored, lambda tensor: numbers[tensor.name], trellis)
    found = weights.read(stored, sections, trellis).quantized
    assert found.keys() == numbers.keys()
    slow, slow_factors = slow_read(stored, sections, trellis)
    for name, _, kind in stored:
        codes, step, *_ = numbers[name]
        assert np.array_equal(found[name].codes, codes) and found[name].step == step
        assert slow[name] == codes.tolist()
        assert (found[name].rows is None) == (found[name].columns is None) == (kind == "vector")
        for axis in (0, 1) if kind != "vector" else ():
            expected = factors(numbers[name], axis).tolist()
            assert factors(found[name], axis).tolist() == expected == slow_factors[name][axis]


@both
@settings(max_examples=40, deadline=None)
@given(models())
def test_every_weight_is_its_integer_times_its_rows_step(
    trellis: bool, model: tuple[list[Stored], dict[str, Quantized]]
) -> None:
    stored, numbers = model
    decode(stored, encode(stored, lambda s: numbers[s.name], trellis), trellis)
    for name, tensor, kind in stored:
        codes, bits, rows, columns = numbers[name]
        integers = codes.astype(np.float64)
        if trellis and kind != "vector":
            integers = 2 * integers + slow_parities(codes)
        step = np.float64(np.array([bits << 16], np.uint32).view(np.float32)[0])
        factor = np.exp2((0 if rows is None else rows[:, None]) / 4)
        factor = factor * np.exp2((0 if columns is None else columns) / 4)
        got = tensor.numpy().astype(np.float64)
        assert np.isfinite(got).all() and ((got == 0) == (integers == 0)).all()
        np.testing.assert_allclose(got, integers * step * factor, rtol=4e-7)


def test_a_trellis_of_these_states_has_these_weights() -> None:
    # States 0, 2, 1, 7: the integers 2, 0, 3, 3.
    quantized = Quantized(np.array([[1, 0, 1, 1]], np.int16), 0x3F00, None)
    assert dequantize(quantized, True).tolist() == [[1.0, 0.0, 1.5, 1.5]]
    assert dequantize(quantized, False).tolist() == [[0.5, 0.0, 0.5, 0.5]]
    # Every state is reached from two, one of each parity of the integer before.
    assert sorted(NEXT_STATE.tolist()) == [s for s in range(8) for _ in (0, 1)]


# --- lists ---

short_lists = st.lists(st.integers(-90, 90), min_size=1, max_size=30)


@settings(max_examples=50, deadline=None)
@given(st.lists(short_lists, max_size=12), st.data())
def test_lists_come_back_from_their_differences_and_share_tables(
    drawn: list[list[int]], data: st.DataObject
) -> None:
    lists = [np.array(part) for part in drawn]
    for place in data.draw(st.lists(st.integers(0, 20), max_size=12)) if lists else []:
        lists.append(lists[place % len(lists)] + 1)
    found = packed_lists(lists)
    back: list[NDArray[np.int64]] = []
    counted = np.zeros_like(found.counts)
    for coded, about in zip(found.coded, found.about, strict=True):
        np.add.at(counted[about & 31], coded + 512, 1)
        back.append(coded + back[-(about >> 5)] if about >> 5 else coded)
    assert len(back) == len(lists)
    assert all(np.array_equal(a, b) for a, b in zip(back, lists, strict=True))
    assert np.array_equal(counted, found.counts) and counted.any(axis=1).all()


def test_matrices_that_read_the_same_store_the_steps_of_their_columns_once() -> None:
    rng = np.random.default_rng(0)
    columns = np.rint(3 * rng.standard_normal((3, 256))).astype(np.int8)

    def size(parts: NDArray[np.int8]) -> int:
        names, found = matrices(0.0, [(64, 256)] * 3)
        with_steps = [q._replace(columns=c) for q, c in zip(found, parts, strict=True)]
        return size_of(names, with_steps, False)

    each = entropy(columns[0].astype(np.int16))
    assert size(columns[[0, 0, 0]]) < size(columns) - 1.9 * each


def test_steps_that_follow_the_weights_leave_spreads_of_no_bytes() -> None:
    # Rows of the same weights at finer and coarser steps: the classes are the steps again.
    rng = np.random.default_rng(0)
    rows = np.rint(4 * rng.standard_normal(1024)).astype(np.int8)
    z = rng.standard_normal((1024, 256)) * 6 / np.exp2(rows / 4)[:, None]
    codes = np.rint(z).clip(-LARGEST, LARGEST).astype(np.int16)
    found = Quantized(codes, 0x3F80, rows)
    plan = choose_plan([found], False)
    _, lists = lists_of([found], plan)
    assert plan.unit and entropy(plan.rows[0].astype(np.int16)) > 250
    assert entropy(lists.coded[2].astype(np.int16)) < 25


def test_a_list_that_is_to_be_added_to_one_of_another_length_is_refused() -> None:
    stored, found = matrices(0.5, [(7, 6), (4, 5)])
    sections = encode(stored, lambda s: found[int(s.name)], False)
    first = len(sections["steps"]) - (4 if sections["tables"][1] else 2) * 2
    for place, distance in ((0, 1), (1, 1), (2, 3)):
        damaged = bytearray(sections["steps"])
        damaged[first + place] |= distance << 5
        with pytest.raises(ArtifactError, match=f"list {place} is to be added to one of another"):
            decode(stored, {**sections, "steps": bytes(damaged)}, False)


# --- how many bytes ---


def gaussian(rows: int, columns: int, scale: float, seed: int, spread: float) -> Quantized:
    rng = np.random.default_rng(seed)
    heights = np.exp2(rng.standard_normal((rows, 1)) * spread)
    widths = np.exp2(rng.standard_normal((1, columns)) * spread)
    z = rng.standard_normal((rows, columns)) * heights * widths * scale
    return Quantized(np.rint(z).clip(-LARGEST, LARGEST).astype(np.int16), 0x3F80, None)


def matrices(spread: float, sizes: list[tuple[int, int]]) -> tuple[list[Stored], list[Quantized]]:
    found = [gaussian(*size, 3.0, i, spread) for i, size in enumerate(sizes)]
    names = [Stored(str(i), torch.empty(size), "matrix") for i, size in enumerate(sizes)]
    return names, found


def entropy(codes: NDArray[np.int16]) -> float:
    _, n = np.unique(codes, return_counts=True)
    return float(-(n * np.log2(n / codes.size)).sum()) / 8


def size_of(stored: list[Stored], found: list[Quantized], trellis: bool) -> int:
    sections = encode(stored, lambda s: found[int(s.name)], trellis)
    return sum(len(data) for data in sections.values())


@both
def test_rows_and_columns_of_many_spreads_cost_less_than_one_distribution(trellis: bool) -> None:
    sizes = [(256, 256), (768, 256), (256, 768)]
    stored, found = matrices(0.6, sizes)
    together = entropy(np.concatenate([q.codes.ravel() for q in found]))
    assert size_of(stored, found, trellis) < 0.95 * together
    plan = choose_plan(found, trellis)
    assert plan.unit and plan.contexts > 8


def test_equal_spreads_cost_their_entropy_and_take_one_context() -> None:
    stored, found = matrices(0.0, [(256, 256), (512, 256)])
    together = entropy(np.concatenate([q.codes.ravel() for q in found]))
    assert size_of(stored, found, False) <= 1.002 * together + 60
    plan = choose_plan(found, False)
    assert plan.contexts == 1 and not plan.unit


def test_a_small_model_takes_fewer_contexts_than_a_large_one() -> None:
    contexts = [
        choose_plan([gaussian(rows, 256, 3.0, 0, 0.4)], False).contexts for rows in (8, 64, 2048)
    ]
    assert contexts == sorted(contexts) and contexts[0] < contexts[-1]


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_no_general_compressor_is_as_small(scale: float) -> None:
    sizes = [(256, 384), (512, 256), (256, 512)]
    names, _ = matrices(0.0, sizes)
    found = [gaussian(n, m, scale, i, 0.4) for i, (n, m) in enumerate(sizes)]
    ours = size_of(names, found, False)
    natural = b"".join(q.codes.astype(np.int8).tobytes() for q in found)
    transposed = b"".join(q.codes.T.astype(np.int8).tobytes() for q in found)
    assert ours <= len(brotli.compress(transposed))
    others = brotli.compress, lzma.compress, zstandard.ZstdCompressor(level=22).compress
    assert ours <= 0.98 * min(len(pack(natural)) for pack in others)


@both
def test_sections_are_golden(trellis: bool) -> None:
    shapes = {"a": (48, 70), "b": (64, 96), "v": (1, 40), "c": (1, 3)}
    kinds = ["table", "matrix", "vector", "matrix"]
    stored, numbers = list[Stored](), dict[str, Quantized]()
    for (name, shape), kind in zip(shapes.items(), kinds, strict=True):
        # Sums of integers that look random: neither a float nor a library decides what they are.
        n = np.arange(3 * math.prod(shape)) + 1000 * len(stored)
        codes = (n * 2654435761 % 2**32 * 7 // 2**32 - 3).reshape(3, *shape).sum(axis=0)
        codes = codes.astype(np.int16)
        codes[::3] >>= 2
        rows = (np.arange(shape[0]) % 7).astype(np.int8) if kind == "table" else None
        columns = (np.arange(shape[1]) % 5 - 2).astype(np.int8) if kind == "matrix" else None
        numbers[name] = Quantized(codes, 0x3C00 + len(stored), rows, columns)
        stored.append(Stored(name, torch.empty(shape), kind))  # type: ignore[arg-type]
    sections = encode(stored, lambda s: numbers[s.name], trellis)
    digest = sha256(b"".join(sections.values())).hexdigest()[:16]
    sizes = [len(data) for data in sections.values()]
    assert (sizes, digest) == GOLDEN[trellis]


GOLDEN: dict[bool, tuple[list[int], str]] = {
    False: ([145, 23, 3020, 0], "2f4148461be8330b"),
    True: ([139, 23, 3194, 0], "652fe6f96ca69e76"),
}


def test_integers_and_steps_that_the_format_cannot_hold_are_refused_by_name() -> None:
    good = Quantized(np.zeros((2, 3), np.int16), 0x3F80, None)
    stored = [Stored("w", torch.empty(2, 3), "matrix")]
    encode(stored, lambda _: good, False)
    for bad in (
        good._replace(codes=np.full((2, 3), LARGEST + 1, np.int16)),
        good._replace(codes=np.full((2, 3), -LARGEST - 1, np.int16)),
        good._replace(codes=np.zeros((3, 2), np.int16)),
        good._replace(step=STEPS[0] - 1),
        good._replace(step=STEPS[-1] + 1),
        good._replace(rows=np.zeros(3, np.int8)),
        good._replace(columns=np.zeros(2, np.int8)),
        good._replace(rows=np.array([0, FARTHEST + 1], np.int8)),
        good._replace(columns=np.array([0, 0, -FARTHEST - 1], np.int8)),
        good._replace(columns=np.array([0, 0, -128], np.int8)),
    ):
        with pytest.raises(ArtifactError, match="^w "):
            encode(stored, lambda _, bad=bad: bad, False)  # type: ignore[misc]
    vector = [stored[0]._replace(kind="vector")]
    with pytest.raises(ArtifactError, match="^w is a vector"):
        encode(vector, lambda _: good._replace(rows=np.zeros(2, np.int8)), False)


# --- what is refused ---


@both
def test_truncations_are_refused_and_flips_are_or_give_finite_weights(trellis: bool) -> None:
    stored, found = matrices(0.5, [(7, 6), (4, 5)])
    sections = encode(stored, lambda s: found[int(s.name)], trellis)
    for name, data in sections.items():
        for size in range(len(data)):
            with pytest.raises(ArtifactError):
                decode(stored, {**sections, name: data[:size]}, trellis)
        for bit in range(0, len(data) * 8, 1 if name == "steps" else 3):
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            try:
                decode(stored, {**sections, name: bytes(damaged)}, trellis)
            except ArtifactError:
                continue
            assert all(bool(s.tensor.isfinite().all()) for s in stored)


@pytest.mark.parametrize("step", [0, 0x0080, STEPS[0] - 1, STEPS[-1] + 1, 0x7F80, 0x7FC0, 0xBF80])
def test_a_step_that_is_zero_infinite_negative_or_out_of_range_is_refused(step: int) -> None:
    stored = [one(np.ones((2, 3), np.float32))]
    sections = encode(stored, as_quantized, False)
    changed = step.to_bytes(2, "little") + sections["steps"][2:]
    with pytest.raises(ArtifactError, match=f"step of bits 0x{step:04x}"):
        decode(stored, {**sections, "steps": changed}, False)


def test_a_factor_out_of_range_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = [one(np.ones((2, 3), np.float32))]
    far = as_quantized(stored[0])._replace(columns=np.array([0, FARTHEST + 1, 0], np.int8))
    monkeypatch.setattr("tokgolf.artifact.encode.FARTHEST", 127)
    sections = encode(stored, lambda _: far, False)
    with pytest.raises(ArtifactError, match="step of 41 quarters of an octave; at most 40 load"):
        decode(stored, sections, False)


@pytest.mark.parametrize("head", [b"", b"\1", b"\0\0", b"\0\1", b"\1\x09", b"\x80\0"])
def test_impossible_numbers_of_contexts_are_refused(head: bytes) -> None:
    stored = [one(np.ones((2, 3), np.float32))]
    sections = encode(stored, as_quantized, False)
    tables = head + sections["tables"][2:] if len(head) == 2 else head
    with pytest.raises(ArtifactError, match="contexts for 1 tensors"):
        decode(stored, {**sections, "tables": tables}, False)
    with pytest.raises(ArtifactError, match="contexts for 0 tensors"):
        decode([], {**sections, "tables": b"\1\0", "steps": b""}, False)


def codes_of(values: list[int]) -> Stored:
    return Stored("head.codes", torch.tensor(values), "codes")


def read_codes(data: bytes, count: int, extra: int = 0) -> list[int]:
    """The packed section read back, beside one dense tensor, which every model has."""
    dense = one(np.ones((1, 2), np.float32))
    sections = {**encode([dense], as_quantized, False), "packed": data}
    targets = [codes_of([-1] * count)] + [codes_of([-1])] * extra
    decode([*targets, dense], sections, False)
    return [int(code) for code in targets[0].tensor]


def test_packed_codes_are_these_bytes() -> None:
    assert pack_codes(np.array([5, 0, 3])) == b"\x03\xa1\x80"
    assert read_codes(b"\x03\xa1\x80", 3) == [5, 0, 3]
    assert pack_codes(np.array([0, 0])) == b"\x01\x00"
    assert pack_codes(np.array([1])) == b"\x01\x80"
    assert pack_codes(np.array([256])) == b"\x09\x80\x00"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40), st.integers(0, 31))
def test_packed_codes_come_back_in_their_least_width(values: list[int], shift: int) -> None:
    values = [value >> shift for value in values]
    data = pack_codes(np.array(values))
    width = max(1, max(values).bit_length())
    assert data[0] == width and len(data) == 1 + math.ceil(width * len(values) / 8)
    assert read_codes(data, len(values)) == values


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00", b"\x00\xa1\x80", b"\x21\xa1\x80", b"\xff\xa1\x80", b"\x03\xa1", b"\x09\xa1\x80"],
)
def test_packed_codes_of_a_wrong_width_or_length_are_refused_by_name(data: bytes) -> None:
    with pytest.raises(ArtifactError, match="packed codes of head.codes are damaged"):
        read_codes(data, 3)


def test_packed_codes_with_bytes_left_over_or_missing_are_refused() -> None:
    with pytest.raises(ArtifactError, match="bytes left over"):
        read_codes(b"\x03\xa1\x80\x00", 3)
    with pytest.raises(ArtifactError, match="damaged"):
        read_codes(b"\x03\xa1\x80", 3, extra=1)


def test_frequency_tables_left_over_are_refused() -> None:
    dense = one(np.ones((1, 2), np.float32))
    sections = encode([dense], as_quantized, False)
    factor, table = ((first, np.ones(1, np.int64)) for first in (0, 4))
    more = sections["tables"][:2] + pack_tables([factor, factor, table, table])
    with pytest.raises(ArtifactError, match="does not end"):
        decode([dense], {**sections, "tables": more}, False)


# --- what the bytes are spent on ---


@both
def test_the_bits_of_all_tensors_are_those_of_the_stream(trellis: bool) -> None:
    model = randomised("untied").stored()
    sections = encode(model, as_quantized, trellis)
    bits = stream_bits(model, sections, trellis)
    assert bits.keys() == {s.name for s in model if s.kind != "codes"}
    rest = len(sections["weights"]) - sum(bits.values()) / 8
    lines = sum(sum(s.tensor.shape) for s in model)
    assert 0 < rest < lines / 2  # classes take about 3 bits a row or column, the lane 3 bytes
    found = weights.read(model, sections, trellis).quantized
    for name, tensor, kind in model:
        if kind == "matrix" and tensor.numel() > 200:
            assert bits[name] / 8 == pytest.approx(entropy(found[name].codes), rel=0.1)
