"""Encoding long runs in overlapping windows: linear in time, and exact.

Both engines are bad at one word of megabytes: `tokenizers` panics at 10 MB of spaces (its regular
expression gives up) and takes 200 bytes of memory a byte, fastokens takes about n log n with ever
more cache misses (16 seconds for them, at 100 MB of text a second). So a run of letters, of
punctuation, of blanks or of one character that is longer than two blocks is encoded in windows.
Other long words, such as a million mixed emoji, are left to the engine.
"""

import re
import unicodedata
from collections.abc import Callable

import numpy as np

EngineIds = np.ndarray[tuple[int], np.dtype[np.uint32]]
Encode = Callable[[list[str]], list[EngineIds]]

# Windows end between two blocks, so that what is left of a run is a block at least on both
# sides; a tail of _MOST_TAIL tokens, each at most 256 bytes, is shorter than a block.
_BLOCK, _TAIL, _MOST_TAIL = 8192, 16, 24

# Runs that every named pattern keeps in one piece wherever they start or end. Letters are those
# that every version of Unicode has; the apostrophe can begin "'s"; blanks see `_may_be_cut`.
_RUNS = {
    "letters": re.compile(
        "[A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u02af\u0391-\u03a1\u03a3-\u03c9\u0410-\u044f"
        "\u05d0-\u05ea\u3041-\u3094\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3]+"
    ),
    "punctuation": re.compile(r"[!-&(-/:-@\[-`{-~]+"),
    "blanks": re.compile("[ \t\u00a0\u3000]+"),
}
_DIGITS = re.compile("[0-9]+")


def encode_in_windows(
    texts: list[str], encode: Encode, tokens: list[bytes], long_numbers: bool
) -> list[EngineIds]:
    """The ids that `encode` gives for each text, long runs in windows.

    `tokens` are the bytes of the ids; `long_numbers` says that the pattern, one of the named ones,
    keeps any number of digits together.
    """
    edges = [_edges(text, long_numbers) for text in texts]
    if not any(edges):
        return encode(texts)
    plain = iter(encode([text for text, found in zip(texts, edges, strict=True) if not found]))
    return [
        _encode_long(text, found, lambda part: encode([part])[0], tokens) if found else next(plain)
        for text, found in zip(texts, edges, strict=True)
    ]


def _encode_long(
    text: str, edges: list[int], encode: Callable[[str], EngineIds], tokens: list[bytes]
) -> EngineIds:
    """Encode text in windows that end at `edges`, places deep inside of long runs.

    Windows overlap: each starts some tokens before the end of the last, at one of its token
    boundaries, and the two must agree on the token there. That makes the result exact. Ids are
    what BPE gives for a word if and only if each two neighbours are what it gives for their own
    bytes: up to the first merge across a boundary the words left and right of it are merged as if
    alone, so this merge would come in the pair alone as well, and the other way round. Here every
    pair of neighbours is one inside of a window.
    """
    parts: list[EngineIds] = []
    start, expected = last = (0, -1)
    for end in [*edges, len(text)]:
        ids = encode(text[start:end])
        if start and ids[0] != expected:  # seldom: the last window's end was too near
            start, expected = last
            parts.pop()
            ids = encode(text[start:end])
        tail = next((n for n in range(_TAIL, _MOST_TAIL) if _starts(tokens[ids[-n]])), 0)
        if (start and ids[0] != expected) or not tail:
            return encode(text)
        last = start, expected
        overlap = b"".join([tokens[token] for token in ids[-tail:].tolist()])
        start, expected = end - len(overlap.decode()), int(ids[-tail])
        parts.append(ids if end == len(text) else ids[:-tail])
    return np.concatenate(parts)


def _starts(token: bytes) -> bool:
    """Whether a token starts with a character, and not inside of one."""
    return not 0x80 <= token[0] < 0xC0


def _edges(text: str, long_numbers: bool) -> list[int]:
    """The block boundaries between two blocks of one run; most text has none."""
    edges: list[int] = []
    run, first = "", 0
    for start in range(0, len(text) + 1, _BLOCK) if len(text) >= 2 * _BLOCK else ():
        found = _run_of(text, start, long_numbers)
        if found != run:
            if run and _may_be_cut(run, text, first, start):
                edges += range(first + _BLOCK, start, _BLOCK)
            run, first = found, start
    return edges


def _run_of(text: str, start: int, long_numbers: bool) -> str:
    """What the whole block at `start` consists of: a name of `_RUNS`, one character, or ""."""
    end = start + _BLOCK
    if end > len(text):
        return ""
    for name, run in _RUNS.items():
        if run.fullmatch(text, start, end):
            return name
    if long_numbers and _DIGITS.fullmatch(text, start, end):
        return "digits"
    character = text[start]
    if text[end - 1] != character or text.count(character, start, end) < _BLOCK:
        return ""
    # Numbers are cut into groups, which a window must not shift. All else may be cut.
    runs = character in "\n\0" or unicodedata.category(character)[0] in "LMPS"
    return character if runs else ""


def _may_be_cut(run: str, text: str, start: int, end: int) -> bool:
    """Whether windows may end within the blocks from `start` to `end`, of what `_run_of` says.

    All whitespace up to its last newline is one word, so blanks may not have a newline on both
    sides: a part of them would be cut from the first. A newline stays with what is before it, so
    other whitespace after newlines makes them another word than without.
    """
    if run not in ("blanks", "\n"):
        return True
    same = "\n" if run == "\n" else " \t\u00a0\u3000"
    before = text[max(0, start - _BLOCK) : start].rstrip(same)
    after = text[end : end + _BLOCK].lstrip(same)
    beside = before[-1:].isspace(), after[:1].isspace()
    return not (any(beside) if run == "\n" else all(beside))
