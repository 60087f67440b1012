"""What a model would cost: the entropy it rests on, and estimates beside exported models."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokgolf import cli
from tokgolf.artifact.checkpoint import load_run
from tokgolf.artifact.encode import encode
from tokgolf.artifact.export import encode_artifact
from tokgolf.artifact.sizes import sizes_of
from tokgolf.config import TrunkConfig
from tokgolf.cost import (
    CLASS_BITS,
    FACTOR_BITS,
    LEAST_BITS,
    cost_of,
    flops_of_token,
    gaussian_bits,
    gaussian_step,
)
from tokgolf.errors import CapError, ConfigError
from tokgolf.heads import ADDONS, HEADS, Stored, head_config
from tokgolf.ledger import Ledger
from tokgolf.model import build_model, head_shape
from tokgolf.quantize import Quantized, trellis_parities
from tokgolf.quantize.rows import MOST_BITS, QuantConfig
from tokgolf.tokenizers import Tokenizer, build_tokenizer

SETTINGS = {
    "trunk.layers": 2,
    "trunk.d_model": 96,
    "trunk.heads": 4,
    "trunk.kv_heads": 2,
    "trunk.mlp_hidden": 256,
    "trunk.sequence_length": 32,
    "batch_tokens": 512,
    "micro_batch_tokens": 512,
    "precision": "fp32",
    "compile": "off",
    "steps": 12,
}
SET = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
HEAD_OPTIONS = {
    "tied": [],
    "untied, untied on the way": ["--head", "untied", "--set", "head.untie_at=0.5"],
    "factorized": ["--head", "factorized", "--set", "head.rank=32"],
    "vq": ["--head", "vq", "--set", "head.residual_rank=8"],
    "add-ons": [
        "--head", "tied", "--add", "bigram-hash", "--add", "unigram-bias",
        "--set", "head.add.bigram-hash.buckets=512", "--set", "head.add.bigram-hash.dim=16",
    ],
}  # fmt: skip
TRUNK = TrunkConfig(layers=1, d_model=16, heads=2, kv_heads=1, mlp_hidden=16, sequence_length=16)


Estimate = Callable[..., dict[str, Any]]


@pytest.fixture
def estimate(capsys: pytest.CaptureFixture[str]) -> Estimate:
    """Run `tokgolf cost --json` in this process; it must succeed."""

    def run(*arguments: object) -> dict[str, Any]:
        capsys.readouterr()
        code = cli.run(["cost", *map(str, arguments), "--json"])
        out, err = capsys.readouterr()
        assert code == 0, err
        values: dict[str, Any] = json.loads(out)
        return values

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `tokgolf cost`, which must fail and end with one line that says why; returns it."""

    def run(*arguments: object) -> str:
        assert cli.run(["cost", *map(str, arguments)]) == 1
        out, err = capsys.readouterr()
        *before, last = err.splitlines()
        assert out == "" and last.startswith("error: ") and len(before) <= 1, err
        return last.removeprefix("error: ")

    return run


# --- the entropy of a quantized Gaussian


@given(bits=st.floats(LEAST_BITS, MOST_BITS))
def test_the_step_for_some_bits_has_those_bits(bits: float) -> None:
    assert gaussian_bits(gaussian_step(bits)) == pytest.approx(bits, abs=1e-6)


def test_fine_steps_have_the_differential_entropy() -> None:
    for step in (0.02, 0.1, 0.25):
        entropy = 0.5 * math.log2(2 * math.pi * math.e) - math.log2(step)
        assert gaussian_bits(step) == pytest.approx(entropy, abs=0.01)


@pytest.mark.parametrize("step", [0.05, 0.4, 1.5])
def test_the_entropy_is_that_of_rounded_samples(step: float) -> None:
    codes = np.rint(np.random.default_rng(0).normal(size=1_000_000) / step).astype(np.int64)
    shares = np.unique(codes, return_counts=True)[1] / len(codes)
    measured = -float(shares @ np.log2(shares))
    assert gaussian_bits(step) == pytest.approx(measured, rel=0.002)


@pytest.mark.parametrize("trellis", [False, True])
@pytest.mark.parametrize("bits", [1.5, 2.0, 3.3, 5.0])
def test_the_encoder_spends_those_bits_on_gaussian_weights(bits: float, trellis: bool) -> None:
    weights = np.random.default_rng(1).normal(size=(512, 512)) / gaussian_step(bits)
    if trellis:  # the greedy path: the nearest choice at each place
        codes = np.zeros(weights.shape, np.int16)
        for column in range(weights.shape[1]):
            parity = trellis_parities(codes[:, : column + 1])[:, -1]
            codes[:, column] = np.rint(weights[:, column] - parity / 2)
    else:
        codes = np.rint(weights).astype(np.int16)
    stored = [Stored("w", torch.from_numpy(weights), "matrix")]
    sections = encode(stored, lambda _: Quantized(codes, 0x3F80, None), trellis)
    (size,) = sizes_of(stored, sections, trellis).tensors
    spent = 8 * (size.coded + size.steps + size.classes) / codes.size
    assert spent == pytest.approx(bits, rel=0.03 if trellis else 0.005)


# --- beside models that were trained and exported


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of documents and a tokenizer."""
    folder = tmp_path_factory.mktemp("cost")
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), rng.integers(2, 8))) for _ in range(300)]
    texts = [" ".join(rng.choice(words, 60)) for _ in range(100)]
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    build = ["build-tokenizer", "--vocab-size", "512", "--corpus", str(path)]
    assert cli.run([*build, "-o", str(folder / "t.tok")]) == 0
    return folder


def parts(ledger: Ledger) -> tuple[int, int]:
    """Everything, and the weights alone."""
    rows = dict(ledger.rows)
    return ledger.full, ledger.full - rows["code"] - rows["tokenizer"]


@pytest.mark.parametrize("case", HEAD_OPTIONS)
def test_the_estimate_is_within_three_percent_of_the_trained_models_file(
    case: str, data: Path, tmp_path: Path, estimate: Estimate
) -> None:
    command = ["train", "--corpus", str(data / "train.jsonl"), "--tokenizer", str(data / "t.tok")]
    command += [*SET, *HEAD_OPTIONS[case], "-o", str(tmp_path / "run")]
    assert cli.run(command) == 0
    source = load_run(tmp_path / "run")
    measured = encode_artifact(source, QuantConfig(method="nearest")).ledger
    values = estimate(
        "--tokenizer", data / "t.tok", *SET, *HEAD_OPTIONS[case], "--bits", measured.bits
    )  # fmt: skip
    assert values["ledger"]["code"] == dict(measured.rows)["code"]
    assert values["asset_bytes"] == dict(measured.rows)["tokenizer"]
    assert values["modules"] == list(measured.modules)
    of_tensors = {t["name"]: (t["component"], t["weights"]) for t in values["tensors"]}
    assert of_tensors == {t.name: (t.component, t.weights) for t in measured.tensors}
    assert values["bits"] == pytest.approx(measured.bits, rel=0.001)
    weights = values["full"] - values["ledger"]["code"] - values["asset_bytes"]
    for guess, size in zip((values["full"], weights), parts(measured), strict=True):
        assert guess == pytest.approx(size, rel=0.03)
    codes = {t.name: t.coded for t in measured.tensors if t.kind == "codes"}
    assert codes == {t["name"]: t["coded"] for t in values["tensors"] if t["kind"] == "codes"}


# --- any model


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return build_tokenizer("bpe", [b"the cat sat on the mat; the dog sat on the log. " * 20], 270)


CONFIGS = {name: {"name": name} for name in HEADS} | {
    f"tied + {name}": {"name": "tied", "add": {name: {}}} for name in ADDONS
}
CONFIGS["factorized"]["rank"] = 6  # type: ignore[assignment]


@pytest.mark.parametrize("case", CONFIGS)
def test_every_head_and_add_on_has_a_cost_that_adds_up(case: str, tokenizer: Tokenizer) -> None:
    state = torch.random.get_rng_state()
    found = cost_of(TRUNK, head_config(CONFIGS[case]), tokenizer, bits=3.5)
    assert torch.equal(state, torch.random.get_rng_state())
    rows, ledger = dict(found.ledger.rows), found.ledger
    assert sum(rows.values()) == ledger.full and len(rows) == len(ledger.rows)
    assert ledger.official == ledger.full - rows["tokenizer"]
    assert rows["tokenizer"] == len(tokenizer.asset())
    weights = sum(t.weights for t in ledger.tensors if t.kind != "codes")
    assert weights == found.params
    more = cost_of(TRUNK, head_config(CONFIGS[case]), tokenizer, bits=4.5)
    assert more.ledger.full - ledger.full == pytest.approx(weights / 8, abs=3)
    assert ledger.bits == pytest.approx(3.5, abs=0.01)


@pytest.mark.parametrize("wide", [64, 192])
def test_every_row_and_column_is_charged_with_its_factor_and_class(
    wide: int, tokenizer: Tokenizer
) -> None:
    trunk = replace(TRUNK, d_model=wide, mlp_hidden=2 * wide)
    ledger = cost_of(trunk, head_config({"name": "tied"}), tokenizer, bits=4.0).ledger
    rows, dense = dict(ledger.rows), [t for t in ledger.tensors if t.kind != "vector"]
    lines = sum(sum(t.shape) for t in dense)
    beside = 2 * len(ledger.tensors) + 2 * len(dense)  # a byte for each list of factors
    assert rows["steps"] == pytest.approx(beside + lines * FACTOR_BITS / 8, abs=len(dense))
    classes = 3 * len(dense) + lines * CLASS_BITS / 8
    assert rows["classes"] == pytest.approx(classes, abs=len(dense))
    # The step is that of what is left for the integers, not of all bits.
    (step,) = {t.step for t in dense}
    assert step is not None
    coded = 8 * sum(t.coded for t in dense) / sum(t.weights for t in dense)
    assert gaussian_bits(step) == pytest.approx(coded, abs=0.01)
    assert coded < 4.0 - 8 * (rows["steps"] + rows["classes"]) / sum(t.weights for t in dense) / 2


def test_a_cap_is_filled_with_bits_and_never_passed(tokenizer: Tokenizer) -> None:
    head = head_config({"name": "tied"})
    least = cost_of(TRUNK, head, tokenizer, bits=LEAST_BITS).ledger.full
    for cap in (least + 900, least + 2900):
        found = cost_of(TRUNK, head, tokenizer, cap=cap)
        assert cap - 3 <= found.ledger.full <= cap
        again = cost_of(TRUNK, head, tokenizer, bits=found.bits)
        assert again.ledger == found.ledger
    room = cost_of(TRUNK, head, tokenizer, cap=16_000_000)
    assert room.bits == MOST_BITS and room.ledger.full < 16_000_000


def test_a_cap_below_the_smallest_file_names_the_parts(tokenizer: Tokenizer) -> None:
    with pytest.raises(CapError) as caught:
        cost_of(TRUNK, head_config({"name": "tied"}), tokenizer, cap=1000)
    least = cost_of(TRUNK, head_config({"name": "tied"}), tokenizer, bits=LEAST_BITS).ledger
    code = dict(least.rows)["code"]
    for number in (least.full, 1000, code, len(tokenizer.asset())):
        assert f"{number:,}" in str(caught.value)


@pytest.mark.parametrize("bits", [0.0, -1.0, 9.5, float("nan")])
def test_bits_that_no_file_has_are_refused(bits: float, tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="it must be from 1 to 8"):
        cost_of(TRUNK, head_config({"name": "tied"}), tokenizer, bits=bits)


# --- the command


def test_the_command_prints_the_rows_of_a_ledger(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], estimate: Estimate
) -> None:
    command = ["--tokenizer", data / "t.tok", *SET, "--bits", 4]
    values = estimate(*command)
    assert sum(values["ledger"].values()) == values["full"] == values["artifact_bytes"]
    plot = tmp_path / "cost.svg"
    assert cli.run(["cost", *map(str, command), "--tensors", "--plot", str(plot)]) == 0
    out, err = capsys.readouterr()
    assert err == f"wrote {plot}\n" and plot.stat().st_size > 1000
    table = out.partition("component")[2].splitlines()
    for component, size in values["ledger"].items():
        lines = [line for line in table if line.startswith(f"{component}  ")]
        assert f" {size:,} " in lines[0]
    for tensor in values["tensors"]:
        assert any(line.startswith(f"{tensor['name']} ") for line in out.splitlines())
    assert "step/std" in out


def test_a_size_alone_takes_a_tokenizer_of_the_embedded_corpus(
    data: Path, estimate: Estimate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokgolf.cost.EMBEDDED", str(data / "train.jsonl"))
    values = estimate("--vocab-size", 300, *SET, "--cap", "100KB")
    assert (values["vocab_size"], values["cap"]) == (300, 100_000)
    assert 0 < values["asset_bytes"] < 300 and values["full"] <= 100_000


def test_what_contradicts_itself_is_refused(refused: Callable[..., str], data: Path) -> None:
    tok = ["--tokenizer", data / "t.tok"]
    assert "either --tokenizer x.tok or --vocab-size N" in refused("--bits", 4)
    assert "either --tokenizer" in refused(*tok, "--vocab-size", 300, "--bits", 4)
    assert "either --bits" in refused(*tok)
    assert "either --bits" in refused(*tok, "--bits", 4, "--cap", "1MB")
    assert "did you mean 'untied'" in refused(*tok, "--bits", 4, "--head", "unties")
    assert "end it in one of" in refused(*tok, "--bits", 4, "--plot", data / "x.txt")
    big = ["--set", "trunk.d_model=65536", "--set", "trunk.layers=90"]
    assert "at most 536,870,912" in refused(*tok, "--bits", 4, *big)


def test_a_size_that_the_embedded_corpus_cannot_give(
    refused: Callable[..., str], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokgolf.cost.EMBEDDED", str(data / "train.jsonl"))
    message = refused("--vocab-size", 60_000, "--bits", 4)
    assert message.endswith("or more text, or a tokenizer of your own: --tokenizer x.tok")


# --- operations


def test_operations_of_the_baseline_are_counted_by_hand() -> None:
    head = head_config({"name": "tied"})
    tokenizer = build_tokenizer("byte", [], None)
    matrices = 9 * (786_432 + 1_048_576) + tokenizer.vocab_size * 512
    expected = 2 * matrices + 2 * 9 * 512 * 1024
    assert flops_of_token(TrunkConfig(), head, tokenizer, scored=False) == expected


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("scored", [False, True])
def test_operations_are_those_of_the_products_that_a_token_goes_through(
    scored: bool, rank: int
) -> None:
    """Counted in a pass over one token, beside the attention and what the ranks add."""
    trunk = replace(TRUNK, layers=3, loop_start=1, loop_blocks=2, loops=2, loops_scored=4)
    trunk = replace(trunk, loop_rank=rank)
    head = head_config({"name": "factorized", "rank": 4})
    tokenizer = build_tokenizer("byte", [], None)
    model = build_model(trunk, head, head_shape(tokenizer, trunk)).train(not scored)
    met = 0

    def meet(module: torch.nn.Module, inputs: Any) -> None:
        nonlocal met
        met += sum(parameter.numel() for parameter in module.parameters())

    for module in model.trunk.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(meet)
    model.hidden(torch.zeros(1, 1, dtype=torch.long))
    passes = 9 if scored else 5
    low_rank = sum(p.numel() for n, p in model.named_parameters() if ".loops." in n)
    met += low_rank * (3 if scored else 1)  # the last again beyond the second pass
    attention = 2 * passes * trunk.d_model * trunk.sequence_length
    expected = 2 * met + attention + head.flops(head_shape(tokenizer, trunk))
    assert flops_of_token(trunk, head, tokenizer, scored=scored) == expected
