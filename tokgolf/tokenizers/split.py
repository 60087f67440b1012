"""Where text is cut before merging: no token crosses a cut.

A pattern is named by a base and options, joined by "+":

    gpt4       cl100k's split without its possessive quantifiers: one leading character of any
               sort stays with a word, digits in groups of three
    gpt2       GPT-2's: one leading space stays with a word, a number or punctuation
    +digitsN   at most N digits together, N = 1, 2 or 3
    +scripts   a word ends where its script changes; Han and kana count as one
    +words     words in a row are not cut apart: tokens may cross spaces (as in SuperBPE, Liu et
               al. 2025)

or given in full as "regex:" and a regular expression of the `tokenizers` library (Oniguruma). In
an asset it is one byte (base, digits, scripts and words in bits 0, 1-2, 3 and 4), or 255, the
length of the expression as a varint and its UTF-8.
"""

from functools import lru_cache
from typing import Any

from tokgolf.errors import TokenizerError
from tokgolf.tokenizers.asset import read_varint, varint

BASES = ("gpt4", "gpt2")
OPTIONS = ("digits1", "digits2", "digits3", "scripts", "words")
_CUSTOM = 255
_PREFIX = "regex:"
MAX_REGEX_BYTES = 4096

_SCRIPTS = (
    r"\p{Latin} \p{Greek} \p{Cyrillic} \p{Hebrew} \p{Arabic} \p{Devanagari} \p{Thai} \p{Hangul} "
    r"\p{Han}\p{Hiragana}\p{Katakana}"
).split()


def expression(pattern: str) -> str:
    """The regular expression that a pattern stands for. Raises `TokenizerError` for a bad name.

    "gpt2+digits1" -> "'s|'t|... ?\\p{L}+| ?\\p{N}{1,1}| ..."
    """
    if pattern.startswith(_PREFIX):
        return pattern.removeprefix(_PREFIX)
    base, digits, scripts, words = _parse(pattern)
    letters = r"\p{L}+"
    if scripts:
        runs = [f"[{script}]+" for script in _SCRIPTS]
        letters = rf"(?:{'|'.join(runs)}|[\p{{L}}&&[^{''.join(_SCRIPTS)}]]+)"
    word = r"[^\r\n\p{L}\p{N}]?" + letters if base == "gpt4" else " ?" + letters
    if words:
        word = f"(?:{word})+"
    if base == "gpt4":
        return (
            rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{word}|\p{{N}}{{1,{digits or 3}}}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    number = rf" ?\p{{N}}{{1,{digits}}}" if digits else r" ?\p{N}+"
    return rf"'s|'t|'re|'ve|'m|'ll|'d|{word}|{number}| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"


def pack_pattern(pattern: str) -> bytes:
    """A pattern as it stands in an asset; `read_pattern` reads it."""
    if pattern.startswith(_PREFIX):
        regex = expression(pattern).encode()
        if not 0 < len(regex) <= MAX_REGEX_BYTES:
            raise TokenizerError(
                f"the split expression has {len(regex)} bytes; 1 to {MAX_REGEX_BYTES} are allowed"
            )
        return bytes([_CUSTOM]) + varint(len(regex)) + regex
    base, digits, scripts, words = _parse(pattern)
    return bytes([BASES.index(base) | digits << 1 | scripts << 3 | words << 4])


def read_pattern(body: bytes) -> tuple[str, bytes]:
    """The pattern at the start of an asset's body, and what follows it."""
    if body[:1] == bytes([_CUSTOM]):
        length, start = read_varint(body, 1)
        regex = body[start : start + length]
        if not len(regex) == length <= MAX_REGEX_BYTES or not regex:
            raise TokenizerError(
                f"tokenizer asset claims a split expression of {length} bytes and has "
                f"{len(regex)}; 1 to {MAX_REGEX_BYTES} are allowed; build it again"
            )
        try:
            return _PREFIX + regex.decode("utf-8"), body[start + length :]
        except UnicodeDecodeError as error:
            raise TokenizerError(
                f"tokenizer asset has a split expression that is no text ({error}); build it again"
            ) from error
    if not body or body[0] >> 5:
        raise TokenizerError(
            f"tokenizer asset starts with {body[:1]!r}, but a split pattern below 32 is expected; "
            "build it again"
        )
    code = body[0]
    chosen = [f"digits{code >> 1 & 3}"] if code >> 1 & 3 else []
    chosen += [name for name, bit in (("scripts", 3), ("words", 4)) if code >> bit & 1]
    return "+".join([BASES[code & 1], *chosen]), body[1:]


def _parse(pattern: str) -> tuple[str, int, bool, bool]:
    """Base, most digits together (0: the base's own), scripts, words."""
    base, *options = pattern.split("+")
    numbers = [int(name[-1]) for name in options if name.startswith("digits")]
    known = base in BASES and set(options) <= set(OPTIONS)
    if not known or len(set(options)) < len(options) or len(numbers) > 1:
        raise TokenizerError(
            f"unknown split pattern {pattern!r}; use {' or '.join(BASES)}, with any of "
            f"{', '.join('+' + name for name in OPTIONS)}, or regex:EXPRESSION"
        )
    return base, numbers[0] if numbers else 0, "scripts" in options, "words" in options


@lru_cache(maxsize=8)  # one of an asset may take 3 MB
def compiled(pattern: str) -> Any:
    """The library's own form of a pattern. Raises `TokenizerError` if it does not compile."""
    import tokenizers

    try:
        return tokenizers.Regex(expression(pattern))
    except Exception as error:  # the library raises nothing narrower
        raise TokenizerError(
            f"the split expression {expression(pattern)!r} does not compile ({error}); "
            "mend it, or use --pattern gpt4"
        ) from error
