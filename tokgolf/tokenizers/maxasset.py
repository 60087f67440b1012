"""The smallest asset of a BPE tokenizer: its merge order rounded, then repaired on given words.

`maxcodec.py` has the format. The tokens stay the same, but their ids and, in rare text, the
segmentation do not: `MaxResult` says how much changed on the words given.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokgolf.tokenizers.asset import extras_of, varint, wrap
from tokgolf.tokenizers.base import BYTE_TOKENS, MIN_VOCAB_SIZE
from tokgolf.tokenizers.bpe import MAX, BpeTokenizer, byte_names, import_library
from tokgolf.tokenizers.maxcodec import (
    REPAIR_ODDS,
    arrange,
    bucket_of,
    canonical_merges,
    natural,
)
from tokgolf.tokenizers.pack import RangeEncoder, pack_set
from tokgolf.tokenizers.split import pack_pattern

_ROUNDS = 40  # of repairs; five were enough at every size tried

Ranks = dict[tuple[bytes, bytes], int]


@dataclass(frozen=True, kw_only=True)
class MaxResult:
    """The tokenizer with the rounded order, and what that changed on the words given.

    All four count occurrences: the words whose tokens changed, all words, the tokens that the
    changed words had, all tokens before.
    """

    tokenizer: BpeTokenizer
    changed_words: int
    words: int
    changed_tokens: int
    tokens: int
    repairs: int


def to_max(tokenizer: BpeTokenizer, words: Counter[bytes]) -> MaxResult:
    """Round the merge order of `tokenizer`, but keep the segmentation of `words`.

    `words` are pieces as the split pattern cuts them, each with how often it occurs. A word
    that cannot be kept is counted in the result.
    """
    body, merges, repairs = pack_max(tokenizer.merges, tokenizer.pattern, words)
    rounded = BpeTokenizer.from_asset(wrap("bpe", body, extras_of(tokenizer.asset())))
    before, after = _Segmenter(tokenizer.merges), _Segmenter(merges)
    changed_words = changed_tokens = tokens = 0
    for word, count in words.items():
        parts = before.segment(word)
        tokens += len(parts) * count
        if parts != after.segment(word):
            changed_words += count
            changed_tokens += len(parts) * count
    return MaxResult(
        tokenizer=rounded,
        changed_words=changed_words,
        words=words.total(),
        changed_tokens=changed_tokens,
        tokens=tokens,
        repairs=repairs,
    )


def pack_max(
    merges: list[tuple[int, int]], pattern: str, words: Counter[bytes]
) -> tuple[bytes, list[tuple[int, int]], int]:
    """The asset body, the merges it unpacks to (in the new ids), and the number of repairs."""
    strings = _strings(merges)
    order = natural(strings)
    buckets = {string: bucket_of(rank) for rank, string in enumerate(strings)}
    groups: list[list[bytes]] = [[] for _ in range(bucket_of(max(0, len(strings) - 1)) + 1)]
    for string in order:
        groups[buckets[string]].append(string)
    repairs = _find_repairs(merges, groups, buckets, words)
    encoder = RangeEncoder()
    left = np.bincount([buckets[string] for string in strings])
    for string in order:
        encoder.encode(left.cumsum(), buckets[string])
        left[buckets[string]] -= 1
    odds = list(REPAIR_ODDS)
    for group, pairs in zip(groups, repairs, strict=True):
        for place in range(len(group)):
            for first in sorted(first for first, then in pairs if then == place):
                encoder.encode(np.cumsum(odds), 1)
                encoder.encode(np.arange(1, len(group) + 1), first)
                odds[1] += 1
            encoder.encode(np.cumsum(odds), 0)
            odds[0] += 1
    code = pack_set(strings)
    body = bytes([MAX]) + pack_pattern(pattern) + varint(len(code)) + code + encoder.finish()
    return body, _rounded(groups, repairs), sum(map(len, repairs))


def _strings(merges: list[tuple[int, int]]) -> list[bytes]:
    """The string of each merge."""
    tokens = list(BYTE_TOKENS)
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    return tokens[MIN_VOCAB_SIZE:]


def _rounded(
    groups: list[list[bytes]], repairs: list[set[tuple[int, int]]]
) -> list[tuple[int, int]]:
    """The merges in the rounded order."""
    arranged = (arrange(group, sorted(pairs)) for group, pairs in zip(groups, repairs, strict=True))
    return canonical_merges([string for group in arranged for string in group])


def _find_repairs(
    merges: list[tuple[int, int]],
    groups: list[list[bytes]],
    buckets: dict[bytes, int],
    words: Counter[bytes],
) -> list[set[tuple[int, int]]]:
    """For each group the repairs (place that goes first, place) that keep `words`.

    Where a word first goes another way than before, the token that was made there must come
    before the one made now. All repairs agree with the exact order, so none contradict.
    """
    before = _Segmenter(merges)
    places = {string: place for group in groups for place, string in enumerate(group)}
    repairs: list[set[tuple[int, int]]] = [set() for _ in groups]
    suspects = [*buckets, *words]
    for _ in range(_ROUNDS):
        after = _Segmenter(_rounded(groups, repairs))
        changed = [w for w in suspects if w in buckets or before.segment(w) != after.segment(w)]
        found = 0
        for word in changed:
            made, instead = _divergence(word, before.ranks, after.ranks)
            if made and instead and buckets[made] == buckets[instead]:
                group, repair = repairs[buckets[made]], (places[made], places[instead])
                found += repair not in group
                group.add(repair)
        if found == 0 and len(suspects) == len(buckets) + len(words):
            break
        # Words that changed once are looked at until none does, then all of them again.
        suspects = [*changed] if found else [*buckets, *words]
    return repairs


def _divergence(word: bytes, before: Ranks, after: Ranks) -> tuple[bytes, bytes]:
    """The tokens that two merge tables make where they first differ on a word; empty if none."""
    parts = [word[n : n + 1] for n in range(len(word))]
    while True:
        steps = []
        for ranks in (before, after):
            found = [
                (ranks[pair], place)
                for place, pair in enumerate(zip(parts, parts[1:], strict=False))
                if pair in ranks
            ]
            place = min(found)[1] if found else -1
            steps.append((place, parts[place] + parts[place + 1] if found else b""))
        if steps[0] != steps[1] or not steps[0][1]:
            return steps[0][1], steps[1][1]
        place, made = steps[0]
        parts[place : place + 2] = [made]


class _Segmenter:
    """A merge table that cuts whole words, by the library and as ranks of pairs of strings."""

    def __init__(self, merges: list[tuple[int, int]]) -> None:
        tokens = BYTE_TOKENS + _strings(merges)
        self._table = dict(enumerate(byte_names()))
        names = [token.decode("latin-1").translate(self._table) for token in tokens]
        vocabulary = {name: token for token, name in enumerate(names) if name}
        pairs = [(names[left], names[right]) for left, right in merges]
        self._model: Any = import_library().models.BPE(vocabulary, pairs)
        self.ranks = {(tokens[left], tokens[right]): i for i, (left, right) in enumerate(merges)}

    def segment(self, word: bytes) -> list[str]:
        """The tokens of a word, as the library names them."""
        name = word.decode("latin-1").translate(self._table)
        return [token.value for token in self._model.tokenize(name)]
