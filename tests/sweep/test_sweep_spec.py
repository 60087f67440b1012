"""Specs, their grids, the ids of cells, and trunks of equal bytes."""

import re
from pathlib import Path
from typing import Any

import pytest
from sweep_support import TINY, write_texts

from tokgolf.config import TrunkConfig
from tokgolf.cost import cost_of
from tokgolf.errors import CapError, ConfigError
from tokgolf.heads import head_config
from tokgolf.quantize.rows import QuantConfig, quant_config
from tokgolf.sweep.equal import grown
from tokgolf.sweep.plan import plan, read_job, read_texts, write_job
from tokgolf.sweep.spec import SweepSpec, read_spec, sweep_names
from tokgolf.tokenizers import Tokenizer, build_tokenizer


def spec(**values: Any) -> SweepSpec:
    return SweepSpec(**{"name": "s", "cap": "1MB", "axes": {"seed": [1]}, **values})


def test_an_option_is_left_out_of_the_cells_of_heads_and_tokenizers_without_it() -> None:
    axes = {
        "head": ["tied", "factorized"],
        "head.rank": [8, 16],
        "add": ["none", "bigram-hash"],
        "head.add.bigram-hash.dim": [8],
    }
    grid = spec(axes=axes).grid()
    heads = [(s["head"], s.get("head.rank"), s.get("head.add.bigram-hash.dim")) for s in grid]
    assert len(heads) == len(set(heads)) == 6
    assert ("tied", None, None) in heads and ("factorized", 16, 8) in heads
    assert all(s["bits"] is None and s["vocab_size"] == 1024 for s in grid)


def test_a_byte_tokenizer_is_one_cell_whatever_the_vocabularies() -> None:
    axes = {"tokenizer": {"kind": ["bpe", "byte"]}, "vocab_size": [300, 400]}
    found = [(s["tokenizer.kind"], s["vocab_size"]) for s in spec(axes=axes).grid()]
    assert found == [("bpe", 300), ("bpe", 400), ("byte", 257)]


def test_hand_picked_cells_have_the_constants_of_the_grid_and_their_own_settings() -> None:
    axes = {"vocab_size": 300, "head": ["tied", "untied"]}
    grid = spec(axes=axes, cells=[{"head": "vq", "trunk": {"layers": 2}}]).grid()
    assert [(s["head"], s["vocab_size"], s.get("trunk.layers")) for s in grid] == [
        ("tied", 300, None),
        ("untied", 300, None),
        ("vq", 300, 2),
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"axes": {"vocab_sizes": [1]}}, "no axis 'vocab_sizes'; did you mean 'vocab_size'"),
        ({"axes": {"trunk.layer": [1]}}, "did you mean 'trunk.layers'"),
        ({"axes": {"head.rank": [1]}}, "no axis 'head.rank'"),
        ({"axes": {"head": ["tide"]}}, "no 'tide'; did you mean 'tied'"),
        ({"axes": {"add": ["none", "canonical-mask+bigram"]}}, "no 'bigram'; did you mean 'bigram"),
        ({"axes": {"tokenizer.kind": ["bep"]}}, "no 'bep'; did you mean 'bpe'"),
        ({"axes": {"seed": []}}, "axes.seed has no value"),
        ({"axes": {"seed": [[1]]}}, "give plain values"),
        ({"axes": {"seed": [*range(400)], "vocab_size": [*range(400)]}}, "has 160,000 cells"),
        ({"axes": {}, "cells": [1]}, "write it as a table"),
    ],
)
def test_a_grid_that_cannot_be_meant_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        spec(**values).grid()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "a/b"}, "usable as a folder's name"),
        ({"axes": {}}, "no .axes. and no"),
        ({"equal": "time", "recipe": "cpu", "run": {"minutes": None}}, "no minutes are given"),
        ({"run": {"minutes": 1.0}}, "minutes are given, which end a run by the clock"),
        ({"axes": {"minutes": [1.0]}}, "minutes are given, which end a run by the clock"),
        ({"cells": [{}], "search": {"trials": 2}}, "a search chooses cells of the grid"),
        ({"axis": {}}, "unknown key 'axis'; did you mean 'axes'"),
    ],
)
def test_a_spec_that_cannot_be_meant_is_refused(
    values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "s.toml").write_text('cap = "1MB"\n')
    with pytest.raises(ConfigError, match=message):
        read_spec(
            tmp_path / "s.toml",
            {"axes": {"seed": [1]}, **values} if "axes" not in values else values,
        )


@pytest.mark.parametrize("name", sweep_names())
def test_every_shipped_sweep_has_cells(name: str) -> None:
    assert read_spec(name).grid()


def test_a_spec_that_is_not_there_names_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match="shipped ones are bits, heads, vocab"):
        read_spec("vocabulary")


def test_an_id_depends_on_what_decides_the_result_alone(tmp_path: Path) -> None:
    texts = write_texts(tmp_path)

    def ids(device: str = "cpu", **values: Any) -> list[str]:
        one = spec(**{**texts, "run": TINY, **values})
        return [job.id for job in plan(one, read_texts(one), device)]

    first = ids(axes={"seed": [1, 2]})
    assert len(set(first)) == 2
    assert ids("cuda", axes={"seed": 2, "trunk.layers": [1]}, name="other") == first[1:]
    for other in (
        {"axes": {"seed": [3]}},
        {"axes": {"vocab_size": [300]}},
        {"cap": "2MB"},
        {"stride": 8},
        {"scored": texts["corpus"]},
        {"equal": "bytes"},
        {"axes": {"bits": [4.0]}},
    ):
        assert not set(ids(**other)) & set(first), other


def test_a_job_is_read_as_it_was_written_and_refused_when_changed(tmp_path: Path) -> None:
    one = spec(**write_texts(tmp_path), run=TINY)
    [job] = plan(one, read_texts(one), "cpu")
    run = write_job(tmp_path, job)
    assert read_job(run) == job and run.name == job.id
    text = (run / "job.json").read_text()
    (run / "job.json").write_text(text.replace('"steps": 6', '"steps": 7'))
    with pytest.raises(ConfigError, match="its id is"):
        read_job(run)


def test_cells_that_fill_a_cap_need_one(tmp_path: Path) -> None:
    texts = write_texts(tmp_path)
    for values in ({"equal": "bytes", "axes": {"bits": [4.0]}}, {}):
        one = spec(**texts, cap=None, **values)
        with pytest.raises(ConfigError, match="needs a cap"):
            plan(one, read_texts(one), "cpu")


# --- equal bytes


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return build_tokenizer("byte", [], None)


TRUNK = TrunkConfig(layers=2, d_model=32, heads=2, kv_heads=1, mlp_hidden=64, sequence_length=16)


@pytest.mark.parametrize("grow", ["width", "mlp"])
@pytest.mark.parametrize(
    "head", [{"name": "tied"}, {"name": "untied"}, {"name": "untied", "untie_at": 0.5}]
)
def test_a_grown_trunk_fills_the_cap_and_keeps_under_it(
    head: dict[str, Any], grow: str, tokenizer: Tokenizer
) -> None:
    chosen, cap = head_config(head), 90_000
    trunk = grown(TRUNK, chosen, tokenizer, cap=cap, bits=4.0, grow=grow)
    full = cost_of(trunk, chosen, tokenizer, bits=4.0).ledger.full
    unit = 2 * trunk.layers * trunk.d_model * 8 * 4.0 / 8
    assert cap - unit - 64 < full <= cap + 8  # 8: a header's numbers may have a digit more
    assert (trunk.d_model == TRUNK.d_model) == (grow == "mlp")
    assert trunk.layers == TRUNK.layers and trunk.mlp_hidden % 8 == 0


@pytest.mark.parametrize("grow", ["width", "mlp"])
def test_a_cap_without_room_for_a_trunk_is_refused_with_both_numbers(
    grow: str, tokenizer: Tokenizer
) -> None:
    with pytest.raises(CapError, match=r"under the cap of 10,000 bytes .* the narrowest is"):
        grown(TRUNK, head_config({"name": "tied"}), tokenizer, cap=10_000, bits=4.0, grow=grow)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"run": {"head": "tied"}}, "run.head is 'tied'; write run.head.name"),
        ({"axes": {"bits": ["abc"]}}, "axes.bits has 'abc'"),
        ({"run": {"trunk_from": "runs/x"}}, "the sweep sets trunk_from"),
    ],
)
def test_slips_in_a_spec_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        SweepSpec(**{"name": "s", "axes": {"seed": [1]}, **values}).grid()


def test_cells_are_exported_as_the_command_does_it(tmp_path: Path) -> None:
    one = spec(**write_texts(tmp_path))
    (job,) = plan(one, read_texts(one), "cpu")
    assert job.quant_config() == quant_config() != QuantConfig()
