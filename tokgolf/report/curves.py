"""Learning curves from `metrics.jsonl`, thinned so that a page with hundreds of them stays small.

A loss in nats a token cannot be compared between tokenizers; it is drawn in bits per byte, by the
bytes of text that a training token stands for.
"""

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tokgolf.report.entries import METRICS, Entry

POINTS = 80
MOST_CURVES = 32
AXES = {
    "bytes": "bytes of text",
    "tokens": "training tokens",
    "steps": "steps",
    "seconds": "seconds of training",
}

Doubles = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A run's training loss in bits per byte, over each of `AXES`: (points, 2) arrays."""

    entry: Entry
    points: dict[str, Doubles]


def read_curves(entries: Sequence[Entry]) -> list[Curve]:
    """Curves of the first runs that have one and whose bytes a token are known."""
    found = []
    for entry in entries:
        if entry.bytes_per_train_token is None:
            continue
        steps = read_metrics(entry.run / METRICS)
        if len(steps) < 2:
            continue
        found.append(_curve(entry, steps, entry.bytes_per_train_token))
        if len(found) == MOST_CURVES:
            break
    return found


def _curve(entry: Entry, metrics: Doubles, ratio: float) -> Curve:
    step, loss, tokens, seconds = metrics.T
    bpb = loss / math.log(2) / ratio
    axes = {"bytes": tokens * ratio, "tokens": tokens, "steps": step, "seconds": seconds}
    return Curve(entry=entry, points={name: thinned(x, bpb) for name, x in axes.items()})


def read_metrics(path: Path) -> Doubles:
    """Step, loss, tokens and seconds of every sound line.  # (lines, 4)"""
    rows = []
    if path.is_file():
        for line in path.read_text("utf-8", errors="replace").splitlines():
            # a line cut short when the run was killed, or damaged
            with suppress(ValueError, KeyError, TypeError, RecursionError):
                values = json.loads(line)
                row = [float(values[key]) for key in ("step", "loss", "tokens", "seconds")]
                if all(math.isfinite(value) and value > 0 for value in row):
                    rows.append(row)
    return np.array(rows, np.float64).reshape(-1, 4)


def thinned(x: Doubles, y: Doubles, points: int = POINTS) -> Doubles:
    """At most so many points: means over stretches of x that grow by the same factor.

    x=[1, 2, 3, 4], y=[8, 6, 5, 4], points=2 -> [[1, 8], [3, 5]]: from 1 to 2, from 2 to 4
    """
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    edges = np.geomspace(x[0], x[-1], points + 1)[1:-1]
    places = np.searchsorted(edges, x, side="right")
    counts = np.bincount(places, minlength=points)
    used = counts > 0
    sums = [np.bincount(places, values, points)[used] for values in (x, y)]
    return np.stack(sums, 1) / counts[used, None]
