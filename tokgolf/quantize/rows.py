"""Quantization: the integers and steps chosen here are what `tokgolf.quantize` restores.

A matrix takes one step, proportional to its standard deviation ("SDClip", openai/parameter-golf PR
#1394, there for each row): step = clip * std / (2^(bits-1) - 1). With an entropy coder behind it
the ratio step / std alone sets the size, about log2(std / step) + 2.05 bits a weight, and `bits`
only bounds the largest code. The rows of a table have such a step each. Vectors are few and
delicate: their step lets the largest entry reach 127.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tokgolf.config import check_positive
from tokgolf.errors import ArtifactError, ConfigError
from tokgolf.heads.base import StoredKind
from tokgolf.quantize import STEPS, Quantized, row_steps
from tokgolf.quantize.gptq import round_columns


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
    eighths = None
    if kind == "vector":
        largest, wish = 127, float(np.abs(rows).max()) / 127
    elif kind == "table":
        largest = 2 ** (config.table_bits - 1) - 1
        wishes = config.table_clip * _spread(rows) / largest
        if counts is not None and len(counts) == len(rows):
            wishes *= frequency_weights(counts)
        wish = float(np.median(wishes))
        with np.errstate(divide="ignore"):  # a row of zeros takes the smallest step
            logs = 8 * (np.log2(wishes) - np.log2(max(wish, 1e-300)))
        eighths = np.rint(logs.clip(-128, 127)).astype(np.int8)
    else:
        largest = 2 ** (config.matrix_bits - 1) - 1
        wish = config.matrix_clip * float(_spread(rows.reshape(1, -1))[0]) / largest
    bits = step_bits(wish, up=kind == "vector")
    empty = Quantized(np.zeros(rows.shape, np.int16), bits, eighths)
    step = np.broadcast_to(row_steps(empty).astype(np.float64), (len(rows), 1))
    if hessian is not None:
        codes = round_columns(rows, hessian, step[:, 0], largest).astype(np.int16)
    else:
        codes = np.rint(rows / step).clip(-largest, largest).astype(np.int16)
    return empty._replace(codes=codes)


def step_bits(wish: float, *, up: bool = False) -> int:
    """Bits of the bfloat16 step nearest to a wish, or of the next larger one if `up`.

    wish=1.0 -> 0x3f80; within 0.4 % from 2^-95 to 2^96, whose ends other wishes take
    """
    bits = int(np.array(min(max(wish, 2.0**-99), 2.0**99), np.float32).view(np.uint32))
    return min(max(bits + (0xFFFF if up else 0x8000) >> 16, STEPS[0]), STEPS[-1])


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
