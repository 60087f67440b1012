"""`bigram-hash`: any other head, plus an input-side table of hashed token pairs.

x = base.embed(t) + scale * T[bucket(prev, t)] P, before the trunk's input norm. Exactly the
definition of openai/parameter-golf PR #162 but for three things: the table is zero and P is
orthogonal at every size (the original leaves both at zero for narrow tables, a point from which
no gradient leads away), a BOS never sees the document before it, and the first token of a
window, whose predecessor is unknown, is hashed as if it followed a BOS. The classifier is the
base head's. The bucket function is the tokenizer's if it carries one (its few bytes are in the
asset), and else the published one for `buckets` buckets, which costs nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokgolf.errors import ConfigError
from tokgolf.hashing import BigramBuckets
from tokgolf.heads.base import Head, HeadConfig, HeadShape, ParamGroup, Stored, orthogonal, table


@dataclass(frozen=True, kw_only=True)
class BigramHashConfig(HeadConfig):
    """Options: table size, and the head that is extended (`base.name`, `base.rank`, ...)."""

    name: ClassVar[str] = "bigram-hash"

    buckets: int | None = None  # None: as many as the tokenizer's, or 4096
    dim: int = 32
    base: dict[str, Any] = field(default_factory=lambda: {"name": "tied"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.buckets is not None and self.buckets < 2) or self.dim < 1:
            raise ConfigError(
                f"bigram-hash needs buckets >= 2 and dim >= 1, got {self.buckets} and {self.dim}"
            )
        if self.base.get("name") == self.name:
            raise ConfigError("bigram-hash cannot be its own base; choose another base.name")
        if "softcap" in self.base:
            raise ConfigError("bigram-hash has one softcap for both; set head.softcap, not base's")
        self.base_config()

    def base_config(self) -> HeadConfig:
        """The extended head's own options; the softcap is this head's."""
        # The registry imports this module, so it can only be reached late.
        from tokgolf.heads import head_config

        return head_config({**self.base, "softcap": self.softcap}, "head.base")

    def function(self, shape: HeadShape) -> BigramBuckets:
        """The bucket function. Raises `ConfigError` if the tokenizer's has another count."""
        if shape.bigram is None:
            return BigramBuckets(count=self.buckets or 4096)
        if self.buckets not in (None, shape.bigram.count):
            raise ConfigError(
                f"bigram-hash has {self.buckets} buckets, but the tokenizer's bucket function has "
                f"{shape.bigram.count}; leave head.buckets out"
            )
        return shape.bigram

    def num_params(self, shape: HeadShape) -> int:
        own = self.function(shape).count * self.dim + self.dim * shape.d_model + 1
        return own + self.base_config().num_params(shape)

    def build(self, shape: HeadShape, counts: Tensor | None = None) -> Head:
        return BigramHashHead(shape, self, self.base_config().build(shape, counts))


class BigramHashHead(Head):
    """See the module's text; `base` is the extended head."""

    def __init__(self, shape: HeadShape, config: BigramHashConfig, base: Head) -> None:
        super().__init__(shape, config.softcap)
        self.base = base
        self.buckets = config.function(shape)
        self.table = table(self.buckets.count, config.dim, 0.0)
        self.projection = orthogonal(config.dim, shape.d_model)
        self.scale = nn.Parameter(torch.tensor([0.05]))

    def embed(self, tokens: Tensor, prev: Tensor) -> Tensor:
        bucket = self.buckets.bucket(prev, tokens)
        bucket = torch.where(tokens == self.shape.bos_id, self.buckets.count - 1, bucket)
        pairs = F.embedding(bucket, self.table) @ self.projection
        return self.base.embed(tokens, prev) + self.scale * pairs

    def features(self, hidden: Tensor, prev: Tensor) -> Tensor:
        return self.base.features(hidden, prev)

    def matrix(self) -> Tensor:
        return self.base.matrix()

    def bias(self) -> Tensor | None:
        return self.base.bias()

    def stored(self) -> Iterator[Stored]:
        for name, tensor, kind in self.base.stored():
            yield Stored(f"base.{name}", tensor, kind)
        yield Stored("table", self.table, "table")
        yield Stored("projection", self.projection, "matrix")
        yield Stored("scale", self.scale, "vector")

    def param_groups(self) -> Iterator[ParamGroup]:
        for role, parameters in self.base.param_groups():
            yield ParamGroup(role, {f"base.{name}": p for name, p in parameters.items()})
        yield ParamGroup("tied", {"table": self.table})
        yield ParamGroup("matrix", {"projection": self.projection})
        yield ParamGroup("vector", {"scale": self.scale})
