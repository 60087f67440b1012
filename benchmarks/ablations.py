"""What each option of trunk and optimizer earns at equal wall-clock: one option a run.

A run with an option gets as many steps as fit into the time that the plain run needs for its own:
first a step's cost is measured, option and plain in turn, then the numbers of steps are fixed from
the median ratio, so that whatever else the machine does later changes no result. Cost is the
processor time of one thread, which is wall-clock on an idle core. Scores are of the float model, on
whole documents in raw mode. One line of JSON a run goes to the output; runs that are there already
are not repeated. All options of a seed come before the next seed.

    python benchmarks/ablations.py --train web_train.jsonl.zst --val web_val_raw.jsonl.zst \\
        -o runs/ablations
    python benchmarks/ablations.py -o runs/ablations --show
"""

import json
import multiprocessing
import os
import shutil
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

# The repository's root is searched first, so that a checkout runs uninstalled; a script's folder
# last, or the benchmark tokenizers.py would pass for a library.
HERE = Path(__file__).resolve().parent
sys.path = [p for p in sys.path if Path(p or ".").resolve() != HERE]
sys.path = [str(HERE.parent), *sys.path, str(HERE)]

import click  # noqa: E402
import torch  # noqa: E402
from trained_tokenizers import add_row, deviation, excerpt, link, read_rows  # noqa: E402

from tokgolf.artifact.checkpoint import load_run  # noqa: E402
from tokgolf.config import merged, parse_overrides  # noqa: E402
from tokgolf.corpora import open_corpus  # noqa: E402
from tokgolf.device import in_one_order  # noqa: E402
from tokgolf.errors import TokgolfError  # noqa: E402
from tokgolf.eval.score import score  # noqa: E402
from tokgolf.files import write_text  # noqa: E402
from tokgolf.heap import freed_memory_kept  # noqa: E402
from tokgolf.tokenizers import build_tokenizer, load_tokenizer, save_tokenizer  # noqa: E402
from tokgolf.training import RunConfig, run_config, train  # noqa: E402
from tokgolf.training.data import Batches, TokenizedCorpus, tokenize  # noqa: E402
from tokgolf.training.session import Session  # noqa: E402

PLAIN = "plain"
LOOP = ("trunk.loop_start=1", "trunk.loop_blocks=2", "trunk.loops=2")
HELPED = (
    "trunk.negative_slope=0.5", "trunk.parallel=2", "trunk.smear=true",
    "optimizer.muon_rows=true", "optimizer.muon_decay=0.1", "warmdown_to=0.1",
)  # fmt: skip
"""What earned something alone, in the first 200 steps."""
OPTIONS: dict[str, tuple[str, ...]] = {
    PLAIN: (),
    "no U-Net skips": ("trunk.skips=false",),
    "no softcap": ("head.softcap=0.0",),
    "leaky relu squared": ("trunk.negative_slope=0.5",),
    "partial RoPE": ("trunk.rope_fraction=0.25",),
    "layer scale": ("trunk.layer_scale=true",),
    "norm before projections": ("trunk.out_norm=true",),
    "parallel residual, last 2": ("trunk.parallel=2",),
    "XSA, all 4": ("trunk.xsa=4",),
    "QK gain 4": ("trunk.qk_gain=4.0",),
    "loop of blocks 1 and 2, twice": LOOP,
    "loop, from half the steps on": (*LOOP, "loops_from=0.5"),
    "loop of rank 8": (*LOOP, "trunk.loop_rank=8"),
    "loop of rank 8, from half on": (*LOOP, "trunk.loop_rank=8", "loops_from=0.5"),
    "value embeddings, last 2": ("trunk.value_embeddings=2",),
    "smear": ("trunk.smear=true",),
    "document mask": ("trunk.document_mask=true",),
    "orthogonal init": ("trunk.orthogonal_init=true",),
    "short sequences, half the time": ("short_length=64", "short_until=0.5"),
    "Polar Express": ("optimizer.muon_coefficients=polar-express",),
    "Muon, equal rows": ("optimizer.muon_rows=true",),
    "weight decay": ("optimizer.muon_decay=0.1",),
    "EMA": ("average.ema=0.98",),
    "SWA, last fifth": ("average.swa_from=0.8", "average.swa_every=5"),
    "warmdown to a tenth": ("warmdown_to=0.1",),
    "all that helped, whole sequences": HELPED,
    "all that helped": (*HELPED, "short_length=64", "short_until=0.5"),
    "equal rows, parallel": ("optimizer.muon_rows=true", "trunk.parallel=2"),
    "equal rows, parallel, no skips": (
        "optimizer.muon_rows=true", "trunk.parallel=2", "trunk.skips=false",
    ),
    "short sequences, equal rows, parallel": (
        "short_length=64", "short_until=0.5", "optimizer.muon_rows=true", "trunk.parallel=2",
    ),
}  # fmt: skip
BASE = ("trunk.layers=4", "trunk.d_model=128", "trunk.heads=4", "trunk.kv_heads=2",
        "trunk.mlp_hidden=256", "trunk.sequence_length=256", "minutes=600.0")  # fmt: skip
WARM = 2


def config_of(settings: tuple[str, ...], values: dict[str, Any]) -> RunConfig:
    """The `cpu` recipe at d 128, with an option."""
    overrides = merged(parse_overrides(BASE), parse_overrides(settings))
    return run_config("cpu", merged(overrides, values))


def one_thread() -> None:
    torch.set_num_threads(1)


def tokens_of(folder: Path) -> TokenizedCorpus:
    """The training text's tokens, written on the first call."""
    corpus = open_corpus(str(folder / "train.jsonl"))
    tokenizer = load_tokenizer(folder / "v.tok")
    return tokenize(corpus, tokenizer, folder / "tokens", "train", corpus.summary().sha256)


def step_seconds(folder: Path, configs: list[RunConfig], rounds: int) -> list[list[float]]:
    """Processor seconds of a training step under each config, the configs in turn."""
    tokenizer = load_tokenizer(folder / "v.tok")
    data = tokens_of(folder)
    seconds: list[list[float]] = [[] for _ in configs]
    sessions = []
    cpu = torch.device("cpu")
    with in_one_order(cpu), freed_memory_kept(cpu):  # as `train` compiles and runs
        for config in configs:
            length = config.trunk.sequence_length
            rows = config.batch_tokens // length
            batches = Batches(data.stream, rows=rows, length=length, seed=config.seed)
            session = Session(config, tokenizer, data.stream.counts(tokenizer.vocab_size), "cpu")
            session.compile(*batches.step(0))
            sessions.append((session, batches))
        for number in range(WARM + rounds):
            for (session, batches), own in zip(sessions, seconds, strict=True):
                tokens, targets = batches.step(number)
                began = time.process_time()
                step = session.start(1000.0, tokens, targets)
                session.judge(step)
                session.update(step)
                own.append(time.process_time() - began)
    return [own[WARM:] for own in seconds]


def ratio_of(folder: Path, settings: tuple[str, ...], rounds: int) -> float:
    """What a step with the option costs, in steps of the plain run; a mean over the schedule."""
    config = config_of(settings, {})
    timed, part = config, 1.0  # of all steps those that cost something else
    if config.short_length:  # only the short ones differ: time those alone
        timed, part = replace(config, short_until=1.0), config.short_until
    if config.loops_from:  # until then steps are plain
        timed, part = replace(config, loops_from=0.0), 1 - config.loops_from
    option, plain = step_seconds(folder, [timed, config_of((), {})], rounds)
    ratio = statistics.median(o / p for o, p in zip(option, plain, strict=True))
    return ratio * part + 1 - part


def trained(folder: Path, name: str, seed: int, steps: int) -> dict[str, Any]:
    """Train and score one model."""
    config = config_of(OPTIONS[name], {"seed": seed, "steps": steps})
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(folder / "tokens", run / "tokens", copy_function=link)
    tokenizer = load_tokenizer(folder / "v.tok")
    corpus, held_out = (open_corpus(str(folder / f"{part}.jsonl")) for part in ("train", "val"))
    began = time.process_time()
    result = train(config, tokenizer, corpus, run, held_out=held_out, device="cpu")
    seconds = time.process_time() - began
    scored = score(load_run(run), held_out, device="cpu")
    return {
        "bpb": scored.bpb,
        "steps": result.steps,
        "params": result.params,
        "loss": result.loss,
        "processor_seconds": seconds,
    }


def apart(function: Any, *arguments: Any) -> Any:
    """The function's result in a process of its own: compiled code of one run is no other's."""
    with multiprocessing.get_context("spawn").Pool(1, initializer=one_thread) as pool:
        return pool.apply(function, arguments)


def show(rows: list[dict[str, Any]]) -> None:
    """Print mean bpb over the seeds and the paired difference to the plain run."""
    by = {(row["option"], row["seed"]): row for row in rows if "bpb" in row}
    click.echo(f"{'option':32} {'cost':>5} {'steps':>5}  seeds     bpb     diff  diff sd")
    for name in OPTIONS:
        own = {seed: row for (option, seed), row in by.items() if option == name}
        if not own:
            continue
        pairs = [
            r["bpb"] - by[PLAIN, seed]["bpb"] for seed, r in own.items() if (PLAIN, seed) in by
        ]
        some = next(iter(own.values()))
        mean = f"{statistics.mean(pairs):+.4f}" if pairs else "      -"
        click.echo(
            f"{name:32} {some['cost']:5.2f} {some['steps']:5}  {len(own):5}  "
            f"{statistics.mean(r['bpb'] for r in own.values()):.4f}  {mean}   {deviation(pairs)}"
        )


@click.command()
@click.option("--train", "train_spec", default="stdlib:train", show_default=True)
@click.option("--val", "val_spec", default="stdlib:val", show_default=True)
@click.option("--train-bytes", default=12_000_000, show_default=True)
@click.option("--val-bytes", default=600_000, show_default=True)
@click.option("--vocab-size", default=1024, show_default=True)
@click.option("--steps", default=240, show_default=True, help="Of the plain run.")
@click.option("--rounds", default=12, show_default=True, help="Of the timing.")
@click.option("--seed", "seeds", multiple=True, type=int, default=(1, 2, 3))
@click.option("--option", "only", multiple=True, type=click.Choice(list(OPTIONS)))
@click.option("--show", "only_show", is_flag=True, help="Only print the table of what is there.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
def main(
    train_spec: str,
    val_spec: str,
    train_bytes: int,
    val_bytes: int,
    vocab_size: int,
    steps: int,
    rounds: int,
    seeds: tuple[int, ...],
    only: tuple[str, ...],
    only_show: bool,
    output: Path,
) -> None:
    """Train every option at the plain run's wall-clock, and print what each earns."""
    log = output / "results.jsonl"
    if not only_show:
        os.environ["OMP_NUM_THREADS"] = "1"  # of the processes apart
        output.mkdir(parents=True, exist_ok=True)
        corpus = excerpt(train_spec, train_bytes, output / "train.jsonl")
        excerpt(val_spec, val_bytes, output / "val.jsonl")
        if not (output / "v.tok").exists():
            save_tokenizer(
                build_tokenizer("bpe", (d.data for d in corpus), vocab_size), output / "v.tok"
            )
        tokens_of(output)
        costs_file = output / "costs.json"
        costs = json.loads(costs_file.read_text()) if costs_file.exists() else {}
        names = [name for name in OPTIONS if not only or name in (PLAIN, *only)]
        for seed in seeds:
            for name in names:
                done = {(row["option"], row["seed"]) for row in read_rows(log) if "bpb" in row}
                if (name, seed) in done:
                    continue
                cell = {"option": name, "seed": seed}
                try:
                    if name not in costs:
                        asked = output, OPTIONS[name], rounds
                        costs[name] = 1.0 if name == PLAIN else apart(ratio_of, *asked)
                        write_text(costs_file, json.dumps(costs, indent=1) + "\n")
                    own = round(steps / costs[name])
                    row = {**cell, "cost": costs[name], **apart(trained, output, name, seed, own)}
                except TokgolfError as error:
                    row = {**cell, "error": str(error)}
                add_row(log, row)
    show(read_rows(log))


if __name__ == "__main__":
    main()
