"""The training loop: one for every head, trunk and device.

It refuses to go on with an experiment that would mean nothing: every trainable tensor must be in
one optimizer group with a rate above zero, the first loss must be what the head declares, and
after four steps every tensor must have moved. A violation stops the run and names the tensor.
"""

import contextlib
import errno
import functools
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
import torch
from torch import Tensor

from tokgolf.artifact.checkpoint import Checkpoint, holds_checkpoint, read_sound_checkpoint
from tokgolf.config import flat, read_toml, to_dict
from tokgolf.corpora import Corpus, check_disjoint, document_digests, write_digests
from tokgolf.device import in_one_order, resolve_device
from tokgolf.errors import ConfigError, Interrupted, TrainingError
from tokgolf.files import write_bytes, write_text
from tokgolf.heads import head_config, head_to_dict
from tokgolf.heap import freed_memory_kept
from tokgolf.locks import locked
from tokgolf.tokenizers import Tokenizer
from tokgolf.training.config import RunConfig
from tokgolf.training.data import Batches, Prefetcher, tokenize, tokenized
from tokgolf.training.distributed import ALONE, Ranks
from tokgolf.training.guards import FIRST_LOSS_ABOVE, listed
from tokgolf.training.retok import VALUES, trunk_of, with_digests_of
from tokgolf.training.session import Session, Step

LOG_FIRST, LOG_EVERY = 3, 10
LOCK_FILE = ".training"
ALREADY = "{} already holds a run; use --resume, or another -o"
MAY_CHANGE = ("steps", "minutes", "checkpoint_minutes", "max_gradient")  # when a run is resumed
SLOW_SECONDS, SLOW_TIMES = 10.0, 20.0
"""A step of more than so many seconds and so many times the mean is one that something stopped."""


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
    """How a run ended; `compile_seconds`, and what else is paid once, are some of its `seconds`."""

    run: Path
    steps: int
    tokens: int
    seconds: float
    compile_seconds: float
    loss: float
    params: int


def train(
    config: RunConfig,
    tokenizer: Tokenizer,
    corpus: Corpus,
    run: str | os.PathLike[str],
    *,
    held_out: Corpus | None = None,
    device: str = "auto",
    resume: bool = False,
    on_step: Callable[[StepReport], None] = lambda report: None,
    say: Callable[[str], None] = lambda line: None,
    ranks: Ranks = ALONE,
) -> TrainResult:
    """Train a model on `corpus` into the run directory `run`, and return how it ended.

    `held_out` is only checked to share no document with `corpus`. With `resume`, an unfinished
    run goes on from its latest checkpoint, and one without any starts. `say` gets lines that a
    person should read. Raises `TrainingError` (and leaves the latest checkpoint) when a tensor is
    not trained, when the loss or a gradient is out of bounds, or on Ctrl-C; `CorpusError` for
    shared or missing documents.

    With several `ranks` (`joined`) each calls this, and they train one model on the same batches;
    only the lead writes, and calls `on_step` and `say`. Raises `ConfigError` for a batch that they
    cannot share.

    It seeds torch's global generator, for the caller too, and sets what torch has once a process:
    runs in threads of one process disturb each other; give each a process of its own.
    """
    run = Path(run)
    resolve_device(device)  # before anything is written
    rows, left = divmod(config.batch_tokens // config.trunk.sequence_length, ranks.size)
    if left:
        raise ConfigError(
            f"batch_tokens {config.batch_tokens} are {rows * ranks.size + left} sequences of "
            f"{config.trunk.sequence_length}, which {ranks.size} processes cannot share equally; "
            "choose another --nproc-per-node, or --set batch_tokens"
        )
    micro = min(rows, config.micro_batch_tokens // config.trunk.sequence_length)
    if rows % micro:  # the last would be one of another shape, and compiled anew
        raise ConfigError(
            f"each of {ranks.size} processes has {rows} sequences, no multiple of the {micro} of a "
            f"micro-batch; choose another --nproc-per-node, or --set micro_batch_tokens"
        )
    if not ranks.leads:
        on_step, say = _unseen, _unseen
    with contextlib.ExitStack() as held:
        hold = functools.cache(lambda: _hold(run, held, say))
        if ranks.leads and run.is_dir():
            hold()
        started = _checkpoint(run, resume, say)
        fresh = started is None and config.trunk_from and ranks.leads
        trunk = trunk_of(Path(config.trunk_from), config.trunk, tokenizer) if fresh else None
        state = ranks.on_lead(
            lambda: _prepare(config, tokenizer, corpus, run, held_out, started, trunk, hold, say)
        )
        folder, sha256 = run / "tokens", state["corpus"]["sha256"]
        with ranks.lead_first():
            if ranks.leads:
                data = tokenize(corpus, tokenizer, folder, "train", sha256, say)
            else:
                data = tokenized(tokenizer, folder, "train")
        if config.batch_tokens > len(data.stream):
            say(
                f"tokens    a batch of {config.batch_tokens:,} reads the corpus, of "
                f"{len(data.stream):,} tokens, more than once; choose a smaller batch_tokens"
            )
        counts = data.stream.counts(tokenizer.vocab_size)
        held.enter_context(_memory_named(rows, micro, config.trunk.sequence_length))
        session = Session(config, tokenizer, counts, device, say, trunk, ranks, state["afresh"])
        batches = Batches(
            data.stream,
            rows=rows,
            length=config.trunk.sequence_length,
            seed=config.seed,
            part=ranks.rank,
            parts=ranks.size,
        )
        if started is not None:
            with _damage_named(run):
                session.load(*started)
            _say_changes(started[1], state, say)
        place = session.device
        with Prefetcher(batches, place) as ahead, in_one_order(place), freed_memory_kept(place):
            return _run(session, ahead, run, state, on_step)


def _unseen(value: Any) -> None:
    """What another rank than the lead would say."""


def _checkpoint(run: Path, resume: bool, say: Callable[[str], None]) -> Checkpoint | None:
    """The checkpoint to go on from, if any."""
    exists = holds_checkpoint(run)
    if exists and not resume:
        raise TrainingError(ALREADY.format(run))
    if resume and not exists:
        say(f"resume    {run} holds no checkpoint yet: the run starts")
        return None
    return read_sound_checkpoint(run, say) if resume else None


def _prepare(
    config: RunConfig,
    tokenizer: Tokenizer,
    corpus: Corpus,
    run: Path,
    held_out: Corpus | None,
    started: Checkpoint | None,
    trunk: dict[str, Tensor] | None,
    hold: Callable[[], None],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Check and write all that a run needs before its first step; what checkpoints say of it.

    `trunk` are the weights that it starts from. When `hold` was called, nobody else trains there.
    """
    summary = corpus.summary()
    digests = document_digests(corpus)
    if config.trunk_from:
        digests = with_digests_of(Path(config.trunk_from) if started is None else run, digests)
    if held_out is not None:
        check_disjoint(digests, held_out, held_out_name=held_out.name)
    resolved = {**to_dict(config), "head": head_to_dict(head_config(config.head))}
    values = config.trunk.value_embeddings and trunk is not None and VALUES not in trunk
    state = {
        "config": resolved,
        "tokenizer": tokenizer.fingerprint,
        "corpus": {"name": corpus.name, "sha256": summary.sha256, "bytes": summary.bytes},
        "afresh": [VALUES] if values else [],
    }
    if started is not None:
        with _damage_named(run):
            _check_same_run(run, started[1], state)
            state["afresh"] = [*started[1].get("afresh", [])]
    hold()
    if started is None and holds_checkpoint(run):  # trained by another process meanwhile
        raise TrainingError(ALREADY.format(run))
    begun = run / "config.toml"
    if started is None and begun.is_file():
        with contextlib.suppress(ConfigError):  # damaged, and about to be written anew
            if differ := _differences({"config": read_toml(begun)}, state):
                say(f"run       {run} was begun with {listed([*differ.values()])}, and starts anew")
    write_bytes(run / "tokenizer.tok", tokenizer.asset())
    write_digests(run / "train_documents.npy", digests)
    # A recipe that repeats this run; the corpus is no part of a recipe, hence the comment.
    origin = f"# {corpus.name}, {summary.bytes:,} bytes, SHA-256 {summary.sha256}\n"
    write_text(run / "config.toml", origin + tomli_w.dumps(resolved))
    return state


def _run(
    session: Session,
    batches: Prefetcher,
    run: Path,
    state: dict[str, Any],
    on_step: Callable[[StepReport], None],
) -> TrainResult:
    """Train until the budget is spent."""
    config = session.config
    if session.step < session.check_at:
        session.remember()
    saved = session.seconds
    ranks = session.ranks
    offset = time.perf_counter() - session.seconds
    behind: Step | None = None  # started, and not yet read

    def settle() -> None:
        nonlocal behind
        if behind is not None:
            session.judge(behind)
            finish(behind)
            behind = None

    def finish(step: Step) -> None:
        session.seconds = time.perf_counter() - offset
        report = _report(session, step)
        on_step(report)
        if report.step % LOG_EVERY == 0 or report.step <= LOG_FIRST:
            metrics(report)

    def decide() -> tuple[float, bool, bool]:
        """Steps that remain, whether to stop, whether a checkpoint is due: the lead's word."""
        due = session.seconds - saved > config.checkpoint_minutes * 60
        stop = interrupted() or ranks.should_end()
        own = [session.remaining_steps(), stop, due]
        remaining, stopping, writing = ranks.broadcast_numbers(own)
        return remaining, bool(stopping), bool(writing)

    metrics = _metrics(run, session.step) if ranks.leads else _unseen
    with _interrupt_flag() as interrupted:
        remaining, _, _ = decide()
        compiled = False
        while remaining > 0:
            tokens, targets = batches.step(session.step)
            changed = [
                session.untie_if_due(remaining),
                session.lengthen_if_due(remaining),
                session.begin_loops_if_due(remaining),
            ]
            if any(changed) or not compiled:
                session.compile(tokens, targets)
                compiled = True
            if session.rounding_errors_due(remaining):
                settle()  # or a step that went wrong would be met here first, without its name
                session.find_rounding_errors(run)
            late, began = session.reads_late(), time.perf_counter()
            usual = session.pace().per_step if session.step else math.inf
            step = session.start(remaining, tokens, targets)
            if not late:
                session.judge(step)
            session.update(step)
            settle()
            if late:
                behind = step
            else:
                finish(step)
            now = time.perf_counter()
            session.seconds = now - offset
            if now - began > max(SLOW_SECONDS, SLOW_TIMES * usual):
                session.say(
                    f"clock     step {step.number + 1:,} took {now - began:.1f} s, where "
                    f"{usual:.3g} are usual: something stopped this process, and it counts as "
                    "training time"
                )
            remaining, stop, due = decide()
            if stop or due:
                settle()
            if stop:
                session.save(run, state)
                raise Interrupted(
                    f"interrupted after step {session.step:,}; the checkpoint in {run} is usable: "
                    "go on with --resume, or export it as it is"
                )
            if due:
                session.save(run, state)
                saved = session.seconds
        settle()
        session.save(run, state, finished=True)
    if interrupted():  # while the last checkpoint was written
        raise Interrupted(
            f"interrupted after step {session.step:,}, the last; the checkpoint in {run} is usable"
        )
    if session.step < config.steps:
        once = session.compile_seconds
        beside = f", beside {once:.1f} s for compiling and what else is done once" if once else ""
        session.say(
            f"ended     its {config.minutes:g} minutes had time for {session.step:,} of "
            f"{config.steps:,} steps{beside}"
        )
    guess = math.log(session.tokenizer.vocab_size)
    if session.loss > guess * (1 + FIRST_LOSS_ABOVE):
        session.say(
            f"diverged  the loss is {session.loss:.4f} nats at the end, where a guess among all "
            f"tokens has {guess:.4f}; train with lower learning rates"
        )
    for line in session.never_begun():
        session.say(line)
    return TrainResult(
        run=run,
        steps=session.step,
        tokens=session.step * config.batch_tokens,
        seconds=session.seconds,
        compile_seconds=session.compile_seconds,
        loss=session.loss,
        params=sum(p.numel() for p in session.model.parameters()),
    )


def _report(session: Session, step: Step) -> StepReport:
    done = step.number + 1
    tokens = done * session.config.batch_tokens
    return StepReport(
        step=done,
        loss=session.loss,
        tokens=tokens,
        seconds=session.seconds,
        learning_rate_scale=step.scale,
        tokens_per_second=tokens / max(session.seconds - session.paid_apart(), 1e-9),
        seconds_left=max(0.0, session.pace().seconds_for(session.remaining_steps())),
    )


def _hold(run: Path, held: contextlib.ExitStack, say: Callable[[str], None]) -> None:
    """Let no other process train in this folder until `held` ends."""
    try:
        ours = held.enter_context(locked(run / LOCK_FILE, wait=False))
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK):
            raise
        say(f"lock      the file system of {run} has no locks: train it by one command at a time")
        return
    if not ours:
        raise TrainingError(
            f"another process is training {run}; wait until it has ended, or choose another -o"
        )


def _differences(before: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """What is another in a resumed run's config, by key."""
    theirs, ours = flat(before["config"]), flat(now["config"])
    return {
        key: f"{key} {theirs.get(key, 'unset')} (now {ours.get(key, 'unset')})"
        for key in sorted(theirs.keys() | ours.keys())
        if theirs.get(key) != ours.get(key)
    }


def _say_changes(before: dict[str, Any], now: dict[str, Any], say: Callable[[str], None]) -> None:
    """What may change in a resumed run: whoever forgets an option should know."""
    if differ := _differences(before, now):
        say(f"resume    with other options than the run had: {', '.join(differ.values())}")


def _check_same_run(run: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """A resumed run must be the same run but for what `MAY_CHANGE` names, and no budget that is
    spent."""
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
    changed = [line for key, line in _differences(before, now).items() if key not in MAY_CHANGE]
    if changed:
        raise TrainingError(
            f"{run} was started with {listed(changed)}; resume with the run's own config.toml as "
            "--recipe, or start another -o"
        )
    if now["config"]["steps"] < before["step"]:
        raise TrainingError(
            f"{run} has done {before['step']:,} steps, and is to end after "
            f"{now['config']['steps']:,}; resume with as many --steps or more, or export it"
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
def _memory_named(rows: int, micro: int, length: int) -> Iterator[None]:
    """Say what takes a GPU's memory when it has no more: of a process's `rows` of a batch, so many
    at a time."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = " ".join(". ".join(str(error).split(". ")[:2]).split())
        way = "train a smaller model or shorter sequences"
        if smaller := [n for n in range(1, micro) if rows % n == 0]:
            way = f"start again in another -o with --set micro_batch_tokens={smaller[-1] * length}"
        raise TrainingError(
            f"the device's memory does not hold a step of {micro * length:,} tokens at a time: "
            f"{reason}; {way}"
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


def _metrics(run: Path, step: int) -> Callable[[StepReport], None]:
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

    def write(report: StepReport) -> None:
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(vars(report)) + "\n")
        except OSError as error:  # a full disk's has no name
            raise OSError(error.errno, error.strerror, str(path)) from error

    return write
