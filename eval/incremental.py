"""A model one token at a time: what it remembers, and documents that grow side by side.

The attention is the model's own, the windows are the scorer's; unlike the scorer this needs no
token before its turn, so that a decoder can choose them. Each row of the batch has its own
position: rows start their windows at different times.
"""

import heapq
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokgolf.errors import ConfigError
from tokgolf.eval.scorer import windows
from tokgolf.model import LanguageModel

Choose = Callable[[NDArray[np.float32], list[int]], list[int]]
"""Given ln p (rows, vocab) and the document of each row: the next token of each."""


class Cache:
    """The `Cache` of `tokgolf.model`: room for `rows` windows of up to `length` positions.

    A pass is `begin` and then the model's forward with this cache. What an earlier window left
    behind in a row is not cleared: it lies beyond the positions that the mask lets through.
    """

    positions: Tensor
    mask: Tensor

    def __init__(self, rows: int, length: int) -> None:
        self._rows = rows
        self._length = length
        self._slots: list[Tensor] = []

    def begin(self, start: int, positions: Tensor) -> None:
        """The next pass is over the rows from `start` on, one for each row of `positions`.

        positions (batch, time) int64: consecutive in each row, the first one at most one after
        the last that the row has seen. Raises `ConfigError` beyond the window's length.
        """
        self._seen = int(positions.max()) + 1
        if self._seen > self._length or start + len(positions) > self._rows:
            raise ConfigError(
                f"position {self._seen - 1} of row {start + len(positions) - 1} is outside the "
                f"cache's {self._rows} rows of {self._length} positions"
            )
        self.positions = positions
        self.mask = (torch.arange(self._seen, device=positions.device) <= positions[..., None])[
            :, None
        ]
        self._start = start
        self._index = torch.arange(len(positions), device=positions.device)[:, None]
        self._next = 0

    def extend(self, x: Tensor) -> Tensor:
        """As the protocol's: what this call of the pass has been given so far, `x` included."""
        return self._remember(x)[:, : self._seen]

    def shift(self, x: Tensor, first: int) -> Tensor:
        """As the protocol's."""
        slot = self._remember(x)
        before = slot[self._index, (self.positions - 1).clamp(min=0)]
        at_start = (self.positions == 0).view(*self.positions.shape, *[1] * (x.dim() - 2))
        return before.masked_fill(at_start, first)

    def _remember(self, x: Tensor) -> Tensor:
        """Write `x` into the next slot; returns the slot's rows of this pass, whole."""
        if self._next == len(self._slots):
            self._slots.append(x.new_zeros(self._rows, self._length, *x.shape[2:]))
        slot = self._slots[self._next][self._start : self._start + len(x)]
        self._next += 1
        slot[self._index, self.positions] = x
        return slot


def hidden(model: LanguageModel, tokens: Tensor, cache: Cache) -> Tensor:
    """As `LanguageModel.hidden`, of a pass that `cache` has begun.

    tokens (batch, time) int64, as the positions of the pass -> (batch, time, d_model)
    """
    bos = model.head.shape.bos_id
    x = model.head.embed(tokens, cache.shift(tokens, bos))
    return model.trunk(x, cache, tokens == bos, tokens)  # type: ignore[no-any-return]


def step(model: LanguageModel, tokens: Tensor, cache: Cache) -> Tensor:
    """ln p after the last of `tokens`, in fp32.  # as in `hidden` -> (batch, vocab)"""
    return model.head.log_probs(hidden(model, tokens, cache)[:, -1], tokens[:, -1])


@torch.inference_mode()
def grow(
    model: LanguageModel,
    counts: Sequence[int],
    choose: Choose,
    *,
    length: int,
    stride: int,
    rows: int,
) -> list[list[int]]:
    """Documents of `counts` tokens, each token chosen in turn, after the windows' context alone.

    Every count is at least 1; BOS, which starts a document, is not among what is counted or
    returned. `length` and `stride` are as in `windows`. Which documents share a batch, and so
    which shapes the model runs in, depends on `counts` and `rows` alone: the longest documents are
    dealt to `rows` rows first, and rows drop out from the last.
    """
    bos = model.head.shape.bos_id
    documents: list[list[int]] = [[bos] for _ in counts]
    walks = [_walk(documents, counts, mine, length, stride) for mine in _deal(counts, rows) if mine]
    cache = Cache(len(walks), length)
    places = [next(walk) for walk in walks]
    while places:
        for row, place in enumerate(places):
            if place.context:
                cache.begin(row, torch.arange(len(place.context))[None])
                hidden(model, torch.tensor([place.context]), cache)
        cache.begin(0, torch.tensor([[place.position] for place in places]))
        log_probs = step(model, torch.tensor([[place.token] for place in places]), cache)
        chosen = choose(log_probs.numpy(), [place.document for place in places])
        following = (_send(walk, token) for walk, token in zip(walks, chosen, strict=False))
        places = [place for place in following if place is not None]
    return [tokens[1:] for tokens in documents]


class _Place(NamedTuple):
    """Where a row stands: the token to feed, its position, and what to feed before it."""

    document: int
    token: int
    position: int
    context: list[int]


def _walk(
    documents: list[list[int]], counts: Sequence[int], mine: list[int], length: int, stride: int
) -> Generator[_Place, int, None]:
    """The places of a row that has the documents `mine`; is sent the token that follows each."""
    for document in mine:
        tokens = documents[document]
        for start, first, end in windows(counts[document], length, stride):
            context = tokens[start:first]
            for target in range(first, end):
                place = _Place(document, tokens[target], target - start, context)
                tokens.append((yield place))
                context = []


def _send(walk: Generator[_Place, int, None], token: int) -> _Place | None:
    try:
        return walk.send(token)
    except StopIteration:
        return None


def _deal(counts: Sequence[int], rows: int) -> list[list[int]]:
    """The documents of each row, the row with most tokens first.

    counts=[3, 9, 2, 2], rows=2 -> [[1], [0, 2, 3]]: 9 tokens and 7
    """
    hands: list[list[int]] = [[] for _ in range(rows)]
    loads = [(0, row) for row in range(rows)]
    for document in sorted(range(len(counts)), key=lambda document: -counts[document]):
        load, row = loads[0]
        hands[row].append(document)
        heapq.heapreplace(loads, (load + counts[document], row))
    return [hands[row] for _, row in sorted(loads, key=lambda load: (-load[0], load[1]))]
