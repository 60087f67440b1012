"""Processes killed at any moment, and disks that are full: no torn file under a final name.

The child process writes again and again, so that most kills fall into a write.
"""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from reliability_readers import float_model, save_run

from tokgolf.artifact.checkpoint import exported, load_run
from tokgolf.artifact.load import load_artifact
from tokgolf.files import write_bytes

HERE = Path(__file__).parent
CHILD = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
import torch
torch.set_num_threads(1)
from reliability_readers import float_model
from tokgolf.artifact.checkpoint import record_export, write_checkpoint
from tokgolf.artifact.export import encode_artifact
from tokgolf.artifact.load import Artifact
from tokgolf.files import write_bytes
from tokgolf.quantize.rows import QuantConfig
from tokgolf.artifact.checkpoint import load_run

run = Path(sys.argv[3])
source = load_run(run)
tensors = {f"model.{n}": t for n, t in source.model.state_dict().items()}
artifacts = [
    encode_artifact(float_model("tied", seed=n), QuantConfig(method="nearest")) for n in (1, 2)
]
step = source.state["step"]
print("ready", flush=True)
while True:
    step += 1
    write_checkpoint(run, {n: t + step for n, t in tensors.items()}, {**source.state, "step": step})
    artifact = artifacts[step % 2]
    write_bytes(run / "model.golf", artifact.data)
    record_export(run, artifact.sha256)
"""
COMMAND = "import sys; sys.path.insert(0, sys.argv.pop(1)); from tokgolf.cli import main; main()"
ROOT = str(HERE.parents[1])


def kill_while_writing(run: Path, rng: random.Random, times: int) -> None:
    """Kill a child that writes checkpoints and artifacts, and look at what stands there."""
    for _ in range(times):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, ROOT, str(HERE), str(run)], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        time.sleep(rng.random() * 0.2)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        load_run(run)
        if (run / "model.golf").exists():
            load_artifact(run / "model.golf")
        exported(run)
        write_bytes(run / "x", b"")
        write_bytes(run / "checkpoints" / "x", b"")
        (run / "checkpoints" / "x").unlink()
        assert not list(run.rglob("*tmp"))


def test_a_process_killed_while_it_writes_leaves_whole_files(tmp_path: Path) -> None:
    save_run(tmp_path / "run", float_model("tied"))
    kill_while_writing(tmp_path / "run", random.Random(0), times=3)


@pytest.mark.slow
def test_two_hundred_processes_killed_while_they_write_leave_whole_files(tmp_path: Path) -> None:
    save_run(tmp_path / "run", float_model("tied"))
    kill_while_writing(tmp_path / "run", random.Random(1), times=200)


def forked_export(run: Path, delay: float) -> bool:
    """Export in a child that is killed after `delay` seconds; whether it had ended before."""
    child = os.fork()
    if child == 0:
        try:
            from tokgolf.artifact.export import export_run
            from tokgolf.quantize.rows import QuantConfig

            export_run(run, run / "model.golf", cap=10**6, config=QuantConfig(method="nearest"))
        finally:
            os._exit(0)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return not os.WIFSIGNALED(status)


@pytest.mark.parametrize("times", [12, pytest.param(300, marks=pytest.mark.slow)])
def test_an_export_killed_at_any_moment_is_the_old_one_or_the_new_one(
    times: int, tmp_path: Path
) -> None:
    run, rng = tmp_path / "run", random.Random(2)
    save_run(run, float_model("tied", seed=0))
    longest = 0.02
    for _ in range(times):
        ended = forked_export(run, rng.random() * longest)
        longest = longest / 1.5 if ended else min(longest * 1.5, 5)
        if (run / "model.golf").exists():
            assert load_artifact(run / "model.golf").sha256
        exported(run)


def on_a_full_disk(disk: Path, run: Path) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [sys.executable, "-c", COMMAND, ROOT, "export", str(run), "--method", "nearest",
         "-o", str(disk / "model.golf")],
        capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_an_export_to_a_full_file_system_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    disk, run = tmp_path / "disk", tmp_path / "run"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting is not permitted here; the tests with RLIMIT_FSIZE stand in")
    try:
        save_run(run, float_model("untied"))
        with suppress(OSError), open(disk / "filler", "wb", buffering=0) as file:
            while file.write(bytes(512)):
                pass
        done = on_a_full_disk(disk, run)
        assert done.returncode == 1 and done.stdout == b""
        *progress, error = done.stderr.splitlines()
        assert error.startswith(b"error: the disk is full")
        assert all(line.startswith(b"pass ") for line in progress)
        assert [path.name for path in disk.iterdir()] == ["filler"]
        (disk / "filler").unlink()
        assert on_a_full_disk(disk, run).returncode == 0
        assert load_artifact(disk / "model.golf").sha256 in exported(run)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
