"""How fast training is, beside a straightforward PyTorch loop of the same model in the same run.

    python benchmarks/train.py -o train_cpu.json
    python benchmarks/train.py --size baseline --device cuda --rounds 10

A round is one step of tokgolf's trainer (`tokgolf.training.train` itself: its data path, its
checks, its reports) and one of each peer, in turn, so that whatever else the machine does hits all
alike; a ratio is the median of the rounds' ratios. The peers are loops as one writes them: eager,
all logits and `F.cross_entropy`, `torch.optim.AdamW` and, for the matrices, `torch.optim.Muon`, in
fp32 and under bf16 autocast; their batches are in memory already. Each peer has a process of its
own, which what tokgolf sets in its own (memory, order of sums) does not reach. On CUDA it gives its
memory back between its turns, and makes it anew in a step that is not timed; one whose memory does
not suffice all the same has its error in the place of its numbers. Compiling is timed apart, with
nothing cached and with what that left.

Memory is the most that three steps hold beyond what was there before: on CUDA as the allocator
counts, on a CPU the resident size of a fresh process (Linux only; tokgolf's holds its tokenizing,
checkpoints and the compiler's cache as well).
"""

import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# The repository's root is searched first, so that a checkout runs uninstalled; a script's folder
# last, or the benchmark tokenizers.py would pass for a library.
HERE = Path(__file__).resolve().parent
sys.path = [p for p in sys.path if Path(p or ".").resolve() != HERE]
sys.path = [str(HERE.parent), *sys.path, str(HERE)]

import click  # noqa: E402
import torch  # noqa: E402
from plain import Plain, sources, synchronize  # noqa: E402

from tokgolf.config import TrunkConfig  # noqa: E402
from tokgolf.corpora import Corpus, Document  # noqa: E402
from tokgolf.device import resolve_device  # noqa: E402
from tokgolf.files import write_text  # noqa: E402
from tokgolf.heads import head_config  # noqa: E402
from tokgolf.model import build_model, head_shape  # noqa: E402
from tokgolf.tokenizers import Tokenizer, build_tokenizer  # noqa: E402
from tokgolf.training import RunConfig, StepReport, run_config, train  # noqa: E402
from tokgolf.training.guards import STEPS_TO_MOVE  # noqa: E402

Result = dict[str, Any]
VOCAB = 1024
WARM = STEPS_TO_MOVE + 2
"""Rounds before those that count. On a GPU the trainer reads late after its first steps: a round is
the step after the one that it reports, the first such round has two, and the last report none."""


def config_of(size: str) -> RunConfig:
    """The `cpu` recipe at another width, or `baseline`."""
    if size == "baseline":
        return run_config("baseline", {})
    width = int(size)
    config = run_config("cpu", {})
    trunk = TrunkConfig(
        layers=4,
        d_model=width,
        heads=width // 32,
        kv_heads=width // 64,
        mlp_hidden=2 * width,
        sequence_length=256,
    )
    return replace(config, trunk=trunk)


class Peer:
    """A plain loop: one `step` is a whole step of it, of batches that are in memory."""

    def __init__(
        self, config: RunConfig, tokenizer: Tokenizer, device: torch.device, bf16: bool
    ) -> None:
        torch.manual_seed(0)
        self.config, self.device, self.bf16 = config, device, bf16
        shape = head_shape(tokenizer, config.trunk)
        self.model = build_model(config.trunk, head_config(config.head), shape).to(device)
        self.plain = Plain(self.model)
        length = config.trunk.sequence_length
        self.tokens = torch.randint(tokenizer.vocab_size, (config.batch_tokens // length, length))

    def step(self) -> float:
        """Seconds of a step."""
        synchronize(self.device)
        began = time.perf_counter()
        rows = self.config.micro_batch_tokens // self.config.trunk.sequence_length
        for part in self.tokens.split(rows):
            tokens = part.to(self.device)
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
                loss = self.plain.loss(tokens, tokens.roll(-1, 1)) / self.tokens.numel()
            loss.backward()
        loss.item()
        self.plain.update()
        synchronize(self.device)
        return time.perf_counter() - began


class PeerProcess:
    """A peer in a process of its own, which waits while it has nothing to do."""

    def __init__(self, config: RunConfig, tokenizer: Tokenizer, device: str, bf16: bool) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        arguments = theirs, config, tokenizer, device, bf16
        self.process = context.Process(target=serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()  # or a peer that dies would be waited for
        self.parameters: int = self.connection.recv()
        self.error: str | None = None  # with which the process has ended

    def step(self) -> float:
        """Seconds of a step, as it has them; not a number once it has ended by itself."""
        if self.error is None:
            self.connection.send(True)
            found: float | str = self.connection.recv()
            if isinstance(found, float):
                return found
            self.error = found
            self.process.join()  # its memory is free then
        return math.nan

    def end(self) -> None:
        """End the process."""
        if self.error is None:
            self.connection.send(False)
            self.process.join()


def serve(
    connection: Connection, config: RunConfig, tokenizer: Tokenizer, device: str, bf16: bool
) -> None:
    """A peer's process: its number of parameters, then a step whenever it is told to.

    If its memory does not suffice it says so in a line, and ends.
    """
    place = torch.device(device)
    peer = Peer(config, tokenizer, place, bf16)  # a small part of what its steps take
    connection.send(sum(p.numel() for p in peer.model.parameters()))
    while connection.recv():
        try:
            if place.type == "cuda":
                peer.step()  # takes the memory that the others had meanwhile
            seconds = peer.step()
        except torch.OutOfMemoryError as error:
            connection.send(str(error).splitlines()[0])
            return
        if place.type == "cuda":
            torch.cuda.empty_cache()
        connection.send(seconds)


def trained(
    config: RunConfig, tokenizer: Tokenizer, device: str, steps: int, each: Callable[[], None]
) -> float:
    """Run the trainer, calling `each` after every step; returns the seconds before the first."""
    documents = [Document(id=str(i), data=data) for i, data in enumerate(sources())]
    corpus = Corpus(name="sources", split=None, source=lambda: iter(documents))
    # A checkpoint on the way would be in one round, and its report in another.
    config = replace(config, steps=steps, minutes=None, checkpoint_minutes=1e6)
    first: list[float] = []

    def on_step(report: StepReport) -> None:
        first.append(report.seconds)
        each()

    with tempfile.TemporaryDirectory() as folder:
        train(
            config, tokenizer, corpus, Path(folder) / "run", device=device, on_step=on_step, say=say
        )
    return first[0]


def say(line: str) -> None:
    click.echo(line, err=True)


def measure(size: str, tokenizer: Tokenizer, device: str, rounds: int) -> Result:
    """Tokens a second of the trainer and its peers."""
    config, place = config_of(size), torch.device(device)
    peers = {
        "plain, bf16 autocast": PeerProcess(config, tokenizer, device, True),
        "plain, fp32": PeerProcess(config, tokenizer, device, False),
    }
    seconds: dict[str, list[float]] = {"tokgolf": [], **{name: [] for name in peers}}
    began = time.perf_counter()

    def a_round() -> None:
        nonlocal began
        synchronize(place)
        seconds["tokgolf"].append(time.perf_counter() - began)
        for name, peer in peers.items():
            seconds[name].append(peer.step())
        began = time.perf_counter()

    first = trained(config, tokenizer, device, WARM + rounds + 1, a_round)
    for peer in peers.values():
        peer.end()
    errors = {name: peer.error for name, peer in peers.items() if peer.error is not None}
    counted = {name: [] if name in errors else times[WARM:-1] for name, times in seconds.items()}
    ours = counted.pop("tokgolf")
    tokens = config.batch_tokens
    return {
        "size": size,
        "parameters": peers["plain, fp32"].parameters,
        "tokens_per_step": tokens,
        "rounds": rounds,
        "until_first_step": first,
        "tokens_per_second": {
            name: tokens / statistics.median(times) if times else None
            for name, times in {"tokgolf": ours, **counted}.items()
        },
        "best_tokens_per_second": {
            name: tokens / min(times) if times else None
            for name, times in {"tokgolf": ours, **counted}.items()
        },
        "ratio": {
            name: statistics.median(t / o for t, o in zip(times, ours, strict=True))
            if times
            else None
            for name, times in counted.items()
        },
        "error": errors,
    }


def memory(size: str, tokenizer: Tokenizer, device: str, who: str) -> float | None:
    """Most MB held by three steps; call it in a fresh process. Unknown on a CPU without Linux."""
    config, place = config_of(size), torch.device(device)
    peer = None if who == "tokgolf" else Peer(config, tokenizer, place, "bf16" in who)
    held(place)  # what importing held is no part of it
    before = held(place)
    if peer is None:
        trained(config, tokenizer, device, 3, lambda: None)
    else:
        for _ in range(3):
            peer.step()
    after = held(place)
    return None if before is None or after is None else after - before


def held(device: torch.device) -> float | None:
    """The most MB that was held since the last call; a process' resident size on a CPU."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak / 1e6
    try:
        status = Path("/proc/self/status").read_text()
        Path("/proc/self/clear_refs").write_text("5")  # a new peak
    except OSError:
        return None
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1e3


def first_step(size: str, tokenizer: Tokenizer, device: str) -> float:
    """Seconds before the trainer's first step; call it in a fresh process."""
    return trained(config_of(size), tokenizer, device, 1, lambda: None)


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result in a process of its own."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


@click.command()
@click.option("--size", "sizes", multiple=True, help="128, 256, ... or baseline; may be repeated.")
@click.option("--device", default="auto", show_default=True)
@click.option("--rounds", default=20, show_default=True)
@click.option("--threads", type=int, help="torch's threads; by default all cores.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write JSON here.")
def main(
    sizes: tuple[str, ...], device: str, rounds: int, threads: int | None, output: Path | None
) -> None:
    """Print tokens a second, memory and compile time, each beside the peers'."""
    device = resolve_device(device)
    if threads:
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # for the processes apart
    sizes = sizes or (("baseline",) if device == "cuda" else ("128", "256"))
    tokenizer = build_tokenizer("bpe", sources(), VOCAB)
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    about = {"device": name, "torch": torch.__version__, "threads": torch.get_num_threads()}
    results = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as cache:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
            first = apart(first_step, size, tokenizer, device)
            result = measure(size, tokenizer, device, rounds)
            compiling = {"first": first, "cached": result.pop("until_first_step")}
            result["first_step_seconds"] = compiling
            result["peak_mb"] = {
                who: None if who in result["error"] else apart(memory, size, tokenizer, device, who)
                for who in ("tokgolf", *result["ratio"])
            }
        results.append(result)
        for who, rate in result["tokens_per_second"].items():
            if rate is None:
                click.echo(f"{size:>8}  {who:<22} {result['error'][who]}")
                continue
            ratio = result["ratio"].get(who, 1.0)
            peak = result["peak_mb"][who]
            most = "unknown" if peak is None else f"{peak:,.0f} MB"
            click.echo(
                f"{size:>8}  {who:<22} {rate:>12,.0f} tokens/s  tokgolf is {ratio:.2f} of it  "
                f"{most}"
            )
        click.echo(
            f"{size:>8}  first step after {compiling['first']:.1f} s, {compiling['cached']:.1f} s "
            "from the cache"
        )
        if output:
            write_text(output, json.dumps({"about": about, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
