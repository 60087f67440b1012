"""A picture of a ledger: rectangles whose areas are the bytes, squarified.

Groups (code, tokenizer, head, trunk, small parts) have a colour and a place
together; what is too small for a label on it is listed under the picture. Needs matplotlib.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokgolf.inspection import check_plot, matplotlib_module, write_figure

WIDTH, HEIGHT = 11.0, 6.2  # inches
# Okabe & Ito 2008, mixed with white so that black text reads on all of them.
GROUPS = {
    "code": ("code", "#f5d08a"),
    "tokenizer": ("tokenizer", "#f0e6a0"),
    "head": ("head", "#8cc6ea"),
    "add-on": ("head", "#8cc6ea"),
    "trunk": ("trunk", "#86d0b8"),
}
REST = ("small parts", "#dcb7cd")
FONT_SIZES = (12, 10, 8.5, 7)  # points, the largest that fits


class Rectangle(NamedTuple):
    """Left, bottom, width, height."""

    x: float
    y: float
    width: float
    height: float


def squarify(sizes: Sequence[float], within: Rectangle) -> list[Rectangle]:
    """Rectangles that tile `within`, areas in proportion to `sizes` (positive, falling).

    Rows are laid along the shorter side; one more joins a row while that makes the row's worst
    shape squarer. Source: Bruls, Huizing & van Wijk 2000.

    sizes=[6, 3, 3], within=(0, 0, 4, 3) -> [(0, 0, 2, 3), (2, 0, 2, 1.5), (2, 1.5, 2, 1.5)]
    """
    found: list[Rectangle] = []
    scale = within.width * within.height / sum(sizes)
    areas = [size * scale for size in sizes]
    x, y, width, height = within
    while areas:
        side = min(width, height)
        count = 1
        while count < len(areas) and _worst(areas[: count + 1], side) <= _worst(
            areas[:count], side
        ):
            count += 1
        row, areas = areas[:count], areas[count:]
        depth = sum(row) / side
        along = 0.0
        for area in row:
            length = area / depth
            if width >= height:
                found.append(Rectangle(x, y + along, depth, length))
            else:
                found.append(Rectangle(x + along, y, length, depth))
            along += length
        if width >= height:
            x, width = x + depth, width - depth
        else:
            y, height = y + depth, height - depth
    return found


def _worst(row: Sequence[float], side: float) -> float:
    """The longest shape of a row: the greatest ratio of a rectangle's sides."""
    depth = sum(row) / side
    return max(max(depth * depth / area, area / (depth * depth)) for area in row)


class Area(NamedTuple):
    """A group of rows, and where each of them lies within it."""

    name: str
    color: str
    box: Rectangle
    members: list[tuple[str, int, Rectangle]]

    @property
    def bytes(self) -> int:
        """Of all members."""
        return sum(size for _, size, _ in self.members)


def areas(rows: Mapping[str, int], within: Rectangle) -> list[Area]:
    """Lay out a ledger's rows (component, bytes) by group, groups and members by falling size."""
    groups: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for name, size in rows.items():
        groups.setdefault(GROUPS.get(name.partition(":")[0], REST), []).append((name, size))
    by_size = sorted(groups.items(), key=lambda item: -sum(size for _, size in item[1]))
    totals = [sum(size for _, size in members) for _, members in by_size]
    found = []
    for ((name, color), members), place in zip(by_size, squarify(totals, within), strict=True):
        members = sorted(members, key=lambda row: -row[1])
        boxes = squarify([size for _, size in members], place)
        laid = [(*row, box) for row, box in zip(members, boxes, strict=True)]
        found.append(Area(name, color, place, laid))
    return found


def plot_ledger(rows: Mapping[str, int], title: str, path: Path) -> None:
    """Draw a ledger's rows (component, bytes) and write the picture to `path` (.png, .svg, .pdf).

    Raises `ConfigError` for another ending, or without matplotlib.
    """
    check_plot(path)
    full = sum(rows.values())
    found = areas(rows, Rectangle(0, 0, WIDTH, HEIGHT))
    figure = matplotlib_module("figure").Figure(figsize=(WIDTH, HEIGHT + 0.9), dpi=150)
    axes = figure.add_axes((0.01, 0.09, 0.98, 0.85), xlim=(0, WIDTH), ylim=(HEIGHT, 0))
    axes.axis("off")
    small: list[str] = []
    for area in found:
        for name, size, box in area.members:
            share = f"{100 * size / full:.1f} %"
            _draw(axes, box, area.color, 0.8)
            if not _label(figure, axes, box, name, size, share):
                small.append(f"{name} {size:,}")
        _draw(axes, area.box, "none", 2.4)
    figure.text(0.012, 0.957, title, fontsize=12, fontweight="bold")
    total = f"{full:,} bytes, code and tokenizer included"
    figure.text(0.988, 0.957, total, fontsize=11, ha="right")
    left = 0.012
    for area in found:
        share = f"{area.name} {100 * area.bytes / full:.1f} %"
        text = figure.text(left + 0.016, 0.057, share, fontsize=9)
        figure.text(left, 0.057, "\u25a0", fontsize=12, color=area.color)
        left += 0.03 + text.get_window_extent().width / (figure.dpi * WIDTH)
    if small:
        note = "bytes of the smallest: " + ", ".join(small)
        figure.text(0.012, 0.037, note, fontsize=7.5, color="#444444", va="top", wrap=True)
    write_figure(figure, path)


def _draw(axes: Any, box: Rectangle, color: str, line: float) -> None:
    patch = matplotlib_module("patches").Rectangle(
        (box.x, box.y), box.width, box.height, facecolor=color, edgecolor="white", linewidth=line
    )
    axes.add_patch(patch)


def _label(figure: Any, axes: Any, box: Rectangle, name: str, size: int, share: str) -> bool:
    """Write on a rectangle what it is, in the largest type that fits; False if none does."""
    lines = [name.replace(": ", ":\n"), f"{size:,}", share]
    for text in ("\n".join(lines), f"{name}\n{size:,}", f"{name}  {size:,}"):
        for font_size in FONT_SIZES:
            label = axes.text(
                box.x + box.width / 2, box.y + box.height / 2, text,
                fontsize=font_size, ha="center", va="center", linespacing=1.15,
            )  # fmt: skip
            extent = label.get_window_extent()
            inch = figure.dpi
            if extent.width < 0.92 * box.width * inch and extent.height < 0.9 * box.height * inch:
                return True
            label.remove()
    return False
