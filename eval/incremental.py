"""A model one token at a time: the memory of earlier positions, and windows run side by side.

The attention is the model's own; here is only what it remembers. Each row of the batch has its
own position, so that rows can start their windows at different times.
"""

import torch
from torch import Tensor

from tokgolf.errors import ConfigError
from tokgolf.model import LanguageModel


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


def step(model: LanguageModel, tokens: Tensor, cache: Cache) -> Tensor:
    """ln p after the last of `tokens`, for a pass that `cache` has begun.

    tokens (batch, time) int64, as the positions of the pass -> (batch, vocab), fp32
    """
    hidden = model.hidden(tokens, cache=cache)
    return model.head.log_probs(hidden[:, -1], tokens[:, -1])
