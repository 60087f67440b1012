"""Cells that cost nothing, and small sweeps of real ones. Workers import it: no torch up here."""

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from tokgolf.errors import ConfigError
from tokgolf.files import write_text
from tokgolf.sweep.attempts import Beat, attempt

STEPS = 4
STEP_SECONDS = 0.02
BAD_SEED = 1013
TINY = {
    "trunk": {
        "layers": 1,
        "d_model": 16,
        "heads": 2,
        "kv_heads": 1,
        "mlp_hidden": 24,
        "sequence_length": 16,
    },
    "batch_tokens": 64,
    "micro_batch_tokens": 64,
    "precision": "fp32",
    "compile": "off",
    "steps": 6,
}


def dummy(store: str, cell: str) -> str:
    """A cell that takes a moment and whose result is the hash of its job."""
    return attempt(Path(store), cell, _dummy_numbers)


def quick(store: str, cell: str) -> str:
    """A cell that takes no time."""
    return attempt(Path(store), cell, lambda store, cell, beat: numbers_of(store / cell))


def crashing(store: str, cell: str) -> str:
    """A cell that takes its process along."""
    os._exit(9)


def endless(store: str, cell: str) -> str:
    """A cell that is never done; its process' number is in `holder` as long as it is at it."""
    return attempt(Path(store), cell, _endless)


def _endless(store: Path, cell: str, beat: Beat) -> Mapping[str, Any]:
    holder = store / cell / "holder"
    write_text(holder, str(os.getpid()))
    try:
        while True:
            time.sleep(0.05)
    finally:
        holder.unlink()


def numbers_of(run: Path) -> dict[str, Any]:
    job = json.loads((run / "job.json").read_text())
    if job["settings"]["seed"] == BAD_SEED:
        raise ConfigError("1013 is an\nunlucky seed")
    digest = int(sha256(json.dumps(job["run"], sort_keys=True).encode()).hexdigest()[:8], 16)
    return {"bpb": 1 + digest / 2**32, "steps": STEPS}


def _dummy_numbers(store: Path, cell: str, beat: Beat) -> Mapping[str, Any]:
    """Some steps, each noted; notes `overlap` if another living process is at the same cell."""
    run = store / cell
    holder, steps = run / "holder", run / "steps"
    if holder.exists() and lives(int(holder.read_text() or 0)):
        (store / "overlap").touch()
    holder.write_text(str(os.getpid()))
    done = int(steps.read_text()) if steps.exists() else 0
    while done < STEPS:
        time.sleep(STEP_SECONDS)
        done += 1
        write_text(steps, str(done))
        beat(done)
    with open(run / "finished", "a") as file:
        file.write("x")
    holder.unlink()
    return numbers_of(run)


def lives(process: int) -> bool:
    """Whether another process is there, and not only waits to be collected."""
    if process in (0, os.getpid()):
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    with suppress(OSError):  # no such file, or no Linux
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


def write_texts(folder: Path) -> dict[str, Any]:
    """Two small corpora that share no document, as a spec names them."""
    for name, count in (("train", 60), ("val", 8)):
        lines = [
            f"The {name} text {i} says that small cells learn small things." for i in range(count)
        ]
        text = "".join(json.dumps({"text": line}) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text)
    return {"corpus": str(folder / "train.jsonl"), "scored": str(folder / "val.jsonl")}
