"""Case marks: text in lower case, with a mark where a capital was, so that `The` is `the`.

A mark is one byte that no valid UTF-8 holds. So it is a byte token in every tokenizer, never part
of a longer one, and costs no vocabulary. In damaged text the same bytes are written after ESC.

A word is a maximal run of ASCII letters; all other letters stay as they are. A word with one
capital or more gets ALLCAPS (at least two letters, all capitals) or else TITLE, if its first letter
is one, and CAPNEXT before each later capital. That is "caps-v1", the rule of the public
records (openai/parameter-golf PR #1729), though there each mark is a character of three bytes:

    caps-v1     "The NASA of OpenAI"  ->  "[T]the [A]nasa of [T]open[C]a[C]i"
    caps        "The NASA of OpenAI"  ->  "[T]the[A] nasa of[T] open[C]a[C]i"
    caps-auto   "The NASA of OpenAI"  ->  "the[A] nasa of[T] open[C]a[C]i"

"caps" puts a mark before the space that its word follows, so that " the" can be one token.
"caps-auto" takes TITLE for granted where a sentence starts, and has LOWER at the words there
that do not begin with a capital. A sentence starts with the document or a line, and after
one of ".!?:" with a space somewhere behind it; quotes, brackets, "-", "*" and the characters from
U+2000 to U+2FFF (among them curly quotes, dashes and bullets) may lie between that and the word.
Of the 102,000 words so placed in 10 MB of English web text, those all in capitals left out, 93%
begin with one; no other kind of place that was tried would save 1% of the marks.

Only marks come and go, and every letter stays one byte, so the text's bytes are the bytes that
are not marks, in order.
"""

import re
from typing import ClassVar, final

import numpy as np

from tokgolf.errors import TokenizerError
from tokgolf.tokenizers.base import Transform

TITLE, ALLCAPS, CAPNEXT, ESC, LOWER = b"\xff", b"\xfe", b"\xfd", b"\xfc", b"\xfb"

# Each capital that gets a mark: group 1 is the rest of a word all in capitals, group 2 matches
# (nothing) at any other start of a word. Every pattern starts with a set of bytes, which `re`
# skips to quickly, and goes over no byte more than a fixed number of times.
_CAPITAL = re.compile(rb"[A-Z](?:(?<![A-Za-z].)(?:([A-Z]+)(?![A-Za-z])|()))?")
_MARKS_OF_GROUP = CAPNEXT, ALLCAPS, TITLE
_MARKED = re.compile(
    rb"[\xfb-\xff](?:(?<=\xfc)[\xfb-\xff]|(?<=\xfe) ?[A-Za-z]*|(?<=[\xfd\xff]) ?[a-z]?)?"
)
_ESCAPED = re.compile(rb"\xfc[\xfb-\xff]")
_QUOTES = rb"\"'()\[\]*\-\xe2\x80-\xbf"
_SENTENCE = rb"[\n.!?:](?:(?<=\n)|[%b]* )[ %b]*" % (_QUOTES, _QUOTES)
_TITLE_OR_LOWER = re.compile(_SENTENCE + rb"(?:\xff|(?=[a-z]))")
_UNMARKED = re.compile(_SENTENCE + rb"(?=[a-z])")


def transform_named(name: str) -> Transform:
    """The transform that an asset calls `name`; there is one object of each.

    Raises `TokenizerError` for any other name.
    """
    if name not in _TRANSFORMS:
        raise TokenizerError(f"no transform is called {name!r}; use one of {list(_TRANSFORMS)}")
    return _TRANSFORMS[name]


def _mark(data: bytes) -> bytes:
    """caps-v1. Literal marks are escaped, ESC first; then `lower` changes ASCII letters only."""
    for mark in (ESC, TITLE, ALLCAPS, CAPNEXT, LOWER):
        data = data.replace(mark, ESC + mark)
    return _CAPITAL.sub(lambda m: _MARKS_OF_GROUP[m.lastindex or 0] + m[0], data).lower()


def _hoist(data: bytes) -> bytes:
    """Marks directly after a space go before it. A mark that is text follows ESC, so it stays."""
    for mark in (TITLE, ALLCAPS, LOWER):
        data = data.replace(b" " + mark, mark + b" ")
    return data


def _unmark(data: bytes) -> bytes:
    """The text of anything with marks, hoisted or not.

    TITLE and CAPNEXT raise the letter after them, ALLCAPS all letters up to the next other byte;
    one space may lie between. ESC makes a mark text. A mark without its object is dropped.
    """
    return _MARKED.sub(lambda m: m[0][1:].upper(), data)


def _live(data: bytes) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.frombuffer(_ESCAPED.sub(ESC + b"\0", data), np.uint8) < LOWER[0]


@final
class CapsV1(Transform):
    """Marks directly before words."""

    name: ClassVar[str] = "caps-v1"

    def forward(self, data: bytes) -> bytes:
        """b"The NASA" -> b"\\xffthe \\xfenasa" """
        return _mark(data)

    def inverse(self, data: bytes) -> bytes:
        """b"\\xffthe \\xfenasa" -> b"The NASA" """
        return _unmark(data)

    def live(self, data: bytes) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """False for marks: b"\\xffa" -> [False, True]"""
        return _live(data)


@final
class Caps(Transform):
    """Marks before the space that their words follow."""

    name: ClassVar[str] = "caps"

    def forward(self, data: bytes) -> bytes:
        """b"The NASA" -> b"\\xffthe\\xfe nasa" """
        return _hoist(_mark(data))

    def inverse(self, data: bytes) -> bytes:
        """b"\\xffthe\\xfe nasa" -> b"The NASA" """
        return _unmark(data)

    def live(self, data: bytes) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """False for marks: b"\\xff a" -> [False, True, True]"""
        return _live(data)


@final
class CapsAuto(Transform):
    """Marks as in "caps", but at the start of a sentence only for what is no title case."""

    name: ClassVar[str] = "caps-auto"

    def forward(self, data: bytes) -> bytes:
        """b"The end. An iPod" -> b"the end. an\\xff i\\xfdpod" """
        # The newline makes the document start a line.
        marked = _TITLE_OR_LOWER.sub(
            lambda m: m[0][:-1] if m[0].endswith(TITLE) else m[0] + LOWER, b"\n" + _mark(data)
        )
        return _hoist(marked)[1:]

    def inverse(self, data: bytes) -> bytes:
        """b"the end. an i\\xfdpod" -> b"The end. An iPod" """
        return _unmark(_UNMARKED.sub(lambda m: m[0] + TITLE, b"\n" + data))[1:]

    def live(self, data: bytes) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """False for marks: b"\\xfba" -> [False, True]"""
        return _live(data)


_TRANSFORMS: dict[str, Transform] = {each.name: each for each in (CapsV1(), Caps(), CapsAuto())}
