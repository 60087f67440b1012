"""Case transforms: lossless on any bytes, total on any marks, and the same as slow twins."""

import functools
import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers_support import KINDS, NASTY, body_of, built, english

from tokgolf.errors import TokenizerError
from tokgolf.tokenizers import Tokenizer, build_tokenizer, from_asset
from tokgolf.tokenizers.asset import TRANSFORMS, Extras, wrap
from tokgolf.tokenizers.transforms import transform_named

NAMES = TRANSFORMS[1:]
LETTERS = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
MARKS = frozenset(range(0xFB, 0x100))
GAP = frozenset(b" \"'()[]*-\xe2") | frozenset(range(0x80, 0xC0))
# T, A, C, E and L stand for the marks in examples, which have no other capitals.
MARK_OF = {"T": b"\xff", "A": b"\xfe", "C": b"\xfd", "E": b"\xfc", "L": b"\xfb"}

PARTS = [
    *(bytes([mark]) for mark in MARKS),
    *(bytes([byte]) for byte in b"abAB .!?:\n\"')-1,"),
    *(b" ", b". ", b"The", b" the", b"NASA", b" iPod", b"OpenAI", b"I", b"a"),
    *(word.encode() for word in ("é", "É", "“", "”", "’", "日", "\u00a0")),
    b"\xe2",
]
RICH = st.lists(st.sampled_from(PARTS), max_size=40).map(b"".join)
ANY_BYTES = st.one_of(RICH, RICH, st.binary(max_size=100), st.text(max_size=60).map(str.encode))

every_transform = pytest.mark.parametrize("name", NAMES)


def marked(text: str) -> bytes:
    """Marks by their letters: "Tthe" -> b"\\xffthe"."""
    return b"".join(MARK_OF.get(character, character.encode()) for character in text)


# --- slow twins


def starts_sentence(before: bytes) -> bool:
    """Whether a word after these bytes of a document starts a sentence."""
    spaced = False
    for byte in reversed(before):
        if byte == ord("\n"):
            return True
        if byte in b".!?:":
            return spaced
        if byte not in GAP:
            return False
        spaced |= byte == ord(" ")
    return True


def mark_word(word: bytes, expect_title: bool) -> tuple[bytes, bytes]:
    """The mark that a word may have before its space, and the rest of it with the others."""
    if len(word) > 1 and word.isupper():
        return b"\xfe", word.lower()
    first, rest = word[:1], word[1:]
    if first.isupper():
        mark = b"" if expect_title else b"\xff"
    else:
        mark = b"\xfb" if expect_title else b""
    later = (b"\xfd" + bytes([c]).lower() if bytes([c]).isupper() else bytes([c]) for c in rest)
    return mark, first.lower() + b"".join(later)


def slow_forward(name: str, data: bytes) -> bytes:
    out: list[bytes] = []
    place = 0
    while place < len(data):
        byte, start = data[place], place
        place += 1
        if byte in MARKS:
            out += [b"\xfc" + bytes([byte])]
        elif byte not in LETTERS:
            out += [bytes([byte])]
        else:
            while place < len(data) and data[place] in LETTERS:
                place += 1
            expect_title = name == "caps-auto" and starts_sentence(data[:start])
            mark, word = mark_word(data[start:place], expect_title)
            hoisted = name != "caps-v1" and out[-1:] == [b" "]
            out += [out.pop(), word] if hoisted and not mark else [mark, word]
            if hoisted and mark:
                out[-3:-1] = [mark, b" "]
    return b"".join(out)


def slow_inverse(name: str, data: bytes) -> tuple[bytes, list[bool]]:
    """The text, and for each byte whether it is one of its bytes."""
    text, live = bytearray(), []
    mode, fresh = 0, False  # the mark that waits for a letter; whether a space may still come
    escaped = False
    sentence = "yes"  # for the next letter; "spaced": when a space has come
    for byte in data:
        is_mark = byte in MARKS and not escaped
        escaped = is_mark and byte == 0xFC
        live.append(not is_mark)
        if is_mark:
            mode, fresh, sentence = byte, True, "no"
            continue
        if byte in LETTERS:
            title = name == "caps-auto" and sentence == "yes"
            raised = title or mode in (0xFD, 0xFE, 0xFF)
            text += bytes([byte]).upper() if raised else bytes([byte])
            mode, fresh = (mode if mode == 0xFE else 0), False
        else:
            text.append(byte)
            mode, fresh = (mode if byte == ord(" ") and fresh else 0), False
        if byte == ord("\n") or (byte == ord(" ") and sentence == "spaced"):
            sentence = "yes"
        elif byte in b".!?:":
            sentence = "spaced"
        elif byte not in GAP:
            sentence = "no"
    return bytes(text), live


# --- properties


@every_transform
@given(data=ANY_BYTES)
@settings(max_examples=400, deadline=None)
@example(b"\xff The")
@example(b"\xfe\xfc \xfb A")
@example(b"the The. the The: a\nB")
@example(b"  Two  Spaces.  Two  Spaces")
def test_forward_agrees_with_the_slow_twin_and_inverts(name: str, data: bytes) -> None:
    transform = transform_named(name)
    seen = transform.forward(data)
    assert seen == slow_forward(name, data)
    assert transform.inverse(seen) == data


@every_transform
@given(data=ANY_BYTES)
@settings(max_examples=400, deadline=None)
@example(b"\xfc")
@example(b"\xfc\xfc\xfc\xff a")
@example(b"\xff\xff  a\xfe a\xfea\xffb")
@example(b". \xfc a. \xfb\xff a\n\xff")
def test_inverse_takes_anything_and_agrees_with_the_slow_twin(name: str, data: bytes) -> None:
    text, live = slow_inverse(name, data)
    assert transform_named(name).inverse(data) == text
    assert transform_named(name).live(data).tolist() == live


@every_transform
@given(data=ANY_BYTES)
@settings(max_examples=200, deadline=None)
def test_live_bytes_are_the_text_but_for_case(name: str, data: bytes) -> None:
    transform = transform_named(name)
    live = transform.live(data)
    text = transform.inverse(data)
    assert live.dtype == np.bool_
    assert live.shape == (len(data),)
    assert live.sum() == len(text)
    assert np.frombuffer(data, np.uint8)[live].tobytes().lower() == text.lower()


@every_transform
@given(data=ANY_BYTES)
@settings(max_examples=200, deadline=None)
def test_no_capital_is_left_and_marks_are_all_that_is_added(name: str, data: bytes) -> None:
    seen = transform_named(name).forward(data)
    assert not any(65 <= byte <= 90 for byte in seen)
    live = transform_named(name).live(seen)
    added = np.frombuffer(seen, np.uint8)[~live].tolist()
    assert set(added) <= (MARKS if name == "caps-auto" else MARKS - {0xFB})
    assert added.count(0xFC) == sum(byte in MARKS for byte in data)


@every_transform
def test_every_byte_near_the_start_of_a_sentence_agrees_with_the_slow_twin(name: str) -> None:
    transform = transform_named(name)
    for byte in range(256):
        for around in (
            b"%ca",
            b"%c a",
            b"x%ca",
            b"x%c a",
            b"x. %ca",
            b"x.%c a",
            b"x.%ca",
            b"x.%cA",
        ):
            data = around % byte
            seen = transform.forward(data)
            assert seen == slow_forward(name, data)
            assert transform.inverse(seen) == data
            assert transform.inverse(data) == slow_inverse(name, data)[0]


@pytest.mark.parametrize("name", ["caps", "caps-auto"])
@given(data=ANY_BYTES)
@settings(max_examples=200, deadline=None)
def test_hoisted_marks_never_part_a_space_from_its_word(name: str, data: bytes) -> None:
    seen = transform_named(name).forward(data)
    live = transform_named(name).live(seen).tolist()
    for place in range(1, len(seen)):
        if not live[place] and seen[place] != 0xFC and seen[place - 1] == ord(" "):
            assert seen[place + 1] == ord(" ")


@every_transform
def test_english_comes_back_and_agrees_with_the_slow_twin(name: str) -> None:
    transform = transform_named(name)
    for document in english():
        seen = transform.forward(document)
        assert seen == slow_forward(name, document)
        assert transform.inverse(seen) == document == slow_inverse(name, seen)[0]


@every_transform
@pytest.mark.parametrize("data", NASTY, ids=repr)
def test_nasty_strings_come_back(name: str, data: bytes) -> None:
    transform = transform_named(name)
    assert transform.inverse(transform.forward(data)) == data


# --- examples


@pytest.mark.parametrize(
    ("text", "v1", "hoisted", "auto"),
    [
        ("", "", "", ""),
        ("The NASA", "Tthe Anasa", "TtheA nasa", "theA nasa"),
        ("OpenAI", "TopenCaCi", "TopenCaCi", "openCaCi"),
        ("an iPhone", "an iCphone", "an iCphone", "Lan iCphone"),
        ("I, A. B", "Ti, Ta. Tb", "Ti,T a.T b", "i,T a. b"),
        ("x HTTPServer", "x ThCtCtCpCserver", "xT hCtCtCpCserver", "LxT hCtCtCpCserver"),
        ("2Fast U2", "2Tfast Tu2", "2TfastT u2", "2TfastT u2"),
        ("naïve Éa ÉA", "naïve Éa ÉTa", "naïve Éa ÉTa", "Lnaïve Éa ÉTa"),
        ("Yes.  No", "Tyes.  Tno", "Tyes. T no", "yes.  no"),
        ("Yes. no", "Tyes. no", "Tyes. no", "yes.L no"),
        ("Yes.No", "Tyes.Tno", "Tyes.Tno", "yes.Tno"),
        ("“Oh?” (He", "“Toh?” (The", "“Toh?” (The", "“oh?” (he"),
        ("1\n- a\n* B: c", "1\n- a\n* Tb: c", "1\n- a\n*T b: c", "1\n-L a\n* b:L c"),
        ("OK. NASA", "Aok. Anasa", "Aok.A nasa", "Aok.A nasa"),
    ],
)
def test_examples_of_each_transform(text: str, v1: str, hoisted: str, auto: str) -> None:
    for name, expected in zip(NAMES, (v1, hoisted, auto), strict=True):
        assert transform_named(name).forward(text.encode()) == marked(expected)


def test_literal_marks_are_escaped_also_before_a_space() -> None:
    for name in NAMES:
        transform = transform_named(name)
        seen = transform.forward(b"x\xff y\xfc\xfb")
        assert seen.endswith(b"x\xfc\xff y\xfc\xfc\xfc\xfb")
        assert transform.inverse(seen) == b"x\xff y\xfc\xfb"


@pytest.mark.parametrize(
    ("damaged", "text"),
    [
        ("T", ""),
        ("E", ""),
        ("EEE", "\udcfc"),
        ("ET a", "\udcff a"),
        ("Ea", "a"),
        ("T  a", "  a"),
        ("T1a", "1a"),
        ("A ab cd", " AB cd"),
        ("AaTb", "AB"),
        ("TTTa", "A"),
        ("Cé", "é"),
    ],
)
def test_marks_out_of_place_decode_to_something(damaged: str, text: str) -> None:
    data, expected = marked(damaged), text.encode("utf-8", "surrogateescape")
    for name in NAMES:
        prefix = b"x " if name == "caps-auto" else b""  # away from the start of a sentence
        undone = transform_named(name).inverse(prefix + data).lower()
        assert undone == (prefix + expected).lower().replace(b"x ", prefix)
    assert transform_named("caps").inverse(data) == expected


def test_names_are_those_of_the_asset_format() -> None:
    for name in NAMES:
        assert transform_named(name).name == name
        assert transform_named(name) is transform_named(name)
    for name in ("none", "caps-v2"):
        with pytest.raises(TokenizerError, match=f"'{name}'; use one of .*'caps-auto'"):
            transform_named(name)


def test_prose_has_the_fewest_marks_with_title_case_for_granted() -> None:
    text = b"It rained. We stayed in, and Anna read.\n'Is NASA in Houston?' she said. Yes! And how?"
    added = [len(transform_named(name).forward(text)) - len(text) for name in NAMES]
    assert added == [8, 8, 4]


# Quadratic work on a megabyte would not end within the hour.
@every_transform
@pytest.mark.parametrize(
    "unit",
    [b"A", b"a", b"aA", b"A ", b" ", b"\n ", b". ", b'."', b'"', b". A", b"\xff", b"\xfc\xff"],
    ids=repr,
)
def test_a_megabyte_of_one_thing_comes_back(name: str, unit: bytes) -> None:
    transform = transform_named(name)
    data = b"." + unit * (1_000_000 // len(unit)) + b"b"
    seen = transform.forward(data)
    assert transform.inverse(seen) == data
    assert transform.live(seen).sum() == len(data)
    assert transform.live(data).sum() == len(transform.inverse(data))


# --- tokenizers with a transform


@functools.cache
def cased(name: str) -> Tokenizer:
    """A BPE learned from transformed text, that carries the transform."""
    documents = [transform_named(name).forward(document) for document in english()]
    body = body_of(build_tokenizer("bpe", documents, 600))
    return from_asset(wrap("bpe", body, Extras(transform=name)))


def check_alignment(tokenizer: Tokenizer, data: bytes) -> None:
    """Lossless, and each token stands for just the bytes of the text that it holds."""
    ids = tokenizer.encode(data)
    assert tokenizer.decode(ids) == data
    lengths = tokenizer.byte_lengths(ids)
    assert lengths.sum() == len(data)
    pieces = [tokenizer.token_bytes[token] for token in ids.tolist()]
    assert tokenizer.transform is not None
    text, live = slow_inverse(tokenizer.transform.name, b"".join(pieces))
    assert text == data
    start = seen = 0
    for piece, length in zip(pieces, lengths.tolist(), strict=True):
        own = bytes(byte for at, byte in enumerate(piece, seen) if live[at])
        assert own.lower() == data[start : start + length].lower()
        assert len(own) == length
        start, seen = start + length, seen + len(piece)
    assert start == len(data)


@every_transform
@given(data=ANY_BYTES)
@settings(max_examples=150, deadline=None)
def test_a_tokenizer_is_lossless_and_counts_bytes_where_they_are(name: str, data: bytes) -> None:
    check_alignment(cased(name), data)


@every_transform
def test_a_tokenizer_counts_bytes_on_english(name: str) -> None:
    text, rng = b"".join(english()), random.Random(7)
    for _ in range(30):
        start = rng.randrange(len(text))
        check_alignment(cased(name), text[start : start + 300])


@every_transform
def test_no_learned_token_holds_a_mark_or_a_capital(name: str) -> None:
    tokens = cased(name).token_bytes[257:]
    assert not any(byte in MARKS or 65 <= byte <= 90 for token in tokens for byte in token)


@every_transform
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("data", [b"The NASA of OpenAI. the \xff END", *NASTY], ids=repr)
def test_every_kind_takes_every_transform(kind: str, name: str, data: bytes) -> None:
    check_alignment(
        from_asset(wrap(kind, body_of(built(kind)), Extras(transform=name))), data
    )  # fmt: skip


@every_transform
def test_any_sequence_of_ids_decodes_to_as_many_bytes_as_are_counted(name: str) -> None:
    tokenizer, rng = cased(name), np.random.default_rng(3)
    for _ in range(200):
        ids = rng.choice([*range(245, 300), 32, 46, 65, 97], size=40)
        assert tokenizer.byte_lengths(ids).sum() == len(tokenizer.decode(ids))


def test_the_transform_is_part_of_the_tokenizer() -> None:
    prints = {cased(name).fingerprint for name in NAMES}
    assert len(prints) == len(NAMES)
    restored = from_asset(cased("caps").asset())
    assert restored.transform is transform_named("caps")
    assert built("bpe").transform is None
