"""`untied`: one table in, another out; twice the rows of `tied`, and no compromise between them.

The output starts at zero, so the first loss is exactly ln V. The two tables have roles, hence
learning rates, of their own: moving the input rate together with untying is a known confounder.
With `untie_at` the head starts tied and becomes two tables at that fraction of the training, the
second a copy of the first, optimizer state included (after modded-nanogpt's record 53: at first
the output's gradients teach the input). Both then keep the tied table's learning rate.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from tokgolf.errors import ConfigError
from tokgolf.heads.base import (
    Head,
    HeadConfig,
    HeadShape,
    LinearHead,
    ParamGroup,
    Stored,
    Unties,
    table,
)
from tokgolf.heads.tied import TABLE_STD


@dataclass(frozen=True, kw_only=True)
class UntiedConfig(HeadConfig):
    """Options of the untied head: the fraction of the training that it is tied for.

    Once untied, it is the head whose `untie_at` is 0, and is stored as that.
    """

    name: ClassVar[str] = "untied"

    untie_at: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.untie_at < 1:
            raise ConfigError(f"head untie_at is {self.untie_at}; it must be at least 0, below 1")

    def _num_params(self, shape: HeadShape) -> int:
        return (1 if self.untie_at else 2) * shape.vocab_size * shape.d_model

    def _flops(self, shape: HeadShape) -> int:
        return 2 * shape.d_model * shape.vocab_size

    def _build(self, shape: HeadShape, counts: Tensor | None) -> Head:
        return UntiedHead(shape, self)


class UntiedHead(LinearHead, Unties):
    """x = E[t], z = h W^T; W is E until `untie`."""

    def __init__(self, shape: HeadShape, config: UntiedConfig) -> None:
        super().__init__(shape, config.softcap)
        self.untie_at = config.untie_at
        self.input = table(shape.vocab_size, shape.d_model, TABLE_STD)
        own = None if config.untie_at else table(shape.vocab_size, shape.d_model, 0.0)
        self.output: nn.Parameter | None = own

    def untie(self) -> dict[str, str]:
        self.untie_at = 0.0
        self.output = nn.Parameter(self.input.detach().clone())
        return {"output": "input"}

    def _embed(self, tokens: Tensor, prev: Tensor) -> Tensor:
        return F.embedding(tokens, self.input)

    def features(self, hidden: Tensor, prev: Tensor) -> Tensor:
        return hidden

    def matrix(self) -> Tensor:
        return self.input if self.output is None else self.output

    def bias(self) -> Tensor | None:
        return None

    def _stored(self) -> Iterator[Stored]:
        yield Stored("input", self.input, "table")
        if self.output is not None:
            yield Stored("output", self.output, "table")

    def _param_groups(self) -> Iterator[ParamGroup]:
        yield ParamGroup("tied" if self.output is None else "input", {"input": self.input})
        if self.output is not None:
            yield ParamGroup("output", {"output": self.output})
