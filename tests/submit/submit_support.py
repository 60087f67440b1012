"""What the tests of submissions share: tiny runs that differ by their seeds, each with a score."""

import json
from pathlib import Path
from typing import Any

from tokgolf.artifact.export import export_run
from tokgolf.corpora import open_corpus
from tokgolf.eval.protocol import Protocol
from tokgolf.eval.score import open_source, read_train_digests, save_score, score
from tokgolf.quantize.rows import QuantConfig
from tokgolf.tokenizers import build_tokenizer
from tokgolf.training import run_config, train

CONFIG: dict[str, Any] = {
    "trunk": {
        "layers": 1, "d_model": 16, "heads": 2, "kv_heads": 1, "mlp_hidden": 16,
        "sequence_length": 16,
    },
    "batch_tokens": 64, "micro_batch_tokens": 64, "steps": 4, "precision": "fp32",
    "compile": "off",
}  # fmt: skip
VAL = [f"A held-out document says that tiny things learn {i}." for i in range(6)]


def write_texts(folder: Path) -> None:
    """train.jsonl and val.jsonl, as a challenger's own files."""
    train_texts = [f"Document {i} says that tiny models learn tiny things, {i}." for i in range(50)]
    for name, texts in (("train", train_texts), ("val", VAL)):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"{name}.jsonl").write_text(lines)


def make_run(folder: Path, seed: int, **changes: Any) -> Path:
    """A trained, exported and scored run; `folder` holds the texts."""
    corpus = open_corpus(str(folder / "train.jsonl"))
    tokenizer = build_tokenizer("bpe", (each.data for each in corpus), 270)
    run = folder / f"run{seed}{''.join(changes)}"
    train(run_config("cpu", {**CONFIG, "seed": seed, **changes}), tokenizer, corpus, run)
    export_run(run, run / "model.golf", cap=1_000_000, config=QuantConfig(method="nearest", bits=4))
    rescored(run, folder)
    return run


def rescored(run: Path, folder: Path, protocol: Protocol | None = None) -> None:
    """Score a run's artifact into its score.json."""
    source, place = open_source(run / "model.golf")
    digests = read_train_digests(source, place)
    text = open_corpus(str(folder / "val.jsonl"))
    save_score(score(source, text, protocol, train_digests=digests), run / "score.json")


def edited(run: Path, **changes: Any) -> None:
    """Put other values into a run's score.json."""
    values = json.loads((run / "score.json").read_text())
    (run / "score.json").write_text(json.dumps({**values, **changes}))
