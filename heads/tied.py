"""`tied`: one table is both the input embedding and the classifier (Press & Wolf 2017).

The cheapest exact head: V * d parameters for both ends. Initialised N(0, 0.005^2), as the
challenge's naive baseline does; the trunk normalises after the lookup, so the scale is free.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from tokgolf.heads.base import Head, HeadConfig, HeadShape, ParamGroup, Stored, table

TABLE_STD = 0.005


@dataclass(frozen=True, kw_only=True)
class TiedConfig(HeadConfig):
    """Options of the tied head: none but the softcap."""

    name: ClassVar[str] = "tied"

    def num_params(self, shape: HeadShape) -> int:
        return shape.vocab_size * shape.d_model

    def build(self, shape: HeadShape, counts: Tensor | None = None) -> Head:
        return TiedHead(shape, self)


class TiedHead(Head):
    """x = E[t], z = h E^T."""

    def __init__(self, shape: HeadShape, config: TiedConfig) -> None:
        super().__init__(shape, config.softcap)
        self.table = table(shape.vocab_size, shape.d_model, TABLE_STD)

    def embed(self, tokens: Tensor, prev: Tensor) -> Tensor:
        return F.embedding(tokens, self.table)

    def features(self, hidden: Tensor, prev: Tensor) -> Tensor:
        return hidden

    def matrix(self) -> Tensor:
        return self.table

    def bias(self) -> Tensor | None:
        return None

    def stored(self) -> Iterator[Stored]:
        yield Stored("table", self.table, "table")

    def param_groups(self) -> Iterator[ParamGroup]:
        yield ParamGroup("tied", {"table": self.table})
