"""A score: bits per byte with its evidence, from an artifact or from a run's float model.

Bytes are the documents' own, never sums over a table of token lengths. Six invariants are checked
on every score (`invariants.py`); one that fails makes the score invalid, an error.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokgolf.artifact.checkpoint import FloatModel, exported, load_run
from tokgolf.artifact.load import Artifact, decode_artifact, load_artifact
from tokgolf.config import TrunkConfig
from tokgolf.corpora import Corpus, check_disjoint, read_digests
from tokgolf.device import exact_products, in_one_order
from tokgolf.errors import ConfigError, ScoreError
from tokgolf.eval.adapt import ADAPT_MODULES, adapted_nats
from tokgolf.eval.contexts import unrolled, widened
from tokgolf.eval.invariants import Results, Scorer
from tokgolf.eval.official import normalised
from tokgolf.eval.official_score import official_documents, official_scorer
from tokgolf.eval.protocol import Clock, Protocol
from tokgolf.eval.scorer import BATCH_TOKENS, Encoder, Nats, Observer, document_nats
from tokgolf.eval.witness import Witness
from tokgolf.files import write_text
from tokgolf.ledger import Ledger, ledger_of
from tokgolf.model import LanguageModel
from tokgolf.tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Score:
    """Bits per byte of a corpus under a model, and what it rests on.

    `nats` are of each document, in order; `invariants` name what was checked: True means it
    holds, None that it could not be checked; `evidence` has the numbers behind them. `protocol` has
    the model's window and stride filled in. `ledger` pays for the code of adaptation, if there is
    any. `baselines` are None until `compressors.with_baselines` puts them there. Lists with one
    entry a document are left out of `as_dict`'s summary form.
    """

    corpus: str
    protocol: Protocol
    nats: list[float]
    document_bytes: list[int]
    document_tokens: list[int]
    corpus_sha256: str
    tokenizer: str
    lossless: bool
    artifact_sha256: str | None
    ledger: Ledger | None
    seconds: float
    invariants: Results = field(default_factory=dict)
    evidence: dict[str, Any] = field(default_factory=dict)
    baselines: dict[str, Any] | None = None

    @property
    def mode(self) -> str:
        """The protocol's."""
        return self.protocol.mode

    @property
    def stride(self) -> int:
        """The protocol's; of disjoint windows it is the window."""
        return self.protocol.stride

    @property
    def total_nats(self) -> float:
        """Nats of the whole corpus, summed exactly in document order."""
        return math.fsum(self.nats)

    @property
    def bytes(self) -> int:
        """Bytes of the whole corpus."""
        return sum(self.document_bytes)

    @property
    def tokens(self) -> int:
        """Targets that were paid for: every token, and the end of every document."""
        return sum(self.document_tokens)

    @property
    def nats_per_token(self) -> float:
        """Nats of a target."""
        return self.total_nats / self.tokens

    @property
    def bpb(self) -> float:
        """Bits per byte, pooled over documents."""
        return self.total_nats / math.log(2) / self.bytes

    def as_dict(self, *, documents: bool = False) -> dict[str, Any]:
        """The score as plain values for JSON; with `documents`, every document's bits too."""
        result: dict[str, Any] = {
            "bpb": self.bpb,
            "nats_per_token": self.nats_per_token,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "documents": len(self.nats),
            "corpus": self.corpus,
            "mode": self.mode,
            "stride": self.stride,
            "protocol": self.protocol.as_dict(),
            "estimate": self.protocol.estimate,
            "lossless": self.lossless,
            "corpus_sha256": self.corpus_sha256,
            "tokenizer": self.tokenizer,
            "artifact_sha256": self.artifact_sha256,
            "artifact_bytes": None if self.ledger is None else self.ledger.full,
            "asset_bytes": None if self.ledger is None else dict(self.ledger.rows)["tokenizer"],
            "seconds": self.seconds,
            "invariants": self.invariants,
            "evidence": self.evidence,
            "baselines": self.baselines,
        }
        if self.mode == "official":
            result |= {"val_loss": self.nats_per_token, "val_bpb": self.bpb}
        if documents:
            result["document_bits"] = [nats / math.log(2) for nats in self.nats]
            result["document_bytes"] = self.document_bytes
            result["document_tokens"] = self.document_tokens
        return result


def score(
    source: Artifact | FloatModel,
    corpus: Corpus,
    protocol: Protocol | None = None,
    *,
    stride: int | None = None,
    device: str = "cpu",
    train_digests: NDArray[np.uint64] | None = None,
    batch_tokens: int = BATCH_TOKENS,
    on_progress: Callable[[int, int], None] = lambda size, total: None,
) -> Score:
    """Score a corpus by a protocol; without one in raw mode, in disjoint windows, in fp32.

    `stride` is short for a protocol that has nothing else. `train_digests` are the training
    documents' digests, if known. `batch_tokens` bounds memory, and moves the score by less than
    2e-6 bits per byte. `on_progress` is told the bytes of each document done, and those of all.

    Raises `ScoreError` when an invariant fails, the model gives a token no probability or the time
    is up, `CorpusError` for an empty corpus or one that shares documents with training.
    """
    began = time.perf_counter()
    if protocol is not None and stride is not None:
        raise ConfigError(f"stride {stride} beside a protocol; give Protocol(stride={stride})")
    protocol = (protocol or Protocol(stride=stride or 0)).of(source.trunk)
    if protocol.mode == "raw" and not source.tokenizer.lossless:
        raise ScoreError(
            f"the tokenizer {source.tokenizer.fingerprint[:12]} does not give every text back, and "
            "raw mode scores documents as they are; score it with --mode official"
        )
    clock = Clock(began, protocol.time_budget, corpus.name)
    if train_digests is not None:
        check_disjoint(train_digests, corpus, held_out_name=corpus.name)
        if protocol.mode == "official":  # whose text may be what was trained on
            check_disjoint(train_digests, normalised(corpus), held_out_name=corpus.name)
    summary = corpus.summary()
    model = source.model
    artifact = source if isinstance(source, Artifact) else None
    witness = Witness(
        model,
        source.tokenizer,
        protocol,
        summary,
        trained_on=None if train_digests is None else len(train_digests),
        decoded=decode_artifact(artifact.data).model if artifact else None,
    )
    clock.check()
    beside = modules_beside(protocol, source.trunk)
    nats: list[float] = []
    sizes: list[int] = []
    tokens: list[int] = []
    with exact_products(), in_one_order(torch.device(device)):
        try:
            model.to(device)
            used = unrolled(widened(model, protocol.window or 0), protocol.loops)
            scorer = scorer_of(protocol, used, clock, batch_tokens)
            for size, values in scored_documents(
                used, source.tokenizer, corpus, protocol, scorer, witness, clock, batch_tokens
            ):
                check_finite(values, len(nats), corpus.name)
                nats.append(math.fsum(values.tolist()))
                sizes.append(size)
                tokens.append(len(values))
                witness.true_bytes.scored += size
                on_progress(size, summary.bytes)
            result = Score(
                corpus=corpus.name,
                protocol=protocol,
                nats=nats,
                document_bytes=sizes,
                document_tokens=tokens,
                corpus_sha256=summary.sha256,
                tokenizer=source.tokenizer.fingerprint,
                lossless=source.tokenizer.lossless,
                artifact_sha256=artifact.sha256 if artifact else None,
                ledger=ledger_of(artifact, beside) if artifact else None,
                seconds=0.0,
            )
            check_invariants(result, witness)  # what fails here would only confuse the probe
            witness.causality.probe(scorer)
        finally:
            model.to("cpu")
    invariants, evidence = check_invariants(result, witness)
    return replace(result, invariants=invariants, evidence=evidence, seconds=clock.check())


def check_invariants(score: Score, witness: Witness) -> tuple[Results, dict[str, Any]]:
    """All invariants by name, and what was seen. Raises `ScoreError` naming those that fail."""
    invariants, evidence = witness.results(
        nats_per_token=score.nats_per_token, bpb=score.bpb, targets=score.tokens
    )
    failed = [name for name, holds in invariants.items() if holds is False]
    if failed:
        raise ScoreError(f"the score of {score.corpus} is invalid: {', '.join(failed)} failed")
    return invariants, evidence


def scored_documents(
    model: LanguageModel,
    tokenizer: Tokenizer,
    corpus: Corpus,
    protocol: Protocol,
    scorer: Scorer,
    witness: Witness,
    clock: Clock,
    batch_tokens: int,
) -> Iterator[tuple[int, Nats]]:
    """Of each document the bytes and nats that are scored; the witness sees it all."""
    documents = (document.data for document in corpus)
    if protocol.mode == "official":
        yield from official_documents(
            model,
            tokenizer,
            documents,
            protocol,
            witness,
            in_time(clock, witness.observe),
            batch_tokens,
        )
        return
    for data, values in scorer(witness, documents, witness.observe):
        witness.scored(data, values)
        yield len(data), values


def modules_beside(protocol: Protocol, trunk: TrunkConfig) -> list[str]:
    """What a protocol's predictions need beside the plain scorer, so that an artifact pays for it.

    Not the challenge's text and byte table: those are the referee's.
    """
    longer = (protocol.window or 0) > trunk.sequence_length
    looped = protocol.loops not in (None, trunk.loops_scored or trunk.loops)
    stream = protocol.context == "stream" and protocol.mode == "raw"
    contexts = ["tokgolf.eval.contexts"] if longer or looped or stream else []
    return [*(ADAPT_MODULES if protocol.adapt else ()), *contexts]


def scorer_of(
    protocol: Protocol, model: LanguageModel, clock: Clock, batch_tokens: int = BATCH_TOKENS
) -> Scorer:
    """What takes nats by this protocol, whose window and stride are settled, in time."""
    if protocol.mode == "official":
        return official_scorer(model, protocol, batch_tokens)

    def nats(
        encoder: Encoder, documents: Iterable[bytes], observe: Observer
    ) -> Iterator[tuple[bytes, Nats]]:
        if protocol.adapt is not None:
            return adapted_nats(
                model,
                encoder,
                documents,
                config=protocol.adapt,
                window=protocol.window or 0,
                stride=protocol.stride,
                batch_tokens=batch_tokens,
                observe=in_time(clock, observe),
            )
        return document_nats(
            model,
            encoder,
            documents,
            window=protocol.window or 0,
            stride=protocol.stride,
            context=protocol.context,
            precision=protocol.precision,
            batch_tokens=batch_tokens,
            observe=in_time(clock, observe),
        )

    return nats


def in_time(clock: Clock, observe: Observer) -> Observer:
    """`observe`, with a look at the clock before."""

    def both(numbers: NDArray[np.int64], log_probs: torch.Tensor) -> None:
        clock.check()
        observe(numbers, log_probs)

    return both


def check_finite(nats: Nats, number: int, corpus: str) -> None:
    """Raise `ScoreError`, naming the first one, if a target of document `number` has no nats."""
    if not (bad := ~np.isfinite(nats)).any():
        return
    place = int(bad.argmax())
    what = "NaN for a probability" if np.isnan(nats[place]) else "probability zero"
    if nats[place] < 0:
        what = "a probability without end"
    raise ScoreError(
        f"the model gives {what} to target {place:,} of {len(nats):,} in document {number:,} of "
        f"{corpus}; such a text has no score"
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
