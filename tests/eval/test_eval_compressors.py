"""What a score is compared with: against the libraries in one shot, twins, and both extremes."""

import lzma
import math
import random
from collections import Counter
from collections.abc import Iterator

import brotli
import pyppmd
import pytest
import zstandard

from tokgolf.corpora import Corpus, Document
from tokgolf.errors import CorpusError
from tokgolf.eval import compressors
from tokgolf.eval.compressors import (
    PPMD_MEMORY,
    PPMD_ORDERS,
    Compressed,
    baselines,
    compressed,
    counted,
)
from tokgolf.tokenizers import Tokenizer, build_tokenizer

TEXT = b"".join(b"line %d of a log that goes on and on\n" % number for number in range(300))
PARTS = [TEXT[:1000], b"", TEXT[1000:]]


def corpus_of(*texts: bytes) -> Corpus:
    documents = [Document(str(number), data) for number, data in enumerate(texts)]
    return Corpus(name="tiny", split=None, source=lambda: iter(documents))


@pytest.fixture(scope="module")
def text() -> Compressed:
    return compressed(corpus_of(TEXT))


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return build_tokenizer("bpe", [TEXT], 280)


# --- compressors


def test_each_is_the_size_that_its_library_gives_in_one_shot(text: Compressed) -> None:
    xz = lzma.compress(TEXT, preset=9 | lzma.PRESET_EXTREME)
    zstd = zstandard.ZstdCompressor(level=19).compress(TEXT)
    assert text.xz_bpb == 8 * len(xz) / len(TEXT)
    assert text.zstd_bpb == 8 * len(zstd) / len(TEXT)
    assert text.brotli_bpb == 8 * len(brotli.compress(TEXT, quality=11, lgwin=24)) / len(TEXT)


def test_ppmd_is_the_best_of_its_orders_and_decodes(text: Compressed) -> None:
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


@pytest.mark.parametrize("block", [1, 1000, len(TEXT), 1 << 20])
def test_documents_are_compressed_back_to_back(
    text: Compressed, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compressors, "PPMD_BLOCK", block)
    assert compressed(corpus_of(*PARTS)) == text


def test_zeros_take_next_to_nothing() -> None:
    zeros = compressed(corpus_of(bytes(200_000)))
    for bpb in (zeros.xz_bpb, zeros.zstd_bpb, zeros.brotli_bpb, zeros.ppmd_bpb):
        assert 0 < bpb < 0.02


def test_random_bytes_take_eight_bits_and_a_little() -> None:
    noise = compressed(corpus_of(random.Random(0).randbytes(50_000)))
    for bpb, most in ((noise.xz_bpb, 8.1), (noise.zstd_bpb, 8.1), (noise.brotli_bpb, 8.1)):
        assert 8 < bpb < most
    assert 8 < noise.ppmd_bpb < 8.6


# --- models without memory


def entropy(symbols: list[int]) -> float:
    """Bits of the symbols by their own frequencies, one by one."""
    counts = Counter(symbols)
    return sum(-math.log2(counts[symbol] / len(symbols)) for symbol in symbols)


def test_unigrams_are_the_entropies_of_a_slow_twin(bpe: Tokenizer) -> None:
    found = counted(corpus_of(*PARTS), bpe)
    tokens = [t for part in PARTS for t in [*bpe.encode(part).tolist(), bpe.bos_id]]
    assert found.unigram_byte_bpb == pytest.approx(entropy(list(TEXT)) / len(TEXT), rel=1e-12)
    assert found.unigram_token_bpb == pytest.approx(entropy(tokens) / len(TEXT), rel=1e-12)
    uniform = len(tokens) * math.log2(bpe.vocab_size) / len(TEXT)
    assert found.uniform_token_bpb == pytest.approx(uniform, rel=1e-12)
    assert found.unigram_token_bpb < found.unigram_byte_bpb < 8


def test_random_bytes_have_nothing_for_a_unigram() -> None:
    noise = random.Random(0).randbytes(100_000)
    found = counted(corpus_of(noise), build_tokenizer("byte", [], None))
    assert 7.99 < found.unigram_byte_bpb < 8 < found.uniform_token_bpb < 8.01


# --- both


def test_compressors_are_left_out_where_they_take_too_long(
    bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch, text: Compressed
) -> None:
    corpus = corpus_of(TEXT)
    keys = {
        "uniform_byte_bpb", "uniform_token_bpb", "unigram_token_bpb", "unigram_byte_bpb",
        "xz_bpb", "zstd_bpb", "brotli_bpb", "ppmd_bpb", "ppmd_order",
    }  # fmt: skip
    assert baselines(corpus, bpe).compressed == text
    assert set(baselines(corpus, bpe).as_dict()) == keys
    monkeypatch.setattr(compressors, "SMALL_BYTES", len(TEXT) - 1)
    found = baselines(corpus, bpe).as_dict()
    assert set(found) == keys and found["xz_bpb"] is None and found["unigram_byte_bpb"] > 0
    assert baselines(corpus, bpe, compress=True).compressed == text
    monkeypatch.undo()
    assert baselines(corpus, bpe, compress=False).compressed is None


def test_a_corpus_is_streamed(bpe: Tokenizer) -> None:
    """One document is asked for after another, and none is kept."""
    alive = most = 0

    class Data(bytes):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def source() -> Iterator[Document]:
        nonlocal alive, most
        for _ in range(200):
            alive += 1
            most = max(most, alive)
            yield Document("x", Data(b"some text " * 1000))

    compressed(Corpus(name="tiny", split=None, source=source))
    assert most <= 12  # two or three in each of the four threads


def test_a_corpus_of_no_bytes_is_refused(bpe: Tokenizer) -> None:
    with pytest.raises(CorpusError, match="tiny has 0 bytes"):
        baselines(corpus_of(b"", b""), bpe)
