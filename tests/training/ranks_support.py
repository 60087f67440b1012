"""Runs of several processes for tests, in real processes that each do many cases in turn.

    RANK_OF_ALL=0 STORE_PORT=PORT python ranks_support.py FOLDER

One launch serves a whole test module, as importing torch takes each process seconds. A case is
done by some of the processes, who are its ranks in that order; how each of them ended, and what it
found, is in FOLDER/CASE/RANK.json. A process that does not come back ends itself.
"""

import dataclasses
import faulthandler
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from training_support import CONFIG, TOKENIZER, TRUNK, run_it, stops_at

from tokgolf.errors import OtherRankError, TokgolfError
from tokgolf.training import RunConfig, StepReport
from tokgolf.training import distributed as module
from tokgolf.training.averages import AverageConfig
from tokgolf.training.distributed import Ranks, joined
from tokgolf.training.qat import QatConfig
from tokgolf.training.session import Session

SECONDS = 300.0
"""After which a process that is not done ends itself, on a machine that is very busy too."""


def same_runs(plain: Path) -> dict[str, tuple[int, RunConfig]]:
    """Runs that several processes compute to the bit as one does: how many, and what.

    `plain` is a run of `CONFIG`, from which one takes its trunk.
    """
    looped = dataclasses.replace(TRUNK, loop_blocks=1, loops=2, loop_rank=2, value_embeddings=1)
    changes: dict[str, tuple[int, dict[str, Any]]] = {
        "two": (2, {}),
        "three": (3, {"micro_batch_tokens": 32}),
        "ends": (
            2,
            {
                "average": AverageConfig(ema=0.9),
                "head": {"name": "untied", "untie_at": 0.4},
                "short_length": 8,
                "short_until": 0.5,
                "trunk": dataclasses.replace(TRUNK, document_mask=True, smear=True),
            },
        ),
        "late": (
            2,
            {
                "trunk": looped,
                "loops_from": 0.3,
                "qat": QatConfig(start=0.6, bits=2.5, every=2, method="nearest"),
            },
        ),
        "frozen": (
            2,
            {"trunk_from": str(plain), "freeze_trunk": True, "head": {"name": "untied"}},
        ),
        "one tensor": (2, {"trunk_from": str(plain), "freeze_trunk": True}),
    }
    return {name: (n, dataclasses.replace(CONFIG, **more)) for name, (n, more) in changes.items()}


# --- the cases: each gets the ranks and its folder, and may return what it found


def trains(config: RunConfig, ranks: Ranks, out: Path) -> None:
    """Train a run."""
    run_it(out / "run", config, ranks=ranks)


def goes_on(first: str, stop: int, ranks: Ranks, out: Path) -> None:
    """Train another case's run up to a step, or from where it is."""
    run_it(
        out.parent / first / "run",
        ranks=ranks,
        resume=out.name != first,
        on_step=stops_at(stop),
    )


def hears(first: str, config: RunConfig, ranks: Ranks, out: Path) -> list[str]:
    """What is said of another case's run that is resumed, and has nothing left to do."""
    said: list[str] = []
    run_it(out.parent / first / "run", config, ranks=ranks, resume=True, say=said.append)
    return said


def in_doubles(micro_batch_tokens: int, ranks: Ranks, out: Path) -> tuple[list[float], list[float]]:
    """Train in fp64; the losses, and the norms of the last step's gradients."""
    config = dataclasses.replace(CONFIG, micro_batch_tokens=micro_batch_tokens)
    generator = torch.Generator().manual_seed(1)
    losses = []
    torch.set_default_dtype(torch.float64)
    try:
        session = Session(config, TOKENIZER, np.ones(257, np.int64), "cpu", ranks=ranks)
        for step in range(config.steps):
            rows = torch.randint(8, (6, 17), generator=generator).chunk(ranks.size)[ranks.rank]
            started = session.start(float(config.steps - step), rows[:, :-1], rows[:, 1:])
            session.judge(started)
            session.update(started)
            losses.append(session.loss)
    finally:
        torch.set_default_dtype(torch.float32)
    return losses, started.gradient_norms.tolist()


def leads(ranks: Ranks, out: Path) -> list[int]:
    """Train by the clock; which steps are heard of."""
    heard: list[int] = []
    config = dataclasses.replace(CONFIG, minutes=0.01, steps=10**6, checkpoint_minutes=1e-9)
    run_it(out / "run", config, ranks=ranks, on_step=lambda report: heard.append(report.step))
    return heard


def in_the_way(ranks: Ranks, out: Path) -> None:
    """Train where a file is."""
    if ranks.leads:
        (out / "run").write_text("a file where the folder should be")
    run_it(out / "run", ranks=ranks)


def says(ranks: Ranks, out: Path) -> list[Any]:
    """Exchange what there is to exchange."""
    own = {f"t{ranks.rank}": torch.full((2, 3), 1.0 + ranks.rank)}
    shared = {"rows": torch.full((1, 2), float(ranks.rank)), "number": torch.tensor(7.0)}
    return [
        ranks.all_gather_object(["said by", ranks.rank]),
        ranks.on_lead(lambda: ranks.rank),
        ranks.broadcast_numbers([float(ranks.rank), 7.0]),
        ranks.all_reduce_sum(torch.tensor([1.0, ranks.rank])).tolist(),
        {name: tensor.tolist()[1] for name, tensor in ranks.gather_named(own).items()},
        {name: tensor.tolist()[1] for name, tensor in ranks.broadcast_named(own).items()},
        {name: tensor.tolist() for name, tensor in ranks.gather_named(shared).items()},
    ]


def dies(ranks: Ranks, out: Path) -> None:
    """Train until the lead is killed."""

    def on_step(report: StepReport) -> None:
        if report.step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    config = dataclasses.replace(CONFIG, checkpoint_minutes=1e-9, steps=10**6)
    run_it(out / "run", config, ranks=ranks, on_step=on_step)


def told(number: int, ranks: Ranks, out: Path) -> None:
    """Train until another rank than the lead gets a signal to end."""

    def on_step(report: StepReport) -> None:
        if report.step == 3:
            os.kill(ranks.where[1][1], number)

    run_it(out / "run", dataclasses.replace(CONFIG, steps=10**6), ranks=ranks, on_step=on_step)


def stuck(ranks: Ranks, out: Path) -> None:
    """The other rank is told to end and does not come back, as one that waits for its GPU."""
    module.GRACE = 0.1
    if not ranks.leads:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(SECONDS)
    ranks.all_reduce_sum(torch.ones(1))


Case = Callable[[Ranks, Path], Any]


def cases(folder: Path) -> dict[str, tuple[list[int], Case]]:
    """What is done, in this order, and by which of three processes. The last two end some."""
    both = [0, 1]
    few = dataclasses.replace(CONFIG, batch_tokens=48)
    uneven = dataclasses.replace(CONFIG, micro_batch_tokens=32)
    return {
        **{
            name: ([*range(size)], partial(trains, config))
            for name, (size, config) in same_runs(folder / "two" / "run").items()
        },
        "split": (both, partial(trains, dataclasses.replace(CONFIG, micro_batch_tokens=16))),
        "split on": (
            [0],
            partial(hears, "split", dataclasses.replace(CONFIG, micro_batch_tokens=16)),
        ),
        "two on": ([0], partial(hears, "two", CONFIG)),
        "doubles": (both, partial(in_doubles, 16)),
        "stopped": (both, partial(goes_on, "stopped", 4)),
        "alone": ([0], partial(goes_on, "stopped", 8)),
        "again": (both, partial(goes_on, "stopped", 0)),
        "leads": (both, leads),
        "unshared": (both, partial(trains, few)),
        "uneven": (both, partial(trains, uneven)),
        "guarded": (both, partial(trains, dataclasses.replace(CONFIG, max_gradient=1e-9))),
        "in the way": (both, in_the_way),
        "says": ([0, 1, 2], says),
        "told": (both, partial(told, signal.SIGTERM)),
        "hung up": (both, partial(told, signal.SIGHUP)),
        "dies": ([1, 2], dies),
        "stuck": ([0, 2], stuck),
    }


def done(work: Case, out: Path) -> tuple[str, Any]:
    """How a case ended for this rank, and what it found, or whether it is in a group still."""
    try:
        with joined("cpu") as ranks:
            return "ended", work(ranks, out)
    except OtherRankError:
        return "silent", dist.is_initialized()
    except (TokgolfError, OSError) as error:
        return str(error), dist.is_initialized()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def main(folder: Path) -> None:
    """One process: its part of every case."""
    process, port = int(os.environ["RANK_OF_ALL"]), os.environ["STORE_PORT"]
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where nohup started the tests
    torch.set_num_threads(1)
    module.TIMEOUT = timedelta(seconds=SECONDS)
    store = TCPStore("127.0.0.1", int(port), is_master=False, timeout=module.TIMEOUT)
    for number, (name, (processes, work)) in enumerate(cases(folder).items()):
        if process not in processes:
            continue
        rank, size = processes.index(process), len(processes)
        out = folder / name
        out.mkdir(exist_ok=True)
        store.set(f"{name}/{rank}", "")
        store.wait([f"{name}/{other}" for other in range(size)])
        os.environ.update(
            RANK=str(rank),
            WORLD_SIZE=str(size),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
            TORCHELASTIC_USE_AGENT_STORE="True",  # the store outlives every rank
            TORCHELASTIC_RESTART_COUNT=str(number),  # keys of its own for every case
        )
        (out / f"{rank}.json").write_text(json.dumps(done(work, out)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
