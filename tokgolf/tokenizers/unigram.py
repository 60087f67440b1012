"""Unigram: pieces with scores, encoded by `sentencepiece` rebuilt from them.

The text is split so that the scores of its pieces add up to the most (Kudo 2018). A piece of
one byte only gives the byte token of that byte a cost; the others are learned tokens, in order
of cost, then of bytes. The asset body is the step of the costs (1 byte, in eighths of a nat: a
score is -step * cost), which ASCII characters are pieces (16 bytes, a bit each, low bit first),
the length of the set of longer pieces (a varint), the set as `setcodec.py` packs it, and the
costs, range coded: of the characters, then of the longer pieces by length, then bytes, each by
adaptive counts of the costs of that length, which also count for the costs next to them.

Unlike a stock SentencePiece model this one leaves spaces as they are, so that U+2581 is a
character like any other, and a character without a piece becomes its UTF-8 bytes.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, final

import numpy as np

from tokgolf.errors import TokenizerError
from tokgolf.tokenizers.asset import read_varint, unwrap
from tokgolf.tokenizers.base import (
    BOS_ID,
    BYTE_TOKENS,
    MAX_TOKEN_BYTES,
    Ids,
    Tokenizer,
    encode_runs,
)
from tokgolf.tokenizers.rangecoder import RangeDecoder
from tokgolf.tokenizers.setcodec import unpack_set

STEPS_PER_NAT = 8  # what the step byte counts in
# In nats. Of 418,143 tokens of web text at 8192, 0.8% differ from those of exact scores; half the
# step has 0.3% and takes 6% more, twice the step 1.4% and 5% less.
SCORE_STEP = 0.5

_LENGTHS = 12  # of pieces, each with its counts; longer ones share the last
_LENGTH_WEIGHT = 8  # of the counts of a length against those of all
_SPREAD = np.array([1, 2, 3, 2, 1])  # what a cost counts for those around it
_REACH = len(_SPREAD) // 2

# SentencePiece.Type in sentencepiece_model.proto
_NORMAL, _UNKNOWN, _BYTE = 1, 2, 6


@final
@dataclass(frozen=True, eq=False, repr=False)
class UnigramTokenizer(Tokenizer):
    """Pieces in id order with their engine; `costs` maps every piece to its cost, in steps of
    `score_step` nats."""

    kind: ClassVar[str] = "unigram"
    costs: dict[bytes, int]
    score_step: float
    _model: bytes
    _ids: Any  # our id of each SentencePiece id
    _engine: Any

    @classmethod
    def from_asset(cls, data: bytes) -> Self:
        """Restore from an asset, checking every piece."""
        score_step, costs = _decode_pieces(unwrap("unigram", data))
        learned = sorted((p for p in costs if len(p) > 1), key=lambda piece: (costs[piece], piece))
        tokens = BYTE_TOKENS + learned
        single = [piece for piece in costs if len(piece) == 1]
        model = model_file([(piece, -score_step * costs[piece]) for piece in learned + single])
        ids = np.array([*range(len(tokens)), *(piece[0] for piece in single)])
        return cls(data, tokens, costs, score_step, model, ids, load_engine(model))

    def _encode_batch(self, batch: Sequence[bytes]) -> list[Ids]:
        """Split the text of each byte string into its cheapest pieces."""
        return encode_runs(batch, self._encode_texts, self.dtype)

    def _encode_texts(self, texts: list[str]) -> list[Any]:
        encoded = self._engine.encode(texts, out_type=int, num_threads=1)
        return [self._ids[ids] for ids in encoded]

    def original_file(self) -> bytes:
        """The same tokenizer as a SentencePiece `.model`."""
        return self._model


def _decode_pieces(body: bytes) -> tuple[float, dict[bytes, int]]:
    """The step and the pieces with their costs. Raises `TokenizerError` for any that is unfit."""
    characters = int.from_bytes(body[1:17], "little")
    size, start = read_varint(body, 17)
    longer = unpack_set(body[start : start + size])
    pieces = [bytes([byte]) for byte in range(128) if characters >> byte & 1]
    pieces += sorted(longer, key=lambda piece: (len(piece), piece))
    if not pieces or not body[0] or not all(map(_is_piece, pieces)):
        raise TokenizerError(
            f"unigram tokenizer asset holds {len(pieces)} pieces and a step of {body[0]}, but "
            f"some pieces of valid UTF-8, of 1 to {MAX_TOKEN_BYTES} bytes each, and a step of 1 to "
            "255 are expected; build it again"
        )
    decoder, model = RangeDecoder(body[start + size :]), CostModel()
    costs = {}
    for piece in pieces:
        costs[piece] = decoder.decode(model.ends(piece))
        model.update(piece, costs[piece])
    decoder.check_end()
    return body[0] / STEPS_PER_NAT, costs


class CostModel:
    """Adaptive counts of costs by length of the piece, in the decoder and the encoder alike."""

    def __init__(self) -> None:
        self._counts = np.ones((_LENGTHS, 256 + 2 * _REACH), np.int64)
        self._all = np.ones(256 + 2 * _REACH, np.int64)

    def ends(self, piece: bytes) -> Any:
        """Where the share of each cost ends."""
        counts = self._counts[min(len(piece), _LENGTHS) - 1]
        return (_LENGTH_WEIGHT * counts + self._all)[_REACH:-_REACH].cumsum()

    def update(self, piece: bytes, cost: int) -> None:
        """Learn from the cost of one piece."""
        for counts in self._counts[min(len(piece), _LENGTHS) - 1], self._all:
            counts[cost : cost + len(_SPREAD)] += _SPREAD


def _is_piece(piece: bytes) -> bool:
    """Whether SentencePiece can hold this piece; it takes no NUL."""
    try:
        piece.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return 0 < len(piece) <= MAX_TOKEN_BYTES and b"\0" not in piece


def model_file(pieces: list[tuple[bytes, float]]) -> bytes:
    """A SentencePiece ModelProto: the bytes, "<unk>" in the place of BOS, then `pieces`."""
    entries = [(b"<0x%02X>" % byte, 0.0, _BYTE) for byte in range(256)]
    entries += [(b"<unk>", 0.0, _UNKNOWN)]
    entries += [(piece, score, _NORMAL) for piece, score in pieces]
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


def load_engine(model: bytes) -> Any:
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise TokenizerError(f"sentencepiece refuses the pieces ({error})") from error
