"""`bigram-logits`: an add-on for the output, logits that depend on the last token alone.

z += A[prev] B^T with `rank` columns, 2 V rank weights: a linear head on [h; A[prev]]. A starts
random and B at zero, so that both get a gradient and the head starts as it is without. `exact`
is a table of all pairs, V^2 weights, for small vocabularies (openai/parameter-golf PRs #477 and
#485 have one, initialised from counts; PR #2021 found that start worse, so this one is zero).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from tokgolf.config import check_positive
from tokgolf.errors import ConfigError
from tokgolf.heads.base import AddOn, AddOnConfig, Extra, HeadShape, ParamGroup, Stored, table

LARGEST_EXACT = 2048
DEFAULT_RANK = 32
COLUMN_STD = 1.0  # of A: what B learns is then on the scale of a logit


@dataclass(frozen=True, kw_only=True)
class BigramLogitsConfig(AddOnConfig):
    """Options: the rank of the product, or the whole table of pairs (`exact`, V <= 2048), which
    has no rank: it goes with the default only."""

    name: ClassVar[str] = "bigram-logits"

    rank: int = DEFAULT_RANK
    exact: bool = False

    def __post_init__(self) -> None:
        check_positive(self, "rank")
        if self.exact and self.rank != DEFAULT_RANK:
            raise ConfigError(
                f"bigram-logits exact and rank {self.rank}: the table of all pairs has no rank; "
                "leave out one of the two"
            )

    def num_params(self, shape: HeadShape) -> int:
        columns = shape.vocab_size if self.exact else 2 * self.rank
        return shape.vocab_size * columns

    def flops(self, shape: HeadShape) -> int:
        return 0 if self.exact else 2 * self.rank * shape.vocab_size

    def build(self, shape: HeadShape, counts: Tensor | None) -> AddOn:
        vocab = shape.vocab_size
        if self.exact:
            if vocab > LARGEST_EXACT:
                raise ConfigError(
                    f"exact bigram-logits need {vocab:,} x {vocab:,} weights; the limit is a "
                    f"vocabulary of {LARGEST_EXACT:,}. Use a rank"
                )
            return ExactBigramLogits(shape)
        if self.rank > vocab:
            raise ConfigError(f"bigram-logits rank {self.rank} is greater than vocabulary {vocab}")
        return BigramLogits(shape, self.rank)


class BigramLogits(AddOn):
    """z += A[prev] B^T."""

    def __init__(self, shape: HeadShape, rank: int) -> None:
        super().__init__()
        self.previous = table(shape.vocab_size, rank, COLUMN_STD)
        self.next = table(shape.vocab_size, rank, 0.0)

    def embed(self, tokens: Tensor, prev: Tensor) -> None:
        return None

    def extra(self, prev: Tensor) -> Extra:
        return Extra(features=F.embedding(prev, self.previous), matrix=self.next)

    def stored(self) -> Iterator[Stored]:
        yield Stored("previous", self.previous, "table")
        yield Stored("next", self.next, "table")

    def param_groups(self) -> Iterator[ParamGroup]:
        yield ParamGroup("tied", {"previous": self.previous})
        yield ParamGroup("output", {"next": self.next})


class ExactBigramLogits(AddOn):
    """z += T[prev]."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.table = table(shape.vocab_size, shape.vocab_size, 0.0)

    def embed(self, tokens: Tensor, prev: Tensor) -> None:
        return None

    def extra(self, prev: Tensor) -> Extra:
        return Extra(bigrams=self.table)

    def stored(self) -> Iterator[Stored]:
        yield Stored("table", self.table, "table")

    def param_groups(self) -> Iterator[ParamGroup]:
        yield ParamGroup("output", {"table": self.table})
