"""`composed`: parts of a token, features, the matrix by an obvious loop, odd vocabularies."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokgolf.errors import ConfigError
from tokgolf.hashing import splitmix64
from tokgolf.heads import HeadShape, head_config
from tokgolf.heads.composed import (
    FIRST,
    FOLDED,
    LAST,
    LEFT,
    LENGTH,
    RIGHT,
    WHOLE,
    WITHIN,
    ComposedHead,
    composition,
    features_of,
    hash_of,
    parts,
    signed_row,
)
from tokgolf.tokenizers import build_tokenizer

TEXT = b"the thing is that then the other things are there, and The thing is in THE theatre. " * 9


def built(token_bytes: tuple[bytes, ...], **options: Any) -> ComposedHead:
    shape = HeadShape(vocab_size=len(token_bytes), d_model=8, bos_id=0, token_bytes=token_bytes)
    head = head_config({"name": "composed", "delta_rank": 0, **options}).build(shape)
    assert isinstance(head, ComposedHead)
    return head


@pytest.mark.parametrize(("kind", "size"), [("bpe", 280), ("unigram", 265), ("byte", 257)])
def test_every_token_of_every_kind_has_a_row_of_its_own(kind: str, size: int) -> None:
    tokenizer = build_tokenizer(kind, [TEXT], size)
    token_bytes = tuple(tokenizer.token_bytes)
    rows = composition(token_bytes, 64, 2)
    assert len(set(rows)) == len(rows) == tokenizer.vocab_size
    for token in (0, 65, 255, tokenizer.bos_id):
        assert rows[token]
    matrix = built(token_bytes).matrix().detach()
    assert torch.pdist(matrix).min() > 1e-4 * matrix.norm(dim=1).mean()


def test_parts_of_a_bpe_token_are_those_of_its_merge() -> None:
    tokenizer = build_tokenizer("bpe", [TEXT], 280)
    tokens = tokenizer.token_bytes
    ids = {data: token for token, data in enumerate(tokens)}
    merges = getattr(tokenizer, "merges")  # noqa: B009
    assert len(merges) == 280 - 257
    for token, (left, right) in enumerate(merges, 257):
        assert parts(tokens[token], ids) == (tokens[left], tokens[right])


@given(
    strings=st.lists(st.binary(max_size=5), unique=True, min_size=1, max_size=30),
)
def test_parts_join_to_the_token_whatever_the_vocabulary(strings: list[bytes]) -> None:
    ids = {data: token for token, data in enumerate(strings)}
    for data in strings:
        found = parts(data, ids)
        assert len(found) == (2 if len(data) > 1 else 0)
        assert b"".join(found) == (data if found else b"")
        assert all(found)


def test_tokens_without_merges_are_split_into_the_first_piece_and_the_rest() -> None:
    assert parts(b"abcd", {b"abcd": 300}) == (b"a", b"bcd")
    assert parts(b"abcd", {b"ab": 257, b"abcd": 300}) == (b"ab", b"cd")
    assert parts(b"abcd", {b"bc": 257, b"abcd": 300}) == (b"a", b"bcd")
    # A piece that came later than the token was not there to be merged.
    assert parts(b"abc", {b"abc": 300, b"bc": 301}) == (b"a", b"bc")
    ids = {b" t": 257, b"he": 261, b" the": 265, b" then": 900}
    assert parts(b" then", ids) == (b" the", b"n")


def test_features_have_these_kinds_and_weights() -> None:
    half = 1 / math.sqrt(2)
    assert features_of(b"on", {b"on": 263}, 1) == {
        (LEFT, b"o"): 1, (RIGHT, b"n"): 1, (FOLDED, b"on"): 1, (LENGTH, b"\x02"): 1,
        (FIRST, b"o"): 1, (LAST, b"n"): 1, (WITHIN, b"o"): half, (WITHIN, b"n"): half,
    }  # fmt: skip
    assert features_of(b"", {b"": 256}, 3) == {(FOLDED, b""): 1, (LENGTH, b"\x00"): 1}
    folded = {
        piece
        for word in (b" the", b"The", b" THE\n")
        for kind, piece in features_of(word, {word: 300}, 0)
        if kind == FOLDED
    }
    assert folded == {b"the"}


def test_related_tokens_start_more_alike_than_others() -> None:
    words = (b" the", b"The", b"then", b"42")
    rows = composition((*(bytes([i]) for i in range(60)), *words), 1 << 20, 2)[60:]
    the, upper, then, number = (dict(row) for row in rows)

    def cosine(a: dict[int, float], b: dict[int, float]) -> float:
        return sum(value * b.get(column, 0.0) for column, value in a.items())

    assert min(cosine(the, upper), cosine(the, then), cosine(upper, then)) > 0.05
    assert max(abs(cosine(word, number)) for word in (the, upper, then)) < 0.05


def hashed_slowly(kind: int, data: bytes, attempt: int) -> int:
    value = splitmix64(kind, attempt)
    for byte in data:
        value = splitmix64(value, byte)
    return value


@given(
    strings=st.lists(st.binary(max_size=4), min_size=1, max_size=25),
    rows=st.integers(20, 90),
    ngrams=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_the_matrix_is_the_sum_of_signed_rows_of_all_features(
    strings: list[bytes], rows: int, ngrams: int
) -> None:
    head = built(tuple(strings), features=rows, ngrams=ngrams).double()
    ids = {data: token for token, data in reversed(list(enumerate(strings)))}
    seen: list[torch.Tensor] = []
    for token, data in enumerate(strings):
        for attempt in range(100):
            s = torch.zeros(rows, dtype=torch.float64)
            weights = {(WHOLE, data): 1.0, **features_of(data, ids, ngrams)}
            for (kind, piece), weight in weights.items():
                value = hashed_slowly(kind, piece, attempt if kind == WHOLE else 0)
                s[value // 2 % rows] += weight if value % 2 else -weight
            s = s / s.norm().clamp(min=1e-9)
            if s.norm() > 0.5 and all((s - other).abs().max() > 1e-7 for other in seen):
                break
        seen.append(s)
        row = (s @ head.codebook).detach()
        torch.testing.assert_close(head.matrix()[token].detach(), row, rtol=0, atol=1e-6)


def test_hashes_have_these_values() -> None:
    assert hash_of(WHOLE, b"") == splitmix64(0, 0) == 0xE220A8397B1DCDAF
    assert hash_of(WITHIN, b"ab", 1) == 5563376911661857646
    assert signed_row([(6, 3.0), (1, 4.0)], 8) == ((0, 0.8), (3, -0.6))
    assert signed_row([(6, 1.0), (7, 1.0)], 8) == ()  # they cancel
    # Tokens of the same bytes differ in what stands for the token as a whole.
    third = 0.57735
    assert composition((b"a", b"a"), 16, 0) == [
        ((1, -third), (5, -third), (11, third)),
        ((1, -third), (9, -third), (11, third)),
    ]


def test_nothing_but_the_codebook_is_stored() -> None:
    head = built((b"a", b"b", b"ab", b""), features=8)
    assert [(name, kind) for name, _, kind in head.stored()] == [("codebook", "table")]
    assert set(head.state_dict()) == {"codebook"}
    assert built(tuple(bytes([i]) for i in range(100))).codebook.shape == (25, 8)


def test_a_head_without_token_bytes_or_with_too_few_features_says_so() -> None:
    config = head_config({"name": "composed", "delta_rank": 0})
    with pytest.raises(ConfigError, match="there are no for a vocabulary of 9; give"):
        config.build(HeadShape(vocab_size=9, d_model=4, bos_id=0))
    with pytest.raises(ConfigError, match="there are 1 for a vocabulary of 9"):
        config.build(HeadShape(vocab_size=9, d_model=4, bos_id=0, token_bytes=(b"a",)))
    with pytest.raises(ConfigError, match="features 1 cannot tell token 2 .* vocabulary of 3"):
        built((b"a", b"b", b"c"), features=1)
