"""Shared by the tokenizer tests: a fixed English text, tokenizers built once, forged assets."""

import functools
import pydoc_data.topics

from tokgolf.tokenizers import Tokenizer, build_tokenizer
from tokgolf.tokenizers.asset import wrap

KINDS = ("byte", "bpe", "unigram", "sentencepiece", "greedy", "shortest")  # what can be built

NASTY = [
    b"",
    b" ",
    b"  leading, trailing and   inner spaces   ",
    b"\t\n\r\n\n\r\v\f\x85",
    b"\0",
    b"a\0b\0\0",
    bytes(range(256)),
    bytes(range(255, -1, -1)) * 3,
    b"\xff\xfe\xfd",
    b"\xc3",  # a first byte without its second
    b"text \xc3\x28 text \xe2\x82 text",
    b"\xed\xa0\x80",  # a lone surrogate, as some encoders write it
    b"\xc0\x80",  # NUL, overlong
    b"\xf4\x90\x80\x80",  # beyond U+10FFFF
    "\ufeffbyte order mark".encode(),
    "\u2581one\u2581two \u2581 three".encode(),
    "\u2047 \u2585 \ufffd \ufffe \uffff".encode(),
    b"<unk> <s> </s> <0x41> <0xFF> <|endoftext|> [UNK] [CLS]",
    "ﬁ Å Å ½ ｆｕｌｌ ＷＩＤＴＨ ①".encode(),
    "\u00a0\u3000\u2009\u200b\u200c\u200d\u00ad\u202e\u2028\u2029".encode(),
    "👩‍👩‍👧‍👦 🇩🇪 👍🏽 e\u0301 한글 日本語 עברית हिन्दी".encode(),
    "don't DON'T it's I'LL 12345678 3.14159 x²".encode(),
    "\U0010ffff\ue000".encode(),
]


@functools.cache
def english() -> tuple[bytes, ...]:
    """About 120 kB of Python's own documentation, as documents."""
    topics = [text.encode() for _, text in sorted(pydoc_data.topics.topics.items())]
    return tuple(topics[: len(topics) // 4])


@functools.cache
def built(kind: str, vocab_size: int = 600) -> Tokenizer:
    """A tokenizer of this kind learned from `english`."""
    return build_tokenizer(kind, english(), None if kind == "byte" else vocab_size)


def body_of(tokenizer: Tokenizer) -> bytes:
    """The body of a tokenizer's asset: what lies between its header and its checksum."""
    return tokenizer.asset()[7:-4]


def forged(kind: str, body: bytes) -> bytes:
    """An asset with any body and a right checksum, as a hostile writer would make it."""
    return wrap(kind, body)
