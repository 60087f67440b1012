"""What a head costs in training: time and memory of its loss, beside a plain one in the same run.

    python benchmarks/heads.py
    python benchmarks/heads.py --vocab-size 1024,16384 --positions 65536 --d-model 512 --device cuda

Each row is a head (or the tied head with an add-on): `loss` forward and backward, from hidden
states to all gradients, as a ratio to `F.cross_entropy(F.linear(h, W))` ("plain"), to the same with
a softcap, which every head here has ("capped"), and to `torch.nn.functional.linear_cross_entropy`,
where torch has it ("fused", no softcap). All are timed in turn in one process, medians of the
repeats; without the compiler, and (`--compile`) all with it. Products run in bf16 where training
would.

Memory is the most that a step holds beyond what it started with: on CUDA as the allocator counts,
on a CPU the growth of a fresh process' largest resident size (Linux only).
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

# The repository's root is searched first, so that a checkout runs uninstalled; a script's folder
# last, or the benchmark tokenizers.py would pass for a library.
HERE = Path(__file__).resolve().parent
sys.path = [p for p in sys.path if Path(p or ".").resolve() != HERE]
sys.path = [str(HERE.parent), *sys.path, str(HERE)]

import click  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from tokgolf.device import resolve_device  # noqa: E402
from tokgolf.heads import ADDONS, HEADS, Head, HeadShape, head_config  # noqa: E402
from tokgolf.training.session import uses_bf16  # noqa: E402

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # hidden, targets, prev -> sum of nats
PLAIN, CAPPED, FUSED = "F.cross_entropy", "with a softcap", "F.linear_cross_entropy"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is measured: a row's name, its sizes, and how."""

    name: str
    vocab_size: int
    positions: int
    d_model: int
    device: str
    compiled: bool
    repeats: int


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A row: seconds and bytes of a step, and the ratios to the peers' (0 where there is none)."""

    name: str
    vocab_size: int
    seconds: float
    memory: int
    seconds_to_plain: float
    seconds_to_capped: float
    seconds_to_fused: float
    memory_to_plain: float
    params: int


class Plain(nn.Module):
    """The straightforward loss of a tied table, as one writes it by hand."""

    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__()
        self.table = nn.Parameter(0.005 * torch.randn(vocab_size, d_model))

    def loss(self, hidden: Tensor, targets: Tensor, prev: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(hidden, self.table).float(), targets, reduction="sum")


class Capped(Plain):
    """The same with a softcap of 30."""

    def loss(self, hidden: Tensor, targets: Tensor, prev: Tensor) -> Tensor:
        z = 30 * torch.tanh(F.linear(hidden, self.table).float() / 30)
        return F.cross_entropy(z, targets, reduction="sum")


class Fused(Plain):
    """The same by torch's own fused function."""

    def loss(self, hidden: Tensor, targets: Tensor, prev: Tensor) -> Tensor:
        function: Any = vars(F)["linear_cross_entropy"]
        result: Tensor = function(hidden, self.table, targets, reduction="sum")
        return result


PEERS = {PLAIN: Plain, CAPPED: Capped, FUSED: Fused}


def build(name: str, cell: Cell) -> "Head | Plain":
    """A peer, a head by name, or "tied + ADDON"."""
    torch.manual_seed(0)
    if name in PEERS:
        return PEERS[name](cell.vocab_size, cell.d_model).to(cell.device)
    head, _, addon = name.partition(" + ")
    pairs = [bytes([a, b]) for a in range(128) for b in range(128)]
    tokens = [*(bytes([byte]) for byte in range(256)), b"", *pairs][: cell.vocab_size]
    shape = HeadShape(
        vocab_size=cell.vocab_size,
        d_model=cell.d_model,
        bos_id=256,
        token_bytes=tuple(tokens),
        successors=lambda: torch.full(
            (cell.vocab_size, -(-cell.vocab_size // 8)), 255, dtype=torch.uint8
        ).numpy(),
    )
    values: dict[str, Any] = {"name": head, "add": {addon: {}} if addon else {}}
    counts = torch.arange(cell.vocab_size).flip(0)
    return head_config(values).build(shape, counts).to(cell.device)


def step_of(name: str, cell: Cell) -> tuple[Callable[[], None], int]:
    """A step of forward and backward, and how many weights it trains."""
    model = build(name, cell)
    loss: Loss = torch.compile(model.loss, dynamic=False) if cell.compiled else model.loss
    hidden = torch.randn(cell.positions, cell.d_model, device=cell.device, requires_grad=True)
    targets, prev = torch.randint(0, cell.vocab_size, (2, cell.positions), device=cell.device)
    kind = torch.device(cell.device).type
    bf16 = uses_bf16("auto", torch.device(cell.device))

    def step() -> None:
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=bf16):
            nats = loss(hidden, targets, prev)
        nats.backward()  # type: ignore[no-untyped-call]
        hidden.grad = None
        model.zero_grad(set_to_none=True)
        if kind == "cuda":
            torch.cuda.synchronize()

    return step, sum(p.numel() for p in model.parameters())


def peers() -> list[str]:
    """What every head is compared with."""
    return [name for name in PEERS if name != FUSED or "linear_cross_entropy" in vars(F)]


def times(cell: Cell) -> dict[str, float]:
    """Median seconds of a step of the cell's head and of the peers, in turn."""
    names = [*peers(), cell.name]
    steps = {name: step_of(name, cell)[0] for name in names}
    for step in steps.values():
        step()
        step()
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(cell.repeats):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            found[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in found.items()}


def memory(name: str, cell: Cell) -> tuple[int, int]:
    """The most bytes that a step holds beyond what was there, and the number of weights."""
    step, params = step_of(name, cell)
    if torch.device(cell.device).type == "cuda":
        step()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before, params
    step_of(name, replace(cell, positions=64))[0]()  # libraries load what they need
    Path("/proc/self/clear_refs").write_text("5")  # forgets the largest size so far
    before = resident("VmRSS")
    step()
    return resident("VmHWM") - before, params


def resident(field: str) -> int:
    """Bytes of this process in memory, now (VmRSS) or at most (VmHWM)."""
    status = Path("/proc/self/status").read_text().split(f"{field}:")[1]
    return 1024 * int(status.split()[0])


def cost(cell: Cell) -> Cost:
    """Measure a row; memory in processes of their own."""
    seconds = times(cell)
    own, params = apart(memory, cell.name, cell)
    plain, _ = apart(memory, PLAIN, cell)
    return Cost(
        name=cell.name,
        vocab_size=cell.vocab_size,
        seconds=seconds[cell.name],
        memory=own,
        seconds_to_plain=seconds[cell.name] / seconds[PLAIN],
        seconds_to_capped=seconds[cell.name] / seconds[CAPPED],
        seconds_to_fused=seconds[cell.name] / seconds[FUSED] if FUSED in seconds else 0.0,
        memory_to_plain=own / max(1, plain),
        params=params,
    )


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call in a fresh process, so that what was held before does not hide what is held now."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


@click.command(help=__doc__)
@click.option("--vocab-size", default="1024,4096,8192,16384", show_default=True)
@click.option("--positions", default=4096, show_default=True, help="tokens of a micro-batch")
@click.option("--d-model", default=128, show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option(
    "--head", "heads", multiple=True, help="rows; default: all, and tied with each add-on"
)
@click.option("--compile", "compiled", is_flag=True, help="compile every path")
@click.option("--repeats", default=7, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="print JSON in place of a table")
def main(
    vocab_size: str,
    positions: int,
    d_model: int,
    device: str,
    heads: tuple[str, ...],
    compiled: bool,
    repeats: int,
    as_json: bool,
) -> None:
    """Run and print."""
    names = heads or (*HEADS, *(f"tied + {addon}" for addon in ADDONS))
    rows = []
    for size in (int(text) for text in vocab_size.split(",")):
        for name in names:
            cell = Cell(
                name=name,
                vocab_size=size,
                positions=positions,
                d_model=d_model,
                device=resolve_device(device),
                compiled=compiled,
                repeats=repeats,
            )
            rows.append(cost(cell))
            click.echo(f"{size} {name}", err=True)
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=1))
        return
    columns = ("ms", "plain", "capped", "fused", "MB", "plain")
    click.echo(f"{'V':>6}  {'head':<24}" + "".join(f"{column:>9}" for column in columns))
    for row in rows:
        click.echo(
            f"{row.vocab_size:>6}  {row.name:<24}{1000 * row.seconds:>9.1f}"
            f"{row.seconds_to_plain:>9.2f}{row.seconds_to_capped:>9.2f}{row.seconds_to_fused:>9.2f}"
            f"{row.memory / 1e6:>9.1f}{row.memory_to_plain:>9.2f}"
        )


if __name__ == "__main__":
    main()
