"""A report in two steps: `build` reads and computes, `write` makes the page of it.

The same files give the same page, byte for byte.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokgolf.artifact.load import Artifact
from tokgolf.errors import ConfigError
from tokgolf.files import write_text
from tokgolf.report.board import Board, boards
from tokgolf.report.costs import HeadRow, TokenizerRow, head_rows, loaded, tokenizer_rows
from tokgolf.report.curves import Curve, read_curves
from tokgolf.report.entries import Entry, Gathered, gather
from tokgolf.report.heat import Heat, chosen_text, plain, protocol_of, scored_text

MOST_CHARTED = 40


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that is on the page. `ledger` and `heat` are of the best run with an artifact, `subject`.

    `predictions` are sorted; those with a number have a `label`.
    """

    gathered: Gathered
    boards: tuple[Board, ...]
    curves: tuple[Curve, ...]
    heads: tuple[HeadRow, ...]
    tokenizers: tuple[TokenizerRow, ...]
    subject: Entry | None
    ledger: Mapping[str, int] | None
    heat: Heat | None
    predictions: tuple[Mapping[str, Any], ...]


def build(
    paths: Iterable[Path],
    *,
    cap: int | None = None,
    text: str | None = None,
    measure: bool = False,
) -> Report:
    """Read everything at `paths` and compute what the page shows.

    `cap` is of runs that name none. `text` is a file or corpus for the heat map; without one it is
    a document that was scored. `measure` times each head here.

    Raises `ConfigError` for paths without runs, and for a text without a model to score it.
    """
    gathered = gather(paths, cap)
    found = boards(gathered.scored)
    scored = [row.entry for board in found for row in board.rows]
    subject = _subject([*(board.best.entry for board in found), *scored])
    shown = None
    if subject is not None:
        entry, artifact = subject
        protocol = None if entry.score is None else protocol_of(entry.score)
        if text is not None:
            shown = chosen_text(artifact, text, protocol)
        elif entry.score is not None:
            shown = scored_text(artifact, entry.score)
    elif text is not None:
        raise ConfigError(
            f"--text {text} needs an artifact that was scored, and there are 0 here; make one with "
            "tokgolf export RUN, then tokgolf score RUN/model.golf --save RUN/score.json"
        )
    unscored = [entry for entry in gathered.entries if entry.bpb is None]
    return Report(
        gathered=gathered,
        boards=tuple(found),
        curves=tuple(read_curves([*scored, *unscored])),
        heads=tuple(head_rows(scored, subject, measure=measure)),
        tokenizers=tuple(tokenizer_rows(scored)),
        subject=subject[0] if subject else None,
        ledger=dict(subject[1].ledger.rows) if subject else None,
        heat=shown,
        predictions=tuple(_predictions(gathered)),
    )


def _subject(entries: Iterable[Entry]) -> tuple[Entry, Artifact] | None:
    """The first run whose scored artifact is there."""
    for entry in entries:
        if (artifact := loaded(entry)) is not None:
            return entry, artifact
    return None


def _predictions(gathered: Gathered) -> list[dict[str, Any]]:
    """Predictions that have a number, the next cells first, then what was measured."""
    found = []
    measured = {entry.run.name: entry.bpb for entry in gathered.entries}
    for each in gathered.predictions:
        bpb, low, high = (_number(each.get(key)) for key in ("bpb", "low", "high"))
        if bpb is None:
            continue
        settings = each.get("settings")
        label = settings_text(settings if isinstance(settings, Mapping) else {})
        seen = _number(each.get("measured"))
        found.append(
            {
                "label": plain(label or each.get("what")),
                "what": plain(each.get("what")),
                "bpb": bpb,
                "low": low,
                "high": high,
                "measured": measured.get(str(each.get("cell"))) if seen is None else seen,
            }
        )
    return sorted(found, key=lambda row: (row["what"], row["bpb"], row["label"]))


def _number(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) else None


def settings_text(settings: Mapping[str, Any]) -> str:
    """Settings in a line.

    {"head": "tied", "trunk.layers": 4, "bits": None} -> "head tied, layers 4"
    """
    short = ((key.rpartition(".")[2], value) for key, value in settings.items())
    return ", ".join(f"{key} {value}" for key, value in short if value is not None)


def varied(entries: Sequence[Entry]) -> list[str]:
    """The settings in which runs differ, but for those that have a column of their own."""
    keys = dict.fromkeys(key for entry in entries for key in entry.settings)
    columns = {"head", "vocab_size", "seed", "tokenizer.kind"}
    return [
        key
        for key in keys
        if key not in columns
        and not key.startswith("head.")
        and len({repr(entry.settings.get(key)) for entry in entries}) > 1
    ]


def write(report: Report, path: str | os.PathLike[str]) -> None:
    """Write the page, whole or not at all."""
    from tokgolf.report.page import render

    write_text(path, render(report))
