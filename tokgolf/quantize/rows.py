"""Round-to-nearest quantization of rows: what is chosen here, `tokgolf.quantize` restores.

Tables and matrices take a step proportional to the standard deviation of the row ("SDClip",
openai/parameter-golf PR #1394): step = clip * std / (2^(bits-1) - 1). With an entropy coder
behind it the ratio step / std alone sets the size, about log2(std / step) + 2.05 bits a weight,
and `bits` only bounds the largest code. Vectors are few and delicate: their step lets the
largest entry reach the largest code.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokgolf.config import check_positive
from tokgolf.errors import ArtifactError, ConfigError
from tokgolf.heads.base import StoredKind
from tokgolf.quantize import SMALLEST_STEP_LOG2, STEPS_PER_OCTAVE, steps

Quantized = tuple[NDArray[np.int8], NDArray[np.uint8]]
"""codes (rows, columns) and step exponents (rows,)"""


@dataclass(frozen=True, kw_only=True)
class QuantConfig:
    """Bits and clip, in standard deviations, of matrices and of tables; vectors are int8."""

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
    name: str, weights: NDArray[np.float32], kind: StoredKind, config: QuantConfig
) -> Quantized:
    """Quantize one tensor of kind table, matrix or vector; one-dimensional ones as one row.

    `name` is for the `ArtifactError` raised when a weight is not finite.
    """
    if not np.isfinite(weights).all():
        bad = weights.size - int(np.isfinite(weights).sum())
        raise ArtifactError(
            f"{name} has {bad:,} of {weights.size:,} weights that are not finite; "
            "export an earlier checkpoint"
        )
    rows = weights.reshape(-1, weights.shape[-1]).astype(np.float64)
    if kind == "vector":
        largest, wish = 127, np.abs(rows).max(axis=1) / 127
    elif kind == "table":
        largest = 2 ** (config.table_bits - 1) - 1
        wish = config.table_clip * rows.std(axis=1) / largest
    else:
        largest = 2 ** (config.matrix_bits - 1) - 1
        wish = config.matrix_clip * rows.std(axis=1) / largest
    exponents = _exponents(wish, up=kind == "vector")
    codes = np.rint(rows / steps(exponents)[:, None]).clip(-largest, largest)
    return codes.astype(np.int8), exponents


def _exponents(wish: NDArray[np.float64], *, up: bool) -> NDArray[np.uint8]:
    """Exponents of the steps nearest to `wish`, or of the next larger ones if `up`."""
    with np.errstate(divide="ignore"):  # a row of zeros takes the smallest step
        ideal = (np.log2(wish) - SMALLEST_STEP_LOG2) * STEPS_PER_OCTAVE
    rounded: NDArray[np.float64] = np.ceil(ideal) if up else np.rint(ideal)
    return rounded.clip(0, 255).astype(np.uint8)
