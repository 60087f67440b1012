"""Byte-level BPE: a table of merges, encoded by the `tokenizers` library rebuilt from it.

Merge i joins two older tokens into id 257 + i; lower merges win. Every prefix of the table is
a smaller tokenizer. The asset body is the pattern (1 byte, an index into PATTERNS), the number
of merges (2 bytes, little-endian), then the id pairs, range coded: left and right ids each from
an adaptive table where a byte starts at BYTE_COUNT, a new token at NEW_COUNT and every use adds
USE_COUNT. That takes 1.8 to 2.5 bytes a merge at 512 to 4096 tokens, against 4 as plain uint16.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, final

from tokgolf.errors import TokenizerError
from tokgolf.tokenizers.asset import unwrap
from tokgolf.tokenizers.base import (
    BYTE_TOKENS,
    MAX_TOKEN_BYTES,
    MIN_VOCAB_SIZE,
    Ids,
    Tokenizer,
    encode_runs,
)
from tokgolf.tokenizers.rangecoder import Frequencies, RangeDecoder

# Where text is cut before merging; no token crosses a cut. New patterns go at the end.
PATTERNS = {
    "gpt4": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}

# Measured on English documentation at 512, 1024 and 4096 tokens: 471, 1557 and 9279 bytes; with
# 1, 1, 3 it is 483, 1575 and 9299. Right ids that depend on the left one gain 1% more at best.
BYTE_COUNT, NEW_COUNT, USE_COUNT = 1, 3, 9

# What a byte-level `tokenizers` model calls BOS: a character that no byte is mapped to.
_BOS_NAME = "\u25b6"


@final
@dataclass(frozen=True, eq=False, repr=False)
class BpeTokenizer(Tokenizer):
    """A merge table with its engine."""

    kind: ClassVar[str] = "bpe"
    merges: list[tuple[int, int]]
    pattern: str
    _engine: Any

    @classmethod
    def from_asset(cls, data: bytes) -> Self:
        """Restore from an asset, checking the merge table (the engine would panic on a bad one)."""
        body = unwrap("bpe", data)
        if len(body) < 3 or body[0] >= len(PATTERNS):
            raise TokenizerError(
                f"bpe tokenizer asset has the header {body[:3]!r}, but a pattern below "
                f"{len(PATTERNS)} and a merge count are expected; build it again"
            )
        pattern = list(PATTERNS)[body[0]]
        merges = _decode_merges(body[3:], int.from_bytes(body[1:3], "little"))
        tokens = _join_tokens(merges)
        return cls(data, tokens, merges, pattern, _make_engine(tokens, merges, pattern))

    def encode_batch(self, batch: Sequence[bytes]) -> list[Ids]:
        """Merge the text of each byte string, lowest merge first."""
        return encode_runs(batch, self._encode_texts, self.dtype)

    def _encode_texts(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._engine.encode_batch_fast(texts)]

    def original_file(self) -> bytes:
        """The same tokenizer as `tokenizer.json`."""
        text: str = self._engine.to_str()
        return text.encode("utf-8")


def _decode_merges(code: bytes, count: int) -> list[tuple[int, int]]:
    """Read `count` id pairs; a pair can name only older ids, never BOS, whose count stays 0."""
    left, right, decoder = *merge_tables(count), RangeDecoder(code)
    merges = []
    for new in range(MIN_VOCAB_SIZE, MIN_VOCAB_SIZE + count):
        pair = decoder.decode(left), decoder.decode(right)
        update_tables(left, right, pair, new)
        merges.append(pair)
    decoder.check_end()
    return merges


def merge_tables(count: int) -> tuple[Frequencies, Frequencies]:
    """Fresh tables for the left and the right ids of `count` merges."""
    tables = Frequencies(MIN_VOCAB_SIZE + count), Frequencies(MIN_VOCAB_SIZE + count)
    for table in tables:
        for byte in range(256):
            table.add(byte, BYTE_COUNT)
    return tables


def update_tables(left: Frequencies, right: Frequencies, pair: tuple[int, int], new: int) -> None:
    """Learn from one merge, in the decoder and the encoder alike."""
    for table, symbol in zip((left, right), pair, strict=True):
        table.add(symbol, USE_COUNT)
        table.add(new, NEW_COUNT)


def _join_tokens(merges: list[tuple[int, int]]) -> list[bytes]:
    """The bytes of every id. Raises `TokenizerError` for a token too long or there already.

    merges=[(97, 98), (257, 99)] -> the bytes, b"", b"ab", b"abc"
    """
    tokens = list(BYTE_TOKENS)
    known = set(tokens)
    for left, right in merges:
        token = tokens[left] + tokens[right]
        if token in known or len(token) > MAX_TOKEN_BYTES:
            raise TokenizerError(
                f"bpe merge {len(tokens) - MIN_VOCAB_SIZE} of {len(merges)} makes a token of "
                f"{len(token)} bytes that is there already or is over {MAX_TOKEN_BYTES} bytes; "
                "build the tokenizer again"
            )
        known.add(token)
        tokens.append(token)
    return tokens


def byte_names() -> list[str]:
    """The character for each byte in byte-level models (Radford et al. 2019, GPT-2).

    Printable Latin-1 stands for itself, the other 68 bytes for U+0100 onwards.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def splitter(pattern: str) -> Any:
    """The library's pre-tokenizer that cuts text by a pattern and names bytes."""
    library = import_library()
    return library.pre_tokenizers.Sequence(
        [
            library.pre_tokenizers.Split(library.Regex(PATTERNS[pattern]), "isolated"),
            library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _make_engine(tokens: list[bytes], merges: list[tuple[int, int]], pattern: str) -> Any:
    library = import_library()
    table = byte_names()
    names = ["".join([table[byte] for byte in token]) or _BOS_NAME for token in tokens]
    engine = library.Tokenizer(
        library.models.BPE(
            vocab={name: token for token, name in enumerate(names)},
            merges=[(names[left], names[right]) for left, right in merges],
        )
    )
    engine.pre_tokenizer = splitter(pattern)
    engine.decoder = library.decoders.ByteLevel()  # unused here; makes original_file() complete
    return engine


def import_library() -> Any:
    """The `tokenizers` package, without its threads unless the environment asks for them.

    With threads it warns whenever the process forks, and corpora are tokenized by several
    processes rather than threads.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import tokenizers

    return tokenizers
