"""Adapted scores against slow twins, and every way of looking ahead that adaptation could open."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from score_support import CORPUS, TRUNK, corpus_of, source_of
from torch import Tensor, nn

from tokgolf.artifact.checkpoint import FloatModel
from tokgolf.artifact.export import encode_artifact
from tokgolf.errors import ConfigError, ScoreError
from tokgolf.eval.adapt import (
    AdaptConfig,
    WriteOnce,
    adapt_config,
    adapted_nats,
    make_adapter,
)
from tokgolf.eval.adapters import Adapter, Deltas, Lesson, low_rank_start
from tokgolf.eval.invariants import Replay, state_hash
from tokgolf.eval.protocol import Protocol
from tokgolf.eval.score import score
from tokgolf.eval.scorer import Nats, document_nats, windows
from tokgolf.model import LanguageModel
from tokgolf.quantize.rows import QuantConfig

ROOT = Path(__file__).resolve().parents[2]
WINDOW = TRUNK.sequence_length  # 16
LORA = AdaptConfig(kind="lora", targets=["query", "mlp.out", "bias"], rank=3, chunk=8, lr=0.03)
ONLINE = AdaptConfig(
    kind="online", targets=["matrix", "vector"], rank=0, chunk=24, optimizer="sgd", lr=0.05
)
TABLES = replace(ONLINE, targets=["table"], optimizer="adam", lr=0.01, steps=2, weight_decay=0.1)
RUNNING_LORA = replace(LORA, kind="online", chunk=20)
CONFIGS = [LORA, replace(LORA, optimizer="sgd", steps=2, lr=0.3), ONLINE, TABLES, RUNNING_LORA]
every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.kind}-{c.targets[0]}")

RNG = np.random.default_rng(0)
LENGTHS = [0, 50, 7, 8, 9, 0, 33, 1, 16, 17]
DOCUMENTS = [RNG.integers(0, 256, length).astype(np.uint16) for length in LENGTHS]


@pytest.fixture(scope="module")
def source() -> FloatModel:
    return source_of()


def run(
    model: LanguageModel, documents: Sequence[Any], config: AdaptConfig, **options: Any
) -> list[Nats]:
    """Nats of documents that are tokens already."""
    encoder = Replay(model.head.shape.bos_id, list(documents))
    names = map(Replay.name, range(len(documents)))
    return [nats for _, nats in adapted_nats(model, encoder, names, config=config, **options)]


class Still(Adapter):
    """Learns nothing, and does to its lessons what `act` does."""

    def __init__(self, act: Callable[[Lesson], object] = lambda lesson: None) -> None:
        self.act = act

    def reset(self, slot: int) -> None:
        pass

    def deltas(self) -> Deltas:
        return Deltas()

    def learn(self, lessons: Sequence[tuple[int, Lesson]]) -> None:
        for _, lesson in lessons:
            self.act(lesson)


# --- the windows


def test_the_worked_example_of_the_pieces() -> None:
    assert list(windows(13, 4, 2, begin=8)) == [(6, 8, 10), (8, 10, 12), (9, 12, 13)]


@given(st.integers(0, 90), st.integers(1, 20), st.integers(1, 40), st.data())
def test_pieces_of_all_chunks_pay_each_target_once(
    count: int, length: int, chunk: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, length))
    found = [
        piece
        for begin in range(0, count, chunk)
        for piece in windows(min(count, begin + chunk), length, stride, begin)
    ]
    assert [n for _, first, end in found for n in range(first, end)] == list(range(count))
    assert all(0 <= start <= first < end <= start + length for start, first, end in found)
    if chunk >= count:
        assert found == list(windows(count, length, stride))


# --- what adapted nats are


@pytest.mark.parametrize(("stride", "chunk"), [(16, 16), (4, 16), (16, 48), (5, 1000)])
@pytest.mark.parametrize("kind", ["lora", "online"])
def test_without_learning_nats_are_the_plain_scorers(
    source: FloatModel, kind: Any, stride: int, chunk: int
) -> None:
    config = replace(LORA, kind=kind, chunk=chunk)
    encoder = Replay(source.tokenizer.bos_id, list(DOCUMENTS))
    names = [Replay.name(number) for number in range(len(DOCUMENTS))]
    found = run(source.model, DOCUMENTS, config, stride=stride, make=lambda *_: Still())
    plain = document_nats(source.model, encoder, names, stride=stride)
    starts = chunk % 16 == 0 and (16 - chunk) % stride == 0
    for nats, (_, expected) in zip(found, plain, strict=True):
        if kind == "online" or starts or len(expected) <= chunk:
            np.testing.assert_allclose(nats, expected, rtol=0, atol=1e-5)


def law(model: LanguageModel, tokens: list[int], bias: Tensor | None = None) -> Tensor:
    log_probs = model.log_probs(torch.tensor([tokens]))[0]
    return log_probs if bias is None else (log_probs + bias).log_softmax(-1)


def chunk_nats(
    model: LanguageModel, tokens: list[int], begin: int, stop: int, bias: Tensor | None = None
) -> Tensor:
    """Nats of targets begin to stop: one window that ends there."""
    start = max(0, stop - WINDOW)
    found = law(model, tokens[start:stop], bias)[begin - start :]
    return -found[torch.arange(stop - begin), torch.tensor(tokens[begin + 1 : stop + 1])]


def optimizer_of(config: AdaptConfig, parameters: list[Tensor]) -> torch.optim.Optimizer:
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=config.lr, betas=(0.9, 0.99), eps=1e-8)
    return torch.optim.SGD(parameters, lr=config.lr)


@pytest.mark.parametrize("config", CONFIGS[:2], ids=["adam", "sgd"])
def test_a_document_adapts_like_its_slow_twin(source: FloatModel, config: AdaptConfig) -> None:
    """One document, one chunk at a time; the low-rank product is added to the weights."""
    some = DOCUMENTS[1:5]
    found = run(source.model, some, config)
    start = low_rank_start(source.model, config.targets, config.rank, config.seed)
    for ids, nats in zip(some, found, strict=True):
        tokens = [source.tokenizer.bos_id, *ids.tolist(), source.tokenizer.bos_id]
        values = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
        optimizer = optimizer_of(config, list(values.values()))

        def adapted(values: dict[str, Tensor] = values) -> LanguageModel:
            model = copy.deepcopy(source.model)
            for name in values:
                if name.endswith("/down"):
                    linear = model.trunk.get_submodule(name.removesuffix("/down"))
                    assert isinstance(linear, nn.Linear)
                    delta = values[name.replace("/down", "/up")] @ values[name]
                    merged = linear.weight + delta
                    del linear.weight
                    linear.weight = merged
            return model

        count, expected = len(tokens) - 1, []
        for begin in range(0, count, config.chunk):
            stop = min(count, begin + config.chunk)
            with torch.no_grad():
                expected.append(chunk_nats(adapted(), tokens, begin, stop, values["bias"]))
            for _ in range(config.steps):
                optimizer.zero_grad()
                loss = chunk_nats(adapted(), tokens, begin, stop, values["bias"]).mean()
                torch.autograd.backward(loss)
                optimizer.step()
        np.testing.assert_allclose(nats, torch.cat(expected).numpy(), rtol=0, atol=2e-4)


def test_a_running_adapter_is_gradient_descent_on_the_models_tensors(source: FloatModel) -> None:
    config = replace(ONLINE, chunk=WINDOW)
    ids = DOCUMENTS[1][: 3 * WINDOW - 1]
    (nats, later) = run(source.model, [ids, DOCUMENTS[6][: WINDOW - 1]], config)
    twin = copy.deepcopy(source.model)
    own = [p for name, p in twin.named_parameters() if not name.startswith("head.")]
    parameters = [parameter.requires_grad_() for parameter in own if parameter.numel()]
    optimizer = optimizer_of(config, list(parameters))
    expected = []
    bos = source.tokenizer.bos_id
    for text in (ids, DOCUMENTS[6][: WINDOW - 1]):
        tokens = [bos, *text.tolist(), bos]
        for begin in range(0, len(text), WINDOW):
            optimizer.zero_grad()
            losses = chunk_nats(twin, tokens, begin, begin + WINDOW)
            expected.append(losses.detach())
            torch.autograd.backward(losses.mean())
            optimizer.step()
    found = np.concatenate([nats, later])
    np.testing.assert_allclose(found, torch.cat(expected).numpy(), rtol=0, atol=2e-4)


@every_config
def test_text_that_repeats_is_learned(source: FloatModel, config: AdaptConfig) -> None:
    text = np.tile(RNG.integers(0, 256, 40), 10).astype(np.uint16)
    still = run(source.model, [text], config, make=lambda *_: Still())[0]
    nats = run(source.model, [text], config)[0]
    np.testing.assert_allclose(nats[:8], still[:8], rtol=0, atol=1e-5)  # not before it is scored
    assert nats[-100:].mean() < still[-100:].mean() - 0.05


@every_config
def test_documents_come_in_order_whatever_is_scored_at_once(
    source: FloatModel, config: AdaptConfig
) -> None:
    whole = run(source.model, DOCUMENTS, config)
    assert [len(nats) for nats in whole] == [length + 1 for length in LENGTHS]
    for slots, batch_tokens in ((1, 8192), (3, 8192), (32, 1), (2, 40)):
        again = run(
            source.model, DOCUMENTS, replace(config, slots=slots), batch_tokens=batch_tokens
        )
        for one, other in zip(whole, again, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=2e-4)


@pytest.mark.parametrize("config", [LORA, ONLINE], ids=["lora", "online"])
def test_documents_are_streamed(source: FloatModel, config: AdaptConfig) -> None:
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield b"import os\n" * (1 + 20 * (taken == 1))

    options: Any = {"config": replace(config, slots=2), "batch_tokens": 64}
    found = adapted_nats(source.model, source.tokenizer, endless(), **options)
    for _ in range(5):
        next(found)
    assert taken < 40


@every_config
def test_the_same_bits_come_twice_and_the_model_is_left_as_it_was(
    source: FloatModel, config: AdaptConfig
) -> None:
    before = state_hash(source.model)
    first = run(source.model, DOCUMENTS, config)
    for one, other in zip(first, run(source.model, DOCUMENTS, config), strict=True):
        assert (one == other).all()
    abandoned = adapted_nats(source.model, source.tokenizer, [b"abc" * 30] * 9, config=config)
    next(abandoned)
    del abandoned
    assert state_hash(source.model) == before
    assert not any(module._forward_hooks for module in source.model.modules())
    assert not any(p.requires_grad or p.grad is not None for p in source.model.parameters())


# --- no way to look ahead


@every_config
def test_changing_a_target_moves_nothing_up_to_it(source: FloatModel, config: AdaptConfig) -> None:
    def scored(documents: list[Any]) -> tuple[Nats, dict[int, Tensor]]:
        laws: dict[int, Tensor] = {}

        def observe(numbers: Any, log_probs: Tensor) -> None:
            laws.update(zip(numbers.tolist(), log_probs.clone(), strict=True))

        nats = run(source.model, documents, config, observe=observe, stride=5)
        return np.concatenate(nats), laws

    ends = np.cumsum([length + 1 for length in LENGTHS])
    before, laws = scored(DOCUMENTS)
    assert sorted(laws) == list(range(ends[-1]))
    moved = 0
    for document, place in ((1, 0), (1, 11), (1, 49), (4, 8), (6, 20)):
        changed = [ids.copy() for ids in DOCUMENTS]
        changed[document][place] ^= 1
        after, again = scored(changed)
        target = int(ends[document]) - LENGTHS[document] - 1 + place
        alone = config.kind == "lora"  # each document
        same = np.arange(ends[-1]) < target
        if alone:
            same |= np.arange(ends[-1]) >= ends[document]
        assert (before[same] == after[same]).all()
        assert torch.equal(laws[target], again[target])
        last = int(ends[document]) if alone else int(ends[-1])
        moved += int((before != after)[target + WINDOW + 25 : last].sum())
    assert moved  # by what was learned: no window reaches so far


def test_an_adapter_sees_scored_text_alone_and_of_a_document_not_its_last_chunk(
    source: FloatModel,
) -> None:
    for config in (LORA, ONLINE):
        scored: set[int] = set()
        taught: list[tuple[int, ...]] = []
        numbered = [np.arange(n + 1) for n in LENGTHS]
        ends = np.cumsum([0, *map(len, numbered)])
        # Each token says what its number is, so that a lesson tells what it is of.
        documents = [(ends[i] + np.arange(n)).astype(np.uint16) for i, n in enumerate(LENGTHS)]

        def look(
            lesson: Lesson, scored: set[int] = scored, taught: list[tuple[int, ...]] = taught
        ) -> None:
            seen = [token for token in lesson.tokens.tolist() if token != source.tokenizer.bos_id]
            assert set(seen) <= scored
            taught.append(tuple(lesson.tokens[lesson.first + 1 :].tolist()))

        run(
            source.model,
            documents,
            config,
            stride=3,
            observe=lambda numbers, _, scored=scored: scored.update(numbers.tolist()),
            make=lambda *_, look=look: Still(look),
        )
        found = [token for part in taught for token in part]
        closing = found.count(source.tokenizer.bos_id)
        rest = [token for token in found if token != source.tokenizer.bos_id]
        assert len(rest) == len(set(rest)) > 0
        if config is LORA:
            cut = [n // config.chunk * config.chunk for n in LENGTHS]
            expected = {int(ends[i]) + k for i, n in enumerate(cut) for k in range(n)}
            assert closing == 0 and set(rest) == expected
        else:
            every = np.concatenate(
                [np.append(ids, source.tokenizer.bos_id) for ids in documents]
            ).tolist()
            assert every[: len(found)] == found and len(every) - len(found) < config.chunk + 3


def test_what_an_adapter_does_to_its_lessons_changes_nothing(source: FloatModel) -> None:
    def scribble(lesson: Lesson) -> None:
        lesson.tokens[:] = 3

    for config in (LORA, ONLINE):
        honest = run(source.model, DOCUMENTS, config, make=lambda *_: Still())
        cheat = run(source.model, DOCUMENTS, config, make=lambda *_: Still(scribble))
        assert all((a == b).all() for a, b in zip(honest, cheat, strict=True))


def test_nats_are_written_once_in_order_and_text_is_shown_after() -> None:
    record = WriteOnce(np.array([5, 6, 7, 8]), 9, 100)
    assert record.question(0, 0, 2).tokens.tolist() == [9, 5, 6]
    record.fix(0, np.array([0.5, 0.25]))
    assert record.lesson(0, 1, 2).tokens.tolist() == [9, 5, 6]
    with pytest.raises(ScoreError, match="up to target 3 were asked for, and only 2 are scored"):
        record.lesson(0, 0, 3)
    with pytest.raises(ScoreError, match="target 1 would be scored again: 2 of this document"):
        record.question(0, 1, 3)
    for first, count in ((0, 2), (1, 1), (3, 1), (2, 3)):
        with pytest.raises(ScoreError, match="written once, in order"):
            record.fix(first, np.zeros(count))
    with pytest.raises(ScoreError, match="2 of 4 targets are scored"):
        _ = record.nats
    record.fix(2, np.array([1.0, 2.0]))
    record.nats[:] = 0
    assert record.nats.tolist() == [0.5, 0.25, 1.0, 2.0]


# --- in a score


@pytest.mark.parametrize("config", [LORA, ONLINE, RUNNING_LORA], ids=["lora", "sgd", "running"])
def test_an_adapted_score_holds_all_invariants(source: FloatModel, config: AdaptConfig) -> None:
    text = [b"def f(x):\n    return x + 1\n" * 8, b"", b"import os\n" * 30, b"x"]
    corpus = corpus_of(text)
    plain = score(source, corpus, Protocol(stride=8))
    found = score(source, corpus, Protocol(stride=8, adapt=config))
    assert {name for name, holds in found.invariants.items() if holds is not True} == {
        name for name, holds in plain.invariants.items() if holds is not True
    }
    assert found.invariants["causal"] is True
    assert found.bpb < plain.bpb and found.tokens == plain.tokens
    assert found.as_dict()["protocol"]["adapt"]["kind"] == config.kind
    assert found.nats == score(source, corpus, Protocol(stride=8, adapt=config)).nats


class Peeks(LanguageModel):
    """Gives the next token more, where it is among the inputs."""

    def hidden(self, tokens: Tensor, rows: Tensor | None = None) -> Tensor:
        hidden = super().hidden(tokens)
        later = self.head.embed(tokens[:, 1:], tokens[:, :-1])
        return hidden + torch.cat([later, torch.zeros_like(hidden[:, :1])], 1)


@pytest.mark.parametrize("config", [LORA, ONLINE], ids=["lora", "online"])
def test_a_model_that_looks_ahead_is_caught_while_it_adapts(config: AdaptConfig) -> None:
    corpus = corpus_of([b"def f(x):\n    return x + 1\n" * 8])
    with pytest.raises(ScoreError, match="is invalid: causal, .* failed"):
        score(source_of(Peeks), corpus, Protocol(stride=8, adapt=config))


ADAPTED = """
import sys
import torch
from tokgolf.artifact.load import load_artifact
from tokgolf.eval.adapt import AdaptConfig, adapted_nats
torch.set_num_threads(1)
artifact = load_artifact(sys.argv[1])
config = AdaptConfig(kind="lora", targets=["query", "bias"], chunk=4)
list(adapted_nats(artifact.model, artifact.tokenizer, [b"the cat sat on the mat"], config=config))
print(*(name for name in sys.modules if name.split(".")[0] == "tokgolf"))
"""


def test_an_artifact_pays_for_the_code_that_adapts_it(source: FloatModel, tmp_path: Path) -> None:
    artifact = encode_artifact(source, QuantConfig(method="nearest"))
    plain = score(artifact, CORPUS, Protocol(stride=8))
    found = score(artifact, CORPUS, Protocol(stride=8, adapt=LORA))
    assert plain.ledger is not None and found.ledger is not None
    assert found.ledger.full > plain.ledger.full == artifact.ledger.full
    path = tmp_path / "model.golf"
    path.write_bytes(artifact.data)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ADAPTED, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TOKGOLF_ENGINE": "tokenizers"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == set(found.ledger.modules)


def test_an_adapted_score_that_is_not_done_in_time_is_refused(source: FloatModel) -> None:
    with pytest.raises(ScoreError, match="is invalid: it was not done after .* its time budget"):
        score(source, CORPUS, Protocol(adapt=LORA, time_budget=1e-9))


@pytest.mark.parametrize("options", [{"context": "stream"}, {"precision": "bf16"}])
def test_what_cannot_be_adapted_is_refused(options: Any) -> None:
    with pytest.raises(ConfigError, match="adaptation is of documents"):
        Protocol(adapt=LORA, **options)


# --- its options


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("lora", {"rank": 0}, "rank is 0; an adapter a document is low-rank"),
        ("lora", {"rank": -1}, "neither can be below 0"),
        ("lora", {"weight_decay": -0.1}, "neither can be below 0"),
        ("lora", {"chunk": 0}, "chunk is 0; it must be greater than 0"),
        ("lora", {"lr": float("nan")}, "lr is nan"),
        ("lora", {"lrr": 1}, "unknown key 'lrr'; did you mean 'lr'"),
        ("lora", {"optimizer": "adamw"}, "did you mean 'adam'"),
        ("lroa", {}, "'lroa'; did you mean 'lora'"),
        ("none", {"lr": 0.1}, "lr is set, but there is no adaptation"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    kind: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        adapt_config(kind, values)


def test_options_go_over_a_kinds_defaults() -> None:
    assert adapt_config("none", {}) is None
    found = adapt_config("lora", {"lr": 1})
    assert found is not None and (found.lr, found.kind) == (1.0, "lora")
    default = adapt_config("online", {})
    assert default is not None and default.kind == "online"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(LORA, targets=["qeury"]), "'qeury', which no linear map .* known: .*mlp.up"),
        (replace(ONLINE, targets=["matrices"]), "'matrices'; this model has matrix, table, vector"),
        (replace(LORA, targets=[]), "targets is empty"),
        (replace(ONLINE, targets=[]), "targets is empty"),
    ],
)
def test_targets_that_a_model_has_not_are_refused(
    source: FloatModel, config: AdaptConfig, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_adapter(source.model, config, 64)


@pytest.mark.parametrize("stride", [-1, WINDOW + 1])
def test_a_stride_beyond_the_window_is_refused(source: FloatModel, stride: int) -> None:
    with pytest.raises(ScoreError, match=f"stride is {stride}; it must be 1 to the window of 16"):
        run(source.model, DOCUMENTS, LORA, stride=stride)
