"""The page's charts as inline SVG, each in two widths, for desks and for phones.

Colours are CSS classes, so that a chart follows the page's theme; shapes tell series apart too.
Every mark has a title, which browsers show on hover without a script.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from tokgolf.report.board import Board
from tokgolf.report.curves import Curve
from tokgolf.report.heat import plain
from tokgolf.report.palette import SERIES
from tokgolf.report.scales import Scale, labels, scale, short
from tokgolf.treemap import Rectangle, areas

WIDTHS = {"wide": 760, "narrow": 344}
SHAPES = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "M-3.6-3.6h7.2v7.2h-7.2z",
    "M0-5l5 5-5 5-5-5z",
    "M0-4.6l4.6 8h-9.2z",
    "M0 4.6l4.6-8h-9.2z",
    "M-1.5-5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5v-3h3.5z",
)
LETTER = 6.1  # a letter's usual width at 11.5 px
LINE = 14.0
AREA_CLASS = {"code": "code", "tokenizer": "tokenizer", "head": "head", "trunk": "trunk"}


@dataclass(frozen=True, kw_only=True)
class Series:
    """A group of marks: its name, colour class and shape."""

    name: str
    color: str
    shape: str

    def mark(self, x: float, y: float, title: str, more: str = "") -> Markup:
        """One mark, which says what it is."""
        return Markup(
            '<path class="m f-{}{}" transform="translate({:.1f} {:.1f})" d="{}">'
            "<title>{}</title></path>"
        ).format(self.color, more, x, y, self.shape, title)


def series_of(names: Iterable[str]) -> dict[str, Series]:
    """A look for each name; those after the sixth share one.  ["tied"] -> {"tied": blue circles}"""
    found = {}
    for number, name in enumerate(dict.fromkeys(names)):
        known = number < len(SERIES)
        found[name] = Series(
            name=plain(name),
            color=SERIES[number] if known else "rest",
            shape=SHAPES[number % len(SHAPES)],
        )
    return found


def svg(width: float, height: float, label: str, parts: Iterable[Markup]) -> Markup:
    """A picture with a name, for those who cannot see it."""
    return Markup(
        '<svg viewBox="0 0 {w:.0f} {h:.0f}" width="{w:.0f}" height="{h:.0f}" role="img" '
        'aria-label="{label}">{body}</svg>'
    ).format(w=width, h=height, label=label, body=Markup("").join(parts))


def both(draw: Any) -> Markup:
    """`draw(width)` for a desk and for a phone; the style sheet shows the one that fits."""
    return Markup("").join(
        Markup('<div class="{}">{}</div>').format(name, draw(width))
        for name, width in WIDTHS.items()
    )


def text(x: float, y: float, words: str, kind: str = "") -> Markup:
    """A line of text at a place; kinds: "end", "mid", "strong", "soft"."""
    return Markup('<text x="{:.1f}" y="{:.1f}" class="{}">{}</text>').format(x, y, kind, words)


def axes(x: Scale, y: Scale, x_title: str, y_title: str) -> list[Markup]:
    """Grid, ticks and titles; y grows upwards."""
    left, right, bottom, top = x.start, x.end, y.start, y.end
    parts = []
    for value, words in labels(y.ticks(6)):
        at = y(value)
        parts.append(_line(left, at, right, at, "grid"))
        parts.append(text(left - 6, at + 4, words, "end"))
    for value, words in labels(x.ticks(max(3, int((right - left) / 80)))):
        at = x(value)
        parts.append(_line(at, bottom, at, bottom + 4, "axis"))
        parts.append(text(at, bottom + 17, words, "mid"))
    parts.append(_line(left, bottom, right, bottom, "axis"))
    parts.append(text(right, bottom + 34, x_title, "end soft"))
    parts.append(text(left - 38, top - 10, y_title, "soft"))
    return parts


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup('<path class="{}" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(
        kind, x1, y1, x2, y2
    )


def _path(points: Iterable[tuple[float, float]], kind: str, title: str = "") -> Markup:
    places = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    name = Markup("<title>{}</title>").format(title) if title else ""
    return Markup('<path class="{}" d="M{}">{}</path>').format(kind, places, name)


def pareto(board: Board, looks: Mapping[str, Series]) -> Markup:
    """Bits per byte over bytes; the line joins the runs that nothing beats in both."""
    return both(lambda width: _pareto(board, looks, width))


def _pareto(board: Board, looks: Mapping[str, Series], width: float) -> Markup:
    rows = [row for row in board.rows if row.entry.artifact_bytes]
    sizes = [float(row.entry.artifact_bytes or 0) for row in rows]
    caps = sorted({row.entry.cap for row in rows if row.entry.cap})
    near = [cap for cap in caps if cap <= 1.5 * max(sizes)]
    height = 0.52 * width if width > 500 else 0.85 * width
    spread = [*sizes, *near]
    x = scale(spread, 48, width - 12, log=max(spread) > 3 * min(spread), margin=0.08)
    y = scale([row.bpb for row in rows], height - 44, 28, margin=0.1)
    parts = axes(x, y, "artifact bytes, all counted", "bits per byte")
    for cap in near:
        parts.append(_line(x(cap), y.start, x(cap), y.end, "cap"))
        parts.append(text(x(cap) - 4, y.end + 8, f"cap {short(cap)}", "end soft"))
    front = sorted(
        (row for row in rows if row.front), key=lambda row: row.entry.artifact_bytes or 0
    )
    steps: list[tuple[float, float]] = []
    for row in front:
        at = x(row.entry.artifact_bytes or 0)
        steps += [(at, steps[-1][1])] if steps else []
        steps.append((at, y(row.bpb)))
    if steps:
        parts.append(_path([*steps, (x.end, steps[-1][1])], "front"))
    for row in reversed(rows):
        title = f"{plain(row.entry.name)}: {row.bpb:.4f} bpb, {row.entry.artifact_bytes:,} bytes, {row.entry.head}"  # noqa: E501
        place = x(row.entry.artifact_bytes or 0), y(row.bpb)
        parts.append(looks[row.entry.head].mark(*place, plain(title), "" if row.front else " dim"))
    labels = [(x(r.entry.artifact_bytes or 0), y(r.bpb), plain(r.entry.name)) for r in front]
    taken = [(x(size) - 5, y(r.bpb) - 5, 10.0, 10.0) for size, r in zip(sizes, rows, strict=True)]
    parts += place_labels(labels, width, taken)
    label = f"{len(rows)} runs, bits per byte over artifact bytes; {len(front)} are on the front"
    return svg(width, height, label, parts)


Box = tuple[float, float, float, float]


def place_labels(
    labels: Sequence[tuple[float, float, str]], width: float, taken: Sequence[Box]
) -> list[Markup]:
    """Names beside their marks, where none covers a mark or another name; others are left out.

    taken: left, top, width and height of what must not be covered.
    """
    used = list(taken)
    found = []
    for x, y, name in labels:
        name = name if len(name) <= 28 else f"{name[:27]}\u2026"
        long = LETTER * len(name)
        for left, top in (
            (x + 8, y - 15),
            (x - 8 - long, y + 2),
            (x + 8, y + 2),
            (x - 8 - long, y - 15),
        ):  # noqa: E501
            box = (left, top, long, LINE)
            if left > 48 and left + long < width and not any(_meet(box, other) for other in used):
                used.append(box)
                found.append(text(left, top + 11, name, "strong"))
                break
    return found


def _meet(a: Box, b: Box) -> bool:
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


def curves(found: Sequence[Curve], axis: str, title: str) -> Markup:
    """Training loss in bits per byte, both axes logarithmic; the first six runs have a colour."""
    return both(lambda width: _curves(found, axis, title, width))


def _curves(found: Sequence[Curve], axis: str, title: str, width: float) -> Markup:
    height = 0.5 * width if width > 500 else 0.85 * width
    xs = [float(value) for curve in found for value in curve.points[axis][:, 0]]
    ys = [float(value) for curve in found for value in curve.points[axis][:, 1]]
    x = scale(xs, 48, width - 12, log=True, margin=0.0)
    y = scale(ys, height - 44, 28, log=True)
    parts = axes(x, y, title, "training loss, bits per byte")
    for number, curve in reversed([*enumerate(found)]):
        kind = f"l-{SERIES[number]}" if number < len(SERIES) else "l-rest"
        points = [(x(a), y(b)) for a, b in curve.points[axis].tolist()]
        last = curve.points[axis][-1]
        words = f"{plain(curve.entry.name)}: {last[1]:.3f} at {short(float(last[0]))} {title}"
        parts.append(_path(points, f"curve {kind}", words))
    label = f"training loss of {len(found)} runs over {title}"
    return svg(width, height, label, parts)


def treemap(rows: Mapping[str, int]) -> Markup:
    """A ledger as rectangles whose areas are its bytes; the table below it names every row."""
    return both(lambda width: _treemap(rows, width))


def _treemap(rows: Mapping[str, int], width: float) -> Markup:
    height = 0.5 * width if width > 500 else 1.25 * width
    full = sum(rows.values())
    parts = []
    for area in areas(rows, Rectangle(0, 0, width, height)):
        kind = AREA_CLASS.get(area.name, "small")
        for name, size, box in area.members:
            words = f"{plain(name)}: {size:,} bytes, {100 * size / full:.1f} %"
            parts.append(
                Markup(
                    '<rect class="area f-{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">'
                    "<title>{}</title></rect>"
                ).format(kind, *box, words)
            )
            parts += _area_label(box, plain(name), f"{size:,}", f"{100 * size / full:.1f} %")
        parts.append(
            Markup(
                '<rect class="group" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>'
            ).format(*area.box)
        )
    return svg(width, height, f"treemap of {full:,} bytes", parts)


def _area_label(box: Rectangle, name: str, size: str, share: str) -> list[Markup]:
    """As many of the lines as fit into a rectangle, its name first; none if that does not."""
    words = name.replace(": ", ":\n").split("\n")
    room = int((box.height - 6) / LINE)
    for lines in ([*words, size, share], [*words, size], [name, size], [name], name.split()):
        if len(lines) <= room and LETTER * max(map(len, lines)) < box.width - 8:
            return [
                text(box.x + 6, box.y + 16 + LINE * number, line, "area-text")
                for number, line in enumerate(lines)
            ]
    return []


def predictions(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """What was expected of each cell, with its interval, and what was measured."""
    return both(lambda width: _predictions(rows, width))


def _predictions(rows: Sequence[Mapping[str, Any]], width: float) -> Markup:
    left = min(0.4 * width, 14 + LETTER * max(len(row["label"]) for row in rows))
    letters = int((left - 10) / LETTER)
    values = [row[key] for row in rows for key in ("bpb", "low", "high", "measured")]
    x = scale([value for value in values if value is not None], left, width - 12)
    bottom = 14 + 22 * len(rows)
    parts = []
    for value, words in labels(x.ticks(max(3, int((x.end - x.start) / 80)))):
        parts.append(_line(x(value), 6, x(value), bottom, "grid"))
        parts.append(text(x(value), bottom + 17, words, "mid"))
    parts.append(text(x.end, bottom + 34, "bits per byte", "end soft"))
    for number, row in enumerate(rows):
        y = 17 + 22 * number
        name = row["label"]
        name = name if len(name) <= letters else f"{name[: letters - 1]}\u2026"
        parts.append(text(left - 8, y + 4, name, "end"))
        if row["low"] is not None and row["high"] is not None:
            parts.append(_line(x(row["low"]), y, x(row["high"]), y, "interval"))
        parts.append(
            Markup(
                '<circle class="predicted" cx="{:.1f}" cy="{}" r="4"><title>{}</title></circle>'
            ).format(  # noqa: E501
                x(row["bpb"]), y, f"predicted {row['bpb']:.4f}"
            )
        )
        if row["measured"] is not None:
            look = Series(name="measured", color="s1", shape=SHAPES[2])
            parts.append(look.mark(x(row["measured"]), y, f"measured {row['measured']:.4f}"))
    return svg(width, bottom + 40, f"{len(rows)} predictions beside what was measured", parts)


def lengths(counts: Mapping[str, int]) -> Markup:
    """How many tokens there are of each length in bytes, as small bars; 16 and more are one."""
    bars = [0] * 16
    for length, count in counts.items():
        bars[min(16, int(length)) - 1] += count
    top = max([*bars, 1])
    parts = [
        Markup('<rect class="f-s0" x="{}" y="{:.1f}" width="5" height="{:.1f}"/>').format(
            6 * number, 20 - 20 * count / top, max(0.0, 20 * count / top)
        )
        for number, count in enumerate(bars)
    ]
    said = ", ".join(f"{count} of {length}" for length, count in counts.items())
    return svg(
        96, 20, f"tokens by bytes: {said}", [Markup("<title>{}</title>").format(said), *parts]
    )


def legend_mark(look: Series) -> Markup:
    """A series' mark, for a legend."""
    return Markup(
        '<svg viewBox="-7 -7 14 14" width="14" height="14" aria-hidden="true">'
        '<path class="m f-{}" d="{}"/></svg>'
    ).format(escape(look.color), look.shape)
