"""`tokgolf submit`."""

from pathlib import Path
from typing import Any

import click

from tokgolf.cli.command import Command
from tokgolf.cli.completion import complete_corpus
from tokgolf.cli.options import Size, device_option, json_option, print_json, print_rows, say


@click.command(
    cls=Command, short_help="A record folder for the challenge, checked before it is written."
)
@click.argument("runs", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="RUN...")
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="The folder to write."
)
@click.option("--author", help="Your name.")
@click.option("--github-id", help="Your GitHub name.")
@click.option("--blurb", help="What it is, in a sentence.")
@click.option("--date", help="Default: today.")
@click.option("--hardware", help="What the runs were trained and scored on.")
@click.option(
    "--track",
    type=click.Choice(["non_record_16mb", "10min_16mb"]),
    default="non_record_16mb",
    show_default=True,
)
@click.option("--cap", type=Size(), default="16MB", show_default=True, help="On script + artifact.")
@click.option(
    "--corpus",
    help="The scored text, if it is not where the score found it.",
    shell_complete=complete_corpus,
)
@click.option(
    "--baseline",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="SCORE",
    help="The record to beat: a run or saved score of it, once a seed. Compared as by compare.",
)
@click.option("--training/--no-training", default=True, help="Pack the code that trains, too.")
@click.option("--rerun/--no-rerun", default=True, help="Score each artifact again by the script.")
@device_option
@json_option
def submit(
    runs: tuple[Path, ...],
    output: Path,
    track: Any,
    cap: int,
    corpus: str | None,
    baseline: tuple[Path, ...],
    training: bool,
    rerun: bool,
    device: str,
    as_json: bool,
    date: str | None,
    **labels: str | None,
) -> None:
    """Write RUNs, alike but for their seeds, as a record folder of the challenge.

    Each RUN needs model.golf and a score.json of it. The folder has README.md, submission.json, a
    log a seed, requirements.txt, the artifacts, and train_gpt.py: one file that holds the code it
    was packed from, which lies beside it in source/. It is written only if that script gives the
    claimed scores on its own, the audit finds no error in the claim, and all is under the cap.

    With --baseline, submission.json has the challenge's comparison too: comparison_baseline_*,
    delta_vs_baseline_*, t_statistic, p_value (one-sided: not better), p_value_rule (not 0.005 nats
    a token better), and significance: that rule at p < 0.01, null with under three seeds a side.

    Example: tokgolf submit runs/a1 runs/a2 runs/a3 -o records/2026-05-01_Mine --author "A. Name"
    """
    import datetime

    from tokgolf.submit import Labels
    from tokgolf.submit import submit as run_submit

    facts = run_submit(
        runs,
        output,
        labels=Labels(date=date or datetime.date.today().isoformat(), **labels),
        cap=cap,
        track=track,
        corpus=corpus,
        baseline=baseline,
        training=training,
        rerun=rerun,
        device=device,
        say=say,
    )
    values = {"folder": str(output), "bpb": facts["val_bpb"], **facts}
    if as_json:
        print_json(values)
        return
    rows = [(name, value) for name, value in values.items() if type(value) not in (dict, list)]
    print_rows([*rows, *facts["checks"].items()])
    for line in facts["missing"]:
        say(f"missing: {line}")
