"""The page's plots as files: every one as .png and as .svg, by matplotlib.

Unlike the page's own they are light, of one size and without titles on hover. The same report
gives the same bytes.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokgolf.errors import ConfigError
from tokgolf.inspection import check_plot, matplotlib_module, write_figure
from tokgolf.report.board import Board
from tokgolf.report.build import MOST_CHARTED, Report
from tokgolf.report.curves import AXES, Curve
from tokgolf.report.heat import Heat, pieces, plain
from tokgolf.report.palette import HEAT_LIGHT, LIGHT, SERIES, heat_class
from tokgolf.report.scales import labels, linear_ticks, short
from tokgolf.treemap import plot_ledger

MARKERS = "osD^vP"
SUFFIXES = (".png", ".svg")
COLUMNS, ROWS = 100, 60  # of the heat map, in letters


def check_plots(folder: Path) -> None:
    """Raise `ConfigError` unless plots can be made, and written into this folder."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; --plots needs a folder")
    if not folder.parent.is_dir():
        raise ConfigError(f"{folder.parent} is no folder; make it, or write the plots elsewhere")
    check_plot(folder / "plot.png")


def write_plots(report: Report, folder: Path) -> list[Path]:
    """Write every plot that the page has into `folder`, made if need be; returns the paths."""
    folder.mkdir(exist_ok=True)
    written = []
    for name, figure in _figures(report):
        for suffix in SUFFIXES:
            written.append(folder / (name + suffix))
            write_figure(figure, written[-1])
    if report.ledger and report.subject:
        for suffix in SUFFIXES:
            written.append(folder / f"ledger{suffix}")
            plot_ledger(report.ledger, plain(report.subject.name), written[-1])
    return written


def _figures(report: Report) -> Iterator[tuple[str, Any]]:
    for number, board in enumerate(report.boards, 1):
        if len(board.sized) > 1:
            yield f"front-{number}", _front(board)
    if report.curves:
        for axis, title in AXES.items():
            yield f"curves-{axis}", _curves(report.curves, axis, title)
    if report.predictions:
        yield "predictions", _predictions(report)
    if report.heat:
        yield "heat", _heat(report.heat)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    figure = matplotlib_module("figure").Figure(
        figsize=(width, height), dpi=150, layout="constrained"
    )
    axes = figure.subplots()
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _escaped(name: str) -> str:
    """A name as matplotlib shows it: "$" would begin mathematics."""
    return plain(name).replace("$", r"\$")


def _bytes(size: float, _: Any) -> str:
    return short(size)


def _front(board: Board) -> Any:
    figure, axes = _figure(9, 5)
    for number, head in enumerate(dict.fromkeys(row.entry.head for row in board.sized)):
        rows = [row for row in board.sized if row.entry.head == head]
        color = LIGHT[SERIES[number]] if number < len(SERIES) else LIGHT["rest"]
        axes.scatter(
            [row.entry.artifact_bytes for row in rows], [row.bpb for row in rows], s=28,
            color=color, marker=MARKERS[number % len(MARKERS)],
            label=_escaped(head) if number < 2 * len(SERIES) else None,
        )  # fmt: skip
    front = sorted((row.entry.artifact_bytes or 0, row.bpb) for row in board.sized if row.front)
    axes.step(*zip(*front, strict=True), where="post", color=LIGHT["ink"], linewidth=1)
    largest = max(row.entry.artifact_bytes or 0 for row in board.sized)
    for cap in sorted({row.entry.cap or 0 for row in board.sized}):
        if 0 < cap <= 1.5 * largest:
            axes.axvline(cap, color=LIGHT["ink"], linewidth=0.8, linestyle=":")
    low, high = axes.get_xlim()
    ticks, names = zip(*labels(linear_ticks(low, high, 6)), strict=True)
    axes.set_xticks(ticks, names)
    axes.set_xlabel("artifact bytes, all counted")
    axes.set_ylabel("bits per byte")
    axes.set_title(
        _escaped(f"{board.title}: {', '.join(board.facts)}"), fontsize=7, loc="left", wrap=True
    )
    axes.legend(frameon=False, fontsize=8)
    return figure


def _curves(curves: tuple[Curve, ...], axis: str, title: str) -> Any:
    figure, axes = _figure(9, 5)
    for number, curve in reversed([*enumerate(curves)]):
        known = number < len(SERIES)
        axes.plot(
            *curve.points[axis].T,
            color=LIGHT[SERIES[number]] if known else LIGHT["rest"],
            linewidth=1.6 if known else 0.8,
            label=_escaped(curve.entry.name) if known else None,
        )
    ticker = matplotlib_module("ticker")
    for scale, side in ((axes.set_xscale, axes.xaxis), (axes.set_yscale, axes.yaxis)):
        scale("log")
        side.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=10))
        side.set_major_formatter(_bytes)
        side.set_minor_formatter(ticker.NullFormatter())
    axes.set_xlabel(title)
    axes.set_ylabel("training loss, bits per byte")
    axes.legend(frameon=False, fontsize=8, reverse=True)
    return figure


def _predictions(report: Report) -> Any:
    rows = report.predictions[:MOST_CHARTED]
    figure, axes = _figure(9, 1.4 + 0.3 * len(rows))
    for number, row in enumerate(rows):
        if row["low"] is not None and row["high"] is not None:
            ends = [row["low"], row["high"]]
            axes.plot(ends, [number] * 2, color=LIGHT["s0"], linewidth=5, alpha=0.35)
        axes.plot([row["bpb"]], [number], "o", color=LIGHT["s0"], markerfacecolor="white")
        if row["measured"] is not None:
            axes.plot([row["measured"]], [number], "D", color=LIGHT["s1"], markersize=5)
    axes.set_yticks(range(len(rows)), [_escaped(row["label"]) for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("bits per byte: predicted (ring) with its 95 % interval, measured (diamond)")
    return figure


def _heat(heat: Heat) -> Any:
    """Letters on a grid, each on the colour of its token; as many lines as one picture holds."""
    figure = matplotlib_module("figure").Figure(figsize=(11, 8), dpi=150)
    axes = figure.add_axes((0.02, 0.02, 0.96, 0.92), xlim=(0, COLUMNS), ylim=(ROWS, 0))
    axes.axis("off")
    title = f"{heat.title}: {heat.bits:,.1f} bits for {heat.size:,} bytes"
    figure.text(0.02, 0.96, _escaped(title), fontsize=9)
    column = row = 0
    for token in heat.tokens:
        level = heat_class(token.bits)
        back, ink = HEAT_LIGHT[level - 1] if level else ("none", LIGHT["ink"])
        for _, words in pieces(token.data):
            if words == "\n" or column + len(words) > COLUMNS:
                column, row = 0, row + 1
            if row == ROWS:
                return figure
            words = words.strip("\n")
            axes.add_patch(
                matplotlib_module("patches").Rectangle(
                    (column, row + 0.05), len(words), 0.9, facecolor=back, edgecolor="none"
                )
            )
            for letter in words:
                axes.text(
                    column + 0.5, row + 0.5, letter.replace("$", r"\$"), color=ink, fontsize=7,
                    family="monospace", ha="center", va="center",
                )  # fmt: skip
                column += 1
    return figure
