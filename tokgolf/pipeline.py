"""The whole job in one call: documents, tokenizer, training, export, decode, score, report.

It only strings together what the other commands do, in the order a person would run them.
"""

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokgolf.artifact.export import export_run
from tokgolf.config import merged
from tokgolf.corpora import open_corpus
from tokgolf.device import resolve_device
from tokgolf.errors import ConfigError
from tokgolf.eval.compressors import with_baselines
from tokgolf.eval.score import open_source, read_train_digests, save_score, score
from tokgolf.heads import head_config
from tokgolf.model import head_shape
from tokgolf.quantize.rows import QuantConfig
from tokgolf.report.build import build, write
from tokgolf.tokenizers import build_tokenizer
from tokgolf.training import StepReport, run_config, train

RECIPE = "modern"
SCORE_STRIDE = 128
REPORT = "report.html"


def golf(
    corpus: str,
    run: Path,
    *,
    vocab_size: int,
    cap: int,
    split: str = "test",
    overrides: Mapping[str, Any],
    quantizer: QuantConfig | None = None,
    device: str = "auto",
    say: Callable[[str], None] = lambda line: None,
    on_step: Callable[[StepReport], None] = lambda report: None,
) -> dict[str, Any]:
    """Run the pipeline on a corpus with splits, into the directory `run`; scores `split`.

    The score is of the test split, which no choice made for the recipe has looked at.

    An earlier run in that directory is replaced; any other directory there is refused. Returns
    what the command prints as JSON. Raises whatever the stages raise.
    """
    began = time.perf_counter()
    ours = all((run / name).is_file() for name in ("tokenizer.tok", "train_documents.npy"))
    if run.exists() and not ours and (not run.is_dir() or any(run.iterdir())):
        raise ConfigError(f"{run} exists and is not a tokgolf run; choose another -o")
    config = run_config(RECIPE, overrides)
    device = resolve_device(device)
    train_corpus, held_out = open_corpus(corpus, "train"), open_corpus(corpus, split)
    summary = held_out.summary()
    say(f"corpus    {corpus}: {summary.documents} held-out documents, {summary.bytes:,} bytes")
    tokenizer = build_tokenizer("bpe", (document.data for document in train_corpus), vocab_size)
    say(f"tokenizer bpe, {tokenizer.vocab_size:,} tokens in {len(tokenizer.asset()):,} bytes")
    shape = head_shape(tokenizer, config.trunk)
    head_config(config.head).build(shape)  # what is wrong with the options is said before ...
    if run.exists():  # ... an earlier run goes
        shutil.rmtree(run)
    result = train(
        config,
        tokenizer,
        train_corpus,
        run,
        held_out=held_out,
        device=device,
        on_step=on_step,
        say=say,
    )
    say(
        f"training  {result.params:,} parameters, {result.steps:,} steps, "
        f"{result.tokens:,} tokens in {result.seconds:.0f} s"
    )
    path = run / "model.golf"
    ledger, _ = export_run(run, path, cap=cap, config=quantizer, device=device, say=say)
    say(f"export    {path}: {ledger.full:,} of {cap:,} bytes, tokenizer and code included")
    stride = min(SCORE_STRIDE, config.trunk.sequence_length)
    scores = []
    for place in (run, path):
        source, folder = open_source(place)
        digests = read_train_digests(source, folder)
        scores.append(score(source, held_out, stride=stride, device=device, train_digests=digests))
    before, after = scores
    after = with_baselines(after, held_out, tokenizer, compress=True)
    save_score(after, run / "score.json")
    say(f"score     {after.bpb:.4f} bits per byte ({before.bpb:.4f} before export)")
    others = after.baselines
    assert others is not None
    say(
        f"compare   xz -9e {others['xz_bpb']:.4f}, zstd -19 {others['zstd_bpb']:.4f}, brotli -11 "
        f"{others['brotli_bpb']:.4f}, PPMd order {others['ppmd_order']} {others['ppmd_bpb']:.4f}, "
        f"unigram tokens {others['unigram_token_bpb']:.4f} bits per byte"
    )
    write(build([run], cap=cap), run / REPORT)
    say(f"report    {run / REPORT}")
    return merged(
        after.as_dict(),
        {
            "bpb_before_export": before.bpb,
            "cap": cap,
            "xz_bpb": others["xz_bpb"],
            "ppmd_bpb": others["ppmd_bpb"],
            "seconds": time.perf_counter() - began,
            "head": config.head["name"],
            "vocab_size": tokenizer.vocab_size,
            "steps": result.steps,
            "params": result.params,
        },
    )
