"""The training loop: it learns, it repeats itself bit by bit, and it stops where it must."""

import dataclasses
import json
import math
import os
import re
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from heap_support import GLIBC, PAGES, new_pages
from torch import Tensor
from training_support import assert_same_checkpoint, nothing, stops_at
from training_support import run_it as train_it

from tokgolf.artifact.checkpoint import load_run, read_checkpoint, write_checkpoint
from tokgolf.config import TrunkConfig, read_toml, to_dict
from tokgolf.corpora import Corpus, Document, document_digests
from tokgolf.errors import ConfigError, CorpusError, TrainingError
from tokgolf.heads import ADDONS, HEADS, head_config, head_to_dict
from tokgolf.model import LanguageModel
from tokgolf.tokenizers import Tokenizer, build_tokenizer
from tokgolf.training import RunConfig, StepReport, TrainResult, run_config, session, train
from tokgolf.training.session import Session, Step

TRUNK = TrunkConfig(layers=2, d_model=16, heads=2, kv_heads=1, mlp_hidden=24, sequence_length=16)
CONFIG = RunConfig(
    trunk=TRUNK, batch_tokens=64, steps=6, warmdown_steps=3, precision="fp32", compile="off"
)
HEAD_OPTIONS: dict[str, dict[str, Any]] = {
    **{name: {"name": name} for name in HEADS},
    "factorized": {"name": "factorized", "rank": 8},
    "vq": {"name": "vq"},
    "every add-on": {
        "name": "tied",
        "add": {**{name: {} for name in ADDONS}, "bigram-hash": {"buckets": 97, "dim": 8}},
    },
    "untied halfway": {"name": "untied", "untie_at": 0.5},
}

every_head = pytest.mark.parametrize("head", HEAD_OPTIONS)


def corpus_of(texts: list[str], name: str = "tiny") -> Corpus:
    documents = [Document(f"{name}{i}", text.encode()) for i, text in enumerate(texts)]
    return Corpus(name=name, split=None, source=lambda: iter(documents))


CORPUS = corpus_of([f"document {i} says that tiny models learn tiny things. " for i in range(30)])
OTHER = corpus_of(["another corpus altogether, with words of its own. " * 9], "other")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return build_tokenizer("bpe", (document.data for document in CORPUS), 270)


@pytest.fixture(scope="module")
def run_it(tokenizer: Tokenizer) -> Callable[..., TrainResult]:
    """Train into a directory with `CONFIG`, changed as asked."""

    def call(
        run: Path,
        *,
        corpus: Corpus = CORPUS,
        with_tokenizer: Tokenizer = tokenizer,
        held_out: Corpus | None = None,
        resume: bool = False,
        on_step: Callable[[StepReport], None] = nothing,
        say: Callable[[str], None] = nothing,
        **changes: Any,
    ) -> TrainResult:
        return train_it(
            run,
            dataclasses.replace(CONFIG, **changes),
            tokenizer=with_tokenizer,
            corpus=corpus,
            held_out=held_out,
            resume=resume,
            on_step=on_step,
            say=say,
        )

    return call


Run = Callable[..., TrainResult]


@pytest.fixture(scope="module")
def finished(run_it: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainResult]:
    """A run of six steps that nothing disturbed."""
    path = tmp_path_factory.mktemp("runs") / "finished"
    return path, run_it(path)


def tensors_of(run: Path) -> dict[str, Tensor]:
    return read_checkpoint(run)[0]


def metrics_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# --- it learns


@every_head
def test_the_loss_goes_down_and_every_tensor_moves(head: str, run_it: Run, tmp_path: Path) -> None:
    losses: list[float] = []
    run_it(
        tmp_path / "run",
        head=HEAD_OPTIONS[head],
        steps=40,
        warmdown_steps=10,
        on_step=lambda report: losses.append(report.loss),
    )
    known = "unigram-bias" in HEAD_OPTIONS[head].get("add", {})
    assert known or losses[0] == pytest.approx(math.log(270), rel=0.02)
    assert sum(losses[-5:]) / 5 < losses[0] - 1
    model = load_run(tmp_path / "run").model
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_micro_batches_give_the_gradient_of_the_whole_batch(run_it: Run, tmp_path: Path) -> None:
    run_it(tmp_path / "parts", micro_batch_tokens=16, steps=1, warmdown_steps=0)
    run_it(tmp_path / "whole", steps=1, warmdown_steps=0)
    parts, whole = tensors_of(tmp_path / "parts"), tensors_of(tmp_path / "whole")
    for name in whole:
        if name.startswith("muon."):  # after one step, momentum is the gradient
            torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-7)


def test_a_run_in_another_thread_leaves_signals_alone(run_it: Run, tmp_path: Path) -> None:
    """Where Python handles none."""
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(run_it, tmp_path, steps=1).result().steps == 1


# --- what it leaves behind


def test_the_result_says_how_the_run_ended(finished: tuple[Path, TrainResult]) -> None:
    path, result = finished
    run = load_run(path)
    assert result.run == path
    assert (result.steps, result.tokens) == (6, 6 * 64)
    assert result.params == sum(p.numel() for p in run.model.parameters())
    assert result.seconds > 0
    assert run.state["finished"] is True
    assert (run.state["step"], run.state["loss"]) == (6, result.loss)


def test_metrics_are_one_json_object_a_line(run_it: Run, tmp_path: Path) -> None:
    reports: list[StepReport] = []
    run_it(tmp_path, steps=25, on_step=reports.append)
    assert [report.step for report in reports] == list(range(1, 26))
    lines = metrics_of(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 10, 20]
    assert lines == [vars(reports[line["step"] - 1]) for line in lines]
    assert all(line["tokens"] == 64 * line["step"] for line in lines)
    assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)


def test_the_config_file_says_everything_and_is_a_recipe(
    finished: tuple[Path, TrainResult],
) -> None:
    path, _ = finished
    text = (path / "config.toml").read_text()
    summary = CORPUS.summary()
    assert text.startswith(f"# tiny, {summary.bytes:,} bytes, SHA-256 {summary.sha256}\n")
    head = head_to_dict(head_config(CONFIG.head))
    assert head == {"name": "tied", "softcap": 30.0, "input_rank": 0}
    assert read_toml(path / "config.toml") == {**to_dict(CONFIG), "head": head}
    assert run_config(str(path / "config.toml"), {}) == dataclasses.replace(CONFIG, head=head)


def test_a_run_resumes_with_its_own_config_file_as_recipe(
    finished: tuple[Path, TrainResult], tokenizer: Tokenizer
) -> None:
    path = str(finished[0])  # a string is as good as a Path
    config = run_config(f"{path}/config.toml", {})
    result = train(config, tokenizer, CORPUS, path, device="cpu", resume=True)
    assert (result.steps, result.run) == (6, finished[0])


def test_the_digests_of_the_training_documents_are_kept(
    finished: tuple[Path, TrainResult],
) -> None:
    kept = np.load(finished[0] / "train_documents.npy", allow_pickle=False)
    assert np.array_equal(kept, document_digests(CORPUS))


def test_the_tokenizer_is_kept(finished: tuple[Path, TrainResult], tokenizer: Tokenizer) -> None:
    assert (finished[0] / "tokenizer.tok").read_bytes() == tokenizer.asset()


# --- it repeats itself


def test_the_same_run_twice_has_the_same_weights(
    finished: tuple[Path, TrainResult], run_it: Run, tmp_path: Path
) -> None:
    run_it(tmp_path / "again")
    assert_same_checkpoint(finished[0], tmp_path / "again")


def test_sums_are_in_one_order_while_a_run_trains(run_it: Run, tmp_path: Path) -> None:
    # Compiled and with two threads, two runs differed from the second step on.
    seen: list[bool] = []
    run_it(tmp_path, on_step=lambda _: seen.append(torch.are_deterministic_algorithms_enabled()))
    assert seen and all(seen) and not torch.are_deterministic_algorithms_enabled()


@pytest.mark.skipif(not GLIBC, reason="another C library")
def test_freed_memory_is_kept_while_a_run_trains(run_it: Run, tmp_path: Path) -> None:
    # New pages were up to a third of a small model's step.
    seen: list[int] = []
    run_it(tmp_path, on_step=lambda _: seen.append(new_pages()))
    assert seen and max(seen) < PAGES / 20


def test_another_seed_has_other_weights(
    finished: tuple[Path, TrainResult], run_it: Run, tmp_path: Path
) -> None:
    run_it(tmp_path / "other", seed=1)
    one, two = tensors_of(finished[0]), tensors_of(tmp_path / "other")
    assert not torch.equal(one["model.head.table"], two["model.head.table"])


def test_the_seed_decides_what_weights_begin_as(tokenizer: Tokenizer) -> None:
    tables = []
    for seed in (1, 1, 2):
        config = dataclasses.replace(CONFIG, seed=seed)
        begun = Session(config, tokenizer, np.ones(270, np.int64), "cpu").model.state_dict()
        tables.append(begun["head.table"])
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])


@pytest.mark.parametrize("at", [1, 3, 5])
@pytest.mark.parametrize("head", ["tied", "every add-on", "untied halfway"])
def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one_bit_by_bit(
    at: int, head: str, run_it: Run, tmp_path: Path
) -> None:
    options = HEAD_OPTIONS[head]
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(TrainingError, match=f"interrupted after step {at}; .* --resume"):
        run_it(tmp_path / "cut", head=options, on_step=stops_at(at))
    assert signal.getsignal(signal.SIGINT) is handler
    state = load_run(tmp_path / "cut").state
    assert (state["step"], state["finished"]) == (at, False)
    seen: list[int] = []
    run_it(
        tmp_path / "cut", head=options, resume=True, on_step=lambda report: seen.append(report.step)
    )
    assert seen == list(range(at + 1, 7))
    run_it(tmp_path / "whole", head=options)
    assert_same_checkpoint(tmp_path / "cut", tmp_path / "whole")


def test_untying_copies_the_optimizer_s_state_and_both_tables_then_go_their_own_way(
    run_it: Run, tmp_path: Path
) -> None:
    head = {"name": "untied", "untie_at": 0.5}
    states: dict[int, dict[str, Tensor]] = {}

    def on_step(report: StepReport) -> None:
        states[report.step] = tensors_of(tmp_path) if report.step > 1 else {}

    # A checkpoint after every step, which a step later is the latest.
    run_it(tmp_path, head=head, steps=6, checkpoint_minutes=1e-9, on_step=on_step)
    assert "model.head.output" not in states[4]  # three steps of six
    assert "adam.exp_avg.head.output" in states[5]
    last = tensors_of(tmp_path)
    assert not torch.equal(last["model.head.output"], last["model.head.input"])
    steps = {name: float(last[f"adam.step.head.{name}"]) for name in ("input", "output")}
    assert steps == {"input": 6.0, "output": 6.0}  # not 3: the state went along
    assert load_run(tmp_path).model.head.state_dict().keys() == {"input", "output"}


@pytest.mark.parametrize(("steps", "untie_at"), [(4, 0.5), (6, 0.01), (5, 0.8)])
def test_untying_may_come_before_and_after_the_first_check(
    steps: int, untie_at: float, run_it: Run, tmp_path: Path
) -> None:
    run_it(tmp_path, head={"name": "untied", "untie_at": untie_at}, steps=steps)
    last = tensors_of(tmp_path)
    assert not torch.equal(last["model.head.output"], last["model.head.input"])


def test_a_resumed_run_repeats_no_metrics(run_it: Run, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="interrupted"):
        run_it(tmp_path, steps=25, on_step=stops_at(12))
    with open(tmp_path / "metrics.jsonl", "ab") as file:  # as a killed run, or damage, may leave it
        odd = b"\xff", b"[" * 10**5, b'{"loss": 1.0}', b'{"step": "2"}', b'{"step": 2, "lo'
        file.writelines(line + b"\n" for line in (b'{"step": 20, "loss": 0.0}', *odd))
    run_it(tmp_path, steps=25, resume=True)
    lines = metrics_of(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 10, 20]
    assert lines[-1]["loss"] > 0


def test_a_checkpoint_on_the_way_holds_the_step_it_was_made_at(run_it: Run, tmp_path: Path) -> None:
    steps: list[int] = []

    def look(report: StepReport) -> None:
        if report.step > 1:
            steps.append(read_checkpoint(tmp_path)[1]["step"])

    run_it(tmp_path, steps=4, checkpoint_minutes=1e-9, on_step=look)
    assert steps == [1, 2, 3]
    assert len(list((tmp_path / "checkpoints").glob("*.safetensors"))) == 2  # and the one before


def test_a_finished_run_goes_on_with_a_larger_budget(run_it: Run, tmp_path: Path) -> None:
    run_it(tmp_path, steps=3)
    result = run_it(tmp_path, steps=5, resume=True)
    assert result.steps == 5
    assert result.loss == result.loss  # a number
    again = run_it(tmp_path, steps=5, resume=True)
    assert (again.steps, again.loss) == (5, result.loss)


# --- what it refuses


def test_a_directory_with_a_run_is_refused_without_resume(
    finished: tuple[Path, TrainResult], run_it: Run
) -> None:
    before = (finished[0] / "checkpoints" / "latest.json").read_bytes()
    with pytest.raises(TrainingError, match="already holds a run; use --resume"):
        run_it(finished[0])
    assert (finished[0] / "checkpoints" / "latest.json").read_bytes() == before


def test_a_command_that_resumes_can_be_given_from_the_start(
    finished: tuple[Path, TrainResult], run_it: Run, tmp_path: Path
) -> None:
    said: list[str] = []
    run_it(tmp_path / "none", resume=True, say=said.append)
    assert said == [f"resume    {tmp_path / 'none'} holds no checkpoint yet: the run starts"]
    assert_same_checkpoint(tmp_path / "none", finished[0])


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_has_no_checkpoint_yet_says_what_is_another_in_its_config(
    resume: bool, run_it: Run, tmp_path: Path
) -> None:
    def killed(report: StepReport) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_it(tmp_path, on_step=killed)
    said: list[str] = []
    run_it(tmp_path, resume=resume, seed=7, say=said.append)
    assert said[-1] == (
        f"run       {tmp_path} was begun with seed {CONFIG.seed} (now 7), and starts anew"
    )


def test_a_damaged_config_of_a_run_without_a_checkpoint_is_written_anew(
    run_it: Run, tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_bytes(b"steps = \xff")
    run_it(tmp_path, steps=1)
    assert read_toml(tmp_path / "config.toml")["steps"] == 1


@pytest.mark.parametrize("signals", [1, 2])
def test_a_ctrl_c_at_the_end_waits_for_the_last_checkpoint(
    signals: int, run_it: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = write_checkpoint

    def interrupted(*given: Any) -> Path:
        first = signal.getsignal(signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        while signal.getsignal(signal.SIGINT) is first:  # another thread may have got it
            time.sleep(0.001)
        if signals == 2:
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):
                time.sleep(0.001)
        return write(*given)

    monkeypatch.setattr(session, "write_checkpoint", interrupted)
    if signals == 2:  # whoever insists is let go
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in some shells
        try:
            with pytest.raises(KeyboardInterrupt):
                run_it(tmp_path)
        finally:
            signal.signal(signal.SIGINT, before)
        return
    with pytest.raises(TrainingError, match="interrupted after step 6, the last; the checkpoint"):
        run_it(tmp_path)
    assert read_checkpoint(tmp_path)[1]["finished"]


def test_a_batch_that_reads_the_corpus_more_than_once_is_said(run_it: Run, tmp_path: Path) -> None:
    said: list[str] = []
    run_it(tmp_path, batch_tokens=1 << 13, steps=1, warmdown_steps=0, say=said.append)
    assert len(said) == 1
    assert re.match(
        r"tokens    a batch of 8,192 reads the corpus, of \d+ tokens, more than", said[0]
    )


def test_a_run_that_ended_before_its_first_checkpoint_starts_when_it_is_resumed(
    run_it: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(report: StepReport) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_it(tmp_path / "run", on_step=killed)
    assert not (tmp_path / "run" / "checkpoints").exists()
    said: list[str] = []
    run_it(tmp_path / "run", resume=True, say=said.append)
    assert said == [f"resume    {tmp_path / 'run'} holds no checkpoint yet: the run starts"]
    run_it(tmp_path / "whole")
    assert_same_checkpoint(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 3}, r"started with seed \d+ \(now 3\); resume with"),
        ({"trunk": dataclasses.replace(TRUNK, layers=1)}, r"with trunk\.layers 2 \(now 1\); "),
        ({"head": {"name": "untied"}}, r"head\.name tied \(now untied\)"),
        (
            {"batch_tokens": 32, "warmdown_steps": 2},
            r"with batch_tokens 64 \(now 32\), warmdown_steps \d+ \(now 2\); ",
        ),
    ],
)
def test_resuming_with_another_config_is_refused_and_names_what_changed(
    changes: dict[str, Any], named: str, finished: tuple[Path, TrainResult], run_it: Run
) -> None:
    config = (finished[0] / "config.toml").read_bytes()
    with pytest.raises(TrainingError, match=named):
        run_it(finished[0], resume=True, **changes)
    assert (finished[0] / "config.toml").read_bytes() == config


def test_resuming_with_another_tokenizer_is_refused(
    finished: tuple[Path, TrainResult], run_it: Run, tokenizer: Tokenizer
) -> None:
    other = build_tokenizer("byte", [], None)
    with pytest.raises(TrainingError, match=f"{tokenizer.fingerprint[:16]}, this one is"):
        run_it(finished[0], with_tokenizer=other, resume=True)
    assert (finished[0] / "tokenizer.tok").read_bytes() == tokenizer.asset()


def test_resuming_on_another_corpus_is_refused(
    finished: tuple[Path, TrainResult], run_it: Run
) -> None:
    with pytest.raises(TrainingError, match=r"was trained on tiny .*, this is other"):
        run_it(finished[0], corpus=OTHER, resume=True)


def test_a_held_out_document_that_is_trained_on_is_refused(run_it: Run, tmp_path: Path) -> None:
    shared = corpus_of(["a held-out document", next(iter(CORPUS)).data.decode()], "held")
    with pytest.raises(CorpusError, match=r"1 of 2 documents of held were trained on.*held1"):
        run_it(tmp_path / "run", held_out=shared)
    assert not (tmp_path / "run").exists()
    assert run_it(tmp_path / "run", held_out=OTHER, steps=1).steps == 1


def test_too_little_text_is_refused(run_it: Run, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="fewer than two sequences of 16"):
        run_it(tmp_path / "run", corpus=corpus_of(["short"]))


def test_a_device_that_is_not_there_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no device 'gpu'"):
        train(CONFIG, tokenizer, CORPUS, tmp_path / "run", device="gpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint_before(
    value: float, run_it: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = LanguageModel.loss
    calls = 0

    def broken(model: LanguageModel, tokens: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return loss(model, tokens, targets) * (value if calls == 5 else 1.0)

    monkeypatch.setattr(LanguageModel, "loss", broken)
    match = (
        rf"the loss is {value} at step 5;.* the checkpoint of step 4 has the same weights .*"
        r"optimizer\.lr_"
    )
    for resume in (False, True):
        with pytest.raises(TrainingError, match=match):
            run_it(tmp_path, checkpoint_minutes=1e-9, resume=resume)
        calls = 4
    assert load_run(tmp_path).state["step"] == 4
    assert all(bool(tensor.isfinite().all()) for tensor in tensors_of(tmp_path).values())
    monkeypatch.setattr(LanguageModel, "loss", loss)
    assert run_it(tmp_path, checkpoint_minutes=1e-9, resume=True).steps == 6


@pytest.mark.parametrize(("part", "lines"), [(1.019, 0), (1.021, 1)])
def test_a_loss_more_than_two_percent_above_a_guess_at_the_end_is_said(
    part: float, lines: int, run_it: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge(session: Session, step: Step) -> None:
        session.loss = part * math.log(270)

    monkeypatch.setattr(Session, "judge", judge)
    said: list[str] = []
    run_it(tmp_path, steps=1, warmdown_steps=0, say=said.append)
    expected = f"diverged  the loss is {part * math.log(270):.4f} nats at the end, where a guess "
    assert [line.startswith(expected) for line in said] == [True] * lines


# --- budget and schedule


def test_a_run_stops_when_its_minutes_are_over(
    run_it: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def clock() -> float:
        return now

    monkeypatch.setattr(time, "perf_counter", clock)
    gradients = Session.gradients

    def slow(session: Session, tokens: Tensor, targets: Tensor) -> Tensor:
        nonlocal now
        now += 1.0
        return gradients(session, tokens, targets)

    monkeypatch.setattr(Session, "gradients", slow)
    scales: list[float] = []
    said: list[str] = []
    result = run_it(
        tmp_path,
        say=said.append,
        steps=10_000,
        minutes=20 / 60,
        warmdown_steps=0,
        warmdown_fraction=0.5,
        on_step=lambda report: scales.append(report.learning_rate_scale),
    )
    assert result.steps == 20
    assert said[-1].endswith("0.333333 minutes had time for 20 of 10,000 steps")
    assert result.seconds == pytest.approx(20.0)
    # Step 0 cannot know yet how long steps take; from then on the clock tells.
    assert scales == pytest.approx([1.0] * 11 + [1 - i / 10 for i in range(1, 10)])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"warmdown_steps": 0}, [1.0] * 8),
        ({"warmdown_steps": 4}, [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]),
        ({"warmdown_steps": 16}, [0.5, 7 / 16, 6 / 16, 5 / 16, 4 / 16, 3 / 16, 2 / 16, 1 / 16]),
        (
            {"warmdown_steps": 0, "warmdown_fraction": 0.5},
            [1, 1, 1, 1, 1, 0.75, 0.5, 0.25],
        ),
        (
            {"warmdown_steps": 0, "warmdown_fraction": 1.0},
            [1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8],
        ),
    ],
)
def test_rates_fall_linearly_to_zero_over_the_warmdown(
    changes: dict[str, Any], expected: list[float], run_it: Run, tmp_path: Path
) -> None:
    scales: list[float] = []
    run_it(
        tmp_path,
        steps=8,
        on_step=lambda report: scales.append(report.learning_rate_scale),
        **changes,
    )
    assert scales == pytest.approx(expected)


def test_the_report_says_how_much_is_left(run_it: Run, tmp_path: Path) -> None:
    reports: list[StepReport] = []
    run_it(tmp_path, on_step=reports.append)
    for report in reports:
        assert report.seconds_left == pytest.approx(
            (6 - report.step) * report.seconds / report.step
        )
        assert report.tokens_per_second == pytest.approx(report.tokens / report.seconds)
