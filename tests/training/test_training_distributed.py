"""Several processes train one model: what they compute, who decides, and how they end."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # once here, and not in every process that is forked
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed import TCPStore

from tokgolf.artifact.checkpoint import read_checkpoint
from tokgolf.config import TrunkConfig
from tokgolf.corpora import Corpus, Document
from tokgolf.errors import ConfigError, OtherRankError, TokgolfError
from tokgolf.tokenizers import build_tokenizer
from tokgolf.training import RunConfig, StepReport, run_config, train
from tokgolf.training import distributed as module
from tokgolf.training.averages import AverageConfig
from tokgolf.training.distributed import Ranks, Shares, in_order, joined, own_device, owners

TRUNK = TrunkConfig(layers=2, d_model=16, heads=2, kv_heads=1, mlp_hidden=24, sequence_length=16)
CONFIG = RunConfig(
    trunk=TRUNK,
    batch_tokens=96,
    micro_batch_tokens=48,
    steps=20,
    warmdown_steps=8,
    precision="fp32",
    compile="off",
)
DOCUMENTS = [Document(str(i), f"{i} processes read one batch. ".encode()) for i in range(30)]
TOKENIZER = build_tokenizer("byte", [], None)
SPAWNED = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the processes are forked")


def corpus() -> Corpus:
    return Corpus(name="tiny", split=None, source=lambda: iter(DOCUMENTS))


def nothing(value: Any) -> None:
    """Watch nothing."""


def run_it(
    run: Path,
    config: RunConfig = CONFIG,
    *,
    resume: bool = False,
    on_step: Callable[[StepReport], None] = nothing,
    say: Callable[[str], None] = nothing,
) -> None:
    with joined("cpu") as ranks:
        train(
            config,
            TOKENIZER,
            corpus(),
            run,
            device=ranks.device,
            resume=resume,
            on_step=on_step,
            say=say,
            ranks=ranks,
        )


def child(work: Callable[[], None], rank: int, size: int, port: int, out: Path) -> None:
    """One rank: what it raises goes into a file."""
    torch.set_num_threads(1)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    values = (rank, rank, size, "127.0.0.1", port)
    os.environ.update(dict(zip(names, map(str, values), strict=True)))
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    ended = "ended"
    try:
        work()
    except OtherRankError:
        ended = "silent"
    except (TokgolfError, OSError) as error:
        ended = str(error)
    (out / f"rank{rank}").write_text(ended)
    os._exit(0)  # the parent's threads and handlers are not this process's to end


def spawned(work: Callable[[], None], size: int, out: Path) -> list[str]:
    """Run `work` in processes that know of each other; how each ended."""
    # As torchrun does, which holds it so that it outlives every rank.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    out.mkdir(parents=True, exist_ok=True)
    fork = get_context("fork")
    children = [
        fork.Process(target=child, args=(work, r, size, store.port, out)) for r in range(size)
    ]
    for process in children:
        process.start()
    try:
        for process in children:
            process.join(120)
            assert process.exitcode is not None, "a rank hangs"
    finally:
        for process in children:
            process.kill()
    paths = [out / f"rank{rank}" for rank in range(size)]
    return [path.read_text() if path.exists() else "killed" for path in paths]


def losses_of(run: Path) -> list[tuple[int, float, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["learning_rate_scale"]) for line in lines]


def assert_same_run(one: Path, two: Path) -> None:
    (first, state), (second, other) = read_checkpoint(one), read_checkpoint(two)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (state["step"], state["loss"]) == (other["step"], other["loss"])
    assert losses_of(one) == losses_of(two)


# --- what they compute

CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "two": (2, {}),
    "three": (3, {"micro_batch_tokens": 32}),
    "all options": (
        2,
        {
            "average": AverageConfig(ema=0.9),
            "head": {"name": "untied", "untie_at": 0.4},
            "short_length": 8,
            "short_until": 0.5,
            "trunk": dataclasses.replace(TRUNK, document_mask=True, smear=True),
        },
    ),
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    path = tmp_path_factory.mktemp("runs") / "alone"
    run_it(path)
    return path


@pytest.mark.parametrize("case", CASES)
def test_ranks_of_one_micro_batch_compute_to_the_bit_what_one_process_does(
    case: str, tmp_path: Path
) -> None:
    size, changes = CASES[case]
    config = dataclasses.replace(CONFIG, **changes)
    run_it(tmp_path / "one", config)
    ended = spawned(partial(run_it, tmp_path / "many", config), size, tmp_path / "out")
    assert ended == ["ended"] * size
    assert_same_run(tmp_path / "one", tmp_path / "many")


def test_other_micro_batches_change_the_losses_by_rounding_alone(
    alone: Path, tmp_path: Path
) -> None:
    # Muon rounds to bf16: a sum that differs in its last bit may differ by 2^-9 after that.
    config = dataclasses.replace(CONFIG, micro_batch_tokens=96)
    assert spawned(partial(run_it, tmp_path / "run", config), 2, tmp_path) == ["ended"] * 2
    pairs = [*zip(losses_of(alone), losses_of(tmp_path / "run"), strict=True)]
    for (step, loss, _), (_, other, _) in pairs:
        assert other == pytest.approx(loss, rel=1e-6 if step <= 3 else 1e-3)


def stopped(run: Path, at: int, *, resume: bool = False) -> None:
    """A run that a signal ends after a step, as Ctrl-C does."""

    def on_step(report: StepReport) -> None:
        if report.step == at:
            os.kill(os.getpid(), signal.SIGINT)

    run_it(run, on_step=on_step, resume=resume)


def test_a_run_goes_on_with_other_numbers_of_processes(alone: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path
    ended = spawned(partial(stopped, run, 5), 2, out)
    assert sum("interrupted after step 5" in line for line in ended) == 1
    assert ended.count("silent") == 1
    with pytest.raises(TokgolfError, match="interrupted after step 11"):
        stopped(run, 11, resume=True)
    assert spawned(partial(run_it, run, resume=True), 2, out) == ["ended"] * 2
    assert_same_run(run, alone)


def test_the_lead_alone_speaks_and_decides(tmp_path: Path) -> None:
    """The other rank's clock and signals count for nothing, and it says nothing."""
    config = dataclasses.replace(CONFIG, minutes=0.01, steps=10**6, checkpoint_minutes=1e-9)

    def work() -> None:
        heard = tmp_path / f"heard{os.environ['RANK']}"
        run_it(tmp_path / "run", config, on_step=lambda report: heard.write_text("heard"))

    assert spawned(work, 2, tmp_path) == ["ended"] * 2
    assert (tmp_path / "heard0").exists()
    assert not (tmp_path / "heard1").exists()
    assert 0 < read_checkpoint(tmp_path / "run")[1]["step"] < 10**6


# --- how they fail


def test_a_batch_that_cannot_be_shared_is_refused_with_both_numbers(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, batch_tokens=48, micro_batch_tokens=48)
    ended = spawned(partial(run_it, tmp_path / "run", config), 2, tmp_path)
    assert sum("are 3 sequences of 16, which 2 processes cannot" in line for line in ended) == 1
    assert ended.count("silent") == 1
    assert not (tmp_path / "run").exists()


def test_a_guard_stops_all_ranks_and_one_says_why(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, max_gradient=1e-9)
    ended = spawned(partial(run_it, tmp_path / "run", config), 2, tmp_path)
    assert sum("gradient's norm is above max_gradient" in line for line in ended) == 1
    assert ended.count("silent") == 1


def test_what_the_lead_finds_before_the_first_step_ends_the_others(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where the folder should be")
    ended = spawned(partial(run_it, tmp_path / "run"), 2, tmp_path)
    assert ended[1] == "silent"
    assert "run" in ended[0] and ended[0] != "silent"


@pytest.mark.parametrize("dies", [0, 1])
def test_a_rank_that_is_killed_is_named_by_the_other(dies: int, tmp_path: Path) -> None:
    def work() -> None:
        def die(report: StepReport) -> None:
            if report.step == 5:
                process = os.getpid() if dies == 0 else int((tmp_path / "process").read_text())
                os.kill(process, signal.SIGKILL)

        if os.environ["RANK"] == "1":
            (tmp_path / "process").write_text(str(os.getpid()))
        config = dataclasses.replace(CONFIG, checkpoint_minutes=1e-9, steps=10**6)
        run_it(tmp_path / "run", config, on_step=die)

    ended = spawned(work, 2, tmp_path)
    assert ended[dies] == "killed"
    assert "of 2 has ended or does not answer" in ended[1 - dies]
    assert read_checkpoint(tmp_path / "run")[1]["step"] >= 4


# --- the parts


def test_what_is_said_to_all_arrives_by_rank(tmp_path: Path) -> None:
    def work() -> None:
        with joined("cpu") as ranks:
            found = [
                ranks.every(["said by", ranks.rank]),
                ranks.led(lambda: ranks.rank),
                ranks.told([float(ranks.rank), 7.0]),
                ranks.total(torch.tensor([1.0, ranks.rank])).tolist(),
                [*map(sorted, [ranks.merged({f"t{ranks.rank}": torch.ones(2, 3)})])],
            ]
        (tmp_path / f"found{ranks.rank}").write_text(json.dumps(found))

    assert spawned(work, 3, tmp_path) == ["ended"] * 3
    found = [json.loads((tmp_path / f"found{rank}").read_text()) for rank in range(3)]
    said = [[["said by", rank] for rank in range(3)], 0, [0.0, 7.0], [3.0, 3.0]]
    assert found[0] == [*said, [["t0", "t1", "t2"]]]
    assert found[1] == [*said, [["t1"]]]


def test_sums_are_in_the_order_of_the_ranks() -> None:
    parts = torch.tensor([[1e8], [1.0], [-1e8], [1.0]])
    assert in_order(parts.clone()).tolist() == [((1e8 + 1.0) - 1e8) + 1.0 - 1.0]


sizes = st.dictionaries(st.text(max_size=3), st.integers(1, 1000), min_size=1, max_size=30)


@given(sizes=sizes, ranks=st.integers(1, 8))
def test_every_tensor_has_one_owner_and_no_rank_much_more_than_another(
    sizes: dict[str, int], ranks: int
) -> None:
    if len(sizes) < ranks:
        with pytest.raises(ConfigError, match=f"{ranks} processes for a model of {len(sizes)}"):
            owners(sizes, ranks)
        return
    found = owners(sizes, ranks)
    assert [*found] == [*sizes]
    load = [sum(sizes[n] for n in sizes if found[n] == rank) for rank in range(ranks)]
    assert max(load) - min(load) <= max(sizes.values())


def test_eight_ranks_share_the_baseline_almost_evenly() -> None:
    from tokgolf.heads import head_config
    from tokgolf.model import build_model, head_shape

    config = run_config("baseline", {})
    with torch.device("meta"):
        model = build_model(
            config.trunk, head_config(config.head), head_shape(TOKENIZER, config.trunk)
        )
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    found = owners(sizes, 8)
    load = [sum(sizes[n] for n in sizes if found[n] == rank) for rank in range(8)]
    assert max(load) < 1.05 * sum(load) / 8


def test_shares_of_a_process_alone_touch_nothing() -> None:
    p = nn.Parameter(torch.ones(3))
    shares = Shares({"p": p}, Ranks())
    shares.reduce()
    shares.gather()
    assert shares.own == {"p": p}
    assert p.grad is None


def test_each_process_has_its_own_gpu_or_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    here = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert own_device("auto", here) == "cuda:1"
    assert own_device("cpu", here) == "cpu"
    with pytest.raises(ConfigError, match="would put all 4 processes on one GPU"):
        own_device("cuda:0", here)
    with pytest.raises(ConfigError, match="has 2 CUDA devices and 4 processes"):
        own_device("cuda", {**here, "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "4"})


def test_a_process_that_does_not_come_back_ends_after_a_sigterm(tmp_path: Path) -> None:
    def work() -> None:
        module.GRACE = 0.1
        with joined("cpu"):
            (tmp_path / f"process{os.environ['RANK']}").write_text("")
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)  # as a rank that waits for its GPU

    began = time.monotonic()
    assert spawned(work, 2, tmp_path) == ["killed"] * 2
    assert time.monotonic() - began < 30


# --- torchrun itself


@pytest.fixture
def command(tmp_path: Path) -> Iterator[list[str]]:
    (tmp_path / "text.txt").write_bytes(b"a text that two processes read together. " * 50)
    (tmp_path / "byte.tok").write_bytes(TOKENIZER.asset())
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    yield [
        *torchrun,
        *("--max-restarts", "1", "-m", "tokgolf", "train"),
        *("--tokenizer", str(tmp_path / "byte.tok"), "--corpus", str(tmp_path / "text.txt")),
        *("--set", "trunk.layers=1", "--set", "trunk.d_model=16", "--set", "trunk.heads=2"),
        *("--set", "trunk.kv_heads=1", "--set", "trunk.mlp_hidden=16", "--device", "cpu"),
        *("--set", "trunk.sequence_length=16", "--set", "batch_tokens=64"),
        *("--set", "micro_batch_tokens=32", "--set", "checkpoint_minutes=1e-9"),
        *("--set", "compile=off", "--resume", "--json", "-o", str(tmp_path / "run")),
    ]


def environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k not in SPAWNED} | {"OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_torchrun_restarts_a_run_whose_rank_was_killed(command: list[str], tmp_path: Path) -> None:
    steps = 300
    with subprocess.Popen(
        [*command, "--steps", str(steps)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as agent:
        until = time.monotonic() + 60
        while not (tmp_path / "run" / "checkpoints" / "latest.json").exists():
            assert time.monotonic() < until
            time.sleep(0.05)
        children = subprocess.run(
            ["pgrep", "-P", str(agent.pid)], capture_output=True, text=True, check=True
        )
        victim = next(
            int(process)
            for process in children.stdout.split()
            if b"\0RANK=1\0" in Path(f"/proc/{process}/environ").read_bytes()
        )
        os.kill(victim, signal.SIGKILL)
        out, err = agent.communicate(timeout=120)
    assert agent.returncode == 0, err
    assert "error: rank 1 of 2 has ended or does not answer" in err
    assert json.loads(out)["steps"] == steps  # one object: the lead alone prints
    run_it_again = [*command[command.index("tokgolf") :]]
    one = [sys.executable, "-m", *run_it_again, "--steps", str(steps)]
    one[one.index(str(tmp_path / "run"))] = str(tmp_path / "one")
    one.remove("--resume")
    subprocess.run(one, check=True, env=environment(), capture_output=True)
    assert_same_run(tmp_path / "one", tmp_path / "run")
