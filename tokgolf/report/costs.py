"""What heads and tokenizers cost, beside what they earn; only a run for each head is loaded."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tokgolf.artifact.load import Artifact, load_artifact
from tokgolf.errors import TokgolfError
from tokgolf.model import head_shape
from tokgolf.report.curves import read_metrics
from tokgolf.report.entries import ARTIFACT, METRICS, Entry
from tokgolf.tokenizers import load_tokenizer
from tokgolf.tokenizers.statistics import describe

MOST_HEADS = 12
MOST_TOKENIZERS = 40
POSITIONS, ROUNDS = 512, 5


@dataclass(frozen=True, kw_only=True)
class HeadRow:
    """The best run of a head. Bytes are those of its tensors, steps and classes included.

    `flops` are of a token, forward. `train_ms` and `score_ms` are of 1,000 tokens through the whole
    model, as the run's own files say; `own_ms` is of the head alone, measured now if asked for.
    """

    entry: Entry
    params: int
    all_params: int
    bytes: int
    all_bytes: int
    flops: int
    train_ms: float | None
    score_ms: float | None
    own_ms: float | None


def loaded(entry: Entry) -> Artifact | None:
    """The artifact of a run; None where there is none, or it is not the one that was scored."""
    try:
        artifact = load_artifact(entry.run / ARTIFACT)
    except (TokgolfError, OSError):
        return None
    known = None if entry.score is None else entry.score.artifact_sha256
    return artifact if known in (None, artifact.sha256) else None


def head_rows(
    scored: Sequence[Entry], subject: tuple[Entry, Artifact] | None, *, measure: bool
) -> list[HeadRow]:
    """A row for the best run of each head, of the first heads by score. `subject` is loaded."""
    best: dict[str, Entry] = {}
    for entry in scored:
        if (entry.run / ARTIFACT).is_file():
            best.setdefault(entry.head, entry)
    found = []
    for entry in [*best.values()][:MOST_HEADS]:
        artifact = subject[1] if subject and subject[0] is entry else loaded(entry)
        if artifact is not None:
            found.append(_head_row(entry, artifact, measure))
    return found


def _head_row(entry: Entry, artifact: Artifact, measure: bool) -> HeadRow:
    ledger = artifact.ledger
    own = [tensor for tensor in ledger.tensors if tensor.name.startswith("head.")]
    seconds = entry.told.get("seconds")
    tokens = None if entry.score is None else entry.score.tokens
    return HeadRow(
        entry=entry,
        params=sum(tensor.weights for tensor in own),
        all_params=sum(tensor.weights for tensor in ledger.tensors),
        bytes=sum(tensor.bytes for tensor in own),
        all_bytes=ledger.full,
        flops=artifact.head.flops(head_shape(artifact.tokenizer, artifact.trunk)),
        train_ms=_train_ms(entry),
        score_ms=1e6 * seconds / tokens if isinstance(seconds, float) and tokens else None,
        own_ms=own_milliseconds(artifact) if measure else None,
    )


def _train_ms(entry: Entry) -> float | None:
    """The median over the log's lines, so that compiling and pauses do not count."""
    _, _, tokens, seconds = read_metrics(entry.run / METRICS).T
    steps = np.diff(tokens)
    some = steps > 0
    if not some.any():
        return None
    return float(np.median(1e6 * np.diff(seconds)[some] / steps[some]))


@torch.inference_mode()
def own_milliseconds(artifact: Artifact) -> float:
    """The head's part of scoring 1,000 tokens here: ln p of every token from hidden states."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(POSITIONS, artifact.trunk.d_model, generator=generator)
    prev = torch.randint(artifact.tokenizer.vocab_size, (POSITIONS,), generator=generator)
    times = []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        artifact.model.head.log_probs(hidden, prev)
        times.append(time.perf_counter() - began)
    return 1e6 * statistics.median(times[1:]) / POSITIONS


@dataclass(frozen=True, kw_only=True)
class TokenizerRow:
    """A tokenizer: `facts` as `tokgolf inspect` has them, the runs that use it, and the best.

    `bytes_per_token` is of the text that the best run was scored on, ends of documents included.
    """

    facts: dict[str, Any]
    runs: int
    best: Entry
    bytes_per_token: float | None


def tokenizer_rows(scored: Sequence[Entry]) -> list[TokenizerRow]:
    """A row for each tokenizer, by the best of its runs; the first ones only."""
    users: dict[str, list[Entry]] = {}
    for entry in scored:
        if entry.score is not None:
            users.setdefault(entry.score.tokenizer, []).append(entry)
    found = []
    for fingerprint, entries in [*users.items()][:MOST_TOKENIZERS]:
        try:
            tokenizer = load_tokenizer(entries[0].run / "tokenizer.tok")
        except (TokgolfError, OSError):
            continue
        if tokenizer.fingerprint != fingerprint:
            continue
        best = entries[0]
        assert best.score is not None
        found.append(
            TokenizerRow(
                facts=describe(tokenizer),
                runs=len(entries),
                best=best,
                bytes_per_token=float(best.score.sizes.sum()) / best.score.tokens,
            )
        )
    return found
