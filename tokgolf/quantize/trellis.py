"""Trellis-coded quantization inside GPTQ: the path of every row that costs its outputs least.

Rounding column by column decides each integer alone. Here the integers of a row are a path through
an 8-state trellis (Ungerboeck's code 13/04; Marcellin & Fischer 1990 for quantization), which has
half the choices at each column but a grid twice as fine: 4 to 10 % fewer bits at the same error.
The error of a column still moves onto the columns to its right, as in GPTQ (Frantar et al. 2023);
so every survivor of the Viterbi search carries its own corrected remainder (per-survivor
processing, Raheli et al. 1995), and the metric is the exact error of the outputs.

A scalar quantizer is the trellis with one state whose grid is every integer, and the search is then
GPTQ itself; both run here.

Axes: rows, states (8, or 1), columns.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokgolf.quantize import LARGEST, NEXT_STATE

DAMPING = 0.01
BLOCK = 32
ROWS = 512  # of a chunk: what all survivors carry through a block then stays in the cache


def error_spread(hessian: NDArray[np.float64]) -> NDArray[np.float64]:
    """Upper Cholesky factor of the inverse of a damped Hessian: row j says how column j's error
    moves onto the columns after it, and the outputs' error is the sum of (error / diagonal)^2.

    hessian (columns, columns) -> (columns, columns)
    """
    damping = DAMPING * max(float(hessian.diagonal().mean()), 1e-12)
    damped = hessian + damping * np.eye(len(hessian))
    # With the order of the columns reversed, a Cholesky factor's inverse is the factor wanted.
    lower = np.linalg.cholesky(damped[::-1, ::-1])
    inverse = np.linalg.solve(lower, np.eye(len(hessian)))
    return np.ascontiguousarray(inverse[::-1, ::-1])


def round_rows(
    weights: NDArray[np.float64],
    spread: NDArray[np.float64] | None,
    step: NDArray[np.float64],
    *,
    trellis: bool,
    rate_weight: float = 0.0,
) -> NDArray[np.int16]:
    """The symbols of `weights` that keep the outputs on real inputs; see `tokgolf.quantize`.

    weights (rows, columns), spread (columns, columns) from `error_spread`, step (rows,) of the
    grid -> symbols (rows, columns)

    Without `spread` all columns count alike. `rate_weight` 1 trades error against bits at the
    exchange rate of the step itself (entropy-constrained rounding), 0 minimises the error alone.
    """
    columns = weights.shape[1]
    factor = np.eye(columns) if spread is None else spread
    # Squares of errors must stay in float32's range; scaling by powers of two changes nothing else.
    unit = 2.0 ** math.floor(math.log2(float(step.max())))
    sharpness = 2.0 ** math.floor(-math.log2(float(factor.diagonal().min())))
    weights, step, factor = weights / unit, step / unit, factor * sharpness
    diagonal = factor.diagonal()
    # A Gaussian's bits for a value q are q^2 / (2 sigma^2) nats and a constant: a price on q^2.
    # The exchange rate is what an octave of the step costs: 2 * error for each nat of a weight.
    power = np.square(weights)
    row, column = power.mean(axis=1), power.mean(axis=0)
    variance = np.maximum(np.outer(row, column / max(float(column.mean()), 1e-300)), 1e-300)
    apart = 2 * step if trellis else step  # of the choices at one column
    price = rate_weight * (apart**2 / 12)[:, None] * np.mean(diagonal**-2) / variance
    codes = np.empty(weights.shape, dtype=np.int16)
    for start in range(0, len(weights), ROWS):
        part = slice(start, start + ROWS)
        codes[part] = _search(
            *(torch.from_numpy(a).float() for a in (weights[part], step[part])),
            *(torch.from_numpy(a).float() for a in (price[part], factor)),
            trellis=trellis,
        )
    return codes


def _search(
    weights: Tensor, step: Tensor, price: Tensor, spread: Tensor, *, trellis: bool
) -> NDArray[np.int16]:
    """The symbols of the cheapest path of every row.  # (rows, columns) -> the same"""
    rows, columns = weights.shape
    # Of each state: what its integers j are modulo `period`, for each branch, and where it leads.
    if trellis:
        period, shift = 4.0, 1
        residue = torch.tensor([[s & 1, s & 1 | 2] for s in range(8)])
        following = torch.from_numpy(NEXT_STATE).view(8, 2)
    else:
        period, shift = 1.0, 0
        residue = following = torch.zeros(1, 1, dtype=torch.int64)
    states, branches = residue.shape
    # The edges (state * branches + branch) that lead into each state.
    edges = following.flatten().argsort(stable=True).view(states, branches)
    offset = residue.float()
    most = LARGEST * 2**shift // period  # of whole periods in j
    base = torch.arange(rows)[:, None] * states

    cost = torch.full((rows, states), torch.inf)
    cost[:, 0] = 0
    rest = weights.repeat_interleave(states, dim=0)
    symbols = torch.empty(columns, rows, states, dtype=torch.int16)
    origins = torch.empty(columns, rows, states, dtype=torch.int8)
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        # Columns of the block, as each survivor sees them; those done hold their error instead.
        block = rest[:, start:end].clone()
        ancestor = torch.arange(states).expand(rows, states)
        for c in range(start, end):
            scale, charge = 1 / spread[c, c], price[:, c, None, None]
            w = block[:, c - start].view(rows, states, 1)
            best = w / (1 + charge / scale**2) / step[:, None, None]
            j = ((best - offset) / period).round_().clamp_(-most, most).mul_(period).add_(offset)
            q = j * step[:, None, None]
            error = (w - q) * scale
            total = (cost[:, :, None] + error**2 + charge * q**2).flatten(1)
            cost, pick = total[:, edges].min(dim=2)
            edge = edges.expand(rows, states, branches).gather(2, pick[:, :, None])[:, :, 0]
            origin = edge // branches
            error = error.flatten(1).gather(1, edge)
            symbols[c] = j.flatten(1).gather(1, edge).to(torch.int16) >> shift
            origins[c] = origin
            block = block.index_select(0, (base + origin).flatten())
            block[:, c + 1 - start :].addcmul_(error.view(-1, 1), spread[c, c + 1 : end], value=-1)
            block[:, c - start] = error.flatten()
            ancestor = ancestor.gather(1, origin)
        after = rest[:, end:].index_select(0, (base + ancestor).flatten())
        rest[:, end:] = after.addmm_(block, spread[start:end, end:], alpha=-1)
    state = cost.argmin(dim=1, keepdim=True)
    found = torch.empty(columns, rows, dtype=torch.int16)
    for c in range(columns - 1, -1, -1):
        found[c] = symbols[c].gather(1, state)[:, 0]
        state = origins[c].gather(1, state).long()
    return found.T.numpy()
