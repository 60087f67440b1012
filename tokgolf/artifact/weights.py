"""The weight sections of an artifact: quantized tensors to entropy-coded bytes and back.

Which tensors there are, in which order and of which shape follows from the model's config; the
file holds only numbers. Sections:

    tables   frequency tables (see `rans.pack_table`): of each kind in use, in the order of
             `KINDS`, and of the steps
    steps    rANS: each row's step exponent, as the difference to the row before, mod 256
    weights  rANS: each weight's code + 128, context = the tensor's kind
    packed   fixed-width bits: the entries of tensors of kind "codes"

Row steps follow the standard deviation of the row, so that the codes of all tensors of a kind
have nearly one distribution and share one table.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from tokgolf.artifact import rans
from tokgolf.errors import ArtifactError
from tokgolf.heads.base import Stored
from tokgolf.quantize import dequantize

KINDS = ("vector", "table", "matrix")
ALPHABET = 256
Quantize = Callable[[Stored], tuple[NDArray[np.int8], NDArray[np.uint8]]]


def encode(stored: list[Stored], quantize: Quantize) -> dict[str, bytes]:
    """The sections that hold `stored` as quantized by `quantize`."""
    by_kind: list[list[NDArray[np.uint8]]] = [[] for _ in KINDS]
    symbols, exponents, packed = [], [], []
    for tensor in stored:
        if tensor.kind == "codes":
            packed.append(pack_codes(tensor.tensor.cpu().numpy()))
            continue
        codes, rows = quantize(tensor)
        symbols.append((codes.reshape(-1).astype(np.int16) + 128).astype(np.uint8))
        by_kind[KINDS.index(tensor.kind)].append(symbols[-1])
        exponents.append(rows)
    deltas = np.diff(np.concatenate(exponents), prepend=np.uint8(0)).astype(np.uint8)
    tables = [_frequencies(np.concatenate(kind)) for kind in by_kind if kind]
    steps_table = _frequencies(deltas)
    return {
        "tables": b"".join(rans.pack_table(table) for table in [*tables, steps_table]),
        "steps": rans.encode(deltas, None, steps_table[None]),
        "weights": rans.encode(np.concatenate(symbols), _contexts(stored), np.stack(tables)),
        "packed": b"".join(packed),
    }


def _frequencies(symbols: NDArray[np.uint8]) -> NDArray[np.int64]:
    return rans.normalize(np.bincount(symbols, minlength=ALPHABET))


def _contexts(stored: list[Stored]) -> NDArray[np.uint8]:
    """For each weight, the place of its tensor's kind among the kinds that occur."""
    dense = [tensor for tensor in stored if tensor.kind != "codes"]
    kinds = [kind for kind in KINDS if any(tensor.kind == kind for tensor in dense)]
    places = np.array([kinds.index(tensor.kind) for tensor in dense], dtype=np.uint8)
    return np.repeat(places, [tensor.tensor.numel() for tensor in dense])


def decode(stored: list[Stored], sections: dict[str, bytes]) -> None:
    """Fill the tensors of a model, as its `stored()` lists them, from the sections.

    Raises `ArtifactError` if the sections are not exactly what these tensors need.
    """
    with torch.no_grad():
        _decode(stored, sections)


def _decode(stored: list[Stored], sections: dict[str, bytes]) -> None:
    dense = [tensor for tensor in stored if tensor.kind != "codes"]
    rows = [tensor.tensor.numel() // tensor.tensor.shape[-1] for tensor in dense]
    contexts = _contexts(stored)
    tables, offset = [], 0
    for _ in range(len({tensor.kind for tensor in dense}) + 1):
        table, offset = rans.unpack_table(sections["tables"], offset, ALPHABET)
        tables.append(table)
    if offset != len(sections["tables"]):
        raise ArtifactError("the artifact's frequency tables have bytes left over")
    deltas = rans.decode(sections["steps"], sum(rows), None, tables.pop()[None])
    exponents = np.cumsum(deltas, dtype=np.uint8)
    symbols = rans.decode(sections["weights"], len(contexts), contexts, np.stack(tables))
    codes = (symbols.astype(np.int16) - 128).astype(np.int8)
    row = at = 0
    for (_, tensor, _), count in zip(dense, rows, strict=True):
        block = codes[at : at + tensor.numel()].reshape(count, -1)
        weights = dequantize(block, exponents[row : row + count])
        tensor.copy_(torch.from_numpy(weights).view(tensor.shape))
        row, at = row + count, at + tensor.numel()
    _unpack_all([tensor for tensor in stored if tensor.kind == "codes"], sections["packed"])


def pack_codes(codes: NDArray[np.int64]) -> bytes:
    """One byte for the width in bits, then the codes in that width, most significant bit first.

    [5, 0, 3] -> width 3, bits 101 000 011 -> b"\\x03\\xa1\\x80"
    """
    width = max(1, int(codes.max()).bit_length())
    bits = (codes.reshape(-1, 1) >> np.arange(width - 1, -1, -1)) & 1
    return bytes([width]) + np.packbits(bits.astype(np.uint8)).tobytes()


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
