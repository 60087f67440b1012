"""What a sweep is asked to do: a TOML file, read into a frozen dataclass, and its cells' settings.

An axis is a dotted name with one value or a list; all lists together make a grid. A cell's settings
are flat: axis -> value. Nothing here opens a corpus or builds anything; `plan` does.
"""

import dataclasses
import itertools
import os
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from tokgolf.config import check_positive, flat, from_dict, merged, nearest, parse_size, read_toml
from tokgolf.errors import ConfigError
from tokgolf.heads import ADDONS, HEADS, head_config
from tokgolf.quantize.rows import QuantConfig
from tokgolf.sweep.cells import Equal
from tokgolf.tokenizers.base import MIN_VOCAB_SIZE
from tokgolf.tokenizers.build import BUILT_KINDS
from tokgolf.training.config import RunConfig, read_recipe

Settings = dict[str, Any]
TOKENIZER_OPTIONS = (
    "kind", "pattern", "transform", "order", "score_step", "sample_bytes", "seed",
    "bigram_buckets", "bigram_seed",
)  # fmt: skip
QUANTIZER_OPTIONS = tuple(f.name for f in dataclasses.fields(QuantConfig) if f.name != "bits")
NO_ADDON = "none"
NAMED: dict[str, Iterable[str]] = {"head": HEADS, "add": ADDONS, "tokenizer.kind": BUILT_KINDS}
"""Axes whose values are names."""
MOST_CELLS = 100_000


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Adaptive search: instead of the whole grid, so many of its cells, chosen by Optuna's TPE."""

    trials: int = 0
    metric: Literal["bpb", "bpb_before_export"] = "bpb"
    seed: int = 1337

    def __post_init__(self) -> None:
        if self.trials < 0:
            raise ConfigError(f"search.trials is {self.trials}; it must be 0 (no search) or more")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What runs the cells; it decides nothing about their results.

    `jobs` cells at a time, each with `threads` CPU threads (0: the machine's cores divided by
    `jobs`), `gpus` GPUs and, on a cluster, `memory_gb` of memory and `minutes` of time. `slurm` are
    more parameters of submitit, such as `slurm_partition`; `address` is that of a running Ray
    cluster.
    """

    name: Literal["local", "slurm", "ray"] = "local"
    jobs: int = 1
    threads: int = 0
    gpus: int = 0
    memory_gb: float = 4.0
    minutes: int = 240
    address: str = ""
    slurm: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_positive(self, "jobs", "memory_gb", "minutes")
        if self.threads < 0 or self.gpus < 0:
            raise ConfigError(
                f"engine.threads is {self.threads} and engine.gpus {self.gpus}; neither can be "
                "below 0"
            )


@dataclass(frozen=True, kw_only=True)
class SweepSpec:
    """A sweep. `run` goes over the recipe, an axis over both.

    `equal` says what all cells have alike beside their data: "steps" of training; "time", which is
    `minutes` of it; or "bytes": equal steps, and a trunk as wide as fits under the cap at `bits` a
    weight (4 without). `grow` is then what is made wider: "width" all of it, "mlp" only the MLP.
    `axes` are values or lists of them, `cells` more settings beside the grid, and both may give a
    `cap` of their own. `stride` is the scorer's. With `processes` over 1 a cell's training is
    started by torchrun.
    """

    name: str
    corpus: str = "stdlib:train"
    scored: str = "stdlib:val"
    equal: Equal = "steps"
    cap: str | None = None
    grow: Literal["width", "mlp"] = "width"
    recipe: str = "cpu"
    stride: int = 0
    processes: int = 1
    run: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, Any] = field(default_factory=dict)
    cells: list[Any] = field(default_factory=list)
    search: SearchConfig = field(default_factory=SearchConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        check_positive(self, "processes")
        if not self.name or self.name != Path(self.name).name or self.name.startswith("."):
            raise ConfigError(f"name is {self.name!r}; it must be usable as a folder's name")
        if not self.axes and not self.cells:
            raise ConfigError("the sweep has no [axes] and no [[cells]]; give at least one of them")
        if self.search.trials and self.cells:
            raise ConfigError(
                f"search.trials is {self.search.trials} and there are {len(self.cells)} [[cells]]: "
                "a search chooses cells of the grid; leave one of them out"
            )
        if not isinstance(self.run.get("head", {}), Mapping):
            raise ConfigError(
                f"run.head is {self.run['head']!r}; write run.head.name = {self.run['head']!r}, or "
                "head under [axes]"
            )
        values = merged(read_recipe(self.recipe), self.run)
        if values.get("trunk_from") or "trunk_from" in self.flat_axes():
            raise ConfigError(
                "the sweep sets trunk_from: a cell is named after what decides its result, and the "
                "name of a folder does not say what is in it; train these by hand"
            )
        if self.equal == "time" and values.get("minutes") is None:
            raise ConfigError('equal = "time", but no minutes are given; write run.minutes = 2.0')
        if self.equal != "time" and (self.run.get("minutes") or "minutes" in self.flat_axes()):
            raise ConfigError(
                f'equal = "{self.equal}", and minutes are given, which end a run by the clock; '
                'leave them out, or use equal = "time"'
            )

    def cap_bytes(self) -> int | None:
        """The cap of cells that have none of their own, in bytes."""
        return None if self.cap is None else parse_size(self.cap)

    def flat_axes(self) -> dict[str, list[Any]]:
        """Every axis with its values, in the order of the file.

        {"vocab_size": 300, "trunk": {"layers": [1, 2]}} -> vocab_size [300], trunk.layers [1, 2]
        """
        return {
            name: list(value) if isinstance(value, list) else [value]
            for name, value in flat(self.axes).items()
        }

    @cached_property
    def base(self) -> dict[str, Any]:
        """The recipe with `run` over it. Only time ends a run of equal time, nothing else does."""
        values = merged(read_recipe(self.recipe), self.run)
        if self.equal == "time":
            return merged(values, {"steps": 10**9})
        return {key: value for key, value in values.items() if key != "minutes"}

    def grid(self) -> list[Settings]:
        """The settings of every cell, without repetitions: the grid's, then those of `cells`.

        An option that only some heads or add-ons have is left out of the cells of the others.
        """
        axes = self.flat_axes()
        for name, values in axes.items():
            if not values:
                raise ConfigError(f"axes.{name} has no value; give it one, or leave it out")
        self._check_names(axes)
        size = 1
        for values in axes.values():
            size *= len(values)
        if size > MOST_CELLS:
            raise ConfigError(f"the grid has {size:,} cells; at most {MOST_CELLS:,} are planned")
        constants = {name: values[0] for name, values in axes.items() if len(values) == 1}
        found = []
        if axes:
            for combination in itertools.product(*axes.values()):
                found.append(self.settled(dict(zip(axes, combination, strict=True))))
        for number, cell in enumerate(self.cells, 1):
            if not isinstance(cell, Mapping):
                raise ConfigError(f"cell {number} is {cell!r}; write it as a table, [[cells]]")
            own = flat(cell)
            self._check_names({name: [value] for name, value in own.items()})
            found.append(self._whole({**self._applicable({**constants, **own}), **own}))
        unique = {repr(sorted(settings.items())): settings for settings in found}
        return list(unique.values())

    def settled(self, combination: Settings) -> Settings:
        """The settings of a cell of the grid, from a value of every axis."""
        return self._whole(self._applicable(combination))

    def _check_names(self, axes: Mapping[str, list[Any]]) -> None:
        """Raise `ConfigError` for an axis that nothing has, or a value that is no plain one."""
        heads = [str(h) for h in [*axes.get("head", []), *self.flat_axes().get("head", [])]]
        heads = heads or [self._head()]
        known = [*axis_names(), *(f"head.{name}" for head in heads for name in head_options(head))]
        for name, values in axes.items():
            if name not in known and not (name.startswith("head.add.") and name.count(".") == 3):
                raise ConfigError(f"there is no axis {name!r}; {nearest(name, known)}")
            for value in values:
                if not isinstance(value, str | int | float):
                    raise ConfigError(f"axes.{name} has the value {value!r}; give plain values")
                if name == "bits" and value != "fill" and not isinstance(value, int | float):
                    raise ConfigError(f'axes.bits has {value!r}; give numbers, or "fill"')
                for part in addons_of({"add": value}) if name == "add" else [value]:
                    if name in NAMED and part not in set(NAMED[name]):
                        raise ConfigError(
                            f"axes.{name}: there is no {part!r}; {nearest(str(part), NAMED[name])}"
                        )

    def _head(self) -> str:
        return str(self.base.get("head", {}).get("name", "tied"))

    def _applicable(self, settings: Settings) -> Settings:
        """The settings without the options that this head, or its add-ons, do not have."""
        options = head_options(str(settings.get("head", self._head())))
        added = addons_of(settings)

        def applies(name: str) -> bool:
            if name.startswith("head.add."):
                return name.split(".")[2] in added
            return not name.startswith("head.") or name.removeprefix("head.") in options

        return {name: value for name, value in settings.items() if applies(name)}

    def _whole(self, settings: Settings) -> Settings:
        """The settings with what every cell has: kind, vocabulary, head, bits, seed."""
        kind = settings.get("tokenizer.kind", "bpe")
        size = MIN_VOCAB_SIZE if kind == "byte" else settings.get("vocab_size", 1024)
        bits = settings.get("bits")
        whole = {
            "tokenizer.kind": kind,
            "vocab_size": size,
            "head": settings.get("head", self._head()),
            "bits": None if bits in (None, "fill") else bits,
            "seed": settings.get("seed", self.base.get("seed", RunConfig().seed)),
        }
        if "cap" in settings:
            whole["cap"] = parse_size(str(settings["cap"]))
        return {**whole, **{n: v for n, v in settings.items() if n not in whole}}


def addons_of(settings: Settings) -> list[str]:
    """The add-ons that settings name: "bigram-hash+canonical-mask" -> both."""
    text = str(settings.get("add", NO_ADDON))
    return [] if text in ("", NO_ADDON) else sorted(name.strip() for name in text.split("+"))


@cache
def head_options(head: str) -> list[str]:
    """Names of a head's options; none for a head that there is not."""
    if head not in HEADS:
        return []
    fields = dataclasses.fields(head_config({"name": head}))
    return [field.name for field in fields if field.name != "add"]


def axis_names() -> list[str]:
    """Every axis but the heads' own options, which depend on the heads."""
    return [
        *("vocab_size", "head", "add", "bits", "cap", *QUANTIZER_OPTIONS),
        *(f"tokenizer.{name}" for name in TOKENIZER_OPTIONS),
        *_leaves(RunConfig),
    ]


def _leaves(config: type, before: str = "") -> Iterable[str]:
    """Dotted names of all plain fields of a nested config class, but for the head."""
    hints = typing.get_type_hints(config)
    for entry in dataclasses.fields(config):
        kind = hints[entry.name]
        if dataclasses.is_dataclass(kind):
            yield from _leaves(typing.cast(type, kind), f"{before}{entry.name}.")
        elif entry.name != "head":
            yield before + entry.name


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flat`: {"trunk.layers": 2} -> {"trunk": {"layers": 2}}."""
    result: dict[str, Any] = {}
    for name, value in settings.items():
        *tables, key = name.split(".")
        place = result
        for table in tables:
            place = place.setdefault(table, {})
        place[key] = value
    return result


def sweep_names() -> list[str]:
    """Names of the sweeps that come with tokgolf."""
    folder = resources.files("tokgolf.sweep") / "recipes"
    return sorted(path.name[:-5] for path in folder.iterdir() if path.name.endswith(".toml"))


def read_spec(path: str | os.PathLike[str], over: Mapping[str, Any] | None = None) -> SweepSpec:
    """The sweep in a TOML file, or the shipped one of this name; `over` goes over its values.

    Raises `ConfigError` for a file that is none, with the nearest known key.
    """
    text = os.fspath(path)
    if text in sweep_names():
        with resources.as_file(resources.files("tokgolf.sweep") / "recipes") as folder:
            values = read_toml(folder / f"{text}.toml")
    elif Path(path).is_file():
        values = read_toml(Path(path))
    else:
        raise ConfigError(
            f"there is no sweep or file {text!r}; shipped ones are {', '.join(sweep_names())}"
        )
    values = merged({"name": Path(path).stem}, merged(values, over or {}))
    if type(values.get("cap")) is int:
        values["cap"] = str(values["cap"])
    return from_dict(SweepSpec, values, f"sweep {text}")
