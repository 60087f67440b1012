"""What holds for every kind of tokenizer: lossless, one id layout, one asset, no surprises."""

import dataclasses
import pickle
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers_support import KINDS, NASTY, built, english

from tokgolf.errors import TokenizerError
from tokgolf.tokenizers import Tokenizer, from_asset

# Bytes that are mostly text, with damage in places: what hypothesis seldom finds in pure bytes.
WORDS = st.sampled_from(
    [
        b"the ",
        b"function",
        b"\xff",
        b"\xe2\x96",
        b"\x81",
        b"\n\n",
        b"    ",
        b"\0",
        b"\xc3\xa9",
        b"'s",
    ]
)
ANY_BYTES = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.lists(WORDS, max_size=30).map(b"".join),
)


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return built(request.param)


def check_lossless(tokenizer: Tokenizer, data: bytes) -> None:
    ids = tokenizer.encode(data)
    assert ids.dtype == np.uint16
    assert ids.ndim == 1
    assert all(0 <= token < tokenizer.vocab_size for token in ids.tolist())
    assert tokenizer.bos_id not in ids
    assert tokenizer.decode(ids) == data
    assert sum(len(tokenizer.token_bytes[token]) for token in ids.tolist()) == len(data)


@pytest.mark.parametrize("kind", KINDS)
@given(data=ANY_BYTES)
@settings(max_examples=150, deadline=None)
def test_every_byte_string_comes_back(kind: str, data: bytes) -> None:
    check_lossless(built(kind), data)


@pytest.mark.parametrize("data", NASTY, ids=repr)
def test_nasty_strings_come_back(tokenizer: Tokenizer, data: bytes) -> None:
    check_lossless(tokenizer, data)


@pytest.mark.parametrize(
    "data",
    [b"a" * 1_000_000, b"abcdefghij" * 100_000, b" " * 999_999 + b"x", b"\xff" * 1_000_000],
    ids=["one letter", "no space", "spaces", "invalid"],
)
def test_a_megabyte_without_a_break_comes_back(tokenizer: Tokenizer, data: bytes) -> None:
    assert tokenizer.decode(tokenizer.encode(data)) == data


@pytest.mark.parametrize("kind", KINDS)
@given(first=ANY_BYTES, second=ANY_BYTES)
@settings(max_examples=40, deadline=None)
def test_decoding_is_concatenation(kind: str, first: bytes, second: bytes) -> None:
    tokenizer = built(kind)
    ids = np.concatenate([tokenizer.encode(first), tokenizer.encode(second)])
    assert tokenizer.decode(ids) == first + second


@pytest.mark.parametrize("kind", KINDS)
@given(batch=st.lists(ANY_BYTES, max_size=6))
@settings(max_examples=40, deadline=None)
def test_a_batch_is_the_strings_one_by_one(kind: str, batch: list[bytes]) -> None:
    tokenizer = built(kind)
    together = tokenizer.encode_batch(batch)
    assert [ids.tolist() for ids in together] == [tokenizer.encode(x).tolist() for x in batch]


def test_ids_are_bytes_then_bos_then_unique_tokens(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.token_bytes
    assert tokens[:256] == [bytes([byte]) for byte in range(256)]
    assert tokenizer.bos_id == 256
    assert tokens[256] == b""
    assert all(len(token) > 1 for token in tokens[257:])
    assert len(set(tokens)) == len(tokens) == tokenizer.vocab_size
    assert tokenizer.vocab_size == (257 if tokenizer.kind == "byte" else 600)


def test_learned_tokens_are_used(tokenizer: Tokenizer) -> None:
    used = {token for ids in tokenizer.encode_batch(english()) for token in ids.tolist()}
    learned = set(range(257, tokenizer.vocab_size))
    assert len(used & learned) >= 0.9 * len(learned)


def test_decode_takes_lists_arrays_and_bos(tokenizer: Tokenizer) -> None:
    ids = [256, 104, 105, 256]
    assert tokenizer.decode(ids) == b"hi"
    assert tokenizer.decode(np.array(ids, dtype=np.int64)) == b"hi"
    assert tokenizer.decode([]) == b""


@pytest.mark.parametrize("outside", [-1, 10_000])
def test_decode_refuses_ids_outside_the_vocabulary(tokenizer: Tokenizer, outside: int) -> None:
    last = tokenizer.vocab_size - 1
    with pytest.raises(TokenizerError, match=f"id {outside} is outside .* 0 to {last};"):
        tokenizer.decode([0, outside])
    with pytest.raises(TokenizerError, match="outside"):
        tokenizer.decode([tokenizer.vocab_size])


@pytest.mark.parametrize("ids", [[[1, 2]], [0.5], ["a"]])
def test_decode_refuses_what_is_no_list_of_integers(tokenizer: Tokenizer, ids: Any) -> None:
    with pytest.raises(TokenizerError, match="one dimension of integers"):
        tokenizer.decode(ids)


def test_an_asset_restores_the_same_tokenizer(tokenizer: Tokenizer) -> None:
    restored = from_asset(tokenizer.asset())
    assert type(restored) is type(tokenizer)
    assert restored.fingerprint == tokenizer.fingerprint
    assert restored.token_bytes == tokenizer.token_bytes
    assert restored.original_file() == tokenizer.original_file()
    for data in (*english()[:20], *NASTY):
        assert restored.encode(data).tolist() == tokenizer.encode(data).tolist()


def test_a_tokenizer_survives_pickling(tokenizer: Tokenizer) -> None:
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.asset() == tokenizer.asset()
    assert copy.encode(b"pickled text").tolist() == tokenizer.encode(b"pickled text").tolist()


def test_a_tokenizer_is_frozen_and_names_itself(tokenizer: Tokenizer) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        tokenizer.token_bytes = []  # type: ignore[misc]
    assert repr(tokenizer) == (
        f"<{tokenizer.kind} tokenizer, {tokenizer.vocab_size} tokens, {tokenizer.fingerprint[:12]}>"
    )


def test_fingerprints_differ_between_kinds() -> None:
    assert len({built(kind).fingerprint for kind in KINDS}) == len(KINDS)


def test_random_windows_of_text_come_back(tokenizer: Tokenizer) -> None:
    text, rng = b"".join(english()), random.Random(5)
    for _ in range(50):
        start = rng.randrange(len(text))
        check_lossless(tokenizer, text[start : start + rng.randrange(400)])
