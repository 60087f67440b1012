"""`untied`: one table in, another out; twice the rows of `tied`, and no compromise between them.

The output starts at zero, so the first loss is exactly ln V. The two tables have roles, hence
learning rates, of their own: moving the input rate together with untying is a known confounder.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from tokgolf.heads.base import Head, HeadConfig, HeadShape, ParamGroup, Stored, table
from tokgolf.heads.tied import TABLE_STD


@dataclass(frozen=True, kw_only=True)
class UntiedConfig(HeadConfig):
    """Options of the untied head: none but the softcap."""

    name: ClassVar[str] = "untied"

    def num_params(self, shape: HeadShape) -> int:
        return 2 * shape.vocab_size * shape.d_model

    def build(self, shape: HeadShape, counts: Tensor | None = None) -> Head:
        return UntiedHead(shape, self)


class UntiedHead(Head):
    """x = E[t], z = h W^T."""

    def __init__(self, shape: HeadShape, config: UntiedConfig) -> None:
        super().__init__(shape, config.softcap)
        self.input = table(shape.vocab_size, shape.d_model, TABLE_STD)
        self.output = table(shape.vocab_size, shape.d_model, 0.0)

    def embed(self, tokens: Tensor, prev: Tensor) -> Tensor:
        return F.embedding(tokens, self.input)

    def features(self, hidden: Tensor, prev: Tensor) -> Tensor:
        return hidden

    def matrix(self) -> Tensor:
        return self.output

    def bias(self) -> Tensor | None:
        return None

    def stored(self) -> Iterator[Stored]:
        yield Stored("input", self.input, "table")
        yield Stored("output", self.output, "table")

    def param_groups(self) -> Iterator[ParamGroup]:
        yield ParamGroup("input", {"input": self.input})
        yield ParamGroup("output", {"output": self.output})
