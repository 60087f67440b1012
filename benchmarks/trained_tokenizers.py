"""Which tokenizer variant lowers bits per byte: one small model for each, trained and scored.

Every variant gets the same trunk, head, steps and tokens a step; only the tokenizer differs. So a
variant with more tokens a byte sees less text, as it would under a time limit. Scores are of the
float model, on whole documents, per byte of the original text. One line of JSON a run goes to
the output; runs that are there already are not repeated. At the end a table: mean and standard
deviation over the seeds, and each variant's paired difference to the first.

    python benchmarks/trained_tokenizers.py --train web_train.jsonl.zst \\
        --val web_val_raw.jsonl.zst --variant none --variant transform=caps \\
        --vocab-size 1024 --vocab-size 4096 -o runs/variants
"""

import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import click

from tokgolf.artifact.checkpoint import load_run
from tokgolf.corpora import Corpus, open_corpus, write_jsonl
from tokgolf.eval.score import score
from tokgolf.tokenizers import Tokenizer, build_tokenizer
from tokgolf.training import run_config, train


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


def run_one(
    variant: str, vocab_size: int, seed: int, corpus: Corpus, held_out: Corpus, folder: Path
) -> dict[str, Any]:
    """Train and score one model; its row."""
    tokenizer = build(variant, vocab_size, corpus)
    config = run_config("cpu", {**OVERRIDES, "seed": seed})
    run = folder / "runs" / f"{variant.replace(',', '_')}-{vocab_size}-{seed}"
    run.parent.mkdir(exist_ok=True)
    shutil.rmtree(run, ignore_errors=True)  # of a run that was cut off
    result = train(config, tokenizer, corpus, run, held_out=held_out, device="cpu")
    scored = score(load_run(run), held_out)
    return {
        "variant": variant,
        "vocab_size": vocab_size,
        "seed": seed,
        "bpb": scored.bpb,
        "tokens": scored.tokens,
        "bytes": scored.bytes,
        "asset_bytes": len(tokenizer.asset()),
        "steps": result.steps,
        "train_tokens": result.tokens,
        "params": result.params,
    }


OVERRIDES: dict[str, Any] = {}
HEADING = "     V  variant               seeds     bpb      sd     diff  diff sd  B/token   asset"


def table(rows: list[dict[str, Any]]) -> None:
    """Print mean bpb, its deviation, and the paired difference to the first variant."""
    variants = list(dict.fromkeys(row["variant"] for row in rows))
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
            some = next(iter(own.values()))
            click.echo(
                f"{vocab_size:6}  {variant:20}  {len(own):5}  {statistics.mean(values):.4f}  "
                f"{deviation(values)}  {statistics.mean(pairs):+.4f}   {deviation(pairs)}  "
                f"{some['bytes'] / some['tokens']:7.4f}  {some['asset_bytes']:6}"
            )


def deviation(values: list[float]) -> str:
    """Standard deviation over seeds, or a dash for one."""
    return f"{statistics.stdev(values):.4f}" if len(values) > 1 else "     -"


@click.command()
@click.option("--train", "train_spec", default="stdlib:train", show_default=True)
@click.option("--val", "val_spec", default="stdlib:val", show_default=True)
@click.option("--variant", "variants", multiple=True, default=("none", "transform=caps"))
@click.option("--vocab-size", "vocab_sizes", multiple=True, type=int, default=(1024,))
@click.option("--seed", "seeds", multiple=True, type=int, default=(1, 2, 3))
@click.option("--steps", default=300, show_default=True)
@click.option("--train-bytes", default=16_000_000, show_default=True)
@click.option("--val-bytes", default=500_000, show_default=True)
@click.option("--set", "settings", multiple=True, help="Config override, e.g. trunk.d_model=96.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
def main(
    train_spec: str,
    val_spec: str,
    variants: tuple[str, ...],
    vocab_sizes: tuple[int, ...],
    seeds: tuple[int, ...],
    steps: int,
    train_bytes: int,
    val_bytes: int,
    settings: tuple[str, ...],
    output: Path,
) -> None:
    """Train and score every variant at every size with every seed."""
    from tokgolf.config import parse_overrides

    output.mkdir(parents=True, exist_ok=True)
    OVERRIDES.update(parse_overrides(list(settings)), steps=steps, minutes=600.0)
    corpus = excerpt(train_spec, train_bytes, output / "train.jsonl")
    held_out = excerpt(val_spec, val_bytes, output / "val.jsonl")
    log = output / "results.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {(row["variant"], row["vocab_size"], row["seed"]) for row in rows}
    for seed in seeds:
        for vocab_size in vocab_sizes:
            for variant in variants:
                if (variant, vocab_size, seed) in done:
                    continue
                row = run_one(variant, vocab_size, seed, corpus, held_out, output)
                rows.append(row)
                with log.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                click.echo(json.dumps(row), err=True)
    table([row for row in rows if row["variant"] in variants])


if __name__ == "__main__":
    main()
