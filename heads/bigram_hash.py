"""`bigram-hash`: an add-on for the input, a table of hashed token pairs.

x = embed(t) + scale * T[bucket(prev, t)] P, before the trunk's input norm. Exactly the
definition of openai/parameter-golf PR #162 but for three things: the table is zero and P is
orthogonal at every size (the original leaves both at zero for narrow tables, a point from which
no gradient leads away), a BOS never sees the document before it, and the first token of a
window, whose predecessor is unknown, is hashed as if it followed a BOS. The classifier is the
head's own. The bucket function is the tokenizer's if it carries one (its few bytes are in the
asset), and else the published one for `buckets` buckets, which costs nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokgolf.errors import ConfigError
from tokgolf.hashing import BigramBuckets, splitmix64
from tokgolf.heads.base import (
    AddOn,
    AddOnConfig,
    Extra,
    HeadShape,
    ParamGroup,
    Stored,
    check_range,
    orthogonal,
    table,
)

MAX_DIM = 4096

# The hash that chooses a pair's signs: other multipliers than the buckets', or two pairs that
# share a bucket would often share the signs too.
SIGNS = BigramBuckets(count=257, multipliers=(40503, 30011))


@dataclass(frozen=True, kw_only=True)
class BigramHashConfig(AddOnConfig):
    """Options: the table's size, and whether a second hash gives each pair its own signs.

    With `signs` a row is multiplied by one of 256 fixed vectors of +1 and -1, so that pairs that
    share a bucket can be told apart: the hashing trick of Weinberger et al. 2009. Zero bytes.
    """

    name: ClassVar[str] = "bigram-hash"

    buckets: int | None = None  # None: as many as the tokenizer's, or 4096
    dim: int = 32
    signs: bool = False

    def __post_init__(self) -> None:
        if self.buckets is not None and self.buckets < 2:
            raise ConfigError(f"bigram-hash needs buckets >= 2, got {self.buckets}")
        check_range(self, 1, MAX_DIM, "dim")

    def function(self, shape: HeadShape) -> BigramBuckets:
        """The bucket function. Raises `ConfigError` if the tokenizer's has another count."""
        if shape.bigram is None:
            return BigramBuckets(count=self.buckets or 4096)
        if self.buckets not in (None, shape.bigram.count):
            raise ConfigError(
                f"bigram-hash has {self.buckets} buckets, but the tokenizer's bucket function has "
                f"{shape.bigram.count}; leave its buckets out"
            )
        return shape.bigram

    def num_params(self, shape: HeadShape) -> int:
        return self.function(shape).count * self.dim + self.dim * shape.d_model + 1

    def flops(self, shape: HeadShape) -> int:
        return 2 * self.dim * shape.d_model

    def build(self, shape: HeadShape, counts: Tensor | None) -> AddOn:
        return BigramHash(shape, self)


class BigramHash(AddOn):
    """See the module's text."""

    signs: Tensor | None

    def __init__(self, shape: HeadShape, config: BigramHashConfig) -> None:
        super().__init__()
        self.bos_id = shape.bos_id
        self.buckets = config.function(shape)
        self.table = table(self.buckets.count, config.dim, 0.0)
        self.projection = orthogonal(config.dim, shape.d_model)
        self.scale = nn.Parameter(torch.tensor([0.05]))
        signs = sign_vectors(SIGNS.count, config.dim) if config.signs else None
        self.register_buffer("signs", signs, persistent=False)

    def embed(self, tokens: Tensor, prev: Tensor) -> Tensor:
        start = tokens == self.bos_id
        prev = torch.where(start, self.bos_id, prev)
        bucket = torch.where(start, self.buckets.count - 1, self.buckets.bucket(prev, tokens))
        pairs = F.embedding(bucket, self.table)
        if self.signs is not None:
            pairs = pairs * self.signs[SIGNS.bucket(prev, tokens)].to(pairs.dtype)
        return self.scale * (pairs @ self.projection)

    def extra(self, prev: Tensor) -> Extra:
        return Extra()

    def stored(self) -> Iterator[Stored]:
        yield Stored("table", self.table, "table")
        yield Stored("projection", self.projection, "table")
        yield Stored("scale", self.scale, "vector")

    def param_groups(self) -> Iterator[ParamGroup]:
        yield ParamGroup("tied", {"table": self.table})
        yield ParamGroup("matrix", {"projection": self.projection})
        yield ParamGroup("vector", {"scale": self.scale})


def sign_vectors(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Vectors of +1 and -1 out of SplitMix64's bits, the same everywhere.  # (rows, columns)"""
    words = -(-columns // 64)
    bits = [
        splitmix64(seed, row * words + column // 64) >> (column % 64) & 1
        for row in range(rows)
        for column in range(columns)
    ]
    return (2.0 * torch.tensor(bits) - 1.0).view(rows, columns)
