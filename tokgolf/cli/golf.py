"""`tokgolf golf`: the whole pipeline in one command."""

from pathlib import Path

import click

from tokgolf.cli.command import Command
from tokgolf.cli.completion import complete_head
from tokgolf.cli.options import (
    Size,
    corpus_option,
    device_option,
    model_overrides,
    print_json,
    say,
)


@click.command(cls=Command, short_help="The whole pipeline, in minutes.")
@corpus_option("A corpus with splits.")
@click.option("--vocab-size", default=1024, show_default=True)
@click.option("--head", help="Another head than the recipe's.", shell_complete=complete_head)
@click.option("--set", "settings", multiple=True, help="key=value, e.g. trunk.layers=3.")
@click.option("--minutes", type=float, help="Training time; the recipe says how long otherwise.")
@click.option("--split", default="test", show_default=True, help="The split that is scored.")
@click.option("--cap", type=Size(), default="250KB", show_default=True)
@click.option(
    "-o",
    "--output",
    default="runs/golf",
    type=click.Path(path_type=Path),
    show_default=True,
    help="Run directory; an earlier run there is replaced.",
)
@device_option
def golf(
    spec: str,
    vocab_size: int,
    head: str | None,
    settings: tuple[str, ...],
    minutes: float | None,
    cap: int,
    split: str,
    output: Path,
    device: str,
) -> None:
    """Tokenizer, training, export under a cap, score, report: the embedded corpus in minutes.

    Ends with one JSON object on stdout; report.html in the run directory is for a browser.

    Example: tokgolf golf
    """
    from tokgolf.cli.progress import training_progress
    from tokgolf.pipeline import golf as run_golf

    overrides = model_overrides(settings, head, (), minutes=minutes)
    with training_progress() as on_step:
        result = run_golf(
            spec,
            output,
            vocab_size=vocab_size,
            cap=cap,
            split=split,
            overrides=overrides,
            device=device,
            say=say,
            on_step=on_step,
        )
    print_json(result)
