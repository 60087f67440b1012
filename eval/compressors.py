"""What a score is compared with: general compressors and the simplest models, on the same bytes.

One definition for all: every document back to back as one file, so that the compressors pay nothing
for the boundaries that a score pays for; whole compressed files, headers included, over the bytes.
The unigram models are fitted to this very text and their counts are not charged: no static model of
single bytes or tokens can do better. Streamed, in memory that does not grow with the corpus.
"""

import lzma
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tokgolf.corpora import Corpus
from tokgolf.eval.official import normalised
from tokgolf.tokenizers import Tokenizer
from tokgolf.tokenizers.statistics import batches

if TYPE_CHECKING:
    from tokgolf.eval.score import Score

PPMD_ORDERS = (4, 6, 8, 10, 12, 16)
PPMD_MEMORY = 192 << 20
PPMD_BLOCK = 1 << 16
ZSTD_LEVEL = 19
BROTLI_QUALITY, BROTLI_WINDOW = 11, 24
# Brotli takes 3 s a megabyte, the rest together 5 (1.49 MB of web text, one core).
SMALL_BYTES = 4_000_000


@dataclass(frozen=True, kw_only=True)
class Counted:
    """Bits per byte of models without memory; tokens include each document's closing BOS."""

    uniform_token_bpb: float
    """log2 V a token: what the tokenizer alone achieves."""

    unigram_token_bpb: float
    """The entropy of the tokens counted on this text."""

    unigram_byte_bpb: float
    """The entropy of the bytes counted on this text; a uniform byte is 8."""


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """Bits per byte of `xz -9e`, `zstd -19`, `brotli -q 11 -w 24`, and 7-Zip's PPMd (variant H)
    at its best order."""

    xz_bpb: float
    zstd_bpb: float
    brotli_bpb: float
    ppmd_bpb: float
    ppmd_order: int


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """What stands beside a score. `compressed` is None where that would have taken too long."""

    counted: Counted
    compressed: Compressed | None

    def as_dict(self) -> dict[str, Any]:
        """All of it in one flat table, for JSON; None for what was left out."""
        if self.compressed is None:
            left_out: dict[str, Any] = dict.fromkeys(Compressed.__dataclass_fields__)
            return {"uniform_byte_bpb": 8.0, **asdict(self.counted), **left_out}
        return {"uniform_byte_bpb": 8.0, **asdict(self.counted), **asdict(self.compressed)}


def baselines(corpus: Corpus, tokenizer: Tokenizer, *, compress: bool | None = None) -> Baselines:
    """Both kinds for a corpus; `compress` None means if it has at most `SMALL_BYTES`.

    Raises `CorpusError` for a corpus of no bytes.
    """
    if compress is None:
        compress = corpus.summary().bytes <= SMALL_BYTES
    return Baselines(
        counted=counted(corpus, tokenizer), compressed=compressed(corpus) if compress else None
    )


def with_baselines(
    score: "Score", corpus: Corpus, tokenizer: Tokenizer, *, compress: bool | None = None
) -> "Score":
    """A score of that corpus with baselines of the text that it is of; `compress` as above.

    In official mode that is the normalised text, its cut-off tail included.
    """
    if score.mode == "official":
        corpus = normalised(corpus)
    return replace(score, baselines=baselines(corpus, tokenizer, compress=compress).as_dict())


def counted(corpus: Corpus, tokenizer: Tokenizer) -> Counted:
    """Uniform and unigram models of a corpus, in one pass."""
    byte_counts = np.zeros(256, np.int64)
    token_counts = np.zeros(tokenizer.vocab_size, np.int64)
    for batch in batches(document.data for document in corpus):
        byte_counts += np.bincount(np.frombuffer(b"".join(batch), np.uint8), minlength=256)
        for ids in tokenizer.encode_batch(batch):
            token_counts += np.bincount(ids, minlength=tokenizer.vocab_size)
        token_counts[tokenizer.bos_id] += len(batch)
    size = int(byte_counts.sum())
    return Counted(
        uniform_token_bpb=math.log2(tokenizer.vocab_size) * int(token_counts.sum()) / size,
        unigram_token_bpb=_entropy_bits(token_counts) / size,
        unigram_byte_bpb=_entropy_bits(byte_counts) / size,
    )


def compressed(corpus: Corpus) -> Compressed:
    """Compress a corpus with all four, each in a thread and a pass of its own."""
    import brotli
    import zstandard

    size = corpus.summary().bytes
    xz = lzma.LZMACompressor(format=lzma.FORMAT_XZ, preset=9 | lzma.PRESET_EXTREME)
    zstd = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compressobj(size=size)
    stream = brotli.Compressor(quality=BROTLI_QUALITY, lgwin=BROTLI_WINDOW)

    def ppmd() -> dict[int, int]:
        return {order: _ppmd_size(corpus, order) for order in PPMD_ORDERS}

    with ThreadPoolExecutor() as pool:  # they release the interpreter's lock; the slowest first
        of_brotli = pool.submit(_stream, corpus, stream.process, stream.finish)
        of_ppmd = pool.submit(ppmd)
        of_xz = pool.submit(_stream, corpus, xz.compress, xz.flush)
        of_zstd = pool.submit(_stream, corpus, zstd.compress, zstd.flush)
    sizes = of_ppmd.result()
    best = min(sizes, key=lambda order: sizes[order])
    return Compressed(
        xz_bpb=8 * of_xz.result() / size,
        zstd_bpb=8 * of_zstd.result() / size,
        brotli_bpb=8 * of_brotli.result() / size,
        ppmd_bpb=8 * sizes[best] / size,
        ppmd_order=best,
    )


def _stream(corpus: Corpus, put: Callable[[bytes], bytes], end: Callable[[], bytes]) -> int:
    """Bytes that come out of a compressor for all documents."""
    return sum(len(put(document.data)) for document in corpus) + len(end())


def _ppmd_size(corpus: Corpus, order: int) -> int:
    """Bytes of a corpus by PPMd. pyppmd (1.3.1) never lets go of what it was given, so it is given
    one buffer over and over."""
    import pyppmd

    encoder = pyppmd.Ppmd7Encoder(order, PPMD_MEMORY)
    buffer = bytearray(PPMD_BLOCK)
    size = filled = 0
    for document in corpus:
        data = memoryview(document.data)
        while data:
            part = data[: PPMD_BLOCK - filled]
            buffer[filled : filled + len(part)] = part
            filled += len(part)
            data = data[len(part) :]
            if filled == PPMD_BLOCK:
                size += len(encoder.encode(buffer))
                filled = 0
    return size + len(encoder.encode(memoryview(buffer)[:filled])) + len(encoder.flush())


def _entropy_bits(counts: NDArray[np.int64]) -> float:
    """Bits of a text by the frequencies of its own symbols.  # (symbols,)

    counts=[2, 2, 0] -> 4.0
    """
    some = counts[counts > 0]
    return float(-(some * np.log2(some / some.sum())).sum())
