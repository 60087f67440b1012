"""Configs: what is read, what is refused and with which hint, and the way back to plain values."""

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokgolf.config import (
    MAX_TOML_BYTES,
    SHAPE,
    TrunkConfig,
    check_positive,
    from_dict,
    merged,
    nearest,
    parse_overrides,
    parse_size,
    read_toml,
    to_dict,
)
from tokgolf.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5
    name: str = "inner"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    count: int = 1
    rate: float = 1.0
    flag: bool = False
    title: str = "t"
    limit: int | None = None
    scale: float | None = None
    mode: Literal["fast", "slow"] = "fast"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    anything: Any = 0
    inner: Inner = Inner()


finite = st.floats(allow_nan=False)
inners = st.builds(Inner, rate=finite, name=st.text())
leaves = st.one_of(st.integers(), finite, st.booleans(), st.text())
trees = st.recursive(
    st.dictionaries(st.text(max_size=3), leaves, max_size=3),
    lambda below: st.dictionaries(st.sampled_from("abcd"), st.one_of(leaves, below), max_size=4),
    max_leaves=12,
)
outers = st.builds(
    Outer,
    count=st.integers(),
    rate=finite,
    flag=st.booleans(),
    title=st.text(),
    limit=st.none() | st.integers(),
    scale=st.none() | finite,
    mode=st.sampled_from(["fast", "slow"]),
    options=trees,
    anything=leaves,
    inner=inners,
)


# from_dict and to_dict.


@given(config=outers)
@settings(deadline=None)
def test_from_dict_is_the_inverse_of_to_dict(config: Outer) -> None:
    assert from_dict(Outer, to_dict(config), "test") == config


def test_to_dict_gives_nested_plain_values_without_none() -> None:
    config = Outer(count=3, options={"a": {"b": None, "c": 1}}, inner=Inner(rate=2.0))
    assert to_dict(config) == {
        "count": 3,
        "rate": 1.0,
        "flag": False,
        "title": "t",
        "mode": "fast",
        "options": {"a": {"c": 1}},
        "anything": 0,
        "inner": {"rate": 2.0, "name": "inner"},
    }


def test_missing_keys_take_their_defaults() -> None:
    assert from_dict(Outer, {}, "test") == Outer()
    values = {"count": 7, "inner": {"rate": 0.25}}
    assert from_dict(Outer, values, "test") == Outer(count=7, inner=Inner(rate=0.25))


def test_an_int_is_taken_for_a_float() -> None:
    config = from_dict(Outer, {"rate": 2, "scale": 3, "inner": {"rate": 4}}, "test")
    values = (config.rate, config.scale, config.inner.rate)
    assert values == (2.0, 3.0, 4.0)
    assert all(type(value) is float for value in values)


def test_a_built_dataclass_is_taken_as_it_is() -> None:
    assert from_dict(Outer, {"inner": Inner(rate=9.0)}, "test").inner == Inner(rate=9.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 1.0}, "test.count is 1.0; it must be of type int"),
        ({"count": "1"}, "test.count is '1'; it must be of type int"),
        ({"count": True}, "test.count is True; it must be of type int"),
        ({"count": None}, "test.count is None; it must be of type int"),
        ({"rate": "fast"}, "test.rate is 'fast'; it must be of type float"),
        ({"rate": True}, "test.rate is True; it must be of type float"),
        ({"flag": 1}, "test.flag is 1; it must be of type bool"),
        ({"flag": "true"}, "test.flag is 'true'; it must be of type bool"),
        ({"title": 3}, "test.title is 3; it must be of type str"),
        ({"limit": 1.5}, "test.limit is 1.5; it must be of type int"),
        ({"limit": False}, "test.limit is False; it must be of type int"),
        ({"scale": "x"}, "test.scale is 'x'; it must be of type float"),
        ({"mode": "fats"}, "test.mode is 'fats'; did you mean 'fast'?"),
        ({"mode": 3}, "test.mode is 3; known: fast, slow"),
        ({"options": [1]}, "test.options is [1]; it must be of type dict"),
        ({"inner": 3}, "test.inner is 3; it is a table: set its keys, such as rate"),
        ({"inner": {"rate": "x"}}, "test.inner.rate is 'x'; it must be of type float"),
        ({"conut": 1}, "test: unknown key 'conut'; did you mean 'count'?"),
        ({"inner": {"nmae": "x"}}, "test.inner: unknown key 'nmae'; did you mean 'name'?"),
        ({"inner": {"zzz": 1}}, "test.inner: unknown key 'zzz'; known: name, rate"),
    ],
)
def test_bad_values_are_refused_with_their_place(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(Outer, values, "test")
    assert str(caught.value) == message


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(TrunkConfig)])
def test_a_misspelt_trunk_option_names_the_right_one(field: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean '{field}'"):
        from_dict(TrunkConfig, {field[:-1] + "_" + field[-1]: 1}, "trunk")


@given(word=st.text(max_size=8), known=st.lists(st.text(min_size=1, max_size=8), min_size=1))
@settings(deadline=None)
def test_a_hint_names_known_words(word: str, known: list[str]) -> None:
    hint = nearest(word, known)
    assert hint == f"known: {', '.join(sorted(known))}" or hint in {
        f"did you mean {choice!r}?" for choice in known
    }
    assert nearest(known[0], known) == f"did you mean {known[0]!r}?"


# TrunkConfig.


def test_trunk_defaults_are_the_naive_baseline() -> None:
    config = TrunkConfig()
    per_block = 786_432 + 1_048_576 + 2_056  # attention, MLP, vectors: as the record states them
    assert config.num_params() == 9 * per_block + 2_048
    assert (config.layers, config.d_model, config.sequence_length) == (9, 512, 1024)
    assert (config.rope_base, config.qk_gain) == (10_000.0, 1.5)


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(TrunkConfig)][:8])
@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_every_size_and_scale_must_be_positive(field: str, value: float) -> None:
    values: dict[str, Any] = {field: value}
    with pytest.raises(ConfigError, match=f"{field} is {value}; it must be greater than 0"):
        TrunkConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"d_model": 500}, "d_model 500 .* 8 heads .* multiple of 16"),
        ({"d_model": 24, "heads": 8}, "d_model 24 .* 8 heads .* multiple of 16"),
        ({"heads": 6, "kv_heads": 4, "d_model": 48}, "heads 6 .* kv_heads 4"),
        ({"heads": 4, "kv_heads": 8}, "heads 4 .* kv_heads 8"),
        ({"negative_slope": -0.1}, r"negative_slope is -0\.1"),
        ({"negative_slope": math.nan}, "negative_slope is nan"),
        ({"rope_fraction": 0.0}, r"rope_fraction is 0\.0; .* 64 dimensions"),
        ({"rope_fraction": 0.02}, r"rope_fraction is 0\.02; .* 64 dimensions"),
        ({"parallel": 10}, "parallel is 10; it must be from 0 to 9"),
        ({"xsa": -1}, "xsa is -1; it must be from 0 to 9"),
        ({"loops": 0}, "loops is 0; it must be from 1 to 16"),
        ({"loops": 2}, "loops is 2 .* loop_blocks 0"),
        ({"loop_rank": 4}, "loop_rank is 4 with loops 1; .* loops of 2 or more"),
        (
            {"loop_rank": 256, "loop_blocks": 1, "loops": 2},
            "loop_rank is 256 with loops 2; .* below 256",
        ),
        ({"loops_scored": 17, "loop_blocks": 1}, "loops_scored is 17; it must be from 0 to 16"),
        ({"loop_start": 5, "loop_blocks": 5}, "loop_start 5 and loop_blocks 5 .* 9 layers"),
        (
            {"smear": True, "d_model": 8, "heads": 2, "kv_heads": 1},
            "smear reads 12 .* d_model is 8",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrunkConfig(**values)


def test_check_positive_looks_at_the_named_fields_only() -> None:
    config = Outer(count=0, rate=1e-300)
    check_positive(config, "rate")
    with pytest.raises(ConfigError, match="count is 0"):
        check_positive(config, "rate", "count")


# parse_overrides and merged.


def test_overrides_are_read_into_nested_tables() -> None:
    settings = [
        "trunk.layers=4",
        "head.input=own",
        "trunk.rope_base=1e4",
        "seed=7",
        "fast=true",
        'head.base.name="a=b"',
        "corpus.files=[1, 2]",
        "note=two words",
        "empty=",
        "head.size=16MB",
        " padded =3",
    ]
    assert parse_overrides(settings) == {
        "trunk": {"layers": 4, "rope_base": 1e4},
        "head": {"input": "own", "base": {"name": "a=b"}, "size": "16MB"},
        "seed": 7,
        "fast": True,
        "corpus": {"files": [1, 2]},
        "note": "two words",
        "empty": "",
        "padded": 3,
    }


def test_a_later_override_wins() -> None:
    assert parse_overrides(["a.b=1", "a.b=2"]) == {"a": {"b": 2}}
    assert parse_overrides([]) == {}


@pytest.mark.parametrize("setting", ["trunk.layers", "", "=4", " =4"])
def test_an_override_without_key_or_value_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match="write it as key=value"):
        parse_overrides([setting])


def test_an_override_below_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="'trunk' was already set to a value"):
        parse_overrides(["trunk=3", "trunk.layers=4"])


@given(
    values=st.dictionaries(
        st.from_regex(r"[a-z_]{1,8}", fullmatch=True),
        st.integers(-(2**63), 2**63 - 1) | st.booleans(),
        min_size=1,
    )
)
@settings(deadline=None)
def test_overrides_give_back_what_was_written(values: dict[str, int | bool]) -> None:
    settings = [f"t.{key}={str(value).lower()}" for key, value in values.items()]
    result = parse_overrides(settings)["t"]
    assert result == values
    assert all(type(result[key]) is type(value) for key, value in values.items())


def test_merged_goes_table_by_table() -> None:
    base = {"trunk": {"layers": 9, "heads": 8}, "seed": 1, "head": {"name": "tied"}}
    over = {"trunk": {"layers": 4}, "seed": {"a": 1}, "head": 3, "new": {"x": 1}}
    assert merged(base, over) == {
        "trunk": {"layers": 4, "heads": 8},
        "seed": {"a": 1},
        "head": 3,
        "new": {"x": 1},
    }


def paths(tree: dict[str, Any]) -> dict[tuple[str, ...], Any]:
    """All leaves by their path; an empty table is a leaf."""
    result: dict[tuple[str, ...], Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            result |= {(key, *below): leaf for below, leaf in paths(value).items()}
        else:
            result[(key,)] = value
    return result


@given(base=trees, over=trees)
@settings(deadline=None)
def test_merged_keeps_every_leaf_that_is_not_covered(
    base: dict[str, Any], over: dict[str, Any]
) -> None:
    copies = copy.deepcopy((base, over))
    result = merged(base, over)
    assert (base, over) == copies  # neither is changed
    assert merged(base, {}) == base
    assert merged({}, over) == over
    assert merged(result, over) == result
    leaves_of_result = paths(result)
    for path, value in paths(over).items():
        assert value == {} or leaves_of_result[path] == value
    for path, value in paths(base).items():
        place: Any = over
        covered = False
        for key in path:
            covered = not isinstance(place, dict) or key in place
            if not covered:
                break
            place = place[key] if isinstance(place, dict) else place
        assert covered or leaves_of_result[path] == value


# read_toml and parse_size.


def test_toml_is_read_and_its_errors_are_placed(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_bytes('[trunk]\nlayers = 4\nname = "é"\n'.encode())
    assert read_toml(path) == {"trunk": {"layers": 4, "name": "é"}}
    for data, hint in ((b"[trunk\n", "line 1"), (b'a = "\xff"', "utf-8")):
        path.write_bytes(data)
        with pytest.raises(ConfigError, match=f"r.toml is not valid TOML: .*{hint}"):
            read_toml(path)
    with pytest.raises(FileNotFoundError):
        read_toml(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("16MB", 16_000_000),
        ("16000000", 16_000_000),
        ("250KB", 250_000),
        ("1MiB", 1_048_576),
        ("2GiB", 2_147_483_648),
        ("3GB", 3_000_000_000),
        ("4KiB", 4_096),
        ("123", 123),
        ("123B", 123),
        ("1", 1),
        ("1.5KB", 1_500),
        ("0.5 KiB", 512),
        (" 16 mb ", 16_000_000),
        ("16Mib", 16_777_216),
    ],
)
def test_sizes_have_these_values(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert type(parse_size(text)) is int


@pytest.mark.parametrize(
    "text", ["", "MB", "-1", "+1", "1e6", "16 apples", "16M", "1.MB", ".5MB", "1,000", "16MB 3"]
)  # fmt: skip
def test_what_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize("text", ["0", "0MB", "0.0", "0.5", "0.9B", "0.0001KB"])
def test_less_than_a_byte_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="less than one byte"):
        parse_size(text)


@given(count=st.integers(1, 2**40), unit=st.sampled_from(["", "B", "KB", "MB", "KiB", "MiB"]))
@settings(deadline=None)
def test_whole_sizes_are_exact(count: int, unit: str) -> None:
    factor = {"KB": 1000, "MB": 10**6, "KiB": 1024, "MiB": 2**20}.get(unit, 1)
    count = count // factor + 1
    for text in (f"{count}{unit}", f"{count} {unit.lower()}"):
        assert parse_size(text) == count * factor


@pytest.mark.parametrize("name", ["rope_base", "qk_gain"])
@pytest.mark.parametrize("value", [1e308, 1e13, 1e-13, 5e-324])
def test_a_scale_that_overflows_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{name} is .*; it must be between 1e-12 and"):
        from_dict(TrunkConfig, {name: value}, "here")


@pytest.mark.parametrize("text", ["x = " + "[" * 5000, "x = " + "9" * 5000, "x = \udcff"])
def test_toml_that_python_cannot_take_is_an_error_with_its_path(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match="x.toml is not valid TOML"):
        read_toml(path)
    path.write_bytes(b"#" * (MAX_TOML_BYTES + 1))
    with pytest.raises(ConfigError, match="x.toml has over 262,144 bytes"):
        read_toml(path)


def test_a_stored_trunk_is_its_shape_and_what_is_on() -> None:
    shape = TrunkConfig(layers=3).stored()
    assert sorted(shape) == sorted(SHAPE) and shape["layers"] == 3
    options = {f.name: f.default for f in dataclasses.fields(TrunkConfig) if f.name not in SHAPE}
    assert len(options) > 10
    on = TrunkConfig(smear=True, loops=2, loop_blocks=1)
    assert on.stored() == {**TrunkConfig().stored(), "smear": True, "loops": 2, "loop_blocks": 1}
    assert from_dict(TrunkConfig, on.stored(), "header") == on
