"""The weight sections of an artifact, decoded: entropy-coded integers to tensors.

Which tensors there are, in which order and of which shape follows from the model's config; the
file holds only numbers. Sections:

    tables   number of weight contexts (u8); contexts to an octave of spread, 0 if rows and columns
             have no spreads (u8); frequency tables (see `rans.unpack_tables`): of the lists, of the
             weights (of each context one, or one for each parity), of the vectors
    steps    bfloat16 step (u16) of every tensor, base context (i8) of every one but vectors, and a
             byte for each list
    weights  one rANS stream: the lists; weights, a column at a time; vectors
    packed   fixed-width bits: the entries of tensors of kind "codes"

Tensors are in the order of `Layout`. There is a list of numbers for the rows of every tensor but
vectors, one for the columns of each, and, if there are spreads, as many again. The first are steps
in quarters of an octave; the others say how large a row's or column's weights are, step or no
step. Low five bits of a list's byte: its table; the others: how many lists back is one of the same
length that is to be added, 0 for none. Matrices that read the same have equal steps of columns.

The context of a weight is its tensor's base + the spreads of its row and column - what their steps
take of them, clipped to the contexts that there are; of a trellis-coded one also the parity of the
trellis' state. For the sake of that the stream has one column of all tensors after the other, the
widest tensors' rows first: the states are known before a column is read, and many rows are read at
once. `encode` writes these sections, `contexts` chooses what is in them.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tokgolf.artifact import rans
from tokgolf.errors import ArtifactError
from tokgolf.heads.base import Stored
from tokgolf.quantize import FARTHEST, NEXT_STATE, STEPS, Quantized, restored

MOST_UNIT = 8
LIST_TABLES = 32  # a list's byte: its table, and times this how far back the list to be added is


class Layout(NamedTuple):
    """The tensors of a stream, in its order."""

    dense: list[Stored]  # tables and matrices, the widest first
    vectors: list[Stored]
    shapes: list[tuple[int, int]]  # of `dense`: rows, columns


class Symbols(NamedTuple):
    """What the sections hold of the tensors but for those of kind codes."""

    quantized: dict[str, Quantized]  # by tensor
    row_classes: list[NDArray[np.int64]]  # of `dense`: base + class of every row
    column_classes: list[NDArray[np.int64]]
    lists: list[NDArray[np.int64]]  # as they are coded
    list_tables: NDArray[np.int64]
    tables: list[rans.Table]  # all
    contexts: int


def layout(stored: list[Stored]) -> Layout:
    """The order of these tensors in a stream."""
    dense = [tensor for tensor in stored if tensor.kind in ("table", "matrix")]
    dense.sort(key=lambda stored: -stored.tensor.shape[-1])  # stable
    shapes = [(s.tensor.numel() // s.tensor.shape[-1], s.tensor.shape[-1]) for s in dense]
    return Layout(dense, [tensor for tensor in stored if tensor.kind == "vector"], shapes)


def decode(
    stored: list[Stored], sections: dict[str, bytes], trellis: bool, width: int, lead: list[int]
) -> None:
    """Fill the tensors of a model, as its `stored()` lists them, from the sections.

    Tables and matrices of `width` columns have them in the order of `path`. Raises
    `ArtifactError` if the sections are not exactly what these tensors need.
    """
    with torch.no_grad():
        quantized = read(stored, sections, trellis).quantized
        for name, tensor, kind in stored:
            if kind != "codes":
                weights = restored(quantized.pop(name), kind, trellis, width, lead)
                tensor.copy_(torch.from_numpy(weights).view(tensor.shape))
        _unpack_all([tensor for tensor in stored if tensor.kind == "codes"], sections["packed"])


def read(stored: list[Stored], sections: dict[str, bytes], trellis: bool) -> Symbols:
    """The integers of all tensors but those of kind codes. Raises as `decode` does."""
    dense, vectors, shapes = layout(stored)
    contexts, unit = sections["tables"][:2] if len(sections["tables"]) > 1 else (0, 0)
    if not bool(unit) <= bool(contexts) == bool(dense) or unit > MOST_UNIT or contexts > 127:
        raise ArtifactError(
            f"the artifact has {contexts} contexts for {len(dense)} tensors, {unit} to the octave"
        )
    groups = 4 if unit else 2  # of lists
    steps, bases, about = _steps(sections["steps"], len(dense), len(vectors), groups)
    of_lists = about % LIST_TABLES
    first = int(of_lists.max(initial=-1)) + 1
    last = first + (contexts << trellis)
    tables = rans.unpack_tables(sections["tables"][2:], last + bool(vectors))
    lengths = [shape[group % 2] for group in range(groups) for shape in shapes]
    amounts = [sum(lengths), sum(n * m for n, m in shapes), sum(s.tensor.numel() for s in vectors)]
    decoder = rans.Decoder(sections["weights"], rans.lanes_of(sum(amounts)), tables)

    coded = decoder.read(np.repeat(of_lists << rans.BITS, lengths))
    lists = np.split(coded.astype(np.int64), np.cumsum(lengths)[:-1])[: len(lengths)]
    sums = _summed(lists, about // LIST_TABLES)
    factors = [_factors(quarters) for quarters in sums[: 2 * len(dense)]]
    spreads = sums[2 * len(dense) :] if unit else [np.zeros(n, np.int64) for n in lengths]
    classes = [a - step_class(b, unit) for a, b in zip(spreads, factors, strict=True)]
    row_classes = [base + part for base, part in zip(bases, classes, strict=False)]
    column_classes = classes[len(dense) :]
    codes = _read_columns(
        decoder,
        shapes,
        np.concatenate([np.zeros(0, np.int64), *row_classes]),
        column_classes,
        contexts,
        first,
        trellis,
    )
    of_vectors = decoder.read(np.full(amounts[2], last << rans.BITS))
    decoder.close()

    sides = zip(factors[: len(dense)], factors[len(dense) :], strict=True)
    quantized = {
        tensor.name: Quantized(block, step, *side)
        for tensor, block, step, side in zip(dense, codes, steps, sides, strict=False)
    }
    at = 0
    for (name, tensor, _), step in zip(vectors, steps[len(dense) :], strict=True):
        block = of_vectors[at : at + tensor.numel()].reshape(-1, tensor.shape[-1])
        quantized[name] = Quantized(block, step)
        at += tensor.numel()
    return Symbols(quantized, row_classes, column_classes, lists, of_lists, tables, contexts)


def step_class(quarters: NDArray[np.int8], unit: int) -> NDArray[np.int64]:
    """By how many contexts a step that is so much larger makes integers smaller."""
    result: NDArray[np.int64] = quarters.astype(np.int64) * unit >> 2
    return result


def _summed(lists: list[NDArray[np.int64]], back: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The lists with those so many places before added."""
    sums: list[NDArray[np.int64]] = []
    for place, (numbers, distance) in enumerate(zip(lists, back.tolist(), strict=True)):
        if distance:
            if distance > place or len(sums[place - distance]) != len(numbers):
                raise ArtifactError(f"list {place} is to be added to one of another length")
            numbers = numbers + sums[place - distance]
        sums.append(numbers)
    return sums


def _read_columns(
    decoder: rans.Decoder,
    shapes: list[tuple[int, int]],
    row_classes: NDArray[np.int64],
    column_classes: list[NDArray[np.int64]],
    contexts: int,
    first: int,
    trellis: bool,
) -> list[NDArray[np.int16]]:
    """Codes (rows, columns) of every dense tensor; `first` is the number of context 0's table."""
    blocks = [np.empty((m, n), np.int16) for n, m in shapes]
    states = np.zeros(len(row_classes), np.int64)
    live, heights = len(shapes), np.array([n for n, _ in shapes])
    for c in range(shapes[0][1] if shapes else 0):
        while shapes[live - 1][1] <= c:
            live -= 1
        classes = [of_tensor[c] for of_tensor in column_classes[:live]]
        where = np.repeat(classes, heights[:live])
        states = states[: len(where)]
        where += row_classes[: len(where)]
        np.clip(where, 0, contexts - 1, out=where)
        if trellis:
            where = 2 * where + (states & 1)
        symbols = decoder.read((where + first) << rans.BITS)
        if trellis:
            states = NEXT_STATE[2 * states + (symbols & 1)]
        at = 0
        for block, n in zip(blocks[:live], heights, strict=False):
            block[c] = symbols[at : at + n]
            at += n
    return [block.T for block in blocks]


def _steps(
    data: bytes, dense: int, vectors: int, groups: int
) -> tuple[list[int], NDArray[np.int64], NDArray[np.int64]]:
    """The steps of all tensors, the base contexts of the dense ones, and the lists' bytes."""
    count = dense + vectors
    if len(data) != 2 * count + (1 + groups) * dense:
        raise ArtifactError(f"{len(data)} bytes of steps are not those of {count} tensors")
    steps: list[int] = np.frombuffer(data, "<u2", count).tolist()
    for step in steps:
        if step not in STEPS:
            raise ArtifactError(f"a tensor has a step of bits {step:#06x}, which is out of range")
    bases = np.frombuffer(data, np.int8, dense, 2 * count).astype(np.int64)
    about = np.frombuffer(data, np.uint8, offset=2 * count + dense).astype(np.int64)
    return steps, bases, about


def _factors(symbols: NDArray[np.int64]) -> NDArray[np.int8]:
    """Quarters of octaves of rows or columns, in range."""
    if symbols.size and (most := int(np.abs(symbols).max())) > FARTHEST:
        raise ArtifactError(
            f"a row or column has a step of {most} quarters of an octave; at most {FARTHEST} load"
        )
    return symbols.astype(np.int8)


def _unpack_all(stored: list[Stored], data: bytes) -> None:
    offset = 0
    for name, tensor, _ in stored:
        width = data[offset] if offset < len(data) else 0
        end = offset + 1 + (width * tensor.numel() + 7) // 8
        if not 1 <= width <= 32 or end > len(data):
            raise ArtifactError(f"the artifact's packed codes of {name} are damaged")
        bits = np.unpackbits(np.frombuffer(data[offset + 1 : end], dtype=np.uint8))
        digits = bits[: width * tensor.numel()].reshape(-1, width).astype(np.int64)
        tensor.copy_(torch.from_numpy(digits @ (1 << np.arange(width - 1, -1, -1))))
        offset = end
    if offset != len(data):
        raise ArtifactError("the artifact's packed codes have bytes left over")
