"""The scorer against a slow twin, and the windows it cuts a document into."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tokgolf.config import TrunkConfig
from tokgolf.errors import ScoreError
from tokgolf.eval.contexts import widened
from tokgolf.eval.scorer import CHUNK, Row, document_nats, row_nats, windows
from tokgolf.heads import HeadShape, head_config
from tokgolf.model import LanguageModel, build_model
from tokgolf.tokenizers import Tokenizer, build_tokenizer

WINDOW = 8
TRUNK = TrunkConfig(
    layers=2, d_model=16, heads=2, kv_heads=1, mlp_hidden=24, sequence_length=WINDOW
)
TEXT = b"the cat sat on the mat; the dog sat on the log. " * 20
DOCUMENTS = [
    b"",
    b"a",
    bytes(range(40, 40 + WINDOW - 1)),  # with the closing BOS exactly one window of targets
    bytes(range(40, 40 + WINDOW)),  # one window and one target
    bytes(range(40, 40 + WINDOW + 1)),
    TEXT[:101],
    b"",
    b"\xff\x00\xfe",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return build_tokenizer("byte", [], None)


def model_for(tokenizer: Tokenizer) -> LanguageModel:
    torch.manual_seed(0)
    shape = HeadShape(vocab_size=tokenizer.vocab_size, d_model=16, bos_id=tokenizer.bos_id)
    head = head_config({"name": "tied", "add": {"bigram-hash": {}, "bigram-logits": {}}})
    model = build_model(TRUNK, head, shape).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4)
    return model


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> LanguageModel:
    return model_for(tokenizer)


def nats_of(
    model: LanguageModel, tokenizer: Tokenizer, documents: list[bytes], **options: Any
) -> list[np.ndarray[tuple[int], np.dtype[np.float64]]]:
    scored = list(document_nats(model, tokenizer, documents, **options))
    assert [data for data, _ in scored] == documents
    return [nats for _, nats in scored]


def twin(model: LanguageModel, tokenizer: Tokenizer, data: bytes, stride: int) -> list[float]:
    """One forward a token of a document alone."""
    tokens = [tokenizer.bos_id, *tokenizer.encode(data).tolist(), tokenizer.bos_id]
    return twin_of(model, tokens, WINDOW, stride or WINDOW)


def twin_of(model: LanguageModel, tokens: list[int], window: int, stride: int) -> list[float]:
    """The rule of the windows in its plainest form.

    Target n is predicted from the tokens before it. The first `window` targets see all of them; the
    rest come in groups of `stride`, and a group sees from where its last target has a full window.
    """
    count, nats = len(tokens) - 1, []
    for target in range(1, count + 1):
        start = 0
        if target > window:
            groups_done = (target - window - 1) // stride
            last = min(count, window + (groups_done + 1) * stride)
            start = last - window
        with torch.no_grad():
            log_probs = model.log_probs(torch.tensor([tokens[start:target]]))[0, -1]
        nats.append(-float(log_probs[tokens[target]]))
    return nats


@pytest.mark.parametrize("stride", [0, 1, 3, WINDOW - 1, WINDOW])
def test_nats_agree_with_one_forward_a_token(
    model: LanguageModel, tokenizer: Tokenizer, stride: int
) -> None:
    for data, nats in zip(
        DOCUMENTS, nats_of(model, tokenizer, DOCUMENTS, stride=stride), strict=True
    ):
        np.testing.assert_allclose(nats, twin(model, tokenizer, data, stride), rtol=0, atol=1e-5)
        assert nats.dtype == np.float64 and nats.shape == (len(data) + 1,)


def test_nats_of_a_learned_tokenizer_agree_with_the_twin() -> None:
    tokenizer = build_tokenizer("bpe", [TEXT], 270)
    model = model_for(tokenizer)
    documents = [TEXT[:150], b"", b"\xff the cat"]
    for data, nats in zip(documents, nats_of(model, tokenizer, documents, stride=3), strict=True):
        assert len(nats) == len(tokenizer.encode(data)) + 1
        np.testing.assert_allclose(nats, twin(model, tokenizer, data, 3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("stride", [0, 3])
def test_the_batch_changes_neither_nats_nor_order(
    model: LanguageModel, tokenizer: Tokenizer, stride: int
) -> None:
    alone = [nats_of(model, tokenizer, [data], stride=stride)[0] for data in DOCUMENTS]
    for batch_tokens in (1, 2 * WINDOW, 5 * WINDOW, 10**6):
        options = {"stride": stride, "batch_tokens": batch_tokens}
        together = nats_of(model, tokenizer, DOCUMENTS, **options)
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
        turned = nats_of(model, tokenizer, DOCUMENTS[::-1], **options)[::-1]
        for one, other in zip(alone, turned, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_documents_come_as_soon_as_they_are_done(
    model: LanguageModel, tokenizer: Tokenizer
) -> None:
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield b"abc"

    scored = document_nats(model, tokenizer, endless(), batch_tokens=4 * WINDOW)
    assert [next(scored)[0] for _ in range(5)] == [b"abc"] * 5
    assert taken <= 80  # the lookahead: eight batches of 32 targets, and what is encoded at once


def test_a_document_says_nothing_about_the_next(model: LanguageModel, tokenizer: Tokenizer) -> None:
    one = nats_of(model, tokenizer, [b"first", b"shared text"])[1]
    other = nats_of(model, tokenizer, [b"zzzzz", b"shared text"])[1]
    assert (one == other).all()


def test_a_longer_context_reaches_further_with_a_stride(
    model: LanguageModel, tokenizer: Tokenizer
) -> None:
    plain = nats_of(model, tokenizer, [TEXT[:100]])[0]
    strided = nats_of(model, tokenizer, [TEXT[:100]], stride=1)[0]
    np.testing.assert_allclose(plain[:WINDOW], strided[:WINDOW], rtol=0, atol=1e-5)
    assert (np.abs(plain - strided)[WINDOW:] > 1e-4).mean() > 0.5


@pytest.mark.parametrize("stride", [-1, WINDOW + 1])
def test_a_stride_beyond_the_window_is_refused(
    model: LanguageModel, tokenizer: Tokenizer, stride: int
) -> None:
    with pytest.raises(ScoreError, match=f"stride is {stride}; it must be 1 to the window of 8"):
        nats_of(model, tokenizer, [b"x"], stride=stride)


# Contexts, windows of another length, precision.


def stream_twin(
    model: LanguageModel, tokenizer: Tokenizer, documents: list[bytes], stride: int
) -> list[float]:
    """One forward a token of all documents as one text, by the rule in `twin`."""
    tokens = [tokenizer.bos_id]
    for data in documents:
        tokens += [*tokenizer.encode(data).tolist(), tokenizer.bos_id]
    return twin_of(model, tokens, WINDOW, stride or WINDOW)


@pytest.mark.parametrize("stride", [0, 1, 3, WINDOW - 1])
def test_a_stream_is_one_text_whose_nats_each_document_gets_its_part_of(
    model: LanguageModel, tokenizer: Tokenizer, stride: int
) -> None:
    expected = stream_twin(model, tokenizer, DOCUMENTS, stride)
    for batch_tokens in (1, 3 * WINDOW, 10**6):
        options = {"stride": stride, "batch_tokens": batch_tokens}
        found = nats_of(model, tokenizer, DOCUMENTS, context="stream", **options)
        assert [len(nats) for nats in found] == [len(data) + 1 for data in DOCUMENTS]
        np.testing.assert_allclose(np.concatenate(found), expected, rtol=0, atol=1e-5)


def test_a_longer_window_sees_further_and_changes_no_weight(
    model: LanguageModel, tokenizer: Tokenizer
) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cos = model.trunk.cos.clone()
    plain, wide = (nats_of(model, tokenizer, [TEXT[:60]], window=w)[0] for w in (0, 3 * WINDOW))
    tokens = [tokenizer.bos_id, *tokenizer.encode(TEXT[:60]).tolist(), tokenizer.bos_id]
    expected = twin_of(widened(model, 3 * WINDOW), tokens, 3 * WINDOW, 3 * WINDOW)
    np.testing.assert_allclose(wide, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(plain[:WINDOW], wide[:WINDOW], rtol=0, atol=1e-5)
    assert np.abs(plain - wide)[WINDOW : 3 * WINDOW].min() > 0
    assert torch.equal(cos, model.trunk.cos)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert widened(model, WINDOW) is model


def test_a_shorter_window_sees_less(model: LanguageModel, tokenizer: Tokenizer) -> None:
    tokens = [tokenizer.bos_id, *tokenizer.encode(TEXT[:60]).tolist(), tokenizer.bos_id]
    short = nats_of(model, tokenizer, [TEXT[:60]], window=3, stride=2)[0]
    np.testing.assert_allclose(short, twin_of(model, tokens, 3, 2), rtol=0, atol=1e-5)


def test_mixed_precision_is_near_and_another_number(
    model: LanguageModel, tokenizer: Tokenizer
) -> None:
    exact, mixed = (
        np.concatenate(nats_of(model, tokenizer, DOCUMENTS, precision=precision))
        for precision in ("fp32", "bf16")
    )
    assert not np.array_equal(exact, mixed)
    np.testing.assert_allclose(exact.mean(), mixed.mean(), rtol=0.05)


# What is seen, and what is held.


def test_every_distribution_that_nats_are_taken_from_is_seen_once(
    model: LanguageModel, tokenizer: Tokenizer
) -> None:
    numbers: list[int] = []
    seen: dict[int, Tensor] = {}

    def observe(targets: np.ndarray[tuple[int], np.dtype[np.int64]], log_probs: Tensor) -> None:
        numbers.extend(targets.tolist())
        seen.update(zip(targets.tolist(), log_probs, strict=True))

    for context in ("document", "stream"):
        numbers.clear()
        found = nats_of(
            model, tokenizer, DOCUMENTS, stride=3, context=context, batch_tokens=20, observe=observe
        )
        nats = np.concatenate(found)
        assert sorted(numbers) == list(range(len(nats)))
        targets = [t for data in DOCUMENTS for t in (*tokenizer.encode(data), tokenizer.bos_id)]
        for number, target in enumerate(targets):
            assert nats[number] == -float(seen[number][int(target)])


def test_only_positions_that_pay_are_given_a_distribution(
    model: LanguageModel, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CHUNK, "cpu", 5 * 257)
    monkeypatch.setattr("tokgolf.eval.scorer.LEAST", 1)
    sizes: list[int] = []
    data = TEXT[:50]
    nats_of(
        model, tokenizer, [data], stride=1, observe=lambda numbers, ln_p: sizes.append(len(ln_p))
    )
    assert sum(sizes) == len(data) + 1
    assert max(sizes) == 5


def test_what_is_held_does_not_grow_with_the_corpus(
    model: LanguageModel, tokenizer: Tokenizer
) -> None:
    ahead = 0

    def documents() -> Iterator[bytes]:
        nonlocal ahead
        for number in range(3000):
            ahead += 1
            yield TEXT[: number % 7]

    most = 0
    for _ in document_nats(model, tokenizer, documents(), batch_tokens=4 * WINDOW):
        most = max(most, ahead)
        ahead -= 1
    assert most < 200


def test_rows_that_pay_twice_or_leave_a_gap_are_refused(model: LanguageModel) -> None:
    tokens = np.arange(5, dtype=np.uint16)
    for number in (3, 5):
        rows = [Row(tokens, 0, 0), Row(tokens, 0, number)]
        with pytest.raises(ScoreError, match=f"pay for target {number} where 4 comes next"):
            list(row_nats(model, rows))


# Windows.


def test_windows_of_a_short_document_are_these() -> None:
    assert list(windows(10, 4, 2)) == [(0, 0, 4), (2, 4, 6), (4, 6, 8), (6, 8, 10)]
    assert list(windows(9, 4, 4)) == [(0, 0, 4), (4, 4, 8), (5, 8, 9)]
    assert list(windows(3, 4, 2)) == [(0, 0, 3)]
    assert list(windows(0, 4, 2)) == []


@given(st.integers(0, 300), st.integers(1, 40), st.data())
def test_windows_count_each_target_once_within_the_length(
    count: int, length: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, length))
    found = list(windows(count, length, stride))
    assert [n for _, first, end in found for n in range(first, end)] == list(range(count))
    for start, first, end in found:
        assert 0 <= start <= first < end and end - start <= length
        # The window is full, unless the document is shorter than it.
        assert end - start == min(length, count)
    if found:
        assert found[0] == (0, 0, min(count, length))
        assert all(end - first <= stride for _, first, end in found[1:])
