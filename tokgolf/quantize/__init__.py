"""Quantized tensors: small integers times a tensor's step and factors of its rows and columns.

A scalar-quantized weight is `step * k`. A trellis-coded one is `step * j`, j = 2k + (state & 1):
the path of the states through a row picks even or odd integers, so that the grid is twice as fine
as the choice at one column (8 states, Ungerboeck's code 13/04; Marcellin & Fischer 1990). Every row
starts in state 0. Steps are bfloat16 numbers and quarters of an octave: a stored tensor is integers
only and is restored alike on every platform. This module restores (a scored model pays for it);
`rows` and `trellis` choose the integers.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LARGEST = 511
STEPS = range(0x1000, 0x7000)  # bfloat16 bits, 2^-95 to 2^97
FARTHEST = 40  # quarters of an octave of a row or column: no weight's step leaves float32
# By 2 * state + (k & 1), for the state's bits w3 w2 w1: (w2 ^ w1) | (w3 ^ k) << 1 | w1 << 2.
NEXT_STATE = np.array([0, 2, 5, 7, 1, 3, 4, 6, 2, 0, 7, 5, 3, 1, 6, 4], np.int64)
# 2^(i/4) as float32: as literals, since a platform's exp2 may differ in the last bit.
QUARTERS = np.array([0x3F800000, 0x3F9837F0, 0x3FB504F3, 0x3FD744FD], np.uint32).view(np.float32)


class Quantized(NamedTuple):
    """A tensor's integers k (rows, columns), |k| <= 511, columns in the order of `path`; bits of
    its bfloat16 step, in `STEPS`; and the quarters of octaves by which the steps of each row
    (rows,) and column (columns,) are larger, up to `FARTHEST`: None where there are none."""

    codes: NDArray[np.int16]
    step: int
    rows: NDArray[np.int8] | None = None
    columns: NDArray[np.int8] | None = None


def octaves(quarters: NDArray[np.int8]) -> NDArray[np.float32]:
    """2^(quarters / 4).  # any shape, the same"""
    whole = quarters.astype(np.int32)
    result: NDArray[np.float32] = np.ldexp(QUARTERS[whole & 3], whole >> 2)
    return result


def steps_of(quantized: Quantized) -> NDArray[np.float32]:
    """The steps of a tensor's weights.  # -> (rows or 1, columns or 1)"""
    steps = np.array([[quantized.step << 16]], np.uint32).view(np.float32)
    if quantized.rows is not None:
        steps = steps * octaves(quantized.rows)[:, None]
    return steps if quantized.columns is None else steps * octaves(quantized.columns)


def dequantize(quantized: Quantized, trellis: bool) -> NDArray[np.float32]:
    """Weights of a quantized tensor; vectors are never trellis-coded.  # -> (rows, columns)"""
    integers = quantized.codes
    if trellis:
        integers = 2 * integers + trellis_parities(integers)
    return integers.astype(np.float32) * steps_of(quantized)


def path(columns: int, width: int, lead: list[int]) -> NDArray[np.int64]:
    """The order in which a row's path visits its columns: where they are those of the residual
    stream, the columns of `lead` first.

    columns=5, width=5, lead=[4, 1] -> [4, 1, 0, 2, 3]
    columns=4, width=5, lead=[4, 1] -> [0, 1, 2, 3]
    """
    if columns != width:
        return np.arange(columns)
    rest = np.setdiff1d(np.arange(columns), lead)
    return np.concatenate([np.array(lead, np.int64), rest])


def restored(
    quantized: Quantized, kind: str, trellis: bool, width: int, lead: list[int]
) -> NDArray[np.float32]:
    """Weights of a tensor as a file gives them back, columns in their own order."""
    if kind == "vector":
        return dequantize(quantized, False)
    weights = dequantize(quantized, trellis)
    return weights[:, np.argsort(path(weights.shape[1], width, lead))]


def trellis_parities(codes: NDArray[np.int16]) -> NDArray[np.int16]:
    """Bit 0 of the trellis' state before every column.  # (rows, columns) -> (rows, columns)

    codes=[[1, 0, 1, 1]] -> states 0, 2, 1, 7 -> [[0, 0, 1, 1]]
    """
    bits = np.ascontiguousarray(codes.T) & 1
    states = np.zeros(len(codes), np.int64)
    for column in bits:
        states, column[:] = NEXT_STATE[2 * states + column], states & 1
    return bits.T
