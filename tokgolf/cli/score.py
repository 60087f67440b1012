"""`tokgolf score`."""

from pathlib import Path

import click

from tokgolf.cli.options import (
    check_folder,
    device_option,
    json_option,
    open_corpus,
    print_json,
    print_rows,
)


@click.command(short_help="Bits per byte of an artifact, with evidence.")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--corpus", "spec", default="stdlib", show_default=True, help="Name or path[:split].")
@click.option("--stride", default=0, help="Start a window every N tokens; 0: disjoint windows.")
@click.option("--train-corpus", help="Check that this text shares no document with --corpus.")
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
    stride: int,
    train_corpus: str | None,
    save: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Score an artifact (or a run's float model) in bits per byte, with evidence.

    A corpus by name is scored on its val split. Documents are scored one by one, losslessly; each
    token and each document's end is paid for.

    Example: tokgolf score runs/golf/model.golf --corpus stdlib --stride 64
    """
    import numpy as np

    from tokgolf.corpora import document_digests
    from tokgolf.device import resolve_device
    from tokgolf.eval.score import open_source, read_train_digests, save_score
    from tokgolf.eval.score import score as run_score

    if save is not None:
        check_folder(save)
    source, run = open_source(path)
    digests = read_train_digests(source, run)
    if train_corpus is not None:  # more evidence never replaces the run's own record
        given = document_digests(open_corpus(train_corpus, "train"))
        digests = given if digests is None else np.union1d(digests, given)
    result = run_score(
        source,
        open_corpus(spec, "val"),
        stride=stride,
        device=resolve_device(device),
        train_digests=digests,
    )
    values = result.as_dict()
    if as_json:
        print_json({**values, "cap": None})
    else:
        print_score(values)
    if save is not None:
        save_score(result, save)
