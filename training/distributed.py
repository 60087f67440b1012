"""Several processes train one model: what they tell each other, and how they begin and end.

The ranks are started by torchrun, or by anything that sets its RANK, WORLD_SIZE, MASTER_ADDR and
MASTER_PORT. Whatever depends on the clock, on signals or on files is decided by rank 0, the lead.
"""

import contextlib
import json
import math
import os
import signal
import socket
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from tokgolf.device import resolve_device
from tokgolf.errors import ConfigError, Interrupted, OtherRankError, TrainingError
from tokgolf.signals import heard

Value = TypeVar("Value")

TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for another that is there but does not answer: compiling takes minutes. One
that has ended is noticed at once."""
GRACE = 20.0
"""Seconds to stop in after a SIGTERM or a hang-up; torchrun kills after 30."""
_FAILED, _TOLD = "failed", "told to end"
MEETING = "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"


class Ranks:
    """This process among those that train together; `ALONE` is a process by itself."""

    def __init__(
        self,
        device: str = "auto",
        *,
        rank: int = 0,
        size: int = 1,
        store: Store | None = None,
    ) -> None:
        self.device, self.rank, self.size = device, rank, size
        self.leads = rank == 0
        self.ending = threading.Event()  # a SIGTERM or a hang-up has come
        self.where: list[tuple[str, int]] = []  # machine and process of every rank
        self._store = store
        # For the thread that watches for signals: a store that waits answers no second question.
        self._beside: Store | None = store.clone() if store else None  # type: ignore[attr-defined]
        self._said = 0
        self._cpu: dist.ProcessGroup | None = None  # the default one

    def all_gather_object(self, value: Value) -> list[Value]:
        """The values of all ranks, by rank; JSON, on the way of the store."""
        if self._store is None:
            return [value]
        self._said += 1
        with self._reached():
            self._store.set(f"{self._said}/{self.rank}", json.dumps(value))
        keys = [f"{self._said}/{rank}" for rank in range(self.size)]
        until = time.monotonic() + TIMEOUT.total_seconds()
        for rank, key in enumerate(keys):
            self._wait_for(key, rank, until)
        with self._reached():
            return [json.loads(self._store.get(key)) for key in keys]

    @contextlib.contextmanager
    def lead_first(self) -> Iterator[None]:
        """The others do what is inside when the lead has done it, however long that takes."""
        if self._store is None:
            yield
            return
        self._said += 1
        key = f"{self._said}/led"
        if not self.leads:
            self._wait_for(key, 0, math.inf)
        yield
        if self.leads:
            with self._reached():
                self._store.set(key, "")

    def _wait_for(self, key: str, rank: int, until: float) -> None:
        """Until a rank has set a key. Raises if it has ended before, or any has failed."""
        while True:
            ended = self._ended(rank)  # first: it may end when it has set the key
            if self._has(key):
                return
            if ended or self._has(_FAILED) or time.monotonic() > until:
                raise self._gone()
            time.sleep(0.02)

    def _ended(self, rank: int) -> bool:
        """Whether a process of this machine has ended."""
        machine, process = self.where[rank] if self.where else ("", 0)
        return machine == this_machine() and not _runs(process)

    def _has(self, key: str) -> bool:
        assert self._store is not None
        with self._reached():
            return bool(self._store.check([key]))

    def on_lead(self, work: Callable[[], Value]) -> Value:
        """The result of `work`, JSON, which the lead alone does; every rank gets it."""
        found: list[Value] = []
        with self.lead_first():
            if self.leads:
                found.append(work())
        return self.all_gather_object(found)[0][0]

    def broadcast_numbers(self, numbers: list[float]) -> list[float]:
        """The lead's numbers, on every rank."""
        if self.size == 1:
            return numbers
        # On a CPU, so that a GPU is not waited for.
        tensor = torch.tensor(numbers, dtype=torch.float64)
        with self._reached():
            dist.broadcast(tensor, 0, group=self._cpu)
        return tensor.tolist()

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in their order, on every rank."""
        if self.size == 1:
            return tensor
        parts = tensor.new_empty(self.size, *tensor.shape)
        self.all_gather(tensor, parts)
        return in_order(parts)

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with the lead's."""
        if self.size > 1:
            with self._reached():
                for tensor in tensors:
                    dist.broadcast(tensor, 0)

    def broadcast_named(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The lead's fp32 tensors, on every rank's device, whatever the rank has."""
        if self.size == 1:
            return tensors
        own = [(name, [*tensor.shape]) for name, tensor in tensors.items()]
        shapes = self.all_gather_object(own)[0]
        if not self.leads:
            tensors = {name: torch.empty(shape, device=self.device) for name, shape in shapes}
        self.broadcast_(tensors.values())
        return tensors

    def reduce_scatter(self, parts: Tensor, room: Tensor) -> Tensor:
        """The sum over all ranks of the row that is this rank's, in their order.

        `parts` has a row for each; `room` is overwritten, and begins with the result.
        (ranks, n), (ranks, n) -> (n,)
        """
        with self._reached():
            dist.all_to_all_single(room, parts)
        return in_order(room)

    def all_gather(self, own: Tensor, parts: Tensor) -> None:
        """Every rank's `own`, in the rows of `parts`.  # (n,), (ranks, n)"""
        with self._reached():
            dist.all_gather([*parts.unbind()], own)

    def gather_named(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The fp32 tensors of all ranks, on the lead; others get their own back.

        Where several ranks have a tensor of one name, each has some of its rows, in the order of
        the ranks, and they are joined; a single number is the same on all of them.
        """
        if self.size == 1:
            return tensors
        own = [(name, [*tensor.shape]) for name, tensor in tensors.items()]
        shapes = self.all_gather_object(own)
        found: dict[str, list[Tensor]] = defaultdict(list)
        for rank, listed in enumerate(shapes):
            for name, shape in listed:
                other = rank != self.rank
                tensor = torch.empty(shape, device=self.device) if other else tensors[name]
                with self._reached():
                    dist.broadcast(tensor, rank)
                if self.leads:
                    found[name].append(tensor)
        if not self.leads:
            return tensors
        return {n: torch.cat(ts) if ts[0].dim() else ts[0] for n, ts in found.items()}

    # --- from the beginning to the end of a group

    def join(self) -> None:
        """Meet the others. Raises `ConfigError` if what they run on differs."""
        kind = torch.device(self.device).type
        backend = "nccl" if kind == "cuda" else "gloo"
        with self._reached():
            dist.init_process_group(
                backend, store=self._store, rank=self.rank, world_size=self.size, timeout=TIMEOUT
            )
            if kind == "cuda":
                self._cpu = dist.new_group(backend="gloo", timeout=TIMEOUT)
        self.where = self.all_gather_object((this_machine(), os.getpid()))
        kinds = {*self.all_gather_object(f"{kind} with torch {torch.__version__}")}
        if len(kinds) > 1:
            listed = " and ".join(sorted(kinds))
            raise ConfigError(
                f"the {self.size} processes of this run differ: {listed}; use machines that are "
                "alike, or --device cpu"
            )

    def end(self) -> None:
        """Let the run end after the step that it is at, with a checkpoint."""
        self.ending.set()
        if self._beside is not None:
            with contextlib.suppress(RuntimeError):  # the store has ended, and the run with it
                self._beside.set(_TOLD, "")

    def should_end(self) -> bool:
        """Whether this rank was told to end; of the lead, whether any was."""
        if self.ending.is_set() or self._store is None or not self.leads:
            return self.ending.is_set()
        try:
            return bool(self._store.check([_TOLD]))
        except RuntimeError:  # the store has ended: whatever needs it says so
            return False

    def claims_failure(self) -> bool:
        """Record that this rank fails; whether it is the first, which says why (others do not)."""
        if self._beside is None:
            return True
        try:
            return bool(self._beside.add(_FAILED, 1) == 1)
        except RuntimeError:  # the store has ended with the rank that held it
            return True

    def lost(self, error: RuntimeError | None = None) -> str:
        """Which ranks have ended, as far as this machine's processes show; else what torch said."""
        until = time.monotonic() + 1
        while True:
            gone = [str(rank) for rank in range(len(self.where)) if self._ended(rank)]
            if gone or time.monotonic() > until:
                break
            time.sleep(0.02)  # it has closed its connections, and is about to be collected
        if error is None or gone:
            which = f"rank {', '.join(gone)}" if gone else "a rank"
            what = f"{which} of {self.size} has ended or does not answer, and the others end too"
        else:
            what = f"an exchange between {self.size} ranks failed, and all end: {_reason(error)}"
        return (
            f"{what}; start all again with --resume, which goes on from the latest checkpoint, if "
            "there is one"
        )

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError:  # this rank's own failure, and it has a remedy
            raise
        except RuntimeError as error:  # of torch: a closed connection, a timeout, no such operation
            raise self._gone(error) from error

    def _gone(self, error: RuntimeError | None = None) -> TrainingError:
        """What this rank ends with when another has ended, or does not answer."""
        if self.claims_failure():
            return LostRankError(self.lost(error))
        return OtherRankError("another rank has ended this run")


class LostRankError(TrainingError):
    """Another rank has ended without a word, or an exchange failed; nobody else says so."""


ALONE = Ranks()


def in_order(parts: Tensor) -> Tensor:
    """The sum of the rows, first to last, in the place of the first.  # (ranks, n) -> (n,)"""
    total = parts[0]
    for part in parts[1:]:
        total += part
    return total


@cache
def this_machine() -> str:
    """What only processes that see each other's numbers have in common, as far as it is known: two
    machines may have one host name, and so may two containers."""
    known = [socket.gethostname()]
    with contextlib.suppress(OSError):  # of Linux alone
        known.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        known.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(part.strip() for part in known)


def _reason(error: RuntimeError) -> str:
    """The first line of what torch says, and the one that NCCL has at the end.

    "NCCL error in: ..., invalid usage\\n...\\nLast error:\\nDuplicate GPU detected: rank 0 and ..."
    -> "NCCL error in: ..., invalid usage: Duplicate GPU detected: rank 0 and ..."
    """
    first, *others = [line.strip() for line in str(error).strip().splitlines()] or [repr(error)]
    last = others[others.index("Last error:") + 1 :] if "Last error:" in others else []
    return ": ".join([first, *last[:1]])


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is there, and somebody else's
        return True
    return True


def _met() -> tuple[Store, int, int]:
    """Where the ranks meet, which rank this is, and of how many."""
    try:
        found: tuple[Store, int, int] = next(rendezvous("env://", timeout=TIMEOUT))
    except (ValueError, RuntimeError) as error:  # what it is given, and torch's of sockets
        said = ", ".join(f"{key}={os.environ[key]}" for key in MEETING)
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"this process does not meet the other ranks ({said}): {reason}; start as many as "
            f"WORLD_SIZE says within {TIMEOUT.total_seconds():g} s, on a port that is free"
        ) from error
    return found


@contextlib.contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """This process among those that were started with it; alone, if it was started alone.

    `device` is auto, cpu or cuda (or cuda:N, alone). Of all ranks that fail inside, the first
    raises its own error and the others `OtherRankError`. Raises `ConfigError` for processes that
    cannot work together.
    """
    if not all(key in os.environ for key in MEETING) or os.environ["WORLD_SIZE"] == "1":
        yield Ranks(device)
        return
    store, rank, size = _met()
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"tokgolf/{attempt}", store)
    ranks = Ranks("cpu", rank=rank, size=size, store=store)
    with _terminated(ranks):
        try:
            ranks.device = own_device(device, os.environ)
            if ranks.device != "cpu":
                torch.cuda.set_device(ranks.device)
            ranks.join()
            yield ranks
        except (OtherRankError, LostRankError):
            raise
        except Exception as error:
            if isinstance(error, Interrupted):  # all of them, after the same step
                dist.destroy_process_group()
            if ranks.claims_failure():
                raise
            raise OtherRankError("another rank has ended this run") from error
        if dist.is_initialized():
            dist.destroy_process_group()


def own_device(device: str, environment: Mapping[str, str]) -> str:
    """The device of this process, one of several: each on a machine has its own GPU."""
    if device.startswith("cuda:"):
        raise ConfigError(
            f"--device {device} would put all {environment['WORLD_SIZE']} processes on one GPU; "
            "use --device cuda"
        )
    found = resolve_device(device)
    if found == "cpu":
        return found
    devices = torch.cuda.device_count()
    local = int(environment.get("LOCAL_RANK", int(environment["RANK"]) % devices))
    if local >= devices:
        raise ConfigError(
            f"this machine has {devices} CUDA devices and no other for the process of LOCAL_RANK "
            f"{local}, counted from 0; use --nproc-per-node {devices}, or --device cpu"
        )
    return f"cuda:{local}"


@contextlib.contextmanager
def _terminated(ranks: Ranks) -> Iterator[None]:
    """Turn a SIGTERM or a hang-up into `ranks.end`, and end the process if it takes too long.

    torchrun passes on to all what it gets, and sends a SIGTERM when one has failed. A rank that
    then waits for its GPU, which waits for the one that is gone, never comes back to Python, so a
    thread must watch.
    """
    numbers = {*heard()}
    ended = threading.Event()
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def watch() -> None:
        while not numbers.intersection(came := reader.recv(64)):
            if not came:
                return
        ranks.end()
        if not ended.wait(GRACE):
            if ranks.claims_failure():
                sys.stderr.write(f"error: told to end: {ranks.lost()}\n")
                sys.stderr.flush()
            os._exit(1)

    before = {number: signal.signal(number, lambda number, frame: None) for number in numbers}
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        writer.close()
        thread.join(1)
        reader.close()
