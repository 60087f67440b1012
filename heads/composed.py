"""`composed`: a token's row is made from its bytes, plus a low-rank delta (W = S U + A B).

Related tokens start related: " the", "The" and "then" share rows of U, which are trained once for
all of them. S is made anew from the tokenizer's token bytes and costs nothing. Its features are
hashed with a sign (Weinberger et al. 2009) over `features` rows, as fastText hashes n-grams of
characters (Bojanowski et al. 2017) and T-FREE its trigrams (Deiseroth et al. 2024), but the head
stays a softmax over the tokens. Composition alone is known to lose at the output, and a low-rank
correction to win much of it back (Jozefowicz et al. 2016).
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokgolf.errors import ConfigError
from tokgolf.hashing import splitmix64
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
from tokgolf.heads.sparse import SparseHead, num_shared_params

WHOLE, LEFT, RIGHT, FOLDED, LENGTH, FIRST, LAST, WITHIN = range(8)
"""Kinds of features: the same bytes are other features in other places."""

LONGEST = 8  # tokens of this many bytes and more are of one length class
ATTEMPTS = 100  # to hash a token to a row that no other token has

Row = tuple[tuple[int, float], ...]
"""The entries of a row of S: column and value, by column."""


@dataclass(frozen=True, kw_only=True)
class ComposedConfig(HeadConfig):
    """Options of the composed head.

    `features` is the number of rows of U; 0 means V/4. `ngrams` is the length of the longest
    n-gram of bytes (0: none). `delta_rank` is the rank of A B.
    """

    name: ClassVar[str] = "composed"

    features: int = 0
    ngrams: int = 2
    delta_rank: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "features", "delta_rank")
        check_range(self, 0, LONGEST, "ngrams")

    def rows(self, shape: HeadShape) -> int:
        """Rows of U."""
        return self.features or max(1, shape.vocab_size // 4)

    def _num_params(self, shape: HeadShape) -> int:
        return num_shared_params(shape, self.rows(shape), self.delta_rank)

    def _flops(self, shape: HeadShape) -> int:
        return 2 * shape.d_model * shape.vocab_size

    def _build(self, shape: HeadShape, counts: Tensor | None) -> Head:
        check_rank(shape, "delta_rank", self.delta_rank)
        if shape.token_bytes is None or len(shape.token_bytes) != shape.vocab_size:
            known = "no" if shape.token_bytes is None else len(shape.token_bytes)
            raise ConfigError(
                f"the composed head is made from token bytes, and there are {known} for a "
                f"vocabulary of {shape.vocab_size}; give the tokenizer's, or use another head"
            )
        return ComposedHead(shape, self, shape.token_bytes)


def parts(token: bytes, ids: Mapping[bytes, int]) -> tuple[bytes, ...]:
    """The two parts a token is made of, as BPE with only the tokens before it would: merged by
    lowest id, until two parts remain. Where no more merges are known, the first and the rest;
    none for a token of less than two bytes.

    token=b" then", ids={b" t": 257, b"he": 261, b" the": 265, b" then": 900} -> (b" the", b"n")
    """
    pieces = [token[at : at + 1] for at in range(len(token))]
    own = ids[token]
    while len(pieces) > 2:
        merged = [a + b for a, b in itertools.pairwise(pieces)]
        at = min(range(len(merged)), key=lambda i: ids.get(merged[i], own))
        if ids.get(merged[at], own) >= own:
            break
        pieces[at : at + 2] = [merged[at]]
    return () if len(pieces) < 2 else (pieces[0], b"".join(pieces[1:]))


def features_of(
    token: bytes, ids: Mapping[bytes, int], ngrams: int
) -> dict[tuple[int, bytes], float]:
    """Kind, bytes and weight of everything that a token has, but for itself as a whole.

    token=b"on", ids={b"on": 263}, ngrams=1 -> {(LEFT, b"o"): 1, (RIGHT, b"n"): 1,
    (FOLDED, b"on"): 1, (LENGTH, b"\\x02"): 1, (FIRST, b"o"): 1, (LAST, b"n"): 1,
    (WITHIN, b"n"): 1 / sqrt(2), (WITHIN, b"o"): 1 / sqrt(2)}
    """
    found = dict.fromkeys(zip((LEFT, RIGHT), parts(token, ids), strict=False), 1.0)
    found[FOLDED, token.strip().lower()] = 1.0
    found[LENGTH, bytes([min(len(token), LONGEST)])] = 1.0
    lengths = range(1, min(ngrams, len(token)) + 1)
    for n in lengths:
        found[FIRST, token[:n]] = found[LAST, token[-n:]] = 1.0
    within = {token[at : at + n] for n in lengths for at in range(len(token) - n + 1)}
    for piece in sorted(within):
        # Together they weigh as much as one of the others, or they would drown these.
        found[WITHIN, piece] = 1 / math.sqrt(len(within))
    return found


def hash_of(kind: int, data: bytes, attempt: int = 0) -> int:
    """64 bits from a feature, the same everywhere."""
    value = splitmix64(kind, attempt)
    for byte in data:
        value = splitmix64(value, byte)
    return value


def signed_row(hashes: Iterable[tuple[int, float]], rows: int) -> Row:
    """Columns and values of a row of S, of length 1, from hashes and weights of features.

    hashes=[(6, 3.0), (1, 4.0)], rows=8 -> ((0, 0.8), (3, -0.6))
    """
    sums: dict[int, float] = defaultdict(float)
    for value, weight in hashes:
        sums[(value >> 1) % rows] += weight if value & 1 else -weight
    # `fsum` and `sqrt` are exactly rounded, so that S is the same everywhere.
    length = math.sqrt(math.fsum(x * x for x in sums.values())) or 1.0
    row = ((column, round(x / length, 6)) for column, x in sorted(sums.items()))
    return tuple((column, x) for column, x in row if x)


def composition(token_bytes: tuple[bytes, ...], rows: int, ngrams: int) -> list[Row]:
    """The rows of S, all different.

    The feature of the token as a whole is hashed again where a row would be another token's or
    empty; tokens of the same bytes need that. Raises `ConfigError` if it does not help.
    """
    ids: dict[bytes, int] = {}
    for token, data in enumerate(token_bytes):
        ids.setdefault(data, token)
    found: dict[Row, None] = {}  # a set in the order of insertion
    for token, data in enumerate(token_bytes):
        features = features_of(data, ids, ngrams).items()
        others = [(hash_of(kind, piece), weight) for (kind, piece), weight in features]
        for attempt in range(ATTEMPTS):
            row = signed_row([(hash_of(WHOLE, data, attempt), 1.0), *others], rows)
            if row and row not in found:
                break
        else:
            raise ConfigError(
                f"head features {rows} cannot tell token {token} from others in a vocabulary of "
                f"{len(token_bytes)}; use more features"
            )
        found[row] = None
    return list(found)


class ComposedHead(SparseHead):
    """W = S U + A B, rows of S of length 1."""

    def __init__(
        self, shape: HeadShape, config: ComposedConfig, token_bytes: tuple[bytes, ...]
    ) -> None:
        rows = config.rows(shape)
        sparse = composition(token_bytes, rows, config.ngrams)
        entries = max(map(len, sparse))
        # Padding has the value 0, and columns that take turns: no row of U gets all of it.
        columns = (torch.arange(len(sparse)) % rows)[:, None].repeat(1, entries)
        values = torch.zeros(len(sparse), entries)
        for token, row in enumerate(sparse):
            columns[token, : len(row)] = torch.tensor([column for column, _ in row])
            values[token, : len(row)] = torch.tensor([value for _, value in row])
        super().__init__(shape, config.softcap, rows, config.delta_rank, columns, values)

    def entries(self) -> tuple[Tensor, Tensor]:
        return self.columns, self.values

    def _stored(self) -> Iterator[Stored]:
        yield from self._shared_stored()

    def _param_groups(self) -> Iterator[ParamGroup]:
        yield from self._shared_param_groups()
