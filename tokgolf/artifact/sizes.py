"""How much of the weight sections each tensor takes: their coded streams, shared out.

A stream holds many tensors, in lanes and contexts that they share. What a tensor takes of it is
its ideal length, the sum of -log2(frequency / 2^14) over its symbols with the frequencies that
they were coded with. Reading does without this module.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokgolf.artifact import rans, weights
from tokgolf.heads.base import Stored
from tokgolf.quantize import steps


class TensorSize(NamedTuple):
    """Bytes of a tensor's numbers, of its step (or steps) and of its row and column classes."""

    name: str
    step: float | None
    coded: int
    steps: int
    classes: int


class Sizes(NamedTuple):
    """All of the weight sections: tensors, frequency tables, and what the streams have more."""

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


def ideal_bits(
    symbols: NDArray[np.uint8],
    contexts: NDArray[np.uint8] | None,
    tables: NDArray[np.int64],
    owners: NDArray[np.int64],
    count: int,
) -> NDArray[np.float64]:
    """Ideal bits of each owner's symbols.  # (n,), (n,), (contexts, alphabet), (n,) -> (count,)"""
    with np.errstate(divide="ignore"):  # a frequency of 0 is of a symbol that does not occur
        bits = rans.BITS - np.log2(tables)
    each = bits[0 if contexts is None else contexts, symbols]
    return np.bincount(owners, weights=each, minlength=count)


def sizes_of(stored: list[Stored], sections: dict[str, bytes]) -> Sizes:
    """What each tensor takes of an artifact's weight sections; all of it sums to their bytes."""
    dense = [tensor for tensor in stored if tensor.kind != "codes"]
    rows = [tensor.tensor.numel() // tensor.tensor.shape[-1] for tensor in dense]
    contexts = weights._contexts(stored)
    tables, offset = [], 0
    for _ in range(len({tensor.kind for tensor in dense}) + 1):
        table, offset = rans.unpack_table(sections["tables"], offset, weights.ALPHABET)
        tables.append(table)
    steps_table = tables.pop()[None]
    deltas = rans.decode(sections["steps"], sum(rows), None, steps_table)
    symbols = rans.decode(sections["weights"], len(contexts), contexts, np.stack(tables))
    of_rows = np.repeat(np.arange(len(dense)), rows)
    of_symbols = np.repeat(np.arange(len(dense)), [t.tensor.numel() for t in dense])
    step_bits = ideal_bits(deltas, None, steps_table, of_rows, len(dense))
    weight_bits = ideal_bits(symbols, contexts, np.stack(tables), of_symbols, len(dense))
    step_bytes = whole(step_bits, _rounded(step_bits, sections["steps"]))
    weight_bytes = whole(weight_bits, _rounded(weight_bits, sections["weights"]))
    exponents = steps(np.cumsum(deltas, dtype=np.uint8))
    first = np.cumsum([0, *rows])
    found = {
        tensor.name: TensorSize(tensor.name, float(exponents[row]), coded, side, 0)
        for tensor, row, coded, side in zip(
            dense, first[:-1], weight_bytes, step_bytes, strict=True
        )
    }
    offset = 0
    for tensor in stored:
        if tensor.kind == "codes":
            size = 1 + (sections["packed"][offset] * tensor.tensor.numel() + 7) // 8
            found[tensor.name] = TensorSize(tensor.name, None, size, 0, 0)
            offset += size
    spent = sum(step_bytes) + sum(weight_bytes)
    return Sizes(
        tensors=tuple(found[tensor.name] for tensor in stored),
        tables=len(sections["tables"]),
        lanes=len(sections["steps"]) + len(sections["weights"]) - spent,
    )


def _rounded(bits: NDArray[np.float64], stream: bytes) -> int:
    return min(round(float(bits.sum()) / 8), len(stream))
