"""What an encoder says beside the weights: contexts of rows and columns, and lists with tables.

The spread of the integers differs from row to row and from column to column. Their logarithms,
rounded to a unit, are the first guess at the classes of rows and columns; the sum of both says
which frequency table a weight takes. The unit (none, or so many to an octave) and the number of
contexts are those that make the sections smallest. Then each row and column moves to the next class
wherever that costs fewer bits under the tables as they are, in turns.

A class is stored as the spread of a row's weights, from which its step takes a part: rows that are
as large as each other have spreads that are nearly alike, whatever their steps. The lists of
spreads and of steps, some to a tensor, are too short for tables of their own: they share a few.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokgolf.artifact.tables import ALPHABET, Array, bits_of, entropy_bits
from tokgolf.artifact.weights import LIST_TABLES, step_class
from tokgolf.quantize import Quantized, trellis_parities

UNITS = (0, 1, 2, 4, 8)  # classes to the octave; of quarters a step takes whole ones from 4 on
MOST_CLASS = 15  # class of a row or column from its tensor's middle
MOST_CONTEXTS = 120
SAMPLE = 1 << 22  # weights on which units are compared
TURNS, LARGE_TURNS = 10, 4  # of refinement
LARGE = 1 << 23  # more weights than this get the few: each takes half a second
PRIOR = 8  # numbers of all lists, beside those of a list, in the price of what it has
FARTHEST_BACK = 255 // LIST_TABLES
LIST_TURNS = 10


class Plan(NamedTuple):
    """Contexts of the weights of a list of dense tensors."""

    contexts: int
    unit: int  # classes to the octave, 0 if there are none
    bases: list[int]
    rows: list[Array]  # classes, of every tensor
    columns: list[Array]

    def of(self, tensor: int) -> NDArray[np.uint8]:
        """Contexts of all weights of a tensor.  # (rows, columns)"""
        return self.sums(tensor).clip(0, max(self.contexts, 1) - 1).astype(np.uint8)

    def sums(self, tensor: int) -> NDArray[np.int16]:
        """The same before they are clipped."""
        rows = (self.rows[tensor] + self.bases[tensor]).astype(np.int16)
        return rows[:, None] + self.columns[tensor].astype(np.int16)


class _Spread(NamedTuple):
    """Base-2 logarithms of the rms of a tensor's integers, the integers, and their steps."""

    rows: NDArray[np.float64]
    columns: NDArray[np.float64]  # relative to the whole tensor
    codes: NDArray[np.int16]
    parities: NDArray[np.int16] | None
    quarters: tuple[NDArray[np.int8], NDArray[np.int8]]  # of octaves of rows' and columns' steps


def factors(quantized: Quantized, axis: int) -> NDArray[np.int8]:
    """Quarters of octaves of a tensor's rows (axis 0) or columns (1), 0 where it has none."""
    found = (quantized.rows, quantized.columns)[axis]
    return np.zeros(quantized.codes.shape[axis], np.int8) if found is None else found


def _spread(quantized: Quantized, trellis: bool) -> _Spread:
    codes = quantized.codes
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
    quarters = factors(quantized, 0), factors(quantized, 1)
    return _Spread(rows, columns, codes, parities, quarters)


def _classes(logs: NDArray[np.float64], unit: int) -> Array:
    rounded: Array = np.rint(logs.clip(-99, 99) * unit).astype(np.int64)
    return rounded


def choose_plan(found: list[Quantized], trellis: bool) -> Plan:
    """The contexts that make the sections of these dense tensors smallest."""
    if not found:
        return Plan(0, 0, [], [], [])
    spreads = [_spread(quantized, trellis) for quantized in found]
    plans = sorted((_clipped(_plan(spreads, unit), spreads) for unit in UNITS), key=_bits)
    if sum(spread.codes.size for spread in spreads) > LARGE:
        return _refined(plans[0], spreads, LARGE_TURNS)[1]
    # Small units gain more from refinement: so the second best gets a chance.
    best = min((_refined(pair, spreads, 2) for pair in plans[:2]), key=_bits)
    return _refined(best, spreads, TURNS - 2)[1]


def _refined(pair: tuple[float, Plan], spreads: list[_Spread], turns: int) -> tuple[float, Plan]:
    """A plan after so many turns, each of which moves the rows or the columns."""
    for turn in range(turns if pair[1].unit else 0):
        pair = min(pair, _moved(pair[1], spreads, turn % 2), key=_bits)
    return pair


def _bits(pair: tuple[float, Plan]) -> float:
    return pair[0]


def _plan(spreads: list[_Spread], unit: int) -> Plan:
    """Classes to a unit, with a context for every sum that occurs, up to a bound."""
    bases, rows, columns = [], [], []
    for spread in spreads:
        row, column = _classes(spread.rows, unit), _classes(spread.columns, unit)
        base = int(np.median(row))
        bases.append(base)
        rows.append((row - base).clip(-MOST_CLASS, MOST_CLASS))
        columns.append(column.clip(-MOST_CLASS, MOST_CLASS))
    low, high = min(bases) - MOST_CLASS, max(bases) + MOST_CLASS
    low = max(low, high + 1 - MOST_CONTEXTS)
    contexts = high + 1 - low if unit else 1
    return Plan(contexts, unit, [base - low * (unit > 0) for base in bases], rows, columns)


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
    costs = [bits_of(context) for context in counts]
    low, high = 0, len(counts) - 1
    for end in (0, 1):
        while low < high:
            a, b = (low, low + 1) if end == 0 else (high, high - 1)
            merged = counts[a] + counts[b]
            cost = bits_of(merged)
            if cost > costs[a] + costs[b]:
                break
            counts[b], costs[b] = merged, cost
            low, high = low + (end == 0), high - (end == 1)
    bits = sum(costs[low : high + 1])
    if plan.unit:
        for axis in (0, 1):
            lists = spreads_of(plan, [spread.quarters[axis] for spread in spreads], axis)
            for numbers, prices in zip(lists, _prices(lists), strict=True):
                bits += float(prices[numbers + ALPHABET // 2].sum()) / 256
    clipped = plan._replace(
        contexts=high + 1 - low, bases=[max(-128, min(base - low, 127)) for base in plan.bases]
    )
    return bits, clipped


def spreads_of(plan: Plan, quarters: list[NDArray[np.int8]], axis: int) -> list[Array]:
    """Spreads of every tensor's rows (axis 0) or columns (1): the classes without their steps,
    which are so many quarters of octaves."""
    classes = (plan.rows, plan.columns)[axis]
    return [
        part + step_class(steps, plan.unit) for part, steps in zip(classes, quarters, strict=True)
    ]


def _prices(lists: list[Array]) -> list[Array]:
    """Of all numbers from -512 in each list, in 1/256 bit: as often as it is in the list, and a
    little as often as it is in all.  # lists of (1024,)"""
    counts = np.array([_histogram(numbers) for numbers in lists])
    all_lists = counts.sum(axis=0) + 0.3
    mixed = counts + PRIOR * all_lists / all_lists.sum()
    return list(np.rint(-256 * np.log2(mixed / mixed.sum(axis=1, keepdims=True))).astype(np.int64))


def _histogram(numbers: Array) -> Array:
    return np.bincount(numbers + ALPHABET // 2, minlength=ALPHABET)


def _moved(plan: Plan, spreads: list[_Spread], axis: int) -> tuple[float, Plan]:
    """A plan whose rows (axis 0) or columns (axis 1) moved to cheaper neighbours, and its bits."""
    counts = _counts(plan, spreads, _stride(spreads)) + 0.02
    # In 1/256 bit, as integers, so that sums do not depend on their order. One context more at
    # either end, for neighbours of the last.
    prices = np.rint(-256 * np.log2(counts / counts.sum(axis=-1, keepdims=True))).astype(np.int32)
    prices = prices[[0, 0, *range(len(prices)), -1, -1]].ravel()
    classes = (plan.rows, plan.columns)[axis]
    lists = spreads_of(plan, [spread.quarters[axis] for spread in spreads], axis)
    moved = []
    for index, (spread, side) in enumerate(zip(spreads, _prices(lists), strict=True)):
        places = plan.sums(index).clip(-1, plan.contexts).astype(np.int32) + 2
        places = places * (2 * ALPHABET) + spread.codes + ALPHABET // 2
        if spread.parities is not None:
            places += spread.parities.astype(np.int32) * ALPHABET
        bits = [
            prices[places + move * (2 * ALPHABET)].sum(axis=1 - axis, dtype=np.int64)
            + side[lists[index] + move + ALPHABET // 2]
            for move in (0, -1, 1)  # staying first: it wins a tie
        ]
        move = np.array([0, -1, 1])[np.argmin(bits, axis=0)]
        moved.append((classes[index] + move).clip(-MOST_CLASS, MOST_CLASS))
    return _clipped(
        plan._replace(rows=moved) if axis == 0 else plan._replace(columns=moved), spreads
    )


# --- lists ---


class Lists(NamedTuple):
    """Numbers as they are coded, a byte about each list (see `weights`), and how often each number
    from -512 occurs in the lists of each table."""

    coded: list[Array]
    about: bytes
    counts: Array  # (tables, 1024)


def lists_of(found: list[Quantized], plan: Plan) -> tuple[list[int], Lists]:
    """Base contexts of dense tensors, and the lists of their steps and spreads."""
    quarters = [[factors(quantized, axis) for quantized in found] for axis in (0, 1)]
    lists = [steps.astype(np.int64) for of_axis in quarters for steps in of_axis]
    bases = list(plan.bases)
    for axis in (0, 1) if plan.unit else ():
        for place, spreads in enumerate(spreads_of(plan, quarters[axis], axis)):
            before = bases[place]  # takes the middle, as far as it can
            bases[place] = max(-128, min(before + int(np.median(spreads)), 127))
            lists.append(spreads - (bases[place] - before))
    return bases, packed_lists(lists)


def packed_lists(lists: list[Array]) -> Lists:
    """Each list as it is or as the difference to an earlier one, and few tables for all."""
    coded, back = [], []
    for place, numbers in enumerate(lists):
        ways = [(0, numbers)]
        for distance in range(1, min(place, FARTHEST_BACK) + 1):
            if len(lists[place - distance]) == len(numbers):
                ways.append((distance, numbers - lists[place - distance]))
        distance, smallest = min(ways, key=lambda way: entropy_bits(_histogram(way[1])[None]))
        coded.append(smallest)
        back.append(distance)
    if not lists:
        return Lists([], b"", np.zeros((0, ALPHABET), np.int64))
    counts = np.array([_histogram(numbers) for numbers in coded])
    amounts = [2**power for power in range(6) if 2**power <= min(len(lists), LIST_TABLES)]
    tables = min((_shared(counts, amount) for amount in amounts), key=lambda t: bits_of(t[1]))
    about = np.array(back) * LIST_TABLES + tables[0]
    return Lists(coded, about.astype(np.uint8).tobytes(), tables[1])


def _shared(counts: Array, amount: int) -> tuple[Array, Array]:
    """Which of at most so many tables each list takes, and what is counted in each: lists of like
    spread at first, then each moves to the table that codes it best, in turns.

    (lists, 1024) -> (lists,), (tables, 1024)
    """
    numbers = np.arange(ALPHABET) - ALPHABET // 2
    power = counts @ np.square(numbers) / counts.sum(axis=1)
    tables = np.argsort(np.argsort(power, kind="stable"), kind="stable") * amount // len(counts)
    for _ in range(LIST_TURNS):
        sums = _sums(counts, tables, amount) + 0.01
        # Whole 1/256 bits: no order of summation changes what is the cheapest.
        prices = np.rint(-256 * np.log2(sums / sums.sum(axis=1, keepdims=True)))
        moved = (counts.astype(np.float64) @ prices.T).argmin(axis=1)
        if (moved == tables).all():
            break
        tables = moved
    _, tables = np.unique(tables, return_inverse=True)
    return tables, _sums(counts, tables, int(tables.max()) + 1)


def _sums(counts: Array, tables: Array, amount: int) -> Array:
    sums = np.zeros((amount, ALPHABET), np.int64)
    np.add.at(sums, tables, counts)
    return sums
