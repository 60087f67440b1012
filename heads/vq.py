"""`vq`: VQ-Logits, tokens share rows of a small codebook (arXiv 2505.10202), and its repair.

As published, z_i = h . C[code(i)]: exactly normalised, but tokens with the same code have the
same probability for ever, so the loss cannot fall below E[ln n_code] (measured floors: see the
documentation). It is kept as that documented lower anchor. `residual_rank` adds the low-rank
residual (A B)_i and a token bias, which removes the floor: z_i = h . (C[code(i)] + (A B)_i) + b_i.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokgolf.errors import ConfigError
from tokgolf.hashing import splitmix64
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
from tokgolf.heads.tied import TABLE_STD


@dataclass(frozen=True, kw_only=True)
class VQConfig(HeadConfig):
    """Options of the VQ head.

    `codes` 0 means V/4. `assignment` "frequency" gives the most frequent tokens a code of their
    own and deals the rest over `tail_codes` codes (stored, V * ceil(log2 codes) bits);
    "random" deals all tokens over all codes from `seed` (regenerated, zero bytes).
    """

    name: ClassVar[str] = "vq"

    codes: int = 0
    assignment: Literal["frequency", "random"] = "frequency"
    tail_codes: int = 0
    residual_rank: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "codes", "tail_codes", "residual_rank", "seed")

    def codebook_rows(self, shape: HeadShape) -> int:
        """Rows of the codebook; raises `ConfigError` for more codes than tokens."""
        rows = self.codes or max(1, shape.vocab_size // 4)
        if rows > shape.vocab_size:
            raise ConfigError(
                f"head codes {rows} is greater than the vocabulary {shape.vocab_size}; "
                f"use at most {shape.vocab_size}"
            )
        if self.tail_codes > rows:
            raise ConfigError(f"head tail_codes {self.tail_codes} is greater than codes {rows}")
        return rows

    def _num_params(self, shape: HeadShape) -> int:
        own_input = shape.vocab_size * shape.d_model
        residual = self.residual_rank * (shape.vocab_size + shape.d_model)
        bias = shape.vocab_size if self.residual_rank else 0
        return own_input + self.codebook_rows(shape) * shape.d_model + residual + bias

    def _flops(self, shape: HeadShape) -> int:
        return 2 * shape.d_model * shape.vocab_size

    def _build(self, shape: HeadShape, counts: Tensor | None) -> Head:
        rows = self.codebook_rows(shape)
        check_rank(shape, "residual_rank", self.residual_rank)
        if self.assignment == "random":
            codes = random_codes(shape.vocab_size, rows, self.seed)
        elif counts is None:  # to be loaded from a checkpoint or an artifact
            codes = torch.zeros(shape.vocab_size, dtype=torch.int64)
        else:
            codes = frequency_codes(counts, rows, self.tail_codes or max(1, rows // 4))
        return VQHead(shape, self, rows, codes)


def random_codes(vocab_size: int, codes: int, seed: int) -> Tensor:
    """Deal the tokens over the codes in an order drawn from `seed`; sizes differ by at most 1.

    vocab_size=5, codes=2, seed=0 -> [1, 0, 0, 0, 1], the same on every platform
    """
    order = sorted(range(vocab_size), key=lambda token: splitmix64(seed, token))
    result = torch.empty(vocab_size, dtype=torch.int64)
    result[torch.tensor(order)] = torch.arange(vocab_size) % codes
    return result  # (vocab,)


def frequency_codes(counts: Tensor, codes: int, tail_codes: int) -> Tensor:
    """Own codes for the most frequent tokens; the rest dealt over the last `tail_codes` codes.

    counts=[5, 9, 1, 2], codes=3, tail_codes=1 -> [1, 0, 2, 2]
    """
    if not 1 <= tail_codes <= codes:
        raise ConfigError(
            f"head tail_codes is {tail_codes}; it must be between 1 and codes {codes}"
        )
    if counts.numel() == codes:
        tail_codes = codes  # a code for every token: nothing is left to share
    single = codes - tail_codes
    ranks = torch.arange(counts.numel())
    by_rank = torch.where(ranks < single, ranks, single + (ranks - single) % tail_codes)
    result = torch.empty(counts.numel(), dtype=torch.int64)
    result[torch.argsort(counts, descending=True, stable=True).cpu()] = by_rank
    return result  # (vocab,)


class VQHead(LinearHead):
    """x = E[t] from a table of its own; z from the codebook, see the module's text."""

    codes: Tensor

    def __init__(self, shape: HeadShape, config: VQConfig, rows: int, codes: Tensor) -> None:
        super().__init__(shape, config.softcap)
        self.codes_stored = config.assignment == "frequency"
        self.input = table(shape.vocab_size, shape.d_model, TABLE_STD)
        self.codebook = table(rows, shape.d_model, 0.0)
        # A is zero and B is not: the head starts as the published one, and both get a gradient.
        rank = config.residual_rank
        self.residual_a = table(shape.vocab_size, rank, 0.0) if rank else None
        self.residual_b = orthogonal(rank, shape.d_model) if rank else None
        self.token_bias = nn.Parameter(torch.zeros(shape.vocab_size)) if rank else None
        self.register_buffer("codes", codes, persistent=self.codes_stored)

    def _embed(self, tokens: Tensor, prev: Tensor) -> Tensor:
        return F.embedding(tokens, self.input)

    def features(self, hidden: Tensor, prev: Tensor) -> Tensor:
        return hidden

    def matrix(self) -> Tensor:
        rows = F.embedding(self.codes, self.codebook)
        if self.residual_a is None or self.residual_b is None:
            return rows
        return rows + self.residual_a @ self.residual_b

    def bias(self) -> Tensor | None:
        return self.token_bias

    def _stored(self) -> Iterator[Stored]:
        yield Stored("input", self.input, "table")
        yield Stored("codebook", self.codebook, "table")
        if self.codes_stored:
            yield Stored("codes", self.codes, "codes")
        if self.residual_a is not None and self.residual_b is not None:
            yield Stored("residual_a", self.residual_a, "table")
            yield Stored("residual_b", self.residual_b, "table")
        if self.token_bias is not None:
            yield Stored("token_bias", self.token_bias, "vector")

    def _param_groups(self) -> Iterator[ParamGroup]:
        yield ParamGroup("input", {"input": self.input})
        yield ParamGroup("output", {"codebook": self.codebook})
        if self.residual_a is not None and self.residual_b is not None:
            yield ParamGroup("output", {"residual_a": self.residual_a})
            yield ParamGroup("matrix", {"residual_b": self.residual_b})
        if self.token_bias is not None:
            yield ParamGroup("vector", {"token_bias": self.token_bias})
