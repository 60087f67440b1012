"""What a byte of artifact buys in bits per byte, by points that were measured.

The points are of artifacts of different sizes: saved scores of one run's exports, or a benchmark's
file, whose schemes are curves of their own. Of a curve only the lower convex hull counts, as nobody
takes a point that a mixture of others beats. Nothing is ever read off beyond the measured points.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokgolf.errors import ScoreError
from tokgolf.eval.saved import SavedScore, read_json_object, read_score, taken_differences


@dataclass(frozen=True)
class Segment:
    """Two neighbouring measured points, the smaller artifact first."""

    source: str
    small_bytes: float
    small_bpb: float
    large_bytes: float
    large_bpb: float
    text_known: bool
    """Whether both points are scores, whose text is known; a benchmark's file does not name it."""

    @property
    def rate(self) -> float:
        """Bits per byte gained for a byte more; above zero."""
        return (self.small_bpb - self.large_bpb) / (self.large_bytes - self.small_bytes)

    def at(self, size: float) -> float:
        """Bits per byte of a mixture that takes `size` bytes."""
        return self.small_bpb - self.rate * (size - self.small_bytes)


SCORES = "the scores given"
MOST = 1 << 62  # bytes, or bits a byte; neither is ever so many
Point = tuple[float, float]
"""Artifact bytes and bits per byte."""


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """The falling hulls of measured points, by where each is from.

    `taken` is one of the scores among them: all are of its corpus, mode and protocol.
    """

    curves: Mapping[str, Sequence[Point]]
    taken: SavedScore | None = None

    def segment(self, size: float) -> Segment:
        """The measured points about an artifact of `size` bytes, on the best curve there.

        Raises `ScoreError` for a size beyond them all.
        """
        found = [
            Segment(source, *small, *large, text_known=source == SCORES)
            for source, points in self.curves.items()
            for small, large in pairwise(points)
            if small[0] <= size <= large[0]
        ]
        if not found:
            ends = [point[0] for points in self.curves.values() for point in points]
            raise ScoreError(
                f"the points of --exchange that gain by bytes are from {min(ends):,.0f} to "
                f"{max(ends):,.0f} bytes, the reference has {size:,.0f}; measure points about it"
            )
        return min(found, key=lambda part: part.at(size))


def read_exchange(paths: Sequence[str | os.PathLike[str]]) -> Exchange:
    """The exchange of files: saved scores of artifacts, or JSON with "points" of bytes and bpb.

    Raises `ScoreError` for files without two points that trade bytes for bits per byte, and for
    scores that are not of one corpus, mode and protocol: those gain by more than bytes.
    """
    curves: dict[str, list[Point]] = {}
    taken: SavedScore | None = None
    scores: list[Point] = []
    for path in map(Path, paths):
        values = {} if path.is_dir() else read_json_object(path)
        if "points" in values:
            for source, point in _points(values["points"], path):
                curves.setdefault(source, []).append(point)
            continue
        score = read_score(path)
        taken = taken or score
        if unlike := "; ".join(taken_differences(taken, score)):
            raise ScoreError(
                f"{taken.name} and {score.name} are not scores of one corpus, mode and protocol: "
                f"{unlike}; score all points of --exchange alike"
            )
        if score.artifact_bytes is None:
            raise ScoreError(f"{path} is the score of a float model, which has no size")
        scores.append((float(score.artifact_bytes), score.bpb))
    if scores:
        curves[SCORES] = scores
    hulls = {source: falling_hull(points) for source, points in curves.items()}
    usable = {source: hull for source, hull in hulls.items() if len(hull) > 1}
    if not usable:
        count = sum(map(len, curves.values()))
        raise ScoreError(
            f"{', '.join(os.fspath(path) for path in paths)}: {count} points with bytes and bpb, "
            "of which no two gain by bytes; an exchange rate needs 2"
        )
    return Exchange(curves=usable, taken=taken)


def falling_hull(points: Sequence[Point]) -> list[Point]:
    """The lower convex hull from the smallest artifact to the best, by size.

    points=[(1, 9), (2, 8), (3, 4), (4, 5)] -> [(1, 9), (3, 4)]
    """
    hull: list[Point] = []
    for x, y in sorted(points):
        if hull and y >= hull[-1][1]:
            continue
        while len(hull) > 1 and _above(hull[-2], hull[-1], (x, y)):
            hull.pop()
        hull.append((x, y))
    return hull


def _above(a: Point, b: Point, c: Point) -> bool:
    """Whether b lies on or above the line from a to c."""
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])


def _points(values: Any, path: Path) -> Iterator[tuple[str, Point]]:
    """A benchmark's points, by file and scheme; those without both numbers are of other things."""
    if not isinstance(values, list) or not all(isinstance(point, dict) for point in values):
        raise ScoreError(f"{path}: points is no list of objects")
    for point in values:
        pair = point.get("bytes"), point.get("bpb")
        if None in pair:
            continue
        if not all(type(x) in (int, float) and 0 < x < MOST for x in pair):
            raise ScoreError(f"{path}: a point has bytes {pair[0]!r} and bpb {pair[1]!r}")
        scheme = point.get("scheme")
        source = f"{path}, {scheme}" if scheme else str(path)
        yield source, (float(pair[0]), float(pair[1]))
