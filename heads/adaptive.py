"""`adaptive`: rare tokens get narrow rows (Grave et al. 2016, arXiv 1609.04309), at both ends.

The tokens are cut into clusters by their frequency in training. Cluster 0 has rows of d_model
weights; cluster c has rows of d_model / divisor^c and a projection P_c to d_model. The first
softmax is over cluster 0 and one slot for each other cluster, within which another decides:

    ln p(t) = ln softmax(cap(h [T_0; S]^T) + ln n)[t or slot c] + ln softmax(cap(h P_c^T T_c^T))[t]

with n = 1 for a token and the cluster's size for a slot, so that the head starts at 1/V for every
token. The same tables and projections are the input, x = T_c[t] P_c (Baevski & Auli 2018, arXiv
1809.10853). Which token is in which cluster is data: stored, a cluster number a token.
Unlike PyTorch's AdaptiveLogSoftmaxWithLoss it needs no sorted vocabulary, and is tied.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokgolf.errors import ConfigError
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

MAX_CUTS, MAX_DIVISOR = 16, 4096


@dataclass(frozen=True, kw_only=True)
class AdaptiveConfig(HeadConfig):
    """Options of the adaptive head.

    `cuts` are the ranks at which the next cluster begins, as fractions of V (below 1) or as numbers
    of tokens; without any the head is the tied one. Cluster c is divisor^c times narrower.
    """

    name: ClassVar[str] = "adaptive"

    cuts: list[float] = field(default_factory=lambda: [0.125, 0.5])
    divisor: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 1, MAX_DIVISOR, "divisor")
        if len(self.cuts) > MAX_CUTS:
            raise ConfigError(f"head cuts has {len(self.cuts):,} entries; use at most {MAX_CUTS}")
        for cut in self.cuts:
            if type(cut) not in (int, float) or not 0 < cut < math.inf or cut >= 1 and cut % 1:
                raise ConfigError(
                    f"head cuts has {cut!r}; give a fraction of the vocabulary below 1, or a "
                    "whole number of tokens"
                )

    def clusters(self, shape: HeadShape) -> list[tuple[int, int]]:
        """Rows and width of each cluster; raises `ConfigError` where one would have none."""
        vocab = shape.vocab_size
        cuts = [round(cut * vocab) if cut < 1 else int(cut) for cut in self.cuts]
        ends = [0, *cuts, vocab]
        if any(a >= b for a, b in pairwise(ends)):
            raise ConfigError(
                f"head cuts {self.cuts} are at tokens {cuts} of {vocab}; they must rise, "
                f"from 1 to {vocab - 1}"
            )
        widths = [shape.d_model // self.divisor**c for c in range(len(ends) - 1)]
        if not widths[-1]:
            raise ConfigError(
                f"head divisor {self.divisor} leaves cluster {len(cuts)} no column of d_model "
                f"{shape.d_model}; use a smaller divisor or fewer cuts"
            )
        return [(b - a, width) for (a, b), width in zip(pairwise(ends), widths, strict=True)]

    def _num_params(self, shape: HeadShape) -> int:
        (words, width), *tails = self.clusters(shape)
        return (words + len(tails)) * width + sum((rows + width) * k for rows, k in tails)

    def _flops(self, shape: HeadShape) -> int:
        (words, width), *tails = self.clusters(shape)
        # The projections serve both ends.
        both = sum((rows + 2 * width) * k for rows, k in tails)
        return 2 * ((words + len(tails)) * width + both)

    def _build(self, shape: HeadShape, counts: Tensor | None) -> Head:
        clusters = self.clusters(shape)
        codes = torch.zeros(shape.vocab_size, dtype=torch.int64)
        if counts is not None:
            sizes = torch.tensor([rows for rows, _ in clusters])
            by_rank = torch.arange(len(clusters)).repeat_interleave(sizes)
            codes[torch.argsort(counts, descending=True, stable=True).cpu()] = by_rank
        return AdaptiveHead(shape, self.softcap, clusters, codes)


class AdaptiveHead(StructuredHead):
    """Both ends as in the module's text."""

    codes: Tensor  # (vocab,): each token's cluster
    sizes: Tensor  # (clusters - 1,)

    def __init__(
        self, shape: HeadShape, softcap: float, clusters: list[tuple[int, int]], codes: Tensor
    ) -> None:
        super().__init__(shape, softcap)
        width = shape.d_model
        # T_c P_c then has entries of the same size as a tied table's.
        self.tables = nn.ParameterList(
            table(rows, k, TABLE_STD * math.sqrt(width / k)) for rows, k in clusters
        )
        self.projections = nn.ParameterList(orthogonal(k, width) for _, k in clusters[1:])
        self.slots = table(len(clusters) - 1, width, 0.0) if clusters[1:] else None
        sizes = torch.tensor([float(rows) for rows, _ in clusters[1:]])
        self.register_buffer("sizes", sizes, persistent=False)
        self.register_buffer("codes", codes, persistent=self.slots is not None)

    def places(self) -> Tensor:
        """Each token's row in the tables of all clusters, one after the other.  # (vocab,)

        The tokens of a cluster have its rows in the order of their ids. The clusters' sizes are
        the config's, so whatever the codes are, this is a permutation, and p sums to one.
        """
        return self.codes.argsort(stable=True).argsort()

    def _embed(self, tokens: Tensor, prev: Tensor) -> Tensor:
        first, *tails = self.tables
        rows = [first, *(t @ p for t, p in zip(tails, self.projections, strict=True))]
        return F.embedding(self.places()[tokens], torch.cat([row.to(first.dtype) for row in rows]))

    def own_log_probs(self, hidden: Tensor, prev: Tensor) -> Tensor:
        """As `StructuredHead.own_log_probs`."""
        first, *tails = self.tables
        words = len(first)
        if self.slots is None:
            return stage(hidden, first, self.softcap).log_softmax(1)[:, self.places()]
        z = stage(hidden, torch.cat([first, self.slots]), self.softcap)
        z = (z + F.pad(self.sizes.log(), (words, 0))).log_softmax(1)
        parts = [z[:, :words]]
        for c, (rows, projection) in enumerate(zip(tails, self.projections, strict=True)):
            x = F.linear(hidden, projection.to(hidden.dtype))
            tail = stage(x, rows, self.softcap).log_softmax(1)
            parts.append(tail + z[:, words + c, None])
        return torch.cat(parts, 1).index_select(1, self.places())  # (n, vocab)

    def _stored(self) -> Iterator[Stored]:
        for _, named in self._param_groups():
            for name, parameter in named.items():
                yield Stored(name, parameter, "table")
        if self.slots is not None:
            yield Stored("codes", self.codes, "codes")

    def _param_groups(self) -> Iterator[ParamGroup]:
        slots = {} if self.slots is None else {"slots": self.slots}
        tables = {f"tables.{c}": rows for c, rows in enumerate(self.tables)}
        yield ParamGroup("tied", tables | slots)
        yield ParamGroup("matrix", {f"projections.{c}": p for c, p in enumerate(self.projections)})
