"""The official mode under a model: against one window at a time, and against lies."""

from typing import Any

import numpy as np
import pytest
import torch
from official_support import built, documents, imported
from score_support import TRUNK, corpus_of, source_of

from tokgolf.artifact.checkpoint import FloatModel
from tokgolf.errors import ScoreError
from tokgolf.eval.official import official_totals, official_windows, scored_targets, token_stream
from tokgolf.eval.protocol import Protocol
from tokgolf.eval.score import score
from tokgolf.model import LanguageModel
from tokgolf.tokenizers import Tokenizer

WINDOW = TRUNK.sequence_length
TEXTS = [documents()[0][:900], b"", *documents()[-3:], documents()[1][:333], b"B", b"", b"C"]
CORPUS = corpus_of(TEXTS, "web:val")
TOKENIZERS = {
    "official": lambda: imported("official"),
    "dummy prefix": lambda: imported("dummy prefix"),
    "bpe": lambda: built("bpe"),
    "byte": lambda: built("byte"),
}


def official(stride: int = 0, **options: Any) -> Protocol:
    return Protocol(mode="official", context="stream", stride=stride, **options)


def slow_nats(model: LanguageModel, tokenizer: Tokenizer, stride: int) -> Any:
    """One forward a window, as the challenge runs them."""
    tokens = token_stream(tokenizer, TEXTS).tokens.astype(np.int64)
    targets = scored_targets(len(tokens), WINDOW)
    nats = np.full(targets, np.nan)
    for start, first, end in official_windows(targets, WINDOW, stride):
        with torch.no_grad():
            log_probs = model.log_probs(torch.from_numpy(tokens[None, start:end]))[0]
        for target in range(first, end):
            assert np.isnan(nats[target])
            nats[target] = -float(log_probs[target - start, tokens[target + 1]])
    return nats


@pytest.mark.parametrize("stride", [0, 5, WINDOW - 1])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_it_is_the_challenges_number(name: str, stride: int) -> None:
    source = source_of(tokenizer=TOKENIZERS[name]())
    result = score(source, CORPUS, official(stride), batch_tokens=7 * WINDOW)
    stream = token_stream(source.tokenizer, TEXTS)
    totals = official_totals(stream, slow_nats(source.model, source.tokenizer, stride))
    assert result.nats == pytest.approx(totals.nats, abs=1e-4)
    assert result.document_bytes == totals.bytes.tolist()
    assert len(result.nats) == len(TEXTS)
    assert result.tokens == totals.targets == sum(result.document_tokens)
    assert result.tokens % WINDOW == 0 and 0 <= len(stream.tokens) - 1 - result.tokens < WINDOW
    values = result.as_dict()
    assert values["val_loss"] == pytest.approx(totals.val_loss, rel=1e-6)
    assert values["val_bpb"] == pytest.approx(totals.val_bpb, rel=1e-6)
    assert (values["mode"], values["lossless"]) == ("official", source.tokenizer.lossless)
    unknown = {"train_disjoint", "state_is_the_artifacts"}
    assert {name for name, holds in result.invariants.items() if holds is not True} == unknown
    seen = result.evidence["a"]
    assert seen["document_bytes"] == int(stream.text_bytes.sum())
    assert seen["scored_bytes"] + seen["tail_bytes"] == seen["document_bytes"]
    assert seen["unnormalised_bytes"] == sum(map(len, TEXTS)) > seen["document_bytes"]


def test_documents_in_the_tail_have_nothing_and_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = source_of(tokenizer=built("byte"))
    corpus = corpus_of([b"x" * (WINDOW + 3), b"yy", b"", b"z"])
    result = score(source, corpus, official())
    assert result.document_tokens == [WINDOW, 0, 0, 0]
    assert result.document_bytes == [WINDOW, 0, 0, 0]
    assert result.evidence["a"]["tail_bytes"] == 6
    assert result.evidence["c"]["documents_scored"] == 4


def test_a_batch_changes_next_to_nothing() -> None:
    source = source_of(tokenizer=built("bpe"))
    one, other = (score(source, CORPUS, official(3), batch_tokens=size).bpb for size in (1, 10**6))
    assert one == pytest.approx(other, abs=2e-6)


def test_a_lossy_tokenizer_is_for_this_mode_alone() -> None:
    source = source_of(tokenizer=imported("official"))
    with pytest.raises(ScoreError, match="does not give every text back, .* --mode official"):
        score(source, CORPUS)


def failing(source: FloatModel) -> set[str]:
    with pytest.raises(ScoreError, match="the score of web:val is invalid: .* failed") as error:
        score(source, CORPUS, official())
    return set(str(error.value).split("invalid: ")[1].removesuffix(" failed").split(", "))


def test_a_table_that_counts_other_bytes_than_the_texts_is_an_error() -> None:
    assert failing(source_of(tokenizer=imported("interior"))) == {"bytes_are_the_documents"}
    assert failing(source_of(tokenizer=imported("no bytes"))) == {
        "bytes_are_the_documents", "documents_decode_exactly"
    }  # fmt: skip


class Peeks(LanguageModel):
    def hidden(self, tokens: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        hidden = super().hidden(tokens).clone()
        hidden[:, :-1] += self.head.embed(tokens[:, 1:], tokens[:, :-1])
        return hidden


def test_a_model_that_looks_ahead_is_an_error() -> None:
    assert "causal" in failing(source_of(Peeks, built("bpe")))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([b"x" * 99, b"caf\xe9 "], "byte 3 of a document of 5 is no UTF-8"),
        ([b"short"], "the text has 6 tokens, and official mode scores whole windows of 16"),
    ],
)
def test_text_without_a_number_is_named(texts: list[bytes], message: str) -> None:
    with pytest.raises(ScoreError, match=message):
        score(source_of(tokenizer=built("byte")), corpus_of(texts), official())
