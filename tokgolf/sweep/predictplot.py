"""A picture of a forecast: the law beyond the cells, and predictions beside what was measured.

Needs matplotlib.
"""

from pathlib import Path

import numpy as np

from tokgolf.inspection import check_plot, matplotlib_module, write_figure
from tokgolf.sweep.points import seed_variance
from tokgolf.sweep.predict import Forecast

MEASURED, LAW, HELD_OUT = "#0072b2", "#d55e00", "#009e73"  # Okabe & Ito 2008
CURVES = 60  # points of a curve


def plot_forecast(found: Forecast, path: Path) -> None:
    """Draw a forecast and write the picture to `path` (.png, .svg, .pdf).

    Raises `ConfigError` for another ending, or without matplotlib.
    """
    check_plot(path)
    ticker = matplotlib_module("ticker")
    figure = matplotlib_module("figure").Figure(figsize=(12, 5.2), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    best = found.at_cap[0]
    kind = found.effects.kind(best.settings)
    for own, style in (
        (False, {"color": "#aaaaaa", "s": 12, "label": "measured, others"}),
        (True, {"color": MEASURED, "s": 30, "label": f"measured, {best.label}", "zorder": 3}),
    ):
        some = [p for p in found.points if (found.effects.kind(p.settings) == kind) is own]
        if some:
            left.scatter([p.params for p in some], [p.bpb for p in some], **style)
    smallest = min(point.params for point in found.points)
    sizes = np.geomspace(smallest, max(best.params, smallest), CURVES)
    low, middle, high = found.law.predict(
        sizes,
        np.full(CURVES, float(best.tokens)),
        np.repeat(found.effects.columns([best.settings]), CURVES, 0),
        seed_variance=np.full(CURVES, seed_variance(found.points)),
    )
    left.plot(sizes, middle, color=LAW, label=f"the law, {best.tokens:,} training tokens")
    left.fill_between(sizes, low, high, color=LAW, alpha=0.2, linewidth=0, label="95 %")
    left.errorbar(
        [best.params], [best.bpb], [[best.bpb - best.low], [best.high - best.bpb]],
        color=LAW, fmt="D", capsize=4,
        label=f"at {found.cap:,} bytes: {best.bpb:.3f} ({best.low:.3f} to {best.high:.3f})",
    )  # fmt: skip
    left.set_xscale("log")
    decades = np.log10(sizes[-1] / sizes[0])
    subs = (1, 2, 5) if decades < 1.5 else (1, 3) if decades < 3 else (1,)
    left.xaxis.set_major_locator(ticker.LogLocator(subs=subs, numticks=8))
    left.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    left.xaxis.set_minor_formatter(ticker.NullFormatter())
    left.set_xlabel("weights")
    left.set_ylabel("bits per byte")
    left.set_title(f"best at the cap: {best.label}", loc="left", fontsize=10)
    for predicted, color, label in (
        (found.left_out, MEASURED, "each from all others"),
        (found.held_out, HELD_OUT, "the largest, from the smaller"),
    ):
        if predicted:
            x = np.array([each.measured for each in predicted])
            y = np.array([each.bpb for each in predicted])
            ends = np.array(
                [[e.bpb - e.low for e in predicted], [e.high - e.bpb for e in predicted]]
            )
            right.errorbar(
                x, y, ends, fmt="o", ms=4, color=color, elinewidth=1, alpha=0.8, label=label
            )
    line = [min(p.bpb for p in found.points), max(p.bpb for p in found.points)]
    right.plot(line, line, color="black", linewidth=0.8, label="equal")
    right.set_xlabel("measured bits per byte")
    right.set_ylabel("predicted, 95 %")
    right.set_title("predictions of what was measured", loc="left", fontsize=10)
    for axes in (left, right):
        axes.grid(True, color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    write_figure(figure, path)
