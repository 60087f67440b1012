"""Canonical pairs: no text hits a forbidden pair, and few allowed ones are never realised."""

import functools
import random
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers_support import NASTY, built, english

from tokgolf.tokenizers import Tokenizer, build_tokenizer, canonical, from_asset
from tokgolf.tokenizers.asset import Extras, wrap
from tokgolf.tokenizers.base import BOS_ID
from tokgolf.tokenizers.bpe import BpeTokenizer
from tokgolf.tokenizers.canonical import successors
from tokgolf.tokenizers.pack import pack_merges, pack_pieces, pack_set
from tokgolf.tokenizers.split import pack_pattern

# As o200k's: more classes of characters, and a slash that counts only after a line break.
CASED = (
    r"regex:[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = ["gpt4", "gpt2", "gpt2+digits2", "gpt4+words", "gpt4+scripts+words", CASED]
LETTERS = "abc"


def allowed(tokenizer: Tokenizer) -> Any:
    """The table as (vocab, vocab) booleans."""
    packed = successors(tokenizer)
    return np.unpackbits(packed, axis=1, count=tokenizer.vocab_size).astype(np.bool_)


@functools.cache
def table_of(kind: str) -> Any:
    """The table of a tokenizer learned from English."""
    return allowed(built(kind))


def pairs(tokenizer: Tokenizer, documents: Sequence[bytes]) -> tuple[Any, Any]:
    """All pairs of neighbours in the documents, joined by BOS."""
    bos = np.array([tokenizer.bos_id])
    parts = [part for ids in tokenizer.encode_batch(documents) for part in (bos, ids)]
    ids = np.concatenate([*parts, bos]).astype(np.int64)
    return ids[:-1], ids[1:]


def check_sound(tokenizer: Tokenizer, documents: Sequence[bytes]) -> None:
    first, second = pairs(tokenizer, documents)
    wrong = ~allowed(tokenizer)[first, second]
    tokens = tokenizer.token_bytes
    found = zip(first[wrong].tolist(), second[wrong].tolist(), strict=True)
    assert [(tokens[a], tokens[b]) for a, b in found] == []


def hostile(tokenizer: Tokenizer) -> list[bytes]:
    """Bytes, characters at which patterns change their mind, and tokens, all at random."""
    rng = random.Random(5)
    characters = "aestrlvS''  /\t\n\r\x0b1½!_é日\u0301\u017f\u2028🎉"
    return [
        *NASTY,
        *(rng.randbytes(rng.randrange(60)) for _ in range(1000)),
        *("".join(rng.choices(characters, k=15)).encode() for _ in range(4000)),
        *(b"".join(rng.choices(tokenizer.token_bytes, k=6)) for _ in range(4000)),
    ]


def bpe(merges: list[tuple[int, int]], pattern: str = "gpt2", transform: str = "none") -> Any:
    extras = Extras(transform=transform)
    return from_asset(wrap("bpe", pack_merges(merges, pattern), extras))


@st.composite
def merge_tables(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Random sound merge tables over three letters; some of their tokens are never made."""
    ids = {ord(c): c.encode() for c in LETTERS}
    merges: list[tuple[int, int]] = []
    for _ in range(draw(st.integers(0, 25))):
        pair = draw(st.sampled_from(sorted(ids))), draw(st.sampled_from(sorted(ids)))
        token = ids[pair[0]] + ids[pair[1]]
        if token not in ids.values() and len(token) <= 16:
            ids[257 + len(merges)] = token
            merges.append(pair)
    return merges


def alone(tokenizer: Tokenizer, ids: list[int]) -> Any:
    """The slow definition: whether the bytes of a and b, alone, are encoded as [a, b]."""
    tokens = tokenizer.token_bytes
    encoded = iter(tokenizer.encode_batch([tokens[a] + tokens[b] for a in ids for b in ids]))
    return np.array([[next(encoded).tolist() == [a, b] for b in ids] for a in ids])


@given(merges=merge_tables())
@settings(max_examples=60, deadline=None)
def test_bpe_is_the_slow_definition_for_any_merge_table(merges: list[tuple[int, int]]) -> None:
    tokenizer = bpe(merges)
    # "a", "b" and "c" occur in no contraction, so between them the pattern never cuts.
    letters = [*map(ord, LETTERS), *range(257, tokenizer.vocab_size)]
    assert (allowed(tokenizer)[np.ix_(letters, letters)] == alone(tokenizer, letters)).all()


@given(words=st.sets(st.text(LETTERS, min_size=2, max_size=5), max_size=25))
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("kind", ["greedy", "shortest"])
def test_order_free_kinds_are_the_slow_definition(kind: str, words: set[str]) -> None:
    words_packed = pack_set({word.encode() for word in words})
    tokenizer = from_asset(wrap(kind, pack_pattern("gpt2") + words_packed))
    letters = [*map(ord, LETTERS), *range(257, tokenizer.vocab_size)]
    assert (allowed(tokenizer)[np.ix_(letters, letters)] == alone(tokenizer, letters)).all()


@given(costs=st.dictionaries(st.text(LETTERS, min_size=1, max_size=4), st.integers(1, 30)))
@settings(max_examples=60, deadline=None)
def test_unigram_forbids_what_something_cheaper_spells(costs: dict[str, int]) -> None:
    table = {piece.encode(): cost for piece, cost in costs.items()} | {b"a": 9, b"b": 9, b"c": 9}
    tokenizer = from_asset(wrap("unigram", pack_pieces(table)))
    tokens = tokenizer.token_bytes
    letters = [*map(ord, LETTERS), *range(257, tokenizer.vocab_size)]
    found = allowed(tokenizer)

    def cost(ids: list[int]) -> int:
        return sum(table[tokens[i]] for i in ids)

    for a in letters:
        for b in letters:
            best = cost(tokenizer.encode(tokens[a] + tokens[b]).tolist())
            assert found[a, b] == (best == cost([a, b]))


@pytest.mark.parametrize("kind", ["byte", "bpe", "unigram", "greedy", "shortest"])
def test_no_text_hits_a_forbidden_pair(kind: str) -> None:
    tokenizer = built(kind)
    check_sound(tokenizer, [*english(), *hostile(tokenizer)])


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kind", ["bpe", "greedy"])
def test_no_text_hits_a_forbidden_pair_with_any_pattern(kind: str, pattern: str) -> None:
    tokenizer = build_tokenizer(kind, english(), 500, pattern=pattern)
    check_sound(tokenizer, [*english(), *hostile(tokenizer)])
    assert canonical._cuts(tokenizer) is not canonical._ANYWHERE


@given(data=st.one_of(st.binary(max_size=80), st.text(max_size=40).map(str.encode)))
@settings(max_examples=200, deadline=None)
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_no_byte_string_hits_a_forbidden_pair(kind: str, data: bytes) -> None:
    first, second = pairs(built(kind), [data])
    assert table_of(kind)[first, second].all()


@pytest.mark.parametrize("transform", ["caps-v1", "caps", "caps-auto"])
def test_a_transform_keeps_it_sound_and_rules_out_capitals(transform: str) -> None:
    plain = built("bpe")
    assert isinstance(plain, BpeTokenizer)
    tokenizer = bpe(plain.merges, "gpt4", transform)
    check_sound(tokenizer, [*english(), *hostile(tokenizer)])
    found = allowed(tokenizer)
    capitals = [i for i, token in enumerate(plain.token_bytes) if token != token.lower()]
    assert len(capitals) > 26
    assert not found[capitals].any()
    assert not found[:, capitals].any()


def test_bits_are_packed_and_none_is_set_past_the_last_id() -> None:
    packed = built("bpe").successors()
    assert packed.dtype == np.uint8
    assert packed.shape == (600, 75)
    packed = successors(bpe([(97, 98)]))
    assert packed.shape == (258, 33)
    assert not (packed[:, 32] & 0b00111111).any()
    found = np.array([[packed[a, b // 8] >> (7 - b % 8) & 1 for b in range(258)] for a in range(3)])
    assert (found == allowed(bpe([(97, 98)]))[:3]).all()


def test_the_table_is_the_same_every_time() -> None:
    assert successors(built("bpe")).tobytes() == successors(built("bpe")).tobytes()


@pytest.mark.parametrize("kind", ["byte", "sentencepiece"])
def test_without_a_rule_everything_is_allowed(kind: str) -> None:
    assert table_of(kind).all()


def test_bos_is_beside_what_starts_and_what_ends_a_text() -> None:
    tokenizer = bpe([(0xC3, 0xA9), (97, 0xC3)], "gpt4")  # "\u00e9" and "a" with half of it
    found = allowed(tokenizer)
    assert found[BOS_ID, [BOS_ID, 97, 257, 258, 0xC3, 0xA9]].all()  # raw bytes also start a text
    assert found[[BOS_ID, 97, 257, 0xC3, 0xA9], BOS_ID].all()
    assert not found[258, BOS_ID]


def test_a_merge_forbids_what_it_joins_before_other_merges_use_it_up() -> None:
    found = allowed(bpe([(97, 98), (98, 99), (97, 97)]))  # ab, bc, aa
    a, b, c, ab, bc, aa = 97, 98, 99, 257, 258, 259
    assert not found[a, b]
    assert found[ab, c]  # "ab" goes first, and leaves no "b" for "bc"
    assert not found[a, bc]
    assert not found[aa, b]  # "ab" goes first again
    assert found[aa, a]  # of "aaa" the left two join
    assert not found[a, aa]
    assert found[bc, ab]


def test_what_bpe_never_makes_of_its_own_bytes_has_no_neighbours() -> None:
    tokenizer = bpe([(97, 98), (98, 99), (97, 258)])  # ab, bc, abc out of a and bc
    assert tokenizer.encode(b"abc").tolist() == [257, 99]
    found = allowed(tokenizer)
    assert not found[259].any()
    assert not found[:, 259].any()
    assert found[257].any()


def test_halves_of_characters_meet_only_their_other_halves_or_raw_bytes() -> None:
    tokenizer = bpe([(0xE2, 0x82), (97, 0xE2), (0x82, 0xAC)])  # of "\u20ac": E2 82 AC
    found = allowed(tokenizer)
    first, with_a, second = 257, 258, 259
    assert found[first, 0xAC]
    assert not found[[first, with_a]][:, [97, 0xC3, 0xE2, BOS_ID]].any()
    assert not found[with_a, 0xAC + 0x20]
    assert found[0xE2, 97]  # E2 alone is no text
    assert not found[97, second]
    assert not found[with_a, second]  # of "a\u20ac", E2 and 82 would have joined first


def test_the_last_bytes_of_a_character_are_followed_as_its_end() -> None:
    tokenizer = bpe([(0x82, 0xAC), (97, 0xE0), (97, 0xF1)])
    last, narrow, wide = 257, 258, 259
    found = allowed(tokenizer)
    check_sound(tokenizer, ["\u20aca".encode(), "\u20ac\xff".encode(), "\u20ac".encode()])
    assert found[last, [97, 0xC3, 0xFF, BOS_ID]].all()
    assert found[0xE2, last]
    assert found[narrow, 0xA0]
    assert not found[narrow, 0x80]  # E0 80 is the start of no character
    assert not found[narrow, last]
    assert found[wide, last]


def test_two_bytes_of_a_character_are_not_raw_side_by_side() -> None:
    found = allowed(bpe([(0xC3, 0xA9)]))
    assert not found[0xC3, 0xA9]  # always "\u00e9"
    assert found[0xC3, [0xA8, 0xC3, 0xE2, 97, BOS_ID]].all()
    assert found[0xE2, 0x82]


def test_letters_are_cut_after_a_contraction_and_nowhere_else() -> None:
    tokenizer = bpe([(115, 97), (98, 97), (101, 97), (118, 101)], "gpt4")  # sa, ba, ea, ve
    s, a, b, ve = 115, 97, 98, 260
    found = allowed(tokenizer)
    assert tokenizer.encode(b"'sa\n'vea").tolist() == [39, s, a, 10, 39, ve, a]
    assert found[s, a]
    assert found[ve, a]
    assert not found[b, a]
    assert not allowed(bpe([(115, 97)], r"regex:\p{L}+|."))[s, a]


@pytest.mark.parametrize("pattern", [r"regex:(?<=b)a|[^a]+|a+", r"regex:a(?=.{5}b)|[^b]+|b"])
def test_a_pattern_that_is_not_described_is_taken_to_cut_anywhere(pattern: str) -> None:
    tokenizer = bpe([(97, 98), (97, 97)], pattern)
    assert canonical._cuts(tokenizer) is canonical._ANYWHERE
    check_sound(tokenizer, hostile(tokenizer))
    check_sound(tokenizer, ["".join(text).encode() for text in product("abx", repeat=8)])


@pytest.mark.parametrize("kind", ["bpe", "greedy", "shortest", "unigram"])
def test_most_allowed_pairs_are_realised(kind: str) -> None:
    """Of 3,000 drawn at random all but one or none were, with some more text around them."""
    tokenizer = built(kind)
    tokens, found = tokenizer.token_bytes, table_of(kind).copy()
    found[BOS_ID] = found[:, BOS_ID] = False
    drawn = random.Random(3).sample(np.argwhere(found).tolist(), 300)
    before = [b"", b"'", b"a", b"1", b"\xff", b"\xe6", b"\xe6\x97", b"\xc3", b"\xf0", b"\xf0\x9f"]
    after = [b"", b"a", b" ", b"\n", b"\xff", b"\x97\xa5", b"\xa5", b"\x9f\x98\x81"]

    def realised(a: int, b: int) -> bool:
        around = [(start, end) for start in before for end in after]
        texts = [start + tokens[a] + tokens[b] + end for start, end in around]
        for (start, _), ids in zip(around, tokenizer.encode_batch(texts), strict=True):
            starts = np.cumsum([0, *(len(tokens[i]) for i in ids)]).tolist()
            if len(start) in starts:
                n = starts.index(len(start))
                if ids[n : n + 2].tolist() == [a, b]:
                    return True
        return False

    assert sum(realised(a, b) for a, b in drawn) >= 297
