"""The benchmark of training: what its rounds are, and a peer that ends."""

import sys
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tokgolf.config import TrunkConfig
from tokgolf.tokenizers import build_tokenizer
from tokgolf.training import RunConfig
from tokgolf.training.session import Session, Step

PATH = Path(__file__).resolve().parents[1] / "benchmarks" / "train.py"
TRUNK = TrunkConfig(layers=1, d_model=16, heads=2, kv_heads=1, mlp_hidden=16, sequence_length=16)
CONFIG = RunConfig(
    trunk=TRUNK, batch_tokens=64, steps=9, precision="fp32", compile="off", checkpoint_minutes=1e-9
)
TOKENIZER = build_tokenizer("byte", [], None)


@pytest.fixture(scope="module")
def loaded() -> Iterator[ModuleType]:
    path = list(sys.path)
    spec = util.spec_from_file_location("train", PATH)
    assert spec is not None and spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = path


class Peer:
    """Stands for a process whose step takes four seconds."""

    parameters = 7

    def __init__(self, *arguments: Any) -> None:
        self.steps = 0

    def step(self) -> float:
        self.steps += 1
        return 4.0

    def end(self) -> None:
        """Nothing to end."""


@pytest.fixture
def script(loaded: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Where every step of the trainer takes two seconds, and nothing else any."""
    clock, start = [0.0], Session.start

    def started(session: Session, *arguments: Any) -> Step:
        clock[0] += 2
        return start(session, *arguments)

    monkeypatch.setattr(Session, "start", started)
    monkeypatch.setattr(loaded, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(loaded, "config_of", lambda size: CONFIG)
    monkeypatch.setattr(loaded, "PeerProcess", Peer)
    monkeypatch.setattr(loaded, "sources", lambda: [b"So many words, and so few steps. " * 30])
    return loaded


@pytest.mark.parametrize("late", [False, True])
def test_every_round_that_counts_has_one_step(
    script: ModuleType, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    monkeypatch.setattr(Session, "reads_late", lambda session: late and session.step > 3)
    monkeypatch.setattr(Session, "save", lambda session, *a, **k: saved.append(session.step))
    result = script.measure("tiny", TOKENIZER, "cpu", 4)
    assert result["tokens_per_second"] == result["best_tokens_per_second"]
    assert result["tokens_per_second"]["tokgolf"] == CONFIG.batch_tokens / 2
    assert result["ratio"] == {"plain, bf16 autocast": 2.0, "plain, fp32": 2.0}
    assert saved == [script.WARM + 4 + 1]  # after the last round that counts
