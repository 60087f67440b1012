"""The weight sections of an artifact, decoded: entropy-coded integers to tensors.

Which tensors there are, in which order and of which shape follows from the model's config; the
file holds only numbers. Sections:

    tables   number of weight contexts (u8); 1 if there are row and column classes, else 0 (u8);
             frequency tables (see `rans.unpack_tables`): row steps, column steps, row classes,
             column classes, weights (of each context one, or one for each parity), vectors; those
             that occur
    steps    bfloat16 step (u16) of every tensor, then base context (i8) of every one but vectors
    weights  one rANS stream: steps of rows, steps of columns, in quarters of an octave; row
             classes; column classes; weights, a column at a time; vectors
    packed   fixed-width bits: the entries of tensors of kind "codes"

Tensors are in the order of `Layout`. The context of a weight is its tensor's base + its row's class
+ its column's class, clipped to the contexts that there are; of a trellis-coded one also the parity
of the trellis' state. For the sake of that the stream has one column of all tensors after the
other, the widest tensors' rows first: the states are known before a column is read, and many rows
are read at once. `encode` writes these sections and chooses bases and classes.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tokgolf.artifact import rans
from tokgolf.errors import ArtifactError
from tokgolf.heads.base import Stored
from tokgolf.quantize import FARTHEST, NEXT_STATE, STEPS, Quantized, restored


class Layout(NamedTuple):
    """The tensors of a stream, in its order."""

    dense: list[Stored]  # tables and matrices, the widest first
    vectors: list[Stored]
    shapes: list[tuple[int, int]]  # of `dense`: rows, columns
    rows: int  # of `dense` together
    columns: int


class Symbols(NamedTuple):
    """What the sections hold of the tensors but for those of kind codes."""

    quantized: dict[str, Quantized]  # by tensor
    row_classes: list[NDArray[np.int64]]  # of `dense`: base + class of every row
    column_classes: list[NDArray[np.int64]]
    tables: list[rans.Table]  # of the weights, by context, and of the vectors
    contexts: int


def layout(stored: list[Stored]) -> Layout:
    """The order of these tensors in a stream."""
    dense = [tensor for tensor in stored if tensor.kind in ("table", "matrix")]
    dense.sort(key=lambda stored: -stored.tensor.shape[-1])  # stable
    shapes = [(s.tensor.numel() // s.tensor.shape[-1], s.tensor.shape[-1]) for s in dense]
    rows, columns = (sum(shape[axis] for shape in shapes) for axis in (0, 1))
    vectors = [tensor for tensor in stored if tensor.kind == "vector"]
    return Layout(dense, vectors, shapes, rows, columns)


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
    dense, vectors, shapes, rows, columns = layout(stored)
    steps, bases = _steps(sections["steps"], len(dense), len(vectors))
    contexts, classed = sections["tables"][:2] if len(sections["tables"]) > 1 else (0, 2)
    if not bool(classed) <= bool(contexts) == bool(dense) or classed > 1 or contexts > 127:
        raise ArtifactError(
            f"the artifact has {contexts} contexts for {len(dense)} tensors, classes: {classed}"
        )
    sizes = [bool(dense), bool(dense), classed, classed, contexts << trellis, bool(vectors)]
    starts = np.cumsum([0, *sizes]).tolist()
    tables = rans.unpack_tables(sections["tables"][2:], starts.pop())
    amounts = [rows, columns, classed * rows, classed * columns]
    amounts += [sum(n * m for n, m in shapes), sum(s.tensor.numel() for s in vectors)]
    decoder = rans.Decoder(sections["weights"], rans.lanes_of(sum(amounts)), tables)

    def symbols(part: int) -> NDArray[np.int64]:
        where = np.full(amounts[part], starts[part] << rans.BITS)
        return decoder.read(where).astype(np.int64)

    ends = [np.cumsum([shape[axis] for shape in shapes])[:-1] for axis in (0, 1)]
    tall, wide = (np.split(_factors(symbols(axis)), ends[axis]) for axis in (0, 1))
    row_classes = np.repeat(bases, [n for n, _ in shapes])
    row_classes += symbols(2) if classed else 0
    column_classes = symbols(3) if classed else np.zeros(columns, np.int64)
    of_columns = np.split(column_classes, ends[1])
    codes = _read_columns(decoder, shapes, row_classes, of_columns, contexts, starts[4], trellis)
    of_vectors = symbols(5).astype(np.int16)
    decoder.close()

    quantized = {
        tensor.name: Quantized(block, step, row, column)
        for tensor, block, step, row, column in zip(dense, codes, steps, tall, wide, strict=False)
    }
    at = 0
    for (name, tensor, _), step in zip(vectors, steps[len(dense) :], strict=True):
        block = of_vectors[at : at + tensor.numel()].reshape(-1, tensor.shape[-1])
        quantized[name] = Quantized(block, step)
        at += tensor.numel()
    of_rows = np.split(row_classes, ends[0])
    return Symbols(quantized, of_rows, of_columns, tables[starts[4] :], contexts)


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


def _steps(data: bytes, dense: int, vectors: int) -> tuple[list[int], NDArray[np.int64]]:
    """The steps of all tensors, and the base contexts of the dense ones."""
    count = dense + vectors
    if len(data) != 2 * count + dense:
        raise ArtifactError(f"{len(data)} bytes of steps are not those of {count} tensors")
    steps: list[int] = np.frombuffer(data, "<u2", count).tolist()
    for step in steps:
        if step not in STEPS:
            raise ArtifactError(f"a tensor has a step of bits {step:#06x}, which is out of range")
    return steps, np.frombuffer(data, np.int8, dense, 2 * count).astype(np.int64)


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
