"""Every engine gives the same results: submitit's local executor, a real Slurm, a real Ray."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sweep_support import BAD_SEED, dummy, write_texts
from test_sweep_run import Inline, numbers

from tokgolf.errors import ConfigError, Interrupted
from tokgolf.sweep.cells import Sweep
from tokgolf.sweep.driver import Progress
from tokgolf.sweep.engines import extra_module, open_engine
from tokgolf.sweep.engines.local import LocalEngine
from tokgolf.sweep.engines.slurm import SlurmEngine
from tokgolf.sweep.run import run_sweep
from tokgolf.sweep.spec import EngineConfig, SearchConfig, SweepSpec

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that start afresh find the checkout and the dummy cell."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{Path(__file__).parent}")


def sweep(folder: Path, engine: EngineConfig, **options: Any) -> Sweep:
    """Six dummy cells, by an engine."""
    folder.mkdir(parents=True, exist_ok=True)
    axes = {"seed": [1, 2, 3, BAD_SEED, 5, 6]}
    spec = SweepSpec(name="s", cap="1MB", axes=axes, engine=engine, **write_texts(folder))
    options = {"job": dummy, "sound": lambda run: True, **options}
    return run_sweep(spec, folder / "runs", device="cpu", **options)


def check(found: Sweep, folder: Path) -> None:
    assert numbers(found) == numbers(sweep(folder, EngineConfig(), engine_of=Inline))
    assert [cell.status for cell in found.cells].count("failed") == 1


def test_a_package_that_is_not_here_is_named_with_its_extra() -> None:
    with pytest.raises(ConfigError, match=r"pip install 'tokgolf\[slurm\]'"):
        extra_module("no_such_package_as_this", "slurm")


@pytest.mark.slow
def test_submitits_local_executor_gives_the_same(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    engine_of = partial(SlurmEngine, cluster="local")
    found = sweep(tmp_path / "a", EngineConfig(name="slurm", jobs=3), engine_of=engine_of)
    check(found, tmp_path / "b")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_real_ray_gives_the_same(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    found = sweep(tmp_path / "a", EngineConfig(name="ray", jobs=2), engine_of=open_engine)
    check(found, tmp_path / "b")


# --- Slurm


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Slurm of one node, this machine, with its daemons in a folder of ours."""
    missing = [n for n in ("munged", "mungekey", "slurmctld", "slurmd", "sbatch") if not found(n)]
    if missing:
        pytest.skip(f"no Slurm here: {', '.join(missing)} missing (Debian: slurm-wlm, munge)")
    if os.geteuid() != 0:
        pytest.skip("starting slurmd and slurmctld takes root here")
    pytest.importorskip("submitit")
    folder = tmp_path / "slurm"
    for name in ("state", "spool", "munge"):
        (folder / name).mkdir(parents=True)
    # Munge refuses folders that others can write to, and pytest's are below /tmp.
    munge = Path("/run") / f"tokgolf-test-munge-{os.getpid()}"
    munge.mkdir(mode=0o755)
    key, sock = munge / "key", munge / "socket"
    subprocess.run([found("mungekey"), "--create", f"--keyfile={key}"], check=True)
    ports = free_ports(2)
    host = socket.gethostname().partition(".")[0]
    conf = folder / "slurm.conf"
    lines = {
        "ClusterName": "test",
        "SlurmctldHost": f"{host}(127.0.0.1)",
        "SlurmUser": "root",
        "SlurmdUser": "root",
        "SlurmctldPort": ports[0],
        "SlurmdPort": ports[1],
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={sock}",
        "CredType": "cred/munge",
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool",
        "SlurmctldPidFile": folder / "ctld.pid",
        "SlurmdPidFile": folder / "d.pid",
        "SlurmctldLogFile": folder / "ctld.log",
        "SlurmdLogFile": folder / "d.log",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core",
        "ReturnToService": 2,
        "SlurmctldParameters": "enable_configless",
        "MpiDefault": "none",
        "JobAcctGatherType": "jobacct_gather/none",
    }
    text = "".join(f"{name}={value}\n" for name, value in lines.items())
    text += f"NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} State=UNKNOWN\n"
    text += f"PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP\n"
    conf.write_text(text)
    monkeypatch.setenv("SLURM_CONF", str(conf))
    started = []
    daemons = [
        [
            found("munged"), "--foreground", "--force", f"--key-file={key}", f"--socket={sock}",
            f"--pid-file={munge / 'pid'}", f"--log-file={munge / 'log'}",
            f"--seed-file={munge / 'seed'}",
        ],
        [found("slurmctld"), "-D", "-f", str(conf)],
        [found("slurmd"), "-D", "-f", str(conf), "-N", host],
    ]  # fmt: skip
    try:
        for command in daemons:
            started.append(
                subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
            time.sleep(1)
        until = time.monotonic() + 60
        state = ""
        while "idle" not in state and time.monotonic() < until:
            done = subprocess.run(
                ["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, timeout=60
            )
            state = done.stdout + done.stderr
            time.sleep(0.5)
        if "idle" not in state:
            logs = "".join(p.read_text()[-2000:] for p in folder.glob("*.log"))
            pytest.skip(f"a Slurm of one node does not start here: {state} {logs}")
        yield
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(20)
        shutil.rmtree(munge)


def found(program: str) -> str:
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or ""


@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
def test_a_real_slurm_gives_the_same(tmp_path: Path) -> None:
    config = EngineConfig(name="slurm", jobs=2, threads=1, minutes=5, slurm={"mem_gb": None})
    check(sweep(tmp_path / "a", config, engine_of=open_engine), tmp_path / "b")


# --- search


def searched(folder: Path, trials: int, jobs: int = 1, **options: Any) -> Sweep:
    """A search among 24 cells whose bpb is their hash."""
    folder.mkdir(exist_ok=True)
    axes = {"seed": [1, 2, 3, 4], "vocab_size": [300, 400, 500], "head": ["tied", "untied"]}
    spec = SweepSpec(
        name="s",
        cap="1MB",
        axes=axes,
        search=SearchConfig(trials=trials),
        engine=EngineConfig(jobs=jobs),
        **write_texts(folder),
    )
    return run_sweep(
        spec,
        folder / "runs",
        device="cpu",
        job=dummy,
        sound=lambda run: True,
        engine_of=Inline,
        **options,
    )


def test_a_search_runs_so_many_cells_and_is_seeded(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    first = searched(tmp_path / "a", 6)
    assert len(first.cells) == 6 and all(cell.status == "done" for cell in first.cells)
    assert numbers(first) == numbers(searched(tmp_path / "b", 6))
    assert len(searched(tmp_path / "c", 40, jobs=3).cells) == 24  # that is all there are


def test_a_search_that_is_interrupted_goes_on_to_as_many_cells(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    calls = 0

    def stop(progress: Progress) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        searched(tmp_path / "a", 7, jobs=2, watch=stop)
    result = searched(tmp_path / "a", 7, jobs=2)
    assert len(result.cells) == 7 and all(cell.status == "done" for cell in result.cells)
    assert [cell.attempts for cell in result.cells] == [1] * 7


def test_a_worker_has_gpus_of_those_that_the_sweep_was_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def given(gpus: str, jobs: int) -> list[str]:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
        engine = LocalEngine(EngineConfig(jobs=jobs, gpus=2), dummy, str(tmp_path))
        return [worker.environment["CUDA_VISIBLE_DEVICES"] for worker in engine.workers]

    assert given("4,5,6,7", 2) == ["4,5", "6,7"]
    assert given("", 2) == ["0,1", "2,3"]
    with pytest.raises(ConfigError, match="2 jobs of 2 GPUs need 4, and CUDA_VISIBLE_DEVICES=4,5"):
        given("4,5", 2)


@pytest.mark.parametrize(
    ("said", "expected"), [(None, "1000"), ("OMP_WAIT_POLICY", None), ("GOMP_SPINCOUNT", "x")]
)
def test_threads_of_a_worker_spin_shortly_unless_the_environment_says_how_they_wait(
    said: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    if said:
        monkeypatch.setenv(said, "x")
    [worker] = LocalEngine(EngineConfig(), dummy, str(tmp_path)).workers
    assert worker.environment.get("GOMP_SPINCOUNT") == expected
