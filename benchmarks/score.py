"""How fast the scorer is, beside a plain forward pass of the same model over the same windows.

The plain pass is model.hidden, head.logits and F.cross_entropy of one batch after the other, from
token tensors that are made already. The scorer encodes text, cuts windows, batches them, and gives
each document its nats; with its witness it also checks invariants (a) to (d) and (f) on all of it.
Medians of rounds in which all take turns; on a CPU of CPU time, which other work does not change as
much (with one thread: OMP_NUM_THREADS=1). The ratio is of tokens that are paid for in a second: a
sliding window runs over window / stride as many, and its ratio says what the stride costs.

    python benchmarks/score.py --case 1024,256,256 --case 16384,256,1024

With an artifact it measures instead how far the score moves with what it must not depend on: batch
size, threads, the compiler, and an fp64 model that sees one window at a time. (With bf16 too, which
is an estimate.)

    python benchmarks/score.py --artifact runs/golf/model.golf --corpus stdlib:test
"""

import copy
import math
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

# The repository's root is searched first, so that a checkout runs uninstalled; a script's folder
# last, or the benchmark tokenizers.py would pass for a library.
HERE = Path(__file__).resolve().parent
sys.path = [p for p in sys.path if Path(p or ".").resolve() != HERE]
sys.path = [str(HERE.parent), *sys.path, str(HERE)]

import click  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from tokgolf.artifact.load import Artifact, load_artifact  # noqa: E402
from tokgolf.config import TrunkConfig  # noqa: E402
from tokgolf.corpora import Corpus, Document, open_corpus  # noqa: E402
from tokgolf.device import resolve_device  # noqa: E402
from tokgolf.eval.protocol import Protocol  # noqa: E402
from tokgolf.eval.scorer import BATCH_TOKENS, document_nats, windows  # noqa: E402
from tokgolf.eval.witness import Witness  # noqa: E402
from tokgolf.heads import head_config  # noqa: E402
from tokgolf.model import LanguageModel, build_model, head_shape  # noqa: E402
from tokgolf.tokenizers import Tokenizer, build_tokenizer  # noqa: E402


def plain_pass(model: LanguageModel, tokens: torch.Tensor, targets: torch.Tensor) -> float:
    """The nats of all windows, (windows, window) each; batches of the scorer's size."""
    rows = max(1, BATCH_TOKENS // tokens.size(1))
    total = 0.0
    with torch.inference_mode():
        for start in range(0, len(tokens), rows):
            x, y = tokens[start : start + rows], targets[start : start + rows]
            logits = model.head.logits(model.hidden(x).flatten(0, 1), x.flatten())
            total += float(F.cross_entropy(logits, y.flatten(), reduction="none").sum())
    return total


def scored(
    model: LanguageModel, tokenizer: Tokenizer, corpus: Corpus, protocol: Protocol, *, checks: bool
) -> int:
    """Score all of it; the number of targets."""
    protocol = protocol.of(model.trunk.config)
    documents = (document.data for document in corpus)
    options = {"window": protocol.window, "stride": protocol.stride}
    count = 0
    if not checks:
        for _, nats in document_nats(model, tokenizer, documents, **options):
            count += len(nats)
        return count
    witness = Witness(model, tokenizer, protocol, corpus.summary(), trained_on=None, decoded=None)
    for data, nats in document_nats(model, witness, documents, **options, observe=witness.observe):
        witness.scored(data, nats)
        count += len(nats)
    return count


def timed(job: Callable[[], object], device: str) -> float:
    """Seconds of one call; on a CPU its own, as other work may run beside."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    began = clock()
    job()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - began


def agreement(path: str, spec: str) -> None:
    """Print the score of an artifact on the CPU, and the differences from it, in bits per byte."""
    artifact = load_artifact(path)
    documents = [document.data for document in open_corpus(spec)]
    size = sum(map(len, documents))

    def bpb(model: LanguageModel, **options: Any) -> float:
        scored = document_nats(model, artifact.tokenizer, documents, **options)
        return math.fsum(n for _, nats in scored for n in nats.tolist()) / math.log(2) / size

    def say(what: str, found: float) -> None:
        click.echo(f"{what:<40}{found - score:>+12.2e}")

    score = bpb(artifact.model)
    click.echo(f"{spec}, {size:,} bytes: {score:.7f} bits per byte")
    for threads in (1, torch.get_num_threads()):
        torch.set_num_threads(threads)
        for batch in (1, 512, 2048, 8192, 65536):
            say(
                f"{threads} threads, batches of {batch} tokens",
                bpb(artifact.model, batch_tokens=batch),
            )
    say("fp64, one window at a time", fp64_nats(artifact, documents) / math.log(2) / size)
    say("bf16", bpb(artifact.model, precision="bf16"))
    compiled = copy.deepcopy(artifact.model)
    compiled.trunk.compile(dynamic=True)
    say("compiled", bpb(compiled))


@torch.inference_mode()
def fp64_nats(artifact: Artifact, documents: list[bytes]) -> float:
    """The nats of documents in disjoint windows; a norm's eps stays that of fp32."""
    model = copy.deepcopy(artifact.model).double()
    eps = torch.finfo(torch.float32).eps
    norm = lambda x: F.rms_norm(x, (x.size(-1),), None, eps)  # noqa: E731
    bos, window, total = artifact.tokenizer.bos_id, artifact.trunk.sequence_length, 0.0
    with patch("tokgolf.model.rms_norm", norm):
        for data in documents:
            tokens = torch.tensor([bos, *artifact.tokenizer.encode(data).tolist(), bos])
            for start, first, end in windows(len(tokens) - 1, window, window):
                x, y = tokens[None, start:end], tokens[start + 1 : end + 1, None]
                z = model.head.logits(model.hidden(x)[0], x[0])
                total -= float(z.log_softmax(-1).gather(1, y)[first - start :].sum())
    return total


@click.command()
@click.option("--case", "cases", multiple=True, help="vocabulary,d_model,window")
@click.option("--windows", default=64, help="Windows of text.")
@click.option("--stride", default=4, help="Sliding windows start every window / N.")
@click.option("--rounds", default=5)
@click.option("--layers", default=4)
@click.option("--head", default="tied")
@click.option("--device", default="cpu")
@click.option("--artifact", help="Measure agreement with this one instead.")
@click.option("--corpus", default="stdlib:val", show_default=True, help="For --artifact.")
def main(
    cases: tuple[str, ...],
    windows: int,
    stride: int,
    rounds: int,
    layers: int,
    head: str,
    device: str,
    artifact: str | None,
    corpus: str,
) -> None:
    """Print a line for each case."""
    if artifact is not None:
        agreement(artifact, corpus)
        return
    device = resolve_device(device)
    text = b"\n".join(document.data for document in open_corpus("stdlib", "train"))
    click.echo(f"{device}, {torch.get_num_threads()} threads, head {head}, {layers} layers")
    names = ("plain tok/s", "scorer", "with checks", "sliding", "with checks")
    click.echo(f"{'V':>6}{'d':>6}{'window':>8}" + "".join(f"{name:>13}" for name in names))
    for case in cases or ("1024,128,256", "1024,512,1024", "4096,256,512", "16384,256,1024"):
        vocab, width, window = map(int, case.split(","))
        tokenizer = build_tokenizer("bpe", [text], vocab)
        trunk = TrunkConfig(
            layers=layers, d_model=width, heads=width // 32, kv_heads=width // 64,
            mlp_hidden=2 * width, sequence_length=window,
        )  # fmt: skip
        torch.manual_seed(0)
        model = build_model(trunk, head_config({"name": head}), head_shape(tokenizer, trunk))
        model.to(device).eval().requires_grad_(False)
        # A document of exactly so many windows of targets.
        ids = tokenizer.encode(text)[: windows * window - 1]
        data = tokenizer.decode(ids)
        one = Corpus(name="bench", split=None, source=partial(iter, [Document("", data)]))
        bos = np.array([tokenizer.bos_id])
        stream = np.concatenate([bos, tokenizer.encode(data), bos]).astype(np.int64)
        count = (len(stream) - 1) // window * window
        pieces = torch.from_numpy(stream).to(device)
        x, y = pieces[:count].view(-1, window), pieces[1 : count + 1].view(-1, window)
        sliding = Protocol(stride=window // stride)
        jobs: list[Callable[[], object]] = [partial(plain_pass, model, x, y)]
        for protocol in (Protocol(), sliding):
            for checks in (False, True):
                jobs.append(partial(scored, model, tokenizer, one, protocol, checks=checks))
        times: list[list[float]] = [[] for _ in jobs]
        for _ in range(rounds + 1):
            for job, found in zip(jobs, times, strict=True):
                found.append(timed(job, device))
        plain, *others = (statistics.median(found[1:]) for found in times)
        rates = [len(stream[1:]) / seconds * plain / count for seconds in others]
        click.echo(
            f"{vocab:>6}{width:>6}{window:>8}{count / plain:>13,.0f}"
            + "".join(f"{rate:>13.3f}" for rate in rates)
        )


if __name__ == "__main__":
    main()
