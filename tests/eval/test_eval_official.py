"""The challenge's metric against its rule written out slowly, on models trained here."""

import json
import math
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from official_support import built, documents, imported, model

from tokgolf.errors import ScoreError
from tokgolf.eval.official import (
    byte_table,
    normalise,
    official_totals,
    official_windows,
    scored_targets,
    token_stream,
)
from tokgolf.tokenizers import Tokenizer, build_tokenizer, from_asset
from tokgolf.tokenizers.foreign import foreign_asset

BYTE260 = json.dumps(
    {
        "tokenizer_type": "pure_byte",
        "config": {"bos_id": 1, "byte_offset": 4, "byte_count": 256},
        "vocab_size": 260,
    }
).encode()


def tokenizers() -> dict[str, Tokenizer]:
    """One of every sort whose bytes must come out exactly."""
    caps = build_tokenizer("bpe", documents(), 500, transform="caps")
    return {
        "official": imported(),
        "identity": imported("identity"),
        "unigram": imported("unigram"),
        "byte260": from_asset(foreign_asset(BYTE260)),
        "bpe": built("bpe"),
        "byte": built("byte"),
        "sentencepiece": built("sentencepiece"),
        "caps": caps,
    }


TEXT = st.text("abT 1\n\t\u3000\ufb01\uff21\u2460e\u0301\u2581\u200b\0\u00e9", max_size=30)
TOKENIZERS = ["official", "identity", "unigram", "byte260", "bpe", "byte", "sentencepiece", "caps"]
EVERY = pytest.mark.parametrize("name", TOKENIZERS)


@pytest.fixture(scope="module")
def every() -> dict[str, Tokenizer]:
    return tokenizers()


def slow_bytes(engine: Any, before: int, target: int) -> int:
    """The challenge's rule for one target, in the words of facts about it."""
    if engine.is_control(target) or engine.is_unknown(target) or engine.is_unused(target):
        return 0
    if engine.is_byte(target):
        return 1
    piece = engine.id_to_piece(target)
    size = 0
    if piece[0] == "\u2581":
        piece = piece[1:]
        control = engine.is_control(before) or engine.is_unknown(before)
        size = 0 if control or engine.is_unused(before) else 1
    return size + len(piece.encode())


# --- text


@pytest.mark.parametrize(
    ("raw", "normal"),
    [
        (b"", b""),
        (b" \n\t ", b""),
        (b" a\n\n\tb  c ", b"a b c"),
        ("\ufb01 \uff21\u3000\u2460".encode(), b"fi A 1"),
        (b"Case Stays", b"Case Stays"),
        ("a\u2581b".encode(), b"a b"),
    ],
)
def test_text_is_normalised_as_the_challenge_does(raw: bytes, normal: bytes) -> None:
    assert normalise(raw) == normal


def test_normalised_text_need_not_stay_as_it_is() -> None:
    once = normalise("\ufb01\u0301".encode())
    assert once == "fi\u0301".encode() and normalise(once) == "f\u00ed".encode()


def test_bytes_that_are_no_text_are_named() -> None:
    with pytest.raises(ScoreError, match="byte 1 of a document of 3 is no UTF-8"):
        normalise(b"a\xffb")


# --- bytes


@pytest.mark.parametrize("variant", ["official", "identity", "interior", "suffix", "no bytes"])
def test_the_table_is_the_rule(variant: str) -> None:
    engine = sentencepiece.SentencePieceProcessor(model_proto=model(variant))
    tokens = token_stream(imported(variant), documents()).tokens
    slow = [slow_bytes(engine, *pair) for pair in np.stack([tokens[:-1], tokens[1:]], 1).tolist()]
    assert byte_table(imported(variant)).target_bytes(tokens).tolist() == slow


@EVERY
def test_bytes_are_those_of_the_normalised_documents(every: Any, name: str) -> None:
    stream = token_stream(every[name], documents())
    texts = [normalise(data) for data in documents()]
    assert stream.document_bytes.tolist() == stream.text_bytes.tolist() == [*map(len, texts)]
    assert stream.raw_bytes.tolist() == [*map(len, documents())]
    assert stream.decoded.all()


@EVERY
def test_the_stream_has_a_bos_before_each_document(every: Any, name: str) -> None:
    tokenizer = every[name]
    stream = token_stream(tokenizer, documents())
    assert (stream.tokens[stream.starts] == tokenizer.bos_id).all()
    assert (stream.tokens == tokenizer.bos_id).sum() == len(documents())
    parts = np.split(stream.tokens, stream.starts[1:])
    texts = [tokenizer.decode(part[1:]) for part in parts]
    assert texts == [normalise(data) for data in documents()]


@EVERY
def test_raw_and_normalised_documents_give_one_stream(every: Any, name: str) -> None:
    raw, normal = (
        token_stream(every[name], texts)
        for texts in (documents(), [normalise(data) for data in documents()])
    )
    assert np.array_equal(raw.tokens, normal.tokens)
    assert np.array_equal(raw.target_bytes, normal.target_bytes)


@pytest.mark.parametrize("variant", ["official", "dummy prefix"])
@given(texts=st.lists(TEXT, max_size=4))
@settings(deadline=None)
def test_a_normalising_model_gets_the_text_as_it_is(variant: str, texts: list[str]) -> None:
    engine = sentencepiece.SentencePieceProcessor(model_proto=model(variant))
    stream = token_stream(imported(variant), [b"first", *(text.encode() for text in texts)])
    expected = [token for text in ["first", *texts] for token in [1, *engine.encode(text)]]
    assert stream.tokens.tolist() == expected
    assert np.array_equal(stream.document_bytes, stream.text_bytes)
    assert stream.decoded.all()


@pytest.mark.parametrize(("variant", "sign"), [("interior", 1), ("suffix", 1), ("no bytes", -1)])
def test_a_model_that_the_table_gets_wrong_shows(variant: str, sign: int) -> None:
    stream = token_stream(imported(variant), documents())
    assert np.sign((stream.document_bytes - stream.text_bytes).sum()) == sign


def test_a_model_with_unknowns_does_not_decode() -> None:
    stream = token_stream(imported("no bytes"), ["caf\u00e9 \u2026".encode(), b"in a"])
    assert stream.decoded.tolist() == [False, True]


def test_no_documents_are_named() -> None:
    with pytest.raises(ScoreError, match="0 documents"):
        token_stream(built("byte"), [])


# --- windows


@given(st.integers(1, 200), st.integers(1, 20), st.integers(0, 20))
def test_windows_pay_for_each_target_once(targets: int, length: int, stride: int) -> None:
    stride = min(stride, length)
    paid: list[int] = []
    for start, first, end in official_windows(targets, length, stride):
        assert start % (stride or length) == 0 and start <= first < end <= start + length
        paid += range(first, end)
    assert paid == [*range(targets)]


def test_every_sliding_window_after_the_first_pays_for_its_last_targets() -> None:
    assert [*official_windows(8, 4, 2)] == [(0, 0, 4), (2, 4, 6), (4, 6, 8)]
    assert [*official_windows(8, 4)] == [(0, 0, 4), (4, 4, 8)]
    # Without the tail rule there would be one more, from 8, that pays for nothing new.
    assert [*official_windows(10, 4, 2)][-1] == (6, 8, 10)


@pytest.mark.parametrize(
    ("tokens", "targets"), [(1, 0), (1024, 0), (1025, 1024), (2048, 1024), (2049, 2048)]
)
def test_the_stream_is_cut_to_whole_windows(tokens: int, targets: int) -> None:
    assert scored_targets(tokens, 1024) == targets


@pytest.mark.parametrize("stride", [-1, 5])
def test_a_stride_that_leaves_gaps_is_refused(stride: int) -> None:
    with pytest.raises(ScoreError, match=f"stride is {stride}; it must be 1 to the window of 4"):
        list(official_windows(8, 4, stride))


def test_a_window_without_tokens_is_refused() -> None:
    with pytest.raises(ScoreError, match="window is 0"):
        scored_targets(8, 0)


# --- the two numbers


@given(st.data())
@settings(deadline=None, max_examples=40)
def test_totals_are_the_slow_sums(data: st.DataObject) -> None:
    stream = token_stream(built("byte"), documents()[-4:])
    most = len(stream.target_bytes)
    count = data.draw(st.integers(most // 2, most))
    nats = np.random.default_rng(count).exponential(size=count)
    totals = official_totals(stream, nats)
    slow_nats, slow_bytes, document = [0.0] * 4, [0] * 4, -1
    for place, token in enumerate(stream.tokens[: count + 1].tolist()):
        if place:
            slow_nats[document] += nats[place - 1]
            slow_bytes[document] += token != 256
        document += token == 256
    assert totals.nats == pytest.approx(slow_nats)
    assert totals.bytes.tolist() == slow_bytes
    assert totals.val_loss == pytest.approx(nats.sum() / count)
    assert totals.val_bpb == pytest.approx(nats.sum() / math.log(2) / sum(slow_bytes))
    assert totals.targets == count


def test_loss_over_bits_is_bytes_a_token() -> None:
    stream = token_stream(imported(), documents())
    totals = official_totals(stream, np.full(len(stream.target_bytes), 2.0))
    identity = totals.val_loss / (math.log(2) * totals.val_bpb)
    assert identity == pytest.approx(stream.target_bytes.sum() / len(stream.target_bytes))


@pytest.mark.parametrize(
    ("nats", "message"),
    [
        (np.zeros(0), "0 targets were scored of a stream that has 1"),
        (np.zeros(9), "9 targets were scored of a stream that has 1"),
        (np.array([np.nan]), "1 of 1 targets have no finite nats"),
        (np.array([1.0]), "0 bytes"),
    ],
)
def test_what_cannot_be_a_score_is_named(nats: Any, message: str) -> None:
    stream = token_stream(built("byte"), [b"", b""])
    with pytest.raises(ScoreError, match=message):
        official_totals(stream, nats)
