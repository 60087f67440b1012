"""The proof: any bytes come back, the file is as long as the score says, every doubt is told."""

import binascii
import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import constriction
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokgolf.artifact.checkpoint import FloatModel
from tokgolf.artifact.export import encode_artifact
from tokgolf.artifact.load import Artifact, decode_artifact
from tokgolf.config import TrunkConfig
from tokgolf.corpora import Corpus, Document
from tokgolf.errors import ArtifactError, ConfigError, ScoreError
from tokgolf.eval import bits as bits_format
from tokgolf.eval import incremental, proof
from tokgolf.eval.bits import Header, pack, sides, unpack
from tokgolf.eval.proof import QUANTA, ROWS, compress, decompress, shares
from tokgolf.eval.score import score
from tokgolf.eval.scorer import document_nats
from tokgolf.heads import ADDONS, head_config
from tokgolf.model import build_model, head_shape
from tokgolf.quantize.rows import QuantConfig
from tokgolf.tokenizers import build_tokenizer
from tokgolf.tokenizers.asset import varint
from tokgolf.tokenizers.pack import RangeEncoder

LENGTH = 12
TEXTS = [
    b"return import " * 30, b"", b"x", b"\xff\x00\xfe import", bytes(range(256)), b"\n" * 70,
    "r\u00e9sum\u00e9, return".encode(),
]  # fmt: skip
DATA = [b"import x; return", b"", b"\xff\x00"]


@functools.cache
def artifact_of(*addons: str) -> Artifact:
    """A random model, as it comes back from a file."""
    trunk = TrunkConfig(
        layers=1, d_model=16, heads=2, kv_heads=1, mlp_hidden=16, sequence_length=LENGTH
    )
    tokenizer = build_tokenizer("bpe", [b"return import " * 30], 264)
    head = head_config({"name": "tied", "add": {name: {} for name in addons}})
    torch.manual_seed(0)
    model = build_model(trunk, head, head_shape(tokenizer, trunk)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4)
    made = FloatModel(tokenizer=tokenizer, model=model, trunk=trunk, head=head, state={})
    return decode_artifact(encode_artifact(made, QuantConfig(method="nearest")).data)


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return artifact_of(*ADDONS)


@pytest.fixture(scope="module")
def bits(artifact: Artifact) -> bytes:
    return compress(artifact, DATA)[0]


def corpus_of(texts: Sequence[bytes]) -> Corpus:
    documents = [Document(str(number), data) for number, data in enumerate(texts)]
    return Corpus(name="tiny:val", split="val", source=lambda: iter(documents))


def signed(data: bytes) -> bytes:
    """A forgery with its checksum right again."""
    return data[:3] + binascii.crc_hqx(data[5:], 0).to_bytes(2, "little") + data[5:]


# --- the promise


@settings(max_examples=25, deadline=None)
@given(
    documents=st.lists(st.binary(max_size=40), min_size=1, max_size=ROWS + 3),
    stride=st.integers(0, LENGTH),
)
def test_any_bytes_come_back(artifact: Artifact, documents: list[bytes], stride: int) -> None:
    data, made = compress(artifact, documents, stride=stride)
    assert decompress(artifact, data) == documents
    assert made.file_bytes == len(data) and made.bytes == sum(map(len, documents))
    assert made.code_bytes <= made.nats / math.log(2) / 8 * 1.001 + 2


@pytest.mark.parametrize("stride", [0, 5])
@pytest.mark.parametrize("addons", [(), tuple(ADDONS)], ids=["plain", "every add-on"])
def test_a_corpus_takes_the_bytes_that_its_score_says(addons: tuple[str, ...], stride: int) -> None:
    artifact = artifact_of(*addons)
    scored = score(artifact, corpus_of(TEXTS), stride=stride)
    data, made = compress(artifact, TEXTS, stride=stride)
    expected = scored.total_nats / math.log(2) / 8
    assert made.nats == pytest.approx(scored.total_nats, rel=1e-6)
    assert abs(made.code_bytes - expected) <= 2
    assert expected - 2 < len(data) <= 1.001 * expected + 16 * len(TEXTS)
    assert (made.tokens, made.documents) == (scored.tokens, len(TEXTS))
    assert (made.stride, made.corpus_sha256) == (stride or LENGTH, scored.corpus_sha256)
    assert made.as_dict()["bpb"] == pytest.approx(scored.bpb, rel=1e-6)
    assert decompress(artifact, data) == TEXTS


@pytest.mark.parametrize("rows", [1, 2, 30])
@pytest.mark.parametrize("stride", [1, 5, LENGTH])
def test_grown_documents_have_the_scorers_nats(artifact: Artifact, stride: int, rows: int) -> None:
    scored = document_nats(artifact.model, artifact.tokenizer, TEXTS, stride=stride)
    truth = [proof._tokens(artifact, data) for data in TEXTS]
    nats: list[list[float]] = [[] for _ in TEXTS]

    def choose(
        log_probs: np.ndarray[tuple[int, int], np.dtype[np.float32]], at: list[int]
    ) -> list[int]:
        chosen = [truth[document][len(nats[document])] for document in at]
        for row, (document, token) in enumerate(zip(at, chosen, strict=True)):
            nats[document].append(-float(log_probs[row, token]))
        return chosen

    counts = [len(tokens) for tokens in truth]
    grown = incremental.grow(
        artifact.model, counts, choose, length=LENGTH, stride=stride, rows=rows
    )
    assert grown == truth
    for got, (_, expected) in zip(nats, scored, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@settings(deadline=None)
@given(counts=st.lists(st.integers(1, 50), min_size=1), rows=st.integers(1, 9))
def test_documents_are_dealt_once_each_and_the_first_row_works_longest(
    counts: list[int], rows: int
) -> None:
    hands = incremental._deal(counts, rows)
    loads = [sum(counts[document] for document in hand) for hand in hands]
    assert sorted(document for hand in hands for document in hand) == [*range(len(counts))]
    assert loads == sorted(loads, reverse=True)
    assert loads[0] <= sum(counts) / rows + max(counts)
    assert incremental._deal([3, 9, 2, 2], 2) == [[1], [0, 2, 3]]


def test_the_same_documents_give_the_same_file(artifact: Artifact, bits: bytes) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert compress(artifact, DATA)[0] == bits
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


# --- the coder


@settings(deadline=None)
@given(
    logits=st.lists(st.floats(-90, 90), min_size=2, max_size=50),
    dead=st.sets(st.integers(1, 49)),
)
def test_shares_are_the_probabilities_and_no_token_is_lost(
    logits: list[float], dead: set[int]
) -> None:
    z = torch.tensor([logits])
    z[0, [place for place in dead if place < len(logits)]] = -math.inf
    log_probs = z.log_softmax(1).numpy()
    ends = shares(log_probs)[0]
    quanta = np.diff(ends, prepend=0)
    assert ((quanta == 0) == np.isneginf(log_probs[0])).all()
    np.testing.assert_allclose(quanta / QUANTA, np.exp(log_probs[0]), rtol=1e-5, atol=2 / QUANTA)


def test_the_code_is_as_short_as_a_library_coders() -> None:
    """constriction 0.4 quantises to 24 bits by itself, so that sizes agree and bytes do not."""
    rng = np.random.default_rng(0)
    log_probs = torch.from_numpy(3 * rng.standard_normal((4000, 60), np.float32)).log_softmax(1)
    tokens = torch.multinomial(log_probs.exp(), 1)[:, 0].numpy().astype(np.int32)
    own = RangeEncoder()
    for ends, token in zip(shares(log_probs.numpy()), tokens, strict=True):
        own.encode(ends, int(token))
    library = constriction.stream.queue.RangeEncoder()
    family = constriction.stream.model.Categorical(perfect=False)
    library.encode(tokens, family, log_probs.exp().numpy())
    size = 4 * len(library.get_compressed())
    assert abs(len(own.finish()) - size) <= 8 and size > 1000


def test_a_token_without_probability_is_an_error(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mask leaves nothing for a pair that the tokenizer would have merged."""
    monkeypatch.setattr(proof, "_tokens", lambda artifact, data: [*data, artifact.tokenizer.bos_id])
    with pytest.raises(ScoreError, match="probability zero"):
        compress(artifact, [b"return import return"])


def test_a_probability_that_is_no_number_is_an_error() -> None:
    with pytest.raises(ScoreError, match="not a number"):
        shares(np.array([[0.0, math.nan]], np.float32))


def test_what_no_reader_would_take_is_not_written(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bits_format, "FREE_TOKENS", 2)
    monkeypatch.setattr(bits_format, "TOKENS_PER_BYTE", 0)
    with pytest.raises(ScoreError, match="3 tokens in .* bytes are more than the 2 "):
        compress(artifact, [b"", b"", b""])


def test_a_stride_above_the_window_and_no_documents_are_errors(artifact: Artifact) -> None:
    with pytest.raises(ScoreError, match="stride is 13; .* window of 12"):
        compress(artifact, DATA, stride=13)
    with pytest.raises(ScoreError, match="no documents"):
        compress(artifact, [])


# --- the format


def test_a_header_is_read_as_it_is_specified() -> None:
    body = b"ARKEDOCU" + bytes([0x21, 13]) + b"\x05\x40\xac\x02\x01" + b"code"
    assert binascii.crc_hqx(body, 0) == 0xBFD1
    header = unpack(b"TG\x01" + b"\xd1\xbf" + body)
    assert (header.artifact, header.kernels, header.documents) == (b"AR", b"KE", b"DOCU")
    assert (header.stride, header.counts, header.code) == (64, [300, 1], b"code")
    assert "torch 2.13 on AVX2 there" in sides(header.machine)


def test_the_file_names_its_artifact_and_its_documents(artifact: Artifact, bits: bytes) -> None:
    header = unpack(bits)
    assert artifact.sha256.startswith(header.artifact.hex())
    assert corpus_of(DATA).summary().sha256.startswith(header.documents.hex())
    assert bits[:3] == b"TG\x01" and header.stride == 0
    assert header.counts == [len(artifact.tokenizer.encode(data)) + 1 for data in DATA]


def test_every_flipped_bit_and_every_cut_is_refused(bits: bytes) -> None:
    for bit in range(8 * len(bits)):
        damaged = bytearray(bits)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ArtifactError):
            unpack(bytes(damaged))
    for end in range(len(bits)):
        with pytest.raises(ArtifactError):
            unpack(bits[:end])
    with pytest.raises(ArtifactError, match="cut short, damaged or edited"):
        unpack(bits + b"\0")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ((0, 1, [1 << 40], b""), "claims 1 documents of 1,099,511,627,776 tokens"),
        ((1, 1, [0], b""), "each has at least 1"),
        ((1, 0, [], b"code"), "claims 0 documents"),
        ((1, 1 << 50, [3, 3], b""), "ends within its list"),
    ],
)
def test_a_claim_beyond_the_file_is_refused_before_it_costs(
    what: tuple[int, int, list[int], bytes], message: str
) -> None:
    stride, number, counts, code = what
    claims = b"".join(varint(value) for value in (2 * number + 1, stride, *counts))
    with pytest.raises(ArtifactError, match=message):
        unpack(signed(b"TG\x01" + bytes(12) + claims + code))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (2, "format version 255, this tokgolf reads 1"),
        (5, "made with the artifact ff.*give the one it was made with"),
        (7, "probabilities are not the same here.*decompress where it was compressed"),
        (9, "what was decoded is not what was encoded, so nothing is written"),
    ],
)
def test_a_forged_field_is_named(artifact: Artifact, bits: bytes, place: int, message: str) -> None:
    forged = bytearray(bits)
    forged[place] = 0xFF if bits[place] != 0xFF else 0xFE
    with pytest.raises(ArtifactError, match=message):
        decompress(artifact, signed(bytes(forged)))


def test_a_stride_beyond_the_window_is_refused(artifact: Artifact, bits: bytes) -> None:
    forged = pack(replace(unpack(bits), stride=LENGTH))
    with pytest.raises(ArtifactError, match="a stride of 12; the window is 12"):
        decompress(artifact, forged)


@given(
    counts=st.lists(st.integers(1, 1 << 19), min_size=1, max_size=3),
    stride=st.integers(0, 1 << 20),
    code=st.binary(min_size=1 << 10, max_size=1 << 10),
)
@settings(deadline=None, max_examples=30)
def test_a_header_comes_back(counts: list[int], stride: int, code: bytes) -> None:
    header = Header(
        artifact=b"AR", kernels=b"KE", documents=b"DOCU", machine=b"MA", stride=stride,
        counts=counts, code=code,
    )  # fmt: skip
    assert unpack(pack(header)) == header


def test_a_forged_code_never_gives_other_documents(artifact: Artifact, bits: bytes) -> None:
    """The last bytes may be told otherwise, as a coder's can; then they mean the same."""
    start = len(bits) - len(unpack(bits).code)
    forgeries = [bits[:-3], bits[:-9], bits + b"more", bits + bytes(9)]
    for place in range(start, len(bits)):
        forged = bytearray(bits)
        forged[place] ^= 1 << place % 8
        forgeries.append(bytes(forged))
    with pytest.raises(ArtifactError, match="not what was encoded"):
        decompress(artifact, signed(bits + bytes(99)))  # the same documents, and room for more
    refused = 0
    for forgery in forgeries:
        try:
            assert decompress(artifact, signed(forgery)) == DATA
        except ArtifactError as error:
            assert "what was decoded is not what was encoded" in str(error)
            refused += 1
    assert refused >= len(forgeries) - 3


def test_a_document_that_another_token_closes_is_refused(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes and their hash are right; only what it paid for its end is not."""
    tokens = proof._tokens
    with monkeypatch.context() as patch:
        patch.setattr(proof, "_tokens", lambda artifact, data: [*tokens(artifact, data)[:-1], 65])
        forged, _ = compress(artifact, DATA)
    with pytest.raises(ArtifactError, match="what was decoded is not what was encoded"):
        decompress(artifact, forged)


def test_another_artifact_is_named(bits: bytes) -> None:
    other = artifact_of()
    with pytest.raises(ArtifactError, match=f"this is {other.sha256[:4]}"):
        decompress(other, bits)


def test_other_kernels_are_named_with_both_sides(
    artifact: Artifact, bits: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that computes otherwise in the last bit, and a machine that says so."""
    step = incremental.step
    monkeypatch.setattr(
        incremental, "step", lambda *a: torch.nextafter(step(*a), torch.tensor(-math.inf))
    )
    with pytest.raises(ArtifactError, match="there and here, but another processor or library"):
        decompress(artifact, bits)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "RVV")
    with pytest.raises(ArtifactError, match=r"torch .* there, torch .* on another CPU here"):
        decompress(artifact, bits)


def test_the_probe_sees_a_change_in_any_batch_size(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, step = proof.probe(artifact), incremental.step
    assert len(before) == 2 and proof.probe(artifact) == before
    for rows in (1, 7, ROWS):

        def changed(model, tokens, cache, rows=rows):  # type: ignore[no-untyped-def]
            log_probs = step(model, tokens, cache)
            return log_probs - 1e-6 * (len(tokens) == rows)

        with monkeypatch.context() as patch:
            patch.setattr(incremental, "step", changed)
            assert proof.probe(artifact) != before


# --- what is written


def test_one_document_is_a_file_and_several_are_a_corpus(tmp_path: Path) -> None:
    proof.write_documents(tmp_path / "a.jsonl", [b"\xff"])
    assert (tmp_path / "a.jsonl").read_bytes() == b"\xff"
    documents = [b"%d" % number for number in range(11)]
    proof.write_documents(tmp_path / "many", documents)
    files = sorted((tmp_path / "many").iterdir())
    assert [file.read_bytes() for file in files] == documents
    assert (files[0].name, files[-1].name) == ("01.txt", "11.txt")


def test_a_folder_that_is_there_stays_as_it_was(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is there; name a new folder for the 2 documents"):
        proof.write_documents(tmp_path, [b"a", b"b"])
    assert not list(tmp_path.iterdir())


def test_adocuments_hash_is_the_corpus_own() -> None:
    assert proof.documents_hash(TEXTS).hex() == corpus_of(TEXTS).summary().sha256
    assert proof.documents_hash([]) == sha256().digest()
