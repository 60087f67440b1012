"""`factorized`: the table is U P, a thin table times a projection (ALBERT; Lan et al. 2019).

U (vocab, rank) and P (rank, d_model) are stored, never their product, so the bytes per token
are those of `rank` weights. With `shared` the classifier uses the same P as the input;
otherwise it has a projection of its own, one more rank * d_model. The classifier projects the
hidden states and multiplies by U: fewer operations than by U P, and U is then a stored matrix whose
inputs are known, so that export can round it by GPTQ.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from tokgolf.errors import ConfigError
from tokgolf.heads.base import (
    Head,
    HeadConfig,
    HeadShape,
    LinearHead,
    ParamGroup,
    Stored,
    check_rank,
    orthogonal,
    table,
)
from tokgolf.heads.tied import TABLE_STD


@dataclass(frozen=True, kw_only=True)
class FactorizedConfig(HeadConfig):
    """Options of the factorized head."""

    name: ClassVar[str] = "factorized"

    rank: int = 64
    shared: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1:
            raise ConfigError(f"head rank is {self.rank}; it must be at least 1")

    def _num_params(self, shape: HeadShape) -> int:
        projections = 1 if self.shared else 2
        return shape.vocab_size * self.rank + projections * self.rank * shape.d_model

    def _flops(self, shape: HeadShape) -> int:
        return 2 * self.rank * (2 * shape.d_model + shape.vocab_size)

    def _build(self, shape: HeadShape, counts: Tensor | None) -> Head:
        check_rank(shape, "rank", self.rank, "tied")
        return FactorizedHead(shape, self)


class FactorizedHead(LinearHead):
    """x = U[t] P, z = (h Q^T) U^T with Q = P when shared."""

    def __init__(self, shape: HeadShape, config: FactorizedConfig) -> None:
        super().__init__(shape, config.softcap)
        # With entries of U, not of U P, as small as a tied table's: in few dimensions other tokens'
        # rows are less orthogonal to the current one's, and logits must start near zero.
        self.table = table(shape.vocab_size, config.rank, TABLE_STD)
        self.input = orthogonal(config.rank, shape.d_model)
        self.output = None if config.shared else orthogonal(config.rank, shape.d_model)

    def _embed(self, tokens: Tensor, prev: Tensor) -> Tensor:
        return F.embedding(tokens, self.table) @ self.input

    def features(self, hidden: Tensor, prev: Tensor) -> Tensor:
        return hidden @ (self.input if self.output is None else self.output).T

    def matrix(self) -> Tensor:
        return self.table

    def bias(self) -> Tensor | None:
        return None

    def _stored(self) -> Iterator[Stored]:
        yield Stored("table", self.table, "table")
        yield Stored("input", self.input, "table")
        if self.output is not None:
            yield Stored("output", self.output, "table")

    def _param_groups(self) -> Iterator[ParamGroup]:
        yield ParamGroup("tied", {"table": self.table})
        yield ParamGroup("matrix", {"input": self.input})
        if self.output is not None:
            yield ParamGroup("matrix", {"output": self.output})
