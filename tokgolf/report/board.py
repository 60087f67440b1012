"""Leaderboards: runs scored on the same text in the same way, and how sure each number is.

Numbers of different documents, modes or protocols never share a table.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tokgolf.eval.saved import NO_PART
from tokgolf.eval.statistics import RESAMPLES, ratio_interval, student_quantile
from tokgolf.report.entries import Entry

LEVEL = 0.95
DRAWS = 400_000_000  # of documents, over all runs of a report: some ten seconds
LEAST_RESAMPLES = 1_000

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """Runs that differ by their seed alone: how many, their mean and its interval."""

    count: int
    mean: float
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class Row:
    """A run on a leaderboard, with 95 % intervals over documents and over seeds."""

    entry: Entry
    bpb: float
    documents: Interval | None
    seeds: Seeds | None
    front: bool
    """Whether no other run of the board has as few bytes and as low a score."""


@dataclass(frozen=True, kw_only=True)
class Board:
    """Runs that can be compared, the best first."""

    title: str
    facts: tuple[str, ...]
    rows: tuple[Row, ...]
    resamples: int

    @property
    def sized(self) -> list[Row]:
        """Those with an artifact; a front takes two."""
        return [row for row in self.rows if row.entry.artifact_bytes]

    @property
    def best(self) -> Row:
        """The lowest score under its cap; the lowest of all if none is."""
        return next((row for row in self.rows if not row.entry.over_cap), self.rows[0])


def boards(scored: Sequence[Entry]) -> list[Board]:
    """A board for each text and way of scoring; the one with the most runs first."""
    groups: dict[str, list[Entry]] = {}
    for entry in scored:
        groups.setdefault(_taken(entry), []).append(entry)
    documents = sum(len(e.score.sizes) for e in scored if e.score is not None)
    resamples = max(LEAST_RESAMPLES, min(RESAMPLES, DRAWS // max(1, documents)))
    found = [_board(group, resamples) for group in groups.values()]
    found.sort(key=lambda board: (-len(board.rows), board.title, board.facts))
    titles = [board.title for board in found]
    return [
        replace(board, title=f"{board.title} ({titles[: number + 1].count(board.title)})")
        if titles.count(board.title) > 1
        else board
        for number, board in enumerate(found)
    ]


def _taken(entry: Entry) -> str:
    """A text that is the same for scores that can stand in one table."""
    score = entry.score
    if score is None:
        return "unknown"
    protocol = {key: value for key, value in score.protocol.items() if key not in NO_PART}
    kind = "artifact" if score.artifact_sha256 else "float"
    return json.dumps([score.corpus_sha256, score.mode, protocol, kind], sort_keys=True)


def _board(group: Sequence[Entry], resamples: int) -> Board:
    seeds = seed_intervals(group)
    front = pareto_front(group)
    rows = tuple(
        Row(
            entry=entry,
            bpb=entry.bpb or 0.0,
            documents=None
            if entry.score is None
            else ratio_interval(
                entry.score.bits, entry.score.sizes, level=LEVEL, resamples=resamples
            ),
            seeds=seeds.get(entry.alike),
            front=entry in front,
        )
        for entry in group
    )
    title, facts = _described(group[0])
    return Board(title=title, facts=facts, rows=rows, resamples=resamples)


def _described(entry: Entry) -> tuple[str, tuple[str, ...]]:
    """What the numbers are of: a title, and the protocol in words."""
    score = entry.score
    if score is None:
        return "as their cells say", ("no saved score: documents and protocol are not known",)
    counts = f"{len(score.sizes):,} documents, {math.fsum(score.sizes):,.0f} bytes"
    told = {k: v for k, v in score.protocol.items() if k not in NO_PART and v is not None}
    adapt = told.pop("adapt", None)
    told.pop("mode", None)
    words = [f"{key} {value}" for key, value in told.items()]
    if isinstance(adapt, dict):
        words.append(f"adapted by {adapt.get('kind', 'an adapter')}")
    model = "decoded artifacts" if score.artifact_sha256 else "float models, not artifacts"
    estimate = ["an estimate, not a score"] if entry.told.get("estimate") else []
    lossy = ["the tokenizer is lossy"] if entry.told.get("lossless") is False else []
    facts = (counts, f"{score.mode} mode", *words, model, *estimate, *lossy)
    return score.corpus, (*facts, f"text {score.corpus_sha256[:12]}")


def seed_intervals(group: Sequence[Entry]) -> dict[str, Seeds]:
    """By `Entry.alike`: mean and Student's t interval of each model that has several seeds.

    bpb [1.60, 1.62, 1.64] -> mean 1.62, interval 1.5703 to 1.6697
    """
    alike: dict[str, list[Entry]] = {}
    for entry in group:
        alike.setdefault(entry.alike, []).append(entry)
    found = {}
    for key, runs in alike.items():
        values = [run.bpb for run in runs if run.bpb is not None]
        if len({str(run.seed) for run in runs}) < 2:
            continue
        mean = math.fsum(values) / len(values)
        error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
        half = student_quantile((1 + LEVEL) / 2, len(values) - 1) * error
        found[key] = Seeds(count=len(values), mean=mean, interval=(mean - half, mean + half))
    return found


def pareto_front(group: Sequence[Entry]) -> list[Entry]:
    """Runs that no other beats in both bytes and bpb, from the smallest to the largest.

    (bytes, bpb): (10, 2.0), (20, 1.5), (20, 1.6), (30, 1.5) -> the first two
    """
    sized = [e for e in group if e.artifact_bytes is not None and e.bpb is not None]
    front: list[Entry] = []
    for entry in sorted(sized, key=lambda e: (e.artifact_bytes or 0, e.bpb or 0.0, e.name)):
        if not front or (entry.bpb or 0.0) < (front[-1].bpb or 0.0):
            front.append(entry)
    return front
