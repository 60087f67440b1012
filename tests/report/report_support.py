"""What tests of the report share: a store of small runs, one with a real artifact, and bad ones."""

import json
from pathlib import Path
from typing import Any

from tokgolf.artifact.checkpoint import record_export
from tokgolf.pipeline import golf
from tokgolf.sweep.cells import Cell, Sweep, write_cell, write_sweep

TINY = {
    "trunk": {
        "layers": 1, "parallel": 0, "d_model": 16, "heads": 2, "kv_heads": 1, "mlp_hidden": 24,
        "sequence_length": 32,
    },
    "batch_tokens": 128, "micro_batch_tokens": 128, "precision": "fp32", "compile": "off",
    "steps": 6,
}  # fmt: skip
NASTY = "<script>alert(1)</script>\"'&\u202eevil\u2066\0\x1b[31m $x$ {{ 7*7 }}"


def nasty_bytes() -> bytes:
    """Text that would run, turn around or end a page, and bytes that are no text."""
    return (NASTY + "</script><!-- \r\n").encode() + b"\xff\xc3 \xe2\x80 end"


def fake_score(factor: float, sha256: str | None = "a" * 64, **changes: Any) -> dict[str, Any]:
    """A score of 40 documents; bits grow with `factor`."""
    sizes = [100 + 7 * number for number in range(40)]
    bits = [factor * size * (1 + 0.1 * (number % 5)) for number, size in enumerate(sizes)]
    return {
        "bpb": sum(bits) / sum(sizes),
        "tokens": 3_000,
        "bytes": sum(sizes),
        "documents": 40,
        "corpus": "val.jsonl",
        "mode": "raw",
        "protocol": {"stride": 64, "window": 64},
        "corpus_sha256": "c" * 64,
        "tokenizer": "t" * 64,
        "artifact_sha256": sha256,
        "artifact_bytes": None if sha256 is None else int(20_000 / factor),
        "invariants": {"causal": True, "train_disjoint": None},
        "document_bits": bits,
        "document_bytes": sizes,
        **changes,
    }


def add_cell(store: Path, name: str, settings: dict[str, Any], values: Any, **known: Any) -> Cell:
    """A cell with a score of these values, or without one if they are None."""
    run = store / name
    run.mkdir(parents=True)
    bpb = None if values is None else values["bpb"]
    cell = Cell(id=name, settings=settings, bpb=bpb, run=run, **{"status": "done", **known})
    write_cell(cell, run)
    if values is not None:
        (run / "score.json").write_text(json.dumps(values))
        if values["artifact_sha256"]:
            record_export(run, values["artifact_sha256"])
    return cell


def add_metrics(run: Path, lines: int = 50) -> None:
    """A log whose loss falls."""
    rows = [
        {"step": n, "loss": 6 / n**0.2, "tokens": 100 * n, "seconds": 0.5 * n}
        for n in range(1, lines + 1)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{cut")


def make_store(store: Path) -> Path:
    """Seeds, two protocols, a failed cell, a pending one, a damaged one, predictions."""
    cells = []
    for seed, factor in enumerate((1.50, 1.52, 1.54)):
        settings = {"head": "tied", "vocab_size": 512, "seed": seed, "trunk.layers": 2}
        cells.append(
            add_cell(
                store, f"tied-{seed}", settings, fake_score(factor),
                cap=14_000, tokens=1000, train_bytes=2500,
            )
        )  # fmt: skip
        add_metrics(store / f"tied-{seed}")
    wide = {"head": "factorized", "head.rank": 8, "vocab_size": 1024, "seed": 0, "trunk.layers": 4}
    cells.append(add_cell(store, "low-rank", wide, fake_score(2.0), cap=14_000))
    other = fake_score(0.5, protocol={"stride": 1, "window": 64})
    cells.append(add_cell(store, "other-stride", {"head": "tied"}, other))
    bad = {"head": NASTY, "vocab_size": 9}
    failed = {"status": "failed", "reason": f"ConfigError: {NASTY}", "attempts": 3}
    cells.append(add_cell(store, "failing", bad, None, **failed))
    cells.append(add_cell(store, "waiting", {"head": "vq"}, None, status="pending"))
    add_cell(store, "damaged", {}, None)
    (store / "damaged" / "cell.json").write_text("{")
    predictions = (
        {"settings": {"head": "tied"}, "cell": "tied-0", "bpb": 1.8, "low": 1.7, "high": 1.9,
         "measured": None, "what": "held out"},
        {"settings": {"head": NASTY}, "cell": None, "bpb": 1.2, "low": 1.0, "high": 1.4,
         "measured": None, "what": "at 16 MB"},
    )  # fmt: skip
    folder = store / "sweeps" / "s"
    folder.mkdir(parents=True)
    sweep = Sweep(
        name="s", equal="bytes", cap=14_000, corpus="x", scored="y", axes={}, cells=tuple(cells),
        predictions=predictions,
    )  # fmt: skip
    write_sweep(sweep, folder)
    return store


def make_golf(folder: Path) -> Path:
    """A run of the whole pipeline, scored on a document that would do harm."""
    data = folder / "data"
    data.mkdir()
    train = [f"Document {n} says that tiny models learn tiny things, {n}." for n in range(60)]
    test = [f"A held-out document, {NASTY} {n}." for n in range(4)]
    for split, texts in (("train", train), ("test", test)):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (data / f"{split}.jsonl").write_text(lines)
    golf(str(data), folder / "golf", vocab_size=270, cap=200_000, overrides=TINY, device="cpu")
    return folder / "golf"
