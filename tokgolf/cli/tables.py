"""Tables on stdout: aligned columns, and the byte ledger that `inspect` and `cost` print."""

import textwrap
from collections.abc import Sequence
from typing import Any

import click

from tokgolf.cli.options import print_rows

ACCOUNTINGS = {
    "full": "code, weights and tokenizer: what a cap holds",
    "official": "code and weights: what the challenge counts",
    "raw": "plain source, weights, the tokenizer as its library's own file",
}
CONVENTIONS = {
    "packed": "stripped, one archive, xz: counted above",
    "script": "the archive as base85 text in a script that runs",
    "plain": "the source as it is: counted in raw",
}


def print_table(cells: Sequence[Sequence[str]]) -> None:
    """Lines of aligned cells: the first column to the left, all others to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        rest = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        click.echo("  ".join([line[0].ljust(widths[0]), *rest]).rstrip())


def print_ledger(values: dict[str, Any], *, tensors: bool, step: str = "step") -> None:
    """A ledger's facts: what it is of, its rows, the accountings, the code, tensors if wanted."""
    known = {"ledger", "weights", "code", "modules", "tensors", "artifact_bytes", *ACCOUNTINGS}
    facts = {**values, "bits": f"{values['bits']:.3f} a weight, all that is stored of weights"}
    print_rows([(name, value) for name, value in facts.items() if name not in known])
    click.echo()
    cells = [["component", "bytes", "share", "weights", "bits/weight"]]
    for name, size in values["ledger"].items():
        weights = values["weights"].get(name)
        of_weights = [f"{weights:,}", f"{8 * size / weights:.3f}"] if weights else ["", ""]
        cells.append([name, f"{size:,}", _share(size, values["full"]), *of_weights])
    cells.append(["full", f"{values['full']:,}", _share(1, 1), "", ""])
    print_table(cells)
    for title, meanings, sizes in (
        ("accounting", ACCOUNTINGS, values),
        ("code", CONVENTIONS, values["code"]),
    ):
        click.echo()
        rows = [[name, f"{sizes[name]:,}"] for name in meanings]
        width = max(len(size) for _, size in rows)
        for (name, size), meaning in zip(
            [[title, "bytes"], *rows], ["", *meanings.values()], strict=True
        ):
            click.echo(f"{name:<12}{size:>{width}}  {meaning}".rstrip())
    names = ", ".join(name.removeprefix("tokgolf.") for name in values["modules"])
    click.echo(textwrap.fill(f"{len(values['modules'])} modules: {names}", 98))
    if tensors:
        click.echo()
        print_tensors(values["tensors"], step)


def print_tensors(tensors: Sequence[dict[str, Any]], title: str) -> None:
    """A line for each tensor; `title` says what its step is."""
    cells = [["tensor", "shape", "weights", title, "bits/weight", "bytes", "steps", "classes"]]
    for t in tensors:
        step = "-" if t["step"] is None else f"{t['step']:.4g}"
        cells.append(
            [t["name"], " x ".join(map(str, t["shape"])), f"{t['weights']:,}", step]
            + [f"{t['bits']:.3f}", f"{t['bytes']:,}", f"{t['steps']:,}", f"{t['classes']:,}"]
        )
    print_table(cells)


def _share(size: int, full: int) -> str:
    return f"{100 * size / full:.1f} %"
