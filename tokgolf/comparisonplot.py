"""A picture of comparisons: differences with their intervals, and every document's own.

Below zero the candidate is better. Needs matplotlib.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokgolf.eval.compare import Comparison
from tokgolf.eval.saved import Doubles
from tokgolf.inspection import check_plot, matplotlib_module, write_figure

DOCUMENTS, SEEDS, RULE = "#0072b2", "#d55e00", "#777777"  # Okabe & Ito 2008
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
LONGEST_NAME = 40


def plot_comparisons(found: Sequence[Comparison], path: Path) -> None:
    """Draw comparisons with one reference and write the picture to `path` (.png, .svg, .pdf).

    Raises `ConfigError` for another ending, or without matplotlib.
    """
    check_plot(path)
    height = 3.6 + 0.5 * len(found)
    figure = matplotlib_module("figure").Figure(figsize=(11, height), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    level = f"{100 * found[0].level:g} %"
    labels = {f"{level} over documents": DOCUMENTS, f"{level} over seeds": SEEDS}
    for row, each in enumerate(found):
        seeds = None if each.seeds is None else each.seeds.interval(each.level)
        for interval, (label, color), shift in zip(
            (each.documents, seeds), labels.items(), (-0.12, 0.12), strict=True
        ):
            if interval is not None:
                style = {"color": color, "linewidth": 3, "label": label}
                left.plot(interval, [row + shift] * 2, **style)
        left.plot([each.difference], [row], "o", color="black")
        rule = {"color": RULE, "linestyle": ":", "label": "the challenge's rule"}
        left.plot([-each.rule_bpb] * 2, [row - 0.4, row + 0.4], **rule)
        sizes = each.reference.scores[0].sizes
        some = sizes > 0
        each_document = each.candidate.document_bits - each.reference.document_bits
        right.scatter(
            sizes[some], each_document[some] / sizes[some], s=9, alpha=0.6, linewidths=0,
            color=COLORS[row % len(COLORS)], label=_short(each.candidate.name),
        )  # fmt: skip
    left.axvline(0, color="black", linewidth=0.8)
    left.set_yticks(np.arange(len(found)), [_short(each.candidate.name) for each in found])
    left.set_ylim(len(found) - 0.5, -0.5)
    left.xaxis.set_major_locator(matplotlib_module("ticker").MaxNLocator(6))
    left.set_xlabel("bits per byte, candidate less reference")
    unique = dict(zip(*left.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(
        unique.values(), unique.keys(), loc="outside lower left", ncols=3, frameon=False, fontsize=8
    )
    right.axhline(0, color="black", linewidth=0.8)
    _scale_bytes(right, found[0].reference.scores[0].sizes)
    right.set_xlabel("bytes of the document")
    right.set_title("each document, bits per byte", loc="left", fontsize=10)
    if len(found) > 1:
        right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.grid(True, color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    reference = found[0].reference
    figure.suptitle(
        f"against {_short(reference.name)} ({reference.bpb:.4f} bpb), "
        f"{_short(reference.scores[0].corpus)}",
        x=0.01, ha="left", fontsize=11,
    )  # fmt: skip
    write_figure(figure, path)


def _scale_bytes(axes: Any, sizes: Doubles) -> None:
    """Make x logarithmic, with few ticks in plain numbers: the usual labels would overprint."""
    ticker = matplotlib_module("ticker")
    axes.set_xscale("log")
    decades = np.log10(sizes.max() / sizes[sizes > 0].min())
    if decades < 1:
        locator = ticker.MaxNLocator(3, integer=True)
    else:
        locator = ticker.LogLocator(subs=(1, 3) if decades < 2 else (1,), numticks=5)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())


def _short(name: str) -> str:
    """The end of a long name, where paths differ."""
    return name if len(name) <= LONGEST_NAME else f"\u2026{name[1 - LONGEST_NAME :]}"
