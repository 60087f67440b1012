"""The export lands under its cap, keeps to bits and plans, and repeats itself to the byte."""

import json
import math
import re
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from artifact_support import OPTIONS
from torch import Tensor

from tokgolf.artifact import container
from tokgolf.artifact.checkpoint import FloatModel
from tokgolf.artifact.export import LANDING, PASSES, Fit, Plan, export_model, read_plan
from tokgolf.artifact.load import Artifact
from tokgolf.config import TrunkConfig, to_dict
from tokgolf.errors import ArtifactError, CapError, ConfigError, TokgolfError
from tokgolf.heads import head_config
from tokgolf.ledger import ledger_of
from tokgolf.model import build_model, head_shape
from tokgolf.quantize.rows import METHODS, QuantConfig, Rounder
from tokgolf.tokenizers import build_tokenizer

NEAREST = QuantConfig(method="nearest")
every_method = pytest.mark.parametrize("method", METHODS)


def make(head: str = "tied", width: int = 16, seed: int = 0) -> FloatModel:
    torch.manual_seed(seed)
    trunk = TrunkConfig(
        layers=1, d_model=width, heads=2, kv_heads=1, mlp_hidden=2 * width, sequence_length=16
    )
    tokenizer, config = build_tokenizer("byte", [], None), head_config(OPTIONS[head])
    shape = head_shape(tokenizer, trunk)
    model = build_model(trunk, config, shape, torch.arange(shape.vocab_size)).eval()
    for parameter in model.requires_grad_(False).parameters():
        parameter.normal_(0, 0.3)
    return FloatModel(tokenizer=tokenizer, model=model, trunk=trunk, head=config, state={})


def batches(source: FloatModel) -> list[Tensor]:
    tokens = (torch.arange(96).reshape(6, 16) ** 3 + 7) % source.tokenizer.vocab_size
    return [tokens[:3], tokens[3:]]


def weights_of(source: FloatModel) -> int:
    return sum(s.tensor.numel() for s in source.model.stored() if s.kind != "codes")


def weight_bytes(artifact: Artifact) -> int:
    """Of all sections but the tokenizer."""
    _, sections = container.unpack(artifact.data)
    return sum(len(data) for name, data in sections.items() if name != "tokenizer")


def even_plan(source: FloatModel, method: str, relative: float = 0.4) -> Plan:
    """Every step in the same proportion to its tensor's spread; nothing is measured for it."""
    config = QuantConfig(method=method)  # type: ignore[arg-type]
    rounder = Rounder(source.model, config, batches(source))
    steps = {n: max(relative * rounder.spread(n), rounder.finest(n)) for n in rounder.stored}
    return Plan(config=config, steps=steps, damage={})


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that grows with every pass over all tensors, and with every measurement."""
    found: list[str] = []
    for name in ("round_all", "measure"):
        method = getattr(Fit, name)

        def counted(fit: Any, name: str = name, method: Callable[[Any], None] = method) -> None:
            found.append(name)
            method(fit)

        monkeypatch.setattr(Fit, name, counted)
    return found


# --- the cap ---


@pytest.mark.parametrize(
    ("head", "width", "method", "bits"),
    [
        ("tied", 16, "trellis", 4.5), ("untied", 16, "trellis", 2.5), ("vq", 16, "trellis", 3.3),
        ("tied", 48, "trellis", 2.5),
        ("mixture", 16, "gptq", 3), ("untied", 16, "nearest", 6),
    ],
)  # fmt: skip
def test_the_full_accounting_lands_just_under_the_cap(
    head: str, width: int, method: str, bits: float, passes: list[str]
) -> None:
    source = make(head, width)
    frame = ledger_of(export_model(source, plan=even_plan(source, "nearest")).artifact)
    cap = dict(frame.rows)["code"] + 600 + int(weights_of(source) * bits / 8)
    passes.clear()
    config = QuantConfig(method=method)  # type: ignore[arg-type]
    found = export_model(source, config, batches(source), cap=cap).artifact
    full = ledger_of(found).full
    assert cap - LANDING <= full <= cap
    assert cap - full <= max(256, 0.002 * weight_bytes(found))  # a small file comes nearer
    assert 1 <= passes.count("round_all") <= PASSES
    assert passes.count("measure") == (method != "nearest")


def test_no_cap_of_many_is_ever_exceeded() -> None:
    source = make("factorized")
    least = int(re.findall(r"take ([\d,]+)", refusal(source, 1))[0].replace(",", ""))
    least += weights_of(source) // 8
    for cap in range(least, least + 3600, 600):
        try:
            full = ledger_of(export_model(source, NEAREST, cap=cap).artifact).full
        except CapError as error:
            # Steps have an end, and what is stored beside the integers does not shrink.
            assert cap < least + 1200 and "over the cap of" in str(error)
        else:
            assert full <= cap and (cap - full <= 400 or cap > least + 2800)


def refusal(source: FloatModel, cap: int, config: QuantConfig = NEAREST) -> str:
    with pytest.raises(CapError) as caught:
        export_model(source, config, batches(source), cap=cap)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("head", "method"), [("tied", "trellis"), ("vq", "nearest")])
def test_a_cap_too_large_is_filled_to_eight_bits_and_no_more(head: str, method: str) -> None:
    source = make(head)
    config = QuantConfig(method=method)  # type: ignore[arg-type]
    found = export_model(source, config, batches(source), cap=10**8)
    most = weights_of(source)  # 8 bits: a byte each
    assert most - 400 <= weight_bytes(found.artifact) <= most
    rounder = Rounder(source.model, config, batches(source))  # no finer than without clipping
    assert all(step >= rounder.finest(name) for name, step in found.plan.steps.items())


def test_a_cap_too_small_is_refused_with_the_parts_of_the_smallest_file() -> None:
    source = make()
    message = refusal(source, 1000)
    cap, fixed, count, least = re.findall(r"[\d,]{3,}", message)[:4]
    numbers = [int(text.replace(",", "")) for text in (cap, fixed, count, least)]
    weights = weights_of(source)
    assert numbers[0] == 1000 and numbers[2:] == [weights, weights // 8]
    found = ledger_of(export_model(source, NEAREST).artifact)
    assert numbers[1] == pytest.approx(found.full - found.bits * weights / 8, abs=16)
    assert "raise the cap, or train a smaller trunk, vocabulary or head" in message
    assert refusal(source, numbers[1] + numbers[3] - 1).startswith("no artifact of this run")


@pytest.mark.parametrize("bits", [None, 5])
def test_a_cap_without_room_is_refused_before_anything_is_measured(
    bits: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make()
    code = dict(ledger_of(export_model(source, NEAREST).artifact).rows)["code"]

    def never(*_: object) -> Rounder:
        raise AssertionError("a rounder was made")

    monkeypatch.setattr("tokgolf.artifact.export.Rounder", never)
    message = refusal(source, code + 1000, QuantConfig(bits=bits, tune=4))
    assert message.startswith("no artifact of this run is under the cap")
    assert ("leave out --bits to fill the cap" in message) == (bits is not None)
    with pytest.raises(AssertionError, match="a rounder was made"):
        export_model(source, QuantConfig(bits=bits), batches(source), cap=10**8)


def test_bits_a_little_over_the_cap_are_refused_before_tuning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = make("tied", 48)
    full = ledger_of(export_model(source, QuantConfig(bits=5), batches(source)).artifact).full
    monkeypatch.setattr(Fit, "tune_if_better", None)  # what is called is then an error
    message = refusal(source, full - 250, QuantConfig(bits=5, tune=4))
    assert f"artifact is {full:,} bytes in the full accounting, 250 over" in message


def test_bits_that_do_not_fit_the_cap_are_not_lowered() -> None:
    source = make()
    full = ledger_of(export_model(source, QuantConfig(method="nearest", bits=5)).artifact).full
    message = refusal(source, full - 50, QuantConfig(method="nearest", bits=5))
    assert f"artifact is {full:,} bytes in the full accounting, 50 over" in message


def test_a_plan_that_does_not_fit_the_cap_is_refused() -> None:
    source = make()
    plan = even_plan(source, "nearest")
    full = ledger_of(export_model(source, plan=plan, cap=10**6).artifact).full
    with pytest.raises(CapError, match="in the full accounting, 1 over the cap"):
        export_model(source, plan=plan, cap=full - 1)


def test_a_tuned_file_lands_under_the_cap_and_its_plan_gives_the_same_bytes(tmp_path: Path) -> None:
    source = make("tied", 48)
    frame = ledger_of(export_model(source, plan=even_plan(source, "nearest")).artifact)
    cap = dict(frame.rows)["code"] + 600 + int(weights_of(source) * 3 / 8)
    config = QuantConfig(tune=4)
    found = export_model(source, config, batches(source), cap=cap)
    full = ledger_of(found.artifact).full
    assert cap - LANDING <= full <= cap
    assert cap - full <= max(256, 0.002 * weight_bytes(found.artifact))
    untuned = export_model(source, QuantConfig(), batches(source), cap=cap)
    assert untuned.artifact.data != found.artifact.data and not untuned.plan.touched
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(found.plan.as_dict()))
    plan = read_plan(path)
    assert plan == found.plan and plan.config.tune == 4
    again = export_model(source, plan=plan, calibration=batches(source), cap=cap)
    assert again.artifact.data == found.artifact.data


def test_tuning_that_brings_the_file_no_nearer_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, config = make("tied", 16), QuantConfig(tune=2)
    plain = export_model(source, QuantConfig(), batches(source))
    distances = iter([1.0, 1.0])
    monkeypatch.setattr(Fit, "distance", lambda fit: next(distances))
    found = export_model(source, config, batches(source))
    assert next(distances, None) is None  # both were looked at
    assert found.artifact.data == plain.artifact.data and found.plan == plain.plan


# --- bits ---


@pytest.mark.parametrize(("method", "bits"), [("trellis", 2.5), ("gptq", 4.0), ("nearest", 6.0)])
def test_bits_are_met_within_half_a_percent(method: str, bits: float, passes: list[str]) -> None:
    source = make("tied", width=48)
    config = QuantConfig(method=method, bits=bits)  # type: ignore[arg-type]
    found = export_model(source, config, batches(source)).artifact
    assert 8 * weight_bytes(found) / weights_of(source) == pytest.approx(bits, rel=0.005)
    assert ledger_of(found).bits == pytest.approx(bits, rel=0.005)
    assert passes.count("round_all") <= PASSES


def test_without_bits_or_a_cap_it_is_four_bits() -> None:
    source = make()
    found = export_model(source, NEAREST, batches(source)).artifact
    assert ledger_of(found).bits == pytest.approx(4, rel=0.02)


# --- there and back ---


@pytest.mark.parametrize(
    ("head", "method"),
    [*((head, "trellis") for head in OPTIONS), ("tied", "gptq"), ("vq", "gptq"), ("vq", "nearest")],
)
def test_the_file_gives_back_what_the_rounder_restores_bit_for_bit(head: str, method: str) -> None:
    source = make(head)
    plan = even_plan(source, method)
    tokens = batches(source)
    found = export_model(source, plan=plan, calibration=tokens)
    assert found.plan == plan
    rounder = Rounder(source.model, plan.config, tokens)
    for name, step in plan.steps.items():
        rounder.restore(name, rounder.quantize(name, step))
    pairs = zip(source.model.stored(), found.artifact.model.stored(), strict=True)
    for (name, expected, _), (_, got, _) in pairs:
        assert torch.equal(got, expected), name
    with torch.no_grad():
        log_probs = source.model.log_probs(tokens[0])
    assert torch.equal(found.artifact.model.log_probs(tokens[0]), log_probs)


def test_the_float_model_is_left_as_it_was() -> None:
    source = make("vq")
    before = {name: tensor.clone() for name, tensor in source.model.state_dict().items()}
    export_model(source, QuantConfig(), batches(source), cap=40_000)
    for name, tensor in source.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_same_model_gives_the_same_file_twice() -> None:
    hashes = []
    for seed in (1, 2):
        source = make()
        torch.manual_seed(seed)
        found = export_model(source, QuantConfig(), batches(source), cap=27_000).artifact
        hashes.append(found.sha256)
    assert hashes[0] == hashes[1]


# --- plans ---


@every_method
def test_a_plan_that_was_written_pins_the_steps_and_gives_the_same_bytes(
    method: str, tmp_path: Path, passes: list[str]
) -> None:
    source, path = make(), tmp_path / "p.json"
    config = QuantConfig(method=method, rate_weight=0.7)  # type: ignore[arg-type]
    first = export_model(source, config, batches(source), cap=27_000)
    path.write_text(json.dumps(first.plan.as_dict()))
    plan = read_plan(path)
    assert plan == first.plan and list(plan.steps) == sorted(plan.steps)
    assert (plan.config, set(plan.damage)) == (config, {*plan.steps} if plan.damage else set())
    passes.clear()
    again = export_model(source, calibration=batches(source), plan=plan)
    assert passes == ["round_all"]
    assert sha256(again.artifact.data).hexdigest() == first.artifact.sha256
    finer = {name: step / 4 for name, step in plan.steps.items()}
    other = export_model(
        source, calibration=batches(source), plan=Plan(config=config, steps=finer, damage={})
    )
    assert len(other.artifact.data) > len(first.artifact.data) + weights_of(source) / 8


def test_shares_of_the_damage_are_of_the_steps_and_sum_to_one() -> None:
    plan = Plan(config=NEAREST, steps={"a": 1.0, "b": 2.0}, damage={"a": 3.0, "b": 0.25})
    assert plan.shares() == {"a": 0.75, "b": 0.25}
    assert Plan(config=NEAREST, steps={"a": 1.0}, damage={}).shares() == {}
    source = make()
    made = export_model(source, QuantConfig(), batches(source), cap=10**6).plan
    assert sum(made.shares().values()) == pytest.approx(1)
    assert made.shares().keys() == made.steps.keys()


def test_steps_grow_with_the_size_and_shrink_with_the_damage() -> None:
    # Lagrange: step^2 in proportion to n / c, but at the ends of what a tensor can use.
    source = make("untied")
    plan = export_model(source, QuantConfig(bits=4), batches(source)).plan
    sizes = {s.name: s.tensor.numel() for s in source.model.stored() if s.kind != "vector"}
    ratios = [plan.steps[n] ** 2 * plan.damage[n] / sizes[n] for n in sizes]
    assert len(ratios) >= 6 and ratios == pytest.approx([ratios[0]] * len(ratios), rel=1e-6)


@pytest.mark.parametrize("change", ["drop", "add", "rename"])
def test_a_plan_of_another_run_is_refused_and_names_a_tensor(change: str) -> None:
    source = make()
    plan = even_plan(source, "nearest")
    steps = dict(plan.steps)
    name = "head.table" if change == "drop" else "head.tabel"
    if change != "add":
        steps.pop("head.table")
    if change != "drop":
        steps["head.tabel"] = 0.1
    message = f"the plan is not of this run: only one of them has {name}"
    with pytest.raises(ArtifactError, match=message):
        export_model(source, plan=Plan(config=NEAREST, steps=steps, damage={}))


GOOD: dict[str, Any] = {"config": to_dict(NEAREST), "steps": {"a": 0.5}, "damage": {"a": 1e-3}}


def text_of(**changes: Any) -> str:
    return json.dumps({**GOOD, **changes})


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "3", "null", '"x"', "{}", "\udcff", "[" * 100_000,
        text_of(steps=[]), text_of(steps=3), text_of(steps={"a": "x"}), text_of(steps={"a": []}),
        text_of(steps={"a": 0}), text_of(steps={"a": -1.0}), text_of(steps={"a": math.nan}),
        text_of(steps={"a": math.inf}), text_of(steps={"a": 10**400}), text_of(steps={"a": None}),
        text_of(damage={"a": math.nan}), text_of(damage={"a": -1}), text_of(damage={"b": 1.0}),
        text_of(damage=None), text_of(config=None), text_of(config=[]),
        text_of(config={"method": "nearst"}), text_of(config={"bitz": 3}),
        text_of(config={"bits": "3"}), text_of(config={"bits": 99.0}),
    ],
)  # fmt: skip
def test_what_is_no_plan_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(text_of().encode())
    assert read_plan(path).steps == {"a": 0.5}
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(TokgolfError) as caught:
        read_plan(path)
    assert isinstance(caught.value, ArtifactError | ConfigError)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
