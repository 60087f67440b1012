"""The GPU suite in its small sizes: on the CPU, and on a GPU where there is one."""

import importlib.util
import itertools
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from tokgolf.heads import ADDONS, HEADS
from tokgolf.training.guards import STEPS_TO_MOVE
from tokgolf.training.session import Session, Step

PATH = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu_suite.py"
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


@pytest.fixture(scope="module")
def suite() -> Iterator[ModuleType]:
    path = list(sys.path)
    spec = importlib.util.spec_from_file_location("gpu_suite", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_suite"] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = path


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "group",
    [
        *("matmul", "train", "loss", "options"),
        *(pytest.param(group, marks=pytest.mark.slow) for group in ("agreement", "heads")),
    ],
)
def test_every_part_runs(
    suite: ModuleType, group: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that compile too, without the compiler, which would take minutes."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    setting = suite.Setting(device=torch.device(device), quick=True)
    results = dict(suite.run_group(group, setting, lambda part: True))
    assert results
    failed = {name: result for name, result in results.items() if not result["ok"]}
    assert not failed
    json.dumps(results, allow_nan=False)  # all of it can be written


def test_every_head_and_add_on_of_the_registries_is_checked(suite: ModuleType) -> None:
    setting = suite.Setting(device=torch.device("cpu"), quick=True)
    for group in ("agreement", "heads"):
        names = {name for name, _ in suite.GROUPS[group](setting)}
        assert {*HEADS, *(f"tied+{name}" for name in ADDONS)} <= names


def test_all_ways_of_the_loss_find_the_same_loss(suite: ModuleType) -> None:
    setting = suite.Setting(device=torch.device("cpu"), quick=True)
    found = {}
    for way in ("full", "ours", *suite.ways_of_torch()):
        torch.manual_seed(0)
        found[way] = suite.loss_case(setting, 128, way, 0.0, 1 << 14)["loss"]
    # The whole sum of torch's chunked one is in bf16.
    assert found == pytest.approx(dict.fromkeys(found, found["full"]), rel=1 / 256)
    assert found["ours"] == pytest.approx(found["full"], rel=1e-4)


def test_a_part_that_fails_leaves_one_line_and_the_rest_goes_on(
    suite: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bad() -> dict[str, Any]:
        raise RuntimeError("CUDA error: it broke\nand a long trace")

    parts = [("bad", bad), ("good", lambda: {"value": 1})]
    monkeypatch.setitem(suite.GROUPS, "matmul", lambda setting: iter(parts))
    setting = suite.Setting(device=torch.device("cpu"), quick=True)
    found = dict(suite.run_group("matmul", setting, lambda name: True))
    assert found["bad"]["error"] == "RuntimeError: CUDA error: it broke"
    assert not found["bad"]["ok"] and found["good"]["ok"] and found["good"]["value"] == 1
    setting = replace(setting, until=time.monotonic() - 1)
    late = dict(suite.run_group("matmul", setting, lambda name: True))
    assert [part["ok"] for part in late.values()] == [None, None]


def test_a_number_that_json_has_not_is_written_as_text_and_fails_the_part(
    suite: ModuleType,
) -> None:
    found = suite.run_part("bad", lambda: {"loss": math.nan, "ms": [1.0, math.inf], "mfu": 0.5})
    assert not found["ok"] and found["error"] == "not finite: loss, ms"
    assert (found["loss"], found["ms"], found["mfu"]) == ("nan", [1.0, "inf"], 0.5)
    json.dumps(found, allow_nan=False)


def test_an_error_says_what_it_came_from(suite: ModuleType) -> None:
    def lost() -> dict[str, Any]:
        try:
            raise RuntimeError("NCCL error: no such collective")
        except RuntimeError as error:
            raise ValueError("a rank has ended") from error

    found = suite.run_part("bad", lost)
    assert found["error"] == (
        "ValueError: a rank has ended (from RuntimeError: NCCL error: no such collective)"
    )


def test_an_option_that_never_begins_fails_its_part(suite: ModuleType) -> None:
    setting = suite.Setting(device=torch.device("cpu"), quick=True)
    found = suite.with_option(setting, {"short_length": 16, "short_until": 0.95})
    assert not found["ok"] and found["length"] == 16


class Pretended:
    """A CPU that passes for a GPU."""

    type = "cuda"
    index = 3

    def __str__(self) -> str:
        return "cpu"


@pytest.mark.parametrize("waits", [False, True])
def test_a_step_that_waits_for_the_device_fails_and_the_mode_is_put_back(
    suite: ModuleType, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mode: list[Any] = [1]
    watched: list[tuple[bool, bool]] = []
    update = Session.update

    def waiting(session: Session, step: Step) -> None:
        if mode[-1] == "error":
            watched.append((step.largest_weights is not None, bool(session.rounding.errors)))
            if waits:
                raise RuntimeError("called a synchronizing CUDA operation")
        update(session, step)

    # As on a GPU.
    monkeypatch.setattr(Session, "reads_late", lambda session: session.step > STEPS_TO_MOVE)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: mode[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", mode.append)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(suite, "synchronize", lambda device: None)
    monkeypatch.setattr(Session, "update", waiting)
    setting = suite.Setting(device=Pretended(), quick=True)
    found = suite.run_part("waits", lambda: suite.waits(setting))
    assert found["ok"] is not waits and mode == [1, "error", 1]
    assert watched == [(True, False), (True, True)][: 1 if waits else 2]


def test_a_resumed_run_must_be_the_same_on_a_cpu_and_but_for_rounding_on_a_gpu(
    suite: ModuleType,
) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [suite.may_differ(0.0, device) for device in (cpu, gpu)] == [0.0, 0.01]
    assert [suite.may_differ(0.1, device) for device in (cpu, gpu)] == [1.0, 1.0]


def test_what_compiles_comes_last_of_the_options(suite: ModuleType) -> None:
    setting = suite.Setting(device=torch.device("cpu"), quick=True)
    names = [name for name, _ in suite.options(setting)]
    assert names[-2:] == ["exchange", "short sequences, compiled"]


def test_a_report_names_the_versions_that_its_numbers_belong_to(
    suite: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91_900)
    about = suite.describe(suite.Setting(device=torch.device("cpu"), quick=True))
    assert about["cudnn"] == 91_900 and about["torch"] == torch.__version__
    json.dumps(about)


@pytest.mark.parametrize("failed", [[], ["loss"], ["train", "heads"]])
def test_groups_that_failed_are_named_and_end_the_suite_with_status_1(
    suite: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failed: list[str]
) -> None:
    def run_apart(group: str, s: Any, part: str, seconds: float) -> tuple[Any, Any]:
        left = None if group == "options" else True  # a part of it was skipped
        return {}, {"ok": False if group in failed else left, "error": None}

    monkeypatch.setattr(suite, "run_apart", run_apart)
    path = tmp_path / "x.json"
    result = CliRunner().invoke(suite.main, ["-o", str(path), "--device", "cpu"])
    assert [*json.loads(path.read_text())["groups"]] == [*suite.GROUPS]  # all of it is written
    last = result.output.splitlines()[-1]
    if failed:
        assert result.exit_code == 1
        assert last == f"Error: FAILED: {', '.join(failed)}; what did is in {path}"
    else:
        assert result.exit_code == 0 and last == "heads: ok "


def test_a_group_that_is_out_of_time_is_in_the_report(suite: ModuleType, tmp_path: Path) -> None:
    setting = suite.Setting(device=torch.device("cpu"), quick=True)
    about, entry = suite.run_apart("matmul", setting, "", 0.01)
    assert about == {} and not entry["ok"] and entry["error"].startswith("stopped after")


CHALLENGE = """
import os
import sys
from pathlib import Path

import numpy as np
import sentencepiece

environ = os.environ
names = "ITERATIONS VAL_LOSS_EVERY TRAIN_LOG_EVERY MAX_WALLCLOCK_SECONDS TRAIN_BATCH_TOKENS"
assert [environ[name] for name in names.split()] == ["30", "5", "0", "0", "1024"]
names = "TRAIN_SEQ_LEN VAL_BATCH_SIZE NUM_LAYERS MODEL_DIM NUM_HEADS NUM_KV_HEADS MLP_MULT"
assert [environ[name] for name in names.split()] == ["64", "1024", "2", "64", "2", "1", "2"]
assert environ["LOCAL_RANK"] == "3" and environ["VOCAB_SIZE"] == "1024"
model = sentencepiece.SentencePieceProcessor(model_file=environ["TOKENIZER_PATH"])
assert model.vocab_size() == 1024
folder = Path(environ["DATA_PATH"])
for split, tokens in (("train", 30 * 1024 + 1), ("val", 1024 + 1)):
    (shard,) = folder.glob(f"fineweb_{split}_*.bin")
    header = np.fromfile(shard, dtype="<i4", count=256)
    assert header[:3].tolist() == [20240520, 1, tokens]
    ids = np.fromfile(shard, dtype="<u2", offset=1024)
    assert len(ids) == tokens and 0 < ids.max() < 1024
assert folder.samefile(".")  # where it will write
print("warmup_step:10/10")
"""
"""Stands for the challenge's script: fails unless it finds what that one needs."""

TIMES = """
for step, ms in ((0, 0), (5, 100), (10, 150), (15, 200), (20, 900), (25, 950), (30, 1000)):
    scores = "val_loss:6.9315 val_bpb:4.1000"
    mean = ms / max(step, 1)
    print(f"step:{step}/30 {scores} train_time:{ms}ms step_avg:{mean:.2f}ms")
print("final_int8_zlib_roundtrip val_loss:6.9315 val_bpb:4.1000 eval_time:3ms")
"""
"""Ten ms a step, after a slow start and with a pause at step 20."""


def test_the_challenges_script_is_timed_beside_the_trainer(
    suite: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "train_gpt.py"
    script.write_text(CHALLENGE + TIMES)
    monkeypatch.setattr(suite, "trainer", lambda s: {"tokens_per_second": 204_800.0})
    setting = suite.Setting(device=Pretended(), quick=True, challenge=script)
    found = dict(suite.run_group("train", setting, lambda part: "trainer" in part))
    assert list(found) == ["tokgolf trainer", "challenge trainer"]
    theirs = found["challenge trainer"]
    assert theirs["ok"], theirs
    assert theirs["step_ms"] == pytest.approx(10, rel=0.01)
    assert theirs["tokens_per_second"] == pytest.approx(102_400, rel=0.01)
    assert theirs["tokgolf_ratio"] == pytest.approx(2, rel=0.01)
    assert theirs["sha256"] == sha256(script.read_bytes()).hexdigest()
    assert list(tmp_path.iterdir()) == [script]
    alone = dict(suite.run_group("train", setting, lambda part: part == "challenge trainer"))
    assert alone["challenge trainer"]["ok"] and "tokgolf_ratio" not in alone["challenge trainer"]
    without = suite.Setting(device=Pretended(), quick=True)
    assert "challenge trainer" not in {name for name, _ in suite.GROUPS["train"](without)}


@pytest.mark.parametrize(
    ("end", "error"),
    [
        ("raise RuntimeError('no such kernel')", "ended with status 1: RuntimeError: no such"),
        (TIMES + "sys.exit('no room')", "ended with status 1: no room"),
        (TIMES.replace("(30, 1000)", ""), "printed no step_avg of step 30: final_int8"),
    ],
)
def test_a_script_of_the_challenge_that_fails_is_a_failed_part(
    suite: ModuleType, tmp_path: Path, end: str, error: str
) -> None:
    script = tmp_path / "train_gpt.py"
    script.write_text(CHALLENGE + end)
    setting = suite.Setting(device=Pretended(), quick=True, challenge=script)
    found = suite.run_part("bad", lambda: suite.challenge_trainer(setting, script))
    assert not found["ok"] and found["error"].startswith(f"train_gpt.py {error}")
    assert "warmup_step:10/10" in found["log"] and "step_ms" not in found
    assert found["sha256"] == sha256(script.read_bytes()).hexdigest()


def test_a_script_of_the_challenge_that_hangs_is_stopped_when_its_group_must_end(
    suite: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    script = tmp_path / "train_gpt.py"
    script.write_text("import time\nprint('compiles')\ntime.sleep(60)")
    until = time.monotonic() + 3
    setting = suite.Setting(device=Pretended(), quick=True, challenge=script, until=until)
    found = suite.run_part("bad", lambda: suite.challenge_trainer(setting, script))
    assert not found["ok"] and "train_gpt.py was stopped after" in found["error"]
    assert found["log"] == ["compiles"]
    assert 0 <= time.monotonic() - until < 30


def test_a_group_is_told_of_the_challenges_script_and_a_cpu_does_not_run_it(
    suite: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "train_gpt.py"
    script.write_text("raise SystemExit('it runs')")
    run = subprocess.run

    def here(command: list[str], **options: Any) -> Any:
        if str(PATH) not in command:
            return run(command, **options)
        result = CliRunner().invoke(suite.main, command[2:])
        return subprocess.CompletedProcess(command, result.exit_code)

    monkeypatch.setattr(subprocess, "run", here)
    path = tmp_path / "x.json"
    arguments = ["-o", str(path), "--device", "cpu", "--quick", "--seconds", "100000"]
    arguments += ["--only", "train", "--part", "challenge", "--challenge", str(script)]
    result = CliRunner().invoke(suite.main, arguments)
    assert result.exit_code == 0, result.output
    parts = json.loads(path.read_text())["groups"]["train"]["parts"]
    assert list(parts) == ["challenge trainer"]
    assert parts["challenge trainer"]["skipped"] == "the challenge's script needs a CUDA device"


@pytest.mark.parametrize("challenged", [False, True])
def test_what_importing_took_is_part_of_the_time_limit(
    suite: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, challenged: bool
) -> None:
    """What `train` has on top for the challenge's script is taken from all: the sum stays."""
    given: list[float] = []

    def run_apart(group: str, s: Any, part: str, seconds: float) -> tuple[Any, Any]:
        given.append(seconds)
        return {}, {"ok": True, "error": None}

    monkeypatch.setattr(suite, "BEGAN", time.monotonic() - 30)
    monkeypatch.setattr(suite, "run_apart", run_apart)
    path = tmp_path / "x.json"
    (tmp_path / "train_gpt.py").touch()
    arguments = ["-o", str(path), "--device", "cpu"]
    arguments += ["--challenge", str(tmp_path / "train_gpt.py")] if challenged else []
    result = CliRunner().invoke(suite.main, arguments)
    assert result.exit_code == 0, result.output
    limits = dict(suite.SECONDS)
    if challenged:
        limits["train"] += suite.CHALLENGE_SECONDS
    whole = sum(suite.SECONDS.values())
    share = whole / sum(limits.values())
    assert whole <= 520 and list(suite.SECONDS) == list(suite.GROUPS)
    dues = [share * due for due in itertools.accumulate(limits.values())]
    assert given == pytest.approx([due - 30 for due in dues], abs=10)
    assert json.loads(path.read_text())["seconds"] == pytest.approx(30, abs=10)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line(suite: ModuleType, tmp_path: Path) -> None:
    result = CliRunner().invoke(suite.main, ["-o", str(tmp_path / "x.json")])
    assert result.exit_code == 1 and "--device cpu" in result.output
