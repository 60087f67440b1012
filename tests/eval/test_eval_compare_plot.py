"""The picture of a comparison: what it writes along its axes can be read.

Drawn as it is written, but looked at through matplotlib's own boxes and not as pixels.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokgolf.comparisonplot import plot_comparisons
from tokgolf.eval.compare import compare
from tokgolf.eval.saved import SavedScore


def scored(name: str, sizes: list[float], bpb: float) -> SavedScore:
    return SavedScore(
        name=name, corpus="web:val", corpus_sha256="c" * 64, mode="raw", protocol={"stride": 64},
        tokenizer="t" * 64, tokens=100, bits=np.array(sizes) * bpb, sizes=np.array(sizes),
        artifact_sha256=None, artifact_bytes=None, seed=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "some"),
    [
        ([1000.0, 50.0, 4000.0], "100"),
        ([6100.0, 8900.0, 7000.0], ""),
        ([90.0, 999.0], "300"),
        ([1000.0, 1001.0], ""),
        ([5050.0], ""),
        ([1.0, 2e6], "10,000"),
        ([3.0, 2e9], ""),
        ([1.1e6, 1e8], "3,000,000"),
        ([1.1e6, 9.9e6], ""),
    ],
)
def test_bytes_are_written_in_plain_numbers_that_do_not_overlap(
    sizes: list[float],
    some: str,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path_factory.getbasetemp()))  # its list of fonts
    figure_module = pytest.importorskip("matplotlib.figure")
    agg = pytest.importorskip("matplotlib.backends.backend_agg")
    drawn: list[Any] = []
    monkeypatch.setattr(figure_module.Figure, "savefig", lambda it, *_, **__: drawn.append(it))
    found = compare([[scored("a", sizes, 1.2)], [scored("b", sizes, 1.1)]])
    plot_comparisons(found, tmp_path_factory.mktemp("plot") / Path("p.png"))
    agg.FigureCanvasAgg(drawn[0]).draw()
    axes = drawn[0].axes[1]
    low, high = axes.get_xlim()
    ticks = [*axes.xaxis.get_major_ticks(), *axes.xaxis.get_minor_ticks()]
    labels = [
        tick.label1 for tick in ticks if low <= tick.get_loc() <= high and tick.label1.get_text()
    ]
    texts = [label.get_text() for label in labels]
    assert len(texts) > 1 and all(text.replace(",", "").isdigit() for text in texts), texts
    assert not some or some in texts, texts
    boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.x0)
    assert all(a.x1 < b.x0 for a, b in zip(boxes, boxes[1:], strict=False)), texts
