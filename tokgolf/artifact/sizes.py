"""How much of the weight sections each tensor takes: their one coded stream, shared out.

The stream holds all tensors in lanes and contexts that they share. What a tensor takes of it is its
ideal length: the sum of -log2(frequency / 2^14) over its symbols, with the frequencies that
they were coded with. Reading does without this module.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokgolf.artifact import rans, weights
from tokgolf.artifact.tables import ALPHABET
from tokgolf.heads.base import Stored
from tokgolf.quantize import trellis_parities


class TensorSize(NamedTuple):
    """Bytes of a tensor's integers, of its step and the factors of its rows and columns, and of its
    context and classes."""

    name: str
    step: float | None
    coded: int
    steps: int
    classes: int


class Sizes(NamedTuple):
    """All of the weight sections: tensors, frequency tables, and what the stream has more."""

    tensors: tuple[TensorSize, ...]
    tables: int
    lanes: int


def whole(parts: Sequence[float] | NDArray[np.float64], total: int) -> list[int]:
    """Integers in proportion to `parts` that sum to `total`, by largest remainder.

    parts=[1.0, 1.0, 2.0], total=5 -> [1, 1, 3]; of equal remainders the first is rounded up
    """
    exact = np.asarray(parts, dtype=np.float64)
    if total == 0:
        return [0] * len(exact)
    exact = exact / exact.sum() * total
    down = np.floor(exact).astype(np.int64)
    short = total - int(down.sum())
    order = np.argsort(down - exact, kind="stable")  # the largest remainder first
    down[order[:short]] += 1
    return [int(size) for size in down]


def sizes_of(stored: list[Stored], sections: dict[str, bytes], trellis: bool) -> Sizes:
    """What each tensor takes of an artifact's weight sections; all of it sums to their bytes."""
    order = weights.layout(stored)
    found = weights.read(stored, sections, trellis)
    bits = _stream_bits(order, found, trellis)
    stream = len(sections["weights"])
    # A lane's last state holds a little less than the four bytes it is written in.
    shared = min(round(float(bits.sum()) / 8), stream)
    parts = np.array(whole(bits.ravel(), shared), dtype=np.int64).reshape(bits.shape)
    sizes: dict[str, TensorSize] = {}
    for number, (name, _, kind) in enumerate([*order.dense, *order.vectors]):
        coded, steps, classes = parts[number].tolist()
        step = np.array(found.quantized[name].step << 16, np.uint32).view(np.float32)
        steps += 2
        if kind != "vector":  # a byte of each list, and of the base context
            steps, classes = steps + 2, classes + 1 + 2 * (len(found.lists) > 2 * len(order.dense))
        sizes[name] = TensorSize(name, float(step), coded, steps, classes)
    at = 0
    for name, tensor, kind in stored:
        if kind == "codes":
            size = 1 + (sections["packed"][at] * tensor.numel() + 7) // 8
            sizes[name] = TensorSize(name, None, size, 0, 0)
            at += size
    return Sizes(
        tensors=tuple(sizes[tensor.name] for tensor in stored),
        tables=len(sections["tables"]),
        lanes=stream - shared,
    )


def stream_bits(
    stored: list[Stored], sections: dict[str, bytes], trellis: bool
) -> dict[str, float]:
    """Ideal bits of the integers of every tensor but those of codes."""
    order = weights.layout(stored)
    bits = _stream_bits(order, weights.read(stored, sections, trellis), trellis)
    names = [tensor.name for tensor in [*order.dense, *order.vectors]]
    return dict(zip(names, bits[:, 0].tolist(), strict=True))


def _stream_bits(
    order: weights.Layout, found: weights.Symbols, trellis: bool
) -> NDArray[np.float64]:
    """Ideal bits of the integers, factors and classes of every tensor.  # (tensors, 3)"""
    lengths = _code_lengths(found.tables)
    first = len(lengths) - bool(order.vectors) - (found.contexts << trellis)
    of_weights = lengths[first : len(lengths) - bool(order.vectors)]
    bits = np.zeros((len(order.dense) + len(order.vectors), 3))
    for place, (numbers, table) in enumerate(zip(found.lists, found.list_tables, strict=True)):
        group, number = divmod(place, len(order.dense))
        bits[number, 1 + group // 2] += lengths[table][numbers + ALPHABET // 2].sum()
    for number, (tensor, row, column) in enumerate(
        zip(order.dense, found.row_classes, found.column_classes, strict=True)
    ):
        codes = found.quantized[tensor.name].codes
        contexts = (row[:, None] + column).clip(0, found.contexts - 1)
        if trellis:
            contexts = 2 * contexts + trellis_parities(codes)
        counts = np.bincount(
            (contexts * ALPHABET + codes + ALPHABET // 2).ravel(), minlength=of_weights.size
        )
        bits[number, 0] = counts @ of_weights.ravel()
    for number, vector in enumerate(order.vectors, len(order.dense)):
        codes = found.quantized[vector.name].codes.astype(np.int64)
        bits[number, 0] = lengths[-1][codes + ALPHABET // 2].sum()
    return bits


def _code_lengths(tables: list[rans.Table]) -> NDArray[np.float64]:
    """Bits of every symbol from -512 to 511 in each table, 0 for one that it lacks."""
    lengths = np.zeros((len(tables), ALPHABET))
    for row, (first, frequencies) in zip(lengths, tables, strict=True):
        used = frequencies > 0
        start = first + ALPHABET // 2
        row[start : start + len(frequencies)][used] = rans.BITS - np.log2(frequencies[used])
    return lengths
