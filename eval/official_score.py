"""Scoring by the challenge's metric: `official.py`'s text, stream and windows under a model.

Unlike raw mode the whole token stream is held, four bytes a token: how much of it is scored
depends on its length. Distributions are not, and a document's nats only until it is done.
"""

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from tokgolf.errors import ScoreError
from tokgolf.eval.invariants import Scorer
from tokgolf.eval.official import Stream, official_windows, scored_targets, token_stream
from tokgolf.eval.protocol import Protocol
from tokgolf.eval.scorer import (
    BATCH_TOKENS,
    Encoder,
    Nats,
    Observer,
    Row,
    regrouped,
    row_nats,
)
from tokgolf.eval.witness import Witness
from tokgolf.model import LanguageModel
from tokgolf.tokenizers import Tokenizer
from tokgolf.tokenizers.base import Ids


def official_documents(
    model: LanguageModel,
    tokenizer: Tokenizer,
    documents: Iterable[bytes],
    protocol: Protocol,
    witness: Witness,
    observe: Observer,
    batch_tokens: int = BATCH_TOKENS,
) -> Iterator[tuple[int, Nats]]:
    """Of each document the bytes and nats of its scored targets, in order.

    A BOS belongs to the document that it ends. Those in the tail that the challenge cuts off have
    none. The model must take the protocol's window, which is settled. Raises `ScoreError` for text
    that is no UTF-8 or does not fill a window.
    """
    assert protocol.window is not None
    stream = token_stream(tokenizer, map(witness.same.seen, documents))
    count = scored_targets(len(stream.tokens), protocol.window)
    if not count:
        raise ScoreError(
            f"the text has {len(stream.tokens):,} tokens, and official mode scores whole windows "
            f"of {protocol.window:,}; take more text or a shorter window"
        )
    for text_bytes, token_bytes, equal in zip(
        stream.text_bytes.tolist(),
        stream.document_bytes.tolist(),
        stream.decoded.tolist(),
        strict=True,
    ):
        witness.true_bytes.counted(text_bytes, token_bytes)
        witness.decoding.compared(equal)
    witness.true_bytes.tail = int(stream.target_bytes[count:].sum())
    witness.true_bytes.unnormalised = int(stream.raw_bytes.sum())
    # Where each document's targets begin, and the last one's end.
    bounds = np.minimum(np.append(stream.starts, len(stream.tokens) - 1), count)
    rows = _shown(
        official_rows(stream.tokens, protocol.window, protocol.stride), stream, bounds, witness
    )
    values = row_nats(model, rows, protocol.precision, batch_tokens, observe)
    for number, nats in enumerate(regrouped(values, deque(np.diff(bounds).tolist()))):
        witness.once.scored(nats)
        part = slice(int(bounds[number]), int(bounds[number + 1]))
        yield int(stream.target_bytes[part].sum()), nats


def _shown(
    rows: Iterable[Row], stream: Stream, bounds: NDArray[np.int64], witness: Witness
) -> Iterator[Row]:
    """The rows, each after the witness knows the documents that it pays for."""
    number = 0
    ends = np.append(stream.starts[1:], len(stream.tokens))
    for row in rows:
        while number < len(ends) and stream.starts[number] < row.number + len(row.tokens):
            start = int(stream.starts[number]) + 1
            witness.causality.encoded(stream.tokens[start : int(ends[number])])
            witness.once.expect([stream.tokens[start : int(bounds[number + 1]) + 1]])
            number += 1
        yield row
    witness.once.expect([stream.tokens[:0]] * (len(ends) - number))


def official_scorer(
    model: LanguageModel, protocol: Protocol, batch_tokens: int = BATCH_TOKENS
) -> Scorer:
    """The same windows over any documents' tokens, for a probe: nats of all of it at once.

    The model must take the protocol's window.
    """

    def nats(
        encoder: Encoder, documents: Iterable[bytes], observe: Observer
    ) -> Iterator[tuple[bytes, Nats]]:
        encoded = encoder.encode_batch(list(documents))
        tokens = np.concatenate([np.insert(ids, 0, encoder.bos_id) for ids in encoded])
        rows = official_rows(tokens, protocol.window or 0, protocol.stride)
        for values in row_nats(model, rows, protocol.precision, batch_tokens, observe):
            yield b"", values

    return nats


def official_rows(tokens: Ids, length: int, stride: int) -> Iterator[Row]:
    """The challenge's windows over a stream."""
    for start, first, end in official_windows(scored_targets(len(tokens), length), length, stride):
        yield Row(tokens[start : end + 1], first - start, first)
