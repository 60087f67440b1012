"""Decoder of an integer-only entropy coder: interleaved rANS over static frequency tables.

Unlike a library coder it uses no float, so it means the same on every platform, and its tables are
plain integers in the file. Unlike a textbook rANS it decodes one symbol of every lane in each NumPy
call, and the context of a symbol may depend on the symbols read before. It holds no checksum: see
`Decoder.close` for what the end check cannot notice. `tables` writes what this module reads.

A stream is the final state of every lane (uint32) and then the renormalisation words (uint16) in
the order the decoder reads them, all little-endian.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokgolf.errors import ArtifactError

BITS = 14
TOTAL = 1 << BITS  # what the frequencies of a context sum to
START = 1 << 16  # states live in [START, START << 16)
LEVELS = 8  # of frequencies, to the octave; finer ones cost more in the file than they save
MAX_LEVEL = 144  # so that products stay under 2^59
# 2^(i/8) * 2^16, as literals since a platform's exp2 may differ in the last bit.
MANTISSAS = np.array([65536, 71468, 77936, 84990, 92682, 101070, 110218, 120194], np.int64)


class Table(NamedTuple):
    """The symbols `first`, `first` + 1, ... and their frequencies, which sum to 2^14."""

    first: int
    frequencies: NDArray[np.int64]


def lanes_of(count: int) -> int:
    """Lanes for `count` symbols: a power of two in [1, 1024], at least 16,384 symbols each.

    A lane costs about 3 bytes: 0.05 % of 16,384 symbols of 3 bits.
    """
    return min(1 << max(count >> 14, 1).bit_length() - 1, 1024)


def frequencies(levels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Frequencies that sum to 2^14 for levels in 0..144: 0 is an unused symbol, 1 the smallest
    weight, every 8 more double it. There must be a used symbol, and at most 2^13.

    levels=[17, 0, 1] -> [13107, 0, 3277]
    """
    weights = np.where(levels, MANTISSAS[(levels - 1) % LEVELS] << ((levels - 1) // LEVELS), 0)
    ends = np.cumsum(weights)
    spare = TOTAL - np.count_nonzero(levels)  # every used symbol has one slot before they share
    result: NDArray[np.int64] = np.diff(ends * spare // ends[-1], prepend=0) + (levels > 0)
    return result


class Decoder:
    """Reads symbols from a stream; all that is read at once is independent of each other."""

    def __init__(self, data: bytes, lanes: int, tables: list[Table]) -> None:
        words = len(data) - 4 * lanes
        if words < 0 or words % 2:
            raise ArtifactError(f"{len(data)} bytes cannot be a stream of {lanes} lanes")
        self._states = np.frombuffer(data, "<u4", lanes).astype(np.uint32)
        self._words = np.frombuffer(data, "<u2", words // 2, 4 * lanes).astype(np.uint32)
        self._at = 0
        if (self._states < START).any():
            raise ArtifactError("a lane starts below its range; the stream is damaged")
        # Of every (table, slot): its symbol, and freq << BITS | slot - start of that symbol.
        freq = np.concatenate([table.frequencies for table in tables])
        symbols = [np.arange(len(table.frequencies)) + table.first for table in tables]
        self._symbols = np.repeat(np.concatenate(symbols).astype(np.int16), freq)
        starts = np.cumsum(freq) - freq
        self._steps = np.repeat((freq << BITS) - starts, freq).astype(np.uint32)
        self._steps += np.arange(len(self._steps), dtype=np.uint32)

    def read(self, contexts: NDArray[np.int64]) -> NDArray[np.int16]:
        """The next symbols; `contexts` are the numbers of their tables, times 2^14."""
        out = np.empty(len(contexts), np.int16)
        lanes = len(self._states)
        for a in range(0, len(out), lanes):
            y = self._states[: len(out) - a]
            slot = contexts[a : a + lanes] + (y & TOTAL - 1)
            out[a : a + lanes] = self._symbols[slot]
            step = self._steps[slot]
            y >>= BITS
            y *= step >> BITS
            y += step & TOTAL - 1
            low = (y < START).nonzero()[0]
            word = self._words[self._at : self._at + low.size]
            self._at += low.size
            if word.size < low.size:
                raise ArtifactError("the stream ends before its last symbol")
            y[low] = y[low] << 16 | word
        return out

    def close(self) -> None:
        """Raise ArtifactError unless all words are consumed and every lane is at its start state.

        That is no checksum: a change can lead back to the start by luck, and where the frequencies
        are powers of two the words are the raw bits of the symbols and most changes decode to other
        symbols unnoticed. The container's SHA-256 must cover the stream.
        """
        if self._at != self._words.size or (self._states != START).any():
            raise ArtifactError("the stream does not end at its last symbol; it is damaged")


def unpack_tables(data: bytes, count: int) -> list[Table]:
    """`count` tables from a byte `slope` and a stream of one lane.

    Per table: low and high byte of (first symbol + 512) and of (length - 1), each as the difference
    to the table before; then the levels, each as the difference to what continues the line through
    the two before. Of the first the difference is to that of the table before, of the second to
    what rises as much as there from the first to the second. Differences are mod 256, as -128..127,
    and difference d has the level max(112 - slope * |d|, 1).
    """
    decoder = Decoder(data[1:], 1, [difference_table(data[0] if data else 0)])

    def read(amount: int) -> list[int]:
        symbols: list[int] = decoder.read(np.zeros(amount, np.int64)).tolist()
        return symbols

    tables, head, start, rise = [], [0, 2, 0, 0], 0, 0
    for number in range(count):
        head = [(a + d) & 255 for a, d in zip(head, read(4), strict=True)]
        first, length = head[0] + (head[1] << 8) - 512, head[2] + (head[3] << 8) + 1
        if first + length > 512:
            raise ArtifactError(f"frequency table {number} spans {length} symbols from {first}")
        difference, *others = read(length)
        b = start + difference & 255
        a, levels = b - rise, [b]
        for difference in others:
            a, b = b, 2 * b - a + difference & 255
            levels.append(b)
        start, rise = levels[0], levels[min(1, length - 1)] - levels[0]
        if not levels[0] or not levels[-1] or max(levels) > MAX_LEVEL:
            raise ArtifactError(f"frequency table {number} is not in canonical form")
        tables.append(Table(first, frequencies(np.array(levels))))
    decoder.close()
    return tables


def difference_table(slope: int) -> Table:
    """The table of the differences that `unpack_tables` reads."""
    distance = np.abs(np.arange(-128, 128))
    return Table(-128, frequencies(np.maximum(112 - slope * distance, 1)))
