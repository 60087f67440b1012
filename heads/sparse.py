"""What `product`, `hashed` and `composed` share: rows that are sums of few rows, W = S C + A B.

S (vocab, rows) is sparse and not stored: it is made from ids, from a seed or from the tokenizer,
and the three differ in it alone. C is the codebook. W serves both ends, x = W[t] and z = h W^T.
The low-rank residual A B tells apart what S makes too alike; without it the rank of W is at most
the number of rows of C. Rows of S have length 1, so that W starts on the scale of a tied table.

But a row of C that many tokens share starts smaller. At the start a hidden state is the normalised
row of the current token, so tokens with a row in common look likelier after each other: a row for
a quarter of the vocabulary at full size, at d_model 512, makes the first loss of `product` up to
6 % less than ln V, for which nothing has been learned. Its size is divided by the square root of
how much of S's squared length is on it, which makes it as large over all its tokens as one row of
a tied table.
"""

from abc import abstractmethod
from collections.abc import Iterator
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from tokgolf.hashing import splitmix64
from tokgolf.heads.base import (
    Generates,
    HeadShape,
    LinearHead,
    ParamGroup,
    Stored,
    orthogonal,
    table,
)
from tokgolf.heads.tied import TABLE_STD

MAX_TERMS = 64  # of a row's sum: more than any vocabulary needs, and no forged file takes minutes


class SparseHead(LinearHead, Generates):
    """Both ends from one generated matrix; a derived class gives S.

    `columns` and `values` are S as `entries` gives it at the start, tokens in any order.
    """

    columns: Tensor
    values: Tensor

    def __init__(
        self,
        shape: HeadShape,
        softcap: float,
        rows: int,
        rank: int,
        columns: Tensor,
        values: Tensor,
    ) -> None:
        super().__init__(shape, softcap)
        self.register_buffer("columns", columns, persistent=False)
        self.register_buffer("values", values, persistent=False)
        self.codebook = table(rows, shape.d_model, TABLE_STD)
        shared = torch.zeros(rows).index_add_(0, columns.flatten(), values.square().flatten())
        with torch.no_grad():
            self.codebook.mul_(shared.clamp(min=1.0).rsqrt()[:, None])
        # A is zero and B is not: the head starts without a residual, and both get a gradient.
        self.residual_a = table(shape.vocab_size, rank, 0.0) if rank else None
        self.residual_b = orthogonal(rank, shape.d_model) if rank else None

    @abstractmethod
    def entries(self) -> tuple[Tensor, Tensor]:
        """S: the columns of each row's entries, and their values.

        int64 (vocab, entries), float (vocab, entries)
        """

    @final
    def matrix(self) -> Tensor:
        columns, values = self.entries()
        # One kernel, which never holds (vocab, entries, d_model).
        rows = F.embedding_bag(columns, self.codebook, mode="sum", per_sample_weights=values)
        if self.residual_a is None or self.residual_b is None:
            return rows
        return rows + self.residual_a @ self.residual_b

    @final
    def _embed(self, tokens: Tensor, prev: Tensor) -> Tensor:
        # By way of all of W: less work than a sum for each position, when a batch has more
        # positions than the vocabulary has tokens.
        return F.embedding(tokens, self.matrix())

    @final
    def features(self, hidden: Tensor, prev: Tensor) -> Tensor:
        return hidden

    @final
    def bias(self) -> Tensor | None:
        return None

    def _shared_stored(self) -> Iterator[Stored]:
        yield Stored("codebook", self.codebook, "table")
        if self.residual_a is not None and self.residual_b is not None:
            yield Stored("residual_a", self.residual_a, "table")
            yield Stored("residual_b", self.residual_b, "table")

    def _shared_param_groups(self) -> Iterator[ParamGroup]:
        yield ParamGroup("tied", {"codebook": self.codebook})
        if self.residual_a is not None and self.residual_b is not None:
            yield ParamGroup("tied", {"residual_a": self.residual_a})
            yield ParamGroup("matrix", {"residual_b": self.residual_b})


def num_shared_params(shape: HeadShape, rows: int, rank: int) -> int:
    """Weights of a codebook of `rows` and of a residual of `rank`."""
    return rows * shape.d_model + rank * (shape.vocab_size + shape.d_model)


def distinct_draws(seed: int, count: int, length: int, below: int) -> Tensor:
    """`count` different tuples of `length` integers below `below`, drawn from `seed`.

    A tuple that was drawn before is drawn again, so the tokens of a vocabulary never share all
    their codes. There must be enough tuples: below ** length >= count.

    seed=0, count=3, length=2, below=2 -> [[1, 0], [1, 1], [0, 0]]
    """
    drawn: dict[tuple[int, ...], None] = {}  # a set in the order of insertion
    at = 0
    while len(drawn) < count:
        drawn[tuple(splitmix64(seed, at + j) % below for j in range(length))] = None
        at += length
    return torch.tensor(list(drawn), dtype=torch.int64)  # (count, length)
