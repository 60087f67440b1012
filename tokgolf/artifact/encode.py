"""Encoder of the weight sections: writes what `weights` reads.

Nothing here is needed to read an artifact, so none of it is counted. What there is to choose,
`contexts` and `tables` do.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokgolf.artifact import rans
from tokgolf.artifact.contexts import Lists, Plan, choose_plan, factors, lists_of
from tokgolf.artifact.tables import ALPHABET, Array, encode_stream, pack_tables, table_levels
from tokgolf.artifact.weights import LIST_TABLES, Layout, layout
from tokgolf.config import TrunkConfig
from tokgolf.errors import ArtifactError
from tokgolf.heads import HeadConfig, head_to_dict
from tokgolf.heads.base import Stored
from tokgolf.quantize import FARTHEST, LARGEST, STEPS, Quantized, trellis_parities

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
    dense = [found[s.name] for s in order.dense]
    plan = choose_plan(dense, trellis)
    bases, lists = lists_of(dense, plan)
    symbols, contexts, lengths = _stream(order, found, plan, lists, trellis)
    count = len(lists.counts) + (plan.contexts << trellis) + bool(order.vectors)
    counts = np.bincount(contexts * ALPHABET + symbols + ALPHABET // 2, minlength=count * ALPHABET)
    levels = [table_levels(row) for row in counts.reshape(-1, ALPHABET)]
    steps = np.array([found[s.name].step for s in [*order.dense, *order.vectors]], "<u2")
    tables = [rans.Table(first, rans.frequencies(level)) for first, level in levels]
    return {
        "tables": bytes([plan.contexts, plan.unit]) + pack_tables(levels),
        "steps": steps.tobytes() + np.array(bases, np.int8).tobytes() + lists.about,
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
        far = factors(quantized, axis).astype(np.int64)
        if far.shape != shape[axis : axis + 1] or np.abs(far).max() > FARTHEST:
            raise ArtifactError(
                f"{name} of shape {shape} has {far.size} factors along axis {axis} up to "
                f"{np.abs(far).max()} quarters of an octave; at most {FARTHEST} can be stored"
            )


# --- the stream ---


def _stream(
    order: Layout, found: dict[str, Quantized], plan: Plan, lists: Lists, trellis: bool
) -> tuple[NDArray[np.int32], NDArray[np.int32], list[int]]:
    """All symbols, the numbers of their tables, and how many are read at once."""
    first = len(lists.counts)
    of_lists = np.frombuffer(lists.about, np.uint8) % LIST_TABLES
    symbols: list[NDArray[Any]] = [np.zeros(0, np.int64), *lists.coded]
    contexts: list[NDArray[Any]] = [np.repeat(of_lists, [len(part) for part in lists.coded])]
    lengths = [sum(len(part) for part in lists.coded)]
    blocks = [found[s.name].codes for s in order.dense]
    places = [_places(blocks[i], plan.of(i), trellis) for i in range(len(blocks))]
    for codes, place in zip(_by_column(blocks), _by_column(places), strict=True):
        symbols.append(codes.ravel())
        contexts.append(place.ravel().astype(np.int32) + first)
        lengths += [codes.shape[1]] * len(codes)
    vectors = [found[s.name].codes.ravel() for s in order.vectors]
    lengths.append(sum(vector.size for vector in vectors))
    contexts.append(np.full(lengths[-1], first + (plan.contexts << trellis)))
    joined = np.concatenate([*symbols, *vectors]).astype(np.int32)
    return joined, np.concatenate(contexts).astype(np.int32), lengths


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


def pack_codes(codes: Array) -> bytes:
    """One byte for the width in bits, then the codes in that width, most significant bit first.

    [5, 0, 3] -> width 3, bits 101 000 011 -> b"\\x03\\xa1\\x80"
    """
    width = max(1, int(codes.max()).bit_length())
    bits = (codes.reshape(-1, 1) >> np.arange(width - 1, -1, -1)) & 1
    return bytes([width]) + np.packbits(bits.astype(np.uint8)).tobytes()
