"""Which tokenizer variant lowers bits per byte: one small model for each, trained and scored.

Every variant gets the same trunk, head, steps and tokens a step; only the tokenizer differs. So a
variant with more tokens a byte sees less text, as it would under a time limit. Scores are of the
float model, on whole documents, per byte of the original text. One line of JSON a run goes to
the output; runs that are there already are not repeated, and one that fails is reported and left
out. At the end a table: mean and standard deviation over the seeds, and each variant's paired
difference to the first.

    python benchmarks/trained_tokenizers.py --train web_train.jsonl.zst \\
        --val web_val_raw.jsonl.zst --variant none --variant transform=caps \\
        --vocab-size 1024 --vocab-size 4096 --device cuda --jobs 4 -o runs/variants

A variant at one size is a process of its own: it builds the tokenizer and tokenizes once, for all
seeds. `--jobs` of them run at a time and share the processor's threads.
"""

import json
import multiprocessing
import os
import shutil
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

# The repository's root is searched first, so that a checkout runs uninstalled; a script's folder
# last, or the benchmark tokenizers.py would pass for a library.
HERE = Path(__file__).resolve().parent
sys.path = [p for p in sys.path if Path(p or ".").resolve() != HERE]
sys.path = [str(HERE.parent), *sys.path, str(HERE)]

import click  # noqa: E402
import torch  # noqa: E402

from tokgolf.artifact.checkpoint import load_run  # noqa: E402
from tokgolf.config import parse_overrides  # noqa: E402
from tokgolf.corpora import Corpus, open_corpus, write_jsonl  # noqa: E402
from tokgolf.device import resolve_device  # noqa: E402
from tokgolf.errors import TokgolfError  # noqa: E402
from tokgolf.eval.score import score  # noqa: E402
from tokgolf.files import write_text  # noqa: E402
from tokgolf.tokenizers import Tokenizer, build_tokenizer  # noqa: E402
from tokgolf.training import run_config, train  # noqa: E402


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a process must know: it shares nothing with the one that starts it."""

    variant: str
    vocab_size: int
    seeds: tuple[int, ...]
    recipe: str
    overrides: dict[str, Any]
    device: str
    threads: int
    folder: Path

    def run(self, seed: int) -> Path:
        """The run directory of a seed."""
        name = f"{self.variant.replace(',', '_')}-{self.vocab_size}-{seed}"
        return self.folder / "runs" / name

    @property
    def tokens(self) -> Path:
        """Where the first run's token shards wait for the others."""
        return self.folder / "runs" / f"{self.variant.replace(',', '_')}-{self.vocab_size}-tokens"


def excerpt(spec: str, limit: int, path: Path) -> Corpus:
    """The first documents of a corpus, up to `limit` bytes, as a corpus of their own."""
    if not path.exists():
        documents, size = [], 0
        for document in open_corpus(spec):
            documents.append(document)
            size += len(document.data)
            if size >= limit:
                break
        write_jsonl(path, documents)
    return open_corpus(str(path))


def build(variant: str, vocab_size: int, corpus: Corpus) -> Tokenizer:
    """A variant is "none" or comma-separated options of `build_tokenizer`, e.g. "kind=greedy"."""
    options = dict(part.split("=") for part in variant.split(",")) if variant != "none" else {}
    kind = options.pop("kind", "bpe")
    return build_tokenizer(kind, (document.data for document in corpus), vocab_size, **options)


def run_job(job: Job, results: Connection) -> None:
    """The body of a process: send a row for each seed, or one that has an "error"."""
    # Read when the libraries start their threads, which is not yet.
    os.environ["RAYON_NUM_THREADS"] = os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = str(job.threads)
    torch.set_num_threads(job.threads)
    corpus, held_out = (open_corpus(str(job.folder / f"{n}.jsonl")) for n in ("train", "val"))
    shutil.rmtree(job.tokens, ignore_errors=True)  # of a job that was cut off
    tokenizer: Tokenizer | None = None
    for seed in job.seeds:
        cell = {"variant": job.variant, "vocab_size": job.vocab_size, "seed": seed}
        try:
            if tokenizer is None:
                tokenizer = build(job.variant, job.vocab_size, corpus)
            results.send({**cell, **run_one(job, seed, tokenizer, corpus, held_out)})
        except Exception as error:  # whatever becomes of one run, the others go on
            results.send({**cell, "error": f"{type(error).__name__}: {error}"})
        shutil.rmtree(job.run(seed), ignore_errors=True)
    shutil.rmtree(job.tokens, ignore_errors=True)


def run_one(
    job: Job, seed: int, tokenizer: Tokenizer, corpus: Corpus, held_out: Corpus
) -> dict[str, Any]:
    """Train and score one model; what its row says beside variant, size and seed."""
    config = run_config(job.recipe, {**job.overrides, "seed": seed})
    run = job.run(seed)
    shutil.rmtree(run, ignore_errors=True)  # of a run that was cut off
    if job.tokens.is_dir():  # training takes shards of this tokenizer and corpus as they are
        shutil.copytree(job.tokens, run / "tokens", copy_function=link)
    run.mkdir(parents=True, exist_ok=True)
    result = train(config, tokenizer, corpus, run, held_out=held_out, device=job.device)
    if not job.tokens.is_dir():
        (run / "tokens").rename(job.tokens)
    scored = score(load_run(run), held_out, device=job.device)
    return {
        "bpb": scored.bpb,
        "tokens": scored.tokens,
        "bytes": scored.bytes,
        "asset_bytes": len(tokenizer.asset()),
        "steps": result.steps,
        "train_tokens": result.tokens,
        "params": result.params,
    }


def link(source: str, target: str) -> None:
    """A second name for a file, or a copy where the file system has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def run_jobs(waiting: list[Job], at_once: int, take: Callable[[dict[str, Any]], None]) -> None:
    """Run all jobs, `at_once` at a time, and give every row to `take` as it comes.

    Processes are spawned, as CUDA demands, and end with this one.
    """
    context = multiprocessing.get_context("spawn")
    running: dict[Connection, tuple[Any, Job, set[int]]] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            job = waiting.pop(0)
            receiving, sending = context.Pipe(duplex=False)
            process = context.Process(target=run_job, args=(job, sending), daemon=True)
            process.start()
            sending.close()  # so that the end of the process is the end of the pipe
            running[receiving] = process, job, set(job.seeds)
        for ready in wait(list(running)):
            assert isinstance(ready, Connection)
            process, job, missing = running[ready]
            try:
                row = ready.recv()
            except EOFError:  # it has ended; what it did not report, it did not survive
                process.join()
                del running[ready]
                cell = {"variant": job.variant, "vocab_size": job.vocab_size}
                for seed in sorted(missing):
                    error = f"its process ended with status {process.exitcode}"
                    take({**cell, "seed": seed, "error": error})
                    shutil.rmtree(job.run(seed), ignore_errors=True)
                shutil.rmtree(job.tokens, ignore_errors=True)
                continue
            missing.discard(row["seed"])
            take(row)


HEADING = "     V  variant               seeds     bpb      sd     diff  diff sd  B/token   asset"


def table(rows: list[dict[str, Any]], variants: tuple[str, ...]) -> None:
    """Print mean bpb, its deviation, and the paired difference to the first variant."""
    click.echo(HEADING)
    for vocab_size in sorted({row["vocab_size"] for row in rows}):
        by = {(r["variant"], r["seed"]): r for r in rows if r["vocab_size"] == vocab_size}
        for variant in variants:
            own = {seed: row for (name, seed), row in by.items() if name == variant}
            if not own:
                continue
            values = [row["bpb"] for row in own.values()]
            pairs = [
                row["bpb"] - by[variants[0], seed]["bpb"]
                for seed, row in own.items()
                if (variants[0], seed) in by
            ]
            mean = f"{statistics.mean(pairs):+.4f}" if pairs else "      -"
            some = next(iter(own.values()))
            click.echo(
                f"{vocab_size:6}  {variant:20}  {len(own):5}  {statistics.mean(values):.4f}  "
                f"{deviation(values)}  {mean}   {deviation(pairs)}  "
                f"{some['bytes'] / some['tokens']:7.4f}  {some['asset_bytes']:6}"
            )


def deviation(values: list[float]) -> str:
    """Standard deviation over seeds, or a dash for one."""
    return f"{statistics.stdev(values):.4f}" if len(values) > 1 else "     -"


def experiment_options(command: Callable[..., None]) -> Callable[..., None]:
    """What every trained comparison is asked for: texts, sizes, seeds, budget and machine."""
    path = click.Path(path_type=Path)
    for option in (
        click.option("-o", "--output", required=True, type=path),
        click.option("--jobs", default=1, show_default=True, help="Processes at a time."),
        click.option("--device", default="cpu", show_default=True, help="auto, cpu, cuda, cuda:N."),
        click.option("--set", "settings", multiple=True, help="Override: trunk.d_model=96."),
        click.option("--recipe", default="cpu", show_default=True),
        click.option("--val-bytes", default=500_000, show_default=True),
        click.option("--train-bytes", default=16_000_000, show_default=True),
        click.option("--steps", default=300, show_default=True),
        click.option("--seed", "seeds", multiple=True, type=int, default=(1, 2, 3)),
        click.option("--vocab-size", "vocab_sizes", multiple=True, type=int, default=(1024,)),
        click.option("--val", "val_spec", default="stdlib:val", show_default=True),
        click.option("--train", "train_spec", default="stdlib:train", show_default=True),
    ):
        command = option(command)
    return command


def settings_of(
    recipe: str, settings: tuple[str, ...], steps: int, device: str
) -> tuple[dict[str, Any], str]:
    """Overrides and device, checked: a wrong one should not wait for the first run."""
    try:
        overrides = {**parse_overrides(settings), "steps": steps, "minutes": 600.0}
        run_config(recipe, overrides)
        return overrides, resolve_device(device)
    except TokgolfError as error:
        raise click.ClickException(str(error)) from error


def texts_and_rows(
    output: Path, train: tuple[str, int], val: tuple[str, int]
) -> list[dict[str, Any]]:
    """Put excerpts of both texts into the output folder; the rows that are there already."""
    output.mkdir(parents=True, exist_ok=True)
    excerpt(*train, output / "train.jsonl")
    excerpt(*val, output / "val.jsonl")
    return read_rows(output / "results.jsonl")


def add_row(log: Path, row: dict[str, Any]) -> None:
    """Append a row to a file of rows, and show it."""
    with open(log, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    click.echo(json.dumps(row), err=True)


def read_rows(log: Path) -> list[dict[str, Any]]:
    """The rows of an output file; none if there is no such file yet."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@click.command()
@click.option("--variant", "variants", multiple=True, default=("none", "transform=caps"))
@experiment_options
def main(
    train_spec: str,
    val_spec: str,
    variants: tuple[str, ...],
    vocab_sizes: tuple[int, ...],
    seeds: tuple[int, ...],
    steps: int,
    train_bytes: int,
    val_bytes: int,
    recipe: str,
    settings: tuple[str, ...],
    device: str,
    jobs: int,
    output: Path,
) -> None:
    """Train and score every variant at every size with every seed."""
    overrides, device = settings_of(recipe, settings, steps, device)
    rows = texts_and_rows(output, (train_spec, train_bytes), (val_spec, val_bytes))
    log = output / "results.jsonl"
    done = {(row["variant"], row["vocab_size"], row["seed"]) for row in rows}
    failed = []

    def take(row: dict[str, Any]) -> None:
        click.echo(json.dumps(row), err=True)
        if "error" in row:
            failed.append(row)
            return
        rows.append(row)
        write_text(log, "".join(json.dumps(row) + "\n" for row in rows))

    waiting = []
    for vocab_size in vocab_sizes:
        for variant in variants:
            left = tuple(seed for seed in seeds if (variant, vocab_size, seed) not in done)
            if left:
                job = Job(
                    variant=variant,
                    vocab_size=vocab_size,
                    seeds=left,
                    recipe=recipe,
                    overrides=overrides,
                    device=device,
                    threads=max(1, (os.cpu_count() or 1) // jobs),
                    folder=output,
                )
                waiting.append(job)
    run_jobs(waiting, jobs, take)
    table([row for row in rows if row["variant"] in variants], variants)
    if failed:
        raise click.ClickException(f"{len(failed)} runs failed; their errors are above")


if __name__ == "__main__":
    main()
