"""`tokgolf predict`."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tokgolf.cli.command import Command
from tokgolf.cli.options import Size, json_option, print_json, print_rows, say
from tokgolf.cli.tables import print_table

if TYPE_CHECKING:
    from tokgolf.sweep.predict import Forecast, Prediction


@click.command(cls=Command, short_help="What cells that nobody trained would give.")
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--at", "cap", default="16MB", show_default=True, type=Size(), help="Byte cap.")
@click.option("--tokens", type=click.FloatRange(min=1), help="Training tokens there, e.g. 10e9.")
@click.option("--vocab-size", type=click.IntRange(min=256), help="Of all that is predicted there.")
@click.option("--float", "float_model", is_flag=True, help="Of models before export.")
@click.option("--top", default=10, show_default=True, type=click.IntRange(min=1), help="Lines.")
@click.option("--save", is_flag=True, help="Add the predictions to the sweep's results.json.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw it: .png, .svg or .pdf.")
@json_option
def predict(
    results: tuple[Path, ...],
    cap: int,
    tokens: float | None,
    vocab_size: int | None,
    float_model: bool,
    top: int,
    save: bool,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Predict bits per byte at a byte cap from small cells, and say which cell to run next.

    RESULTS are sweeps (a folder with a results.json), stores, cells, or a benchmark's .jsonl of
    trained runs. A law of weights and training tokens is fit, with an effect for each head,
    tokenizer and vocabulary. Intervals hold 95 %: all that the cells leave open is in them, so they
    are wide far beyond the cells. The largest cells are also predicted from the smaller ones.

    Example: tokgolf predict runs/sweeps/heads --at 16MB --tokens 10e9 --plot heads.png
    """
    from tokgolf.cli.options import check_folder
    from tokgolf.inspection import check_plot
    from tokgolf.sweep.points import read_cells
    from tokgolf.sweep.predict import forecast, save_predictions, sweep_among

    if tokens is not None and not math.isfinite(tokens):
        raise click.BadParameter(f"{tokens} is not a number of tokens", param_hint="--tokens")
    if plot is not None:
        check_folder(plot)
        check_plot(plot)
    place = sweep_among(results) if save else None
    found = forecast(
        read_cells(results), cap=cap, tokens=tokens, vocab_size=vocab_size, float_model=float_model
    )
    if plot is not None:
        from tokgolf.sweep.predictplot import plot_forecast

        plot_forecast(found, plot)
        say(f"wrote {plot}")
    if place is not None:
        save_predictions(found.predictions, place)
        say(f"added {len(found.predictions)} predictions to {place}")
    print_json(found.as_dict()) if as_json else _print(found, top)


def _print(found: "Forecast", top: int) -> None:
    """A forecast for a person."""
    facts = found.as_dict()
    print_rows([("settings", facts["settings"]), ("runs", facts["runs"])])
    click.echo()
    meanings = {
        "E": "bpb that no size and no training takes away",
        "size": "bpb that more weights would take away from the middle cell",
        "tokens": "bpb that more training would take away from it",
        "a": "the power of the weights",
        "b": "the power of the tokens",
        "misfit": "how far a cell lies off the law, as a share of its bpb",
    }
    print_table(
        [["law", "low", "middle", "high"]]
        + [[name, *(f"{value:.4f}" for value in found.terms[name])] for name in meanings]
    )
    for name, meaning in meanings.items():
        click.echo(f"  {name}: {meaning}")
    click.echo()
    for note in found.notes:
        click.echo(f"note: {note}")
    for title, some in (("left out one by one", found.left_out), ("largest", found.held_out)):
        click.echo(_calibration(title, some))
    if found.held_out:
        click.echo()
        _table("held out, from the smaller", found.held_out, top)
    click.echo()
    _table(f"at {found.cap:,} bytes", found.at_cap, top)
    click.echo()
    if found.next_cell is not None:
        _table("next", [found.next_cell], top)
    click.echo(f"next: {found.reason}")


def _calibration(title: str, found: "tuple[Prediction, ...]") -> str:
    from tokgolf.sweep.predict import calibration

    if not found:
        return f"{title}: too few settings to hold any out"
    values = calibration(found)
    return (
        f"{title}: {values['held']} of {len(found)} measured are within their interval, "
        f"mean error {100 * values['mean_error']:.2f} %, "
        f"largest {100 * values['largest_error']:.2f} %"
    )


def _table(title: str, found: "tuple[Prediction, ...] | list[Prediction]", top: int) -> None:
    """Lines of predictions, and what was measured where anything was."""
    known = any(each.measured is not None for each in found)
    head = [title, "weights", "tokens", "bpb", "low", "high"]
    cells = [head + (["measured", "within"] if known else ["beyond measured"])]
    for each in found[:top]:
        line = [each.label, f"{each.params:,}", f"{each.tokens:,}"]
        line += [f"{value:.4f}" for value in (each.bpb, each.low, each.high)]
        if each.measured is not None:
            cells.append([*line, f"{each.measured:.4f}", "yes" if each.holds else "no"])
        else:
            size, tokens = each.beyond
            far = [f"{size:.1f}x weights"] * (size > 1) + [f"{tokens:.1f}x tokens"] * (tokens > 1)
            cells.append([*line, ", ".join(far) or "-"])
    print_table(cells)
    if len(found) > top:
        click.echo(f"and {len(found) - top} more; --top {len(found)} shows all")
