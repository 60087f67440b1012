"""Quantization of rows: the integers chosen here are what `tokgolf.quantize` restores.

Tables and matrices take a step proportional to the standard deviation of the row ("SDClip",
openai/parameter-golf PR #1394): step = clip * std / (2^(bits-1) - 1). With an entropy coder
behind it the ratio step / std alone sets the size, about log2(std / step) + 2.05 bits a weight,
and `bits` only bounds the largest code. Vectors are few and delicate: their step lets the
largest entry reach the largest code.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tokgolf.config import check_positive
from tokgolf.errors import ArtifactError, ConfigError
from tokgolf.heads.base import StoredKind
from tokgolf.quantize import SMALLEST_STEP_LOG2, STEPS_PER_OCTAVE, steps
from tokgolf.quantize.gptq import round_columns

Quantized = tuple[NDArray[np.int8], NDArray[np.uint8]]
"""codes (rows, columns) and step exponents (rows,)"""


@dataclass(frozen=True, kw_only=True)
class QuantConfig:
    """Bits and clip, in standard deviations, of matrices and of tables; vectors are int8.

    `method` "gptq" needs training tokens to calibrate on; "nearest" needs nothing.
    """

    method: Literal["gptq", "nearest"] = "gptq"
    matrix_bits: int = 6
    matrix_clip: float = 12.85
    table_bits: int = 8
    table_clip: float = 20.0

    def __post_init__(self) -> None:
        for name in ("matrix_bits", "table_bits"):
            if not 2 <= getattr(self, name) <= 8:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be 2 to 8")
        check_positive(self, "matrix_clip", "table_clip")


def quantize(
    name: str,
    weights: NDArray[np.float32],
    kind: StoredKind,
    config: QuantConfig,
    hessian: NDArray[np.float64] | None = None,
    counts: NDArray[np.int64] | None = None,
) -> Quantized:
    """Quantize one tensor of kind table, matrix or vector; one-dimensional ones as one row.

    With the tokens' `counts` (vocab,), a table with a row for each token takes finer steps for
    frequent tokens (see `frequency_weights`). With the `hessian` of the tensor's inputs, codes
    are chosen by GPTQ, otherwise by rounding to the nearest. `name` is for the `ArtifactError`
    raised when a weight is not finite.
    """
    check_finite(name, weights)
    rows = weights.reshape(-1, weights.shape[-1]).astype(np.float64)
    if kind == "vector":
        largest, wish = 127, np.abs(rows).max(axis=1) / 127
    elif kind == "table":
        largest = 2 ** (config.table_bits - 1) - 1
        wish = config.table_clip * _spread(rows) / largest
        if counts is not None and len(counts) == len(rows):
            wish = wish * frequency_weights(counts)
    else:
        largest = 2 ** (config.matrix_bits - 1) - 1
        wish = config.matrix_clip * _spread(rows) / largest
    exponents = _exponents(wish, up=kind == "vector")
    step = steps(exponents).astype(np.float64)
    if hessian is not None:
        return round_columns(rows, hessian, step, largest), exponents
    codes = np.rint(rows / step[:, None]).clip(-largest, largest)
    return codes.astype(np.int8), exponents


def frequency_weights(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Factors on the steps of a table's rows, with geometric mean 1: (count + 5)^(-1/4).

    A frequent token's row is read and predicted more often, so its error costs more. Measured on
    a tied table (V = 1024, d = 128): at 4.3 to 4.4 bits a weight the damage is 0.016 bpb with these
    factors and 0.031 without; exponents of -0.35 and -0.5 were no better.
    """
    weights = (counts.astype(np.float64) + 5) ** -0.25
    result: NDArray[np.float64] = weights / np.exp(np.log(weights).mean())
    return result


def check_finite(name: str, weights: NDArray[np.float32]) -> None:
    """Raise `ArtifactError`, naming the tensor, if a weight is NaN or infinite."""
    bad = weights.size - int(np.isfinite(weights).sum())
    if bad:
        raise ArtifactError(
            f"{name} has {bad:,} of {weights.size:,} weights that are not finite; "
            "export an earlier checkpoint"
        )


def _spread(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard deviation of each row, but no less than its mean: a row of one column, or of equal
    entries, has none, and a step of that would clip all of it away."""
    spread: NDArray[np.float64] = np.maximum(rows.std(axis=1), np.abs(rows.mean(axis=1)))
    return spread


def _exponents(wish: NDArray[np.float64], *, up: bool) -> NDArray[np.uint8]:
    """Exponents of the steps nearest to `wish`, or of the next larger ones if `up`."""
    with np.errstate(divide="ignore"):  # a row of zeros takes the smallest step
        ideal = (np.log2(wish) - SMALLEST_STEP_LOG2) * STEPS_PER_OCTAVE
    rounded: NDArray[np.float64] = np.ceil(ideal) if up else np.rint(ideal)
    return rounded.clip(0, 255).astype(np.uint8)
