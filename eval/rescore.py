"""A score taken again, bare: the numbers of `score.py` without its checks.

Same windows, kernels and sums, so the same bits on the same machine; but nothing is proven here,
and a score that cannot be trusted is not noticed. A packed submission carries this module in the
place of `score.py`, so it is short and imports what a protocol needs only where that is asked for.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tokgolf.artifact.load import Artifact
from tokgolf.config import from_dict
from tokgolf.corpora import framed
from tokgolf.device import exact_products, in_one_order
from tokgolf.errors import ScoreError
from tokgolf.eval.scorer import BATCH_TOKENS, Nats, Row, document_nats, regrouped, row_nats
from tokgolf.model import LanguageModel
from tokgolf.tokenizers import Tokenizer

Tokens = NDArray[np.uint16]


class Rescored(NamedTuple):
    """Nats a token, bits a byte, and of what; `sha256` is the text's, None of token shards."""

    val_loss: float
    val_bpb: float
    tokens: int
    bytes: int
    documents: int
    sha256: str | None


def rescore(
    artifact: Artifact,
    documents: Iterable[bytes],
    protocol: Mapping[str, Any],
    *,
    device: str = "cpu",
    batch_tokens: int = BATCH_TOKENS,
) -> Rescored:
    """Score documents by the protocol of a saved score: its dict, with window and stride settled.

    Raises `ScoreError` where a target gets no finite nats.
    """
    digest = sha256()

    def seen() -> Iterator[bytes]:
        for data in documents:
            digest.update(framed(data))
            yield data

    official = protocol["mode"] == "official"
    of = _official if official else _raw
    with exact_products(), in_one_order(torch.device(device)):
        model = _used(artifact, protocol, device)
        scored = of(model, artifact.tokenizer, seen(), protocol, batch_tokens)
        totals = [(math.fsum(nats.tolist()), len(nats), size) for size, nats in scored]
    return _pooled(totals, digest)


def rescore_shards(
    artifact: Artifact,
    tokens: Tokens,
    protocol: Mapping[str, Any],
    *,
    device: str = "cpu",
    batch_tokens: int = BATCH_TOKENS,
) -> Rescored:
    """The same of token shards joined: in official mode of these very tokens, in raw mode of the
    documents that they decode to."""
    tokenizer = artifact.tokenizer
    if tokens[0] != tokenizer.bos_id or int(tokens.max()) >= tokenizer.vocab_size:
        raise ScoreError(
            f"the shards start with {tokens[0]} and go up to {tokens.max()}; this tokenizer's BOS "
            f"is {tokenizer.bos_id} and it has {tokenizer.vocab_size} ids: take its own shards"
        )
    starts = np.flatnonzero(tokens == tokenizer.bos_id)
    parts = np.split(tokens, starts[1:])
    if protocol["mode"] == "raw":
        texts = (tokenizer.decode(part[1:]) for part in parts)
        return rescore(artifact, texts, protocol, device=device, batch_tokens=batch_tokens)
    from tokgolf.eval.official import byte_table

    if tokenizer.lossless:
        sizes = [np.append(0, tokenizer.byte_lengths(part[1:])) for part in parts]
        target_bytes = np.concatenate(sizes)[1:]
    else:
        target_bytes = byte_table(tokenizer).target_bytes(tokens)
    with exact_products(), in_one_order(torch.device(device)):
        model = _used(artifact, protocol, device)
        scored = _stream(model, tokens, starts, target_bytes, protocol, batch_tokens)
        totals = [(math.fsum(nats.tolist()), len(nats), size) for size, nats in scored]
    return _pooled(totals, None)


def _pooled(totals: list[tuple[float, int, int]], digest: Any) -> Rescored:
    nats = math.fsum(nats for nats, _, _ in totals)
    tokens, size = sum(count for _, count, _ in totals), sum(size for _, _, size in totals)
    if not math.isfinite(nats) or not tokens or not size:
        raise ScoreError(f"{tokens:,} targets of {size:,} bytes have {nats} nats; that is no score")
    return Rescored(
        val_loss=nats / tokens,
        val_bpb=nats / math.log(2) / size,
        tokens=tokens,
        bytes=size,
        documents=len(totals),
        sha256=None if digest is None else digest.hexdigest(),
    )


def _used(artifact: Artifact, protocol: Mapping[str, Any], device: str) -> LanguageModel:
    """The model as the protocol uses it."""
    model, config = artifact.model.to(device), artifact.trunk
    longer = protocol["window"] > config.sequence_length
    if longer or protocol["loops"] not in (None, config.loops_scored or config.loops):
        from tokgolf.eval.contexts import unrolled, widened

        model = unrolled(widened(model, protocol["window"]), protocol["loops"])
    return model


def _raw(
    model: LanguageModel,
    tokenizer: Tokenizer,
    documents: Iterable[bytes],
    protocol: Mapping[str, Any],
    batch_tokens: int,
) -> Iterator[tuple[int, Nats]]:
    shape = {key: protocol[key] for key in ("window", "stride")}
    if protocol["adapt"] is None:
        shape |= {key: protocol[key] for key in ("context", "precision")}
        scored = document_nats(model, tokenizer, documents, **shape, batch_tokens=batch_tokens)
    else:
        from tokgolf.eval.adapt import AdaptConfig, adapted_nats

        config = from_dict(AdaptConfig, protocol["adapt"], "adapt")
        scored = adapted_nats(
            model, tokenizer, documents, config=config, **shape, batch_tokens=batch_tokens
        )
    for data, nats in scored:
        yield len(data), nats


def _official(
    model: LanguageModel,
    tokenizer: Tokenizer,
    documents: Iterable[bytes],
    protocol: Mapping[str, Any],
    batch_tokens: int,
) -> Iterator[tuple[int, Nats]]:
    from tokgolf.eval.official import token_stream

    stream = token_stream(tokenizer, documents)
    return _stream(model, stream.tokens, stream.starts, stream.target_bytes, protocol, batch_tokens)


def _stream(
    model: LanguageModel,
    tokens: NDArray[Any],
    starts: NDArray[np.int64],
    target_bytes: NDArray[Any],
    protocol: Mapping[str, Any],
    batch_tokens: int,
) -> Iterator[tuple[int, Nats]]:
    """Bytes and nats of each document's targets, in the challenge's windows over the stream."""
    from tokgolf.eval.official import official_windows, scored_targets

    count = scored_targets(len(tokens), protocol["window"])
    rows = (
        Row(tokens[start : end + 1], first - start, first)
        for start, first, end in official_windows(count, protocol["window"], protocol["stride"])
    )
    bounds = np.minimum(np.append(starts, len(tokens) - 1), count)
    values = row_nats(model, rows, protocol["precision"], batch_tokens)
    for number, nats in enumerate(regrouped(values, deque(np.diff(bounds).tolist()))):
        yield int(target_bytes[bounds[number] : bounds[number + 1]].sum()), nats
