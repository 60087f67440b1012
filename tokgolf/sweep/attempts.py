"""An attempt at a cell: under its lock, with its state in `cell.json`, whatever the cell computes.

Unlike the cell itself (`job`) this needs no torch, and starts at once.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokgolf.errors import Interrupted, TokgolfError
from tokgolf.locks import locked
from tokgolf.sweep.cells import Cell, read_cell, write_cell

LOCK_FILE = ".lock"
BEAT_SECONDS = 5.0
BUSY = "busy"

Beat = Callable[[int], None]
Measure = Callable[[Path, str, Beat], Mapping[str, Any]]


def attempt(store: Path, cell_id: str, measure: Measure) -> str:
    """Do a cell unless it has ended or another worker has it; returns its status, or "busy".

    `measure(store, cell_id, beat)` returns fields of `Cell`, and calls `beat(step)` as it goes on.
    """
    run = store / cell_id
    with locked(run / LOCK_FILE, wait=False) as ours:
        if not ours:
            return BUSY
        before = read_cell(run)
        if before.status in ("done", "failed"):
            return before.status
        began = last = time.time()
        cell = replace(
            before,
            status="running",
            reason=None,
            started=before.started or began,
            attempts=before.attempts + 1,
        )
        write_cell(cell, run)

        def now() -> Cell:
            return replace(cell, seconds=before.seconds + time.time() - began)

        def beat(step: int) -> None:
            nonlocal cell, last
            if time.time() - last >= BEAT_SECONDS:
                last = time.time()
                cell = replace(cell, steps=step)
                write_cell(now(), run)

        try:
            found = measure(store, cell_id, beat)
            cell = replace(cell, status="done", **found)
        except Interrupted:
            cell = replace(cell, status="pending")
        except TokgolfError as error:
            cell = replace(cell, status="failed", reason=_line(str(error)))
        except Exception as error:  # whatever becomes of one cell, the others go on
            cell = replace(cell, status="failed", reason=_line(f"{type(error).__name__}: {error}"))
        except BaseException:  # Ctrl-C, or the engine ends us
            write_cell(replace(now(), status="pending"), run)
            raise
        write_cell(now(), run)
        return cell.status


def fail(run: Path, reason: str) -> Cell:
    """Write down that a cell failed, if no worker has it; returns the cell as it then stands."""
    with locked(run / LOCK_FILE, wait=False) as ours:
        cell = read_cell(run)
        if ours and cell.status != "done":
            cell = replace(cell, status="failed", reason=_line(reason))
            write_cell(cell, run)
        return cell


def reopen(run: Path) -> Cell:
    """Make an ended cell pending again, if no worker has it; what it left is built upon."""
    with locked(run / LOCK_FILE, wait=False) as ours:
        cell = read_cell(run)
        if ours:
            cell = replace(cell, status="pending", reason=None, bpb=None, bpb_before_export=None)
            write_cell(cell, run)
        return cell


def _line(reason: str) -> str:
    return " ".join(reason.split())
