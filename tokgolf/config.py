"""Frozen configuration dataclasses: how they are read, overridden and written.

Each part of tokgolf owns its own config class beside its code; this module holds only the
mechanism and the one class that several layers share (`TrunkConfig`). A config is built once,
checked in `__post_init__`, and never changed. Standard library only.
"""

import dataclasses
import difflib
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

from tokgolf.errors import ConfigError

Config = TypeVar("Config")
MAX_TOML_BYTES = 1 << 18
MAX_SCALE = 1e12
MAX_LOOPS = 16
MAX_WIDTH = 1 << 24
SMEAR_INPUTS = 12
SHAPE = (
    "layers", "d_model", "heads", "kv_heads", "mlp_hidden",
    "sequence_length", "rope_base", "qk_gain",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrunkConfig:
    """Shape of the shared transformer trunk; the defaults are the challenge's naive baseline.

    Options beyond the baseline are off at their defaults, which must stay so (`stored`).

    Source: openai/parameter-golf, record 2026-03-17 "NaiveBaseline"; the options from its records.
    """

    layers: int = 9
    d_model: int = 512
    heads: int = 8
    kv_heads: int = 4
    mlp_hidden: int = 1024
    sequence_length: int = 1024
    rope_base: float = 10_000.0
    qk_gain: float = 1.5

    skips: bool = True
    """U-Net skips from the first half of the blocks to the second."""

    negative_slope: float = 0.0
    """Of the MLP's activation, leaky_relu(x, slope)^2; from 0 to 1."""

    rope_fraction: float = 1.0
    """Of a head's width, the part that is rotated: up to 1, and no less than 2 dimensions."""

    layer_scale: bool = False
    """Divides what block i (from 0) reads by sqrt(i + 1)."""

    out_norm: bool = False
    """Normalises what the output projections read."""

    parallel: int = 0
    """In the last so many blocks attention and MLP read the same vector; up to `layers`."""

    xsa: int = 0
    """In the last so many blocks a head's output loses its part along the position's own value; up
    to `layers`."""

    loop_start: int = 0
    """The first of the blocks that are repeated, counted from 0."""

    loop_blocks: int = 0
    """How many blocks from `loop_start` on are repeated; none of them beyond `layers`."""

    loops: int = 1
    """How many times these blocks are applied in training; from 1 to 16."""

    loops_scored: int = 0
    """How many times in scoring; up to 16, and 0 is as in training."""

    loop_rank: int = 0
    """Each time but the first adds matrices of this rank to those of the blocks (0: none); below
    the width of the MLP and that of all key/value heads."""

    smear: bool = False
    """Adds a gated part of the position before to each input, but not to a document's first."""

    document_mask: bool = False
    """Attention does not look back across the start of a document."""

    orthogonal_init: bool = False
    """Of the projections that do not start at zero."""

    value_embeddings: int = 0
    """In the last so many blocks each token adds a learned vector to its values, from one table
    with a factor for each block; up to `layers`."""

    def __post_init__(self) -> None:
        check_positive(self, "layers", "d_model", "heads", "kv_heads", "mlp_hidden")
        check_positive(self, "sequence_length", "rope_base", "qk_gain")
        for name, value in (("rope_base", self.rope_base), ("qk_gain", self.qk_gain)):
            if not 1 / MAX_SCALE <= value <= MAX_SCALE:  # others overflow a float32
                raise ConfigError(
                    f"{name} is {value}; it must be between {1 / MAX_SCALE} and {MAX_SCALE}"
                )
        if self.d_model > MAX_WIDTH:
            raise ConfigError(f"d_model is {self.d_model}; it must be at most {MAX_WIDTH:,}")
        if self.d_model % self.heads or (self.d_model // self.heads) % 2:
            raise ConfigError(
                f"d_model {self.d_model} does not split into {self.heads} heads of even width; "
                f"make it a multiple of {2 * self.heads}"
            )
        if self.heads % self.kv_heads:
            raise ConfigError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        counts = "parallel", "xsa", "value_embeddings"
        for name in (*counts, "loop_start", "loop_blocks", "loops", "loops_scored"):
            least = 1 if name == "loops" else 0
            most = MAX_LOOPS if name.startswith("loops") else self.layers
            if not least <= getattr(self, name) <= most:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}; it must be from {least} to {most}"
                )
        if self.loop_start + self.loop_blocks > self.layers:
            raise ConfigError(
                f"loop_start {self.loop_start} and loop_blocks {self.loop_blocks} reach beyond the "
                f"{self.layers} layers"
            )
        if (self.loops > 1 or self.loops_scored) and not self.loop_blocks:
            raise ConfigError(
                f"loops is {self.loops} and loops_scored {self.loops_scored}, but loop_blocks 0: "
                "say how many blocks they repeat"
            )
        narrowest = min(self.kv_heads * (self.d_model // self.heads), self.mlp_hidden)
        if not 0 <= self.loop_rank < (narrowest if self.loops > 1 else 1):
            raise ConfigError(
                f"loop_rank is {self.loop_rank} with loops {self.loops}; it must be 0, or below "
                f"{narrowest} with loops of 2 or more"
            )
        if not 0 <= self.negative_slope <= 1:
            raise ConfigError(f"negative_slope is {self.negative_slope}; it must be in [0, 1]")
        if not 0 < self.rope_fraction <= 1 or self.rotary_width() < 2:
            raise ConfigError(
                f"rope_fraction is {self.rope_fraction}; it must be in (0, 1] and leave at least 2 "
                f"of a head's {self.d_model // self.heads} dimensions"
            )
        if self.smear and self.d_model < SMEAR_INPUTS:
            raise ConfigError(
                f"smear reads {SMEAR_INPUTS} dimensions and d_model is {self.d_model}"
            )

    def stored(self) -> dict[str, Any]:
        """What an artifact's header says: the shape, and the options that are on.

        One that is off costs no byte, and a new one leaves the files of before as they are.
        """
        options = [field for field in dataclasses.fields(self) if field.name not in SHAPE]
        values = dataclasses.asdict(self)
        off = {field.name for field in options if values[field.name] == field.default}
        return {name: value for name, value in values.items() if name not in off}

    def rotary_width(self) -> int:
        """Dimensions of a head that are rotated: even."""
        return 2 * int(self.rope_fraction * (self.d_model // self.heads) / 2)

    def order(self, *, scored: bool) -> list[int]:
        """The blocks in the order in which they are applied.

        layers=4, loop_start=1, loop_blocks=2, loops=2 -> [0, 1, 2, 1, 2, 3]
        """
        times = (self.loops_scored if scored else 0) or self.loops
        end = self.loop_start + self.loop_blocks
        loop = [*range(self.loop_start, end)]
        return [*range(self.loop_start), *loop * times, *range(end, self.layers)]

    def num_params(self, vocab_size: int = 0) -> int:
        """Trainable parameters of the trunk, without either end of the vocabulary.

        `vocab_size` counts where there are value embeddings.
        """
        head_width = self.d_model // self.heads
        attention = 2 * self.d_model * self.d_model + 2 * self.d_model * self.kv_heads * head_width
        mlp = 2 * self.d_model * self.mlp_hidden
        # attention_scale, mlp_scale, residual_mix (2), attention.gain
        vectors = 4 * self.d_model + self.heads
        skips = self.skips * (self.layers // 2) * self.d_model
        smear = SMEAR_INPUTS + 1 if self.smear else 0
        values = vocab_size * self.kv_heads * head_width + self.value_embeddings
        values = values if self.value_embeddings else 0
        low_rank = self.loop_blocks * (self.loops - 1) * self.pass_params()
        return self.layers * (attention + mlp + vectors) + low_rank + skips + smear + values

    def pass_params(self) -> int:
        """Weights of the low-rank matrices that each pass of a block but the first adds."""
        kv_width = self.kv_heads * (self.d_model // self.heads)
        return self.loop_rank * (6 * self.d_model + 2 * (self.d_model + kv_width + self.mlp_hidden))


def check_positive(config: Any, *names: str) -> None:
    """Raise `ConfigError` unless every named field of `config` is greater than 0 and finite."""
    for name in names:
        value = getattr(config, name)
        if not 0 < value < float("inf"):
            raise ConfigError(f"{name} is {value}; it must be greater than 0 and finite")


def check_types(config: Any) -> None:
    """Raise `ConfigError` unless every field has a value of its type; an int becomes a float."""
    for name, kind in typing.get_type_hints(type(config)).items():
        object.__setattr__(config, name, checked(kind, getattr(config, name), name))


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint naming the known word closest to `word`, or the list when none is close."""
    choices = sorted(known)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(choices)}"


def from_dict(cls: type[Config], values: Mapping[str, Any], where: str) -> Config:
    """Build the dataclass `cls` from plain values; nested dataclasses from nested mappings.

    `where` names the place in messages, such as "recipe cpu, [trunk]". Raises `ConfigError`
    for an unknown key (naming the nearest known one) or a value of the wrong type.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            raise ConfigError(f"{where}: unknown key {key!r}; {nearest(key, fields)}")
        kind = hints[key]
        if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
            arguments[key] = from_dict(typing.cast(type, kind), value, f"{where}.{key}")
        else:
            arguments[key] = checked(kind, value, f"{where}.{key}")
    return cls(**arguments)


def checked(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind`; an int is taken for a float, nothing else is converted.

    Raises `ConfigError`, which begins with `where`, for a value of another type.
    """
    if isinstance(kind, types.UnionType):
        options = typing.get_args(kind)
        if value is None and type(None) in options:
            return None
        kind = next(option for option in options if option is not type(None))
    if typing.get_origin(kind) is typing.Literal:
        if value not in typing.get_args(kind):
            names = [str(name) for name in typing.get_args(kind)]
            raise ConfigError(f"{where} is {value!r}; {nearest(str(value), names)}")
        return value
    kind = typing.get_origin(kind) or kind
    if kind is float and type(value) is int:
        if abs(value) >= 1 << 1023:
            raise ConfigError(f"{where} is an integer of {value.bit_length()} bits; no float is")
        return float(value)
    if kind is Any or (isinstance(value, kind) and not (kind is int and type(value) is bool)):
        return value
    if dataclasses.is_dataclass(kind):
        key = dataclasses.fields(kind)[0].name
        raise ConfigError(f"{where} is {value!r}; it is a table: set its keys, such as {key}")
    raise ConfigError(f"{where} is {value!r}; it must be of type {kind.__name__}")


def to_dict(config: Any) -> dict[str, Any]:
    """The config as nested plain values without the `None`s (TOML has no null)."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items() if item is not None}
        return value

    return typing.cast(dict[str, Any], plain(dataclasses.asdict(config)))


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by keys with dots.

    {"seed": 1, "trunk": {"layers": 4}} -> {"seed": 1, "trunk.layers": 4}
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        whole = f"{prefix}{key}"
        found.update(flat(value, f"{whole}.") if isinstance(value, Mapping) else {whole: value})
    return found


def read_toml(path: str | Path) -> dict[str, Any]:
    """Parse a TOML file. Raises `ConfigError` with the place of a syntax error."""
    with open(path, "rb") as file:
        data = file.read(MAX_TOML_BYTES + 1)
    if len(data) > MAX_TOML_BYTES:
        raise ConfigError(f"{path} has over {MAX_TOML_BYTES:,} bytes; no recipe is so long")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # of syntax, UTF-8, endless digits or brackets
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def parse_overrides(settings: Iterable[str]) -> dict[str, Any]:
    """Read `--set` options, `table.key=value`, into nested dicts; values are TOML or bare words.

    ["trunk.layers=4", "head.input=own"] -> {"trunk": {"layers": 4}, "head": {"input": "own"}}
    """
    result: dict[str, Any] = {}
    for setting in settings:
        dotted, equals, text = setting.partition("=")
        if not equals or not dotted.strip():
            raise ConfigError(f"--set {setting!r}: write it as key=value, e.g. trunk.layers=4")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except (ValueError, RecursionError):
            value = text.strip()
        *tables, key = dotted.strip().split(".")
        place = result
        for table in tables:
            place = place.setdefault(table, {})
            if not isinstance(place, dict):
                raise ConfigError(f"--set {setting!r}: {table!r} was already set to a value")
        place[key] = value
    return result


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over` put over it, table by table.

    {"trunk": {"layers": 9, "heads": 8}}, {"trunk": {"layers": 4}} -> layers 4, heads 8
    """
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = merged(typing.cast(Mapping[str, Any], old), value) if both else value
    return result


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KB|MB|GB|KiB|MiB|GiB)?", re.IGNORECASE)
_UNITS = {
    "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30,
}  # fmt: skip


def parse_size(text: str) -> int:
    """A byte count such as "16MB" (decimal, as the challenge counts), "250KB", "1MiB", "123"."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{text!r} is not a size; write for example 250KB, 16MB or 16000000")
    number, unit = match.groups()
    size = Decimal(number) * _UNITS[(unit or "B").lower()]
    if size < 1:
        raise ConfigError(f"a size of {text!r} is less than one byte")
    return round(size)
