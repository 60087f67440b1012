"""A run by the clock ends when its learning rate does, though finding errors takes of its time."""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from training_support import TOKENIZER, run_it

from tokgolf.artifact.checkpoint import read_checkpoint
from tokgolf.config import TrunkConfig
from tokgolf.errors import Interrupted
from tokgolf.training import RunConfig, StepReport
from tokgolf.training.distributed import Ranks, Value
from tokgolf.training.pace import Pace
from tokgolf.training.qat import QatConfig, Quantizer
from tokgolf.training.session import Session, Step

TRUNK = TrunkConfig(layers=1, d_model=16, heads=2, kv_heads=1, mlp_hidden=24, sequence_length=16)
CONFIG = RunConfig(
    trunk=TRUNK,
    qat=QatConfig(start=0.5, every=4, method="nearest"),
    batch_tokens=32,
    steps=10_000,
    minutes=1.0,
    warmdown_steps=0,
    warmdown_fraction=1.0,
    precision="fp32",
    compile="off",
)


# --- steps and their time


def walked(pace: Pace, seconds: float) -> float:
    """The steps that there is time for, taken one by one."""
    steps = 0
    while True:
        if steps >= pace.until_next and (steps - pace.until_next) % pace.every == 0:
            seconds -= pace.per_quantizing
            if pace.per_quantizing and seconds < pace.per_step:
                return steps
        if seconds < pace.per_step:
            return steps + max(seconds, 0.0) / pace.per_step
        seconds -= pace.per_step
        steps += 1


paces = st.builds(
    Pace,
    per_step=st.integers(1, 5),
    per_quantizing=st.integers(0, 9),
    every=st.integers(1, 6),
    until_next=st.integers(0, 5),
)


@given(paces, st.integers(0, 100))
def test_steps_in_a_time_are_those_that_were_taken_one_by_one(pace: Pace, seconds: int) -> None:
    assert pace.steps_in(seconds) == pytest.approx(walked(pace, seconds))


@given(paces, st.integers(0, 100))
def test_the_time_of_steps_has_room_for_these_steps(pace: Pace, steps: int) -> None:
    assert pace.steps_in(pace.seconds_for(steps)) == pytest.approx(steps)


def test_a_time_that_is_over_has_less_than_no_steps() -> None:
    for until_next in (0, 2):
        pace = Pace(per_step=2.0, per_quantizing=3.0, every=4, until_next=until_next)
        assert pace.steps_in(-1.0) == -0.5


# --- the run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes a second, finding errors 12 s with the damages and 2 s without."""
    now = 0.0
    gradients = Session.gradients
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def step(session: Session, tokens: Tensor, targets: Tensor) -> Tensor:
        nonlocal now
        now += 1.0
        return gradients(session, tokens, targets)

    def errors(quantizer: Quantizer, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        nonlocal now
        now += 2.0 if quantizer.steps else 12.0
        quantizer.steps = {"head.table": 1.0}
        return {"head.table": torch.zeros_like(values["head.table"])}

    monkeypatch.setattr(Session, "gradients", step)
    monkeypatch.setattr(Quantizer, "errors", errors)


@pytest.mark.usefixtures("clock")
def test_the_rate_falls_to_where_errors_found_anew_leave_the_end(tmp_path: Path) -> None:
    reports: list[StepReport] = []
    said: list[str] = []
    result = run_it(tmp_path, CONFIG, on_step=reports.append, say=said.append)
    # 30 steps, 12 s for the first errors, 4 steps: 46 s. Of 14 s, twice 2 s and 4 steps; then the
    # errors of 2 s, which would be found for no step.
    assert [report.step for report in reports] == [*range(1, 43)]
    assert reports[-1].seconds == result.seconds == 30 + 12 + 4 + 2 * 6
    assert result.compile_seconds == 12
    assert all(report.tokens_per_second == 32 for report in reports)  # in the time of steps
    assert said[-1] == (
        "ended     its 1 minutes had time for 42 of 10,000 steps, beside 12.0 s for compiling and "
        "what else is done once"
    )
    # Step 34 is the first before which errors are found anew, so 35 is the first that counts on it.
    scales = [report.learning_rate_scale for report in reports]
    assert scales[35:] == pytest.approx([1 - step / 42 for step in range(35, 42)])
    assert all(report.seconds + report.seconds_left == pytest.approx(58) for report in reports[34:])
    # What is paid once is no step's time: before, all is as if errors took none.
    assert scales[31:35] == pytest.approx([1 - step / 48 for step in range(31, 35)])
    assert scales[1:31] == pytest.approx([1 - step / 60 for step in range(1, 31)])


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("at", [32, 36])
def test_a_resumed_run_keeps_what_it_knows_of_its_times(at: int, tmp_path: Path) -> None:
    ranks = Ranks()

    def end(report: StepReport) -> None:
        if report.step == at:
            ranks.ending.set()

    with pytest.raises(Interrupted):
        run_it(tmp_path, CONFIG, ranks=ranks, on_step=end)
    state = read_checkpoint(tmp_path)[1]
    known = at == 36
    assert (state["compile_seconds"], state["quantize_seconds"]) == (12.0, 2.0 * known)
    reports: list[StepReport] = []
    run_it(tmp_path, CONFIG, resume=True, on_step=reports.append)
    assert reports[0].learning_rate_scale == pytest.approx(1 - at / (42 if known else 48))
    assert (reports[-1].step, reports[-1].seconds) == (42, 58.0)
    state = read_checkpoint(tmp_path)[1]
    assert state["compile_seconds"] == 12
    assert (state["quantize_seconds"], state["quantizings"]) == (4.0, 2)


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    ("each", "stops", "lines"),
    [
        # 20 times the mean are much, and 10 s where steps are quick.
        (1.0, {4: 18.5, 9: 61.6}, ["step 10 took 62.6 s, where 3.06 are usual"]),
        (0.1, {4: 9.8}, []),
        (0.1, {0: 30.0}, []),  # of the first nobody knows yet what is usual
        (0.1, {4: 10.0}, ["step 5 took 10.1 s, where 0.1 are usual"]),
    ],
)
def test_a_step_that_something_stopped_is_said_and_its_time_counts(
    each: float,
    stops: dict[int, float],
    lines: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    reports: list[StepReport] = []
    ahead, stopped = time.perf_counter, 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: each * ahead() + stopped)
    update = Session.update

    def stop(session: Session, step: Step) -> None:
        nonlocal stopped
        stopped += stops.get(step.number, 0.0)
        update(session, step)

    monkeypatch.setattr(Session, "update", stop)
    steps = 10_000 if each == 1 else 8
    config = dataclasses.replace(CONFIG, qat=QatConfig(), steps=steps)
    run_it(tmp_path, config, on_step=reports.append, say=said.append)
    if each == 1:
        assert reports[-1].seconds_left == 0
        assert said.pop().endswith("had time for 10 of 10,000 steps")
    assert [line.split(": ")[0] for line in said] == [f"clock     {line}" for line in lines]
    assert [report.seconds for report in reports] == pytest.approx(
        [
            each * report.step + sum(stops[number] for number in stops if number < report.step)
            for report in reports
        ]
    )


@pytest.mark.usefixtures("clock")
def test_checkpoints_are_so_many_minutes_of_training_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    save = Session.save

    def watched(session: Session, *given: Any, **more: Any) -> None:
        saved.append(session.step)
        save(session, *given, **more)

    monkeypatch.setattr(Session, "save", watched)
    for steps in (25, 40):
        config = dataclasses.replace(
            CONFIG, qat=QatConfig(), minutes=None, steps=steps, checkpoint_minutes=10 / 60
        )
        run_it(tmp_path, config, resume=steps == 40)
    assert saved == [11, 22, 25, 36, 40]


def test_waiting_for_a_rank_that_compiles_longer_is_no_steps_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0

    class Slow(Ranks):
        def all_gather_object(self, value: Value) -> list[Value]:
            nonlocal now
            now += 5.0
            return [value]

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    config = dataclasses.replace(CONFIG, compile="on")
    session = Session(config, TOKENIZER, np.ones(257, np.int64), "cpu", ranks=Slow())
    tokens = torch.zeros(2, 16, dtype=torch.long)
    session.compile(tokens, tokens)
    assert session.clock.compile_seconds == 5


def test_to_make_what_finds_errors_is_paid_once_in_every_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def made(quantizer: Quantizer, *given: Any) -> None:
        nonlocal now
        now += 5.0
        quantizer.steps = {}

    def errors(quantizer: Quantizer, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        nonlocal now
        now += 2.0
        return {"head.table": torch.zeros_like(values["head.table"])}

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr(Quantizer, "__init__", made)
    monkeypatch.setattr(Quantizer, "errors", errors)
    first, resumed = (Session(CONFIG, TOKENIZER, np.ones(257, np.int64), "cpu") for _ in range(2))
    first.find_rounding_errors(tmp_path)
    assert (first.clock.compile_seconds, first.clock.quantize_seconds) == (5 + 2, 0)
    first.find_rounding_errors(tmp_path)
    assert (first.clock.compile_seconds, first.clock.quantize_seconds) == (5 + 2, 2)
    resumed.rounding.errors = first.rounding.errors
    resumed.find_rounding_errors(tmp_path)
    assert (resumed.clock.compile_seconds, resumed.clock.quantize_seconds) == (5, 2)


def test_a_checkpoint_from_before_these_times_were_kept_can_be_resumed(tmp_path: Path) -> None:
    def session() -> Session:
        return Session(CONFIG, TOKENIZER, np.ones(257, np.int64), "cpu")

    first, second = session(), session()
    tokens = torch.zeros(2, 16, dtype=torch.long)
    first.update(first.start(1.0, tokens, tokens))
    first.step, first.clock.seconds, first.clock.compile_seconds = 10, 25.0, 5.0
    first.save(tmp_path, {"config": dataclasses.asdict(CONFIG)})
    tensors, state = read_checkpoint(tmp_path)
    del state["quantize_seconds"], state["quantizings"]
    second.load(tensors, state)
    assert second.remaining_steps() == pytest.approx(35 / 2)
