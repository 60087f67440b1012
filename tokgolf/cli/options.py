"""What several commands share: options, opening a corpus, printing."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tokgolf.cli.completion import (
    complete_addon,
    complete_corpus,
    complete_head,
    complete_recipe,
)
from tokgolf.config import parse_size
from tokgolf.errors import ConfigError

if TYPE_CHECKING:
    from tokgolf.corpora import Corpus

Function = TypeVar("Function", bound=Callable[..., Any])


class Size(click.ParamType[int]):
    """A byte count such as 250KB, 16MB (decimal) or 1MiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)


def json_option(function: Function) -> Function:
    """--json: the result as one JSON object on stdout."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(function)


def device_option(function: Function) -> Function:
    """--device auto|cpu|cuda."""
    return click.option(
        "--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."
    )(function)


def corpus_option(about: str = "Name or path[:split].") -> Callable[[Function], Function]:
    """--corpus, by default the embedded one."""
    return click.option(
        "--corpus",
        "spec",
        default="stdlib",
        show_default=True,
        help=about,
        shell_complete=complete_corpus,
    )


def model_options(function: Function) -> Function:
    """What a model is: --recipe, --head, --add and --set."""
    for option in (
        click.option("--set", "settings", multiple=True, help="key=value, e.g. head.rank=32."),
        click.option(
            "--add",
            "addons",
            multiple=True,
            help="Name of an add-on; may be given again.",
            shell_complete=complete_addon,
        ),
        click.option(
            "--head", help="Name of a head; tokgolf heads lists them.", shell_complete=complete_head
        ),
        click.option(
            "--recipe",
            default="cpu",
            show_default=True,
            help="A shipped one or a file.",
            shell_complete=complete_recipe,
        ),
    ):
        function = option(function)
    return function


OPTION_OF = {"trunk_from": "--from"}
"""Of the keys whose option has another name."""


def model_overrides(
    settings: tuple[str, ...], head: str | None, addons: tuple[str, ...], **more: Any
) -> dict[str, Any]:
    """The values to put over a recipe's: --set, then `more`, then --head.

    Raises `ConfigError` where --set and the option of a key give two values.
    """
    from tokgolf.config import merged, parse_overrides

    overrides, options = parse_overrides(settings), given(**more)
    for key, value in options.items():
        _check_one(
            key, overrides.get(key, value), OPTION_OF.get(key, f"--{key.replace('_', '-')}"), value
        )
    overrides = merged(overrides, options)
    table = overrides.get("head", {})
    if head is not None and isinstance(table, dict):
        _check_one("head.name", table.get("name", head), "--head", head)
        overrides = merged(overrides, {"head": {"name": head}})
    # What --set says of an add-on goes over its defaults, whichever stands first.
    return merged({"head": {"add": {name: {} for name in addons}}}, overrides)


def _check_one(key: str, other: Any, option: str, value: Any) -> None:
    if other != value:
        raise ConfigError(
            f"--set {key}={other} and {option} {value} are two values; give one of them"
        )


def given(**options: Any) -> dict[str, Any]:
    """The options that were given, without the Nones."""
    return {name: value for name, value in options.items() if value is not None}


def open_corpus(spec: str, split: str) -> "Corpus":
    """A corpus by name has its usual split unless the spec names one; a path is all of itself."""
    from tokgolf import corpora

    return corpora.open_corpus(spec, split if is_bare_name(spec) else None)


def is_bare_name(spec: str) -> bool:
    """Whether a corpus is given by name alone, so that the command chooses the split."""
    from tokgolf import corpora

    named = spec in corpora.corpus_names() or spec.startswith("hf:")
    return named and spec.rpartition(":")[2] not in corpora.SPLITS


def check_folder(path: Path) -> None:
    """Raise `ConfigError` before any work is done if no file can be written at `path`: in a folder
    that is not there, or where a folder is."""
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent} is no folder; make it, or write {path.name} elsewhere")
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file in it, or another place")


def say(message: str) -> None:
    """A line for a person, on stderr; once nobody reads that, the work goes on in silence."""
    with unread_allowed():
        click.echo(message, err=True)


@contextmanager
def unread_allowed() -> Iterator[None]:
    """What is written to a stderr that was closed is lost, and so is all that comes after it."""
    try:
        yield
    except BrokenPipeError:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stderr.fileno())
        os.close(nothing)


def print_json(values: dict[str, Any]) -> None:
    """One JSON object on one line of stdout."""
    click.echo(json.dumps(values))


def print_rows(rows: list[tuple[str, Any]]) -> None:
    """Aligned `name  value` lines on stdout; integers with thousands separators."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        if value is None or isinstance(value, bool):
            text = {True: "yes", False: "no", None: "-"}[value]
        elif isinstance(value, str):
            text = value
        elif isinstance(value, float):
            text = f"{value:,.4f}"
        else:
            text = f"{value:,}"
        click.echo(f"{name:<{width}}  {text}")
