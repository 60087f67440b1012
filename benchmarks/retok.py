"""Whether a new tokenizer and head on a frozen trunk rank as they do after full training.

Each candidate is trained twice: all of it from scratch, and both its ends on the frozen trunk of a
run with a tokenizer that is no candidate, on the first part of the same text. All read the same
bytes of text, so that a candidate with longer tokens takes fewer steps. Scores are of the float
model on whole documents in raw mode. One line of JSON a run goes to the output; runs that are there
already are not repeated. At the end the table of every seed, and how well both orders agree.

    python benchmarks/retok.py --train web_train.jsonl.zst --val web_val_raw.jsonl.zst \\
        -o runs/retok
"""

import itertools
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

# The repository's root is searched first, so that a checkout runs uninstalled; a script's folder
# last, or the benchmark tokenizers.py would pass for a library.
HERE = Path(__file__).resolve().parent
sys.path = [p for p in sys.path if Path(p or ".").resolve() != HERE]
sys.path = [str(HERE.parent), *sys.path, str(HERE)]

import click  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from trained_tokenizers import add_row, excerpt, read_rows  # noqa: E402

from tokgolf.artifact.checkpoint import load_run  # noqa: E402
from tokgolf.config import merged, parse_overrides  # noqa: E402
from tokgolf.corpora import Corpus  # noqa: E402
from tokgolf.eval.score import score  # noqa: E402
from tokgolf.tokenizers import Tokenizer, build_tokenizer, load_tokenizer, save_tokenizer  # noqa: E402
from tokgolf.training import run_config, train  # noqa: E402

SOURCE = "trunk"
CANDIDATES: dict[str, tuple[str, int, tuple[str, ...]]] = {
    SOURCE: ("bpe", 768, ()),
    "bpe512 tied": ("bpe", 512, ()),
    "bpe1024 tied": ("bpe", 1024, ()),
    "bpe2048 tied": ("bpe", 2048, ()),
    "unigram1024 tied": ("unigram", 1024, ()),
    "bpe1024 factorized 16": ("bpe", 1024, ("head.name=factorized", "head.rank=16")),
    "bpe2048 factorized 16": ("bpe", 2048, ("head.name=factorized", "head.rank=16")),
}
BASE = ("trunk.layers=2", "trunk.d_model=64", "trunk.heads=2", "trunk.kv_heads=1",
        "trunk.mlp_hidden=128", "trunk.sequence_length=128", "batch_tokens=4096",
        "micro_batch_tokens=4096", "compile=off", "minutes=600.0")  # fmt: skip


def tokenizer_of(output: Path, corpus: Corpus, kind: str, size: int) -> Tokenizer:
    """The candidate's tokenizer, built on the first call from the training text."""
    path = output / f"{kind}{size}.tok"
    if not path.exists():
        save_tokenizer(build_tokenizer(kind, (d.data for d in corpus), size), path)
    return load_tokenizer(path)


def trained(
    output: Path, corpus: Corpus, held_out: Corpus, name: str, seed: int, text: int, frozen: bool
) -> dict[str, Any]:
    """Train and score one candidate on so many bytes of text."""
    kind, size, settings = CANDIDATES[name]
    tokenizer = tokenizer_of(output, corpus, kind, size)
    sample = [document.data for document in itertools.islice(corpus, 100)]
    per_token = sum(map(len, sample)) / sum(map(len, tokenizer.encode_batch(sample)))
    steps = max(1, round(text / per_token / 4096))
    source = output / f"{SOURCE}-{seed}"
    values: dict[str, Any] = {"seed": seed, "steps": steps}
    if frozen:
        values |= {"trunk_from": str(source), "freeze_trunk": True}
    config = run_config("cpu", merged(parse_overrides((*BASE, *settings)), values))
    run = source if name == SOURCE else output / "run"
    shutil.rmtree(run, ignore_errors=True)
    result = train(config, tokenizer, corpus, run, held_out=held_out, device="cpu")
    scored = score(load_run(run), held_out, device="cpu")
    return {"bpb": scored.bpb, "steps": steps, "params": result.params, "seconds": result.seconds}


def kendall(one: list[float], two: list[float]) -> float:
    """Pairs in the same order, less those in the other, of all pairs.

    [1, 2, 3], [1, 3, 2] -> 1/3
    """
    pairs = list(itertools.combinations(zip(one, two, strict=True), 2))
    return sum(float(np.sign((a[0] - b[0]) * (a[1] - b[1]))) for a, b in pairs) / len(pairs)


def spearman(one: list[float], two: list[float]) -> float:
    """The correlation of ranks, without ties.  # [1, 2, 3], [1, 3, 2] -> 0.5"""
    ranks = [np.argsort(np.argsort(values)).tolist() for values in (one, two)]
    return statistics.correlation(*ranks)


def show(rows: list[dict[str, Any]]) -> None:
    """The table and the agreement of each seed, and of the means over the seeds."""
    by = {(row["name"], row["seed"], row["frozen"]): row["bpb"] for row in rows}
    names = [name for name in CANDIDATES if name != SOURCE]
    whole: list[tuple[str, list[list[float]]]] = []
    for seed in sorted({row["seed"] for row in rows}):
        both = [[by.get((name, seed, frozen)) for name in names] for frozen in (False, True)]
        if None not in both[0] + both[1]:
            whole.append((f"seed {seed}", both))  # type: ignore[arg-type]
    if not whole:
        return
    columns = np.array([both for _, both in whole]).mean(0).tolist()
    for title, both in [*whole, ("mean", columns)] if len(whole) > 1 else whole:
        click.echo(f"{title:24} {'full':>7} {'frozen':>7}")
        for name, full, frozen in zip(names, *both, strict=True):
            click.echo(f"{name:24} {full:7.4f} {frozen:7.4f}")
        click.echo(f"Spearman {spearman(*both):.3f}, Kendall {kendall(*both):.3f}")


@click.command()
@click.option("--train", "train_spec", default="stdlib:train", show_default=True)
@click.option("--val", "val_spec", default="stdlib:val", show_default=True)
@click.option("--train-bytes", default=3_000_000, show_default=True)
@click.option("--val-bytes", default=300_000, show_default=True)
@click.option("--text", default=1_500_000, show_default=True, help="Bytes of a full run.")
@click.option("--part", default=0.25, show_default=True, help="Of them on the frozen trunk.")
@click.option("--seed", "seeds", multiple=True, type=int, default=(1, 2))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
def main(
    train_spec: str,
    val_spec: str,
    train_bytes: int,
    val_bytes: int,
    text: int,
    part: float,
    seeds: tuple[int, ...],
    output: Path,
) -> None:
    """Train every candidate in full and on a frozen trunk, and print both rankings."""
    torch.set_num_threads(1)
    output.mkdir(parents=True, exist_ok=True)
    log = output / "results.jsonl"
    corpus = excerpt(train_spec, train_bytes, output / "train.jsonl")
    held_out = excerpt(val_spec, val_bytes, output / "val.jsonl")
    for seed in seeds:
        for name, frozen in itertools.product(CANDIDATES, (False, True)):
            done = {(row["name"], row["seed"], row["frozen"]) for row in read_rows(log)}
            if (name, seed, frozen) in done or (name == SOURCE and frozen):
                continue
            size = round(text * part) if frozen else text
            found = trained(output, corpus, held_out, name, seed, size, frozen)
            row = {"name": name, "seed": seed, "frozen": frozen, **found}
            add_row(log, row)
    show(read_rows(log))


if __name__ == "__main__":
    main()
