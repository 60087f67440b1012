"""What `tokgolf inspect` tells about a file or run."""

from pathlib import Path
from typing import Any

from tokgolf.artifact.checkpoint import load_run
from tokgolf.artifact.load import load_artifact
from tokgolf.tokenizers import load_tokenizer


def inspect_path(path: Path) -> dict[str, Any]:
    """The byte ledger of an artifact, or the main facts of a tokenizer or a run."""
    if path.is_dir():
        run = load_run(path)
        params = {name: p.numel() for name, p in run.model.named_parameters()}
        return {
            "run": str(path),
            "head": run.head.name,
            "steps": run.state["step"],
            "seconds": float(run.state["seconds"]),
            "finished": run.state["finished"],
            "corpus": run.state["corpus"]["name"],
            "params": sum(params.values()),
            "head_params": sum(n for name, n in params.items() if name.startswith("head.")),
            "vocab_size": run.tokenizer.vocab_size,
            "asset_bytes": len(run.tokenizer.asset()),
        }
    if path.suffix == ".tok":
        tokenizer = load_tokenizer(path)
        longest = max(tokenizer.token_bytes, key=len)
        return {
            "tokenizer": str(path),
            "kind": tokenizer.kind,
            "vocab_size": tokenizer.vocab_size,
            "asset_bytes": len(tokenizer.asset()),
            "original_file_bytes": len(tokenizer.original_file()),
            "longest_token": repr(longest),
            "fingerprint": tokenizer.fingerprint,
        }
    artifact = load_artifact(path)
    ledger = artifact.ledger
    return {
        "artifact": str(path),
        "sha256": artifact.sha256,
        "head": artifact.head.name,
        "vocab_size": artifact.tokenizer.vocab_size,
        **{f"bytes: {name}": size for name, size in ledger.rows},
        "full": ledger.full,
        "official": ledger.official,
        "raw": ledger.raw,
    }
