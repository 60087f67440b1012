"""Several processes train one model: what they compute, who decides, and how they end."""

import itertools
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ranks_support import SECONDS, cases, in_doubles, same_runs
from torch import nn
from torch.distributed import HashStore, TCPStore  # type: ignore[attr-defined]
from training_support import CONFIG, TOKENIZER, assert_same_run, losses_of, run_it

from tokgolf.artifact.checkpoint import read_checkpoint
from tokgolf.errors import ConfigError, OtherRankError, TrainingError
from tokgolf.heads import HeadShape, head_config
from tokgolf.model import build_model
from tokgolf.signals import heard
from tokgolf.training import RunConfig, distributed, run_config
from tokgolf.training.distributed import ALONE, Ranks, in_order, joined, own_device, this_machine
from tokgolf.training.optimizers import Adam, OptimizerConfig, check_coverage
from tokgolf.training.session import Session
from tokgolf.training.shares import LANES, Part, Shares, divided

SPAWNED = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}
Ends = dict[str, list[tuple[str, Any]]]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="torch has no gloo there")


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in SPAWNED}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)} | more


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of several processes are."""
    return tmp_path_factory.mktemp("many")


@pytest.fixture(scope="module")
def ones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same runs by one process."""
    return tmp_path_factory.mktemp("ones")


@pytest.fixture(scope="module")
def ends(folder: Path, ones: Path) -> Ends:
    """How every rank of every case ended and what it found; the runs of one process beside it."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    script = str(Path(__file__).with_name("ranks_support.py"))
    processes: list[subprocess.Popen[bytes]] = []
    for number in range(3):
        more = {"RANK_OF_ALL": str(number), "STORE_PORT": str(store.port)}
        with (folder / f"{number}.txt").open("w") as file:
            processes.append(
                subprocess.Popen(
                    [sys.executable, script, str(folder)], env=environment(**more), stderr=file
                )
            )
    try:
        for name, (_, config) in same_runs(ones / "two").items():
            run_it(ones / name, config)
        until = time.monotonic() + SECONDS
        while any([process.poll() is None for process in processes]):  # all: a dead one is reaped
            if time.monotonic() > until:
                break
            time.sleep(0.02)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    found: Ends = {}
    for name, (ranks, _) in cases(folder).items():
        paths = [folder / name / f"{rank}.json" for rank in range(len(ranks))]
        found[name] = [
            tuple(json.loads(path.read_text())) if path.exists() else ("killed", None)
            for path in paths
        ]
    return found


def lines_of(ends: Ends, case: str) -> list[str]:
    return [line for line, _ in ends[case]]


# --- what they compute


@pytest.mark.parametrize("case", same_runs(Path()))
def test_ranks_of_one_micro_batch_compute_to_the_bit_what_one_process_does(
    case: str, ends: Ends, folder: Path, ones: Path
) -> None:
    assert {*lines_of(ends, case)} == {"ended"}
    assert_same_run(ones / case, folder / case / "run")


def test_other_micro_batches_change_the_losses_by_rounding_alone(
    ends: Ends, folder: Path, ones: Path
) -> None:
    # Muon rounds to bf16: a sum that differs in its last bit may differ by 2^-9 after that.
    assert lines_of(ends, "split") == ["ended"] * 2
    pairs = [*zip(losses_of(ones / "two"), losses_of(folder / "split" / "run"), strict=True)]
    for (step, loss, _), (_, other, _) in pairs:
        assert other == pytest.approx(loss, rel=1e-6 if step <= 3 else 1e-3)


def test_in_fp64_other_micro_batches_compute_the_same_losses(ends: Ends, tmp_path: Path) -> None:
    """The order of the sums is all that differs: their last bits are too small for bf16 here."""
    expected, expected_norms = in_doubles(96, ALONE, tmp_path)
    assert lines_of(ends, "doubles") == ["ended"] * 2
    for _, (losses, norms) in ends["doubles"]:
        assert losses == pytest.approx(expected, rel=0, abs=1e-12)
        assert norms == pytest.approx(expected_norms, rel=1e-9)
    assert expected[-1] < expected[0] - 0.1


def test_one_process_reports_the_norms_of_its_gradients_to_the_bit() -> None:
    session = Session(CONFIG, TOKENIZER, np.ones(257, np.int64), "cpu")
    rows = torch.arange(6 * 17).view(6, 17)
    found = session.gradients(rows[:, :-1], rows[:, 1:])
    assert torch.equal(found[1:], session.optimizers.gradient_norms().double())


def assert_one_says(line: str, ends: Ends, case: str) -> None:
    """One rank ends with that line and the other in silence."""
    found = sorted(lines_of(ends, case), key=lambda end: end == "silent")
    assert line in found[0]
    assert found[1] == "silent"


def test_a_run_goes_on_with_other_numbers_of_processes(
    ends: Ends, folder: Path, ones: Path
) -> None:
    assert_one_says("interrupted after step 4", ends, "stopped")
    assert [in_a_group for _, in_a_group in ends["stopped"]] == [False, False]  # NCCL would warn
    assert "interrupted after step 8" in lines_of(ends, "alone")[0]
    assert lines_of(ends, "again") == ["ended"] * 2
    assert_same_run(folder / "stopped" / "run", ones / "two")


def test_what_goes_on_with_another_order_of_sums_says_so(ends: Ends) -> None:
    assert ends["split on"][0][1] == [
        "resume    processes 2 (now 1), tokens at a time 16 (now 16): gradients are summed in "
        "another order, so that losses differ by rounding"
    ]
    assert ends["two on"][0][1] == []


@pytest.mark.parametrize("case", ["told", "hung up"])
def test_a_signal_to_any_rank_ends_the_run_with_a_checkpoint_and_one_line(
    case: str, ends: Ends, folder: Path
) -> None:
    assert_one_says("interrupted after step", ends, case)
    step = read_checkpoint(folder / case / "run")[1]["step"]
    assert 3 <= step < 10**6


def test_the_lead_alone_speaks_and_decides(ends: Ends, folder: Path) -> None:
    """The other rank's clock and signals count for nothing, and it says nothing."""
    assert lines_of(ends, "leads") == ["ended"] * 2
    last = read_checkpoint(folder / "leads" / "run")[1]["step"]
    assert 0 < last < 10**6
    assert [heard for _, heard in ends["leads"]] == [[*range(1, last + 1)], []]


# --- how they fail


def test_a_batch_that_cannot_be_shared_is_refused_with_both_numbers(
    ends: Ends, folder: Path
) -> None:
    assert_one_says("are 3 sequences of 16, which 2 processes cannot", ends, "unshared")
    assert_one_says("2 processes has 3 sequences, no multiple of the 2 of a", ends, "uneven")
    assert not [*folder.glob("un*/run")]


def test_a_guard_stops_all_ranks_and_one_says_why(ends: Ends) -> None:
    assert_one_says("gradient's norm is above max_gradient", ends, "guarded")


def test_what_the_lead_finds_before_the_first_step_ends_the_others(ends: Ends) -> None:
    first, second = lines_of(ends, "in the way")
    assert "run" in first
    assert second == "silent"


def test_a_rank_that_is_killed_is_named_by_the_other(ends: Ends, folder: Path) -> None:
    first, second = lines_of(ends, "dies")
    assert first == "killed"
    assert "rank 0 of 2 has ended or does not answer" in second
    assert second.endswith("which goes on from the latest checkpoint, if there is one")
    assert read_checkpoint(folder / "dies" / "run")[1]["step"] >= 4


def test_a_rank_that_waits_for_a_lead_that_was_killed_names_it() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    ranks = Ranks(rank=1, size=2, store=HashStore())
    ranks.where = [(this_machine(), ended.pid), (this_machine(), os.getpid())]
    with pytest.raises(TrainingError, match="rank 0 of 2 has ended"), ranks.lead_first():
        pass
    with pytest.raises(OtherRankError):  # that was said
        ranks.all_gather_object(None)


def two_that_run() -> Ranks:
    """Of two ranks the lead, where no process has ended."""
    ranks = Ranks(size=2, store=HashStore())
    ranks.where = [(this_machine(), os.getpid())] * 2
    return ranks


@pytest.mark.parametrize("where", ["on another machine", "as another user"])
def test_a_rank_whose_process_cannot_be_seen_is_given_up_when_it_does_not_answer(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    ranks = two_that_run()
    if where == "on another machine":
        ranks.where[1] = ("another machine", ended.pid)  # a number that says nothing here
    else:

        def forbidden(process: int, number: int) -> None:
            raise PermissionError

        monkeypatch.setattr(os, "kill", forbidden)
    monkeypatch.setattr(distributed, "TIMEOUT", timedelta(seconds=0.05))
    with pytest.raises(TrainingError, match="^a rank of 2 has ended or does not answer"):
        ranks.all_gather_object(None)


def test_a_rank_that_has_answered_and_ended_was_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    store = HashStore()
    ranks = Ranks(size=2, store=store)
    ranks.where = [(this_machine(), os.getpid())] * 2

    def ends(process: int) -> bool:
        store.set("1/1", json.dumps("last"))
        return False

    monkeypatch.setattr(distributed, "_runs", ends)
    assert ranks.all_gather_object("first") == ["first", "last"]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            RuntimeError(
                "NCCL error in: Utils.cpp:77, invalid usage, NCCL version 2.27.5\n"
                "ncclInvalidUsage: This usually reflects invalid usage of NCCL library.\n"
                "Last error:\nDuplicate GPU detected : rank 0 and rank 1 both on CUDA device 1000\n"
            ),
            "NCCL error in: Utils.cpp:77, invalid usage, NCCL version 2.27.5: Duplicate GPU "
            "detected : rank 0 and rank 1 both on CUDA device 1000",
        ),
        (NotImplementedError("no alltoall here\nC++ CapturedTraceback:"), "no alltoall here"),
        (RuntimeError(), "RuntimeError()"),
    ],
)
def test_an_exchange_that_fails_though_no_process_has_ended_says_what_torch_does(
    error: RuntimeError, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr(torch.distributed, "broadcast", fails)
    with pytest.raises(TrainingError) as caught:
        two_that_run().broadcast_([torch.ones(1)])
    assert str(caught.value) == (
        f"an exchange between 2 ranks failed, and all end: {line}; start all again with --resume, "
        "which goes on from the latest checkpoint, if there is one"
    )


def test_memory_that_an_exchange_does_not_find_is_no_lost_rank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0")

    monkeypatch.setattr(torch.distributed, "all_to_all_single", fails)
    ranks = two_that_run()
    with pytest.raises(torch.OutOfMemoryError):
        ranks.reduce_scatter(torch.ones(2, 1), torch.ones(2, 1))
    assert ranks.claims_failure()  # nobody has: the rank says itself why it ends


def test_a_rank_that_is_told_to_end_waits_for_what_the_lead_still_does() -> None:
    store = HashStore()
    ranks, lead = Ranks(rank=1, size=2, store=store), Ranks(rank=0, size=2, store=store)
    ranks.where = lead.where = [(this_machine(), os.getpid())] * 2
    ranks.ending.set()  # as a SIGTERM to all does, after which the lead writes a checkpoint

    def write() -> None:
        time.sleep(0.1)
        with lead.lead_first():
            done.append("written")

    done: list[str] = []
    writer = threading.Thread(target=write)
    writer.start()
    with ranks.lead_first():
        assert done == ["written"]
    writer.join()


def test_a_rank_that_waits_in_the_store_can_still_tell_the_lead_to_end() -> None:
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    limit = timedelta(seconds=SECONDS)
    client = TCPStore("127.0.0.1", server.port, is_master=False, timeout=limit)
    lead, ranks = Ranks(rank=0, size=2, store=server), Ranks(rank=1, size=2, store=client)
    assert not lead.should_end()
    waiter = threading.Thread(target=client.wait, args=(["late"],))
    waiter.start()
    time.sleep(0.1)
    ranks.end()
    assert waiter.is_alive()  # one connection for both would have let it wait first
    assert ranks.should_end() and lead.should_end()
    assert not Ranks(rank=1, size=2, store=server).should_end()  # the lead says so to all
    server.set("late", "")
    waiter.join()


def test_a_store_that_has_ended_asks_nobody_to_end() -> None:
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = Ranks(size=2, store=TCPStore("127.0.0.1", server.port, is_master=False))
    del server
    assert not ranks.should_end()
    ranks.end()
    assert ranks.should_end()


def test_a_process_that_does_not_come_back_ends_after_a_sigterm_with_a_line(
    ends: Ends, folder: Path
) -> None:
    assert lines_of(ends, "stuck") == ["silent", "killed"]
    assert "error: told to end: " in (folder / "2.txt").read_text()


def test_who_heard_signals_before_a_group_hears_them_again() -> None:
    numbers = heard()
    before = [signal.getsignal(number) for number in numbers]
    ours, other = socket.socketpair()
    ours.setblocking(False)
    outer = signal.set_wakeup_fd(ours.fileno())
    try:
        with distributed._terminated(ranks := Ranks()):
            assert numbers and not {*before} & {signal.getsignal(n) for n in numbers}
        assert [signal.getsignal(number) for number in numbers] == before
        assert not ranks.ending.is_set()  # no signal has come
    finally:
        assert signal.set_wakeup_fd(outer) == ours.fileno()
        ours.close()
        other.close()


# --- the parts


def test_what_is_said_to_all_arrives_by_rank(ends: Ends) -> None:
    assert lines_of(ends, "says") == ["ended"] * 3
    said = [[["said by", rank] for rank in range(3)], 0, [0.0, 7.0], [3.0, 3.0]]
    lent = {"t0": [1.0] * 3}
    whole = {f"t{rank}": [1.0 + rank] * 3 for rank in range(3)}
    both = {"rows": [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]], "number": 7.0}
    assert ends["says"][0][1] == [*said, whole, lent, both]
    one = {"rows": [[1.0, 1.0]], "number": 7.0}
    assert ends["says"][1][1] == [*said, {"t1": [2.0] * 3}, lent, one]


def test_sums_are_in_the_order_of_the_ranks() -> None:
    parts = torch.tensor([[1e8], [1.0], [-1e8], [1.0]])
    assert in_order(parts.clone()).tolist() == [1.0]  # 1e8 + 1 is 1e8 in fp32


Shapes = dict[str, torch.Size]


def loads(parts: list[Part], shapes: Shapes, ranks: int) -> list[int]:
    """How many numbers each rank trains."""
    load = [0] * ranks
    for part in parts:
        load[part.rank] += part.of(torch.empty(shapes[part.name], device="meta")).numel()
    return load


def parts_of(config: RunConfig, vocab_size: int, ranks: int) -> tuple[list[Part], Shapes]:
    """How a run's tensors are divided, and their shapes."""
    tokens = (b"a",) * vocab_size
    with torch.device("meta"):
        model = build_model(
            config.trunk,
            head_config(config.head),
            HeadShape(
                vocab_size=vocab_size, d_model=config.trunk.d_model, bos_id=0, token_bytes=tokens
            ),
        )
    roles = check_coverage(model, config.optimizer)
    shapes = {
        name: p.shape
        for name, p in model.named_parameters()
        if name in roles and not (config.freeze_trunk and name.startswith("trunk."))
    }
    return divided(shapes, {n for n in shapes if roles[n] == "matrix"}, ranks), shapes


tensors = st.tuples(st.lists(st.integers(1, 20), max_size=3).map(torch.Size), st.booleans())


@given(given=st.dictionaries(st.text(max_size=3), tensors, min_size=1), ranks=st.integers(1, 8))
def test_every_number_has_one_owner_and_no_rank_much_more_than_the_mean(
    given: dict[str, tuple[torch.Size, bool]], ranks: int
) -> None:
    shapes = {name: shape for name, (shape, _) in given.items()}
    matrices = {name for name, (shape, hidden) in given.items() if hidden and len(shape) == 2}
    uncut, count = [], 0  # the largest of each tensor that is never cut, and how many in all
    for name, shape in shapes.items():
        whole = len(shape) < 2 or name in matrices
        width = 1 if whole else shape[1:].numel()
        rows = shape.numel() if whole else min(shape[0], LANES // math.gcd(LANES, width))
        uncut.append(rows * width)
        count += 1 if whole else -(-shape[0] // rows)
    if count < ranks:
        with pytest.raises(ConfigError, match=f"{ranks} processes for a model of {count} parts"):
            divided(shapes, matrices, ranks)
        return
    found = divided(shapes, matrices, ranks)
    assert len(found) < len(shapes) + ranks
    assert [*dict.fromkeys(part.name for part in found)] == [*shapes]
    for name, shape in shapes.items():
        numbers = torch.arange(shape.numel()).view(shape)
        own = [part for part in found if part.name == name]
        pieces = [part.of(numbers).flatten() for part in own]
        assert torch.equal(torch.cat(pieces), numbers.flatten())
        assert all(a.rank < b.rank for a, b in itertools.pairwise(own))
        assert all(len(piece) % LANES == 0 for piece in pieces[:-1])
        if name in matrices or len(shape) < 2:
            assert [part.rows for part in own] == [None]
    load = loads(found, shapes, ranks)
    assert 0 < min(load)
    assert max(load) <= sum(load) / ranks + max(uncut)


def test_a_table_is_cut_where_the_others_leave_room() -> None:
    shapes = {"table": torch.Size([4, 16]), "matrix": torch.Size([2, 16])}
    assert divided(shapes, {"matrix"}, 2) == [
        Part("table", 0, slice(0, 1)),
        Part("table", 1, slice(1, 4)),
        Part("matrix", 0),
    ]
    shapes = {"table": torch.Size([8, 16]), "matrix": torch.Size([99, 16])}  # more than the mean
    assert divided(shapes, {"matrix"}, 3) == [
        Part("table", 1, slice(0, 4)),
        Part("table", 2, slice(4, 8)),
        Part("matrix", 0),
    ]


@pytest.mark.parametrize("vocab_size", [257, 1024, 8192, 32768])
def test_eight_ranks_share_the_baseline_evenly(vocab_size: int) -> None:
    parts, shapes = parts_of(run_config("baseline", {}), vocab_size, 8)
    load = loads(parts, shapes, 8)
    assert max(load) <= (1.001 if vocab_size > 257 else 1.01) * sum(load) / 8


@pytest.mark.parametrize("case", [c for c in same_runs(Path()) if c != "frozen"])
def test_ranks_of_the_runs_here_share_a_table(case: str) -> None:
    ranks, config = same_runs(Path())[case]
    parts, _ = parts_of(config, TOKENIZER.vocab_size, ranks)
    assert max(Counter(part.name for part in parts).values()) == ranks


@pytest.mark.parametrize("shape", [(40, 5), (37, 12), (20, 2, 3), (20, 16)], ids=str)
def test_adam_of_parts_computes_to_the_bit_what_it_does_of_the_whole(
    shape: tuple[int, ...],
) -> None:
    torch.manual_seed(0)
    whole, table = (nn.Parameter(torch.ones(shape)) for _ in range(2))
    shares = [Shares({"p": table}, Ranks(rank=rank, size=3)) for rank in range(3)]
    own = [share.own for share in shares]
    adams = [Adam(each, {"p": 0.05}, OptimizerConfig()) for each in ({"p": whole}, *own)]
    for _ in range(20):
        whole.grad = torch.randn(shape)
        for share in shares:
            share.own["p"].grad = share.mine["p"].of(whole.grad)
        for adam in adams:
            adam.step(1.0)
    assert torch.equal(whole, table)


def test_shares_of_a_process_alone_touch_nothing() -> None:
    p = nn.Parameter(torch.ones(3))
    shares = Shares({"p": p}, Ranks())
    shares.reduce()
    shares.gather()
    assert shares.own["p"] is p
    assert p.grad is None


def test_processes_that_cannot_work_together_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks("cpu", size=2, store=HashStore())
    kinds = ["cpu with torch 2.9.0", "cuda with torch 2.9.0"]
    answers = iter([[(this_machine(), os.getpid())] * 2, kinds])
    monkeypatch.setattr(ranks, "all_gather_object", lambda value: next(answers))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *given, **more: None)
    with pytest.raises(ConfigError, match=f"2 processes of this run differ: {' and '.join(kinds)}"):
        ranks.join()


def test_each_process_has_its_own_gpu_or_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    here = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert own_device("auto", here) == "cuda:1"
    assert own_device("cpu", here) == "cpu"
    with pytest.raises(ConfigError, match="would put all 4 processes on one GPU"):
        own_device("cuda:0", here)
    del here["LOCAL_WORLD_SIZE"]  # torchrun sets it, and not every launcher
    assert own_device("cuda", {"WORLD_SIZE": "4", "RANK": "3"}) == "cuda:1"
    with pytest.raises(ConfigError, match="has 2 CUDA devices and no other for .* LOCAL_RANK 2,"):
        own_device("cuda", {**here, "LOCAL_RANK": "2"})


def test_one_process_alone_meets_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "none"}
    for key, value in place.items():
        monkeypatch.setenv(key, value)
    with joined("cpu") as ranks:
        assert (ranks.device, ranks.rank, ranks.size) == ("cpu", 0, 1)
        assert not torch.distributed.is_initialized()


# --- torchrun itself


def tokgolf_train(folder: Path, run: str, steps: int) -> list[str]:
    """The arguments after `python -m`."""
    (folder / "text.txt").write_bytes(b"a text that two processes read together. " * 50)
    (folder / "byte.tok").write_bytes(TOKENIZER.asset())
    values = {
        "trunk.layers": 1,
        "trunk.d_model": 16,
        "trunk.heads": 2,
        "trunk.kv_heads": 1,
        "trunk.mlp_hidden": 16,
        "trunk.sequence_length": 16,
        "batch_tokens": 64,
        "micro_batch_tokens": 32,
        "checkpoint_minutes": 1e-9,
        "compile": "off",
    }
    return [
        *("tokgolf", "train", "--device", "cpu", "--steps", str(steps), "--json"),
        *("--tokenizer", str(folder / "byte.tok"), "--corpus", str(folder / "text.txt")),
        *(part for key, value in values.items() for part in ("--set", f"{key}={value}")),
        *("-o", str(folder / run)),
    ]


def rank_one(agent: int) -> int:
    """The process of torchrun's that is rank 1."""
    children = subprocess.run(
        ["pgrep", "-P", str(agent)], capture_output=True, text=True, check=True, timeout=SECONDS
    )
    return next(
        int(process)
        for process in children.stdout.split()
        if b"\0RANK=1\0" in Path(f"/proc/{process}/environ").read_bytes()
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
def test_torchrun_restarts_a_run_whose_rank_was_killed(tmp_path: Path) -> None:
    steps = 300
    torchrun = ["torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1", "-m"]
    with subprocess.Popen(
        [sys.executable, "-m", *torchrun, *tokgolf_train(tmp_path, "run", steps), "--resume"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as agent:
        try:
            until = time.monotonic() + SECONDS
            while not (tmp_path / "run" / "checkpoints" / "latest.json").exists():
                assert time.monotonic() < until
                time.sleep(0.05)
            os.kill(rank_one(agent.pid), signal.SIGKILL)
            out, err = agent.communicate(timeout=SECONDS)
        finally:
            agent.terminate()  # torchrun ends its processes, or kills them 30 s later
    assert agent.returncode == 0, err
    assert "error: rank 1 of 2 has ended or does not answer" in err
    assert json.loads(out)["steps"] == steps  # one object: the lead alone prints
    one = [sys.executable, "-m", *tokgolf_train(tmp_path, "one", steps)]
    subprocess.run(one, check=True, env=environment(), capture_output=True, timeout=SECONDS)
    assert_same_run(tmp_path / "one", tmp_path / "run")


@pytest.mark.parametrize(
    ("rank", "changes", "reason"),
    [
        ("0", {"WORLD_SIZE": "two"}, "two"),
        ("0", {"MASTER_PORT": "abc"}, "abc"),
        ("0", {}, "."),  # the other one never comes
        ("1", {}, "."),  # nobody listens
        ("0", {"MASTER_PORT": "taken"}, "."),
    ],
)
def test_ranks_that_do_not_meet_say_so_in_one_line(
    rank: str, changes: dict[str, str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "TIMEOUT", timedelta(seconds=1))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if changes.get("MASTER_PORT") != "taken":
            server.close()
        place = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", **changes}
        place["MASTER_PORT"] = changes.get("MASTER_PORT", "").replace("taken", "") or str(port)
        for key, value in place.items():
            monkeypatch.setenv(key, value)
        with pytest.raises(ConfigError, match=reason) as caught, joined("cpu"):
            pass
    said = str(caught.value)
    assert f"(RANK={rank}, WORLD_SIZE={place['WORLD_SIZE']}, MASTER_ADDR=127.0.0.1, " in said
    assert said.endswith("as many as WORLD_SIZE says within 1 s, on a port that is free")
    assert "\n" not in said
