"""What `rans` reads, written: streams, and frequency tables that cost least with their symbols.

A level costs less than a bit, if the line through the two before leads to it, and up to fourteen
if not. So a table is not what was counted: it is a smooth curve through the counts, a polynomial of
the logarithm, wherever that is cheaper to store than the symbols are dearer to code; and beside
that curve a chain of straight lines, of which there are as few as pay.
"""

import numpy as np
from numpy.typing import NDArray

from tokgolf.artifact import rans
from tokgolf.errors import ArtifactError

ALPHABET = 1024
TABLE_BITS, SYMBOL_BITS = 60, 3
"""What a table takes in the file, about, and each symbol in it; before there are any levels."""
TYPICAL_SLOPE = 22  # see `rans.unpack_tables`
DEGREES = (2, 3, 4, 6, 8)
TURNS = 5  # of a fit
BESIDE = 5  # levels on either side of a curve, of which lines are made
RARE, LARGE_MEAN = -12.0, 30.0  # natural logarithms between which a fitted count stays
Array = NDArray[np.int64]


def bits_of(counts: Array) -> float:
    """Bits of symbols and of their frequency tables, about.  # (tables, symbols)"""
    totals = counts.sum(axis=-1)
    tables = np.count_nonzero(totals)
    return entropy_bits(counts) + SYMBOL_BITS * np.count_nonzero(counts) + TABLE_BITS * tables


def entropy_bits(counts: Array) -> float:
    """Bits of symbols under their own frequencies.  # (tables, symbols)"""
    used, totals = counts[counts > 0], counts.sum(axis=-1)
    totals = totals[totals > 0]
    return float(np.sum(totals * np.log2(totals))) - float(np.sum(used * np.log2(used)))


def table_levels(counts: Array) -> tuple[int, Array]:
    """First symbol and levels (see `rans.frequencies`) of a table for these counts.

    counts (1024,), of symbols from -512
    """
    used = np.flatnonzero(counts)
    if not used.size:  # a context that no symbol has still has a place
        return 0, np.ones(1, np.int64)
    part = counts[used[0] : used[-1] + 1]
    prices = -np.log2(rans.difference_table(TYPICAL_SLOPE).frequencies)

    def bits(levels: Array) -> float:
        price = rans.BITS - np.log2(np.maximum(rans.frequencies(levels), 1))
        return float(part @ price + prices[differences(levels)[2:] & 255 ^ 128].sum())

    candidates = [_levels(part.astype(np.float64)), *_means(part), *_curves(part)]
    curves = [levels for levels in candidates if levels.all()]
    if curves and part.size > 2:
        candidates.append(_lines(part, min(curves, key=bits), prices))
    return int(used[0]) - ALPHABET // 2, min(candidates, key=bits)


def _means(part: Array) -> list[Array]:
    """Levels of counts of which the rare ones are the mean of their neighbours."""
    found = []
    ends = np.cumsum(np.pad(part, (1, 0)))
    places = np.arange(part.size)
    for least in (8, 32, 128, 512):  # a mean is over so many
        smooth = np.zeros(part.size)
        for reach in range(min(part.size, 100)):
            low, high = np.maximum(places - reach, 0), np.minimum(places + reach + 1, part.size)
            near = ends[high] - ends[low]
            smooth = np.where((smooth == 0) & (near >= least), near / (high - low), smooth)
        if smooth.all():
            found.append(_levels(smooth))
    return found


def _curves(part: Array) -> list[Array]:
    """Levels of counts whose logarithms are polynomials, by most likely Poisson counts
    (iteratively reweighted least squares)."""
    found = []
    place = np.linspace(-1, 1, part.size)
    for degree in DEGREES:
        if degree >= part.size:
            break
        basis, _ = np.linalg.qr(np.vander(place, degree + 1))
        log = np.log(part + 0.5)
        for _ in range(TURNS):
            mean = np.exp(log)
            weight = np.sqrt(mean)
            target = log + (part - mean) / mean
            fit = np.linalg.lstsq(basis * weight[:, None], target * weight, rcond=None)[0]
            log = (basis @ fit).clip(RARE, LARGE_MEAN)
        found.append(_levels(np.exp(log)))
    return found


def _lines(part: Array, curve: Array, prices: NDArray[np.float64]) -> Array:
    """The levels beside a curve that cost least with their symbols: the Viterbi algorithm over
    pairs of neighbours, with the curve's sum of weights.

    part, curve (n,), n >= 3; prices of differences, bits from -128 on -> (n,)
    """
    levels = (curve[:, None] + np.arange(-BESIDE, BESIDE + 1)).clip(1, rans.MAX_LEVEL)
    weights = rans.MANTISSAS[(levels - 1) % rans.LEVELS] << (levels - 1) // rans.LEVELS
    share = weights * ((rans.TOTAL - part.size) / weights[:, BESIDE].sum()) + 1
    # In 1/256 bit, as integers, so that sums do not depend on their order.
    costs = np.rint(-256 * part[:, None] * np.log2(share / rans.TOTAL)).astype(np.int64)
    turns = np.rint(256 * prices).astype(np.int64)
    best = costs[0][:, None] + costs[1]  # (before, last)
    chosen = []
    for a, b, c, cost in zip(levels, levels[1:], levels[2:], costs[2:], strict=False):
        bent = c - 2 * b[:, None] + a[:, None, None]  # (before, last, next)
        ways = best[:, :, None] + turns[bent & 255 ^ 128]
        chosen.append(ways.argmin(axis=0))
        best = ways.min(axis=0) + cost
    before, last = np.unravel_index(best.argmin(), best.shape)
    path = [last, before]
    for choice in reversed(chosen):
        path.append(choice[path[-1], path[-2]])
    result: Array = levels[np.arange(part.size), path[::-1]]
    return result


def _levels(counts: NDArray[np.float64]) -> Array:
    """Levels whose frequencies are as the counts."""
    # One slot is given to every used symbol; level 1 stands for an eighth of one.
    slots = counts * (rans.TOTAL / counts.sum()) - 1
    levels = np.rint(np.log2(np.maximum(slots * 8, 1)) * rans.LEVELS).astype(np.int64) + 1
    return np.where(counts > 0, levels, 0)


def differences(levels: Array, start: int = 0, rise: int = 0) -> Array:
    """Of each level to what continues the line through the two before, of the first to `start`, of
    the second to what rises by `rise`."""
    padded = np.concatenate([[0, 0], levels])
    result: Array = padded[2:] - 2 * padded[1:-1] + padded[:-2]
    result[0] -= start
    result[1:2] += levels[0] - rise
    return result


def pack_tables(tables: list[tuple[int, Array]]) -> bytes:
    """What `rans.unpack_tables` reads as these first symbols and levels."""
    found: list[int] = []
    head, start, rise = [0, 2, 0, 0], 0, 0
    for first, levels in tables:
        position, span = first + ALPHABET // 2, len(levels) - 1
        now = [position & 255, position >> 8, span & 255, span >> 8]
        found += [new - old for new, old in zip(now, head, strict=True)]
        found += differences(levels, start, rise).tolist()
        head, start, rise = now, int(levels[0]), int(levels[min(1, span)] - levels[0])
    symbols = (np.array(found, np.int32) + 128 & 255) - 128
    amounts = np.bincount(symbols + 128, minlength=256)

    def bits(slope: int) -> float:
        return -float(amounts @ np.log2(rans.difference_table(slope).frequencies))

    slope = min(range(1, 100), key=bits)
    table, contexts = rans.difference_table(slope), np.zeros(len(symbols), np.int32)
    return bytes([slope]) + encode_stream(symbols, contexts, [len(symbols)], [table], 1)


def encode_stream(
    symbols: NDArray[np.int32],
    contexts: NDArray[np.int32],
    lengths: list[int],
    tables: list[rans.Table],
    lanes: int,
) -> bytes:
    """What `rans.Decoder` reads as these symbols when `lengths` of them are read at once."""
    firsts = np.array([table.first for table in tables], np.int32)
    widths = np.array([len(table.frequencies) for table in tables], np.int32)
    freq = np.concatenate([table.frequencies for table in tables])
    start = ((np.cumsum(freq) - freq) & rans.TOTAL - 1).astype(np.uint32)
    freq = freq.astype(np.uint32)
    offsets = (np.cumsum(widths) - widths - firsts).astype(np.int32)
    if (
        len(symbols)
        and not ((symbols >= firsts[contexts]) & (symbols < (firsts + widths)[contexts])).all()
    ):
        raise ArtifactError("a symbol is outside its frequency table; count it in the table")
    x = np.full(lanes, rans.START, np.uint32)
    chunks = []
    end = len(symbols)
    for length in reversed(lengths):
        begin = end - length
        for a in range(begin + max(length - 1, 0) // lanes * lanes, begin - 1, -lanes):
            part = slice(a, min(a + lanes, end))
            k = symbols[part] + offsets[contexts[part]]
            f = freq[k]
            if not f.all():
                raise ArtifactError(
                    "a symbol has frequency 0 in its context; count it in the table"
                )
            y = x[: k.size]  # a view: the last part may be short
            over = np.flatnonzero(y >> 32 - rans.BITS >= f)
            spill = y[over]
            chunks.append(spill.astype("<u2"))
            y[over] = spill >> 16
            y += y // f * (rans.TOTAL - f) + start[k]
        end = begin
    return b"".join([x.astype("<u4").tobytes(), *(c.tobytes() for c in reversed(chunks))])
