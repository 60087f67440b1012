"""Every invariant of a score, each caught by its name by something that lies about it alone."""

import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Self

import numpy as np
import pytest
import torch
from score_support import CORPUS, TEXTS, corpus_of, source_of
from torch import Tensor

from tokgolf.artifact.export import encode_artifact
from tokgolf.corpora import Corpus, Document
from tokgolf.errors import ScoreError
from tokgolf.eval import score as score_module
from tokgolf.eval.invariants import TrueBytes, state_hash
from tokgolf.eval.protocol import Protocol
from tokgolf.eval.score import score
from tokgolf.eval.scorer import document_nats
from tokgolf.heads.tied import TiedHead
from tokgolf.model import LanguageModel
from tokgolf.quantize.rows import QuantConfig
from tokgolf.tokenizers import Tokenizer, build_tokenizer
from tokgolf.tokenizers.base import Ids

LONG = corpus_of(
    [b"import os, sys; return x + 1 # " * n for n in (9, 1, 0, 2, 7, 1, 8)], "tiny:val"
)


def failing(source: Any, corpus: Corpus = CORPUS, protocol: Protocol | None = None) -> set[str]:
    """The names of the invariants that the error gives."""
    with pytest.raises(ScoreError, match=f"the score of {corpus.name} is invalid: .* failed") as e:
        score(source, corpus, protocol)
    return set(str(e.value).split("invalid: ")[1].removesuffix(" failed").split(", "))


# (a), (b): tokenizers


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


class Inflated(Lossy):
    """Encodes and decodes exactly, and counts every space twice, as a wrong table would."""

    change: ClassVar[Callable[[bytes], bytes]] = staticmethod(lambda data: data)

    def byte_lengths(self, ids: Any) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        lengths = super().byte_lengths(ids)
        lengths[np.asarray(ids) == 32] += 1
        return lengths


def test_a_tokenizer_that_is_not_lossless_is_an_error() -> None:
    upper = corpus_of([b"all lower", b"Not All"])
    assert failing(source_of(tokenizer=Lossy.from_asset(b"")), upper) == {
        "documents_decode_exactly"
    }
    assert failing(source_of(tokenizer=Dropping.from_asset(b"")), upper) == {
        "bytes_are_the_documents", "bytes_per_token_agree", "documents_decode_exactly"
    }  # fmt: skip
    assert score(source_of(tokenizer=Lossy.from_asset(b"")), corpus_of([b"all lower"])).bpb > 0


def test_a_tokenizer_that_counts_more_bytes_than_there_are_is_an_error() -> None:
    assert failing(source_of(tokenizer=Inflated.from_asset(b""))) == {
        "bytes_are_the_documents", "bytes_per_token_agree"
    }  # fmt: skip


def test_each_document_is_encoded_once() -> None:
    encoded: list[bytes] = []

    class Counting(Lossy):
        change: ClassVar[Callable[[bytes], bytes]] = staticmethod(lambda data: data)

        def _encode_batch(self, batch: Any) -> list[Ids]:
            encoded.extend(batch)
            return super()._encode_batch(batch)

    score(source_of(tokenizer=Counting.from_asset(b"")), CORPUS)
    assert encoded == TEXTS


def test_bytes_that_only_agree_in_sum_are_an_error() -> None:
    class Shifted(Inflated):
        def byte_lengths(self, ids: Any) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
            lengths = Lossy.byte_lengths(self, ids)
            lengths[0] += 1 if len(ids) == 3 else -1
            return lengths

    corpus = corpus_of([b"abc", b"four"])
    assert failing(source_of(tokenizer=Shifted.from_asset(b"")), corpus) == {
        "bytes_are_the_documents"
    }


def test_a_bpb_that_its_nats_do_not_give_breaks_the_identity() -> None:
    check = TrueBytes()
    check.counted(3, 3)
    check.scored = 3
    right = 2.0 * 4 / (3 * math.log(2))
    for bpb, agree in ((right, True), (right * math.log(2), False), (right * 1.17, False)):
        found = check.results(nats_per_token=2.0, bpb=bpb, targets=4)
        assert found == {"bytes_are_the_documents": True, "bytes_per_token_agree": agree}


# (c), (d), (f): scorers


Scored = Iterator[tuple[bytes, np.ndarray[tuple[int], np.dtype[np.float64]]]]


def drop(scored: Scored) -> Scored:
    next(scored)
    yield from scored


def swap(scored: Scored) -> Scored:
    first, second = next(scored), next(scored)
    yield from (second, first)
    yield from scored


def another_text(scored: Scored) -> Scored:
    for data, nats in scored:
        yield data.upper(), nats


def longer_text(scored: Scored) -> Scored:
    for data, nats in scored:
        yield data + b" ", nats


def fewer_nats(scored: Scored) -> Scored:
    for data, nats in scored:
        yield data, 0.9 * nats


def no_closing_bos(scored: Scored) -> Scored:
    for data, nats in scored:
        yield data, nats[:-1]


SCORERS: dict[Callable[[Scored], Scored], set[str]] = {
    drop: {
        "bytes_are_the_documents", "bytes_per_token_agree", "documents_in_order",
        "nats_are_the_distributions", "each_token_scored_once",
    },
    swap: {"documents_in_order", "nats_are_the_distributions", "each_token_scored_once"},
    another_text: {"documents_in_order"},
    longer_text: {"bytes_are_the_documents", "bytes_per_token_agree", "documents_in_order"},
    fewer_nats: {"nats_are_the_distributions"},
    no_closing_bos: {"nats_are_the_distributions", "each_token_scored_once"},
}  # fmt: skip


@pytest.mark.parametrize("lie", SCORERS, ids=lambda lie: str(lie.__name__))
def test_a_scorer_that_lies_is_an_error(
    lie: Callable[[Scored], Scored], monkeypatch: pytest.MonkeyPatch
) -> None:
    def liar(*arguments: Any, **options: Any) -> Scored:
        return lie(document_nats(*arguments, **options))

    monkeypatch.setattr(score_module, "document_nats", liar)
    assert failing(source_of()) == SCORERS[lie]


@pytest.mark.parametrize("shown", ["twice", "never", "as its neighbour"])
def test_a_position_that_is_not_scored_once_is_an_error(
    shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The total is right in the last case: only a count for every position sees it."""

    def liar(*arguments: Any, observe: Any, **options: Any) -> Scored:
        def lying(numbers: Any, log_probs: Tensor) -> None:
            keep = numbers != 3
            if shown == "twice":
                observe(numbers[~keep], log_probs[torch.from_numpy(~keep)])
                keep |= True
            if shown == "as its neighbour":
                keep, numbers = numbers >= 0, np.where(keep, numbers, 4)
            observe(numbers[keep], log_probs[torch.from_numpy(keep)])

        return document_nats(*arguments, observe=lying, **options)

    monkeypatch.setattr(score_module, "document_nats", liar)
    assert "each_token_scored_once" in failing(source_of())


class Growing(Corpus):
    """Has a document more each time that it is read."""

    def documents(self) -> Iterator[Document]:
        self.provenance["times"] = self.provenance.get("times", "") + "x"  # type: ignore[index]
        yield Document("", b"x" * len(self.provenance["times"]))


def test_a_corpus_that_changes_between_two_passes_is_an_error() -> None:
    growing = Growing(name="growing", split=None, source=lambda: iter([]), provenance={})
    assert failing(source_of(), growing) == {"documents_in_order"}


# (d), (e), (f): models


class Unnormalised(TiedHead):
    def log_probs(self, hidden: Tensor, prev: Tensor) -> Tensor:  # type: ignore[misc]
        return super().log_probs(hidden, prev) + 1e-4


class Uniform(TiedHead):
    def log_probs(self, hidden: Tensor, prev: Tensor) -> Tensor:  # type: ignore[misc]
        return torch.full((len(prev), self.shape.vocab_size), -math.log(self.shape.vocab_size))


class Peeks(LanguageModel):
    """Gives the next token more, where it is among the inputs."""

    def hidden(self, tokens: Tensor, rows: Tensor | None = None) -> Tensor:
        hidden = super().hidden(tokens).clone()
        hidden[:, :-1] += self.head.embed(tokens[:, 1:], tokens[:, :-1])
        return hidden


class PeeksLate(Peeks):
    """Only does so once it has seen some batches."""

    seen = 0

    def hidden(self, tokens: Tensor, rows: Tensor | None = None) -> Tensor:
        self.seen += 1
        honest = LanguageModel.hidden(self, tokens)
        return super().hidden(tokens) if self.seen > 3 else honest


class PeeksTwo(LanguageModel):
    """Knows the token after the next: a changed target shows in the nats before it alone."""

    def hidden(self, tokens: Tensor, rows: Tensor | None = None) -> Tensor:
        hidden = super().hidden(tokens).clone()
        hidden[:, :-2] += self.head.embed(tokens[:, 2:], tokens[:, 1:-1])
        return hidden


class SeesTheEnd(LanguageModel):
    """Looks at the last token of the window, from everywhere in it."""

    def hidden(self, tokens: Tensor, rows: Tensor | None = None) -> Tensor:
        last = tokens[:, -1:]
        return super().hidden(tokens) + self.head.embed(last, last)


class SeesOthers(LanguageModel):
    """Looks at the other rows of its batch."""

    def hidden(self, tokens: Tensor, rows: Tensor | None = None) -> Tensor:
        hidden = super().hidden(tokens)
        return hidden + hidden.mean((0, 1), keepdim=True)


class Learns(LanguageModel):
    """Changes its weights while it is scored."""

    def hidden(self, tokens: Tensor, rows: Tensor | None = None) -> Tensor:
        next(self.head.parameters()).mul_(1.0001)
        return super().hidden(tokens)


class Turns(LanguageModel):
    """Changes a buffer that is not stored."""

    def hidden(self, tokens: Tensor, rows: Tensor | None = None) -> Tensor:
        self.trunk.cos.mul_(0.9999)
        return super().hidden(tokens)


PROTOCOLS = [
    Protocol(),
    Protocol(stride=5),
    Protocol(context="stream"),
    Protocol(context="stream", stride=3),
    Protocol(window=40, stride=16),
]
by_any_protocol = pytest.mark.parametrize("protocol", PROTOCOLS, ids=str)


@by_any_protocol
def test_an_honest_model_is_causal_by_any_protocol(protocol: Protocol) -> None:
    result = score(source_of(), LONG, protocol)
    assert result.invariants == dict.fromkeys(result.invariants, True) | {
        "train_disjoint": None, "state_is_the_artifacts": None
    }  # fmt: skip
    seen = result.evidence["e"]
    assert seen["flips"] > 8 and seen["groups_probed"] == 4 and seen["groups"] > 6


@pytest.mark.parametrize("protocol", PROTOCOLS[:4], ids=str)
@pytest.mark.parametrize("cheat", [Peeks, PeeksLate, SeesTheEnd, SeesOthers])
def test_a_model_that_looks_ahead_is_an_error(
    cheat: type[LanguageModel], protocol: Protocol
) -> None:
    named = failing(source_of(cheat), LONG, protocol)
    assert "causal" in named and named <= {"causal", "causal_target_flips", "causal_future_flips"}


def test_a_changed_target_is_looked_for_in_the_nats_before_it() -> None:
    assert failing(source_of(PeeksTwo), LONG) == {
        "causal", "causal_target_flips", "causal_future_flips"
    }  # fmt: skip


@pytest.mark.parametrize("cheat", [Learns, Turns])
def test_a_model_that_changes_while_it_is_scored_is_an_error(cheat: type[LanguageModel]) -> None:
    assert failing(source_of(cheat)) == {"state_unchanged"}


def test_probabilities_that_do_not_sum_to_one_are_an_error() -> None:
    assert failing(source_of(head_class=Unnormalised)) == {"probabilities_sum_to_one"}


def test_a_uniform_model_scores_ln_v_a_token_and_cannot_be_told_acausal() -> None:
    source = source_of(head_class=Uniform)
    result = score(source, CORPUS)
    vocab = source.tokenizer.vocab_size
    assert result.total_nats == pytest.approx(result.tokens * math.log(vocab), rel=1e-6)
    assert result.bpb == pytest.approx(result.tokens * math.log2(vocab) / result.bytes, rel=1e-6)
    assert result.invariants["causal"] is None


def test_an_artifact_whose_model_was_changed_after_it_was_read_is_an_error() -> None:
    artifact = encode_artifact(source_of(), QuantConfig(method="nearest"))
    assert score(artifact, CORPUS).invariants["state_is_the_artifacts"] is True
    with torch.no_grad():
        artifact.model.trunk.get_parameter("blocks.0.attention_scale")[3] += 1e-6
    assert failing(artifact) == {"state_is_the_artifacts"}


def test_the_state_is_every_tensor_and_buffer() -> None:
    one, other = source_of().model, source_of().model
    assert state_hash(one) == state_hash(other)
    for change in (other.trunk.sin, other.head.get_parameter("table")):
        before = state_hash(other)
        change.flatten()[7] += 1e-3
        assert state_hash(other) != before
