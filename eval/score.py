"""A score: bits per byte with its evidence, from an artifact or from a run's float model.

Bytes are the documents' own, never sums over a table of token lengths. The invariants that are
cheap enough are checked on every score; one that fails makes the score invalid, an error.
"""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokgolf.artifact.checkpoint import FloatModel, exported, load_run
from tokgolf.artifact.load import Artifact, load_artifact
from tokgolf.corpora import Corpus, check_disjoint, read_digests
from tokgolf.errors import ScoreError
from tokgolf.eval.scorer import document_nats
from tokgolf.files import write_text
from tokgolf.ledger import Ledger, ledger_of

SUM_TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Score:
    """Bits per byte of a corpus under a model, and what it rests on.

    `nats` are of each document, in order; `invariants` name what was checked: True means it
    holds, None that it could not be checked. Lists with one entry a document are left out of
    `as_dict`'s summary form.
    """

    corpus: str
    mode: str
    nats: list[float]
    document_bytes: list[int]
    tokens: int
    corpus_sha256: str
    tokenizer: str
    artifact_sha256: str | None
    ledger: Ledger | None
    stride: int
    seconds: float
    invariants: dict[str, bool | None] = field(default_factory=dict)

    @property
    def total_nats(self) -> float:
        """Nats of the whole corpus, summed exactly in document order."""
        return math.fsum(self.nats)

    @property
    def bytes(self) -> int:
        """Bytes of the whole corpus."""
        return sum(self.document_bytes)

    @property
    def bpb(self) -> float:
        """Bits per byte, pooled over documents."""
        return self.total_nats / math.log(2) / self.bytes

    def as_dict(self, *, documents: bool = False) -> dict[str, Any]:
        """The score as plain values for JSON; with `documents`, every document's bits too."""
        result: dict[str, Any] = {
            "bpb": self.bpb,
            "nats_per_token": self.total_nats / self.tokens,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "documents": len(self.nats),
            "corpus": self.corpus,
            "mode": self.mode,
            "stride": self.stride,
            "corpus_sha256": self.corpus_sha256,
            "tokenizer": self.tokenizer,
            "artifact_sha256": self.artifact_sha256,
            "artifact_bytes": None if self.ledger is None else self.ledger.full,
            "asset_bytes": None if self.ledger is None else dict(self.ledger.rows)["tokenizer"],
            "seconds": self.seconds,
            "invariants": self.invariants,
        }
        if documents:
            result["document_bits"] = [nats / math.log(2) for nats in self.nats]
            result["document_bytes"] = self.document_bytes
        return result


def score(
    source: Artifact | FloatModel,
    corpus: Corpus,
    *,
    stride: int = 0,
    device: str = "cpu",
    train_digests: NDArray[np.uint64] | None = None,
    on_progress: Callable[[int], None] = lambda size: None,
) -> Score:
    """Score a corpus in raw mode: lossless, documents as they are, fp32.

    `stride` 0 means disjoint windows. `train_digests` are the training documents' digests, if
    known. `on_progress` is told the bytes of each document done. Raises `ScoreError` when an
    invariant fails, `CorpusError` for an empty corpus or one that shares documents with training.
    """
    began = time.perf_counter()
    if train_digests is not None:
        check_disjoint(train_digests, corpus, held_out_name=corpus.name)
    model = source.model.to(device)
    checks = _Checks(source)
    digest = sha256()
    nats: list[float] = []
    sizes: list[int] = []
    tokens = 0
    documents = (document.data for document in corpus)
    scored = document_nats(
        model, source.tokenizer, documents, stride=stride, observe=checks.observe
    )
    for data, values in scored:
        digest.update(len(data).to_bytes(8, "little") + data)
        checks.document(data, values)
        nats.append(math.fsum(values.tolist()))
        sizes.append(len(data))
        tokens += len(values)
        on_progress(len(data))
    model.to("cpu")
    invariants = {**checks.results(), "train_disjoint": True if train_digests is not None else None}
    failed = [name for name, holds in invariants.items() if holds is False]
    if failed:
        raise ScoreError(f"the score of {corpus.name} is invalid: {', '.join(failed)} failed")
    artifact = source if isinstance(source, Artifact) else None
    return Score(
        corpus=corpus.name,
        mode="raw",
        nats=nats,
        document_bytes=sizes,
        tokens=tokens,
        corpus_sha256=digest.hexdigest(),
        tokenizer=source.tokenizer.fingerprint,
        artifact_sha256=artifact.sha256 if artifact else None,
        ledger=ledger_of(artifact) if artifact else None,
        stride=stride or source.trunk.sequence_length,
        seconds=time.perf_counter() - began,
        invariants=invariants,
    )


def open_source(path: str | os.PathLike[str]) -> tuple[Artifact | FloatModel, Path]:
    """What `path` holds, an artifact or (a directory) a run, and where its run directory is."""
    place = Path(path)
    if place.is_dir():
        return load_run(place), place
    return load_artifact(place), place.parent


def read_train_digests(source: Artifact | FloatModel, run: Path) -> NDArray[np.uint64] | None:
    """Digests of the documents that `source` was trained on, as recorded in the directory `run`.

    None if there is no record, or if the record is of another run than the artifact's.
    """
    path = run / "train_documents.npy"
    if not path.is_file():
        return None
    if isinstance(source, Artifact) and source.sha256 not in exported(run):
        return None
    return read_digests(path)


def save_score(score: Score, path: str | os.PathLike[str]) -> None:
    """Write a score with every document's bits as JSON."""
    write_text(path, json.dumps(score.as_dict(documents=True), indent=1) + "\n")


class _Checks:
    """The invariants, gathered while scoring."""

    def __init__(self, source: Artifact | FloatModel) -> None:
        self.source = source
        self.before = _weights_hash(source)
        self.bytes_equal = True
        self.decoded_equal = True
        self.once = True
        self.sums = True
        self.causal: bool | None = None

    def document(self, data: bytes, nats: NDArray[np.float64]) -> None:
        tokenizer = self.source.tokenizer
        ids = tokenizer.encode(data)
        self.once &= len(nats) == len(ids) + 1 and bool(np.isfinite(nats).all())
        self.decoded_equal &= tokenizer.decode(ids) == data
        self.bytes_equal &= int(tokenizer.byte_lengths(ids).sum()) == len(data)

    def observe(self, tokens: torch.Tensor, log_probs: torch.Tensor) -> None:
        self.sums &= bool((log_probs.logsumexp(-1).abs() < SUM_TOLERANCE).all())
        if self.causal is None and tokens.size(1) > 1:
            # Change every token from the middle on: what was predicted before must not move.
            middle = tokens.size(1) // 2
            flipped = tokens[:1].clone()
            flipped[:, middle:] = (flipped[:, middle:] + 1) % log_probs.size(-1)
            again = self.source.model.log_probs(flipped)
            before = self.source.model.log_probs(tokens[:1])
            if not torch.equal(again, before):  # else nothing is learned: the model is constant
                self.causal = bool(torch.equal(again[:, :middle], before[:, :middle]))

    def results(self) -> dict[str, bool | None]:
        return {
            "bytes_are_the_documents": self.bytes_equal,
            "documents_decode_exactly": self.decoded_equal,
            "probabilities_sum_to_one": self.sums,
            "causal": self.causal,
            "each_token_scored_once": self.once,
            "state_unchanged": _weights_hash(self.source) == self.before,
        }


def _weights_hash(source: Artifact | FloatModel) -> str:
    digest = sha256()
    for _, tensor, _ in source.model.stored():
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()
