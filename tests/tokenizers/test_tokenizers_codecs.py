"""The codecs under the assets: round trips of anything, golden bytes, slow twins, hostile codes."""

import math
import random
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers_reference import slow_bpe
from tokenizers_support import NASTY, built, english, forged

from tokgolf.errors import TokenizerError
from tokgolf.tokenizers import from_asset
from tokgolf.tokenizers.asset import Extras, extras_of, varint, wrap
from tokgolf.tokenizers.bpe import BpeTokenizer
from tokgolf.tokenizers.maxasset import pack_max, to_max
from tokgolf.tokenizers.maxcodec import arrange, bucket_of, canonical_merges, natural, unpack_max
from tokgolf.tokenizers.mergecodec import AFTER_ID, AFTER_SYMBOL, ALL, PairModel, unpack_pairs
from tokgolf.tokenizers.pack import RangeEncoder, pack_merges, pack_pairs, pack_set
from tokgolf.tokenizers.rangecoder import RangeDecoder
from tokgolf.tokenizers.setcodec import SQUASH, STRETCH, unpack_set
from tokgolf.tokenizers.split import read_pattern

Pairs = list[tuple[int, int]]

PAIRS_GOLDEN = bytes.fromhex("375f80")
SET_GOLDEN = bytes.fromhex("fe06a17304ffee60ecb6778c80")


# --- the range coder


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 50)), max_size=300))
@settings(max_examples=100, deadline=None)
def test_the_range_coder_gives_symbols_back(steps: list[tuple[int, int]]) -> None:
    counts, encoder = np.ones(10, np.int64), RangeEncoder()
    for symbol, amount in steps:
        encoder.encode(counts.cumsum(), symbol)
        counts[symbol] += amount
    data, counts = encoder.finish(), np.ones(10, np.int64)
    decoder = RangeDecoder(data)
    for symbol, amount in steps:
        assert decoder.decode(counts.cumsum()) == symbol
        counts[symbol] += amount
    decoder.check_end()


def test_the_range_coder_carries_into_bytes_already_out() -> None:
    """Almost-certain last symbols push the low end up to where the sum of two bytes overflows."""
    rng, ends = random.Random(1), np.cumsum([1, 1, 1 << 20])
    for _ in range(300):
        symbols = rng.choices(range(3), weights=(1, 1, 3), k=60)
        encoder = RangeEncoder()
        for symbol in symbols:
            encoder.encode(ends, symbol)
        decoder = RangeDecoder(encoder.finish())
        assert [decoder.decode(ends) for _ in symbols] == symbols


def test_the_range_coder_takes_hardly_more_than_the_entropy() -> None:
    rng, ends = random.Random(2), np.cumsum([1, 5, 90, 4])
    symbols = rng.choices(range(4), weights=(1, 5, 90, 4), k=5000)
    encoder = RangeEncoder()
    for symbol in symbols:
        encoder.encode(ends, symbol)
    ideal = sum(math.log2(100 / (1, 5, 90, 4)[symbol]) for symbol in symbols) / 8
    assert ideal <= len(encoder.finish()) < ideal + 2


def test_a_symbol_without_a_share_is_never_decoded() -> None:
    ends = np.cumsum([0, 3, 0, 2, 0])
    for data in (b"", b"\x80", b"\xff" * 7, bytes(range(8))):
        assert RangeDecoder(data).decode(ends) in (1, 3)


def test_a_code_beyond_the_last_symbol_is_refused() -> None:
    with pytest.raises(TokenizerError, match="impossible code"):
        RangeDecoder(b"\xff" * 8).decode(np.array([1, 2, 3]))


def test_a_code_that_ends_too_early_is_refused() -> None:
    decoder = RangeDecoder(b"ab")
    with pytest.raises(TokenizerError, match="only 2 bytes of code"):
        for _ in range(9):
            decoder.decode(np.arange(1, 257))


# --- merge pairs


@st.composite
def pair_lists(draw: st.DrawFn) -> tuple[Pairs, int]:
    symbols = draw(st.sampled_from([1, 2, 5, 255, 256, 257, 600]))
    pairs: Pairs = []
    for new in range(symbols, symbols + draw(st.integers(0, 60))):
        near = st.integers(0, new - 1) | st.integers(max(0, new - 3), new - 1)
        pair = draw(st.tuples(near, near))
        if pair not in pairs:
            pairs.append(pair)
        else:
            break
    return pairs, symbols


@given(given_pairs=pair_lists())
@settings(max_examples=150, deadline=None)
def test_any_pairs_come_back(given_pairs: tuple[Pairs, int]) -> None:
    pairs, symbols = given_pairs
    assert unpack_pairs(pack_pairs(pairs, symbols), len(pairs), symbols) == pairs


def test_pairs_are_these_bytes() -> None:
    assert pack_pairs([(0, 1), (3, 2), (0, 4), (4, 4)], 3) == PAIRS_GOLDEN
    assert pack_pairs([], 0) == b""


@pytest.mark.parametrize(
    "pairs", [[(0, 3)], [(3, 0)], [(-1, 0)], [(0, 1), (0, 1)], [(0, 1), (4, 0)]]
)
def test_pairs_that_make_no_sense_are_refused(pairs: Pairs) -> None:
    with pytest.raises(TokenizerError, match=f"merge {len(pairs) - 1} of {len(pairs)} joins"):
        pack_pairs(pairs, 3)


def slow_shares(pairs: Pairs, symbols: int, left: int) -> list[float]:
    """The shares of the right ids after `left`, from the counts as the module text says them."""
    count = [6.0] * symbols
    if symbols == 256:
        count = [24.0 if 97 <= s < 123 else 6.0 if 32 <= s < 127 else 1.0 for s in range(symbols)]
    ends = [(symbol, symbol) for symbol in range(symbols)]  # first and last symbol
    for one, other in pairs:
        ends.append((ends[one][0], ends[other][1]))
        count[other] += 24
        count.append(12)
    shares = []
    for right, mass in enumerate(count):
        alike = sum(n for n, (first, _) in zip(count, ends, strict=True) if first == ends[right][0])
        followed = sum(
            AFTER_SYMBOL * (ends[one][1] == ends[left][1]) + AFTER_ID * (one == left)
            for one, other in pairs
            if ends[other][0] == ends[right][0]
        )
        known = (left, right) in pairs
        shares.append(0 if known else mass * (ALL / sum(count) + followed / alike))
    return shares


@given(given_pairs=pair_lists())
@settings(max_examples=40, deadline=None)
def test_the_shares_of_right_ids_agree_with_plain_counting(given_pairs: tuple[Pairs, int]) -> None:
    pairs, symbols = given_pairs
    if symbols > 256:
        return  # there, symbols share classes
    model = PairModel(len(pairs), symbols)
    for left, right in pairs:
        model.update(left, right)
    for left in {0, symbols + len(pairs) - 1}:
        shares = np.diff(model.rights(left), prepend=0)
        expected = np.array(slow_shares(pairs, symbols, left))
        np.testing.assert_allclose(shares / shares.sum(), expected / expected.sum(), rtol=1e-3)


def test_a_learned_table_takes_less_than_plain_adaptive_counts() -> None:
    """The yardstick: two tables where a byte starts at 1, a merge at 3, and each use adds 9."""
    merges = bpe(600).merges
    pairs = [(left - (left > 256), right - (right > 256)) for left, right in merges]
    bits = 0.0
    for side in (0, 1):
        counts = [1] * 256
        for pair in pairs:
            bits -= math.log2(counts[pair[side]] / sum(counts))
            counts[pair[side]] += 9
            counts.append(3)
    assert len(pack_pairs(pairs, 256)) < 0.96 * bits / 8


@given(code=st.binary(max_size=40), symbols=st.sampled_from([0, 1, 3, 256]))
@settings(max_examples=150, deadline=None)
def test_forged_pairs_are_refused_or_sound(code: bytes, symbols: int) -> None:
    for count in (3, 65_279):
        try:
            pairs = unpack_pairs(code, count, symbols)
        except TokenizerError:
            continue
        assert len(set(pairs)) == count
        assert all(max(pair) < symbols + i for i, pair in enumerate(pairs))


# --- sets


STRINGS = st.binary(min_size=2, max_size=9) | st.text("ab eT1é", min_size=2, max_size=6).map(
    lambda text: text.encode()
)


@given(strings=st.sets(STRINGS, max_size=8))
@settings(max_examples=50, deadline=None)
def test_any_set_comes_back_in_byte_order(strings: set[bytes]) -> None:
    assert unpack_set(pack_set(strings)) == sorted(strings)


def test_the_longest_string_comes_back() -> None:
    strings = [b"a" * n for n in range(2, 257)] + [b"ab" * 128, b"\xff\0" * 100]
    assert unpack_set(pack_set(strings)) == sorted(strings)


@pytest.mark.parametrize("string", [b"", b"a", b"a" * 257])
def test_a_string_of_an_unfit_length_is_refused(string: bytes) -> None:
    with pytest.raises(TokenizerError, match=f"token of {len(string)} bytes, 2 to 256"):
        pack_set([b"ab", string])


def test_sets_are_these_bytes() -> None:
    strings = [b"the", b"th", b" the", b"\xff\0", b"th"]
    assert pack_set(strings) == SET_GOLDEN == pack_set(reversed(strings))
    assert unpack_set(pack_set([])) == []


def test_the_tables_are_the_same_wherever_logarithms_are_nearly_right() -> None:
    """No entry lies so close to a tie that another library's last bit could round it otherwise."""
    for odds, share in zip(range(-2047, 2048), SQUASH, strict=True):
        exact = 65536 / (1 + math.exp(-odds / 256))
        assert share == round(exact)
        assert abs(exact % 1 - 0.5) > 1e-6 or odds == 0
    for share, odds in enumerate(STRETCH):
        exact = 256 * math.log((share + 0.5) / (4095.5 - share))
        assert odds == max(-2047, min(2047, round(exact)))
        assert abs(exact % 1 - 0.5) > 1e-6
    assert (sum(SQUASH), sum(map(abs, STRETCH))) == (134184960, 1452906)


def test_a_learned_set_takes_under_a_byte_and_a_quarter_a_string() -> None:
    strings = bpe(600).token_bytes[257:]
    assert len(pack_set(strings)) < 1.25 * len(strings)


@given(code=st.binary(max_size=60))
@settings(max_examples=150, deadline=None)
def test_forged_sets_are_refused_or_sound(code: bytes) -> None:
    try:
        strings = unpack_set(code)
    except TokenizerError:
        return
    assert all(2 <= len(string) <= 256 for string in strings)
    assert strings == sorted(set(strings))


# --- rounded order


def bpe(vocab_size: int) -> BpeTokenizer:
    tokenizer = built("bpe", vocab_size)
    assert isinstance(tokenizer, BpeTokenizer)
    return tokenizer


def words_of(tokenizer: BpeTokenizer) -> Counter[bytes]:
    from tokgolf.tokenizers.bpe import splitter

    cut = splitter(tokenizer.pattern)
    words: Counter[bytes] = Counter()
    for document in english():
        text = document.decode()
        words.update(text[a:b].encode() for _, (a, b) in cut.pre_tokenize_str(text))
    return words


def test_buckets_are_quarters_of_octaves() -> None:
    assert [bucket_of(rank) for rank in range(8)] == [0, 4, 6, 8, 9, 10, 11, 12]
    for rank in (*range(5000), 65_278):
        exact = 4 * math.log2(1 + rank)
        assert bucket_of(rank) == math.floor(exact + 1e-9)


@given(
    size=st.integers(1, 12),
    repairs=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=12),
)
@settings(deadline=None)
def test_a_group_is_arranged_by_its_repairs_or_refused(size: int, repairs: Pairs) -> None:
    group = [bytes([65 + place]) for place in range(size)]
    repairs = [pair for pair in repairs if max(pair) < size]
    try:
        result = arrange(group, repairs)
    except TokenizerError:
        assert any(first >= then for first, then in repairs)  # else the natural order would do
        return
    assert sorted(result) == group
    assert all(result.index(group[first]) < result.index(group[then]) for first, then in repairs)
    if all(first < then for first, then in repairs):
        assert result == group


def test_the_pairs_of_a_learned_table_follow_from_its_strings() -> None:
    assert canonical_merges(bpe(600).token_bytes[257:]) == bpe(600).merges


def test_a_string_of_no_two_tokens_is_refused() -> None:
    with pytest.raises(TokenizerError, match="is no two of the 257 tokens"):
        canonical_merges([b"ab", b"abcd"])


def test_a_rounded_table_is_these_bytes() -> None:
    body, merges, repairs = pack_max([(116, 104), (257, 101), (32, 258)], "gpt4", Counter())
    assert (body.hex(), merges, repairs) == (
        "010009fe06a17775f300cf4a",
        [(116, 104), (257, 101), (32, 258)],
        0,
    )


@st.composite
def merge_lists(draw: st.DrawFn) -> Pairs:
    """Merges over a, b and space whose strings all differ."""
    tokens = [b"a", b"b", b" "]
    ids = [97, 98, 32]
    merges: Pairs = []
    for _ in range(draw(st.integers(0, 25))):
        left, right = draw(st.tuples(*[st.integers(0, len(tokens) - 1)] * 2))
        if tokens[left] + tokens[right] not in tokens and len(tokens[left] + tokens[right]) < 40:
            merges.append((ids[left], ids[right]))
            ids.append(257 + len(merges) - 1)
            tokens.append(tokens[left] + tokens[right])
    return merges


@given(merges=merge_lists(), words=st.lists(st.text("ab ", min_size=1, max_size=12), max_size=8))
@settings(max_examples=80, deadline=None)
def test_any_rounded_table_comes_back(merges: Pairs, words: list[str]) -> None:
    body, rounded, _ = pack_max(merges, "gpt2", Counter(word.encode() for word in words))
    pattern, code = read_pattern(body[1:])
    assert (pattern, unpack_max(code)) == ("gpt2", rounded)
    before, after = (from_asset(wrap("bpe", b)) for b in (pack_merges(merges, "gpt2"), body))
    assert sorted(before.token_bytes) == sorted(after.token_bytes)


@pytest.mark.parametrize("vocab_size", [290, 600])
def test_the_words_given_keep_their_tokens(vocab_size: int) -> None:
    tokenizer = bpe(vocab_size)
    words = words_of(tokenizer)
    result = to_max(tokenizer, words)
    rounded = result.tokenizer
    assert (result.changed_words, result.changed_tokens) == (0, 0)
    assert result.words == words.total()
    assert result.tokens == sum(len(tokenizer.encode(word)) * n for word, n in words.items())
    for document in english()[:40]:
        assert pieces(rounded, document) == pieces(tokenizer, document)
    assert vocab_size < 600 or len(rounded.asset()) < 0.92 * len(tokenizer.asset())
    assert from_asset(rounded.asset()).merges == rounded.merges  # type: ignore[attr-defined]


def test_without_words_some_text_changes_and_repairs_are_what_prevents_it() -> None:
    tokenizer, nothing = bpe(600), Counter[bytes]()
    words = words_of(tokenizer)
    plain = to_max(tokenizer, nothing)
    assert (plain.words, plain.tokens) == (0, 0)
    assert plain.repairs < to_max(tokenizer, words).repairs
    changed = [d for d in english() if pieces(plain.tokenizer, d) != pieces(tokenizer, d)]
    assert changed
    for data in NASTY:
        assert plain.tokenizer.decode(plain.tokenizer.encode(data)) == data


def test_a_rounded_tokenizer_encodes_as_its_slow_twin() -> None:
    rounded = to_max(bpe(600), words_of(bpe(600))).tokenizer
    rng, text = random.Random(5), english()[3].decode()
    for start in rng.sample(range(len(text) - 60), 30):
        snippet = text[start : start + 60]
        assert rounded.encode(snippet.encode()).tolist() == slow_bpe(rounded, snippet)


def test_rounding_keeps_what_the_asset_carries() -> None:
    extras = Extras(transform="caps")
    tokenizer = BpeTokenizer.from_asset(wrap("bpe", pack_merges(bpe(290).merges, "gpt2"), extras))
    result = to_max(tokenizer, Counter())
    assert extras_of(result.tokenizer.asset()) == extras
    assert result.tokenizer.pattern == "gpt2"


def hostile_orders() -> Iterator[bytes]:
    strings = natural([b"ab", b"bc", b"abc"])
    code = pack_set(strings)
    head = b"\1\0" + varint(len(code)) + code
    encoder = RangeEncoder()
    left = np.array([1, 0, 0, 0, 1, 0, 1])
    for bucket in (4, 6, 0):  # "abc" first of all, before "ab" and "bc"
        encoder.encode(left.cumsum(), bucket)
        left[bucket] -= 1
    yield head + encoder.finish()
    yield head[:-1]
    yield b"\1\0" + varint(1 << 40)
    yield b"\1\0"
    yield head + b"spare bytes of the order"


@pytest.mark.parametrize("body", list(hostile_orders()))
def test_unfit_rounded_tables_are_refused(body: bytes) -> None:
    with pytest.raises(TokenizerError):
        from_asset(forged("bpe", body))


@given(
    damage=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=3)
)
@settings(max_examples=60, deadline=None)
def test_damaged_rounded_tables_are_refused_or_lossless(damage: Pairs) -> None:
    body = bytearray(pack_max(bpe(290).merges, "gpt4", Counter())[0])
    for place, value in damage:
        body[place % len(body)] = value
    try:
        tokenizer = from_asset(forged("bpe", bytes(body)))
    except TokenizerError:
        return
    for data in NASTY:
        assert tokenizer.decode(tokenizer.encode(data)) == data


def pieces(tokenizer: BpeTokenizer, data: bytes) -> list[bytes]:
    return [tokenizer.token_bytes[token] for token in tokenizer.encode(data)]
