"""`tokgolf report`."""

from pathlib import Path

import click

from tokgolf.cli.command import Command
from tokgolf.cli.options import Size, check_folder, say


@click.command(cls=Command, short_help="One HTML page of runs and sweeps.")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    default="report.html",
    show_default=True,
    type=click.Path(path_type=Path),
    help="The page.",
)
@click.option("--text", help="A file or corpus whose tokens are shown with their bits.")
@click.option("--cap", type=Size(), help="Of runs that name none: only sweeps write it down.")
@click.option("--measure", is_flag=True, help="Time each head here, too.")
@click.option("--plots", type=click.Path(path_type=Path), help="Also every plot: .png and .svg.")
def report(
    paths: tuple[Path, ...],
    output: Path,
    text: str | None,
    cap: int | None,
    measure: bool,
    plots: Path | None,
) -> None:
    """Write what runs and sweeps found as one HTML page, which needs nothing beside itself.

    A PATH is a run directory, a store of runs or a sweep. Runs scored on other text, or in another
    way, are never in one table. Without --text the bits of each token are those of a document that
    was scored, if it is at hand.

    Example: tokgolf report runs/golf runs/f32 -o report.html --plots plots
    """
    from tokgolf.report.build import build, write

    check_folder(output)
    if plots is not None:
        from tokgolf.report.plots import check_plots, write_plots

        check_plots(plots)
    found = build(paths, cap=cap, text=text, measure=measure)
    write(found, output)
    say(f"wrote {output}")
    if plots is not None:
        for path in write_plots(found, plots):
            say(f"wrote {path}")
