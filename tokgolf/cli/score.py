"""`tokgolf score`."""

from pathlib import Path
from typing import Literal

import click

from tokgolf.cli.command import Command
from tokgolf.cli.completion import complete_corpus
from tokgolf.cli.evidence import print_score
from tokgolf.cli.options import (
    check_folder,
    corpus_option,
    device_option,
    json_option,
    open_corpus,
    print_json,
)
from tokgolf.cli.progress import scoring_progress


@click.command(cls=Command, short_help="Bits per byte of an artifact, with evidence.")
@click.argument("path", type=click.Path(path_type=Path))
@corpus_option()
@click.option(
    "--mode",
    type=click.Choice(["raw", "official"]),
    default="raw",
    show_default=True,
    help="Documents as they are, or the challenge's text and windows.",
)
@click.option(
    "--context",
    type=click.Choice(["document", "stream"]),
    help="What a token may be predicted from: its own document (default), or all before it.",
)
@click.option("--window", type=int, help="Most tokens seen at once; default: as in training.")
@click.option("--stride", default=0, help="Start a window every N tokens; 0: disjoint windows.")
@click.option("--loops", type=int, help="Apply a trunk's shared blocks N times; default: its own.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16"]),
    default="fp32",
    show_default=True,
    help="bf16 is faster on a GPU, and an estimate.",
)
@click.option(
    "--adapt",
    type=click.Choice(["none", "lora", "online"]),
    default="none",
    show_default=True,
    help="Learn from what is scored: a small adapter a document, or one that runs on.",
)
@click.option("--adapt-set", multiple=True, help="key=value of the adaptation, e.g. chunk=128.")
@click.option("--time-budget", type=float, help="Refuse a score that takes more seconds.")
@click.option(
    "--train-corpus",
    help="Check that this text shares no document with --corpus.",
    shell_complete=complete_corpus,
)
@click.option(
    "--baselines",
    type=click.Choice(["auto", "all", "none"]),
    default="auto",
    show_default=True,
    help="Beside the score: auto leaves compressors out for over 4 MB of text.",
)
@click.option(
    "--save",
    type=click.Path(path_type=Path),
    help="Write the score, with every document's bits, as JSON.",
)
@device_option
@json_option
def score(
    path: Path,
    spec: str,
    mode: Literal["raw", "official"],
    context: Literal["document", "stream"] | None,
    window: int | None,
    stride: int,
    loops: int | None,
    precision: Literal["fp32", "bf16"],
    adapt: str,
    adapt_set: tuple[str, ...],
    time_budget: float | None,
    train_corpus: str | None,
    baselines: str,
    save: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Score an artifact (or a run's float model) in bits per byte, with evidence.

    A corpus by name is scored on its val split. In raw mode documents are scored one by one,
    losslessly; each token and each document's end is paid for. In official mode the text is
    normalised and scored as one stream, as the challenge does. Numbers of the two modes are of
    different text: never compare them. Six invariants are checked; one that fails is an error.
    With --adapt the model learns from each part of the text after it is scored; an artifact then
    pays for the code of that too.

    Example: tokgolf score runs/golf/model.golf --corpus stdlib --stride 64
    """
    import numpy as np

    from tokgolf.config import parse_overrides
    from tokgolf.corpora import document_digests
    from tokgolf.device import resolve_device
    from tokgolf.eval.adapt import adapt_config
    from tokgolf.eval.compressors import with_baselines
    from tokgolf.eval.protocol import Protocol
    from tokgolf.eval.score import open_source, read_train_digests, save_score
    from tokgolf.eval.score import score as run_score

    protocol = Protocol(
        mode=mode,
        context=context or ("stream" if mode == "official" else "document"),
        window=window,
        stride=stride,
        loops=loops,
        precision=precision,
        time_budget=time_budget,
        adapt=adapt_config(adapt, parse_overrides(adapt_set)),
    )
    if save is not None:
        check_folder(save)
    source, run = open_source(path)
    digests = read_train_digests(source, run)
    if train_corpus is not None:  # more evidence never replaces the run's own record
        given = document_digests(open_corpus(train_corpus, "train"))
        digests = given if digests is None else np.union1d(digests, given)
    corpus = open_corpus(spec, "val")
    with scoring_progress() as progress:
        result = run_score(
            source,
            corpus,
            protocol,
            device=resolve_device(device),
            train_digests=digests,
            on_progress=progress,
        )
    if baselines != "none":
        compress = True if baselines == "all" else None
        result = with_baselines(result, corpus, source.tokenizer, compress=compress)
    values = result.as_dict()
    if as_json:
        print_json({**values, "cap": None})
    else:
        print_score(values)
    if save is not None:
        save_score(result, save)
