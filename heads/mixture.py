"""`mixture`: a mixture of softmaxes over one table (MoS; Yang et al. 2017, arXiv 1711.03953).

    p = sum_k pi_k(h) softmax(cap(g_k(h) E^T)),   g_k(h) = tanh(h M_k^T),   pi = softmax(h C^T)

One softmax gives a matrix of logits of rank d_model at most; a mixture of them has no such limit.
It mixes probabilities, not logits (which would be one softmax again), and stays in log space, with
no constant added to a probability. The price is a softmax over the whole vocabulary for each.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokgolf.heads.base import (
    Head,
    HeadConfig,
    HeadShape,
    ParamGroup,
    Stored,
    StructuredHead,
    check_range,
    orthogonal,
    stage,
    table,
)
from tokgolf.heads.tied import TABLE_STD

MAX_MIXTURES = 64


@dataclass(frozen=True, kw_only=True)
class MixtureConfig(HeadConfig):
    """Options of the mixture: how many softmaxes, and whether g_k bends by tanh or is linear.

    One linear softmax is the tied head with one more matrix.
    """

    name: ClassVar[str] = "mixture"

    mixtures: int = 2
    tanh: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 1, MAX_MIXTURES, "mixtures")

    def _num_params(self, shape: HeadShape) -> int:
        prior = self.mixtures if self.mixtures > 1 else 0
        rows = shape.vocab_size + prior + self.mixtures * shape.d_model
        return rows * shape.d_model

    def _flops(self, shape: HeadShape) -> int:
        prior = 1 if self.mixtures > 1 else 0
        rows = shape.vocab_size + shape.d_model + prior
        return 2 * shape.d_model * self.mixtures * rows

    def _build(self, shape: HeadShape, counts: Tensor | None) -> Head:
        return MixtureHead(shape, self)


class MixtureHead(StructuredHead):
    """x = E[t]; ln p as in the module's text."""

    def __init__(self, shape: HeadShape, config: MixtureConfig) -> None:
        super().__init__(shape, config.softcap)
        width, self.tanh = shape.d_model, config.tanh
        self.table = table(shape.vocab_size, width, TABLE_STD)
        # The first starts as the tied head does. The others must differ from it, or the prior,
        # which starts even, would have no gradient.
        first = nn.Parameter(torch.eye(width))
        others = [orthogonal(width, width) for _ in range(config.mixtures - 1)]
        self.turns = nn.ParameterList([first, *others])
        self.prior = table(config.mixtures, width, 0.0) if others else None

    def _embed(self, tokens: Tensor, prev: Tensor) -> Tensor:
        return F.embedding(tokens, self.table)

    def own_log_probs(self, hidden: Tensor, prev: Tensor) -> Tensor:
        """As `StructuredHead.own_log_probs`."""
        shares = None if self.prior is None else stage(hidden, self.prior, 0).log_softmax(1)
        total = None
        for k, turn in enumerate(self.turns):
            x = F.linear(hidden, turn.to(hidden.dtype))
            z = stage(torch.tanh(x) if self.tanh else x, self.table, self.softcap)
            shift = -z.logsumexp(1, keepdim=True)
            z = z + (shift if shares is None else shift + shares[:, k : k + 1])
            total = z if total is None else torch.logaddexp(total, z)
        assert total is not None
        return total

    def _stored(self) -> Iterator[Stored]:
        yield Stored("table", self.table, "table")
        for k, turn in enumerate(self.turns):
            yield Stored(f"turns.{k}", turn, "table")
        if self.prior is not None:
            yield Stored("prior", self.prior, "table")

    def _param_groups(self) -> Iterator[ParamGroup]:
        yield ParamGroup("tied", {"table": self.table})
        yield ParamGroup("matrix", {f"turns.{k}": turn for k, turn in enumerate(self.turns)})
        if self.prior is not None:
            yield ParamGroup("output", {"prior": self.prior})
