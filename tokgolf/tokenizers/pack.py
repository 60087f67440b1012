"""Packing asset bodies; the readers are in `bpe.py` and `unigram.py`.

Needed to build a tokenizer, never to restore one, so it stays out of a scored model's bytes.
"""

import lzma

from tokgolf.tokenizers.base import MIN_VOCAB_SIZE
from tokgolf.tokenizers.bpe import PATTERNS, merge_tables, update_tables
from tokgolf.tokenizers.rangecoder import RANGE_BITS, RENORMALIZE_BELOW, Frequencies
from tokgolf.tokenizers.unigram import LZMA_FILTERS


def pack_merges(merges: list[tuple[int, int]], pattern: str) -> bytes:
    """The asset body of a merge table; `bpe.py` describes it."""
    left, right = merge_tables(len(merges))
    encoder = RangeEncoder()
    for new, pair in enumerate(merges, MIN_VOCAB_SIZE):
        encoder.encode(left, pair[0])
        encoder.encode(right, pair[1])
        update_tables(left, right, pair, new)
    header = bytes([list(PATTERNS).index(pattern)]) + len(merges).to_bytes(2, "little")
    return header + encoder.finish()


def pack_pieces(costs: dict[bytes, int]) -> bytes:
    """The asset body of pieces with their costs, each 0 to 255; `unigram.py` describes it."""
    pieces = sorted(costs)
    shared = [
        next(n for n in range(len(last), -1, -1) if piece.startswith(last[:n]))
        for last, piece in zip([b"", *pieces], pieces, strict=False)
    ]
    rest = [piece[n:] for piece, n in zip(pieces, shared, strict=True)]
    columns = bytes(shared) + bytes(map(len, rest)) + bytes(costs[piece] for piece in pieces)
    packed = lzma.compress(columns + b"".join(rest), lzma.FORMAT_RAW, filters=LZMA_FILTERS)
    return len(pieces).to_bytes(2, "little") + packed


class RangeEncoder:
    """Writes what `RangeDecoder` reads, with any carry added into the bytes already out."""

    def __init__(self) -> None:
        self._out = bytearray()
        self._low = 0
        self._range = 1 << RANGE_BITS

    def encode(self, table: Frequencies, symbol: int) -> None:
        """Append one symbol, whose count in `table` must not be 0."""
        unit = self._range // table.total
        self._low += unit * table.before(symbol)
        self._range = unit * table.counts[symbol]
        while self._range < RENORMALIZE_BELOW:
            self._shift_out()
            self._range <<= 8

    def finish(self) -> bytes:
        """The stream: the number in the last range with the most trailing zeros, those cut off."""
        for bits in range(RANGE_BITS, -1, -1):
            rounded = -(-self._low >> bits) << bits
            if rounded < self._low + self._range:
                break
        self._low = rounded
        for _ in range(RANGE_BITS // 8):
            self._shift_out()
        return bytes(self._out).rstrip(b"\0")

    def _shift_out(self) -> None:
        if self._low >> RANGE_BITS:  # a carry: the byte before the 0xff bytes goes up by one
            place = len(self._out) - 1
            while self._out[place] == 0xFF:
                self._out[place] = 0
                place -= 1
            self._out[place] += 1
            self._low -= 1 << RANGE_BITS
        self._out.append(self._low >> (RANGE_BITS - 8))
        self._low = (self._low << 8) & ((1 << RANGE_BITS) - 1)
