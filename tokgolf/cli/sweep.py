"""`tokgolf sweep`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tokgolf.cli.command import Command
from tokgolf.cli.options import device_option, json_option, print_json, say
from tokgolf.cli.progress import sweep_progress, varying
from tokgolf.errors import TokgolfError

if TYPE_CHECKING:
    from tokgolf.sweep.cells import Sweep
    from tokgolf.sweep.plan import Outline


@click.command(cls=Command, short_help="Train, export and score every cell of a grid.")
@click.argument("spec", type=click.Path(path_type=Path))
@click.option(
    "--store",
    default="runs",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder of all sweeps; what cells share is made once in it.",
)
@click.option("--name", help="Of the sweep; default: the file's.")
@click.option("--engine", type=click.Choice(["local", "slurm", "ray"]), help="Default: local.")
@click.option("--jobs", type=int, help="Cells at a time.")
@click.option("--only", multiple=True, help="axis=value or an id's start; may be given again.")
@click.option("--retry-failed", is_flag=True, help="Run failed cells again.")
@click.option("--dry-run", is_flag=True, help="Show the cells, their sizes and what is done.")
@device_option
@json_option
def sweep(
    spec: Path,
    store: Path,
    name: str | None,
    engine: str | None,
    jobs: int | None,
    only: tuple[str, ...],
    retry_failed: bool,
    dry_run: bool,
    device: str,
    as_json: bool,
) -> None:
    """Run a grid over tokenizers, heads, bits, sizes and seeds: a TOML file, or vocab, heads, bits.

    Every cell is a run directory in the store, named after the hash of its config, and is trained,
    exported and scored once, whichever sweeps have it. Ctrl-C or a kill loses nothing: the same
    command goes on. A cell that fails is recorded with its reason; the others go on. Exit code 1 if
    a cell has failed.

    Example: tokgolf sweep vocab --jobs 2
    """
    from tokgolf.cli.options import given
    from tokgolf.sweep.run import outline_sweep, run_sweep
    from tokgolf.sweep.spec import read_spec

    over: dict[str, Any] = {**given(name=name), "engine": given(name=engine, jobs=jobs)}
    chosen = read_spec(spec, over)
    if dry_run:
        outlines = outline_sweep(chosen, store, device=device, only=only)
        if as_json:
            print_json({"name": chosen.name, "cells": [outline.as_dict() for outline in outlines]})
        else:
            print_outlines(outlines)
        return
    with sweep_progress() as watch:
        result = run_sweep(
            chosen, store, device=device, only=only, retry_failed=retry_failed, watch=watch
        )
    if as_json:
        print_json(result.as_dict(store / "sweeps" / result.name))
    else:
        print_sweep(result)
        say(f"wrote {store / 'sweeps' / result.name}")
    failed = [cell for cell in result.cells if cell.status == "failed"]
    if failed:
        raise TokgolfError(
            f"{len(failed)} of {len(result.cells)} cells failed, first {failed[0].id}: "
            f"{failed[0].reason}"
        )


def print_outlines(outlines: "list[Outline]") -> None:
    """A line for each cell: what varies, sizes, state."""
    rows = [["cell", "settings", "d_model", "mlp", "params", "bits", "bytes", "state"]]
    for one in outlines:
        numbers = (one.d_model, one.mlp_hidden, one.params, one.bits, one.artifact_bytes)
        state = one.cell.status if one.problem is None else f"will fail: {one.problem}"
        settings = varying(one.cell, [outline.cell for outline in outlines])
        rows.append([one.cell.id[:8], settings, *map(_number, numbers), state])
    _print_columns(rows)
    done = sum(one.cell.status == "done" for one in outlines)
    failing = sum(one.problem is not None for one in outlines)
    click.echo(f"{len(outlines)} cells, {done} done, {failing} that cannot be built")


def print_sweep(result: "Sweep") -> None:
    """A line for each cell, best first."""
    rows = [["cell", "settings", "bpb", "before export", "bytes", "params", "seconds", "state"]]
    for cell in sorted(result.cells, key=lambda one: (one.bpb is None, one.bpb or 0.0)):
        numbers = (cell.bpb, cell.bpb_before_export, cell.artifact_bytes, cell.params)
        rows.append(
            [
                cell.id[:8],
                varying(cell, list(result.cells)),
                *map(_number, numbers),
                f"{cell.seconds:.0f}",
                cell.status if cell.reason is None else f"{cell.status}: {cell.reason}",
            ]
        )
    _print_columns(rows)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _print_columns(rows: list[list[str]]) -> None:
    """Columns as wide as their widest entry; text to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            text.ljust(width) if column < 2 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row[:-1], widths, strict=False))
        ]
        click.echo("  ".join([*cells, row[-1]]).rstrip())
