"""Which head earns its bytes: one trunk under every head, trained, exported and scored.

Two conditions. "steps": all heads have the same trunk and take the same bits a weight, so a head
that has more weights has them for nothing. "bytes": the trunk's MLP is made narrower or wider until
there are as many weights as under the tied head, and the export lands under the same cap. In both,
every head sees the same tokens in the same order for as many steps. Each run is scored before
export and as decoded from its artifact, on whole documents in raw mode.

One line of JSON a run goes to the output; runs that are there already are not repeated; a run that
fails is reported and left out. All cases of a seed come before the next seed, those that only add a
mask last.

    python benchmarks/trained_heads.py --train web_train.jsonl.zst --val web_val_raw.jsonl.zst \\
        --vocab-size 1024 --vocab-size 4096 --device cuda --jobs 8 -o runs/heads
    python benchmarks/trained_heads.py -o runs/heads --show --plot heads.png
"""

import json
import os
import shutil
import statistics
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
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
from trained_tokenizers import (  # noqa: E402
    deviation,
    experiment_options,
    link,
    read_rows,
    settings_of,
    texts_and_rows,
)

from tokgolf.artifact.checkpoint import load_run  # noqa: E402
from tokgolf.artifact.export import calibration_tokens, export_model  # noqa: E402
from tokgolf.config import merged  # noqa: E402
from tokgolf.corpora import open_corpus  # noqa: E402
from tokgolf.eval.score import score  # noqa: E402
from tokgolf.files import write_text  # noqa: E402
from tokgolf.heads import head_config  # noqa: E402
from tokgolf.quantize.rows import QuantConfig  # noqa: E402
from tokgolf.sweep.equal import weights_of  # noqa: E402
from tokgolf.tokenizers import Tokenizer, build_tokenizer, load_tokenizer, save_tokenizer  # noqa: E402
from tokgolf.training import RunConfig, run_config, train  # noqa: E402
from tokgolf.training.data import tokenize  # noqa: E402

BITS = 3.6  # a weight
CODE_BYTES = 32_000  # what the largest head's code takes, and a header
CONDITIONS = ("steps", "bytes")
TIED = head_config({"name": "tied"})
MASK: dict[str, dict[str, Any]] = {"canonical-mask": {}}
HEADS: dict[str, dict[str, Any]] = {
    "tied": {"name": "tied"},
    "tied, input rank 32": {"name": "tied", "input_rank": 32},
    "untied": {"name": "untied"},
    "untied from 1/2 on": {"name": "untied", "untie_at": 0.5},
    "factorized 64": {"name": "factorized", "rank": 64},
    "factorized 128": {"name": "factorized", "rank": 128},
    "vq, published": {"name": "vq"},
    "vq, residual 16": {"name": "vq", "residual_rank": 16},
    "product": {"name": "product"},
    "hashed": {"name": "hashed"},
    "composed": {"name": "composed"},
    "grouped": {"name": "grouped"},
    "adaptive": {"name": "adaptive"},
    "mixture 2": {"name": "mixture"},
}
HASH: dict[str, Any] = {"buckets": 4096, "dim": 32}
ADDED: dict[str, dict[str, Any]] = {
    "+ unigram-bias": {"unigram-bias": {}},
    "+ bigram-hash": {"bigram-hash": HASH},
    "+ bigram-hash, signs": {"bigram-hash": {**HASH, "signs": True}},
    "+ bigram-logits 32": {"bigram-logits": {"rank": 32}},
    "+ canonical-mask": MASK,
    "+ bias, hash, mask": {"unigram-bias": {}, "bigram-hash": HASH, **MASK},
}
MASKED = {f"{case}, masked": {**head, "add": MASK} for case, head in HEADS.items()}
CASES: dict[str, dict[str, Any]] = {
    **HEADS,
    **{case: {"name": "tied", "add": add} for case, add in ADDED.items()},
    # A mask stores no weights: with it, equal bytes are equal steps but for its code. And tied
    # with a mask is among the add-ons.
    **{case: head for case, head in MASKED.items() if case != "tied, masked"},
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A run, and all that its process must know."""

    case: str
    vocab_size: int
    condition: str
    seed: int
    recipe: str
    overrides: dict[str, Any]
    device: str
    threads: int
    folder: Path
    float_only: bool

    @property
    def key(self) -> tuple[str, int, str, int]:
        """What a finished run is known by."""
        return self.case, self.vocab_size, self.condition, self.seed


def cap_of(cell: Cell, tokenizer: Tokenizer) -> int:
    """The cap of condition "bytes": the tied head's weights at `BITS`, and all else."""
    trunk = run_config(cell.recipe, cell.overrides).trunk
    weights = weights_of(trunk, TIED, tokenizer)
    return int(weights * BITS / 8) + len(tokenizer.asset()) + CODE_BYTES


def config_of(cell: Cell, tokenizer: Tokenizer) -> RunConfig:
    """The run's config; in condition "bytes" with an MLP as wide as the tied head's bytes allow."""
    head = CASES[cell.case]
    values = merged(cell.overrides, {"head": head, "seed": cell.seed})
    # Tables keep the tied one's learning rate: to move it together with untying is to confound.
    values = merged({"optimizer": {"lr_input": 0.04}}, values)
    config = run_config(cell.recipe, values)
    if cell.condition == "steps":
        return config
    trunk = config.trunk
    over = weights_of(trunk, head_config(head), tokenizer) - weights_of(trunk, TIED, tokenizer)
    unit = 8  # of width, which the processor likes
    width = trunk.mlp_hidden - unit * round(over / (2 * trunk.layers * trunk.d_model * unit))
    if width < unit:
        raise ValueError(f"the head alone has {over:,} weights more: there is no trunk to pay them")
    return replace(config, trunk=replace(trunk, mlp_hidden=width))


def run_cell(cell: Cell) -> dict[str, Any]:
    """Train, score, export and score again; the run's row."""
    torch.set_num_threads(cell.threads)
    row: dict[str, Any] = {
        "case": cell.case,
        "vocab_size": cell.vocab_size,
        "condition": cell.condition,
        "seed": cell.seed,
    }
    run = cell.folder / "runs" / f"{abs(hash(cell.key))}-{os.getpid()}"
    try:
        tokenizer = load_tokenizer(cell.folder / f"bpe{cell.vocab_size}.tok")
        corpus, held_out = (open_corpus(str(cell.folder / f"{n}.jsonl")) for n in ("train", "val"))
        config = config_of(cell, tokenizer)
        shutil.copytree(
            cell.folder / f"tokens{cell.vocab_size}", run / "tokens", copy_function=link
        )
        result = train(config, tokenizer, corpus, run, device=cell.device)
        source = load_run(run)
        before = score(source, held_out, device=cell.device)
        row.update(
            bpb_float=before.bpb,
            head_params=sum(p.numel() for p in source.model.head.parameters()),
            params=result.params,
            mlp_hidden=config.trunk.mlp_hidden,
            steps=result.steps,
            train_tokens=result.tokens,
            loss=result.loss,
            seconds=result.seconds,
        )
        if cell.float_only:
            return row
        source.model.to(cell.device)
        by_bytes = cell.condition == "bytes"
        artifact = export_model(
            source,
            QuantConfig(bits=None if by_bytes else BITS),
            calibration_tokens(run, source),
            cap=cap_of(cell, tokenizer) if by_bytes else None,
        ).artifact
        after = score(artifact, held_out, device=cell.device)
        row.update(
            bpb=after.bpb,
            bytes=artifact.ledger.full,
            code=dict(artifact.ledger.rows)["code"],
        )
    except Exception as error:  # whatever becomes of one run, the others go on
        row["error"] = f"{type(error).__name__}: {error}"
    finally:
        shutil.rmtree(run, ignore_errors=True)
    return row


def prepare(folder: Path, vocab_size: int) -> None:
    """Learn a tokenizer on the training text and tokenize it, once for all runs."""
    path, tokens = folder / f"bpe{vocab_size}.tok", folder / f"tokens{vocab_size}"
    corpus = open_corpus(str(folder / "train.jsonl"))
    if not path.exists():
        save_tokenizer(build_tokenizer("bpe", (d.data for d in corpus), vocab_size), path)
    tokenize(corpus, load_tokenizer(path), tokens, "train", corpus.summary().sha256)


def table(rows: list[dict[str, Any]]) -> Iterable[str]:
    """The results as lines of Markdown: means over seeds, and paired differences to tied."""
    for vocab_size in sorted({row["vocab_size"] for row in rows}):
        for condition in CONDITIONS:
            some = [r for r in rows if (r["vocab_size"], r["condition"]) == (vocab_size, condition)]
            if not some:
                continue
            tied = {row["seed"]: row for row in some if row["case"] == "tied"}
            yield f"\nV = {vocab_size}, equal {condition}\n"
            yield (
                "| head | seeds | bytes | MLP | float bpb | sd | to tied | sd | decoded bpb "
                "| to tied | sd |"
            )
            yield "|---|---|---|---|---|---|---|---|---|---|---|"
            for case in CASES:
                own = [row for row in some if row["case"] == case]
                if not own:
                    continue
                pairs = [(row, tied[row["seed"]]) for row in own if row["seed"] in tied]
                float_diff = [a["bpb_float"] - b["bpb_float"] for a, b in pairs]
                whole = [row for row in own if "bpb" in row]
                diff = [a["bpb"] - b["bpb"] for a, b in pairs if "bpb" in a and "bpb" in b]
                yield (
                    f"| {case} | {len(own)} | {mean(whole, 'bytes', ',.0f')} "
                    f"| {mean(own, 'mlp_hidden', '.0f')} | {mean(own, 'bpb_float', '.4f')} "
                    f"| {deviation([r['bpb_float'] for r in own])} "
                    f"| {difference(float_diff)} | {deviation(float_diff)} "
                    f"| {mean(whole, 'bpb', '.4f')} | {difference(diff)} | {deviation(diff)} |"
                )


def mean(rows: list[dict[str, Any]], key: str, style: str) -> str:
    """Mean of a column, or a dash for one without entries."""
    return format(statistics.mean(row[key] for row in rows), style) if rows else "-"


def difference(values: list[float]) -> str:
    """Mean with its sign, or a dash without a tied run to compare with."""
    return f"{statistics.mean(values):+.4f}" if values else "-"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw bpb before export, to tied's: a panel for each size, a line for each head."""
    from matplotlib.figure import Figure

    sizes = sorted({row["vocab_size"] for row in rows})
    cases = [case for case in reversed(CASES) if any(row["case"] == case for row in rows)]
    height = 1.2 + 0.25 * len(cases)
    figure = Figure(figsize=(2 + 4.5 * len(sizes), height), dpi=130, layout="constrained")
    panels = figure.subplots(1, len(sizes), squeeze=False, sharey=True)[0]
    for axes, vocab_size in zip(panels, sizes, strict=True):
        for condition, marker, color in zip(CONDITIONS, "os", ("#0072b2", "#d55e00"), strict=True):
            some = [r for r in rows if (r["vocab_size"], r["condition"]) == (vocab_size, condition)]
            tied = {row["seed"]: row["bpb_float"] for row in some if row["case"] == "tied"}
            points = [
                (row["bpb_float"] - tied[row["seed"]], cases.index(row["case"]))
                for row in some
                if row["seed"] in tied
            ]
            if points:
                x, y = zip(*points, strict=True)
                label = f"equal {condition}"
                axes.scatter(x, y, marker=marker, color=color, s=20, alpha=0.8, label=label)
        axes.axvline(0, color="#888888", linewidth=0.8)
        axes.set_title(f"V = {vocab_size:,}", loc="left", fontsize=11)
        axes.set_yticks(range(len(cases)), cases, fontsize=8)
        axes.set_xlabel("bpb before export, to tied (a mark a seed)", fontsize=9)
        axes.grid(True, color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)


@click.command(help=__doc__)
@click.option(
    "--case", "cases", multiple=True, type=click.Choice(list(CASES)), help="Default: all."
)
@click.option("--condition", "conditions", multiple=True, type=click.Choice(CONDITIONS))
@click.option("--float-only", is_flag=True, help="Neither export nor score the artifact.")
@click.option("--show", is_flag=True, help="Run nothing, print the table of what is there.")
@click.option("--plot", "plot_path", type=click.Path(path_type=Path), help="A .png to draw.")
@experiment_options
def main(
    train_spec: str,
    val_spec: str,
    cases: tuple[str, ...],
    vocab_sizes: tuple[int, ...],
    conditions: tuple[str, ...],
    seeds: tuple[int, ...],
    steps: int,
    train_bytes: int,
    val_bytes: int,
    recipe: str,
    settings: tuple[str, ...],
    device: str,
    jobs: int,
    float_only: bool,
    show: bool,
    plot_path: Path | None,
    output: Path,
) -> None:
    """Run every case and print the table."""
    log = output / "results.jsonl"
    rows = read_rows(log)
    if plot_path is not None:
        plot(rows, plot_path)
    if show:
        click.echo("\n".join(table(rows)))
        return
    overrides, device = settings_of(recipe, settings, steps, device)
    # Read by the processes' libraries when they load. Without it each would start a thread for
    # every core, and GPTQ's small products would only wait for each other.
    threads = max(1, (os.cpu_count() or 1) // jobs)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    rows = texts_and_rows(output, (train_spec, train_bytes), (val_spec, val_bytes))
    done = {(r["case"], r["vocab_size"], r["condition"], r["seed"]) for r in rows}
    cells = [
        Cell(
            case=case,
            vocab_size=vocab_size,
            condition=condition,
            seed=seed,
            recipe=recipe,
            overrides=overrides,
            device=device,
            threads=threads,
            folder=output,
            float_only=float_only,
        )
        for masked in (False, True)
        for seed in seeds
        for vocab_size in vocab_sizes
        for condition in conditions or CONDITIONS
        for case in cases or CASES
        if masked == (case in MASKED) and (condition == "steps" or not masked)
    ]
    left = [cell for cell in cells if cell.key not in done]
    context = get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        list(pool.map(prepare, [output] * len(vocab_sizes), vocab_sizes))
        for future in as_completed([pool.submit(run_cell, cell) for cell in left]):
            row = future.result()
            click.echo(json.dumps(row), err=True)
            if "error" not in row:
                rows.append(row)
                write_text(log, "".join(json.dumps(row) + "\n" for row in rows))
    click.echo("\n".join(table(rows)))


if __name__ == "__main__":
    main()
