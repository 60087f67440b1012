"""Unigram: pieces with scores, encoded by `sentencepiece` rebuilt from them.

The text is split so that the scores of its pieces add up to the most (Kudo 2018). The asset
body is the number of pieces (2 bytes, little-endian), then LZMA of four columns over the pieces
in byte order: how many bytes each shares with the one before, how many follow, its cost (-score
in steps of SCORE_STEP nats), and the bytes that follow. A piece of one byte only gives the byte
token of that byte a cost; the others are learned tokens, in order of cost, then of bytes.

Unlike a stock SentencePiece model this one leaves spaces as they are, so that U+2581 is a
character like any other, and a character without a piece becomes its UTF-8 bytes.
"""

import lzma
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, final

import numpy as np

from tokgolf.errors import TokenizerError
from tokgolf.tokenizers.asset import unwrap
from tokgolf.tokenizers.base import (
    BOS_ID,
    BYTE_TOKENS,
    MAX_TOKEN_BYTES,
    Ids,
    Tokenizer,
    encode_runs,
)

SCORE_STEP = 0.5  # nats; 0.5% of the tokens differ from exact scores, 0.25 adds 5% to the asset
# Text has no alignment, hence pb = 0; the dictionary is all that unpacking sets aside.
LZMA_FILTERS = [
    {"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, "pb": 0, "dict_size": 1 << 20}
]

# SentencePiece.Type in sentencepiece_model.proto
_NORMAL, _UNKNOWN, _BYTE = 1, 2, 6


@final
@dataclass(frozen=True, eq=False, repr=False)
class UnigramTokenizer(Tokenizer):
    """Pieces in id order with their engine; `costs` maps every piece to its cost in steps."""

    kind: ClassVar[str] = "unigram"
    costs: dict[bytes, int]
    _model: bytes
    _ids: Any  # our id of each SentencePiece id
    _engine: Any

    @classmethod
    def from_asset(cls, data: bytes) -> Self:
        """Restore from an asset, checking every piece."""
        costs = _decode_pieces(unwrap("unigram", data))
        learned = sorted((p for p in costs if len(p) > 1), key=lambda piece: (costs[piece], piece))
        tokens = BYTE_TOKENS + learned
        single = [piece for piece in costs if len(piece) == 1]
        model = _model_file([(piece, costs[piece]) for piece in learned + single])
        ids = np.array([*range(len(tokens)), *(piece[0] for piece in single)])
        return cls(data, tokens, costs, model, ids, _load_engine(model))

    def encode_batch(self, batch: Sequence[bytes]) -> list[Ids]:
        """Split the text of each byte string into its cheapest pieces."""
        return encode_runs(batch, self._encode_texts, self.dtype)

    def _encode_texts(self, texts: list[str]) -> list[list[int]]:
        encoded = self._engine.encode(texts, out_type=int, num_threads=1)
        return [self._ids[ids].tolist() for ids in encoded]

    def original_file(self) -> bytes:
        """The same tokenizer as a SentencePiece `.model`."""
        return self._model


def _decode_pieces(body: bytes) -> dict[bytes, int]:
    """Pieces with their costs, in byte order. Raises `TokenizerError` for any that is unfit."""
    count = int.from_bytes(body[:2], "little")
    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=LZMA_FILTERS)
    try:
        columns = decoder.decompress(body[2:], max_length=count * (3 + MAX_TOKEN_BYTES) + 1)
    except lzma.LZMAError as error:
        raise TokenizerError(f"unigram tokenizer asset does not unpack ({error})") from error
    shared, lengths, costs = (columns[count * n : count * (n + 1)] for n in range(3))
    pieces: dict[bytes, int] = {}
    last, start = b"", 3 * count
    sound = decoder.eof and not decoder.unused_data and len(columns) == start + sum(lengths)
    for keep, length, cost in zip(shared, lengths, costs, strict=True) if sound else ():
        piece = last[:keep] + columns[start : start + length]
        sound = sound and piece > last and keep + length == len(piece) and _is_piece(piece)
        pieces[piece] = cost
        last, start = piece, start + length
    if not sound:
        raise TokenizerError(
            f"unigram tokenizer asset does not hold {count} pieces of valid UTF-8 in order, "
            f"of 1 to {MAX_TOKEN_BYTES} bytes each; build it again"
        )
    return pieces


def _is_piece(piece: bytes) -> bool:
    """Whether SentencePiece can hold this piece; it takes no NUL."""
    try:
        piece.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return 0 < len(piece) <= MAX_TOKEN_BYTES and b"\0" not in piece


def _model_file(pieces: list[tuple[bytes, int]]) -> bytes:
    """A SentencePiece ModelProto: the bytes, "<unk>" in the place of BOS, then `pieces`."""
    entries = [(b"<0x%02X>" % byte, 0.0, _BYTE) for byte in range(256)]
    entries += [(b"<unk>", 0.0, _UNKNOWN)]
    entries += [(piece, -SCORE_STEP * cost, _NORMAL) for piece, cost in pieces]
    model = b"".join(
        _field(1, _field(1, piece) + b"\x15" + struct.pack("<f", score) + _field(3, kind))
        for piece, score, kind in entries
    )
    # model_type = UNIGRAM, vocab_size, byte_fallback, unk_id
    trainer = _field(3, 1) + _field(4, len(entries)) + _field(35, 1) + _field(40, BOS_ID)
    # add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces
    normalizer = _field(1, b"identity") + b"".join(_field(number, 0) for number in (3, 4, 5))
    return model + _field(2, trainer) + _field(3, normalizer)


def _field(number: int, value: int | bytes) -> bytes:
    """One protobuf field: an int, not negative, as a varint; bytes after their length.

    number=3, value=300 -> b"\\x18\\xac\\x02"; number=1, value=b"ab" -> b"\\x0a\\x02ab"
    """
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _load_engine(model: bytes) -> Any:
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise TokenizerError(f"sentencepiece refuses the pieces ({error})") from error
