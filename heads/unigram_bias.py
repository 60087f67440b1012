"""`unigram-bias`: an add-on for the output, a trained bias for each token.

It starts at the training tokens' log frequencies, less their mean (which the softmax does not
see, and the softcap then bends least), so the first loss is the unigram entropy. V weights, stored:
a start from data costs what is trained from there. On a tied head it did not pay in short
runs (docs/results/heads.md): it is here to be measured.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tokgolf.heads.base import AddOn, AddOnConfig, Extra, HeadShape, ParamGroup, Stored

SMOOTHING = 0.5  # tokens added to each count (Krichevsky & Trofimov 1981)


@dataclass(frozen=True, kw_only=True)
class UnigramBiasConfig(AddOnConfig):
    """Options of the unigram bias: none."""

    name: ClassVar[str] = "unigram-bias"

    def num_params(self, shape: HeadShape) -> int:
        return shape.vocab_size

    def flops(self, shape: HeadShape) -> int:
        return shape.vocab_size

    def build(self, shape: HeadShape, counts: Tensor | None) -> AddOn:
        return UnigramBias(torch.zeros(shape.vocab_size) if counts is None else log_counts(counts))


class UnigramBias(AddOn):
    """z += b."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values)

    def embed(self, tokens: Tensor, prev: Tensor) -> None:
        return None

    def extra(self, prev: Tensor) -> Extra:
        return Extra(bias=self.values)

    def stored(self) -> Iterator[Stored]:
        yield Stored("values", self.values, "vector")

    def param_groups(self) -> Iterator[ParamGroup]:
        yield ParamGroup("vector", {"values": self.values})


def log_counts(counts: Tensor) -> Tensor:
    """Log of smoothed counts, with mean zero.  # (vocab,) int -> (vocab,) fp32"""
    logs = (counts.double() + SMOOTHING).log()
    return (logs - logs.mean()).float()
