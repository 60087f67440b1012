"""The scorer: nats of every token of every document, each scored once, causally, in fp32.

A document is scored alone, as the sequence BOS, tokens, BOS: the first BOS is given, every token
and the closing BOS are paid for, so the nats of a corpus are what it costs to send its documents
and where each one ends. A document longer than the model's window is cut into windows that start
every `stride` tokens; a window pays only for targets that the one before did not reach, and sees
up to a full window of the document before them.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from tokgolf.errors import ScoreError
from tokgolf.model import LanguageModel
from tokgolf.tokenizers import Tokenizer

Observer = Callable[[torch.Tensor, torch.Tensor], None]
"""Sees each batch: tokens (rows, time) and ln p (rows, time, vocab)."""


def windows(count: int, length: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(start, first, end): a window of inputs [start, end) that pays for targets [first, end).

    count=10, length=4, stride=2 -> (0, 0, 4), (2, 4, 6), (4, 6, 8), (6, 8, 10)
    """
    first = 0
    while first < count:
        end = min(count, length if first == 0 else first + stride)
        yield max(0, end - length), first, end
        first = end


def document_nats(
    model: LanguageModel,
    tokenizer: Tokenizer,
    documents: Iterable[bytes],
    *,
    stride: int = 0,
    batch_tokens: int = 8192,
    observe: Observer = lambda tokens, log_probs: None,
) -> Iterator[tuple[bytes, NDArray[np.float64]]]:
    """Each document with the nats of its tokens and its closing BOS, in order.

    `stride` 0 means disjoint windows. The model must be in eval mode. Raises `ScoreError` when a
    token has probability zero or no probability at all.
    """
    length = model.trunk.config.sequence_length
    if not 0 <= stride <= length:
        raise ScoreError(f"stride is {stride}; it must be 1 to the window of {length}, or 0")
    waiting: list[tuple[bytes, NDArray[np.float64]]] = []
    rows: list[tuple[NDArray[np.int64], int, NDArray[np.float64]]] = []
    for data in documents:
        bos = [tokenizer.bos_id]
        tokens = np.concatenate([bos, tokenizer.encode(data), bos]).astype(np.int64)
        nats = np.full(len(tokens) - 1, np.nan)
        waiting.append((data, nats))
        for start, first, end in windows(len(nats), length, stride or length):
            rows.append((tokens[start : end + 1], first - start, nats[first:end]))
            if len(rows) * length >= batch_tokens:
                _score(model, rows, observe)
                rows.clear()
                # Every document but the last is complete: its windows were all in this batch or
                # in earlier ones. The last may have windows to come.
                yield from waiting[:-1]
                del waiting[:-1]
    _score(model, rows, observe)
    yield from waiting


@torch.inference_mode()
def _score(
    model: LanguageModel,
    rows: list[tuple[NDArray[np.int64], int, NDArray[np.float64]]],
    observe: Observer,
) -> None:
    """Fill in the nats of a batch of (tokens with target, first paid position, where to)."""
    if not rows:
        return
    device = next(model.parameters()).device
    longest = max(len(tokens) for tokens, _, _ in rows)
    batch = np.full((len(rows), longest), model.head.shape.bos_id)
    for row, (tokens, _, _) in enumerate(rows):
        batch[row, : len(tokens)] = tokens  # padding comes after: a causal model cannot see it
    tensor = torch.from_numpy(batch).to(device)
    log_probs = model.log_probs(tensor[:, :-1])
    observe(tensor[:, :-1], log_probs)
    picked = log_probs.gather(2, tensor[:, 1:, None])[:, :, 0].double().cpu().numpy()
    for row, (tokens, first, target) in enumerate(rows):
        target[:] = -picked[row, first : len(tokens) - 1]
        if not np.isfinite(target).all():
            raise ScoreError("the model gives a token of the text probability zero or NaN")
