"""`tokgolf train`."""

from contextlib import nullcontext
from pathlib import Path

import click

from tokgolf.cli.command import Command
from tokgolf.cli.completion import complete_corpus
from tokgolf.cli.options import (
    corpus_option,
    device_option,
    is_bare_name,
    json_option,
    model_options,
    model_overrides,
    open_corpus,
    print_json,
    print_rows,
    say,
)


@click.command(cls=Command, short_help="Train a trunk with a head on a corpus.")
@corpus_option()
@click.option(
    "--val",
    help="Held-out corpus; checked to share no document with --corpus.",
    shell_complete=complete_corpus,
)
@click.option("--tokenizer", required=True, type=click.Path(path_type=Path))
@model_options
@click.option("--minutes", type=float, help="Training time budget.")
@click.option("--steps", type=int, help="Step budget.")
@click.option("--seed", type=int)
@click.option("--from", "trunk_from", metavar="RUN", help="Start from this run's trunk.")
@click.option("--freeze-trunk", is_flag=True, default=None, help="Train the head alone.")
@click.option(
    "--resume",
    is_flag=True,
    help="Go on from the latest checkpoint in -o, or start where there is none.",
)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
@device_option
@json_option
def train(
    spec: str,
    val: str | None,
    tokenizer: Path,
    recipe: str,
    head: str | None,
    addons: tuple[str, ...],
    settings: tuple[str, ...],
    minutes: float | None,
    steps: int | None,
    seed: int | None,
    trunk_from: str | None,
    freeze_trunk: bool | None,
    resume: bool,
    output: Path,
    device: str,
    as_json: bool,
) -> None:
    """Train the trunk with a head on a corpus, into a run directory.

    A corpus by name is trained on its train split, with its val split held out. Ctrl-C and a
    SIGTERM leave a usable checkpoint. A trunk of an earlier run (--from) with a new tokenizer and
    head is a cheap way to try these; --freeze-trunk leaves it as it is. torchrun starts several
    processes on one batch, one a GPU; a machine or a process that fails ends them all, and with
    --max-restarts and --resume they go on.

    Example: tokgolf train --tokenizer bpe1024.tok --head factorized --set head.rank=32
    --add bigram-hash --set head.add.bigram-hash.dim=16 -o runs/f32

    Example: torchrun --nproc-per-node 8 -m tokgolf train --tokenizer bpe1024.tok
    --recipe baseline -o runs/baseline
    """
    from tokgolf.cli.progress import training_progress
    from tokgolf.signals import ended_as_by_ctrl_c
    from tokgolf.tokenizers import load_tokenizer
    from tokgolf.training import run_config
    from tokgolf.training import train as run_training
    from tokgolf.training.distributed import joined

    overrides = model_overrides(
        settings,
        head,
        addons,
        minutes=minutes,
        steps=steps,
        seed=seed,
        trunk_from=trunk_from,
        freeze_trunk=freeze_trunk,
    )
    if val is None and is_bare_name(spec):
        val = spec
    with (
        joined(device) as ranks,
        nullcontext() if ranks.size > 1 else ended_as_by_ctrl_c(),  # ranks watch for it themselves
        training_progress(shown=ranks.leads) as on_step,
    ):
        result = run_training(
            run_config(recipe, overrides),
            load_tokenizer(tokenizer),
            open_corpus(spec, "train"),
            output,
            held_out=None if val is None else open_corpus(val, "val"),
            device=ranks.device,
            resume=resume,
            on_step=on_step,
            say=say,
            ranks=ranks,
        )
    if not ranks.leads:
        return
    values = {**vars(result), "run": str(result.run)}
    print_json(values) if as_json else print_rows(list(values.items()))
