"""The treemap: rectangles that tile, and a picture that names every row."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokgolf.errors import ConfigError
from tokgolf.treemap import Rectangle, plot_ledger, squarify

ROWS = {
    "code": 19_884,
    "tokenizer": 3_574,
    "head: tied table": 308_519,
    "head: codes": 1,
    "add-on: bigram-hash": 30_000,
    "trunk: attention key": 80_488,
    "trunk: mlp up": 458_359,
    "vectors": 6_000,
    "lanes": 513,
    "checksum": 32,
}

falling = st.lists(st.integers(1, 10**8), min_size=1, max_size=40).map(
    lambda sizes: sorted(sizes, reverse=True)
)


@pytest.fixture(autouse=True)
def own_matplotlib_folder(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Matplotlib keeps a list of fonts; not in the home directory."""
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path_factory.getbasetemp()))


def test_the_worked_example() -> None:
    assert squarify([6, 3, 3], Rectangle(0, 0, 4, 3)) == [
        (0, 0, 2, 3), (2, 0, 2, 1.5), (2, 1.5, 2, 1.5)
    ]  # fmt: skip


@given(falling, st.floats(0.5, 20), st.floats(0.5, 20))
def test_rectangles_have_their_shares_and_lie_inside(
    sizes: list[int], width: float, height: float
) -> None:
    boxes = squarify(sizes, Rectangle(1, 2, width, height))
    slack = 1e-6 * (width + height)
    for size, box in zip(sizes, boxes, strict=True):
        share = box.width * box.height / (width * height)
        assert share == pytest.approx(size / sum(sizes), rel=1e-4, abs=1e-9)
        assert 1 - slack <= box.x and box.x + box.width <= 1 + width + slack
        assert 2 - slack <= box.y and box.y + box.height <= 2 + height + slack


@given(falling)
def test_rectangles_do_not_overlap(sizes: list[int]) -> None:
    boxes = squarify(sizes, Rectangle(0, 0, 4, 3))
    for index, a in enumerate(boxes):
        for b in boxes[:index]:
            wide = min(a.x + a.width, b.x + b.width) - max(a.x, b.x)
            high = min(a.y + a.height, b.y + b.height) - max(a.y, b.y)
            assert wide < 1e-6 or high < 1e-6


@pytest.mark.parametrize("count", [4, 9, 20, 33])
def test_equal_sizes_are_nearly_square(count: int) -> None:
    boxes = squarify([1.0] * count, Rectangle(0, 0, 4, 3))
    assert max(max(b.width / b.height, b.height / b.width) for b in boxes) < 2.1


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_a_picture_is_written(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"ledger{suffix}"
    plot_ledger(ROWS, "model.golf", path)
    starts = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
    assert path.read_bytes().startswith(starts[suffix])


def texts(figure: Any) -> list[Any]:
    return [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]


def test_every_row_is_named_and_no_label_leaves_its_rectangle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    figures: list[Any] = []
    savefig = Figure.savefig

    def record(figure: Any, *arguments: Any, **options: Any) -> None:
        figures.append(figure)
        savefig(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", record)
    plot_ledger(ROWS, "model.golf", tmp_path / "ledger.png")
    (figure,) = figures
    words = " ".join(" ".join(text.get_text().split()) for text in texts(figure))
    for name, size in ROWS.items():
        assert name in words and f"{size:,}" in words
    assert f"{sum(ROWS.values()):,} bytes" in words and "model.golf" in words
    patches = [patch.get_window_extent() for patch in figure.axes[0].patches]
    for text in figure.axes[0].texts:
        box = text.get_window_extent()
        assert any(
            patch.x0 <= box.x0 and box.x1 <= patch.x1 and patch.y0 <= box.y0 and box.y1 <= patch.y1
            for patch in patches
        )


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ledger.txt is no plot"):
        plot_ledger(ROWS, "model.golf", tmp_path / "ledger.txt")
