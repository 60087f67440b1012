"""Factors of rows and columns in a whole file: they come back, are charged, and stay in float32."""

from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokgolf.artifact import container
from tokgolf.artifact.encode import encode, header_of
from tokgolf.artifact.load import decode_artifact
from tokgolf.config import TrunkConfig
from tokgolf.heads import Stored, head_config
from tokgolf.model import LanguageModel, build_model, head_shape
from tokgolf.quantize import FARTHEST, LARGEST, QUARTERS, STEPS, Quantized, octaves, steps_of
from tokgolf.tokenizers import build_tokenizer

TRUNK = TrunkConfig(layers=1, d_model=16, heads=2, kv_heads=1, mlp_hidden=24, sequence_length=8)
HEADS = {"tied": head_config({"name": "tied"}), "untied": head_config({"name": "untied"})}
TOKENIZER = build_tokenizer("byte", [], None)
NORMAL = 2.0**-126  # the smallest float32 of full precision
both = pytest.mark.parametrize("trellis", [False, True])


class Case(NamedTuple):
    head: str
    lead: list[int]
    numbers: dict[str, Quantized]


@cache
def model_of(head: str) -> LanguageModel:
    torch.manual_seed(0)
    return build_model(TRUNK, HEADS[head], head_shape(TOKENIZER, TRUNK))


def shape_of(stored: Stored) -> tuple[int, int]:
    return stored.tensor.numel() // stored.tensor.shape[-1], stored.tensor.shape[-1]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any integers, steps and factors for every tensor of a model, and any order of columns."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    head = draw(st.sampled_from(sorted(HEADS)))
    lead = draw(st.lists(st.integers(0, 15), unique=True))
    far, numbers = draw(st.sampled_from([1, 9, FARTHEST])), {}
    for stored in model_of(head).stored():
        shape = shape_of(stored)
        codes = rng.integers(-5, 6, shape).astype(np.int16)
        step = int(rng.integers(0x3C00, 0x3F80))
        rows, columns = (rng.integers(-far, far + 1, n).astype(np.int8) for n in shape)
        dense = stored.kind != "vector"
        numbers[stored.name] = Quantized(codes, step, *((rows, columns) if dense else ()))
    return Case(head, lead, numbers)


def written(case: Case, trellis: bool) -> bytes:
    header = header_of(TRUNK, HEADS[case.head], trellis=trellis, lead=case.lead)
    sections = encode(model_of(case.head).stored(), lambda s: case.numbers[s.name], trellis)
    return container.pack(header, {"tokenizer": TOKENIZER.asset(), **sections})


def slow_weights(stored: Stored, case: Case, trellis: bool) -> NDArray[np.float64]:
    """By the formats page, in fp64, a weight at a time; columns in their own order."""
    codes, bits, rows, columns = case.numbers[stored.name]
    step = float(np.array([bits << 16], np.uint32).view(np.float32)[0])
    width, dense = codes.shape[1], stored.kind != "vector"
    places = list(range(width))
    if dense and width == TRUNK.d_model:
        places = case.lead + [c for c in range(width) if c not in case.lead]
    weights = np.empty(codes.shape)
    for r, row in enumerate(codes.tolist()):
        state = 0
        for c, k in enumerate(row):
            j = 2 * k + (state & 1) if trellis and dense else k
            w1, w2, w3 = state & 1, state >> 1 & 1, state >> 2 & 1
            state = (w2 ^ w1) | (w3 ^ (k & 1)) << 1 | w1 << 2
            e = 0 if rows is None or columns is None else int(rows[r]) + int(columns[c])
            weights[r, places[c]] = step * 2.0 ** (e / 4) * j
    return weights


@both
@settings(max_examples=8, deadline=None)
@given(case=cases())
def test_factors_come_back_from_a_file_to_the_rows_and_columns_they_are_of(
    trellis: bool, case: Case
) -> None:
    data = written(case, trellis)
    for stored in decode_artifact(data).model.stored():
        expected = slow_weights(stored, case, trellis)
        got = stored.tensor.double().numpy().reshape(expected.shape)
        np.testing.assert_allclose(got, expected, rtol=4e-7, atol=0)
    assert written(case, trellis) == data


@both
@pytest.mark.parametrize("far", [-FARTHEST, FARTHEST])
@pytest.mark.parametrize("step", [STEPS[0], STEPS[-1]])
def test_no_file_has_a_weight_that_float32_cannot_hold(step: int, far: int, trellis: bool) -> None:
    numbers = {}
    for stored in model_of("tied").stored():
        shape = shape_of(stored)
        rows, columns = (np.full(n, far, np.int8) for n in shape)
        codes = np.full(shape, LARGEST, np.int16)
        codes[0, 0] = 1
        dense = stored.kind != "vector"
        numbers[stored.name] = Quantized(codes, step, *((rows, columns) if dense else ()))
    for _, tensor, _ in decode_artifact(written(Case("tied", [], numbers), trellis)).model.stored():
        assert tensor.isfinite().all() and (tensor.abs() >= NORMAL).all()
    # A forger's table may have one symbol more than any that is written: -512.
    most = steps_of(numbers["head.table"])[0, 0] * np.float32(2 * (LARGEST + 1))
    assert np.isfinite(most)


def test_a_quarter_of_an_octave_is_the_nearest_float32_and_an_octave_is_exact() -> None:
    every = np.arange(-FARTHEST, FARTHEST + 1).astype(np.int8)
    assert np.array_equal(octaves(every), np.exp2(every / 4.0).astype(np.float32))
    assert QUARTERS.view(np.uint32).tolist() == [0x3F800000, 0x3F9837F0, 0x3FB504F3, 0x3FD744FD]
    whole = np.arange(-FARTHEST, FARTHEST + 1, 4).astype(np.int8)
    assert octaves(whole).tolist() == [2.0 ** (e / 4) for e in whole.tolist()]


def test_factors_are_charged_to_their_tensors_and_to_the_row_of_steps() -> None:
    rng = np.random.default_rng(0)
    plain, varied = {}, {}
    for stored in model_of("untied").stored():
        shape = shape_of(stored)
        codes = rng.integers(-5, 6, shape).astype(np.int16)
        plain[stored.name] = varied[stored.name] = Quantized(codes, 0x3E00)
        if stored.name == "head.output":
            rows, columns = (rng.integers(-8, 8, n).astype(np.int8) for n in shape)
            varied[stored.name] = Quantized(codes, 0x3E00, rows, columns)
    files = [decode_artifact(written(Case("untied", [], n), True)) for n in (plain, varied)]
    before, after = (file.ledger for file in files)
    for file, ledger in zip(files, (before, after), strict=True):
        assert ledger.full - ledger.code.packed == len(file.data)
    cost = {t.name: t.steps - u.steps for t, u in zip(after.tensors, before.tensors, strict=True)}
    # Four bits a row or column, less what one table for all tensors takes off.
    assert cost["head.output"] > 0.25 * (TOKENIZER.vocab_size + TRUNK.d_model)
    assert dict(after.rows)["steps"] - dict(before.rows)["steps"] == sum(cost.values())
    assert len(files[1].data) - len(files[0].data) >= 0.9 * sum(cost.values())
