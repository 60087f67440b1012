"""The training loop: one for every head, trunk and device.

It refuses to go on with an experiment that would mean nothing: every trainable tensor must be in
one optimizer group with a rate above zero, the first loss must be what the head declares, and
after four steps every tensor must have moved. A violation stops the run and names the tensor.
"""

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tokgolf.config import to_dict
from tokgolf.corpora import Corpus, check_disjoint, document_digests
from tokgolf.device import in_one_order, resolve_device
from tokgolf.errors import ConfigError, Interrupted, TrainingError
from tokgolf.heads import head_config, head_to_dict
from tokgolf.heap import freed_memory_kept
from tokgolf.tokenizers import Tokenizer
from tokgolf.training.config import RunConfig
from tokgolf.training.data import Batches, Prefetcher, tokenize, tokenized
from tokgolf.training.directory import RunDirectory
from tokgolf.training.distributed import ALONE, Ranks
from tokgolf.training.guards import FIRST_LOSS_ABOVE
from tokgolf.training.retok import VALUES, trunk_of, with_digests_of
from tokgolf.training.session import Session, Step

LOG_FIRST, LOG_EVERY = 3, 10
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
    resolve_device(device)  # before anything is written
    rows, micro = _shared(config, ranks)
    length = config.trunk.sequence_length
    if not ranks.leads:
        on_step, say = _unseen, _unseen
    path = Path(run)
    with contextlib.ExitStack() as lock, _memory_named(rows, micro, length):
        directory = RunDirectory(path, say, lock)
        if ranks.leads and path.is_dir():
            directory.hold()
        started = directory.checkpoint(resume=resume)
        fresh = started is None and config.trunk_from and ranks.leads
        trunk = trunk_of(Path(config.trunk_from), config.trunk, tokenizer) if fresh else None

        def prepare() -> dict[str, Any]:
            digests = document_digests(corpus)
            if config.trunk_from:
                seen = Path(config.trunk_from) if started is None else path
                digests = with_digests_of(seen, digests)
            if held_out is not None:
                check_disjoint(digests, held_out, held_out_name=held_out.name)
            state = _described(config, tokenizer, corpus)
            state |= {"processes": ranks.size, "tokens_at_once": micro * length}
            if started is not None:
                return directory.go_on(started[1], tokenizer, digests, state)
            values = config.trunk.value_embeddings and trunk is not None and VALUES not in trunk
            state["afresh"] = [VALUES] if values else []
            return directory.begin(tokenizer, digests, state)

        state = ranks.on_lead(prepare)
        folder = path / "tokens"
        with ranks.lead_first():
            if ranks.leads:
                data = tokenize(corpus, tokenizer, folder, "train", state["corpus"]["sha256"], say)
            else:
                data = tokenized(tokenizer, folder, "train")
        if config.batch_tokens > len(data.stream):
            say(
                f"tokens    a batch of {config.batch_tokens:,} reads the corpus, of "
                f"{len(data.stream):,} tokens, more than once; choose a smaller batch_tokens"
            )
        counts = data.stream.counts(tokenizer.vocab_size)
        session = Session(config, tokenizer, counts, device, say, trunk, ranks, state["afresh"])
        batches = Batches(
            data.stream,
            rows=rows,
            length=length,
            seed=config.seed,
            part=ranks.rank,
            parts=ranks.size,
        )
        if started is not None:
            with directory.damage_named():
                session.load(*started)
                directory.say_changes(started[1], state)
        place = session.device
        with Prefetcher(batches, place) as ahead, in_one_order(place), freed_memory_kept(place):
            return _Loop(session, ahead, directory, state, on_step).run()


def _unseen(value: Any) -> None:
    """What another rank than the lead would say."""


def _shared(config: RunConfig, ranks: Ranks) -> tuple[int, int]:
    """Sequences of a batch that are each rank's, and of its micro-batches.

    Raises `ConfigError` where the ranks or the micro-batches would not have as many each.
    """
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
    return rows, micro


def _described(config: RunConfig, tokenizer: Tokenizer, corpus: Corpus) -> dict[str, Any]:
    """What checkpoints say of the run that they belong to."""
    summary = corpus.summary()
    return {
        "config": {**to_dict(config), "head": head_to_dict(head_config(config.head))},
        "tokenizer": tokenizer.fingerprint,
        "corpus": {"name": corpus.name, "sha256": summary.sha256, "bytes": summary.bytes},
    }


class _Loop:
    """The steps of a run, until its budget is spent.

    On a GPU a step is read when the next one is under way: until then it is `behind`.
    """

    def __init__(
        self,
        session: Session,
        batches: Prefetcher,
        directory: RunDirectory,
        state: dict[str, Any],
        on_step: Callable[[StepReport], None],
    ) -> None:
        self.session, self.batches = session, batches
        self.directory, self.state, self.on_step = directory, state, on_step
        self.metrics = directory.metrics(session.step) if session.ranks.leads else _unseen
        if session.step < session.check_at:
            session.remember()
        self.offset = time.perf_counter() - session.clock.seconds
        self.saved_seconds = session.clock.seconds  # of the latest checkpoint
        self.compiled = False
        self.behind: Step | None = None

    def run(self) -> TrainResult:
        """Train. Raises `Interrupted` on Ctrl-C, with a checkpoint."""
        session, run = self.session, self.directory.path
        with _interrupt_flag() as interrupted:
            remaining, _, _ = self.decide(interrupted())
            while remaining > 0:
                self.step(remaining)
                remaining, stop, due = self.decide(interrupted())
                if stop or due:
                    self.settle()
                    session.save(run, self.state)
                    self.saved_seconds = session.clock.seconds
                if stop:
                    raise Interrupted(
                        f"interrupted after step {session.step:,}; the checkpoint in {run} is "
                        "usable: go on with --resume, or export it as it is"
                    )
            self.settle()
            session.save(run, self.state, finished=True)
        if interrupted():  # while the last checkpoint was written
            raise Interrupted(
                f"interrupted after step {session.step:,}, the last; the checkpoint in {run} is "
                "usable"
            )
        self.say_how_it_ended()
        return TrainResult(
            run=run,
            steps=session.step,
            tokens=session.step * session.config.batch_tokens,
            seconds=session.clock.seconds,
            compile_seconds=session.clock.compile_seconds,
            loss=session.loss,
            params=sum(p.numel() for p in session.model.parameters()),
        )

    def decide(self, interrupted: bool) -> tuple[float, bool, bool]:
        """Steps that remain, whether to stop, whether a checkpoint is due: the lead's word."""
        session = self.session
        due = session.clock.seconds - self.saved_seconds > session.config.checkpoint_minutes * 60
        stop = interrupted or session.ranks.should_end()
        own = [session.remaining_steps(), stop, due]
        remaining, stopping, writing = session.ranks.broadcast_numbers(own)
        return remaining, bool(stopping), bool(writing)

    def step(self, remaining: float) -> None:
        """The next step, before which whatever is due by now begins."""
        session, clock = self.session, self.session.clock
        tokens, targets = self.batches.step(session.step)
        changed = [
            session.untie_if_due(remaining),
            session.lengthen_if_due(remaining),
            session.begin_loops_if_due(remaining),
        ]
        if any(changed) or not self.compiled:
            session.compile(tokens, targets)
            self.compiled = True
        if session.rounding_errors_due(remaining):
            self.settle()  # or a step that went wrong would be met here first, without its name
            session.find_rounding_errors(self.directory.path)
        late, began = session.reads_late(), time.perf_counter()
        usual = session.pace().per_step if session.step else math.inf
        step = session.start(remaining, tokens, targets)
        if not late:
            session.judge(step)
        session.update(step)
        self.settle()
        if late:
            self.behind = step
        else:
            self.report(step)
        now = time.perf_counter()
        clock.seconds = now - self.offset
        if now - began > max(SLOW_SECONDS, SLOW_TIMES * usual):
            session.say(
                f"clock     step {step.number + 1:,} took {now - began:.1f} s, where "
                f"{usual:.3g} are usual: something stopped this process, and it counts as "
                "training time"
            )

    def settle(self) -> None:
        """Read the step that is not yet read, if there is one."""
        if self.behind is not None:
            self.session.judge(self.behind)
            self.report(self.behind)
            self.behind = None

    def report(self, step: Step) -> None:
        """Tell of a step that was read."""
        session, clock, done = self.session, self.session.clock, step.number + 1
        clock.seconds = time.perf_counter() - self.offset
        tokens = done * session.config.batch_tokens
        report = StepReport(
            step=done,
            loss=session.loss,
            tokens=tokens,
            seconds=clock.seconds,
            learning_rate_scale=step.scale,
            tokens_per_second=tokens / clock.step_seconds,
            seconds_left=max(0.0, session.pace().seconds_for(session.remaining_steps())),
        )
        self.on_step(report)
        if done % LOG_EVERY == 0 or done <= LOG_FIRST:
            self.metrics(vars(report))

    def say_how_it_ended(self) -> None:
        """What a person should know of a run that its result does not show."""
        session, config = self.session, self.session.config
        if session.step < config.steps:
            once = session.clock.compile_seconds
            beside = f", beside {once:.1f} s for compiling and what else is done once"
            session.say(
                f"ended     its {config.minutes:g} minutes had time for {session.step:,} of "
                f"{config.steps:,} steps{beside if once else ''}"
            )
        guess = math.log(session.tokenizer.vocab_size)
        if session.loss > guess * (1 + FIRST_LOSS_ABOVE):
            session.say(
                f"diverged  the loss is {session.loss:.4f} nats at the end, where a guess among "
                f"all tokens has {guess:.4f}; train with lower learning rates"
            )
        for line in session.never_begun():
            session.say(line)


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
