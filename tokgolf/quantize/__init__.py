"""Quantized tensors: small integers times a power-of-two step for each row.

A row's step is 2^(exponent / 8 - 24) with an integer exponent in 0..255, so a stored tensor is
integers only, restored alike on every platform; steps span 2^-24 to 2^7.9 and are within 4.5 %
of any wish. This module restores (a scored model pays for it); `rows` chooses the integers.
"""

import numpy as np
from numpy.typing import NDArray

STEPS_PER_OCTAVE = 8
SMALLEST_STEP_LOG2 = -24


def steps(exponents: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Step sizes of exponents.

    exponents=[192, 200, 184] -> [1.0, 2.0, 0.5]
    """
    log2 = np.arange(256) / STEPS_PER_OCTAVE + SMALLEST_STEP_LOG2
    result: NDArray[np.float32] = np.exp2(log2).astype(np.float32)[exponents]
    return result


def dequantize(codes: NDArray[np.int8], exponents: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Weights of a quantized tensor.  # (rows, columns), (rows,) -> (rows, columns)"""
    return codes.astype(np.float32) * steps(exponents)[:, None]
