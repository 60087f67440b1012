"""The weight sections: what is written comes back exactly, and nothing else is read."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokgolf.artifact import rans, weights
from tokgolf.artifact.weights import pack_codes
from tokgolf.config import TrunkConfig
from tokgolf.errors import ArtifactError
from tokgolf.heads import HEADS, HeadShape, Stored, head_config
from tokgolf.model import LanguageModel, build_model
from tokgolf.quantize import dequantize
from tokgolf.quantize.rows import QuantConfig, Quantized, quantize

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
    values = stored.tensor.detach().numpy()
    return quantize(stored.name, values, stored.kind, QuantConfig())


@every_case
def test_a_model_comes_back_as_its_quantized_weights_exactly(case: str) -> None:
    model, restored = randomised(case), blank(case)
    sections = weights.encode(model.stored(), as_quantized)
    weights.decode(restored.stored(), sections)
    for (name, tensor, kind), (_, found, _) in zip(model.stored(), restored.stored(), strict=True):
        if kind == "codes":
            assert tensor.any() and torch.equal(found, tensor), name
        else:
            expected = dequantize(*as_quantized(Stored(name, tensor, kind)))
            assert (
                expected.any()
                and (found.detach().numpy().reshape(expected.shape) == expected).all()
            )
    assert weights.encode(model.stored(), as_quantized) == sections


@every_case
def test_every_section_is_needed_and_none_may_be_longer_or_shorter(case: str) -> None:
    sections = weights.encode(randomised(case).stored(), as_quantized)
    target = blank(case).stored()
    for name, data in sections.items():
        changes = [data + b"\0"] + ([data[:-1], b""] if data else [])
        for changed in changes:
            with pytest.raises(ArtifactError):
                weights.decode(target, {**sections, name: changed})


def test_frequency_codes_are_stored_and_random_ones_are_not() -> None:
    packed = {
        case: weights.encode(randomised(case).stored(), as_quantized)["packed"] for case in CASES
    }
    assert {case for case, data in packed.items() if data} == {
        "vq", "vq-published", "bigram-hash-on-vq", "product", "adaptive",
    }  # fmt: skip
    # 300 tokens, 70 or 75 codes: 7 bits each, and a byte that says so.
    assert len(packed["vq"]) == len(packed["vq-published"]) == 1 + math.ceil(300 * 7 / 8)


def test_the_weights_section_takes_the_entropy_of_the_codes_of_each_kind() -> None:
    model = randomised("untied")
    sections = weights.encode(model.stored(), as_quantized)
    bits = 0.0
    for kind in weights.KINDS:
        codes = np.concatenate(
            [as_quantized(stored)[0].ravel() for stored in model.stored() if stored.kind == kind]
        )
        _, counts = np.unique(codes, return_counts=True)
        bits -= float((counts * np.log2(counts / codes.size)).sum())
    assert bits / 8 - 1 <= len(sections["weights"]) <= bits / 8 * 1.01 + 8


def one(values: NDArray[np.float32], kind: str = "matrix") -> Stored:
    return Stored("w", torch.from_numpy(values), kind)  # type: ignore[arg-type]


def round_trip(stored: Stored) -> NDArray[np.float32]:
    sections = weights.encode([stored], as_quantized)
    target = torch.full_like(stored.tensor, math.nan)
    weights.decode([stored._replace(tensor=target)], sections)
    return np.asarray(target.numpy())


@pytest.mark.parametrize("kind", ["table", "matrix", "vector"])
def test_rows_of_zeros_and_of_one_value_come_back(kind: str) -> None:
    assert not round_trip(one(np.zeros((4, 8), np.float32), kind)).any()
    constant = round_trip(one(np.full((4, 8), 0.75, np.float32), kind))
    assert (constant == constant[0, 0]).all()
    assert constant[0, 0] == pytest.approx(0.75, rel=0.25)


@pytest.mark.parametrize("log2", [-60, -25, -10, 0, 10, 30, 100])
def test_huge_and_small_scales_come_back_as_quantized(log2: int) -> None:
    values = np.random.default_rng(0).standard_normal((5, 12)).astype(np.float32)
    values *= np.exp2(np.array([log2, 0, log2, 0, 0], np.float32))[:, None]
    expected = dequantize(*quantize("w", values, "matrix", QuantConfig()))
    got = round_trip(one(values))
    assert np.isfinite(got).all() and (got == expected).all() and got[[1, 3, 4]].any(axis=1).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 40), st.integers(1, 3))
def test_any_codes_and_exponents_come_back(seed: int, rows: int, columns: int, kinds: int) -> None:
    rng = np.random.default_rng(seed)
    stored, numbers = [], {}
    for index in range(kinds):
        tensor = torch.empty(rows + index, columns)
        stored.append(Stored(f"t{index}", tensor, weights.KINDS[index]))  # type: ignore[arg-type]
        codes = rng.integers(-128, 128, (rows + index, columns)).astype(np.int8)
        numbers[f"t{index}"] = codes, rng.integers(0, 256, rows + index).astype(np.uint8)
    sections = weights.encode(stored, lambda tensor: numbers[tensor.name])
    weights.decode(stored, sections)
    for name, tensor, _ in stored:
        assert (tensor.numpy() == dequantize(*numbers[name])).all()


def codes_of(values: list[int]) -> Stored:
    return Stored("head.codes", torch.tensor(values), "codes")


def read_codes(data: bytes, count: int, extra: int = 0) -> list[int]:
    """The packed section read back, beside one dense tensor, which every model has."""
    dense = one(np.ones((1, 2), np.float32))
    sections = {**weights.encode([dense], as_quantized), "packed": data}
    targets = [codes_of([-1] * count)] + [codes_of([-1])] * extra
    weights.decode([*targets, dense], sections)
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
    sections = weights.encode([dense], as_quantized)
    more = sections["tables"] + rans.pack_table(rans.normalize(np.array([1, 1])))
    with pytest.raises(ArtifactError, match="frequency tables have bytes left over"):
        weights.decode([dense], {**sections, "tables": more})
