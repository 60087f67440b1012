"""The scorer: nats of every token of every document, each scored once, causally.

A corpus is the targets of its documents one after the other: a document's tokens, then the BOS
that ends it. They are numbered from 0 on, and each is paid for, so the nats of a corpus are what it
costs to send its documents and where each one ends. What a target is predicted from is the context:

    "document"   BOS and the tokens of its own document: each is scored alone
    "stream"     all before it, documents and the BOS between them

or as much of that as fits. A text longer than the window is cut into windows that start every
`stride` tokens; a window pays only for targets that the one before did not reach.

Memory does not grow with the corpus: windows are batched, sorted by length, within a bounded
lookahead, and the ln p of a few positions are held at a time. What is held of a document are its
tokens and nats.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from tokgolf.errors import ScoreError
from tokgolf.model import LanguageModel
from tokgolf.tokenizers.base import Ids

BATCH_TOKENS = 8192
LOOKAHEAD = 8  # batches
CHUNK = {"cpu": 1 << 21, "cuda": 1 << 26}
"""Values of ln p that are made at a time."""
LEAST = 256
"""Positions that are given ln p at a time, if CHUNK is fewer: some heads make their matrix anew for
each chunk."""


class Encoder(Protocol):
    """What the scorer asks of a tokenizer."""

    @property
    def bos_id(self) -> int:
        """The id before the first document and after each."""

    def encode_batch(self, batch: Sequence[bytes]) -> list[Ids]:
        """The ids of each document, without BOS."""


Observer = Callable[[NDArray[np.int64], torch.Tensor], None]
"""Sees every ln p that nats are taken from: targets' numbers (n,), ln p (n, vocab)."""

Nats = NDArray[np.float64]


class Row(NamedTuple):
    """A window: `tokens` are its inputs and the last one's target; from input `first` on it pays,
    for the targets from `number` on."""

    tokens: Ids
    first: int
    number: int


def windows(stop: int, length: int, stride: int, begin: int = 0) -> Iterator[tuple[int, int, int]]:
    """(start, first, end): a window of inputs [start, end) that pays for targets [first, end), all
    of them for [begin, stop).

    stop=10, length=4, stride=2 -> (0, 0, 4), (2, 4, 6), (4, 6, 8), (6, 8, 10)
    """
    first = begin
    while first < stop:
        end = min(stop, length if first == 0 else first + stride)
        yield max(0, end - length), first, end
        first = end


def settled_stride(stride: int, window: int) -> int:
    """The stride of windows; 0 is that of disjoint ones. Raises `ScoreError` for no stride."""
    if not 0 <= stride <= window:
        raise ScoreError(f"stride is {stride}; it must be 1 to the window of {window}, or 0")
    return stride or window


def document_nats(
    model: LanguageModel,
    tokenizer: Encoder,
    documents: Iterable[bytes],
    *,
    window: int = 0,
    stride: int = 0,
    context: str = "document",
    precision: str = "fp32",
    batch_tokens: int = BATCH_TOKENS,
    observe: Observer = lambda numbers, log_probs: None,
) -> Iterator[tuple[bytes, Nats]]:
    """Each document with the nats of its targets, in order.

    `window` 0 is the model's own; for a longer one the rotary tables are computed anew. `stride`
    0 means disjoint windows. With `precision` "bf16" the trunk runs in mixed precision, ln p is
    always fp32. The model must be in eval mode. Nats are as the model gives them: NaN or infinite
    ones are for the caller to refuse. Raises `ScoreError` for a stride that is no part of a window.
    """
    length = window or model.trunk.config.sequence_length
    stride = settled_stride(stride, length)
    waiting: deque[bytes] = deque()
    sizes: deque[int] = deque()

    def targets() -> Iterator[Ids]:
        for batch in _batches(documents, batch_tokens):
            for data, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
                waiting.append(data)
                sizes.append(len(ids) + 1)
                yield np.append(ids, ids.dtype.type(tokenizer.bos_id))

    cut: Any = _document_rows
    # Here, because the score of an artifact by its own window does without their code.
    if context == "stream":
        from tokgolf.eval.contexts import stream_rows

        cut = stream_rows
    if length > model.trunk.config.sequence_length:
        from tokgolf.eval.contexts import widened

        model = widened(model, length)
    rows = cut(targets(), tokenizer.bos_id, length, stride)
    scored = row_nats(model, rows, precision, batch_tokens, observe)
    for nats in regrouped(scored, sizes):
        yield waiting.popleft(), nats


def regrouped(values: Iterable[Nats], sizes: deque[int]) -> Iterator[Nats]:
    """The same values in arrays of the sizes in a queue, which may grow while values are made.

    [1, 2], [3, 4, 5]; 1, 0, 3 -> [1], [], [2, 3, 4]
    """
    parts: list[Nats] = []
    held = 0
    for more in values:
        parts.append(more)
        held += len(more)
        while sizes and held >= sizes[0]:
            joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
            size = sizes.popleft()
            yield joined[:size]
            parts, held = [joined[size:]], held - size


def _batches(documents: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    """Documents to encode at once: few bytes, unless one alone has many."""
    batch: list[bytes] = []
    held = 0
    for data in documents:
        batch.append(data)
        held += len(data) + 1
        if held >= size:
            yield batch
            batch, held = [], 0
    yield batch


def _document_rows(targets: Iterable[Ids], bos: int, length: int, stride: int) -> Iterator[Row]:
    number = 0
    for ids in targets:
        tokens = np.insert(ids, 0, bos)
        for start, first, end in windows(len(ids), length, stride):
            yield Row(tokens[start : end + 1], first - start, number + first)
        number += len(ids)


def row_nats(
    model: LanguageModel,
    rows: Iterable[Row],
    precision: str = "fp32",
    batch_tokens: int = BATCH_TOKENS,
    observe: Observer = lambda numbers, log_probs: None,
) -> Iterator[Nats]:
    """The nats of all targets that rows pay for, in the rows' order, some at a time.

    The rows must pay for the targets 0, 1, 2, ... in order. Raises `ScoreError` where they do not.
    """
    pool: list[Row] = []
    held = number = 0
    for row in rows:
        pool.append(row)
        held += len(row.tokens)
        if row.number != number:
            raise ScoreError(
                f"the windows pay for target {row.number:,} where {number:,} comes next"
            )
        number += len(row.tokens) - 1 - row.first
        if held >= LOOKAHEAD * batch_tokens:
            yield _pool_nats(model, pool, precision, batch_tokens, observe)
            pool, held = [], 0
    if pool:
        yield _pool_nats(model, pool, precision, batch_tokens, observe)


def _pool_nats(
    model: LanguageModel, pool: list[Row], precision: str, batch_tokens: int, observe: Observer
) -> Nats:
    """The nats of these rows' targets, batched by length."""
    base = pool[0].number
    nats = np.full(pool[-1].number + len(pool[-1].tokens) - 1 - pool[-1].first - base, np.nan)
    batch: list[Row] = []
    for row in sorted(pool, key=lambda row: -len(row.tokens)):
        if batch and (len(batch) + 1) * (len(batch[0].tokens) - 1) > batch_tokens:
            _batch_nats(model, batch, precision, observe, nats, base)
            batch = []
        batch.append(row)
    _batch_nats(model, batch, precision, observe, nats, base)
    return nats


def padded(
    tokens: Sequence[NDArray[Any]], firsts: Sequence[int], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows as rows of one length, and which inputs pay: each one's from its first to the last
    but one.  # -> (rows, time) int64, (rows, time) bool
    """
    shape = len(tokens), max(map(len, tokens))
    # Padding comes after the last input that pays: a causal model cannot see it.
    rows, pays = np.zeros(shape, np.int64), np.zeros(shape, bool)
    for place, (row, first) in enumerate(zip(tokens, firsts, strict=True)):
        rows[place, : len(row)] = row
        pays[place, first : len(row) - 1] = True
    return torch.from_numpy(rows).to(device), torch.from_numpy(pays).to(device)


@torch.inference_mode()
def _batch_nats(
    model: LanguageModel,
    batch: list[Row],
    precision: str,
    observe: Observer,
    nats: Nats,
    base: int,
) -> None:
    """Fill in the nats of a batch's targets; `nats` begins with target `base`."""
    device = next(model.parameters()).device
    tokens, paid = padded([row.tokens for row in batch], [row.first for row in batch], device)
    numbers = np.concatenate(
        [np.arange(len(row.tokens) - 1 - row.first) + row.number for row in batch]
    )
    paid = paid[:, :-1]
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        hidden = model.hidden(tokens[:, :-1])[paid]  # (n, d_model)
    prev, target = tokens[:, :-1][paid], tokens[:, 1:][paid]
    size = max(LEAST, CHUNK.get(device.type, CHUNK["cuda"]) // model.head.shape.vocab_size)
    picked = []
    for start in range(0, len(numbers), size):
        part = slice(start, start + size)
        log_probs = model.head.log_probs(hidden[part], prev[part])
        observe(numbers[part], log_probs)
        picked.append(log_probs.gather(1, target[part, None])[:, 0])
    nats[numbers - base] = -torch.cat(picked).double().cpu().numpy()
