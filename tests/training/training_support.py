"""Tiny runs for tests: one to train, a Ctrl-C on the way, and what makes two of them the same."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tokgolf.artifact.checkpoint import read_checkpoint
from tokgolf.config import TrunkConfig
from tokgolf.corpora import Corpus, Document
from tokgolf.tokenizers import Tokenizer, build_tokenizer
from tokgolf.training import RunConfig, StepReport, TrainResult, train
from tokgolf.training.distributed import ALONE, Ranks

TRUNK = TrunkConfig(layers=2, d_model=16, heads=2, kv_heads=1, mlp_hidden=24, sequence_length=16)
CONFIG = RunConfig(
    trunk=TRUNK,
    batch_tokens=96,
    micro_batch_tokens=48,
    steps=12,
    warmdown_steps=5,
    precision="fp32",
    compile="off",
)
TOKENIZER = build_tokenizer("byte", [], None)
DOCUMENTS = [Document(str(i), f"{i} processes read one batch. ".encode()) for i in range(30)]
CORPUS = Corpus(name="tiny", split=None, source=lambda: iter(DOCUMENTS))
MAY_DIFFER = {"seconds", "compile_seconds", "quantize_seconds", "config", "processes"}
"""Of a checkpoint's state: times, who trained, and a config that names another budget or folder."""


def nothing(value: Any) -> None:
    """Watch nothing, say nothing."""


def run_it(
    run: Path,
    config: RunConfig = CONFIG,
    *,
    tokenizer: Tokenizer = TOKENIZER,
    corpus: Corpus = CORPUS,
    held_out: Corpus | None = None,
    ranks: Ranks = ALONE,
    resume: bool = False,
    on_step: Callable[[StepReport], None] = nothing,
    say: Callable[[str], None] = nothing,
) -> TrainResult:
    """Train on the CPU, as one of `ranks`."""
    return train(
        config,
        tokenizer,
        corpus,
        run,
        held_out=held_out,
        device="cpu",
        resume=resume,
        on_step=on_step,
        say=say,
        ranks=ranks,
    )


def stops_at(step: int) -> Callable[[StepReport], None]:
    """Press Ctrl-C after a step."""

    def on_step(report: StepReport) -> None:
        if report.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    return on_step


def losses_of(run: Path) -> list[tuple[int, float, float]]:
    """What `metrics.jsonl` says, but for the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["learning_rate_scale"]) for line in lines]


def assert_same_checkpoint(one: Path, two: Path) -> None:
    """The latest checkpoints of two runs: the same names, the same bits, the same state."""
    (first, state), (second, other) = read_checkpoint(one), read_checkpoint(two)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert state.keys() == other.keys()
    assert {key for key in state if state[key] != other[key]} <= MAY_DIFFER


def assert_same_run(one: Path, two: Path) -> None:
    """Two runs with the same end that reported the same on their way."""
    assert_same_checkpoint(one, two)
    assert losses_of(one) == losses_of(two)
