"""A score: what it says, stores and refuses. `test_eval_invariants.py` has its evidence."""

import copy
import json
import math
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from score_support import CORPUS, TEXTS, TRUNK, corpus_of, source_of
from torch import Tensor

from tokgolf.artifact.checkpoint import FloatModel, record_export
from tokgolf.artifact.export import encode_artifact
from tokgolf.corpora import Document, document_digests, write_digests
from tokgolf.errors import ArtifactError, ConfigError, CorpusError, ScoreError
from tokgolf.eval.protocol import Clock, Protocol
from tokgolf.eval.score import (
    Score,
    modules_beside,
    open_source,
    read_train_digests,
    save_score,
    score,
)
from tokgolf.eval.scorer import CHUNK, document_nats
from tokgolf.heads.tied import TiedHead
from tokgolf.model import LanguageModel
from tokgolf.quantize.rows import QuantConfig
from tokgolf.tokenizers import build_tokenizer


@pytest.fixture(scope="module")
def source() -> FloatModel:
    return source_of()


def test_a_score_is_the_scorers_nats_over_the_documents_bytes(source: FloatModel) -> None:
    done: list[int] = []
    totals: set[int] = set()

    def note(size: int, total: int) -> None:
        done.append(size)
        totals.add(total)

    result = score(source, CORPUS, stride=5, on_progress=note)
    assert totals == {result.bytes}
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


INVARIANTS = {
    "bytes_are_the_documents": True,
    "bytes_per_token_agree": True,
    "documents_decode_exactly": True,
    "documents_in_order": True,
    "train_disjoint": None,
    "probabilities_sum_to_one": True,
    "nats_are_the_distributions": True,
    "causal": True,
    "causal_target_flips": True,
    "causal_future_flips": True,
    "each_token_scored_once": True,
    "state_unchanged": True,
    "state_is_the_artifacts": None,
}


def test_every_invariant_is_named_and_holds(source: FloatModel) -> None:
    result = score(source, CORPUS)
    assert result.invariants == INVARIANTS
    assert list(result.evidence) == list("abcdef")
    named = [name for seen in result.evidence.values() for name in seen["checks"]]
    assert named == list(INVARIANTS)
    assert result.evidence["a"]["document_bytes"] == result.bytes
    assert result.evidence["f"]["targets_counted"] == result.tokens


def test_the_closing_bos_is_paid_for(source: FloatModel) -> None:
    result = score(source, corpus_of([b"", b"x", b""]))
    assert result.tokens == 4
    assert result.nats[0] == result.nats[2] > 0


class Broken(TiedHead):
    def log_probs(self, hidden: Tensor, prev: Tensor) -> Tensor:  # type: ignore[misc]
        return super().log_probs(hidden, prev) * math.nan


class Certain(TiedHead):
    def log_probs(self, hidden: Tensor, prev: Tensor) -> Tensor:  # type: ignore[misc]
        result = super().log_probs(hidden, prev)
        result[:, ord("i")] = -math.inf
        return result.log_softmax(-1)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Broken, "gives NaN for a probability to target 0 of 28 in document 0 of tiny:val"),
        (Certain, "gives probability zero to target 0 of 91 in document 2 of tiny:val"),
    ],
)
def test_nan_or_probability_zero_is_named(broken: type[TiedHead], message: str) -> None:
    with pytest.raises(ScoreError, match=message):
        score(source_of(head_class=broken, tokenizer=build_tokenizer("byte", [], None)), CORPUS)


def test_a_time_budget_that_is_passed_refuses_the_score(
    source: FloatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert score(source, CORPUS, Protocol(time_budget=600)).protocol.time_budget == 600
    message = r"is invalid: it was not done after \d+\.\d s, its time budget is 0.001 s; use"
    with pytest.raises(ScoreError, match=message):
        score(source, CORPUS, Protocol(time_budget=0.001))
    ticks = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(ticks)))
    clock = Clock(0.0, 3, "c")
    assert [clock.check() for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(ScoreError, match="the score of c is invalid: it was not done after 4.0 s"):
        clock.check()


def test_an_estimate_says_so(source: FloatModel) -> None:
    values = score(source, CORPUS, Protocol(precision="bf16")).as_dict()
    assert values["estimate"] is True and values["protocol"]["precision"] == "bf16"
    assert score(source, CORPUS).as_dict()["estimate"] is False


def test_the_model_comes_back_as_it_was_whatever_happens(source: FloatModel) -> None:
    torch.set_float32_matmul_precision("medium")
    try:
        expected = score(source, CORPUS).nats
        with pytest.raises(ScoreError):
            score(source, CORPUS, Protocol(time_budget=0.001))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert score(source, CORPUS).nats == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "official"}, "the official mode scores one stream"),
        ({"window": 0}, "window is 0; it must be greater than 0"),
        ({"time_budget": -1.0}, "time_budget is -1.0; it must be greater than 0"),
    ],
)
def test_a_protocol_that_makes_no_sense_is_refused(options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Protocol(**options)


def test_a_protocol_that_does_not_fit_the_model_is_refused(source: FloatModel) -> None:
    with pytest.raises(ScoreError, match="stride is 17; it must be 1 to the window of 16, or 0"):
        score(source, CORPUS, Protocol(stride=17))
    with pytest.raises(ScoreError, match="heads 8 wide is over 4,194,304 .* use at most 524,288"):
        score(source, CORPUS, Protocol(window=1 << 20))
    with pytest.raises(ConfigError, match="stride 3 beside a protocol"):
        score(source, CORPUS, Protocol(), stride=3)


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
        "seconds", "invariants", "protocol", "estimate", "lossless", "evidence", "baselines",
    }  # fmt: skip
    assert set(result.as_dict()) == summary
    assert set(found) == summary | {"document_bits", "document_bytes", "document_tokens"}
    assert found["bpb"] == result.bpb == sum(found["document_bits"]) / found["bytes"]
    assert found["document_bytes"] == [len(data) for data in TEXTS]
    assert found["document_tokens"] == [len(source.tokenizer.encode(data)) + 1 for data in TEXTS]
    assert found["protocol"] == {
        "mode": "raw", "context": "document", "window": 16, "stride": 16, "precision": "fp32",
        "loops": None, "time_budget": None, "adapt": None,
    }  # fmt: skip
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


def fp64_twin(source: FloatModel, texts: list[bytes]) -> float:
    """Bits per byte by an fp64 model, one document and window at a time, nothing shared."""
    model = copy.deepcopy(source.model).double()
    bos, window, bits = source.tokenizer.bos_id, source.trunk.sequence_length, 0.0
    for data in texts:
        tokens = torch.tensor([bos, *source.tokenizer.encode(data).tolist(), bos])
        done = 0
        while done < len(tokens) - 1:
            end = min(len(tokens) - 1, done + window)
            start = max(0, end - window)
            x = tokens[None, start:end]
            z = model.head.logits(model.hidden(x)[0], x[0])
            nats = -z.log_softmax(-1).gather(1, tokens[start + 1 : end + 1, None])[:, 0]
            bits += float(nats[done - start :].sum()) / math.log(2)
            done = end
    return bits / sum(map(len, texts))


def test_the_score_is_an_fp64_models_one_window_at_a_time(
    source: FloatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [*TEXTS, b"return x + import os\n" * 40, b"", b"def " * 20]
    found = [score(source, corpus_of(texts), batch_tokens=n).bpb for n in (1, 64, 8192)]
    assert max(found) - min(found) < 2e-6
    # The eps of a norm is that of its type.
    monkeypatch.setattr(
        "tokgolf.model.rms_norm", lambda x: F.rms_norm(x, (x.size(-1),), None, 2.0**-23)
    )
    assert found[0] == pytest.approx(fp64_twin(source, texts), abs=2e-6)


def test_the_same_flags_give_the_same_bits(source: FloatModel) -> None:
    for protocol in (Protocol(stride=3), Protocol(context="stream", window=40)):
        one, other = (score(source, CORPUS, protocol) for _ in range(2))
        assert (one.nats, one.bpb) == (other.nats, other.bpb)


def test_sums_are_in_one_order_while_a_score_is_taken() -> None:
    # With two threads an adapter's gradient differed from one time to the next.
    seen: list[bool] = []

    class Watched(LanguageModel):
        def hidden(self, tokens: Tensor, rows: Tensor | None = None) -> Tensor:
            seen.append(torch.are_deterministic_algorithms_enabled())
            return super().hidden(tokens, rows)

    score(source_of(Watched), CORPUS)
    assert seen and all(seen) and not torch.are_deterministic_algorithms_enabled()


def test_a_document_of_a_thousand_windows_is_held_as_tokens_only(source: FloatModel) -> None:
    long = bytes(range(97, 123)) * (16 * 1000 // 26)
    seen: list[int] = []
    document_nats_of = document_nats(
        source.model, source.tokenizer, [b"", long], observe=lambda n, p: seen.append(p.numel())
    )
    sizes = [len(nats) for _, nats in document_nats_of]
    assert sizes == [1, len(source.tokenizer.encode(long)) + 1]
    assert sum(sizes) > 900 * 16 and max(seen) <= CHUNK["cpu"]


def test_shared_blocks_are_unrolled_as_often_as_the_protocol_says() -> None:
    loop = replace(TRUNK, layers=3, loop_start=1, loop_blocks=1, loops=2)
    source = source_of(trunk=loop)
    own, more = (score(source, CORPUS, Protocol(loops=loops)) for loops in (None, 3))
    assert own.protocol.loops == 2 and more.protocol.loops == 3 and own.bpb != more.bpb
    # As a model whose config says three: in either mode, and the source is as before.
    three = source_of(trunk=replace(loop, loops_scored=3))
    assert score(three, CORPUS).nats == more.nats
    official = Protocol(mode="official", context="stream", window=8, loops=3)
    plain = replace(official, loops=None)
    assert score(source, CORPUS, official).nats == score(three, CORPUS, plain).nats
    assert score(source, CORPUS).nats == own.nats


def test_loops_of_a_trunk_without_shared_blocks_are_refused() -> None:
    with pytest.raises(ScoreError, match="loops is 2.* has 0 blocks"):
        score(source_of(), CORPUS, Protocol(loops=2))
    with pytest.raises(ConfigError, match="loops is 0"):
        Protocol(loops=0)


def test_an_artifact_pays_for_the_code_of_streams_windows_and_loops(source: FloatModel) -> None:
    loop = replace(TRUNK, loop_blocks=1)
    plain = (Protocol(), Protocol(window=16), Protocol(stride=3), Protocol(loops=1))
    for protocol in plain:
        assert modules_beside(protocol.of(loop), loop) == []
    for protocol in (Protocol(context="stream"), Protocol(window=17), Protocol(loops=2)):
        assert modules_beside(protocol.of(loop), loop) == ["tokgolf.eval.contexts"]
    artifact = encode_artifact(source, QuantConfig(method="nearest", bits=8.0))
    full = [
        score(artifact, CORPUS, Protocol(context=context)).as_dict()["artifact_bytes"]
        for context in ("document", "stream")
    ]
    assert 100 < full[1] - full[0] < 1000


def test_official_mode_knows_text_that_was_trained_on_normalised(source: FloatModel) -> None:
    texts = [b"one\ntwo  three and some more of it", b"four five six seven"]
    trained = document_digests([Document("0", b"one two three and some more of it")])
    corpus = corpus_of(texts)
    official = Protocol(mode="official", context="stream", window=4)
    assert score(source, corpus, train_digests=trained).invariants["train_disjoint"]
    with pytest.raises(CorpusError, match="1 of 2 documents"):
        score(source, corpus, official, train_digests=trained)
