"""What general compressors reach: against the libraries themselves, and at both extremes."""

import dataclasses
import lzma
import random

import pyppmd
import pytest

from tokgolf.corpora import Corpus, Document
from tokgolf.eval.compressors import PPMD_MEMORY, PPMD_ORDERS, Baselines, baselines

TEXT = b"".join(b"line %d of a log that goes on and on\n" % number for number in range(300))


def corpus_of(*texts: bytes) -> Corpus:
    documents = [Document(str(number), data) for number, data in enumerate(texts)]
    return Corpus(name="tiny", split=None, source=lambda: iter(documents))


@pytest.fixture(scope="module")
def text() -> Baselines:
    return baselines(corpus_of(TEXT))


def test_xz_is_the_size_that_lzma_gives(text: Baselines) -> None:
    size = len(lzma.compress(TEXT, preset=9 | lzma.PRESET_EXTREME))
    assert text.xz_bpb == 8 * size / len(TEXT)


def test_ppmd_is_the_best_of_its_orders_and_decodes(text: Baselines) -> None:
    sizes = {}
    for order in PPMD_ORDERS:
        encoder = pyppmd.Ppmd7Encoder(order, PPMD_MEMORY)
        data = encoder.encode(TEXT) + encoder.flush()
        sizes[order] = len(data)
        if order == text.ppmd_order:
            assert pyppmd.Ppmd7Decoder(order, PPMD_MEMORY).decode(data, len(TEXT)) == TEXT
    assert text.ppmd_bpb == 8 * min(sizes.values()) / len(TEXT)
    assert sizes[text.ppmd_order] == min(sizes.values())
    assert 0 < text.ppmd_bpb < 1 and len(set(sizes.values())) > 1


def test_documents_are_compressed_back_to_back(text: Baselines) -> None:
    cut = baselines(corpus_of(TEXT[:1000], b"", TEXT[1000:]))
    assert dataclasses.asdict(cut) == dataclasses.asdict(text)


def test_zeros_take_next_to_nothing() -> None:
    zeros = baselines(corpus_of(bytes(200_000)))
    assert 0 < zeros.xz_bpb < 0.02 and 0 < zeros.ppmd_bpb < 0.02


def test_random_bytes_take_eight_bits_and_a_little() -> None:
    noise = baselines(corpus_of(random.Random(0).randbytes(50_000)))
    assert 8 < noise.xz_bpb < 8.1 and 8 < noise.ppmd_bpb < 8.6
