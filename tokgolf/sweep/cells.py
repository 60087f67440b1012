"""The files that a sweep leaves: `cell.json` of every run, `results.json` of every sweep.

A store is a folder. `store/<id>/` is a cell: an ordinary run directory with a `cell.json`, shared
by all sweeps that have it. `store/sweeps/<name>/results.json` lists a sweep's cells; what is said
there of a cell is a copy. docs/formats.md has the keys. Unlike the rest of the sweep it needs no
torch.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from tokgolf.config import nearest
from tokgolf.errors import ConfigError
from tokgolf.files import write_text

CELL_FORMAT, SWEEP_FORMAT = "tokgolf.cell", "tokgolf.sweep"
VERSION = 1
CELL_FILE, RESULTS_FILE = "cell.json", "results.json"
MAX_FILE = 1 << 28
Status = Literal["pending", "running", "done", "failed"]
Equal = Literal["bytes", "steps", "time"]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is known of a cell. Numbers are None until they are measured.

    `settings` maps an axis to its value: {"vocab_size": 1024, "head": "tied", "bits": None}.
    `started` is in Unix seconds; `seconds` are those of all attempts. `bpb` is of the decoded
    artifact, `bpb_before_export` of the float model; `artifact_bytes` are the full accounting.
    `train_bytes` are the bytes of text that the `tokens` seen in training are. `run` is the run
    directory, where it is known.
    """

    id: str
    settings: Mapping[str, Any]
    status: Status = "pending"
    reason: str | None = None
    started: float | None = None
    seconds: float = 0.0
    attempts: int = 0
    bpb: float | None = None
    bpb_before_export: float | None = None
    artifact_bytes: int | None = None
    asset_bytes: int | None = None
    params: int | None = None
    steps: int | None = None
    tokens: int | None = None
    train_bytes: int | None = None
    cap: int | None = None
    run: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        """The object in `cell.json`."""
        values = asdict(self)
        del values["run"]
        return {"format": CELL_FORMAT, "version": VERSION, **values}


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep's `results.json`: what was asked for, and every cell as it stood when it was written.

    `predictions` are objects with the keys settings, cell, bpb, low, high, measured and what.
    """

    name: str
    equal: Equal
    cap: int | None
    corpus: str
    scored: str
    axes: Mapping[str, list[Any]]
    cells: tuple[Cell, ...] = ()
    predictions: tuple[Mapping[str, Any], ...] = ()

    def as_dict(self, folder: Path) -> dict[str, Any]:
        """The object in `folder/results.json`; each cell has its run's place beside that file."""
        cells = []
        for cell in self.cells:
            assert cell.run is not None
            place = Path(os.path.relpath(cell.run, folder)).as_posix()
            cells.append({**cell.as_dict(), "run": place})
        return {
            "format": SWEEP_FORMAT,
            "version": VERSION,
            "name": self.name,
            "equal": self.equal,
            "cap": self.cap,
            "corpus": self.corpus,
            "scored": self.scored,
            "axes": {axis: list(values) for axis, values in self.axes.items()},
            "cells": cells,
            "predictions": [dict(prediction) for prediction in self.predictions],
        }


def write_cell(cell: Cell, run: Path) -> None:
    """Write `cell.json` into the run directory, atomically."""
    write_text(run / CELL_FILE, json.dumps(cell.as_dict(), indent=1) + "\n")


def read_cell(run: str | os.PathLike[str]) -> Cell:
    """The cell in a run directory.

    Raises `ConfigError` if `cell.json` is none of ours, and `OSError` if it cannot be read.
    """
    folder = Path(run)
    path = folder / CELL_FILE
    return replace(_cell(_object(path, CELL_FORMAT), str(path)), run=folder)


def write_sweep(sweep: Sweep, folder: Path) -> None:
    """Write `results.json` into a sweep's folder, atomically; its cells must have a `run`."""
    write_text(folder / RESULTS_FILE, json.dumps(sweep.as_dict(folder), indent=1) + "\n")


def read_sweep(path: str | os.PathLike[str]) -> Sweep:
    """The sweep in a folder `store/sweeps/<name>`, or in its `results.json`.

    Each cell's `run` is joined to the folder. Raises as `read_cell` does.
    """
    place = Path(path)
    if place.is_dir():
        place = place / RESULTS_FILE
    values = _object(place, SWEEP_FORMAT)
    try:
        cells = tuple(
            replace(_cell(cell, f"{place}, cell {number}"), run=place.parent / str(cell["run"]))
            for number, cell in enumerate(values["cells"], 1)
        )
        cap = values["cap"]
        if cap is not None and type(cap) is not int:
            raise ValueError(f"cap is {cap!r}, not a count of bytes")
        if values["equal"] not in get_args(Equal):
            raise ValueError(
                f"equal is {values['equal']!r}; {nearest(str(values['equal']), get_args(Equal))}"
            )
        return Sweep(
            name=str(values["name"]),
            equal=values["equal"],
            cap=cap,
            corpus=str(values["corpus"]),
            scored=str(values["scored"]),
            axes={str(axis): list(options) for axis, options in values["axes"].items()},
            cells=cells,
            predictions=tuple(dict(prediction) for prediction in values["predictions"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{place} is no sweep's results: {error!r}; run the sweep again"
        ) from error


_COUNTS = (
    "attempts",
    "artifact_bytes",
    "asset_bytes",
    "params",
    "steps",
    "tokens",
    "train_bytes",
    "cap",
)
_NUMBERS = ("started", "seconds", "bpb", "bpb_before_export")
_NEEDED = ("seconds", "attempts")


def check_vocabulary(settings: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a vocabulary whose logarithm no law can take."""
    size = settings.get("vocab_size")
    if size is not None and (type(size) is not int or size < 1):
        raise ValueError(f"vocab_size is {size!r:.80}")


def _cell(values: dict[str, Any], where: str) -> Cell:
    """A cell from its object, every value checked."""
    try:
        settings, status, reason = values["settings"], values["status"], values["reason"]
        if not isinstance(settings, dict) or not isinstance(values["id"], str):
            raise ValueError("its id is no text or its settings are no table")
        check_vocabulary(settings)
        if status not in get_args(Status):
            raise ValueError(f"status is {status!r}; known: {', '.join(get_args(Status))}")
        if reason is not None and not isinstance(reason, str):
            raise ValueError(f"reason is {reason!r:.80}, not text")
        found: dict[str, Any] = {}
        for key in (*_COUNTS, *_NUMBERS):
            value, kinds = values[key], (int,) if key in _COUNTS else (int, float)
            sound = type(value) in kinds and math.isfinite(value) and value >= 0
            if not sound and (value is not None or key in _NEEDED):
                raise ValueError(f"{key} is {value!r:.80}")
            found[key] = value
        return Cell(id=values["id"], settings=settings, status=status, reason=reason, **found)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"{where} is not what a sweep wrote: {error!r}; remove it and run the sweep again"
        ) from error


def _object(path: Path, kind: str) -> dict[str, Any]:
    """The JSON object of a file of this format and version."""
    with open(path, "rb") as file:
        data = file.read(MAX_FILE + 1)
    try:
        if len(data) > MAX_FILE:
            raise ValueError(f"it has over {MAX_FILE:,} bytes")
        values = json.loads(data)
        if not isinstance(values, dict) or values.get("format") != kind:
            raise ValueError(f"its format is not {kind!r}")
        if values.get("version") != VERSION:
            raise ValueError(
                f"its version is {values.get('version')!r}, this tokgolf reads {VERSION}"
            )
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is none of a sweep's files: {error}") from error
    return values
