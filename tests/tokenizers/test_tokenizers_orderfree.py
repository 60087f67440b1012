"""Greedy longest match and fewest tokens: slow twins on random vocabularies, ties, hard words."""

import functools
import pickle
import random
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tokenizers_roundtrip import ANY_BYTES
from tokenizers_support import NASTY, built, english

from tokgolf.errors import TokenizerError
from tokgolf.hashing import BigramBuckets
from tokgolf.tokenizers import Tokenizer, from_asset, tokenset
from tokgolf.tokenizers.asset import Extras, unwrap, wrap
from tokgolf.tokenizers.base import BYTE_TOKENS, MAX_TOKEN_BYTES, is_text, text_runs
from tokgolf.tokenizers.bpe import BpeTokenizer, byte_names, splitter
from tokgolf.tokenizers.greedy import MAX_ENGINE_BYTES, lengths_by_start, longest_matches
from tokgolf.tokenizers.orderfree import ORDER_FREE, order_free_asset
from tokgolf.tokenizers.pack import pack_set
from tokgolf.tokenizers.split import pack_pattern

VOCABULARIES = st.sets(
    st.one_of(
        st.lists(st.sampled_from(b"ab "), min_size=2, max_size=6).map(bytes),
        st.lists(st.sampled_from("a\u00e9' \u00c3".encode()), min_size=2, max_size=4).map(bytes),
    ),
    max_size=25,
)
TEXTS = st.text(alphabet="aab \u00e9'\n", max_size=40)


def made(kind: str, vocabulary: set[bytes], pattern: str = "gpt4") -> Tokenizer:
    return from_asset(wrap(kind, pack_pattern(pattern) + pack_set(vocabulary)))


def bpe() -> BpeTokenizer:
    tokenizer = built("bpe")
    assert isinstance(tokenizer, BpeTokenizer)
    return tokenizer


@functools.cache
def from_bpe(kind: str) -> Tokenizer:
    """The kind with the tokens of a BPE that has learned from `english`."""
    return from_asset(order_free_asset(kind, bpe()))


@pytest.fixture(params=ORDER_FREE)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def pieces_of(data: bytes, pattern: str = "gpt4") -> list[bytes]:
    """The pieces of text that no token crosses, and every byte that is no text by itself."""
    byte_of = {name: byte for byte, name in enumerate(byte_names())}
    pieces = []
    for run in text_runs(data):
        if is_text(run):
            words = splitter(pattern).pre_tokenize_str(run)
            pieces += [bytes(byte_of[name] for name in word) for word, _ in words]
        else:
            pieces += [bytes([byte]) for byte in run.encode("utf-8", "surrogateescape")]
    return pieces


def slow_greedy(piece: bytes, tokens: set[bytes]) -> list[bytes]:
    """Try every token at the start of what is left; take the longest."""
    cut = []
    while piece:
        cut.append(max((t for t in tokens if t and piece.startswith(t)), key=len))
        piece = piece[len(cut[-1]) :]
    return cut


def slow_shortest(piece: bytes, tokens: set[bytes]) -> list[bytes]:
    """For every prefix of `piece`, compare its best ways by their rule written out in full."""
    best: list[list[bytes]] = [[]]
    for end in range(1, len(piece) + 1):
        ways = [
            [*best[start], piece[start:end]]
            for start in range(max(0, end - MAX_TOKEN_BYTES), end)
            if piece[start:end] in tokens
        ]
        best.append(min(ways, key=lambda way: (len(way), [-len(token) for token in way[::-1]])))
    return best[-1]


def every_way(piece: bytes, tokens: set[bytes]) -> list[list[bytes]]:
    if not piece:
        return [[]]
    return [
        [token, *rest]
        for token in sorted(tokens)
        if token and piece.startswith(token)
        for rest in every_way(piece[len(token) :], tokens)
    ]


TWINS = {"greedy": slow_greedy, "shortest": slow_shortest}


def check_twin(tokenizer: Tokenizer, data: bytes, pattern: str = "gpt4") -> None:
    ids = tokenizer.encode(data).tolist()
    tokens = set(tokenizer.token_bytes)
    expected = [t for p in pieces_of(data, pattern) for t in TWINS[tokenizer.kind](p, tokens)]
    assert [tokenizer.token_bytes[token] for token in ids] == expected


@pytest.mark.parametrize("pattern", ["gpt4", "gpt2"])
@pytest.mark.parametrize("kind", ORDER_FREE)
@given(vocabulary=VOCABULARIES, text=TEXTS)
@settings(max_examples=80, deadline=None)
def test_any_vocabulary_agrees_with_the_slow_twin(
    kind: str, pattern: str, vocabulary: set[bytes], text: str
) -> None:
    check_twin(made(kind, vocabulary, pattern), text.encode(), pattern)


@pytest.mark.parametrize("kind", ORDER_FREE)
@given(vocabulary=VOCABULARIES, text=st.text(alphabet="ab\u00e9", min_size=25, max_size=90))
@settings(max_examples=50, deadline=None)
def test_long_words_agree_with_the_slow_twin(kind: str, vocabulary: set[bytes], text: str) -> None:
    check_twin(made(kind, vocabulary), text.encode())


@pytest.mark.parametrize("kind", ORDER_FREE)
@given(text=st.text(alphabet="theraion \n.12\u00e9\u65e5", max_size=120))
@settings(max_examples=80, deadline=None)
def test_learned_tokens_agree_with_the_slow_twin_on_random_text(kind: str, text: str) -> None:
    check_twin(from_bpe(kind), text.encode())


def test_learned_tokens_agree_with_the_slow_twin_on_english(kind: str) -> None:
    for document in english()[:8]:
        check_twin(from_bpe(kind), document[:3000])


@given(vocabulary=VOCABULARIES, piece=st.text(alphabet="ab", max_size=9))
@settings(max_examples=80, deadline=None)
def test_shortest_is_the_best_of_every_way_to_cut(vocabulary: set[bytes], piece: str) -> None:
    tokenizer = made("shortest", vocabulary)
    ways = every_way(piece.encode(), set(tokenizer.token_bytes))
    best = min(ways, key=lambda way: (len(way), [-len(token) for token in way[::-1]]))
    ids = tokenizer.encode(piece.encode()).tolist()
    assert [tokenizer.token_bytes[token] for token in ids] == best


def test_a_tie_goes_to_the_longest_last_token() -> None:
    tokenizer = made("shortest", {b"ab", b"bc", b"bcd", b"de"})
    for text, cut in ((b"abc", [b"a", b"bc"]), (b"abcde", [b"a", b"bc", b"de"])):
        ids = tokenizer.encode(text).tolist()
        assert [tokenizer.token_bytes[token] for token in ids] == cut
    assert made("greedy", {b"ab", b"bc"}).encode(b"abc").tolist() == [257, ord("c")]


def test_shortest_beats_greedy_where_the_longest_token_misleads() -> None:
    vocabulary = {b"ab", b"cdef"}
    assert made("greedy", vocabulary | {b"abc"}).encode(b"abcdef").tolist() == [258, *b"def"]
    assert made("shortest", vocabulary | {b"abc"}).encode(b"abcdef").tolist() == [257, 259]


@given(text=st.text(alphabet="theraionsd \n.'12", max_size=150))
@settings(max_examples=80, deadline=None)
def test_shortest_has_the_fewest_tokens_of_all_kinds_in_every_piece(text: str) -> None:
    check_fewest(text.encode())


def test_shortest_has_the_fewest_tokens_of_all_kinds_on_english() -> None:
    merged, greedy, shortest = check_fewest(b"".join(english()[:8]))
    assert shortest < greedy
    assert shortest < merged


def check_fewest(text: bytes) -> list[int]:
    """Compare the kinds on every piece; the tokens of BPE, greedy and shortest in all."""
    pieces = list(set(pieces_of(text)))
    kinds = bpe(), from_bpe("greedy"), from_bpe("shortest")
    counts = [[len(ids) for ids in tokenizer.encode_batch(pieces)] for tokenizer in kinds]
    assert all(shortest <= min(others) for *others, shortest in zip(*counts, strict=True))
    return [sum(column) for column in counts]


def test_the_tokens_are_those_of_the_bpe_by_length_then_bytes(kind: str) -> None:
    tokens = from_bpe(kind).token_bytes
    assert tokens[:257] == BYTE_TOKENS
    assert tokens[257:] == sorted(bpe().token_bytes[257:], key=lambda token: (len(token), token))


def test_the_order_of_the_merges_leaves_no_trace(kind: str) -> None:
    vocabulary = bpe().token_bytes[257:]
    random.Random(3).shuffle(vocabulary)
    body = pack_pattern("gpt4") + pack_set(vocabulary)
    assert from_bpe(kind).asset() == wrap(kind, body)


def test_extras_are_carried(kind: str) -> None:
    bigram = BigramBuckets(count=64, multipliers=(3, 5), seed=7)
    tokenizer = from_asset(order_free_asset(kind, bpe(), Extras(bigram=bigram)))
    assert tokenizer.bigram == bigram
    assert tokenizer.encode(b"the").tolist() == from_bpe(kind).encode(b"the").tolist()


def test_other_kinds_are_no_sets() -> None:
    with pytest.raises(TokenizerError, match="a unigram tokenizer is no set of tokens; use one of"):
        order_free_asset("unigram", bpe())


@pytest.mark.parametrize("kind", ORDER_FREE)
@given(vocabulary=VOCABULARIES, batch=st.lists(ANY_BYTES, max_size=4))
@settings(max_examples=80, deadline=None)
def test_any_bytes_come_back_alone_and_in_a_batch(
    kind: str, vocabulary: set[bytes], batch: list[bytes]
) -> None:
    tokenizer = made(kind, vocabulary)
    together = tokenizer.encode_batch(batch)
    assert [ids.tolist() for ids in together] == [tokenizer.encode(x).tolist() for x in batch]
    assert [tokenizer.decode(ids) for ids in together] == batch
    assert not any(tokenizer.bos_id in ids for ids in together)


def test_nasty_strings_agree_with_the_slow_twin(kind: str) -> None:
    for data in NASTY:
        check_twin(from_bpe(kind), data)


def test_tokens_of_half_characters_are_used() -> None:
    for name in ORDER_FREE:
        tokenizer = made(name, {b"\xa9\xc3", b"a\xc3"})
        assert tokenizer.encode("a\u00e9\u00e9".encode()).tolist() == [257, 258, 0xA9]


def test_no_vocabulary_leaves_the_bytes(kind: str) -> None:
    tokenizer = made(kind, set())
    assert tokenizer.vocab_size == 257
    assert tokenizer.encode(b"some text \xff").tolist() == list(b"some text \xff")


def test_names_of_the_library_are_text_like_any_other(kind: str) -> None:
    text = f"{tokenset.BOS_NAME}[UNK] <unk> ##ab \u2581"
    tokenizer = made(kind, {b"ab", b"##"})
    assert tokenizer.decode(tokenizer.encode(text.encode())) == text.encode()
    assert tokenizer.bos_id not in tokenizer.encode(text.encode())


@pytest.mark.parametrize("length", [1, 31, 32, 33, 100, 1000])
def test_words_on_both_sides_of_the_limit_of_the_engine(kind: str, length: int) -> None:
    assert MAX_ENGINE_BYTES == 32
    rng = random.Random(length)
    words = ["".join(rng.choices("theraionsd", k=length)) for _ in range(3)]
    data = f"{words[0]} the {words[1]}\n{words[2]} end".encode()
    tokenizer = from_bpe(kind)
    check_twin(tokenizer, data)
    check_twin(tokenizer, data + b"\xff" + data)
    batch = [data, b"the", b"", data[::-1]]
    alone = [tokenizer.encode(x).tolist() for x in batch]
    assert [ids.tolist() for ids in tokenizer.encode_batch(batch)] == alone


def test_a_word_of_a_million_letters_is_cut_right(kind: str) -> None:
    tokenizer = made(kind, {b"aa", b"aaa", b"aaaaaaa"})
    ids = tokenizer.encode(b"a" * 1_000_003).tolist()  # 142,857 sevens and 4 letters
    sevens = [259] * 142_857
    assert ids == ([*sevens, 258, 97] if kind == "greedy" else [97, 258, *sevens])


@given(text=st.text(alphabet=" \n\r\t\u00a0\u2028\x85\x0b\x0cab1.'", max_size=40))
@settings(max_examples=300, deadline=None)
def test_the_guarded_expression_cuts_where_the_pattern_cuts(text: str) -> None:
    for pattern in ("gpt4", "gpt4+digits1+words", "gpt2+scripts"):
        mine = tokenset.make_engine(tokenizers.models.BPE(), pattern).pre_tokenizer
        assert mine.pre_tokenize_str(text) == splitter(pattern).pre_tokenize_str(text)


def test_ten_million_spaces_are_no_end_of_the_expression() -> None:
    tokenizer = made("greedy", {b" " * 64})
    assert tokenizer.encode(b" " * 10_000_000).tolist() == [257] * 156_250


class Counted(dict[str, int]):
    """A vocabulary that counts how often it is asked."""

    asked = 0

    def get(self, key: str, default: Any = None) -> Any:
        self.asked += 1
        return super().get(key, default)


@pytest.mark.parametrize("word", ["a", "ab", "abc", "aab", "aaaab"])
def test_the_work_on_a_long_word_grows_with_its_length(word: str) -> None:
    names = [*"abc", *("a" * n + "b" for n in range(1, 30)), "abcabcabcc", "ca"]
    work = []
    for repeats in (1000, 2000, 4000):
        ids = Counted({name: number for number, name in enumerate(names)})
        result = longest_matches(word * repeats, ids, lengths_by_start(ids))
        assert "".join(names[token] for token in result) == word * repeats
        work.append(ids.asked)
        assert ids.asked <= 30 * len(result)
    assert work[2] - work[1] <= 2 * (work[1] - work[0]) + 100


def test_the_json_file_is_the_same_tokenizer(kind: str) -> None:
    tokenizer = from_bpe(kind)
    library = tokenizers.Tokenizer.from_str(tokenizer.original_file().decode())
    long = "".join(random.Random(1).choices("theraion", k=400))
    for text in (*(document.decode() for document in english()[:10]), long, "\u65e5\u672c " + long):
        assert library.encode(text).ids == tokenizer.encode(text.encode()).tolist()
        assert library.decode(library.encode(text).ids) == text
    assert library.get_vocab_size() == tokenizer.vocab_size


def test_an_asset_restores_and_pickles_to_the_same_tokenizer(kind: str) -> None:
    tokenizer = from_bpe(kind)
    restored = from_asset(tokenizer.asset())
    pickled: Tokenizer = pickle.loads(pickle.dumps(tokenizer))
    for other in (restored, pickled):
        assert type(other) is type(tokenizer)
        assert other.fingerprint == tokenizer.fingerprint
        assert other.token_bytes == tokenizer.token_bytes
        assert other.original_file() == tokenizer.original_file()
        for data in (*english()[:10], *NASTY, b"theraion" * 50):
            assert other.encode(data).tolist() == tokenizer.encode(data).tolist()


def test_every_flipped_bit_and_every_truncation_is_refused(kind: str) -> None:
    asset = made(kind, {b"th", b"the", b" the", b"ing"}).asset()
    for bit in range(8 * len(asset)):
        damaged = bytearray(asset)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(TokenizerError):
            from_asset(bytes(damaged))
    for length in range(len(asset)):
        with pytest.raises(TokenizerError):
            from_asset(asset[:length])


def test_damage_under_a_right_checksum_is_refused_or_lossless(kind: str) -> None:
    asset = made(kind, set(bpe().token_bytes[257:300])).asset()
    body, rng = unwrap(kind, asset), random.Random(3)
    for _ in range(40):
        damaged = bytearray(body)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            tokenizer = from_asset(wrap(kind, bytes(damaged)))
        except TokenizerError:
            continue
        for data in NASTY:
            assert tokenizer.decode(tokenizer.encode(data)) == data


def test_a_body_without_a_pattern_is_refused(kind: str) -> None:
    with pytest.raises(TokenizerError, match="split pattern"):
        from_asset(wrap(kind, b""))


@pytest.mark.parametrize("tokens", [[b"ab", b"a" * (MAX_TOKEN_BYTES + 1)], [b"a", b"abc"], [b""]])
def test_tokens_of_unfit_lengths_are_refused(
    kind: str, tokens: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    asset = made(kind, {b"ab"}).asset()
    monkeypatch.setattr(tokenset, "unpack_set", lambda _: tokens)
    lengths = f"of {min(map(len, tokens))} to {max(map(len, tokens))} bytes, 2 to 256 expected"
    with pytest.raises(TokenizerError, match=lengths):
        from_asset(asset)
