"""Encoder of the weight sections: chooses contexts and tables, and writes what `weights` reads.

Nothing here is needed to read an artifact, so none of it is counted.

The spread of the integers differs from row to row and from column to column. Their logarithms,
rounded to a unit, are the first guess at the classes of rows and columns; the sum of both says
which frequency table a weight takes. The unit (none, an octave, or 1/2 to 1/4) and the number of
contexts are those that make the sections smallest. Then each row and column moves to the next class
wherever that costs fewer bits under the tables as they are, in turns.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokgolf.artifact import rans
from tokgolf.artifact.weights import Layout, layout
from tokgolf.config import TrunkConfig
from tokgolf.errors import ArtifactError
from tokgolf.heads import HeadConfig, head_to_dict
from tokgolf.heads.base import Stored
from tokgolf.quantize import FARTHEST, LARGEST, STEPS, Quantized, trellis_parities

UNITS = (None, 1, 2, 3, 4)  # classes to the octave
MOST_CLASS = 15  # class of a row or column from its tensor's middle
MOST_CONTEXTS = 60
ALPHABET = 1024
SAMPLE = 1 << 22  # weights on which units are compared
TYPICAL_SLOPE = 8  # see `rans.unpack_tables`
LARGE = 1 << 23  # more weights than this get few turns of refinement: each takes half a second
Array = NDArray[np.int64]
Quantize = Callable[[Stored], Quantized]


def header_of(
    trunk: TrunkConfig, head: HeadConfig, *, trellis: bool, lead: list[int]
) -> dict[str, Any]:
    """The header of an artifact of this model, but for what the container adds."""
    return {
        "trunk": trunk.stored(),
        "head": head_to_dict(head),
        "quantizer": "trellis" if trellis else "scalar",
        "lead": lead,
    }


def encode(stored: list[Stored], quantized: Quantize, trellis: bool) -> dict[str, bytes]:
    """The sections that hold `stored` as quantized by `quantized`.

    Raises `ArtifactError`, naming the tensor, for integers or steps that the format cannot hold.
    """
    order = layout(stored)
    packed = [pack_codes(s.tensor.cpu().numpy()) for s in stored if s.kind == "codes"]
    found = {s.name: quantized(s) for s in stored if s.kind != "codes"}
    for tensor in [*order.dense, *order.vectors]:
        _check(tensor, found[tensor.name])
    plan = choose_plan([found[s.name].codes for s in order.dense], trellis)
    symbols, contexts, lengths = _stream(order, found, plan, trellis)
    sizes = context_sizes(order, plan, trellis)
    counts = np.bincount(contexts * ALPHABET + symbols + ALPHABET // 2, minlength=sum(sizes) << 10)
    levels = [table_levels(row) for row in counts.reshape(-1, ALPHABET)]
    steps = np.array([found[s.name].step for s in [*order.dense, *order.vectors]], "<u2")
    tables = [rans.Table(first, rans.frequencies(level)) for first, level in levels]
    return {
        "tables": bytes([plan.contexts, plan.classed]) + pack_tables(levels),
        "steps": steps.tobytes() + np.array(plan.bases, np.int8).tobytes(),
        "weights": encode_stream(symbols, contexts, lengths, tables, rans.lanes_of(len(symbols))),
        "packed": b"".join(packed),
    }


def _check(tensor: Stored, quantized: Quantized) -> None:
    name, numbers, kind = tensor
    codes, step, *_ = quantized
    shape = numbers.numel() // numbers.shape[-1], numbers.shape[-1]
    most = int(np.abs(codes.astype(np.int64)).max())
    if codes.shape != shape or most > LARGEST or step not in STEPS:
        raise ArtifactError(
            f"{name} of shape {shape} was quantized to {codes.shape} integers up to {most} with "
            f"step bits {step:#06x}; at most {LARGEST}, and bits in {STEPS}, can be stored"
        )
    if kind == "vector" and (quantized.rows is not None or quantized.columns is not None):
        raise ArtifactError(f"{name} is a vector; only tables and matrices have steps of rows")
    for axis in (0, 1):
        far = factors(quantized, axis)
        if far.shape != shape[axis : axis + 1] or np.abs(far).max() > FARTHEST:
            raise ArtifactError(
                f"{name} of shape {shape} has {far.size} factors along axis {axis} up to "
                f"{np.abs(far).max()} quarters of an octave; at most {FARTHEST} can be stored"
            )


def factors(quantized: Quantized, axis: int) -> NDArray[np.int16]:
    """Quarters of octaves of a tensor's rows (axis 0) or columns (1), 0 where it has none."""
    found = (quantized.rows, quantized.columns)[axis]
    none = np.zeros(quantized.codes.shape[axis], np.int16)
    return none if found is None else found.astype(np.int16)


# --- classes ---


class Plan(NamedTuple):
    """Contexts of the weights of a list of dense tensors."""

    contexts: int
    bases: list[int]
    rows: list[Array]  # classes, of every tensor
    columns: list[Array]
    classed: bool

    def of(self, tensor: int) -> NDArray[np.uint8]:
        """Contexts of all weights of a tensor.  # (rows, columns)"""
        return self.sums(tensor).clip(0, max(self.contexts, 1) - 1).astype(np.uint8)

    def sums(self, tensor: int) -> NDArray[np.int16]:
        """The same before they are clipped."""
        rows = (self.rows[tensor] + self.bases[tensor]).astype(np.int16)
        return rows[:, None] + self.columns[tensor].astype(np.int16)


class _Spread(NamedTuple):
    """Base-2 logarithms of the rms of a tensor's integers, and the integers."""

    rows: NDArray[np.float64]
    columns: NDArray[np.float64]  # relative to the whole tensor
    codes: NDArray[np.int16]
    parities: NDArray[np.int16] | None


def _spread(codes: NDArray[np.int16], trellis: bool) -> _Spread:
    parities = trellis_parities(codes) if trellis else None
    integers = codes if parities is None else 2 * codes + parities
    # Sums of integers below 2^53 are exact in any order, so that no thread count changes a class.
    power = np.square(integers.astype(np.float64))
    total = max(float(power.sum()), 1.0)
    with np.errstate(divide="ignore"):
        columns = np.log2(power.sum(axis=0) * power.shape[1] / total) / 2
        # A row's spread beside columns of the spreads just found; the sums stay exact.
        heights = np.rint(np.exp2(-2 * columns.clip(-5, 5)) * 2**12) / 2**12
        rows = np.log2(power @ heights / power.shape[1]) / 2
    return _Spread(rows, columns, codes, parities)


def _classes(logs: NDArray[np.float64], unit: int) -> Array:
    rounded: Array = np.rint(logs.clip(-99, 99) * unit).astype(np.int64)
    return rounded


def choose_plan(codes: list[NDArray[np.int16]], trellis: bool) -> Plan:
    """The contexts that make the sections of these integers smallest."""
    spreads = [_spread(block, trellis) for block in codes]
    bits, plan = _first_plan(spreads)
    if plan.classed:
        turns = 10 if sum(spread.codes.size for spread in spreads) < LARGE else 4
        for turn in range(turns):
            bits, plan = min((bits, plan), _refined(plan, spreads, turn % 2), key=_bits)
    return plan


def _first_plan(spreads: list[_Spread]) -> tuple[float, Plan]:
    if not spreads:
        return 0.0, Plan(0, [], [], [], False)
    return min((_clipped(_plan(spreads, unit), spreads) for unit in UNITS), key=_bits)


def _bits(pair: tuple[float, Plan]) -> float:
    return pair[0]


def _plan(spreads: list[_Spread], unit: int | None) -> Plan:
    """Classes to a unit, with a context for every sum that occurs, up to a bound."""
    bases, rows, columns = [], [], []
    for spread in spreads:
        n, m = spread.codes.shape
        if unit is None:
            bases.append(0)
            rows.append(np.zeros(n, np.int64))
            columns.append(np.zeros(m, np.int64))
        else:
            row, column = _classes(spread.rows, unit), _classes(spread.columns, unit)
            base = int(np.median(row))
            bases.append(base)
            rows.append((row - base).clip(-MOST_CLASS, MOST_CLASS))
            columns.append(column.clip(-MOST_CLASS, MOST_CLASS))
    low, high = min(bases) - MOST_CLASS, max(bases) + MOST_CLASS
    low = max(low, high + 1 - MOST_CONTEXTS)
    classed = unit is not None
    contexts = high + 1 - low if classed else 1
    return Plan(contexts, [base - low * classed for base in bases], rows, columns, classed)


def _stride(spreads: list[_Spread]) -> int:
    return max(1, sum(spread.codes.size for spread in spreads) // SAMPLE)


def _counts(plan: Plan, spreads: list[_Spread], stride: int) -> Array:
    """How often each symbol occurs in each context and parity, in every stride-th column."""
    counts = np.zeros(plan.contexts * 2 * ALPHABET, np.int64)
    for index, spread in enumerate(spreads):
        symbols = spread.codes[:, ::stride].astype(np.int32) + ALPHABET // 2
        symbols += plan.of(index)[:, ::stride].astype(np.int32) * (2 * ALPHABET)
        if spread.parities is not None:
            symbols += spread.parities[:, ::stride].astype(np.int32) * ALPHABET
        counts += np.bincount(symbols.ravel(), minlength=counts.size)
    return counts.reshape(plan.contexts, 2, ALPHABET)


def _clipped(plan: Plan, spreads: list[_Spread]) -> tuple[float, Plan]:
    """A plan with its outer contexts merged as far as that pays, and the bits it all takes."""
    stride = _stride(spreads)
    counts = _counts(plan, spreads, stride) * stride
    costs = [_cost(context) for context in counts]
    low, high = 0, len(counts) - 1
    for end in (0, 1):
        while low < high:
            a, b = (low, low + 1) if end == 0 else (high, high - 1)
            merged = counts[a] + counts[b]
            cost = _cost(merged)
            if cost > costs[a] + costs[b]:
                break
            counts[b], costs[b] = merged, cost
            low, high = low + (end == 0), high - (end == 1)
    bits = sum(costs[low : high + 1])
    if plan.classed:
        for classes in (plan.rows, plan.columns):
            _, occurrences = np.unique(np.concatenate(classes), return_counts=True)
            bits += _cost(occurrences[None])
    clipped = plan._replace(
        contexts=high + 1 - low, bases=[max(-128, min(base - low, 127)) for base in plan.bases]
    )
    return bits, clipped


def _refined(plan: Plan, spreads: list[_Spread], axis: int) -> tuple[float, Plan]:
    """A plan whose rows (axis 0) or columns (axis 1) moved to cheaper neighbours, and its bits."""
    counts = _counts(plan, spreads, _stride(spreads)) + 0.02
    # In 1/256 bit, as integers, so that sums do not depend on their order. One context more at
    # either end, for neighbours of the last.
    prices = np.rint(-256 * np.log2(counts / counts.sum(axis=-1, keepdims=True))).astype(np.int32)
    prices = prices[[0, 0, *range(len(prices)), -1, -1]].ravel()
    classes = (plan.rows, plan.columns)[axis]
    occurrences = (
        np.bincount(np.concatenate(classes) + 2 * MOST_CLASS, minlength=4 * MOST_CLASS) + 0.3
    )
    side = np.rint(-256 * np.log2(occurrences / occurrences.sum())).astype(np.int64)
    moved = []
    for index, spread in enumerate(spreads):
        places = plan.sums(index).clip(-1, plan.contexts).astype(np.int32) + 2
        places = places * (2 * ALPHABET) + spread.codes + ALPHABET // 2
        if spread.parities is not None:
            places += spread.parities.astype(np.int32) * ALPHABET
        bits = [
            prices[places + move * (2 * ALPHABET)].sum(axis=1 - axis, dtype=np.int64)
            + side[classes[index] + move + 2 * MOST_CLASS]
            for move in (0, -1, 1)  # staying first: it wins a tie
        ]
        move = np.array([0, -1, 1])[np.argmin(bits, axis=0)]
        moved.append((classes[index] + move).clip(-MOST_CLASS, MOST_CLASS))
    return _clipped(
        plan._replace(rows=moved) if axis == 0 else plan._replace(columns=moved), spreads
    )


def _cost(counts: Array) -> float:
    """Bits of symbols and of their frequency tables.  # (tables, symbols)"""
    used = counts[counts > 0]
    totals = counts.sum(axis=-1)
    bits = float(np.sum(totals[totals > 0] * np.log2(totals[totals > 0])))
    return bits - float(np.sum(used * np.log2(used))) + 4 * used.size + 10 * len(counts)


# --- the stream ---


def context_sizes(order: Layout, plan: Plan, trellis: bool) -> list[int]:
    """How many tables the parts of a stream have."""
    weights = plan.contexts << trellis
    dense, vectors = bool(order.dense), bool(order.vectors)
    return [dense, dense, plan.classed, plan.classed, weights, vectors]


def _stream(
    order: Layout, found: dict[str, Quantized], plan: Plan, trellis: bool
) -> tuple[NDArray[np.int32], NDArray[np.int32], list[int]]:
    """All symbols, their contexts, and how many are read at once."""
    starts = np.cumsum([0, *context_sizes(order, plan, trellis)]).tolist()
    symbols: list[NDArray[np.int16]] = []
    contexts: list[NDArray[np.int32]] = []
    lengths: list[int] = []

    def add(part: int, values: Iterable[NDArray[np.int16]]) -> None:
        joined = np.concatenate([np.zeros(0, np.int16), *values])
        symbols.append(joined)
        contexts.append(np.full(len(joined), starts[part], np.int32))
        lengths.append(len(joined))

    for axis in (0, 1):
        add(axis, (factors(found[s.name], axis) for s in order.dense))
    add(2, (c.astype(np.int16) for c in plan.rows if plan.classed))
    add(3, (c.astype(np.int16) for c in plan.columns if plan.classed))
    blocks = [found[s.name].codes for s in order.dense]
    places = [_places(blocks[i], plan.of(i), trellis) for i in range(len(blocks))]
    for codes, place in zip(_by_column(blocks), _by_column(places), strict=True):
        symbols.append(codes.ravel())
        contexts.append(place.ravel().astype(np.int32) + starts[4])
        lengths += [codes.shape[1]] * len(codes)
    add(5, (found[s.name].codes.ravel() for s in order.vectors))
    return np.concatenate(symbols).astype(np.int32), np.concatenate(contexts), lengths


def _places(
    codes: NDArray[np.int16], contexts: NDArray[np.uint8], trellis: bool
) -> NDArray[np.uint8]:
    """Contexts with the parity of the trellis' state, if there is one."""
    return contexts * 2 + trellis_parities(codes).astype(np.uint8) if trellis else contexts


def _by_column(blocks: list[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    """The columns that the same blocks have, of blocks sorted by falling width: the rows of
    all, one below the other, as (columns, rows)."""
    start = 0
    for width in sorted({block.shape[1] for block in blocks}):
        live = [block[:, start:width].T for block in blocks if block.shape[1] >= width]
        yield np.concatenate(live, axis=1)
        start = width


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


# --- tables ---


def table_levels(counts: Array) -> tuple[int, Array]:
    """First symbol and levels (see `rans.frequencies`) of a table for these counts.

    counts (1024,), of symbols from -512

    Rare symbols take the mean of their neighbours where a smooth table is cheaper to store than
    the symbols are to code with it.
    """
    used = np.flatnonzero(counts)
    if not used.size:  # a context that no symbol has still has a place
        return 0, np.ones(1, np.int64)
    part = counts[used[0] : used[-1] + 1]
    prices = -np.log2(rans.difference_table(TYPICAL_SLOPE).frequencies)

    def bits(levels: Array) -> float:
        price = rans.BITS - np.log2(np.maximum(rans.frequencies(levels), 1))
        return float(part @ price + prices[_differences(levels) & 255 ^ 128].sum())

    candidates = [_levels(part.astype(np.float64))]
    ends = np.cumsum(np.pad(part, (1, 0)))
    places = np.arange(part.size)
    for least in (8, 32, 128, 512):  # a mean is over so many
        smooth = np.zeros(part.size)
        for reach in range(min(part.size, 100)):
            low, high = np.maximum(places - reach, 0), np.minimum(places + reach + 1, part.size)
            near = ends[high] - ends[low]
            smooth = np.where((smooth == 0) & (near >= least), near / (high - low), smooth)
        if smooth.all():
            candidates.append(_levels(smooth))
    return int(used[0]) - ALPHABET // 2, min(candidates, key=bits)


def _levels(counts: NDArray[np.float64]) -> Array:
    """Levels whose frequencies are as the counts."""
    # One slot is given to every used symbol; level 1 stands for an eighth of one.
    slots = counts * (rans.TOTAL / counts.sum()) - 1
    levels = np.rint(np.log2(np.maximum(slots * 8, 1)) * rans.LEVELS).astype(np.int64) + 1
    return np.where(counts > 0, levels, 0)


def _differences(levels: Array) -> Array:
    """Of each level to what continues the line through the two before."""
    padded = np.pad(levels, (2, 0))
    return padded[2:] - 2 * padded[1:-1] + padded[:-2]


def pack_tables(tables: list[tuple[int, Array]]) -> bytes:
    """What `rans.unpack_tables` reads as these first symbols and levels."""
    differences: list[int] = []
    head = [0, 2, 0, 0]
    for first, levels in tables:
        position, span = first + 512, len(levels) - 1
        now = [position & 255, position >> 8, span & 255, span >> 8]
        differences += [new - old for new, old in zip(now, head, strict=True)]
        differences += _differences(levels).tolist()
        head = now
    symbols = (np.array(differences, np.int32) + 128 & 255) - 128
    amounts = np.bincount(symbols + 128, minlength=256)

    def bits(slope: int) -> float:
        return -float(amounts @ np.log2(rans.difference_table(slope).frequencies))

    slope = min(range(1, 100), key=bits)
    table, contexts = rans.difference_table(slope), np.zeros(len(symbols), np.int32)
    return bytes([slope]) + encode_stream(symbols, contexts, [len(symbols)], [table], 1)


def pack_codes(codes: Array) -> bytes:
    """One byte for the width in bits, then the codes in that width, most significant bit first.

    [5, 0, 3] -> width 3, bits 101 000 011 -> b"\\x03\\xa1\\x80"
    """
    width = max(1, int(codes.max()).bit_length())
    bits = (codes.reshape(-1, 1) >> np.arange(width - 1, -1, -1)) & 1
    return bytes([width]) + np.packbits(bits.astype(np.uint8)).tobytes()
