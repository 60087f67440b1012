"""The fast encoders against slow twins, and against their own library's file."""

import json
import random

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers_reference import cost_of_ids, slow_bpe, slow_unigram, unknown_cost
from tokenizers_support import built, english

from tokgolf.tokenizers import from_asset
from tokgolf.tokenizers.asset import wrap
from tokgolf.tokenizers.bpe import BpeTokenizer, byte_names
from tokgolf.tokenizers.pack import pack_merges, pack_pieces
from tokgolf.tokenizers.unigram import UnigramTokenizer


def bpe() -> BpeTokenizer:
    tokenizer = built("bpe")
    assert isinstance(tokenizer, BpeTokenizer)
    return tokenizer


def unigram() -> UnigramTokenizer:
    tokenizer = built("unigram")
    assert isinstance(tokenizer, UnigramTokenizer)
    return tokenizer


def snippets(count: int) -> list[str]:
    text, rng = b"".join(english()).decode(), random.Random(11)
    starts = [rng.randrange(len(text)) for _ in range(count)]
    return [text[start : start + 300] for start in starts]


@given(text=st.text(alphabet="theraion \n.12é日", max_size=120))
@settings(max_examples=200, deadline=None)
def test_bpe_agrees_with_the_slow_twin_on_random_text(text: str) -> None:
    assert bpe().encode(text.encode()).tolist() == slow_bpe(bpe(), text)


def test_bpe_agrees_with_the_slow_twin_on_english() -> None:
    for text in snippets(60):
        assert bpe().encode(text.encode()).tolist() == slow_bpe(bpe(), text)


@st.composite
def merge_tables(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Random sound merge tables over two letters, with many overlapping strings."""
    tokens, ids = {b"a", b"b"}, {97: b"a", 98: b"b"}
    merges: list[tuple[int, int]] = []
    for _ in range(draw(st.integers(0, 12))):
        pair = draw(st.sampled_from(sorted(ids))), draw(st.sampled_from(sorted(ids)))
        token = ids[pair[0]] + ids[pair[1]]
        if token not in tokens and len(token) <= 256:
            ids[257 + len(merges)] = token
            tokens.add(token)
            merges.append(pair)
    return merges


@given(merges=merge_tables(), text=st.text(alphabet="ab ", max_size=60))
@settings(max_examples=100, deadline=None)
def test_any_merge_table_agrees_with_the_slow_twin(
    merges: list[tuple[int, int]], text: str
) -> None:
    tokenizer = from_asset(wrap("bpe", pack_merges(merges, "gpt2")))
    assert isinstance(tokenizer, BpeTokenizer)
    assert tokenizer.merges == merges
    assert tokenizer.pattern == "gpt2"
    assert tokenizer.encode(text.encode()).tolist() == slow_bpe(tokenizer, text)


def test_a_prefix_of_a_bpe_is_the_smaller_bpe() -> None:
    smaller = from_asset(wrap("bpe", pack_merges(bpe().merges[:143], "gpt4")))
    assert smaller.asset() == built("bpe", 400).asset()


def test_no_bpe_token_crosses_a_cut_of_the_pattern() -> None:
    tokens = bpe().token_bytes[257:]
    assert not any(token[:1].isalpha() and b" " in token for token in tokens)
    assert not any(token.isdigit() and len(token) > 3 for token in tokens)


def test_each_pattern_cuts_in_its_own_way() -> None:
    merges = [(49, 49), (257, 257)]  # "11", "1111"
    ids = {
        pattern: from_asset(wrap("bpe", pack_merges(merges, pattern))).encode(b"1111").tolist()
        for pattern in ("gpt4", "gpt2")
    }
    assert ids == {"gpt4": [257, 49, 49], "gpt2": [258]}


def test_byte_names_are_those_of_the_library() -> None:
    names = byte_names()
    assert set(names) == set(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    splitter = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for character in map(chr, (0, 10, 32, 127, 65, 0xAD, 0xE9, 0x2581)):
        expected = "".join(names[byte] for byte in character.encode())
        assert splitter.pre_tokenize_str(character)[0][0] == expected


def test_the_json_file_is_the_same_tokenizer() -> None:
    data = bpe().original_file()
    model = json.loads(data)["model"]
    assert sorted(model["vocab"].values()) == list(range(600))
    assert len(model["merges"]) == 600 - 257
    library = tokenizers.Tokenizer.from_str(data.decode())
    for text in snippets(10):
        assert library.encode(text).ids == bpe().encode(text.encode()).tolist()
        assert library.decode(library.encode(text).ids) == text


@given(text=st.text(alphabet="theraion \n.12é日\u2581\0\t", max_size=80))
@settings(max_examples=200, deadline=None)
def test_unigram_splits_at_the_least_cost_on_random_text(text: str) -> None:
    ids = unigram().encode(text.encode()).tolist()
    assert cost_of_ids(unigram(), ids) == slow_unigram(unigram(), text)


def test_unigram_splits_at_the_least_cost_on_english() -> None:
    for text in snippets(60):
        ids = unigram().encode(text.encode()).tolist()
        assert cost_of_ids(unigram(), ids) == slow_unigram(unigram(), text)


@given(
    costs=st.dictionaries(
        st.text(alphabet="abé ", min_size=1, max_size=5).map(str.encode),
        st.integers(0, 255),
        min_size=1,
        max_size=15,
    ),
    text=st.text(alphabet="abcé ", max_size=40),
)
@settings(max_examples=100, deadline=None)
def test_any_piece_set_splits_at_the_least_cost(costs: dict[bytes, int], text: str) -> None:
    tokenizer = from_asset(wrap("unigram", pack_pieces(costs)))
    assert isinstance(tokenizer, UnigramTokenizer)
    assert tokenizer.costs == costs
    ids = tokenizer.encode(text.encode()).tolist()
    assert tokenizer.decode(ids) == text.encode()
    assert cost_of_ids(tokenizer, ids) == slow_unigram(tokenizer, text)


def test_a_unigram_prefers_the_cheaper_split() -> None:
    costs = {b"ab": 3, b"cd": 3, b"abc": 2, b"bcd": 9, b"a": 5, b"d": 5}
    tokenizer = from_asset(wrap("unigram", pack_pieces(costs)))
    assert tokenizer.token_bytes[257:] == [b"abc", b"ab", b"cd", b"bcd"]  # by cost, then bytes
    assert tokenizer.encode(b"abcd").tolist() == [258, 259]  # 3 + 3 < 2 + 5 < 5 + 9
    costs[b"d"] = 3
    tokenizer = from_asset(wrap("unigram", pack_pieces(costs)))
    assert tokenizer.encode(b"abcd").tolist() == [257, ord("d")]  # 2 + 3


def test_the_model_file_is_the_same_tokenizer_with_single_bytes_after() -> None:
    library = sentencepiece.SentencePieceProcessor(model_proto=unigram().original_file())
    assert [library.id_to_piece(i) for i in (0, 65, 255, 256)] == [
        "<0x00>", "<0x41>", "<0xFF>", "<unk>",
    ]  # fmt: skip
    assert all(library.is_byte(index) for index in range(256))
    assert library.is_unknown(256)
    assert library.unk_id() == 256
    learned = [library.id_to_piece(i).encode() for i in range(257, unigram().vocab_size)]
    assert learned == unigram().token_bytes[257:]
    single = [library.id_to_piece(i) for i in range(unigram().vocab_size, len(library))]
    assert single
    assert {piece.encode() for piece in single} == {p for p in unigram().costs if len(p) == 1}


def test_pieces_may_look_like_special_ones() -> None:
    costs = {b"<unk>": 4, b"<0x41>": 3, b"<0x": 1, b"a": 3}
    tokenizer = from_asset(wrap("unigram", pack_pieces(costs)))
    ids = tokenizer.encode(b"<0x41>a<unk>A").tolist()
    assert ids == [258, ord("a"), 259, ord("A")]
    assert tokenizer.decode(ids) == b"<0x41>a<unk>A"


def test_unknown_characters_cost_more_than_any_piece() -> None:
    assert unknown_cost(unigram()) > max(unigram().costs.values())
    assert unigram().encode("\u4e00".encode()).tolist() == [0xE4, 0xB8, 0x80]


@pytest.mark.parametrize("word", ["\u2581", "<unk>", "<0x41>", "\u2047"])
def test_names_of_the_library_are_text_like_any_other(word: str) -> None:
    ids = unigram().encode(word.encode()).tolist()
    assert 256 not in ids
    assert 0x41 not in ids or "A" in word
    assert unigram().decode(ids) == word.encode()
