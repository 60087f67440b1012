"""`tied`: one table is both the input embedding and the classifier (Press & Wolf 2017).

The cheapest exact head: V * d parameters for both ends. Initialised N(0, 0.005^2), as the
challenge's naive baseline does; the trunk normalises after the lookup, so the scale is free.
`input_rank` lets the input differ from the output by a low-rank delta, x = E[t] + A[t] B: a
little of what untying buys, for (V + d) * rank weights.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from tokgolf.heads.base import (
    Head,
    HeadConfig,
    HeadShape,
    LinearHead,
    ParamGroup,
    Stored,
    check_not_negative,
    check_rank,
    orthogonal,
    table,
)

TABLE_STD = 0.005


@dataclass(frozen=True, kw_only=True)
class TiedConfig(HeadConfig):
    """Options of the tied head: the rank of what the input has of its own."""

    name: ClassVar[str] = "tied"

    input_rank: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "input_rank")

    def _num_params(self, shape: HeadShape) -> int:
        delta = self.input_rank * (shape.vocab_size + shape.d_model)
        return shape.vocab_size * shape.d_model + delta

    def _flops(self, shape: HeadShape) -> int:
        return 2 * shape.d_model * (shape.vocab_size + self.input_rank)

    def _build(self, shape: HeadShape, counts: Tensor | None) -> Head:
        check_rank(shape, "input_rank", self.input_rank, "untied")
        return TiedHead(shape, self)


class TiedHead(LinearHead):
    """x = E[t] (+ A[t] B), z = h E^T."""

    def __init__(self, shape: HeadShape, config: TiedConfig) -> None:
        super().__init__(shape, config.softcap)
        self.table = table(shape.vocab_size, shape.d_model, TABLE_STD)
        # A is zero and B is not: the head starts tied, and both get a gradient.
        rank = config.input_rank
        self.delta_a = table(shape.vocab_size, rank, 0.0) if rank else None
        self.delta_b = orthogonal(rank, shape.d_model) if rank else None

    def _embed(self, tokens: Tensor, prev: Tensor) -> Tensor:
        x = F.embedding(tokens, self.table)
        if self.delta_a is None or self.delta_b is None:
            return x
        return x + F.embedding(tokens, self.delta_a) @ self.delta_b

    def features(self, hidden: Tensor, prev: Tensor) -> Tensor:
        return hidden

    def matrix(self) -> Tensor:
        return self.table

    def bias(self) -> Tensor | None:
        return None

    def _stored(self) -> Iterator[Stored]:
        yield Stored("table", self.table, "table")
        if self.delta_a is not None and self.delta_b is not None:
            yield Stored("delta_a", self.delta_a, "table")
            yield Stored("delta_b", self.delta_b, "table")

    def _param_groups(self) -> Iterator[ParamGroup]:
        yield ParamGroup("tied", {"table": self.table})
        if self.delta_a is not None and self.delta_b is not None:
            yield ParamGroup("tied", {"delta_a": self.delta_a})
            yield ParamGroup("matrix", {"delta_b": self.delta_b})
