"""`grouped`: p(t) = p(group) p(t | group), the groups made of the tokens' leading parts.

Unlike one softmax it decides first how a token begins and then how it goes on, after the idea of
Vocabulary Compression (Vennam et al. 2024, arXiv 2411.06371), whose groups are BPE's. Here the
tokens stand in the order of their bytes, where each follows the tokens that it begins with, and the
order is cut into groups, between tokens that have least in common. So the groups follow from
the tokenizer alone and cost no byte. The token table is shared with the input.

    ln p(t) = ln softmax(cap(h C^T) + ln n)[group(t)] + ln softmax over group(t) of cap(h E^T)[t]

with n the groups' sizes, so that the head starts at 1/V for every token.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from os.path import commonprefix
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tokgolf.errors import ConfigError
from tokgolf.heads.base import (
    Head,
    HeadConfig,
    HeadShape,
    ParamGroup,
    Stored,
    StructuredHead,
    check_not_negative,
    stage,
    table,
)
from tokgolf.heads.tied import TABLE_STD


@dataclass(frozen=True, kw_only=True)
class GroupedConfig(HeadConfig):
    """Options of the grouped head: the number of groups; 0 means about the root of V."""

    name: ClassVar[str] = "grouped"

    groups: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "groups")

    def _groups(self, shape: HeadShape) -> int:
        if self.groups > shape.vocab_size:
            raise ConfigError(
                f"head groups {self.groups} is greater than the vocabulary {shape.vocab_size}; "
                f"use at most {shape.vocab_size}"
            )
        return self.groups or math.isqrt(shape.vocab_size)

    def _num_params(self, shape: HeadShape) -> int:
        return (shape.vocab_size + self._groups(shape)) * shape.d_model

    def _flops(self, shape: HeadShape) -> int:
        groups = self._groups(shape)
        return 2 * shape.d_model * groups * (1 + width_of(shape.vocab_size, groups))

    def _build(self, shape: HeadShape, counts: Tensor | None) -> Head:
        groups = self._groups(shape)
        if shape.token_bytes is None:
            raise ConfigError("the grouped head is made from the tokens' bytes, and has none")
        return GroupedHead(shape, self.softcap, groups_of(shape.token_bytes, groups))


def slack_of(vocab_size: int, groups: int) -> int:
    """How far a cut may lie from where equal groups have it."""
    return vocab_size // (8 * groups)


def width_of(vocab_size: int, groups: int) -> int:
    """No group is larger than this."""
    return -(-vocab_size // groups) + 2 * slack_of(vocab_size, groups)


def groups_of(token_bytes: tuple[bytes, ...], groups: int) -> list[list[int]]:
    """The tokens of each group; the groups' sizes differ from their mean by a quarter at most.

    a, b, ab, ba, abc, bc; groups=2 -> a ab abc | b ba bc
    """
    vocab = len(token_bytes)
    order = sorted(range(vocab), key=lambda token: (token_bytes[token], token))
    slack = slack_of(vocab, groups)
    cuts = [0]
    for even in (group * vocab // groups for group in range(1, groups)):
        cuts.append(
            min(
                range(even - slack, even + slack + 1),
                key=lambda at: (
                    len(commonprefix([token_bytes[order[at - 1]], token_bytes[order[at]]])),
                    abs(at - even),
                ),
            )
        )
    return [order[a:b] for a, b in zip(cuts, [*cuts[1:], vocab], strict=True)]


class GroupedHead(StructuredHead):
    """x = E[t]; ln p as in the module's text. Each group is a row of `width` places."""

    places: Tensor  # (groups * width,): the token there; a place left over repeats a token
    place: Tensor  # (vocab,): where each token is
    sizes: Tensor  # (groups,)

    def __init__(self, shape: HeadShape, softcap: float, groups: list[list[int]]) -> None:
        super().__init__(shape, softcap)
        self.table = table(shape.vocab_size, shape.d_model, TABLE_STD)
        self.groups = table(len(groups), shape.d_model, 0.0)
        width = width_of(shape.vocab_size, len(groups))
        places = [tokens + tokens[:1] * (width - len(tokens)) for tokens in groups]
        place = torch.empty(shape.vocab_size, dtype=torch.int64)
        for group, tokens in enumerate(groups):
            place[tokens] = torch.arange(len(tokens)) + group * width
        sizes = torch.tensor([len(tokens) for tokens in groups])
        self.register_buffer("places", torch.tensor(places).flatten(), persistent=False)
        self.register_buffer("place", place, persistent=False)
        self.register_buffer("sizes", sizes, persistent=False)

    def _embed(self, tokens: Tensor, prev: Tensor) -> Tensor:
        return F.embedding(tokens, self.table)

    def own_log_probs(self, hidden: Tensor, prev: Tensor) -> Tensor:
        """As `StructuredHead.own_log_probs`."""
        n, groups = len(hidden), len(self.sizes)
        z = stage(hidden, F.embedding(self.places, self.table), self.softcap)
        z = z.view(n, groups, -1)  # (n, groups, width)
        empty = torch.arange(z.size(2), device=z.device) >= self.sizes[:, None]
        within = z.masked_fill(empty, -math.inf).logsumexp(2)
        group = (stage(hidden, self.groups, self.softcap) + self.sizes.log()).log_softmax(1)
        ln_p = z + (group - within)[:, :, None]
        return ln_p.flatten(1).index_select(1, self.place)

    def _stored(self) -> Iterator[Stored]:
        yield Stored("table", self.table, "table")
        yield Stored("groups", self.groups, "table")

    def _param_groups(self) -> Iterator[ParamGroup]:
        # Groups at the rate of "output" (0.008) learned too slowly: 3.917 nats after 150 steps of
        # the cpu recipe at V = 1024, 3.853 at this one.
        yield ParamGroup("tied", {"table": self.table, "groups": self.groups})
