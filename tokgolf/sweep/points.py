"""Measured settings for the law: cells of sweeps, stores and lines of trained comparisons.

Seeds of one setting become one point here, so that they move together whatever is made of them.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tokgolf.errors import ConfigError
from tokgolf.sweep.cells import (
    CELL_FILE,
    RESULTS_FILE,
    Cell,
    check_vocabulary,
    read_cell,
    read_sweep,
)
from tokgolf.sweep.law import Data, Doubles

# Axes that the law sees as weights and training tokens, and those that say nothing of a model.
SIZE_AXES = frozenset(
    f"trunk.{name}" for name in ("layers", "d_model", "heads", "kv_heads", "mlp_hidden")
)
BUDGET_AXES = frozenset({"steps", "tokens", "minutes", "batch_tokens", "micro_batch_tokens"})
OTHER_AXES = frozenset({"seed", "vocab_size", "params", "cap"})
LEVEL = 0.05  # prior standard deviation of log bpb between levels of an axis (see law.py)
TOGETHER = 0.03  # of what levels do together beyond what each does (docs/results/prediction.md)
SLOPE, CURVE = 0.05, 0.03  # of log bpb over log V, and over its square
Settings = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One setting and all its seeds. `bpb` is their mean; `spread` their log bpb's deviations,
    squared and summed; `seconds` and `artifact_bytes` are means too, None if not all have them."""

    settings: Settings
    bpb: float
    params: int
    tokens: int
    cells: tuple[Cell, ...]
    spread: float
    seconds: float | None
    artifact_bytes: float | None

    @property
    def work(self) -> float:
        """What training costs, up to a factor: weights times tokens."""
        return float(self.params) * self.tokens


def read_cells(paths: Iterable[Path]) -> list[Cell]:
    """The cells of sweeps (folder or `results.json`), stores, single cells and `.jsonl` files.

    A line of a `.jsonl` file is one of a trained comparison's (`benchmarks/trained_heads.py`,
    `trained_tokenizers.py`). Raises `ConfigError` for what is none of these.
    """
    found: dict[str, Cell] = {}
    for path in paths:
        if path.is_dir() and not (path / RESULTS_FILE).exists():
            files = [path / CELL_FILE] if (path / CELL_FILE).exists() else []
            files = files or sorted(path.glob(f"*/{CELL_FILE}"))
            if not files:
                raise ConfigError(
                    f"{path} has no {RESULTS_FILE} and no {CELL_FILE}, nor have its folders; "
                    "give a sweep's folder or a store of cells"
                )
            cells = [read_cell(file.parent) for file in files]
        elif path.suffix == ".jsonl":
            cells = list(_lines(path))
        else:
            cells = list(read_sweep(path).cells)
        found.update((cell.id, cell) for cell in cells)
    return list(found.values())


def _lines(path: Path) -> Iterable[Cell]:
    """The runs of a trained comparison, as cells."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} holds no lines of JSON in UTF-8: {error}") from error
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if "error" in row:
                continue
            settings = {k: row[k] for k in ("case", "variant", "vocab_size", "seed") if k in row}
            # Tokenizer rows have `bytes` of scored text; only heads' rows charge code.
            size = row["bytes"] if "code" in row else row.get("artifact_bytes")
            values = [row.get("bpb"), row.get("bpb_float"), row.get("seconds", 0.0)]
            if not all(v is None or (math.isfinite(v) and v >= 0) for v in values):
                raise ValueError("a number is negative or not finite")
            check_vocabulary(settings)
            yield Cell(
                id=f"{path}:{number}",
                settings=settings,
                status="done",
                bpb=row.get("bpb"),
                bpb_before_export=row.get("bpb_float"),
                artifact_bytes=size,
                params=int(row["params"]),
                steps=row.get("steps"),
                tokens=int(row.get("train_tokens") or row["tokens"]),
                seconds=row.get("seconds", 0.0),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"{path}, line {number} is no measured run: {error!r}; it needs bpb, params and "
                "train_tokens"
            ) from error


def gather(cells: Iterable[Cell], *, float_model: bool = False) -> list[Point]:
    """The finished cells as points, in their order; `float_model` takes bpb before export."""
    groups: dict[str, dict[Any, Cell]] = {}
    for cell in cells:
        bpb = cell.bpb_before_export if float_model else cell.bpb
        if cell.status != "done" or not bpb or not cell.params or not cell.tokens:
            continue
        cell = replace(cell, bpb=bpb)
        settings = {k: v for k, v in sorted(cell.settings.items()) if k != "seed"}
        key = json.dumps([settings, cell.params, cell.tokens])
        # One run under two names (a comparison at equal steps and at equal bytes) counts once.
        groups.setdefault(key, {})[cell.settings.get("seed"), bpb] = cell
    return [_point(tuple(group.values())) for group in groups.values()]


def _point(cells: tuple[Cell, ...]) -> Point:
    logs = np.log([cell.bpb for cell in cells if cell.bpb])
    first = cells[0]
    assert first.params and first.tokens
    sizes = [cell.artifact_bytes for cell in cells if cell.artifact_bytes]
    seconds = [cell.seconds for cell in cells if cell.seconds]
    return Point(
        settings={k: v for k, v in first.settings.items() if k != "seed"},
        bpb=float(np.exp(logs.mean())),
        params=first.params,
        tokens=first.tokens,
        cells=cells,
        spread=float(np.square(logs - logs.mean()).sum()),
        seconds=float(np.mean(seconds)) if len(seconds) == len(cells) else None,
        artifact_bytes=float(np.mean(sizes)) if len(sizes) == len(cells) else None,
    )


class Effects:
    """The columns of what differs between settings beside weights and tokens."""

    def __init__(self, points: Sequence[Point]) -> None:
        """Take the axes and levels from measured points."""
        axes = sorted({axis for point in points for axis in point.settings})
        axes = [axis for axis in axes if axis not in SIZE_AXES | BUDGET_AXES | OTHER_AXES]
        levels = {axis: {self._level(point.settings, axis) for point in points} for axis in axes}
        self.axes = [axis for axis in axes if len(levels[axis]) > 1]
        self._levels = [(axis, level) for axis in self.axes for level in sorted(levels[axis])]
        self._kinds = sorted({self.kind(point.settings) for point in points})
        vocabularies = [self._vocabulary(point.settings) for point in points]
        self._middle = float(np.mean(vocabularies))
        self.vocabularies = len(set(vocabularies))

    def kind(self, settings: Settings) -> tuple[str, ...]:
        """All that tells settings apart but their size, tokens and seed."""
        return (
            *(self._level(settings, axis) for axis in self.axes),
            self._vocabulary_text(settings),
        )

    def label(self, settings: Settings) -> str:
        """The same for a person: "head=tied, V=1,024"."""
        parts = [
            str(settings.get(axis))
            if axis in ("case", "variant")
            else f"{axis}={settings.get(axis)}"
            for axis in self.axes
            if settings.get(axis) is not None  # an option of other heads
        ]
        vocabulary = settings.get("vocab_size")
        return ", ".join([*parts, *([f"V={vocabulary:,}"] if vocabulary else [])]) or "all cells"

    def columns(self, settings: Sequence[Settings]) -> Doubles:
        """(settings, columns), each column times the prior deviation of its effect."""
        rows = []
        for each in settings:
            x = self._vocabulary(each) - self._middle
            kind = self.kind(each)
            rows.append(
                [LEVEL * (self._level(each, axis) == level) for axis, level in self._levels]
                + [TOGETHER * (kind == known) for known in self._kinds if len(self._kinds) > 1]
                + [SLOPE * x, CURVE * x * x]
            )
        return np.array(rows, dtype=np.float64)

    @staticmethod
    def _level(settings: Settings, axis: str) -> str:
        return json.dumps(settings.get(axis))

    @staticmethod
    def _vocabulary_text(settings: Settings) -> str:
        return str(settings.get("vocab_size"))

    @staticmethod
    def _vocabulary(settings: Settings) -> float:
        """log V; of settings without one that of all bytes, so that it is the same for all."""
        return math.log(settings.get("vocab_size") or 256)


def seed_variance(points: Sequence[Point]) -> float:
    """Variance of log bpb between seeds, pooled over the points; 0 where none has two."""
    freedom = sum(len(point.cells) - 1 for point in points)
    return sum(point.spread for point in points) / freedom if freedom else 0.0


def data_of(points: Sequence[Point], effects: Effects) -> Data:
    """What the law is fit to."""
    noise = seed_variance(points)
    return Data(
        bpb=np.array([point.bpb for point in points]),
        sizes=np.array([point.params for point in points], dtype=np.float64),
        tokens=np.array([point.tokens for point in points], dtype=np.float64),
        effects=effects.columns([point.settings for point in points]),
        variance=np.array([noise / len(point.cells) for point in points]),
    )


def distinct(values: Iterable[float]) -> int:
    """How many values differ by a tenth or more: 100, 105, 300 -> 2."""
    count, last = 0, 0.0
    for value in sorted(values):
        if value >= 1.1 * last:
            count, last = count + 1, value
    return count
