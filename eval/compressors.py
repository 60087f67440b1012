"""What general compressors reach on the same bytes: the floor that a language model must beat.

All documents are compressed as one file, back to back, so the compressors pay nothing for the
boundaries that a score pays for.
"""

import lzma
from dataclasses import dataclass

from tokgolf.corpora import Corpus

PPMD_ORDERS = (4, 6, 8, 10, 12, 16)
PPMD_MEMORY = 192 << 20


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """Bits per byte of `xz -9e` and of 7-Zip's PPMd (variant H) at its best order."""

    xz_bpb: float
    ppmd_bpb: float
    ppmd_order: int


def baselines(corpus: Corpus) -> Baselines:
    """Compress a corpus' documents, held in memory, with both. Bits per byte."""
    import pyppmd

    data = b"".join(document.data for document in corpus)
    xz = len(lzma.compress(data, format=lzma.FORMAT_XZ, preset=9 | lzma.PRESET_EXTREME))
    sizes = {}
    for order in PPMD_ORDERS:
        encoder = pyppmd.Ppmd7Encoder(order, PPMD_MEMORY)
        sizes[order] = len(encoder.encode(data)) + len(encoder.flush())
    best = min(sizes, key=lambda order: sizes[order])
    return Baselines(
        xz_bpb=8 * xz / len(data), ppmd_bpb=8 * sizes[best] / len(data), ppmd_order=best
    )
