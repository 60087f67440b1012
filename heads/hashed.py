"""`hashed`: a token's row is a signed sum of rows that a hash picks (Svenstrup et al. 2017).

W_i = sum_j s_ij C_j[h_j(i)] with `hashes` codebooks of `buckets` rows. Hashes and signs come from
a seed and cost no bytes. Signs make two tokens that share a row differ in it, as in Weinberger
et al. 2009. A token whose picks and signs are all another's would share its probability for
ever: such a token is hashed again, so there is none.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

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
class HashedConfig(HeadConfig):
    """Options of the hashed head.

    `buckets` is the number of rows for each of the hashes; 0 means V/2 for all of them together.
    `weights` trains a factor for each token and hash, V * hashes weights (Svenstrup's
    "importance"). `residual_rank` adds a low-rank residual at both ends.
    """

    name: ClassVar[str] = "hashed"

    hashes: int = 2
    buckets: int = 0
    weights: bool = False
    residual_rank: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 1, MAX_TERMS, "hashes")
        check_not_negative(self, "buckets", "residual_rank", "seed")

    def rows(self, shape: HeadShape) -> int:
        """Buckets of each hash; raises `ConfigError` for too few to tell all tokens apart."""
        buckets = self.buckets or -(-shape.vocab_size // (2 * self.hashes))
        if (2 * buckets) ** self.hashes < shape.vocab_size:
            raise ConfigError(
                f"{self.hashes} signed hashes to {buckets} buckets make "
                f"{(2 * buckets) ** self.hashes:,} rows for a vocabulary of "
                f"{shape.vocab_size:,}; use more of either"
            )
        return buckets

    def _num_params(self, shape: HeadShape) -> int:
        factors = shape.vocab_size * self.hashes if self.weights else 0
        rows = self.hashes * self.rows(shape)
        return num_shared_params(shape, rows, self.residual_rank) + factors

    def _flops(self, shape: HeadShape) -> int:
        return 2 * shape.d_model * shape.vocab_size

    def _build(self, shape: HeadShape, counts: Tensor | None) -> Head:
        check_rank(shape, "residual_rank", self.residual_rank)
        return HashedHead(shape, self)


class HashedHead(SparseHead):
    """W_i = sum_j s_ij a_ij C_j[h_j(i)] / sqrt(hashes) + (A B)_i; a is 1 unless it is trained."""

    def __init__(self, shape: HeadShape, config: HashedConfig) -> None:
        vocab, hashes, buckets = shape.vocab_size, config.hashes, config.rows(shape)
        drawn = distinct_draws(config.seed, vocab, hashes, 2 * buckets)
        columns = drawn // 2 + buckets * torch.arange(hashes)
        values = (1.0 - 2.0 * (drawn % 2)) / math.sqrt(hashes)
        super().__init__(
            shape, config.softcap, hashes * buckets, config.residual_rank, columns, values
        )
        self.weights = nn.Parameter(torch.ones(vocab, hashes)) if config.weights else None

    def entries(self) -> tuple[Tensor, Tensor]:
        values = self.values if self.weights is None else self.values * self.weights
        return self.columns, values

    def _stored(self) -> Iterator[Stored]:
        yield from self._shared_stored()
        if self.weights is not None:
            yield Stored("weights", self.weights, "table")

    def _param_groups(self) -> Iterator[ParamGroup]:
        yield from self._shared_param_groups()
        if self.weights is not None:
            yield ParamGroup("vector", {"weights": self.weights})
