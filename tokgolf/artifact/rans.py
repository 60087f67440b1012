"""An integer-only entropy coder: N-lane interleaved rANS over static frequency tables.

Unlike a library coder it uses no float, so it writes the same bytes on every platform, and its
tables are plain integers in the file. Unlike a textbook rANS it codes one symbol of every lane
in each NumPy call. It holds no checksum: see `decode` for what its end check cannot notice.

A stream is the final state of every lane (uint32) and then the renormalisation words (uint16) in
the order the decoder reads them, all little-endian. Symbol i belongs to lane i % lanes.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokgolf.errors import ArtifactError

BITS = 14
TOTAL = 1 << BITS  # what the frequencies of a context sum to
MASK = TOTAL - 1
START = 1 << 16  # states live in [START, START << 16)


def lanes_of(count: int) -> int:
    """Lanes for `count` symbols: a power of two in [1, 1024], at least 16,384 symbols each.

    A lane costs about 3 bytes: 0.05 % of 16,384 symbols of 3 bits.
    """
    return min(1 << max(count >> 14, 1).bit_length() - 1, 1024)


def normalize(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Frequencies that sum to 2**14, at least 1 where the count is: [3, 0, 1] -> [12288, 0, 4096].

    They minimise the coded length of the counts: units move while a move gains. One unit more is
    worth count * ln(1 + 1/f), here its integer Pade form, within 0.12 % at f = 1.
    """
    total = sum(counts.tolist())
    shift = 44 - total.bit_length()  # all products below stay under 2**62
    used = np.flatnonzero(counts)
    if counts.size and counts.min() < 0 or shift < 0 or not 0 < used.size <= TOTAL:
        raise ArtifactError(
            f"cannot make frequencies of {used.size} used symbols and {total} counts; "
            f"give 1 to {TOTAL} used symbols and a sum under 2**44, none negative"
        )
    c = counts[used].astype(np.int64)
    f = np.maximum(c * TOTAL // total, 1)
    c <<= shift
    while True:
        gain = c * (6 * f + 3) // (6 * f * (f + 1) + 1)
        loss = np.where(f > 1, c * (6 * f - 3) // np.maximum(6 * f * (f - 1) + 1, 1), 1 << 62)
        up, down, excess = gain.argmax(), loss.argmin(), int(f.sum()) - TOTAL
        if excess == 0 and gain[up] <= loss[down]:
            break
        f[up] += excess <= 0
        f[down] -= excess >= 0
    table = np.zeros(len(counts), np.int64)
    table[used] = f
    return table


def _check(count: int, contexts: NDArray[Any] | None, tables: NDArray[Any]) -> None:
    if tables.ndim != 2 or not 0 < tables.shape[1] <= 1 << 16:
        raise ArtifactError(f"tables of shape {tables.shape} are not (contexts, alphabet <= 2**16)")
    if not len(tables) or tables.min() < 0 or (tables.sum(1, np.int64) != TOTAL).any():
        raise ArtifactError(f"a frequency table does not sum to {TOTAL}; use normalize()")
    if contexts is not None and (
        contexts.shape != (count,) or count and int(contexts.max()) >= len(tables)
    ):
        raise ArtifactError(
            f"contexts of shape {contexts.shape} do not fit {count} symbols, {len(tables)} tables"
        )


def encode(
    symbols: NDArray[Any], contexts: NDArray[np.uint8] | None, tables: NDArray[Any]
) -> bytes:
    """Code every symbol with the frequency row of its context (row 0 if there are none)."""
    count, alphabet = len(symbols), tables.shape[-1]
    _check(count, contexts, tables)
    if count == 0:
        return b""
    if not 0 <= symbols.min() <= symbols.max() < alphabet:
        raise ArtifactError(f"symbols up to {symbols.max()} are outside the alphabet of {alphabet}")
    freq = tables.astype(np.uint32)
    start = (freq.cumsum(1, np.uint32) - freq).ravel()
    freq = freq.ravel()
    lanes = lanes_of(count)
    x = np.full(lanes, START, np.uint32)
    chunks = []
    for a in range((count - 1) // lanes * lanes, -1, -lanes):
        k = symbols[a : a + lanes].astype(np.intp)
        if contexts is not None:
            k += contexts[a : a + lanes].astype(np.intp) * alphabet
        f = freq[k]
        if not f.all():
            raise ArtifactError("a symbol has frequency 0 in its context; count it in the table")
        y = x[: k.size]  # a view: the last row may be short
        over = np.flatnonzero(y >> 32 - BITS >= f)
        spill = y[over]
        chunks.append(spill.astype("<u2"))
        y[over] = spill >> 16
        y += y // f * (TOTAL - f) + start[k]
    return b"".join([x.astype("<u4").tobytes(), *(c.tobytes() for c in reversed(chunks))])


def decode(
    data: bytes, count: int, contexts: NDArray[np.uint8] | None, tables: NDArray[Any]
) -> NDArray[Any]:
    """The exact inverse of `encode`; uint8 symbols, or uint16 for an alphabet over 256.

    Raises ArtifactError unless all words are consumed and every lane ends at its start state. That
    is no checksum: a change can lead back to the start by luck, and where the frequencies are
    powers of two the words are the raw bits of the symbols and most changes decode to other
    symbols unnoticed. The container's SHA-256 must cover the stream.
    Allocates a few bytes a symbol and 2**14 entries a context.
    """
    _check(count, contexts, tables)
    alphabet = tables.shape[1]
    out = np.empty(max(count, 0), np.uint8 if alphabet <= 256 else np.uint16)
    lanes = lanes_of(count) if count > 0 else 0
    words = len(data) - 4 * lanes
    if count < 0 or words < 0 or words % 2:
        raise ArtifactError(f"{len(data)} bytes cannot be a stream of {count} symbols")
    x = np.frombuffer(data, "<u4", lanes).astype(np.uint32)
    stream = np.frombuffer(data, "<u2", words // 2, 4 * lanes).astype(np.uint32)
    if (x < START).any():
        raise ArtifactError("a lane starts below its range; the stream is damaged")
    # Of every (context, slot): its symbol, and freq << BITS | slot - start of that symbol.
    freq = tables.astype(np.int32).ravel()
    symbol = np.repeat(np.tile(np.arange(alphabet, dtype=out.dtype), len(tables)), freq)
    start = np.cumsum(freq, dtype=np.int32) - freq
    slots = np.arange(symbol.size, dtype=np.int32)
    step = (np.repeat((freq << BITS) - start, freq) + slots).astype(np.uint32)
    at = 0
    for a in range(0, count, lanes or 1):
        y = x[: count - a]
        slot = (y & MASK).astype(np.intp)
        if contexts is not None:
            slot += contexts[a : a + lanes].astype(np.intp) << BITS
        out[a : a + lanes] = symbol[slot]
        s = step[slot]
        y >>= BITS
        y *= s >> BITS
        y += s & MASK
        low = np.flatnonzero(y < START)
        word = stream[at : at + low.size]
        at += low.size
        if word.size < low.size:
            raise ArtifactError(f"the stream of {count} symbols ends early, at symbol {a}")
        y[low] = y[low] << 16 | word
    if at != stream.size or (x != START).any():
        raise ArtifactError(f"the stream does not end at {count} symbols; it is damaged")
    return out


def _guess(a: int, b: int) -> int:
    """The frequency after a, b if their logs lie on a line: a=4, b=8 -> 16."""
    return min(b * b // max(a, 1), TOTAL)


def pack_table(frequencies: NDArray[Any]) -> bytes:
    """First used symbol, used span - 1, and each frequency's zigzag distance from `_guess`.

    All are LEB128; a bell-shaped table takes 1.0 to 1.4 bytes a used symbol.
    """
    row = frequencies.tolist()
    if sum(row) != TOTAL or min(row) < 0:
        raise ArtifactError(f"frequencies sum to {sum(row)}, not {TOTAL}; use normalize()")
    first, last = np.flatnonzero(frequencies)[[0, -1]].tolist()
    numbers, a, b = [first, last - first], 0, 0
    for value in row[first : last + 1]:
        delta = value - _guess(a, b)
        numbers.append(2 * delta if delta >= 0 else -2 * delta - 1)
        a, b = b, value
    out = bytearray()
    for number in numbers:
        while number > 127:
            out.append(number & 127 | 128)
            number >>= 7
        out.append(number)
    return bytes(out)


def unpack_table(data: bytes, offset: int, alphabet: int) -> tuple[NDArray[np.int64], int]:
    """The table that `pack_table` wrote at `offset`, and the offset after it."""
    at = offset

    def read() -> int:
        nonlocal at
        number = 0
        for shift in 0, 7, 14:
            if at >= len(data):
                break
            at += 1
            number |= (data[at - 1] & 127) << shift
            if data[at - 1] < 128:
                return number
        raise ArtifactError(f"the frequency table at byte {offset} is cut off or damaged")

    table = np.zeros(alphabet, np.int64)
    first = read()
    end = first + read() + 1
    if end > alphabet:
        raise ArtifactError(f"a frequency table reaches symbol {end - 1} of {alphabet}")
    a = b = 0
    for i in range(first, end):
        number = read()
        a, b = b, _guess(a, b) + (number >> 1 ^ -(number & 1))
        table[i] = b
    if pack_table(table) != data[offset:at]:  # which checks the sum
        raise ArtifactError(f"the frequency table at byte {offset} is not in canonical form")
    return table, at
