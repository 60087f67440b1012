"""Byte-level BPE: a table of merges, encoded by the `tokenizers` library rebuilt from it.

Merge i joins two older tokens into id 257 + i; lower merges win. Every prefix of the table is
a smaller tokenizer. The asset body is the codec (1 byte), the split pattern (`split.py`), then
for EXACT the number of merges (2 bytes, little-endian) and the id pairs as `mergecodec.py` packs
them, for MAX what `maxcodec.py` packs.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, Self, cast, final

from tokgolf.errors import TokenizerError
from tokgolf.tokenizers.asset import unwrap
from tokgolf.tokenizers.base import (
    BOS_ID,
    BYTE_TOKENS,
    MAX_TOKEN_BYTES,
    MIN_VOCAB_SIZE,
    Ids,
    Tokenizer,
    encode_runs,
)
from tokgolf.tokenizers.engines import Engine
from tokgolf.tokenizers.mergecodec import unpack_pairs
from tokgolf.tokenizers.split import compiled, read_pattern
from tokgolf.tokenizers.windows import EngineIds

EXACT, MAX = 0, 1  # codecs of the merge table
MAX_MODULE = "tokgolf.tokenizers.maxcodec"

# What a byte-level `tokenizers` model calls BOS: a character that no byte is mapped to.
_BOS_NAME = "\u25b6"


@final
@dataclass(frozen=True, eq=False, repr=False)
class BpeTokenizer(Tokenizer):
    """A merge table with its engine."""

    kind: ClassVar[str] = "bpe"
    merges: list[tuple[int, int]]
    pattern: str
    _engine: Engine

    @classmethod
    def from_asset(cls, data: bytes) -> Self:
        """Restore from an asset, checking the merge table (the engine would panic on a bad one)."""
        body = unwrap("bpe", data)
        pattern, code = read_pattern(body[1:])
        merges = _decode_merges(body[0], code)
        tokens = join_tokens(merges)
        engine = _make_engine(tokens, merges, pattern)
        extra = (MAX_MODULE,) if body[0] == MAX else ()
        return cls(data, tokens, merges, pattern, engine, extra_modules=extra)

    def _encode_batch(self, batch: Sequence[bytes]) -> list[Ids]:
        """Merge the text of each byte string, lowest merge first."""
        return encode_runs(batch, self._encode_texts, self.dtype)

    def _encode_texts(self, texts: list[str]) -> list[EngineIds]:
        return self._engine.encode(texts)

    def original_file(self) -> bytes:
        """The same tokenizer as `tokenizer.json`."""
        return self._engine.to_str().encode("utf-8")


def _decode_merges(codec: int, code: bytes) -> list[tuple[int, int]]:
    """Read id pairs. BOS is no symbol of exact ones, so their ids from 256 on move up by one."""
    if codec == MAX:
        # Here, because most tokenizers have exact merges, and then its code costs no bytes.
        return cast(list[tuple[int, int]], import_module(MAX_MODULE).unpack_max(code))
    if codec != EXACT or len(code) < 2:
        raise TokenizerError(
            f"bpe tokenizer asset has codec {codec} and {len(code)} bytes of merges, but codec "
            f"{EXACT} or {MAX} and 2 bytes at least are expected; build it again"
        )
    pairs = unpack_pairs(code[2:], int.from_bytes(code[:2], "little"), BOS_ID)
    return [(left + (left >= BOS_ID), right + (right >= BOS_ID)) for left, right in pairs]


def join_tokens(merges: list[tuple[int, int]]) -> list[bytes]:
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
            library.pre_tokenizers.Split(compiled(pattern), "isolated"),
            library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _make_engine(tokens: list[bytes], merges: list[tuple[int, int]], pattern: str) -> Engine:
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
    return Engine(engine, tokens, pattern)


def import_library() -> Any:
    """The `tokenizers` package, without its threads unless the environment asks for them.

    With threads it warns whenever the process forks, and corpora are tokenized by several
    processes rather than threads.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import tokenizers

    return tokenizers
