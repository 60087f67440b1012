"""`tokgolf inspect`."""

from pathlib import Path

import click

from tokgolf.cli.options import json_option, print_json, print_rows


@click.command(short_help="Show where the bytes are.")
@click.argument("path", type=click.Path(path_type=Path))
@json_option
def inspect(path: Path, as_json: bool) -> None:
    """Show where the bytes are: of an artifact, of a tokenizer (.tok), or of a run.

    Example: tokgolf inspect runs/golf/model.golf
    """
    from tokgolf.inspection import inspect_path

    values = inspect_path(path)
    print_json(values) if as_json else print_rows(list(values.items()))
