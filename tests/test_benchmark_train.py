"""The benchmark of training: what its rounds are, and a peer that ends."""

import json
import math
import sys
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

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
    error: str | None = None

    def __init__(self, *arguments: Any) -> None:
        """It needs none of them."""

    def step(self) -> float:
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


class Full(Peer):
    """Stands for a peer in fp32 that does not fit."""

    def __init__(self, config: Any, tokenizer: Any, device: str, bf16: bool) -> None:
        self.bf16 = bf16

    def step(self) -> float:
        if self.bf16:
            return 4.0
        self.error = "CUDA out of memory."
        return math.nan


def test_a_peer_whose_memory_does_not_suffice_is_a_line_and_the_others_have_numbers(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone: list[Any] = []

    def apart(function: Any, *arguments: Any) -> float | None:
        alone.append(arguments[3:])
        return None if alone[-1] == ("tokgolf",) else 5.0  # a peak that cannot be measured

    monkeypatch.setattr(script, "PeerProcess", Full)
    monkeypatch.setattr(script, "apart", apart)
    monkeypatch.setattr(script, "VOCAB", 260)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # it is set: undone after the test
    path = tmp_path / "train.json"
    options = ["--size", "tiny", "--rounds", "2", "--device", "cpu", "-o", str(path)]
    done = CliRunner().invoke(script.main, options)
    assert done.exit_code == 0, done.output
    assert "plain, fp32            CUDA out of memory.\n" in done.output
    assert [line.split("of it  ")[1] for line in done.output.splitlines() if "of it" in line] == [
        "unknown",
        "5 MB",
    ]
    (result,) = json.loads(path.read_text())["results"]
    assert result["error"] == {"plain, fp32": "CUDA out of memory."}
    for name in ("ratio", "tokens_per_second", "best_tokens_per_second", "peak_mb"):
        assert result[name]["plain, fp32"] is None
        assert result[name]["plain, bf16 autocast"] > 0
    assert alone == [(), ("tokgolf",), ("plain, bf16 autocast",)]


class Told:
    """The other end of a peer's pipe: it is told to do so many steps."""

    def __init__(self, steps: int) -> None:
        self.orders = [True] * steps + [False]
        self.sent: list[Any] = []

    def recv(self) -> bool:
        return self.orders.pop(0)

    def send(self, value: Any) -> None:
        self.sent.append(value)


class Counting:
    """Stands for a loop whose third step finds no memory."""

    def __init__(self, *arguments: Any) -> None:
        self.model = nn.Linear(2, 1)
        self.steps = 0

    def step(self) -> float:
        self.steps += 1
        if self.steps == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried 9 GiB.\nand advice")
        return float(self.steps)


@pytest.mark.parametrize(("device", "timed"), [("cpu", [1.0, 2.0]), ("cuda", [2.0])])
def test_a_peer_gives_its_memory_back_after_a_step_and_ends_where_it_does_not_suffice(
    loaded: ModuleType, device: str, timed: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    told, emptied = Told(3), list[int]()
    monkeypatch.setattr(loaded, "Peer", Counting)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(len(told.sent)))
    loaded.serve(told, CONFIG, TOKENIZER, device, False)
    assert told.sent == [3, *timed, "CUDA out of memory. Tried 9 GiB."]
    assert emptied == ([1] if device == "cuda" else [])  # before it says that it is done
