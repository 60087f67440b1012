"""A head of one's own, `gain`: a tied table whose rows the output scales, one weight a token.

python my_head.py train --head gain ...     every command of tokgolf, with this head in it
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokgolf.cli import main
from tokgolf.heads import HEADS
from tokgolf.heads.base import Head, HeadConfig, HeadShape, LinearHead, ParamGroup, Stored, table


@dataclass(frozen=True, kw_only=True)
class GainConfig(HeadConfig):
    """Options of the head: the size its rows start with, and what every head has."""

    name: ClassVar[str] = "gain"

    std: float = 0.005

    def _num_params(self, shape: HeadShape) -> int:
        return shape.vocab_size * (shape.d_model + 1)

    def _flops(self, shape: HeadShape) -> int:
        return 2 * shape.vocab_size * shape.d_model

    def _build(self, shape: HeadShape, counts: Tensor | None) -> Head:
        return GainHead(shape, self)


class GainHead(LinearHead):
    """x = E[t], z = h (diag(g) E)^T."""

    def __init__(self, shape: HeadShape, config: GainConfig) -> None:
        super().__init__(shape, config.softcap)
        self.table = table(shape.vocab_size, shape.d_model, config.std)
        self.gain = nn.Parameter(torch.ones(shape.vocab_size))

    def _embed(self, tokens: Tensor, prev: Tensor) -> Tensor:
        return F.embedding(tokens, self.table)

    def features(self, hidden: Tensor, prev: Tensor) -> Tensor:
        return hidden

    def matrix(self) -> Tensor:
        return self.gain[:, None] * self.table

    def bias(self) -> Tensor | None:
        return None

    def _stored(self) -> Iterator[Stored]:
        yield Stored("table", self.table, "table")
        yield Stored("gain", self.gain, "vector")

    def _param_groups(self) -> Iterator[ParamGroup]:
        yield ParamGroup("tied", {"table": self.table})
        yield ParamGroup("vector", {"gain": self.gain})


HEADS["gain"] = "my_head:GainConfig"

if __name__ == "__main__":
    main()
