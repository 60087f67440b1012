"""One nested frozen dataclass is the run: trunk, head, optimizers, budget, data order.

Values come from the defaults (which are the challenge's naive baseline), then a recipe file,
then `--set key=value`; the resolved config is written into the run directory.
"""

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from tokgolf.config import (
    TrunkConfig,
    check_positive,
    check_types,
    checked,
    from_dict,
    merged,
    nearest,
    read_toml,
)
from tokgolf.errors import ConfigError
from tokgolf.heads import HEADS
from tokgolf.training.averages import AverageConfig
from tokgolf.training.optimizers import OptimizerConfig
from tokgolf.training.qat import QatConfig

MAX_SEED = (1 << 63) - 1  # torch's
MOST_BATCH_TOKENS = 1 << 26


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides what a run computes, but for tokenizer and corpus.

    It ends after `steps` steps or `minutes` of training, whichever comes first: its budget. What
    begins at a fraction of it begins with the first step before which so much of it is spent
    (`average.swa_from`: after which).
    """

    trunk: TrunkConfig = field(default_factory=TrunkConfig)
    head: dict[str, Any] = field(default_factory=lambda: {"name": "tied"})
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    average: AverageConfig = field(default_factory=AverageConfig)
    qat: QatConfig = field(default_factory=QatConfig)

    batch_tokens: int = 524_288
    """Tokens of a step: a multiple of `micro_batch_tokens` and of `trunk.sequence_length`."""

    micro_batch_tokens: int = 131_072
    """Tokens of a pass, of which a step has several: a multiple of `trunk.sequence_length`; a
    larger value than `batch_tokens` means the whole batch."""

    steps: int = 20_000
    minutes: float | None = None

    warmdown_steps: int = 1_200
    """The learning rate falls linearly to `warmdown_to` of itself over the last so many steps; the
    end of that would be the step after the last: with 2, the rates are 1, 1, ..., 1, 1/2."""

    warmdown_fraction: float = 0.0
    """The same, where `warmdown_steps` is 0, over the last part of the budget, from 0 to 1."""

    warmdown_to: float = 0.0
    """A part of each rate, from 0 (the baseline's) to below 1."""

    loops_from: float = 0.0
    """Until this fraction of the budget, below 1, blocks that are to be repeated are applied
    once."""

    trunk_from: str = ""
    """The folder of the run from whose trunk this one's starts, if one is named."""

    freeze_trunk: bool = False
    """That trunk stays as it is."""

    short_length: int = 0
    """Until `short_until` every sequence is cut into sequences of so many tokens, a divisor of
    `trunk.sequence_length` (0: none is)."""

    short_until: float = 0.0
    """A fraction of the budget, up to 1; 0 where `short_length` is, and only there."""

    seed: int = 1337
    """Of the weights at the start and of the order of batches; from 0 to 2^63 - 1."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """With "auto" it is bf16 where the hardware has it."""

    compile: Literal["auto", "on", "off"] = "auto"
    """With "auto" the model is compiled where that works, and the run goes on without, saying so,
    where it does not (on a CPU it needs a C++ compiler)."""

    checkpoint_minutes: float = 5.0
    """Minutes of training between two checkpoints."""

    max_gradient: float = 1e6
    """A tensor whose gradient's norm is above this stops the run."""

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "batch_tokens", "micro_batch_tokens", "steps", "checkpoint_minutes")
        check_positive(self, "max_gradient")
        if self.batch_tokens > MOST_BATCH_TOKENS:
            raise ConfigError(
                f"batch_tokens is {self.batch_tokens:,}; at most {MOST_BATCH_TOKENS:,}, which take "
                "1 GiB as ids"
            )
        if self.minutes is not None:
            check_positive(self, "minutes")
        if self.warmdown_steps < 0:
            raise ConfigError(f"warmdown_steps is {self.warmdown_steps}; it cannot be negative")
        if not 0 <= self.seed <= MAX_SEED:
            raise ConfigError(f"seed is {self.seed}; it must be from 0 to {MAX_SEED:,}")
        if not 0 <= self.warmdown_fraction <= 1:
            raise ConfigError(
                f"warmdown_fraction is {self.warmdown_fraction}; it must be between 0 and 1"
            )
        if not 0 <= self.warmdown_to < 1:
            raise ConfigError(f"warmdown_to is {self.warmdown_to}; it must be in [0, 1)")
        if self.warmdown_steps and self.warmdown_fraction:
            raise ConfigError(
                f"warmdown_steps is {self.warmdown_steps} and warmdown_fraction "
                f"{self.warmdown_fraction}; set one of them to 0"
            )
        length = self.trunk.sequence_length
        if self.short_length and (self.short_length < 0 or length % self.short_length):
            raise ConfigError(
                f"short_length {self.short_length} does not divide trunk.sequence_length {length}"
            )
        if not 0 <= self.short_until <= 1 or bool(self.short_until) != bool(self.short_length):
            raise ConfigError(
                f"short_until is {self.short_until} and short_length {self.short_length}; set both "
                "(short_until up to 1) or neither"
            )
        if not 0 <= self.loops_from < 1 or (self.loops_from and self.trunk.loops < 2):
            raise ConfigError(
                f"loops_from is {self.loops_from} and trunk.loops {self.trunk.loops}; loops_from "
                "must be in [0, 1), and 0 where no block is repeated"
            )
        if self.freeze_trunk and not self.trunk_from:
            raise ConfigError(
                "freeze_trunk is on and trunk_from names no run: a trunk that nobody trained would "
                "stay untrained; give --from RUN"
            )
        untie_at = self.head.get("untie_at", 0.0)
        if self.qat.start < 1 and isinstance(untie_at, float) and untie_at > self.qat.start:
            raise ConfigError(
                f"qat.start is {self.qat.start} and head.untie_at {untie_at}; the steps of a table "
                "can only be chosen once it is there: set qat.start to that or later"
            )
        rank = self.trunk.loop_rank
        if rank and not self.trunk_from and self.qat.start <= self.loops_from:
            raise ConfigError(
                f"qat.start is {self.qat.start} and loops_from {self.loops_from}; the steps of "
                f"what later passes add (trunk.loop_rank {rank}) can only be chosen once that is "
                "trained: set qat.start to more than loops_from"
            )
        micro = min(self.micro_batch_tokens, self.batch_tokens)
        if micro % length or self.batch_tokens % micro:
            raise ConfigError(
                f"batch_tokens {self.batch_tokens} must be a multiple of micro_batch_tokens "
                f"{micro}, and both of trunk.sequence_length {length}"
            )


def recipe_names() -> list[str]:
    """Names of the recipes that come with tokgolf."""
    folder = resources.files("tokgolf.training") / "recipes"
    return sorted(path.name[:-5] for path in folder.iterdir() if path.name.endswith(".toml"))


def read_recipe(name_or_path: str) -> dict[str, Any]:
    """The values of a shipped recipe or of a TOML file. Raises `ConfigError` for neither."""
    if name_or_path in recipe_names():
        with resources.as_file(resources.files("tokgolf.training") / "recipes") as folder:
            return read_toml(folder / f"{name_or_path}.toml")
    path = Path(name_or_path)
    if path.is_dir():
        own = path / "config.toml"
        hint = f"the recipe of this run is {own}" if own.is_file() else "name a file in it"
        raise ConfigError(f"{path} is a folder, no recipe; {hint}")
    if not path.is_file():
        raise ConfigError(
            f"there is no recipe or file {name_or_path!r}; {nearest(name_or_path, recipe_names())}"
        )
    return read_toml(path)


def run_config(recipe: str, overrides: Mapping[str, Any]) -> RunConfig:
    """Defaults, then the recipe, then the overrides. Another head drops the recipe's options.

    Raises `ConfigError` for what is wrong in one of them, and says in which; overrides are `--set`.
    """
    values = read_recipe(recipe)
    _check_overrides(RunConfig, overrides)
    old, new = values.get("head", {}), overrides.get("head", {})
    if isinstance(old, Mapping) and new.get("name", old.get("name")) != old.get("name"):
        values = {key: value for key, value in values.items() if key != "head"}
    values = merged(values, overrides)
    head = values.get("head")
    if isinstance(head, Mapping) and "name" not in head:
        raise ConfigError(
            f"recipe {recipe} names no head; choose one with --head: {', '.join(HEADS)}"
        )
    return from_dict(RunConfig, values, f"recipe {recipe}")


def _check_overrides(cls: Any, overrides: Mapping[str, Any], place: str = "") -> None:
    """Raise `ConfigError` for what no config can hold: the recipe is not to blame for it."""
    kinds = typing.get_type_hints(cls)
    for key, value in overrides.items():
        name = f"{place}{key}"
        if key not in kinds:
            raise ConfigError(f"--set {name}={value}: unknown key {key!r}; {nearest(key, kinds)}")
        kind = typing.get_origin(kinds[key]) or kinds[key]
        is_table = kind is dict or is_dataclass(kind)
        if is_table and isinstance(value, Mapping):
            if is_dataclass(kind):
                _check_overrides(kind, value, f"{name}.")
        elif is_table and not isinstance(value, kind):
            first = "name" if kind is dict else fields(kind)[0].name
            raise ConfigError(
                f"--set {name}={value}: {name} is a table; "
                f"set its keys, as in {name}.{first}={value}"
            )
        else:
            checked(kinds[key], value, f"--set {name}")
