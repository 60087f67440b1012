"""The training loop: one for every head, trunk and device.

It refuses to go on with an experiment that would mean nothing: every trainable tensor must be in
one optimizer group with a rate above zero, the first loss must be what the head declares, and
after three steps every tensor must have moved. A violation stops the run and names the tensor.
"""

import contextlib
import json
import math
import operator
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
import torch
from torch import Tensor

from tokgolf.artifact.checkpoint import MODEL_PREFIX, read_checkpoint, write_checkpoint
from tokgolf.config import to_dict
from tokgolf.corpora import Corpus, check_disjoint, document_digests, write_digests
from tokgolf.device import resolve_device
from tokgolf.errors import TrainingError
from tokgolf.files import write_bytes, write_text
from tokgolf.heads import head_config, head_to_dict
from tokgolf.heads.base import Head, Unties
from tokgolf.model import LanguageModel, build_model, head_shape
from tokgolf.tokenizers import Tokenizer
from tokgolf.training.config import RunConfig
from tokgolf.training.data import Batches, tokenize
from tokgolf.training.optimizers import Optimizers

FIRST_LOSS_ABOVE, FIRST_LOSS_BELOW = 0.02, 0.1
"""How far the first loss may be from what the head declares. Below it by more: at the start a table
of both ends prefers the token itself, the wider the more, and text repeats tokens (tied at d 512
starts 5 % lower on source code)."""
STEPS_TO_MOVE = 3
LOG_EVERY = 10


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One line of `metrics.jsonl`, and what a progress display shows."""

    step: int
    loss: float
    tokens: int
    seconds: float
    learning_rate_scale: float
    tokens_per_second: float
    seconds_left: float


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a run ended."""

    run: Path
    steps: int
    tokens: int
    seconds: float
    loss: float
    params: int


def train(
    config: RunConfig,
    tokenizer: Tokenizer,
    corpus: Corpus,
    run: Path,
    *,
    held_out: Corpus | None = None,
    device: str = "auto",
    resume: bool = False,
    on_step: Callable[[StepReport], None] = lambda report: None,
) -> TrainResult:
    """Train a model on `corpus` into the run directory `run`, and return how it ended.

    `held_out` is only checked to share no document with `corpus`. With `resume`, an unfinished
    run goes on from its latest checkpoint. Raises `TrainingError` (and leaves the latest
    checkpoint) when a tensor is not trained, when the loss is not finite, or on Ctrl-C;
    `CorpusError` for shared or missing documents.
    """
    started = read_checkpoint(run) if resume else None
    if started is None and (run / "checkpoints" / "latest.json").exists():
        raise TrainingError(f"{run} already holds a run; use --resume, or another -o")
    summary = corpus.summary()
    digests = document_digests(corpus)
    if held_out is not None:
        check_disjoint(digests, held_out, held_out_name=held_out.name)
    resolved = {**to_dict(config), "head": head_to_dict(head_config(config.head))}
    state = {
        "config": resolved,
        "tokenizer": tokenizer.fingerprint,
        "corpus": {"name": corpus.name, "sha256": summary.sha256, "bytes": summary.bytes},
    }
    if started is not None:
        with _damage_named(run):
            _check_same_run(run, started[1], state)
    run.mkdir(parents=True, exist_ok=True)
    write_bytes(run / "tokenizer.tok", tokenizer.asset())
    write_digests(run / "train_documents.npy", digests)
    # A recipe that repeats this run; the corpus is no part of a recipe, hence the comment.
    origin = f"# {corpus.name}, {summary.bytes:,} bytes, SHA-256 {summary.sha256}\n"
    write_text(run / "config.toml", origin + tomli_w.dumps(resolved))
    data = tokenize(corpus, tokenizer, run / "tokens", "train", summary.sha256)
    session = _Session(config, tokenizer, data.stream.counts(tokenizer.vocab_size), device)
    length = config.trunk.sequence_length
    batches = Batches(
        data.stream, rows=config.batch_tokens // length, length=length, seed=config.seed
    )
    if started is not None:
        with _damage_named(run):
            session.load(*started)
    return session.run(batches, run, state, on_step)


class _Session:
    """The moving parts of a run: model, optimizers, step counter and clock."""

    def __init__(self, config: RunConfig, tokenizer: Tokenizer, counts: Any, device: str) -> None:
        self.config = config
        self.token_bytes = tokenizer.token_bytes
        self.device = torch.device(resolve_device(device))
        self.bf16 = uses_bf16(config.precision, self.device)
        torch.manual_seed(config.seed)
        shape = head_shape(tokenizer, config.trunk)
        head = head_config(config.head)
        self.model = build_model(config.trunk, head, shape, torch.from_numpy(counts))
        self.model.to(self.device)
        self.optimizers = Optimizers(self.model, config.optimizer)
        self.loss_of: Callable[[Tensor, Tensor], Tensor] = self.model.loss
        self.step = 0
        self.untied = False
        self.initial: dict[str, Tensor] = {}
        self.check_at = 0
        self.seconds = 0.0
        self.compile_seconds = 0.0
        self.loss = math.nan

    def load(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        if state.get("untied"):
            self.untie()
        own = self.model.state_dict()
        own.update({name: tensors[MODEL_PREFIX + name] for name in own})
        self.model.load_state_dict(own)
        self.optimizers.load(tensors)
        self.step, self.loss = operator.index(state["step"]), float(state["loss"])
        self.seconds = float(state["seconds"])
        self.compile_seconds = float(state["compile_seconds"])

    def save(self, run: Path, state: dict[str, Any], *, finished: bool = False) -> None:
        """Write a checkpoint."""
        weights = {MODEL_PREFIX + n: t.cpu() for n, t in self.model.state_dict().items()}
        optimizer = {name: t.cpu() for name, t in self.optimizers.state().items()}
        progress = {
            "step": self.step,
            "seconds": self.seconds,
            "compile_seconds": self.compile_seconds,
            "loss": self.loss,
            "untied": self.untied,
        }
        write_checkpoint(run, {**weights, **optimizer}, {**state, **progress, "finished": finished})

    def untie(self) -> None:
        """Let the head become two tables where it was one."""
        assert isinstance(self.model.head, Unties)
        copies = self.model.head.untie()
        self.optimizers.adopt({f"head.{new}": f"head.{old}" for new, old in copies.items()})
        self.untied = True

    def watch(self) -> None:
        """Remember all weights, to see in a few steps that every tensor has moved."""
        self.initial = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        self.check_at = self.step + STEPS_TO_MOVE

    def untie_if_due(self, remaining: float, tokens: Tensor, targets: Tensor) -> None:
        """Once, at the fraction of the budget that the head's options name."""
        head = self.model.head
        due = isinstance(head, Unties) and 0 < head.untie_at <= self.step / (self.step + remaining)
        if due:
            self.untie()
            self.watch()
            self.compile(tokens, targets)

    def compile(self, tokens: Tensor, targets: Tensor) -> None:
        """Compile the loss for batches of this shape; "auto" stays eager where that fails."""
        if self.config.compile == "off":
            return
        began = time.perf_counter()
        self.loss_of = torch.compile(self.model.loss, dynamic=False)
        try:
            self.gradients(tokens, targets)
        except Exception as error:  # the compiler's own errors have no common base
            if self.config.compile == "on":
                reason = str(error).strip().splitlines()[0]
                raise TrainingError(f"the model does not compile here: {reason}") from error
            self.loss_of = self.model.loss
        self.model.zero_grad(set_to_none=True)
        self.compile_seconds += time.perf_counter() - began

    def remaining_steps(self) -> float:
        """Steps that are left of the budget, by count or by the clock, whichever is less."""
        left = float(self.config.steps - self.step)
        if self.config.minutes is not None and self.step:
            clock = self.config.minutes * 60 - self.seconds
            left = min(left, clock / self.seconds_per_step())
        return left

    def seconds_per_step(self) -> float:
        """Mean time of a step so far. Compiling is paid from the budget, but is no step: counted
        as one, it would make the end look near and the learning rate fall at the start."""
        return max(self.seconds - self.compile_seconds, 1e-9) / self.step

    def rate_scale(self, remaining: float) -> float:
        """The factor on every learning rate: 1, then linearly down to 0 at the end."""
        warmdown = self.config.warmdown_steps or (
            self.config.warmdown_fraction * (self.step + remaining)
        )
        return min(1.0, remaining / warmdown) if warmdown else 1.0

    def gradients(self, tokens: Tensor, targets: Tensor) -> float:
        """Accumulate the gradients of the mean loss of a batch; returns that loss in nats."""
        rows = max(1, self.config.micro_batch_tokens // self.config.trunk.sequence_length)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        tokens, targets = tokens.to(self.device), targets.to(self.device)
        for start in range(0, len(tokens), rows):
            x, y = tokens[start : start + rows], targets[start : start + rows]
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
                summed = self.loss_of(x, y)
            loss = summed / targets.numel()
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach().double()
        return float(total)

    def run(
        self,
        batches: Batches,
        run: Path,
        state: dict[str, Any],
        on_step: Callable[[StepReport], None],
    ) -> TrainResult:
        """Train until the budget is spent."""
        if self.step == 0:
            self.watch()
        saved = self.seconds
        offset = time.perf_counter() - self.seconds
        with _interrupt_flag() as interrupted, _metrics(run, self.step) as metrics:
            self.compile(*batches.step(self.step))
            while (remaining := self.remaining_steps()) > 0:
                scale = self.rate_scale(remaining)
                tokens, targets = batches.step(self.step)
                self.untie_if_due(remaining, tokens, targets)
                loss = self.gradients(tokens, targets)
                if not math.isfinite(loss):
                    self._check_pairs(tokens, targets)
                    raise TrainingError(
                        f"the loss is {loss} at step {self.step}; checkpoints in {run} are from "
                        "before. Lower the learning rates, e.g. --set optimizer.lr_matrix=0.01"
                    )
                if self.step == 0:
                    self._check_first_loss(loss, tokens, targets)
                self.loss = loss
                self.optimizers.step(self.step, scale)
                self.step += 1
                self.seconds = time.perf_counter() - offset
                if self.step == self.check_at:
                    check_moved(self.initial, self.model)
                    self.initial = {}
                report = self._report(scale)
                on_step(report)
                if self.step % LOG_EVERY == 0 or self.step <= STEPS_TO_MOVE:
                    metrics(report)
                if interrupted():
                    self.save(run, state)
                    raise TrainingError(
                        f"interrupted after step {self.step:,}; the checkpoint in {run} is usable: "
                        "go on with --resume, or export it as it is"
                    )
                if self.seconds - saved > self.config.checkpoint_minutes * 60:
                    self.save(run, state)
                    saved = self.seconds
        self.save(run, state, finished=True)
        return TrainResult(
            run=run,
            steps=self.step,
            tokens=self.step * self.config.batch_tokens,
            seconds=self.seconds,
            loss=self.loss,
            params=sum(p.numel() for p in self.model.parameters()),
        )

    def _report(self, scale: float) -> StepReport:
        tokens = self.step * self.config.batch_tokens
        return StepReport(
            step=self.step,
            loss=self.loss,
            tokens=tokens,
            seconds=self.seconds,
            learning_rate_scale=scale,
            tokens_per_second=tokens / self.seconds,
            seconds_left=max(0.0, self.remaining_steps() * self.seconds_per_step()),
        )

    def _check_pairs(self, tokens: Tensor, targets: Tensor) -> None:
        """Blame the mask for a loss that is not finite, if it forbids what the text has."""
        pair = forbidden_pair(self.model.head, tokens.to(self.device), targets.to(self.device))
        if pair is not None:
            before, after = (f"{token} ({self.token_bytes[token]!r})" for token in pair)
            raise TrainingError(
                f"the loss is not finite at step {self.step}: in the text token {after} follows "
                f"token {before}, which canonical-mask forbids, as the tokenizer would not encode "
                "text so; train without canonical-mask, or on what the tokenizer encodes"
            )

    def _check_first_loss(self, loss: float, tokens: Tensor, targets: Tensor) -> None:
        flat = (t.flatten().to(self.device) for t in (targets, tokens))
        declared = self.model.head.initial_loss(*flat)
        off = loss / declared - 1
        if not -FIRST_LOSS_BELOW <= off <= FIRST_LOSS_ABOVE:
            raise TrainingError(
                f"the first loss is {loss:.4f} nats, the head declares {declared:.4f} (at most "
                f"{FIRST_LOSS_ABOVE:.0%} above or {FIRST_LOSS_BELOW:.0%} below): its "
                "initialisation is not what it says"
            )


def forbidden_pair(head: Head, tokens: Tensor, targets: Tensor) -> tuple[int, int] | None:
    """The first token with a target after it that the head's canonical mask forbids, if any.

    tokens, targets of the same shape, int64
    """
    if "canonical-mask" not in head.addons:
        return None
    successors = head.get_buffer("addons.canonical-mask.successors")
    before, after = tokens.flatten(), targets.flatten()
    may = successors[before, after // 8] >> (7 - after % 8).to(torch.uint8) & 1
    at = (may == 0).nonzero().flatten().tolist()
    return (int(before[at[0]]), int(after[at[0]])) if at else None


def check_moved(initial: dict[str, Tensor], model: LanguageModel) -> None:
    """Raise `TrainingError`, naming them, if any trainable tensor still is as it began."""
    still = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        and parameter.numel()
        and torch.equal(parameter.detach(), initial[name])
    ]
    if still:
        raise TrainingError(
            f"after {STEPS_TO_MOVE} steps these tensors have not moved: {', '.join(still)}; "
            "they are not being trained, so the run would not measure what it claims"
        )


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether matrix products run in bf16; "auto" does so where the hardware has it."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    mkldnn = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    return mkldnn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _check_same_run(run: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """A resumed run must be the same run; only its budget may have grown."""
    if before["tokenizer"] != now["tokenizer"]:
        raise TrainingError(
            f"{run} was trained with tokenizer {before['tokenizer'][:16]}, this one is "
            f"{now['tokenizer'][:16]}; resume with the run's own tokenizer.tok"
        )
    if before["corpus"]["sha256"] != now["corpus"]["sha256"]:
        raise TrainingError(
            f"{run} was trained on {before['corpus']['name']} "
            f"({before['corpus']['sha256'][:16]}), this is {now['corpus']['name']} "
            f"({now['corpus']['sha256'][:16]}); resume with the same corpus"
        )
    budget = {"steps", "minutes", "checkpoint_minutes"}
    changed = [
        key
        for key in before["config"].keys() | now["config"].keys()
        if key not in budget and before["config"].get(key) != now["config"].get(key)
    ]
    if changed:
        raise TrainingError(
            f"{run} was started with another {', '.join(sorted(changed))} than is now asked for; "
            "resume with the run's own config.toml as --recipe"
        )


@contextlib.contextmanager
def _damage_named(run: Path) -> Iterator[None]:
    """Turn what a checkpoint without the right keys, types or shapes raises into one error."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join(f"{error!r}".split())[:200]
        raise TrainingError(
            f"the checkpoint in {run} cannot be resumed from: {reason}; start again in another -o"
        ) from error


@contextlib.contextmanager
def _interrupt_flag() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a flag, read between steps; a second one interrupts at once."""
    hit = False

    def on_interrupt(number: int, frame: Any) -> None:
        nonlocal hit
        hit = True
        signal.signal(signal.SIGINT, old)

    try:
        old = signal.signal(signal.SIGINT, on_interrupt)
    except ValueError:  # not the main thread: whoever runs there handles signals
        yield lambda: False
        return
    try:
        yield lambda: hit
    finally:
        signal.signal(signal.SIGINT, old)


@contextlib.contextmanager
def _metrics(run: Path, step: int) -> Iterator[Callable[[StepReport], None]]:
    """Append reports to `metrics.jsonl`, after dropping those a resumed run will repeat."""
    path = run / "metrics.jsonl"
    kept = []
    if step and path.is_file():
        for line in path.read_text("utf-8", errors="replace").splitlines():
            # a line cut short when the run was killed, or damaged
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                report = json.loads(line)
                if report["step"] <= step:
                    kept.append(report)
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
    with open(path, "a", encoding="utf-8") as file:

        def write(report: StepReport) -> None:
            file.write(json.dumps(vars(report)) + "\n")
            file.flush()

        yield write
