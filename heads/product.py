"""`product`: a token is a word of few digits, and its row is the sum of the digits' rows.

W_i = sum_j C_j[code_ij] with a codebook for each of `codebooks` digits, as in product and
additive quantization, but fixed beforehand and not fitted to a table; the softmax is over the
tokens, so it is exact. No two tokens have the same digits. Unlike `hashed`, a digit may mean
something: by "frequency" the most frequent tokens differ in the first digit.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tokgolf.errors import ConfigError
from tokgolf.heads.base import (
    Head,
    HeadConfig,
    HeadShape,
    ParamGroup,
    Stored,
    check_not_negative,
    check_range,
    check_rank,
)
from tokgolf.heads.sparse import (
    MAX_TERMS,
    SparseHead,
    distinct_draws,
    num_shared_params,
)


@dataclass(frozen=True, kw_only=True)
class ProductConfig(HeadConfig):
    """Options of the product head.

    `codes` is the number of rows of each codebook; 0 means V/4, or as many as make all tokens
    different where that is more. `assignment`: "id" takes the digits of the id in base `codes`,
    "frequency" those of the frequency rank (stored, ceil(log2 V) bits a token); both leave out
    digits that would be 0 for every token, and rows beyond the largest last digit. "random"
    draws all digits from `seed`. `residual_rank` adds a low-rank residual at both ends.
    """

    name: ClassVar[str] = "product"

    codebooks: int = 2
    codes: int = 0
    assignment: Literal["id", "frequency", "random"] = "frequency"
    residual_rank: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 1, MAX_TERMS, "codebooks")
        check_not_negative(self, "codes", "residual_rank", "seed")

    def sizes(self, shape: HeadShape) -> list[int]:
        """Rows of each codebook; raises `ConfigError` for too few to tell all tokens apart.

        V=1000: codebooks=2, codes=32 -> [32, 32]; codebooks=3, codes=250 -> [250, 4]
        """
        vocab = shape.vocab_size
        least = smallest_base(vocab, self.codebooks)
        codes = self.codes or max(least, vocab // 4)
        if not least <= codes <= vocab:
            raise ConfigError(
                f"{self.codebooks} codebooks of {codes} codes do not suit a vocabulary of "
                f"{vocab:,}; use from {least} to {vocab} codes"
            )
        if self.assignment == "random":
            return [codes] * self.codebooks
        sizes: list[int] = []
        left = vocab
        while left > 1 or not sizes:
            sizes.append(min(codes, left))
            left = math.ceil(left / codes)
        return sizes

    def _num_params(self, shape: HeadShape) -> int:
        return num_shared_params(shape, sum(self.sizes(shape)), self.residual_rank)

    def _flops(self, shape: HeadShape) -> int:
        return 2 * shape.d_model * shape.vocab_size

    def _build(self, shape: HeadShape, counts: Tensor | None) -> Head:
        check_rank(shape, "residual_rank", self.residual_rank)
        return ProductHead(shape, self, counts)


def smallest_base(vocab_size: int, length: int) -> int:
    """The smallest base in which numbers of `length` digits name every token.

    vocab_size=1000, length=2 -> 32
    """
    base = 1
    while base**length < vocab_size:
        base += 1
    return base


def digits(count: int, sizes: list[int]) -> Tensor:
    """Digits of 0 .. count - 1, the least significant first; the last one is what is left.

    count=5, sizes=[2, 3] -> [[0, 0], [1, 0], [0, 1], [1, 1], [0, 2]]
    """
    left, columns = torch.arange(count), []
    for size in sizes[:-1]:
        columns.append(left % size)
        left = left // size
    return torch.stack([*columns, left], dim=1)  # (count, len(sizes))


class ProductHead(SparseHead):
    """W_i = sum_j C_j[code_ij] / sqrt(codebooks) + (A B)_i."""

    codes: Tensor

    def __init__(self, shape: HeadShape, config: ProductConfig, counts: Tensor | None) -> None:
        vocab, sizes = shape.vocab_size, config.sizes(shape)
        random = config.assignment == "random"
        drawn = distinct_draws(config.seed, vocab, len(sizes), sizes[0]) if random else None
        first = torch.tensor([sum(sizes[:j]) for j in range(len(sizes))])
        columns = (digits(vocab, sizes) if drawn is None else drawn) + first
        values = torch.full((vocab, len(sizes)), 1 / math.sqrt(len(sizes)))
        super().__init__(shape, config.softcap, sum(sizes), config.residual_rank, columns, values)
        self.codes_stored = config.assignment == "frequency"
        if self.codes_stored:
            codes = torch.zeros(vocab, dtype=torch.int64)  # to be loaded, unless there are counts
            if counts is not None:
                order = torch.argsort(counts, descending=True, stable=True).cpu()
                codes[order] = torch.arange(vocab)
            self.register_buffer("codes", codes)

    def entries(self) -> tuple[Tensor, Tensor]:
        # Looked up by rank, so that a damaged rank is an IndexError.
        return self.columns[self.codes] if self.codes_stored else self.columns, self.values

    def _stored(self) -> Iterator[Stored]:
        yield from self._shared_stored()
        if self.codes_stored:
            yield Stored("codes", self.codes, "codes")

    def _param_groups(self) -> Iterator[ParamGroup]:
        yield from self._shared_param_groups()
