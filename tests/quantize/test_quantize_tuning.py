"""Rounding in parts: every tensor once, nearer to the float model, which stays as it is."""

from typing import Any

import numpy as np
import pytest
import torch
from quantize_support import batches, small_model
from torch import Tensor

from tokgolf.errors import ConfigError
from tokgolf.heads import HEADS
from tokgolf.model import LanguageModel
from tokgolf.quantize import Quantized
from tokgolf.quantize.allocate import divergence
from tokgolf.quantize.rows import QuantConfig, Rounder, quant_config
from tokgolf.quantize.tuning import parts_of, round_in_parts

MASKED: dict[str, Any] = {"name": "tied", "add": {"canonical-mask": {}}}
NEED_BYTES = {"composed", "grouped"}  # of every token; the small model has none
SMALL: dict[str, dict[str, Any]] = {
    "factorized": {"rank": 8},
    "vq": {"codes": 20},
    "product": {"codes": 8},
    "hashed": {"buckets": 20},
    "adaptive": {"cuts": [10]},
}
Found = dict[str, Quantized]


def rounder_of(model: LanguageModel, tune: int) -> tuple[Rounder, dict[str, float]]:
    rounder = Rounder(model, QuantConfig(tune=tune), batches())
    steps = {n: max(0.5 * rounder.spread(n), rounder.finest(n)) for n in rounder.stored}
    return rounder, steps


def in_parts(model: LanguageModel, tune: int = 6) -> tuple[Rounder, Found]:
    rounder, steps = rounder_of(model, tune)
    return round_in_parts(model, rounder, steps, rounder.batches)


def restored(model: LanguageModel, rounder: Rounder, found: Found) -> LanguageModel:
    """Another model of that shape with the integers' weights; `model` itself is not changed."""
    over = rounder.moved(model)
    for name, quantized in found.items():
        over.restore(name, quantized)
    return model


def distance(model: LanguageModel, other: LanguageModel, tokens: list[Tensor]) -> float:
    with torch.no_grad():
        reference = [model.log_probs(rows).flatten(0, 1) for rows in tokens]
    return divergence(other, tokens, reference)


@pytest.mark.parametrize(
    "head",
    [*({"name": n, **SMALL.get(n, {})} for n in HEADS if n not in NEED_BYTES), MASKED],
    ids=str,
)
def test_under_every_head_all_tensors_are_rounded_once_and_the_model_stays(
    head: dict[str, Any],
) -> None:
    model = small_model(2, **head)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rounder, found = in_parts(model, tune=2)
    assert sorted(found) == sorted(s.name for s in model.stored() if s.kind != "codes")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not any(p.requires_grad for p in model.parameters())
    for name, quantized in found.items():  # the rounder that comes back repeats what it did
        step = max(rounder_of(model, 2)[1][name], rounder.finest(name))
        assert np.array_equal(rounder.quantize(name, step).codes, quantized.codes), name


def test_the_parts_are_the_ends_then_the_blocks_then_all_vectors() -> None:
    stored = [s for s in small_model(0, name="untied").stored() if s.kind != "codes"]
    ends, *blocks, vectors = parts_of(stored)
    assert all(name.startswith("head.") for name in ends) and len(ends) >= 2
    for index, block in enumerate(blocks):
        assert block and all(name.startswith(f"trunk.blocks.{index}.") for name in block)
    assert len(blocks) == 2
    kinds = {s.name: s.kind for s in stored}
    assert sorted(vectors) == sorted(name for name, kind in kinds.items() if kind == "vector")
    assert sorted([*ends, *vectors, *sum(blocks, [])]) == sorted(kinds)


def test_tuning_brings_the_rounded_model_nearer_to_the_float_one_also_on_other_tokens() -> None:
    model = small_model(3)
    fresh = batches(6, seed=9)
    results = []
    for tune in (0, 30):
        rounder, found = in_parts(model, tune)
        results.append(distance(model, restored(small_model(3), rounder, found), fresh))
    assert 0 < results[1] < results[0]


def test_the_same_bits_come_out_twice() -> None:
    (_, first), (_, second) = (in_parts(small_model(4)) for _ in range(2))
    for name, quantized in first.items():
        assert np.array_equal(quantized.codes, second[name].codes), name
        assert quantized.step == second[name].step


def test_a_part_is_rounded_by_what_it_reads_after_the_parts_before_it() -> None:
    model = small_model(5)
    rounder, steps = rounder_of(model, 0)
    moved, found = round_in_parts(model, rounder, steps, rounder.batches)
    slow = small_model(5)
    for names in parts_of(rounder.stored.values()):
        own = Rounder(slow, QuantConfig(), batches())
        own.lead, own.orders, own.embedded = rounder.lead, rounder.orders, rounder.embedded
        own.importance = rounder.importance
        own.observe(names)
        for name in names:
            expected = own.quantize(name, max(steps[name], own.finest(name)))
            assert np.array_equal(found[name].codes, expected.codes), name
            own.restore(name, expected)
    late = "trunk.blocks.1.mlp.up.weight"
    assert not np.array_equal(found[late].codes, rounder.quantize(late, steps[late]).codes)


def test_tuning_is_for_methods_that_look_at_tokens() -> None:
    assert quant_config().tune > 0 and quant_config(tune=3).tune == 3
    assert quant_config(method="nearest") == QuantConfig(method="nearest")
    with pytest.raises(ConfigError, match="tune is 5 with method nearest"):
        quant_config(method="nearest", tune=5)
    with pytest.raises(ConfigError, match="tune is -1"):
        QuantConfig(tune=-1)
