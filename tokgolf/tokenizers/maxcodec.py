"""Merge tables as a set of tokens and a rough order; `maxasset.py` makes them.

Merging needs the token strings and their order only, for which pair makes a string follows from
them. The set is a third of an exact table, and exact ranks say more than segmentation needs. So
here a rank is rounded to its bucket, BUCKETS_PER_OCTAVE to each doubling, within which shorter
tokens go first, then lower bytes; and a list of repairs ("this token before that one", both of
a bucket) keeps the words that the maker looked at as they were.

The code is the length of the set (a varint), the set as `setcodec.py` packs it, then range
coded: the bucket of each token, from how many are left in each; and, for each token of each
bucket, whether another must go before it, which one, and again until none must.
"""

from heapq import heapify, heappop, heappush

import numpy as np

from tokgolf.errors import TokenizerError
from tokgolf.tokenizers.asset import read_varint
from tokgolf.tokenizers.base import BYTE_TOKENS, MIN_VOCAB_SIZE
from tokgolf.tokenizers.rangecoder import RangeDecoder
from tokgolf.tokenizers.setcodec import unpack_set

BUCKETS_PER_OCTAVE = 4
REPAIR_ODDS = 32, 1  # of no repair against one, before any was seen


def bucket_of(rank: int) -> int:
    """The bucket of a rank: floor(4 log2(1 + rank)), in integers.

    0, 1, 2, 3 -> 0, 4, 6, 8
    """
    return int((1 + rank) ** BUCKETS_PER_OCTAVE).bit_length() - 1


def natural(strings: list[bytes]) -> list[bytes]:
    """Shorter ones first, then lower bytes."""
    return sorted(strings, key=lambda string: (len(string), string))


def unpack_max(code: bytes) -> list[tuple[int, int]]:
    """The merges, as id pairs. Raises `TokenizerError` for a code that is no such table."""
    size, start = read_varint(code, 0)
    strings = natural(unpack_set(code[start : start + size]))
    decoder = RangeDecoder(code[start + size :])
    left = np.bincount([bucket_of(rank) for rank in range(len(strings))])
    groups: list[list[bytes]] = [[] for _ in left]
    for string in strings:
        bucket = decoder.decode(left.cumsum())
        left[bucket] -= 1
        groups[bucket].append(string)
    odds = list(REPAIR_ODDS)
    order: list[bytes] = []
    for group in groups:
        repairs = []
        for place in range(len(group)):
            while decoder.decode(np.cumsum(odds)):
                repairs.append((decoder.decode(np.arange(1, len(group) + 1)), place))
                odds[1] += 1
            odds[0] += 1
        order += arrange(group, repairs)
    decoder.check_end()
    return canonical_merges(order)


def arrange(group: list[bytes], repairs: list[tuple[int, int]]) -> list[bytes]:
    """A group in the order of its places, but for repairs (place that goes first, place).

    group=[b"a", b"b", b"c"], repairs=[(2, 0)] -> [b"b", b"c", b"a"]
    """
    after: dict[int, list[int]] = {}
    waiting = [0] * len(group)
    for first, then in repairs:
        after.setdefault(first, []).append(then)
        waiting[then] += 1
    ready = [place for place, count in enumerate(waiting) if not count]
    heapify(ready)
    result = []
    while ready:
        place = heappop(ready)
        result.append(group[place])
        for then in after.get(place, ()):
            waiting[then] -= 1
            if not waiting[then]:
                heappush(ready, then)
    if len(result) < len(group):
        raise TokenizerError(
            f"repairs leave {len(group) - len(result)} of {len(group)} tokens each waiting for "
            "another; build the tokenizer again"
        )
    return result


def canonical_merges(order: list[bytes]) -> list[tuple[int, int]]:
    """The pair of ids that makes each string: what merging the older ones leaves of it.

    Where that is not two tokens, it is the first split into two that are there already. Raises
    `TokenizerError` if there is none.

    [b"ab", b"abc"] -> [(97, 98), (257, 99)]
    """
    ids = {token: token[0] for token in BYTE_TOKENS[:256]}
    merges: dict[tuple[int, int], int] = {}
    for new, string in enumerate(order, MIN_VOCAB_SIZE):
        parts = list(string)
        while len(parts) > 2:
            found = [
                (merges[pair], place)
                for place, pair in enumerate(zip(parts, parts[1:], strict=False))
                if pair in merges
            ]
            if not found:
                break
            joined, place = min(found)
            parts[place : place + 2] = [joined]
        if len(parts) != 2:
            splits = ((string[:n], string[n:]) for n in range(1, len(string)))
            halves = next((s for s in splits if s[0] in ids and s[1] in ids), None)
            if halves is None:
                raise TokenizerError(
                    f"token {string[:40]!r} is no two of the {len(ids)} tokens before it; build "
                    "the tokenizer again"
                )
            parts = [ids[half] for half in halves]
        merges[parts[0], parts[1]] = ids[string] = new
    return list(merges)
