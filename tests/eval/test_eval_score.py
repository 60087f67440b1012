"""A score and its evidence: sums that hold, and an error for every invariant that does not."""

import json
import math
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pytest
import torch
from torch import Tensor

from tokgolf.artifact.checkpoint import FloatModel, record_export
from tokgolf.artifact.export import encode_artifact
from tokgolf.config import TrunkConfig
from tokgolf.corpora import Corpus, Document, document_digests, write_digests
from tokgolf.errors import ArtifactError, CorpusError, ScoreError
from tokgolf.eval.score import Score, open_source, read_train_digests, save_score, score
from tokgolf.eval.scorer import document_nats
from tokgolf.heads import HeadShape, head_config
from tokgolf.model import LanguageModel, build_model
from tokgolf.quantize.rows import QuantConfig
from tokgolf.tokenizers import Tokenizer, build_tokenizer
from tokgolf.tokenizers.base import Ids

TRUNK = TrunkConfig(layers=1, d_model=16, heads=2, kv_heads=1, mlp_hidden=16, sequence_length=16)
TEXTS = [b"def f(x):\n    return x + 1\n", b"", b"import os\n" * 9, "r\u00e9sum\u00e9".encode()]


def corpus_of(texts: list[bytes], name: str = "tiny:val") -> Corpus:
    documents = [Document(str(number), data) for number, data in enumerate(texts)]
    return Corpus(name=name, split="val", source=lambda: iter(documents))


CORPUS = corpus_of(TEXTS)


def source_of(
    model_class: type[LanguageModel] = LanguageModel, tokenizer: Tokenizer | None = None
) -> FloatModel:
    """A random model of that class on a trunk and a head of its own."""
    torch.manual_seed(0)
    tokenizer = tokenizer or build_tokenizer("bpe", [b"return import " * 30], 264)
    shape = HeadShape(vocab_size=tokenizer.vocab_size, d_model=16, bos_id=tokenizer.bos_id)
    head = head_config({"name": "tied"})
    plain = build_model(TRUNK, head, shape)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.normal_(0, 0.4)
    model = model_class(plain.trunk, plain.head).eval().requires_grad_(False)
    return FloatModel(tokenizer=tokenizer, model=model, trunk=TRUNK, head=head, state={})


@pytest.fixture(scope="module")
def source() -> FloatModel:
    return source_of()


def test_a_score_is_the_scorers_nats_over_the_documents_bytes(source: FloatModel) -> None:
    done: list[int] = []
    result = score(source, CORPUS, stride=5, on_progress=done.append)
    nats = [n for _, n in document_nats(source.model, source.tokenizer, TEXTS, stride=5)]
    assert result.nats == pytest.approx([float(n.sum()) for n in nats], abs=1e-9)
    assert result.document_bytes == done == [len(data) for data in TEXTS]
    assert result.bytes == sum(map(len, TEXTS)) == CORPUS.summary().bytes
    assert result.corpus_sha256 == CORPUS.summary().sha256
    assert result.total_nats == math.fsum(result.nats)
    assert result.bpb == pytest.approx(result.total_nats / (math.log(2) * result.bytes), rel=1e-12)
    assert result.tokens == sum(len(source.tokenizer.encode(data)) + 1 for data in TEXTS)
    assert (result.mode, result.corpus, result.stride) == ("raw", "tiny:val", 5)
    assert result.tokenizer == source.tokenizer.fingerprint
    assert (result.artifact_sha256, result.ledger) == (None, None)
    assert score(source, CORPUS).stride == 16


def test_every_invariant_is_named_and_holds(source: FloatModel) -> None:
    assert score(source, CORPUS).invariants == {
        "bytes_are_the_documents": True,
        "documents_decode_exactly": True,
        "probabilities_sum_to_one": True,
        "causal": True,
        "each_token_scored_once": True,
        "state_unchanged": True,
        "train_disjoint": None,
    }


def test_the_closing_bos_is_paid_for(source: FloatModel) -> None:
    result = score(source, corpus_of([b"", b"x", b""]))
    assert result.tokens == 4
    assert result.nats[0] == result.nats[2] > 0


class Uniform(LanguageModel):
    def log_probs(self, tokens: Tensor) -> Tensor:
        vocab = self.head.shape.vocab_size
        return torch.full((*tokens.shape, vocab), -math.log(vocab))


def test_a_uniform_model_scores_ln_v_a_token_and_cannot_be_told_acausal() -> None:
    source = source_of(Uniform)
    result = score(source, CORPUS)
    vocab = source.tokenizer.vocab_size
    assert result.total_nats == pytest.approx(result.tokens * math.log(vocab), rel=1e-6)
    assert result.bpb == pytest.approx(result.tokens * math.log2(vocab) / result.bytes, rel=1e-6)
    assert result.invariants["causal"] is None


class Peeks(LanguageModel):
    """Gives the next token more, where it is in the batch."""

    def log_probs(self, tokens: Tensor) -> Tensor:
        logits = super().log_probs(tokens).clone()
        ahead = tokens[:, 1:, None]
        logits[:, :-1] = logits[:, :-1].scatter_add(2, ahead, torch.full(ahead.shape, 3.0))
        return logits.log_softmax(-1)


class Unnormalised(LanguageModel):
    def log_probs(self, tokens: Tensor) -> Tensor:
        return super().log_probs(tokens) + 0.01


class Learns(LanguageModel):
    """Changes its weights while it is scored."""

    def log_probs(self, tokens: Tensor) -> Tensor:
        self.trunk.skips.grad = None
        next(self.head.parameters()).mul_(1.0001)
        return super().log_probs(tokens)


@pytest.mark.parametrize(
    ("cheat", "invariant"),
    [
        (Peeks, "causal"),
        (Unnormalised, "probabilities_sum_to_one"),
        (Learns, "state_unchanged"),
    ],
)
def test_a_model_that_cheats_is_an_error_that_names_the_invariant(
    cheat: type[LanguageModel], invariant: str, source: FloatModel
) -> None:
    with pytest.raises(ScoreError, match=f"score of tiny:val is invalid: .*{invariant}.* failed"):
        score(source_of(cheat), CORPUS)


class Lossy(Tokenizer):
    """Bytes in lower case: fewer distinct ones, and not the document."""

    kind: ClassVar[str] = "lossy"
    change: ClassVar[Callable[[bytes], bytes]] = staticmethod(bytes.lower)

    @classmethod
    def from_asset(cls, data: bytes) -> Self:
        byte = build_tokenizer("byte", [], None)  # its asset, as only sound ones can be asked
        return cls(byte.asset(), byte.token_bytes)

    def _encode_batch(self, batch: Any) -> list[Ids]:
        changed = [type(self).change(data) for data in batch]
        return [np.frombuffer(data, np.uint8).astype(np.uint16) for data in changed]

    def original_file(self) -> bytes:
        return self.asset()


class Dropping(Lossy):
    """Leaves spaces out."""

    change: ClassVar[Callable[[bytes], bytes]] = staticmethod(lambda data: data.replace(b" ", b""))


def test_a_tokenizer_that_is_not_lossless_is_an_error() -> None:
    upper = corpus_of([b"all lower", b"Not All"])
    with pytest.raises(ScoreError, match=": documents_decode_exactly failed"):
        score(source_of(tokenizer=Lossy.from_asset(b"")), upper)
    both = ": bytes_are_the_documents, documents_decode_exactly failed"
    with pytest.raises(ScoreError, match=both):
        score(source_of(tokenizer=Dropping.from_asset(b"")), upper)
    assert score(source_of(tokenizer=Lossy.from_asset(b"")), corpus_of([b"all lower"])).bpb > 0


class Broken(LanguageModel):
    def log_probs(self, tokens: Tensor) -> Tensor:
        return super().log_probs(tokens) * math.nan


class Certain(LanguageModel):
    def log_probs(self, tokens: Tensor) -> Tensor:
        result = torch.full((*tokens.shape, self.head.shape.vocab_size), -math.inf)
        result[..., 0] = 0.0
        return result


@pytest.mark.parametrize("broken", [Broken, Certain])
def test_nan_or_probability_zero_is_an_error(broken: type[LanguageModel]) -> None:
    with pytest.raises(ScoreError, match="probability zero or NaN"):
        score(source_of(broken), CORPUS)


def test_documents_trained_on_are_an_error(source: FloatModel) -> None:
    digests = document_digests([Document("other", b"other"), Document("leak", TEXTS[2])])
    with pytest.raises(CorpusError, match="tiny:val"):
        score(source, CORPUS, train_digests=digests)
    clean = document_digests([Document("other", b"other"), Document("empty", b"")])
    assert score(source, CORPUS, train_digests=clean).invariants["train_disjoint"] is True


def test_a_corpus_of_nothing_is_an_error(source: FloatModel) -> None:
    for texts in ([], [b""]):
        with pytest.raises(CorpusError, match="tiny:val has"):
            score(source, corpus_of(texts))


def test_an_artifact_is_scored_with_its_hash_and_ledger(source: FloatModel, tmp_path: Path) -> None:
    artifact = encode_artifact(source, QuantConfig(method="nearest"))
    path = tmp_path / "model.golf"
    path.write_bytes(artifact.data)
    opened, run = open_source(path)
    assert run == tmp_path
    result = score(opened, CORPUS)
    assert result.artifact_sha256 == sha256(path.read_bytes()).hexdigest()
    assert result.ledger == artifact.ledger
    assert result.nats == score(artifact, CORPUS).nats
    assert result.bpb == pytest.approx(score(source, CORPUS).bpb, rel=0.05)
    assert result.nats != score(source, CORPUS).nats
    assert result.as_dict()["artifact_bytes"] == artifact.ledger.full
    assert result.as_dict()["asset_bytes"] == len(source.tokenizer.asset())
    with pytest.raises(ArtifactError, match="no checkpoint"):
        open_source(tmp_path)


def test_a_saved_score_is_json_with_these_keys(source: FloatModel, tmp_path: Path) -> None:
    result: Score = score(source, CORPUS)
    save_score(result, tmp_path / "score.json")
    found = json.loads((tmp_path / "score.json").read_text("utf-8"))
    summary = {
        "bpb", "nats_per_token", "tokens", "bytes", "documents", "corpus", "mode", "stride",
        "corpus_sha256", "tokenizer", "artifact_sha256", "artifact_bytes", "asset_bytes",
        "seconds", "invariants",
    }  # fmt: skip
    assert set(result.as_dict()) == summary
    assert set(found) == summary | {"document_bits", "document_bytes"}
    assert found["bpb"] == result.bpb == sum(found["document_bits"]) / found["bytes"]
    assert found["document_bytes"] == [len(data) for data in TEXTS]
    assert found["nats_per_token"] == result.total_nats / result.tokens
    assert (found["documents"], found["artifact_bytes"]) == (4, None)


def test_train_digests_are_read_from_the_run(source: FloatModel, tmp_path: Path) -> None:
    assert read_train_digests(source, tmp_path) is None
    digests = document_digests([Document("a", b"a"), Document("b", b"b")])
    path = tmp_path / "train_documents.npy"
    write_digests(path, digests)
    found = read_train_digests(source, tmp_path)
    assert found is not None and (found == digests).all()
    artifact = encode_artifact(source, QuantConfig(method="nearest"))
    assert read_train_digests(artifact, tmp_path) is None  # it may come from any run
    record_export(tmp_path, artifact.sha256)
    assert read_train_digests(artifact, tmp_path) is not None
    for damaged in (b"", b"\x93NUMPY", b"abc", path.read_bytes()[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(CorpusError, match="train_documents.npy is damaged"):
            read_train_digests(source, tmp_path)
