"""What a byte of artifact buys in bits per byte, by points that were measured.

The points are of artifacts of different sizes: saved scores of one run's exports, or a benchmark's
file. Only the lower convex hull counts, as nobody takes a point that a mixture of others beats.
Nothing is ever read off beyond the measured points.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokgolf.errors import ScoreError
from tokgolf.eval.saved import read_json_object, read_score


@dataclass(frozen=True)
class Segment:
    """Two neighbouring measured points, the smaller artifact first."""

    source: str
    small_bytes: float
    small_bpb: float
    large_bytes: float
    large_bpb: float

    @property
    def rate(self) -> float:
        """Bits per byte gained for a byte more; above zero."""
        return (self.small_bpb - self.large_bpb) / (self.large_bytes - self.small_bytes)


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """The falling hull of measured points (artifact bytes, bits per byte), and where it is from."""

    source: str
    points: tuple[tuple[float, float], ...]

    def segment(self, size: float) -> Segment:
        """The measured points about an artifact of `size` bytes.

        Raises `ScoreError` for a size beyond them.
        """
        for (a, a_bpb), (b, b_bpb) in pairwise(self.points):
            if a <= size <= b:
                return Segment(self.source, a, a_bpb, b, b_bpb)
        raise ScoreError(
            f"the measured points of {self.source} that still gain by bytes are from "
            f"{self.points[0][0]:,.0f} to {self.points[-1][0]:,.0f} bytes, and the reference has "
            f"{size:,.0f}; measure points about it"
        )


def read_exchange(paths: Sequence[str | os.PathLike[str]]) -> Exchange:
    """The exchange of files: saved scores of artifacts, or JSON with "points" of bytes and bpb.

    Raises `ScoreError` for files without two points that trade bytes for bits per byte.
    """
    points: list[tuple[float, float]] = []
    corpora: dict[tuple[str, str], str] = {}
    for path in map(Path, paths):
        values = {} if path.is_dir() else read_json_object(path)
        if "points" in values:
            points += _points(values["points"], path)
            continue
        score = read_score(path)
        corpora[score.corpus_sha256, score.mode] = score.name
        if score.artifact_bytes is None:
            raise ScoreError(f"{path} is the score of a float model, which has no size")
        points.append((float(score.artifact_bytes), score.bpb))
    if len(corpora) > 1:
        raise ScoreError(f"{' and '.join(corpora.values())} are not scores of one corpus and mode")
    source = ", ".join(os.fspath(path) for path in paths)
    hull = falling_hull(points)
    if len(hull) < 2:
        raise ScoreError(
            f"{source}: {len(points)} points with bytes and bpb, of which {len(hull)} gain by "
            "bytes; an exchange rate needs 2"
        )
    return Exchange(source=source, points=tuple(hull))


def falling_hull(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The lower convex hull from the smallest artifact to the best, by size.

    points=[(1, 9), (2, 8), (3, 4), (4, 5)] -> [(1, 9), (3, 4)]
    """
    hull: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if hull and y >= hull[-1][1]:
            continue
        while len(hull) > 1 and _above(hull[-2], hull[-1], (x, y)):
            hull.pop()
        hull.append((x, y))
    return hull


def _above(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Whether b lies on or above the line from a to c."""
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])


def _points(values: Any, path: Path) -> list[tuple[float, float]]:
    """The points of a benchmark's file; those without both numbers measured something else."""
    if not isinstance(values, list) or not all(isinstance(point, dict) for point in values):
        raise ScoreError(f"{path}: points is no list of objects")
    found = [(point.get("bytes"), point.get("bpb")) for point in values]
    pairs = [pair for pair in found if None not in pair]
    for pair in pairs:
        if not all(type(x) in (int, float) and 0 < x < math.inf for x in pair):
            raise ScoreError(f"{path}: a point has bytes {pair[0]!r} and bpb {pair[1]!r}")
    return [(float(size), float(bpb)) for size, bpb in pairs]
