"""Every check that needs a GPU, in one command of under nine minutes, into one JSON file.

    python benchmarks/gpu_suite.py -o gpu.json
    python benchmarks/gpu_suite.py -o cpu.json --device cpu --quick    # tries the suite itself
    python benchmarks/gpu_suite.py -o gpu.json --challenge parameter-golf/train_gpt.py

A check is a group of parts. Each group runs in a process of its own, with a time limit: a part
that fails leaves one line in the file, a group that crashes, hangs or ruins the CUDA context
loses only its own rest. The file is replaced after every group. When all have run, the suite names
the groups that failed, those that were stopped at their limit among them, and ends with status 1;
a part that was skipped, or not begun for want of time, is no failure.

With `--only` the chosen groups share the whole time, and `--part` picks parts by what their names
contain. `--challenge` is the `train_gpt.py` of openai/parameter-golf, which is run beside the
trainer (`--part trainer`: just the two); it needs a CUDA device, and `train` takes the time for it
from the other groups.

    matmul     the bf16 rate that the device reaches: the denominator of `mfu`
    train      tokens/s of the `baseline` recipe: the step, the whole trainer, a plain PyTorch
               loop of the same model, and the challenge's script if it is given
    loss       time and memory of a head's loss, forward and backward, against torch's own
    agreement  the same numbers on CPU and device: scores, losses, hashes, masks
    options    `train` with all that begins on the way or is exported in place of the weights, a
               resumed run, what several processes exchange, and that no step waits for the device
    heads      every head and every add-on: a few steps, everything moves
"""

import contextlib
import gc
import json
import math
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

# The repository's root is searched first, so that a checkout runs uninstalled; a script's folder
# last, or the benchmark tokenizers.py would pass for a library.
HERE = Path(__file__).resolve().parent
sys.path = [p for p in sys.path if Path(p or ".").resolve() != HERE]
sys.path = [str(HERE.parent), *sys.path, str(HERE)]

BEGAN = time.monotonic()  # before torch is imported, which can take long

import click  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from plain import Plain, sources, synchronize  # noqa: E402
from torch import Tensor  # noqa: E402

from tokgolf.artifact.checkpoint import Checkpoint, read_checkpoint  # noqa: E402
from tokgolf.config import TrunkConfig, merged  # noqa: E402
from tokgolf.corpora.corpus import Corpus, Document  # noqa: E402
from tokgolf.corpora.shards import ShardWriter  # noqa: E402
from tokgolf.cost import flops_of_token  # noqa: E402
from tokgolf.device import resolve_device  # noqa: E402
from tokgolf.errors import ConfigError, Interrupted  # noqa: E402
from tokgolf.eval.scorer import document_nats  # noqa: E402
from tokgolf.files import write_text  # noqa: E402
from tokgolf.hashing import BigramBuckets  # noqa: E402
from tokgolf.heads import ADDONS, HEADS, HeadShape, head_config  # noqa: E402
from tokgolf.heads import loss as head_loss  # noqa: E402
from tokgolf.heads.base import allowed  # noqa: E402
from tokgolf.model import LanguageModel, build_model, head_shape  # noqa: E402
from tokgolf.tokenizers import Tokenizer, build_tokenizer  # noqa: E402
from tokgolf.training import RunConfig, StepReport, run_config, train  # noqa: E402
from tokgolf.training.attention import speed_up  # noqa: E402
from tokgolf.training.distributed import Ranks, in_order  # noqa: E402
from tokgolf.training.guards import STEPS_TO_MOVE, check_moved, initial_loss  # noqa: E402
from tokgolf.training.optimizers import OptimizerConfig, Optimizers, check_coverage  # noqa: E402
from tokgolf.training.session import Session, uses_bf16  # noqa: E402
from tokgolf.training.shares import divided  # noqa: E402

GOAL_BPB = 1e-5
"""The most that a document's score may differ between two devices, in bits per byte."""
GOAL_GRADIENT = 1e-3
"""The most that a tensor's fp32 gradient may differ, as a part of its norm."""

SECONDS = {
    "matmul": 40, "train": 135, "loss": 115, "agreement": 45, "options": 70, "heads": 115,
}  # fmt: skip
"""Time limit of each group, 520 s in all; what one leaves over goes to those after it."""
CHALLENGE_SECONDS = 150
"""What `train` has on top for `--challenge`; all limits then shrink to the same time in all."""
RESERVE = 20  # a group starts no part in its last seconds

CHUNKS = [1 << bits for bits in (23, 24, 25, 26, 27, 28)]
WHOLE = 1 << 62  # all logits in one chunk
COMPILED_CHUNKS = [1 << 27, WHOLE, 1 << 28, 1 << 25]
MOST_COMPILED_CHUNKS = 32  # the compiler unrolls them, and takes minutes for more

SMALL: dict[str, Any] = {
    "trunk": {
        "layers": 2, "d_model": 64, "heads": 2, "kv_heads": 1, "mlp_hidden": 128,
        "sequence_length": 64,
    },
    "batch_tokens": 1024,
    "micro_batch_tokens": 512,
}  # fmt: skip
"""A run that takes no time."""
RANKS = 8
"""As many processes as the exchange is laid out for."""
ROUNDING = 0.01
"""The most that a resumed run may always differ from a whole one on a GPU, in any number of a
checkpoint: two runs there may differ by rounding, and be the same by luck. On a CPU, a last bit of
every number in the checkpoint that was resumed from made 0.001 to 0.005 after six steps, losing the
momentum of Muon 0.06 and that of Adam 0.15."""

Result = dict[str, Any]
Part = tuple[str, Callable[[], Result]]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where to run, whether in the small sizes that only try the suite, with the challenge's
    script or without, and when (monotonic) the last part must have begun.
    """

    device: torch.device
    quick: bool
    challenge: Path | None = None
    until: float = math.inf


# --- what the checks share


@cache
def tokenizer_of(vocab_size: int, files: int) -> Tokenizer:
    """A small BPE tokenizer of so many sources of the standard library."""
    return build_tokenizer("bpe", sources(files), vocab_size)


def corpus_of(files: int) -> Corpus:
    """These sources, a document a file."""
    documents = [Document(id=str(i), data=data) for i, data in enumerate(sources(files))]
    return Corpus(name="sources", split=None, source=lambda: iter(documents), provenance={})


def files_of(s: Setting) -> int:
    return 12 if s.quick else 100


def seconds_of(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median time of a call; the device is idle before and after each."""
    times = []
    for _ in range(repeats):
        synchronize(device)
        began = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def reset_peak(device: torch.device) -> int:
    """Start a new peak; returns the bytes that are held now."""
    if device.type != "cuda":
        return 0
    torch.cuda.init()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def peak_mb(device: torch.device, held: int = 0) -> float | None:
    """Peak memory since `reset_peak` beyond `held` bytes, in MB; unknown on a CPU."""
    if device.type != "cuda":
        return None
    return (torch.cuda.max_memory_allocated(device) - held) / 1e6


def mixed(device: torch.device) -> torch.autocast:
    """Autocast as the trainer has it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=uses_bf16("auto", device))


def heads_and_addons() -> dict[str, dict[str, Any]]:
    """Config of every head with its defaults, and of every add-on on the tied head."""
    heads: dict[str, dict[str, Any]] = {name: {"name": name} for name in HEADS}
    addons = {f"tied+{name}": {"name": "tied", "add": {name: {}}} for name in ADDONS}
    return {**heads, **addons}


def model_of(
    head: dict[str, Any], trunk: TrunkConfig, tokenizer: Tokenizer, device: torch.device
) -> LanguageModel:
    torch.manual_seed(1)
    counts = torch.randint(1, 10_000, (tokenizer.vocab_size,))
    model = build_model(trunk, head_config(head), head_shape(tokenizer, trunk), counts)
    return model.to(device)


# --- matmul


def matmul_rate(s: Setting) -> float:
    """Floating-point operations a second of a square bf16 product."""
    size = 256 if s.quick else 8192
    a, b = (torch.randn(size, size, device=s.device).bfloat16() for _ in range(2))
    seconds_of(lambda: a @ b, s.device, 3)
    return 2 * size**3 / seconds_of(lambda: a @ b, s.device, 20)


def matmul(s: Setting) -> Iterator[Part]:
    yield "bf16", lambda: {"tflops": matmul_rate(s) / 1e12, "size": 256 if s.quick else 8192}


# --- train


def baseline(s: Setting) -> RunConfig:
    return run_config("baseline", SMALL if s.quick else {})


def rates(s: Setting, config: RunConfig, parameters: int, seconds: float, more: Result) -> Result:
    """What is reported of a training step that takes so long."""
    per_second = config.batch_tokens / seconds
    head, tokenizer = head_config(config.head), tokenizer_of(1024, files_of(s))
    flops = 3 * flops_of_token(config.trunk, head, tokenizer, scored=False)  # backward: twice more
    return {
        "tokens_per_second": per_second,
        "mfu": per_second * flops / matmul_rate(s),
        "step_ms": 1e3 * seconds,
        "parameters": parameters,
        "flops_of_token": flops,
        **more,
    }


def time_steps(
    s: Setting,
    config: RunConfig,
    model: LanguageModel,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    update: Callable[[], None],
) -> Result:
    """Gradients of micro-batches, then an update; the first step, where all is compiled, apart."""
    rows, length = config.batch_tokens // config.trunk.sequence_length, config.trunk.sequence_length
    at_once = config.micro_batch_tokens // length
    tokens = torch.randint(model.head.shape.vocab_size, (rows, length + 1))

    def gradients() -> None:
        for start in range(0, rows, at_once):
            part = tokens[start : start + at_once]
            with mixed(s.device):
                loss = loss_of(part[:, :-1].to(s.device), part[:, 1:].to(s.device))
            (loss / config.batch_tokens).backward()

    def step() -> None:
        gradients()
        update()

    reset_peak(s.device)
    first = seconds_of(step, s.device, 1)
    step()
    seconds = seconds_of(step, s.device, 3 if s.quick else 5)
    more = {"first_step_seconds": first, "peak_mb": peak_mb(s.device)}
    gradients()
    more["update_ms"] = 1e3 * seconds_of(update, s.device, 1)
    return rates(s, config, sum(p.numel() for p in model.parameters()), seconds, more)


def own_step(s: Setting, compiled: bool, *, fast: bool = True) -> Result:
    """tokgolf's: its loss, its optimizers; without `fast`, the trunk as scoring has it."""
    config = baseline(s)
    model = model_of(config.head, config.trunk, tokenizer_of(1024, files_of(s)), s.device)
    optimizers = Optimizers(model, config.optimizer)
    if fast:
        speed_up(model.trunk, s.device)
    used = torch.compile(model.loss, dynamic=False, fullgraph=True) if compiled else model.loss
    return time_steps(s, config, model, used, lambda: optimizers.step(1, 1.0))


def plain_step(s: Setting, compiled: bool) -> Result:
    """As one writes it. It always has Muon now; an older torch had none, and the file says so."""
    config = baseline(s)
    plain = Plain(model_of(config.head, config.trunk, tokenizer_of(1024, files_of(s)), s.device))
    used = torch.compile(plain.loss, dynamic=False) if compiled else plain.loss
    return {**time_steps(s, config, plain.model, used, plain.update), "muon": True}


def trainer(s: Setting) -> Result:
    """`train` itself, with its data path, checks and reports; its time between two reports."""
    files = files_of(s)
    tokenizer = tokenizer_of(1024, files)
    steps = 5 if s.quick else 10
    config = replace(baseline(s), steps=steps, minutes=None, compile="on")
    times: list[float] = []
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        reset_peak(s.device)
        run = Path(folder) / "run"
        result = train(
            config,
            tokenizer,
            corpus_of(files),
            run,
            device=str(s.device),
            on_step=lambda report: times.append(time.perf_counter()),
        )
    gaps = [after - before for before, after in zip(times[3:], times[4:], strict=False)]
    more = {
        "until_first_step_seconds": times[0] - began,
        "peak_mb": peak_mb(s.device),
        "loss": result.loss,
    }
    return rates(s, config, result.params, statistics.median(gaps), more)


STEPS_OF_CHALLENGE = 30
STEPS_A_LINE = 5
STEP_LINE = re.compile(r"^step:(\d+)/\d+ .*\bstep_avg:([\d.]+)ms", re.MULTILINE)


def median_ms(log: str) -> float | None:
    """Median time of a step between two lines of the challenge's log; None without step 30.

    A line's average is over all steps so far. What comes before the first line is not counted.

    step:5/30 ... step_avg:20.00ms
    step:30/30 ... step_avg:12.00ms -> (30 * 12 - 5 * 20) / (30 - 5) = 10.4
    """
    passed = {int(step): int(step) * float(mean) for step, mean in STEP_LINE.findall(log)}
    passed.pop(0, None)  # the evaluation before the first step
    if STEPS_OF_CHALLENGE not in passed or len(passed) < 2:
        return None
    times = sorted(passed.items())
    return statistics.median((b - a) / (n - m) for (m, a), (n, b) in pairwise(times))


def settings_of_challenge(s: Setting, config: RunConfig, folder: Path) -> dict[str, str]:
    """Environment of the script: the recipe's sizes, the files in `folder`, few log lines.

    Only the lines of its evaluations are asked for: for them it waits for the device, and for the
    others not, so that a step's end is in them alone.
    """
    trunk = config.trunk
    values: dict[str, object] = {
        "DATA_PATH": folder,
        "TOKENIZER_PATH": folder / "tokenizer.model",
        "VOCAB_SIZE": 1024,
        "ITERATIONS": STEPS_OF_CHALLENGE,
        "VAL_LOSS_EVERY": STEPS_A_LINE,
        "TRAIN_LOG_EVERY": 0,
        "MAX_WALLCLOCK_SECONDS": 0,  # none
        "TRAIN_BATCH_TOKENS": config.batch_tokens,
        "VAL_BATCH_SIZE": config.batch_tokens,
        "TRAIN_SEQ_LEN": trunk.sequence_length,
        "NUM_LAYERS": trunk.layers,
        "MODEL_DIM": trunk.d_model,
        "NUM_HEADS": trunk.heads,
        "NUM_KV_HEADS": trunk.kv_heads,
        "MLP_MULT": trunk.mlp_hidden // trunk.d_model,
        "LOCAL_RANK": s.device.index or 0,  # which device; alone, it is no rank of a group
        "PYTHONUNBUFFERED": 1,  # what it said is there when it is stopped
    }
    return {name: str(value) for name, value in values.items()}


def challenge_trainer(s: Setting, script: Path) -> Result:
    """The challenge's own script in a process and folder of its own, on random tokens."""
    if s.device.type != "cuda":
        return {"skipped": "the challenge's script needs a CUDA device"}
    config = baseline(s)
    result: Result = {"sha256": sha256(script.read_bytes()).hexdigest()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = build_tokenizer("sentencepiece", sources(files_of(s)), 1024)
        (folder / "tokenizer.model").write_bytes(tokenizer.original_file())
        random = np.random.default_rng(1)
        for split, batches in (("train", STEPS_OF_CHALLENGE), ("val", 1)):
            known = {"fingerprint": tokenizer.fingerprint, "corpus_sha256": "random tokens"}
            with ShardWriter(folder, f"fineweb_{split}", **known) as shards:
                ids = random.integers(1024, size=batches * config.batch_tokens + 1)
                shards.add(ids, byte_count=0)
        environment = {**os.environ, **settings_of_challenge(s, config, folder)}
        left = s.until - time.monotonic()
        with open(folder / "output", "wb") as output:
            try:
                status = subprocess.run(
                    [sys.executable, str(script)],
                    cwd=folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    timeout=left,
                ).returncode
                error = f"ended with status {status}" if status else None
            except subprocess.TimeoutExpired:
                error = f"was stopped after {left:.0f} s, all that its group had left"
        log = (folder / "output").read_text(errors="replace")
    ms = median_ms(log)
    if error is None and ms is not None:
        per_second = 1e3 * config.batch_tokens / ms
        return {"step_ms": ms, "tokens_per_second": per_second, **result}
    error = error or f"printed no step_avg of step {STEPS_OF_CHALLENGE}"
    last = [line[:300] for line in log.splitlines() if line.strip()][-10:]
    said = f": {last[-1]}" if last else ""
    return {"ok": False, "error": f"{script.name} {error}{said}", "log": last, **result}


def training(s: Setting) -> Iterator[Part]:
    plain: Result = {}
    own: Result = {}

    def beside(result: Result) -> Result:
        if plain:
            result["ratio"] = result["tokens_per_second"] / plain["tokens_per_second"]
        return result

    def reference() -> Result:
        plain.update(plain_step(s, False))
        return dict(plain)

    def whole() -> Result:
        own.update(trainer(s))
        return beside(dict(own))

    def challenged(script: Path) -> Result:
        result = challenge_trainer(s, script)
        if own and "tokens_per_second" in result:
            result["tokgolf_ratio"] = own["tokens_per_second"] / result["tokens_per_second"]
        return result

    yield "plain eager", reference
    yield "tokgolf compiled", lambda: beside(own_step(s, True))
    yield "tokgolf trainer", whole
    if s.challenge is not None:
        yield "challenge trainer", partial(challenged, s.challenge)
    yield "tokgolf eager", lambda: beside(own_step(s, False))
    if not s.quick:
        yield "tokgolf compiled, as scored", lambda: beside(own_step(s, True, fast=False))
        yield "plain compiled", lambda: beside(plain_step(s, True))


# --- loss


def loss_case(s: Setting, vocab_size: int, way: str, softcap: float, chunk: int) -> Result:
    """Forward and backward of a loss under autocast, gradients of hidden states and of the table.

    Memory is what the call needs beyond its inputs, the two gradients included.
    """
    positions, width = (512, 64) if s.quick else (65_536, 512)
    head = head_config({"name": "tied", "softcap": softcap}).build(
        HeadShape(vocab_size=vocab_size, d_model=width, bos_id=0)
    )
    head.to(s.device)
    table = next(head.parameters())
    hidden = torch.randn(positions, width, device=s.device).bfloat16().requires_grad_()
    prev, targets = torch.randint(vocab_size, (2, positions), device=s.device)

    def full(h: Tensor, y: Tensor) -> Tensor:
        z = F.linear(h, table).float()
        z = softcap * torch.tanh(z / softcap) if softcap else z
        return F.cross_entropy(z, y, reduction="sum")

    def ours(h: Tensor, y: Tensor) -> Tensor:
        return head.loss(h, y, prev)

    def torchs(h: Tensor, y: Tensor) -> Tensor:
        # The statement has no autocast rule everywhere: its operands are cast by hand.
        weight = table.to(torch.bfloat16 if uses_bf16("auto", s.device) else h.dtype)
        return F.linear_cross_entropy(h.to(weight.dtype), weight, y, reduction="sum")

    def torchs_chunked(h: Tensor, y: Tensor) -> Tensor:
        weight = table.to(torch.bfloat16 if uses_bf16("auto", s.device) else h.dtype)
        options = torch.nn.LinearCrossEntropyOptions()
        h = h.to(weight.dtype)
        return F.linear_cross_entropy(h, weight, y, reduction="sum", options=options)

    name, _, compiled = way.partition(" ")
    known = {"full": full, "ours": ours, "torch": torchs, "torch-chunked": torchs_chunked}
    loss_of = known[name]
    if compiled:
        loss_of = torch.compile(loss_of, dynamic=False, fullgraph=True)

    def run() -> Tensor:
        hidden.grad = table.grad = None
        with mixed(s.device):
            loss = loss_of(hidden, targets)
        loss.backward()
        return loss

    chunks = head_loss.COMPILED_CHUNK if compiled else head_loss.CHUNK
    before, chunks[s.device.type] = chunks[s.device.type], chunk
    try:
        size = head_loss.positions_of_chunk(s.device.type, positions, vocab_size, chunks)
        first = seconds_of(run, s.device, 1)
        run()
        hidden.grad = table.grad = None
        held = reset_peak(s.device)
        value = float(run().detach()) / positions
        peak = peak_mb(s.device, held)
        seconds = seconds_of(run, s.device, 3 if s.quick else 10)
    finally:
        chunks[s.device.type] = before
    result: Result = {"ms": 1e3 * seconds, "peak_mb": peak, "loss": value, "first_seconds": first}
    if name == "ours":
        result["chunks"] = math.ceil(positions / size)
    return result


def losses(s: Setting) -> Iterator[Part]:
    sizes = [128] if s.quick else [1024, 4096, 8192, 16_384]
    default = head_loss.CHUNK[s.device.type]
    positions = 512 if s.quick else 65_536

    full: dict[tuple[int, float, bool], Result] = {}

    def part(vocab_size: int, way: str, softcap: float, chunk: int) -> Part:
        """A case, and how many times less time and memory it takes than all logits at once."""

        def run() -> Result:
            result = loss_case(s, vocab_size, way, softcap, chunk)
            key = vocab_size, softcap, way.endswith("compiled")
            if way.startswith("full"):
                full[key] = dict(result)
            elif key in full:
                result["time_ratio"] = full[key]["ms"] / result["ms"]
                if result["peak_mb"]:
                    result["memory_ratio"] = full[key]["peak_mb"] / result["peak_mb"]
            return result

        note = f", chunk 2^{chunk.bit_length() - 1}" if way.startswith("ours") else ""
        return f"V {vocab_size}, {way}, softcap {softcap:g}{note}", run

    # What training runs comes first: compiled, with few large chunks, with all logits in one, and
    # last with so many that the compiler takes long. Then without the compiler.
    for vocab_size in sizes:
        yield part(vocab_size, "full compiled", 30.0, default)
    for chunk in [1 << 14] if s.quick else COMPILED_CHUNKS:
        for vocab_size in sizes:
            every = positions * vocab_size
            if chunk == WHOLE or chunk < every <= MOST_COMPILED_CHUNKS * chunk:
                yield part(vocab_size, "ours compiled", 30.0, min(chunk, every))
    for vocab_size in sizes:
        yield part(vocab_size, "full", 30.0, default)
        for chunk in [1 << 14, default] if s.quick else sorted({*CHUNKS, default}):
            yield part(vocab_size, "ours", 30.0, chunk)
        yield part(vocab_size, "full", 0.0, default)
        yield part(vocab_size, "ours", 0.0, default)
        for way in ways_of_torch():
            yield part(vocab_size, way, 0.0, default)


def ways_of_torch() -> list[str]:
    """Which of torch's own statements for this loss are in its version; none is in all."""
    known = {
        "torch": getattr(F, "linear_cross_entropy", None),
        "torch-chunked": getattr(torch.nn, "LinearCrossEntropyOptions", None),
    }
    return [way for way, found in known.items() if found is not None]


# --- agreement


def perturbed(model: LanguageModel) -> LanguageModel:
    """A model whose logits are far from equal, though nothing was trained."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model.eval()


def bpb_of(model: LanguageModel, tokenizer: Tokenizer, documents: list[bytes]) -> list[float]:
    scored = document_nats(model, tokenizer, documents)
    return [math.fsum(nats.tolist()) / math.log(2) / len(data) for data, nats in scored]


def same_score(s: Setting, head: dict[str, Any]) -> Result:
    """One model and text on both devices, fp32: bits per byte of documents, and the loss."""
    torch.set_float32_matmul_precision("highest")
    trunk = TrunkConfig(
        layers=3, d_model=128, heads=4, kv_heads=2, mlp_hidden=256, sequence_length=256
    )
    tokenizer = tokenizer_of(512, 12)
    model = perturbed(model_of(head, trunk, tokenizer, torch.device("cpu")))
    documents = [data[:4000] for data in sources(12)][: 2 if s.quick else 8]
    ids = torch.from_numpy(tokenizer.encode(documents[0])[:257].astype(np.int64))[None]
    found = {}
    for device in (torch.device("cpu"), s.device):
        model.to(device)
        bpb = bpb_of(model, tokenizer, documents)
        model.requires_grad_().zero_grad(set_to_none=True)
        loss = model.loss(ids[:, :-1].to(device), ids[:, 1:].to(device))
        loss.backward()
        gradients = [p.grad.cpu().double() for p in model.parameters() if p.grad is not None]
        found[device.type] = bpb, float(loss.detach()) / (ids.numel() - 1), gradients
    (one, loss_cpu, g_cpu), (other, loss_device, g_device) = found["cpu"], found[s.device.type]
    differences = [abs(a - b) for a, b in zip(one, other, strict=True)]
    moved = [
        float((a - b).norm() / a.norm().clamp(min=1e-12))
        for a, b in zip(g_cpu, g_device, strict=True)
    ]
    return {
        "ok": max(differences) <= GOAL_BPB
        and abs(loss_cpu - loss_device) <= 1e-5 * loss_cpu
        and max(moved) <= GOAL_GRADIENT,
        "bpb": statistics.mean(one),
        "max_difference_bpb": max(differences),
        "mean_difference_bpb": statistics.mean(differences),
        "loss_cpu": loss_cpu,
        "loss_device": loss_device,
        "max_relative_difference_gradient": max(moved),
    }


def same_hash(s: Setting) -> Result:
    """Buckets of large ids: the device, the CPU and Python's integers."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1 << 40, (2, 100_000), generator=generator)
    wrong = 0
    for buckets in (
        BigramBuckets(count=4096),
        BigramBuckets(count=1 << 31, multipliers=((1 << 22) - 1, 1 << 22), seed=(1 << 62) - 1),
    ):
        first = buckets.bucket(ids[0], ids[1])
        second = buckets.bucket(ids[0].to(s.device), ids[1].to(s.device)).cpu()
        exact = [buckets.bucket(a, b) for a, b in zip(*ids[:, :1000].tolist(), strict=True)]
        wrong += int((first != second).sum()) + int((first[:1000] != torch.tensor(exact)).sum())
    return {"ok": wrong == 0, "wrong": wrong}


def same_mask(s: Setting) -> Result:
    """Packed successors unpacked on the device, on the CPU and by NumPy."""
    vocab_size = 1021  # no multiple of 8
    bits = np.random.default_rng(4).random((vocab_size, vocab_size)) < 0.5
    packed = torch.from_numpy(np.packbits(bits, axis=1))
    prev = torch.randint(vocab_size, (5000,), generator=torch.Generator().manual_seed(5))
    here = allowed(packed, prev, vocab_size)
    there = allowed(packed.to(s.device), prev.to(s.device), vocab_size).cpu()
    want = torch.from_numpy(bits)[prev]
    wrong = int((here != want).sum()) + int((there != want).sum())
    return {"ok": wrong == 0, "wrong": wrong}


def agreement(s: Setting) -> Iterator[Part]:
    yield "hash", lambda: same_hash(s)
    yield "mask", lambda: same_mask(s)
    for name, head in heads_and_addons().items():
        yield name, partial(same_score, s, head)


# --- options


def small_run(
    s: Setting,
    run: Path,
    changes: dict[str, Any],
    *,
    resume: bool = False,
    on_step: Callable[[StepReport], None] = lambda report: None,
    say: Callable[[str], None] = lambda line: None,
) -> Checkpoint:
    """`train` itself for 12 steps; the checkpoint at its end."""
    fixed = {"steps": 12, "warmdown_steps": 4, "compile": "off"}
    train(
        run_config("baseline", merged({**SMALL, **fixed}, changes)),
        tokenizer_of(512, 12),
        corpus_of(12),
        run,
        device=str(s.device),
        resume=resume,
        on_step=on_step,
        say=say,
    )
    return read_checkpoint(run)


def with_option(s: Setting, changes: dict[str, Any]) -> Result:
    """A run, and what has begun in it; what never did is an error."""
    said: list[str] = []
    losses: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        reset_peak(s.device)
        _, state = small_run(
            s,
            Path(folder) / "run",
            changes,
            on_step=lambda report: losses.append(report.loss),
            say=said.append,
        )
    begun = "untied", "quantized_from", "quantizings", "looped_from", "length", "averaged"
    return {
        "ok": not any(line.startswith("late ") for line in said),
        "losses": losses,
        "peak_mb": peak_mb(s.device),
        "compile_seconds": state["compile_seconds"],
        **{name: state[name] for name in begun},
    }


def resumed(s: Setting) -> Result:
    """A run that is interrupted and resumed, beside two that are not.

    It may differ from them as they do from each other, and on a GPU by `ROUNDING`: not at all on a
    CPU, where sums have one order.
    """

    def interrupt(report: StepReport) -> None:
        if report.step == 6:
            signal.raise_signal(signal.SIGINT)

    changes = {"average": {"ema": 0.9}}
    with tempfile.TemporaryDirectory() as folder:
        one, again, halves = (Path(folder) / name for name in ("one", "again", "halves"))
        whole, _ = small_run(s, one, changes)
        repeated, _ = small_run(s, again, changes)
        with contextlib.suppress(Interrupted):
            small_run(s, halves, changes, on_step=interrupt)
        after = read_checkpoint(halves)[1]["step"]
        found, state = small_run(s, halves, changes, resume=True)
    between = largest_difference(whole, repeated)
    difference = largest_difference(whole, found)
    return {
        "ok": difference <= may_differ(between, s.device) and after < state["step"] == 12,
        "resumed_after": after,
        "max_difference": difference,
        "max_difference_without": between,
    }


def may_differ(between: float, device: torch.device) -> float:
    """How far a resumed run may be from one that differs from another by so much."""
    return max(10 * between, 0.0 if device.type == "cpu" else ROUNDING)


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Over all numbers of two checkpoints, the optimizers' too."""
    if one.keys() != other.keys():
        raise ValueError(f"not in both: {', '.join(sorted(one.keys() ^ other.keys()))}")
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def exchange(s: Setting) -> Result:
    """What `Ranks` and `Shares` make of torch's collectives, in a group of this process alone.

    Gradients have the rows that `Shares` lays out for 8 processes of the `baseline` recipe, all of
    which stay here; what there is to find is whether the device's backend has each of them.
    """
    config = baseline(s)
    model = model_of(config.head, config.trunk, tokenizer_of(512, 12), torch.device("cpu"))
    trained = dict(model.named_parameters())
    roles = check_coverage(model, config.optimizer)
    matrices = {name for name, role in roles.items() if role == "matrix"}
    held = [0] * RANKS
    for part in divided({name: p.shape for name, p in trained.items()}, matrices, RANKS):
        held[part.rank] += part.of(trained[part.name]).numel()
    row = max(held)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = Ranks(str(s.device), size=1, store=store)
    ranks.join()
    try:
        parts = torch.randn(RANKS, row, device=s.device)
        want = in_order(parts.clone())
        room = torch.empty_like(parts)
        summed = ranks.reduce_scatter(parts, room)
        gathered = torch.empty(1, row, device=s.device)
        ranks.all_gather(summed, gathered)
        norms = torch.randn(1 + len(trained), device=s.device).double()  # with the loss, in fp64
        all_norms = norms.new_empty(1, len(norms))
        ranks.all_gather(norms, all_norms)
        sent = summed.clone()
        dist.broadcast(sent, 0)
        numbers = torch.tensor([12.0, 0.0, 1.0], dtype=torch.float64)  # stay on the CPU
        numbers_sent = numbers.clone()
        dist.broadcast(numbers_sent, 0, group=ranks._cpu)
        pairs = {
            "all_to_all_single": (summed, want),
            "all_gather": (gathered[0], want),
            "all_gather, fp64": (all_norms[0], norms),
            "broadcast": (sent, want),
            "broadcast on the CPU": (numbers_sent, numbers),
        }
        wrong = [name for name, (found, meant) in pairs.items() if not torch.equal(found, meant)]
        ms = {
            "all_to_all_ms": seconds_of(lambda: ranks.reduce_scatter(parts, room), s.device, 3),
            "all_gather_ms": seconds_of(lambda: ranks.all_gather(want, gathered), s.device, 3),
        }
        backend = dist.get_backend()
    finally:
        dist.destroy_process_group()
    return {
        "ok": not wrong,
        "wrong": wrong,
        "backend": backend,
        "rows": RANKS,
        "row": row,
        **{name: 1e3 * seconds for name, seconds in ms.items()},
    }


def waits(s: Setting) -> Result:
    """That a step is started, and the weights changed by it, without waiting for the device: one
    that is read late, as all but a run's first are, and one more with rounding errors.
    """
    if s.device.type != "cuda":
        return {"skipped": "a CPU is never waited for"}
    tokenizer = tokenizer_of(512, 12)
    counts = np.ones(tokenizer.vocab_size, dtype=np.int64)
    fixed = {"steps": 12, "compile": "off", "average": {"ema": 0.9}}
    config = run_config("baseline", merged(SMALL, fixed))
    session = Session(config, tokenizer, counts, str(s.device))
    shape = -1, config.trunk.sequence_length
    ids = torch.randint(tokenizer.vocab_size, (2, config.batch_tokens))
    tokens, targets = (part.reshape(shape).pin_memory() for part in ids)

    def step() -> bool:
        started = session.start(session.remaining_steps(), tokens, targets)
        session.update(started)
        return started.largest_weights is not None

    for _ in range(STEPS_TO_MOVE + 2):  # the last is read late, and makes what is made once
        step()
    weights = session.model.named_parameters()
    errors = {name: torch.full_like(p, 1e-3) for name, p in weights if p.dim() == 2}
    synchronize(s.device)
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is a prototype, as torch says
        torch.cuda.set_sync_debug_mode("error")
        try:
            late = [step()]
            session.rounding.errors = errors
            late.append(step())
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return {"ok": all(late)}


def options(s: Setting) -> Iterator[Part]:
    runs: dict[str, dict[str, Any]] = {
        "untying": {"head": {"name": "untied", "untie_at": 0.33}},
        "qat": {
            "qat": {"start": 0.5, "every": 2, "method": "nearest" if s.quick else "trellis"},
        },
        "loops": {
            "trunk": {"loop_blocks": 1, "loops": 2, "loop_rank": 4},
            "loops_from": 0.33,
        },
        "value embeddings, smear and document mask": {
            "trunk": {"value_embeddings": 1, "smear": True, "document_mask": True},
            "precision": "bf16",
        },
        "ema": {"average": {"ema": 0.9}},
        "swa": {"average": {"swa_from": 0.5, "swa_every": 2}},
    }
    compiled = {"short_length": 16, "short_until": 0.5, "compile": "on"}
    yield "waits", lambda: waits(s)
    yield "resume", lambda: resumed(s)
    for name, changes in runs.items():
        yield name, partial(with_option, s, changes)
    yield "exchange", lambda: exchange(s)
    # Last, as it takes longest: the others are there when the group's time does not do for it.
    yield "short sequences, compiled", partial(with_option, s, compiled)


# --- heads


def head_steps(s: Setting, head: dict[str, Any], compiled: bool) -> Result:
    """A few steps, after which every tensor must have moved, then the time of more."""
    trunk = TrunkConfig(layers=4)
    batch, length = 32, 1024
    if s.quick:
        trunk = TrunkConfig(
            layers=1, d_model=64, heads=2, kv_heads=1, mlp_hidden=64, sequence_length=32
        )
        batch, length = 4, 32
    tokenizer = tokenizer_of(512 if s.quick else 1024, files_of(s))
    model = model_of(head, trunk, tokenizer, s.device)
    optimizers = Optimizers(model, OptimizerConfig())
    documents = tokenizer.encode_batch(list(sources(files_of(s))))
    tokens = max(documents, key=len).astype(np.int64)  # of one document: the mask allows it
    starts = np.arange(batch) * (len(tokens) - length - 1) // batch
    rows = torch.from_numpy(np.stack([tokens[at : at + length + 1] for at in starts])).to(s.device)
    x, y = rows[:, :-1], rows[:, 1:]
    loss_of = torch.compile(model.loss, dynamic=False, fullgraph=True) if compiled else model.loss
    initial = {name: p.detach().clone() for name, p in model.named_parameters()}
    values: list[float] = []

    def step() -> None:
        with mixed(s.device):
            loss = loss_of(x, y) / y.numel()
        loss.backward()
        optimizers.step(len(values), 1.0)
        values.append(float(loss.detach()))

    declared = initial_loss(model.head, y.flatten(), x.flatten())
    reset_peak(s.device)
    first = seconds_of(step, s.device, 1)
    for _ in range(STEPS_TO_MOVE - 1):
        step()
    check_moved(initial, model)
    seconds = seconds_of(step, s.device, 2 if s.quick else 5)
    return {
        "ok": all(map(math.isfinite, values)),
        "losses": values[:STEPS_TO_MOVE],
        "first_declared": declared,
        "tokens_per_second": y.numel() / seconds,
        "first_step_seconds": first,
        "peak_mb": peak_mb(s.device),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def heads(s: Setting) -> Iterator[Part]:
    for name, head in heads_and_addons().items():
        yield name, partial(head_steps, s, head, False)
    for name, head in list(heads_and_addons().items())[: 1 if s.quick else None]:
        yield f"{name}, compiled", partial(head_steps, s, head, True)


# --- running them

GROUPS: dict[str, Callable[[Setting], Iterator[Part]]] = {
    "matmul": matmul,
    "train": training,
    "loss": losses,
    "agreement": agreement,
    "options": options,
    "heads": heads,
}


VERDICTS = {True: "ok", False: "FAILED", None: "not all done"}


def one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    line = f"{type(error).__name__}: {lines[0][:300]}"
    return f"{line} (from {one_line(error.__cause__)})" if error.__cause__ else line


def as_json(value: Any) -> Any:
    """The value with what JSON has no number for as text: nan, inf."""
    if isinstance(value, dict):
        return {name: as_json(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def run_part(name: str, part: Callable[[], Result]) -> Result:
    """The part's result with `ok` and `seconds`; an exception becomes its `error`."""
    began = time.perf_counter()
    try:
        result = {"ok": True, **part()}
    except Exception as error:  # whatever one part does, the rest goes on
        result = {"ok": False, "error": one_line(error)}
    written = {name: as_json(value) for name, value in result.items()}
    if bad := [name for name in result if written[name] != result[name]]:
        result = {**written, "ok": False, "error": f"not finite: {', '.join(bad)}"}
    result["seconds"] = time.perf_counter() - began
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        with contextlib.suppress(RuntimeError):  # a ruined context says so at the next part
            torch.cuda.empty_cache()
    return result


def run_group(name: str, s: Setting, wanted: Callable[[str], bool]) -> Iterator[Any]:
    """(part, result) of each part that `wanted` picks; after `s.until` they are left."""
    for part, run in GROUPS[name](s):
        if not wanted(part):
            continue
        if time.monotonic() > s.until:
            yield part, {"ok": None, "skipped": "out of time"}
            continue
        yield part, run_part(part, run)


def describe(s: Setting) -> Result:
    """The device and the versions that the numbers belong to."""
    cuda = s.device.type == "cuda"
    try:
        git = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=40"]
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
    except OSError:
        commit = None
    return {
        "device": torch.cuda.get_device_name(s.device) if cuda else platform.machine(),
        "memory_mb": torch.cuda.get_device_properties(s.device).total_memory / 1e6
        if cuda
        else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # whose attention may be what runs
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "commit": commit,
        "quick": s.quick,
    }


def run_child(group: str, s: Setting, part: str, path: Path) -> None:
    """One group, its file replaced after every part."""
    parts: dict[str, Any] = {}
    for name, result in run_group(group, s, lambda name: part in name):
        parts[name] = result
        note = result.get("error", result.get("skipped", ""))
        verdict, took = VERDICTS[result["ok"]], result.get("seconds", 0)
        click.echo(f"{group}: {name}: {verdict} {took:.1f} s {note}", err=True)
        write_text(path, json.dumps({"about": describe(s), "parts": parts}, allow_nan=False))


def run_apart(group: str, s: Setting, part: str, seconds: float) -> tuple[Result, Result]:
    """A group in a process of its own: what it ran on, and its entry in the report."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "group.json"
        command = [sys.executable, __file__, "-o", str(path), "--device", str(s.device)]
        command += ["--child", group, "--seconds", str(seconds), "--part", part]
        command += ["--quick"] if s.quick else []
        command += ["--challenge", str(s.challenge)] if s.challenge else []
        error = None
        try:
            status = subprocess.run(command, timeout=seconds).returncode
            error = f"the process ended with status {status}" if status else None
        except subprocess.TimeoutExpired:
            error = f"stopped after {seconds:.0f} s"
        found = json.loads(path.read_text()) if path.exists() else {"about": {}, "parts": {}}
    parts = found["parts"]
    states = {part["ok"] for part in parts.values()}
    bad = error is not None or False in states
    return found["about"], {
        "ok": False if bad else None if None in states or not parts else True,
        "error": error,
        "seconds": time.perf_counter() - began,
        "parts": parts,
    }


@click.command()
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
@click.option("--device", default="cuda", show_default=True)
@click.option("--quick", is_flag=True, help="Small sizes, to try the suite itself.")
@click.option("--only", multiple=True, type=click.Choice(list(GROUPS)), help="Just these groups.")
@click.option("--part", default="", help="Just the parts whose names contain this.")
@click.option("--seconds", default=float(sum(SECONDS.values())), help="Time limit of it all.")
@click.option(
    "--challenge",
    type=click.Path(exists=True, dir_okay=False, resolve_path=True, path_type=Path),
    help="The challenge's train_gpt.py, to run beside the trainer.",
)
@click.option("--child", type=click.Choice(list(GROUPS)), hidden=True)
def main(
    output: Path,
    device: str,
    quick: bool,
    only: tuple[str, ...],
    part: str,
    seconds: float,
    challenge: Path | None,
    child: str | None,
) -> None:
    """Run every check and write one JSON file; status 1 if a part failed or a group was stopped."""
    try:
        where = torch.device(resolve_device(device))
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
    until = BEGAN + seconds - RESERVE
    s = Setting(device=where, quick=quick, challenge=challenge, until=until)
    if child is not None:
        run_child(child, s, part, output)
        return
    groups = [group for group in GROUPS if group in only or not only]
    limits = SECONDS | ({"train": SECONDS["train"] + CHALLENGE_SECONDS} if challenge else {})
    share = seconds / sum(limits[group] for group in groups)
    due = 0.0
    report: Result = {"about": {}, "groups": {}}
    for group in groups:
        due += share * limits[group]
        about, entry = run_apart(group, s, part, due - (time.monotonic() - BEGAN))
        report["about"].update(about)
        report["groups"][group] = entry
        report["seconds"] = time.monotonic() - BEGAN
        write_text(output, json.dumps(report, indent=1, allow_nan=False) + "\n")
        click.echo(f"{group}: {VERDICTS[entry['ok']]} {entry['error'] or ''}", err=True)
    if failed := [name for name, entry in report["groups"].items() if entry["ok"] is False]:
        raise click.ClickException(f"FAILED: {', '.join(failed)}; what did is in {output}")


if __name__ == "__main__":
    main()
