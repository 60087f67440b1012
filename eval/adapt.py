"""Score-first adaptation: a chunk is scored with the adapter frozen, and only then learned from.

Legal by construction (the challenge's rules on test-time training): nats are written once, in
order, and an adapter is handed copies of tokens whose nats are written, never the text. Two kinds:

    "lora"     each document has an adapter of its own, which begins anew with it; many at once.
               Nothing is learned from a document's last chunk, as nothing of it is left to score.
    "online"   one adapter goes through the corpus in order and learns from all that is scored.

The windows are those of the plain scorer. With "lora" none reaches over a chunk's end, so that with
a chunk shorter than the stride it is the chunk that says how far windows are apart.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from tokgolf.config import check_positive, from_dict
from tokgolf.errors import ConfigError, ScoreError
from tokgolf.eval.adapters import (
    Adapter,
    Deltas,
    GradientAdapter,
    Lesson,
    log_probs,
    low_rank_deltas,
    low_rank_start,
    own_deltas,
    own_tensors,
    padded,
)
from tokgolf.eval.scorer import (
    BATCH_TOKENS,
    Encoder,
    Nats,
    Observer,
    settled_stride,
    windows,
)
from tokgolf.model import LanguageModel

Kind = Literal["lora", "online"]
ADAPT_MODULES = ("tokgolf.eval.adapt",)  # what an adapted score needs, and its artifact pays for
MOST_LOGITS = 1 << 25  # values of ln p in one batch: 128 MB
LOOKAHEAD = 8  # documents for each that is being scored, so that short ones fill the slots


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """How a model adapts while it is scored.

    `chunk` is how many tokens are scored between two updates; with kind "online" at least so many,
    in whole windows. With `rank` above 0 the adapter is a low-rank delta of the trunk's linear maps
    named in `targets` by the end of their name ("query", "mlp.up"), and of the logits' bias if
    "bias" is among them; with 0, for kind "online" alone, it is the model's own tensors of the
    kinds in `targets` ("table", "matrix", "vector"). `steps` are taken on each chunk; weight decay
    pulls back to where the adapter began. With kind "lora" `slots` documents are scored at once,
    each with its own adapter.
    """

    kind: Kind
    targets: list[str] = field(default_factory=list)
    rank: int = 8
    chunk: int = 128
    steps: int = 1
    optimizer: Literal["adam", "sgd"] = "adam"
    lr: float = 0.01
    weight_decay: float = 0.0
    slots: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive(self, "chunk", "steps", "lr", "slots")
        if self.rank < 0 or not 0 <= self.weight_decay < math.inf:
            raise ConfigError(
                f"adapt.rank is {self.rank} and adapt.weight_decay {self.weight_decay}; neither "
                "can be below 0"
            )
        if self.kind == "lora" and not self.rank:
            raise ConfigError("adapt.rank is 0; an adapter a document is low-rank, so give 1 or up")


# Chosen on training text: see docs/results/adaptation.md.
DEFAULTS = {
    "lora": AdaptConfig(
        kind="lora",
        targets=["query", "key", "value", "attention.out", "mlp.up", "mlp.out", "bias"],
        chunk=128,
        lr=0.01,
    ),
    "online": AdaptConfig(
        kind="online", targets=["matrix", "vector"], rank=0, chunk=256, optimizer="sgd", lr=0.1
    ),
}


def adapt_config(kind: str, overrides: dict[str, Any]) -> AdaptConfig | None:
    """The defaults of a kind with values over them; None for "none".

    Raises `ConfigError` for what is unknown, or for overrides of nothing.
    """
    if kind == "none":
        if overrides:
            raise ConfigError(f"{', '.join(overrides)} is set, but there is no adaptation")
        return None
    base = from_dict(AdaptConfig, {"kind": kind}, "adapt")
    known = {**vars(DEFAULTS[base.kind]), **overrides}
    return from_dict(AdaptConfig, known, "adapt")


class WriteOnce:
    """A document's targets and their nats, which are written once, from the first one on.

    targets (count,) with the closing BOS; `number` is the first one's place in the corpus.
    """

    def __init__(self, targets: NDArray[Any], bos: int, number: int) -> None:
        self._tokens = np.insert(targets.astype(np.int64), 0, bos)
        self._nats = np.full(len(targets), np.nan)
        self.number = number
        self.fixed = 0

    def __len__(self) -> int:
        return len(self._nats)

    def question(self, start: int, first: int, end: int) -> Lesson:
        """The next window to score: inputs from `start`, paying for targets `first` to `end`."""
        if first < self.fixed:
            raise ScoreError(
                f"target {first:,} would be scored again: {self.fixed:,} of this document have "
                "their nats"
            )
        return Lesson(self._tokens[start : end + 1].copy(), first - start)

    def fix(self, first: int, nats: Nats) -> None:
        """Write nats, for good. Raises `ScoreError` unless they are the next ones."""
        if first != self.fixed or first + len(nats) > len(self):
            raise ScoreError(
                f"nats of targets {first:,} to {first + len(nats):,} where {self.fixed:,} of "
                f"{len(self):,} are written; each is written once, in order"
            )
        self._nats[first : first + len(nats)] = nats
        self.fixed += len(nats)

    def lesson(self, start: int, first: int, end: int) -> Lesson:
        """A copy of scored text to learn from. Raises `ScoreError` if it is not all scored."""
        if end > self.fixed:
            raise ScoreError(
                f"tokens up to target {end:,} were asked for, and only {self.fixed:,} are scored"
            )
        return Lesson(self._tokens[start : end + 1].copy(), first - start)

    @property
    def nats(self) -> Nats:
        """The nats, once all are written."""
        if self.fixed != len(self):
            raise ScoreError(f"{self.fixed:,} of {len(self):,} targets are scored")
        return self._nats.copy()


def make_adapter(model: LanguageModel, config: AdaptConfig, batch_tokens: int) -> GradientAdapter:
    """The adapter that a config describes, as it is before any text."""
    if config.rank:
        start = low_rank_start(model, config.targets, config.rank, config.seed)
    else:
        start = own_tensors(model, config.targets)
    if not start:
        raise ConfigError("adapt.targets is empty; name what is to adapt")
    return GradientAdapter(
        model,
        start,
        low_rank_deltas if config.rank else own_deltas,
        slots=config.slots if config.kind == "lora" else 1,
        optimizer=config.optimizer,
        lr=config.lr,
        steps=config.steps,
        weight_decay=config.weight_decay,
        batch_tokens=batch_tokens,
    )


def adapted_nats(
    model: LanguageModel,
    tokenizer: Encoder,
    documents: Iterable[bytes],
    *,
    config: AdaptConfig,
    window: int = 0,
    stride: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    observe: Observer = lambda numbers, log_probs: None,
    make: Callable[[LanguageModel, AdaptConfig, int], Adapter] = make_adapter,
) -> Iterator[tuple[bytes, Nats]]:
    """Each document with the nats of its targets, in order, by a model that adapts; see above.

    Other than `config` and `make` as `document_nats`, in the context "document" and in fp32. The
    model must be in eval mode and is left as it was.
    """
    length = window or model.trunk.config.sequence_length
    stride = settled_stride(stride, length)
    if length > model.trunk.config.sequence_length:
        from tokgolf.eval.contexts import widened

        model = widened(model, length)
    vocab = model.head.shape.vocab_size
    batch_tokens = max(1, min(batch_tokens, MOST_LOGITS // vocab))
    scorer = _Scorer(model, length, stride, config, batch_tokens, observe)
    with torch.inference_mode(False), torch.no_grad():
        adapter = make(model, config, batch_tokens)
    run = scorer.per_document if config.kind == "lora" else scorer.running
    yield from run(adapter, _records(tokenizer, documents, batch_tokens))


def _records(
    tokenizer: Encoder, documents: Iterable[bytes], size: int
) -> Iterator[tuple[bytes, WriteOnce]]:
    batch: list[bytes] = []
    number = held = 0

    def flushed() -> Iterator[tuple[bytes, WriteOnce]]:
        nonlocal number
        for data, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
            targets = np.append(ids, ids.dtype.type(tokenizer.bos_id))
            yield data, WriteOnce(targets, tokenizer.bos_id, number)
            number += len(targets)

    for data in documents:
        batch.append(data)
        held += len(data) + 1
        if held >= size:
            yield from flushed()
            batch, held = [], 0
    yield from flushed()


Span = tuple[int, WriteOnce, int, int]
"""A slot, its document, and targets of it: from, to."""


def _merged(spans: Sequence[Span]) -> list[Span]:
    """Spans that follow on each other in one document as one, so that it is learned from once."""
    found: list[Span] = []
    for slot, record, begin, stop in spans:
        if found and found[-1][1] is record and found[-1][3] == begin:
            begin = found.pop()[2]
        found.append((slot, record, begin, stop))
    return found


@dataclass(frozen=True)
class _Scorer:
    """The two orders of scoring and learning."""

    model: LanguageModel
    length: int
    stride: int
    config: AdaptConfig
    batch_tokens: int
    observe: Observer

    def per_document(
        self, adapter: Adapter, records: Iterator[tuple[bytes, WriteOnce]]
    ) -> Iterator[tuple[bytes, Nats]]:
        """Documents in slots, chunk by chunk; a slot that is done takes the next document."""
        waiting: deque[tuple[bytes, WriteOnce]] = deque()  # in order, until their turn comes
        busy: dict[int, WriteOnce] = {}
        more = True
        while more or busy:
            for slot in range(self.config.slots):
                if slot in busy or not more or len(waiting) >= LOOKAHEAD * self.config.slots:
                    continue
                entry = next(records, None)
                if entry is None:
                    more = False
                    break
                waiting.append(entry)
                busy[slot] = entry[1]
                adapter.reset(slot)
            spans = {
                slot: (record.fixed, min(record.fixed + self.config.chunk, len(record)))
                for slot, record in busy.items()
            }
            self._score(adapter, [(slot, busy[slot], *span) for slot, span in spans.items()])
            done = [slot for slot, record in busy.items() if record.fixed == len(record)]
            for slot in done:
                del busy[slot], spans[slot]
            self._learn(adapter, [(slot, busy[slot], *span) for slot, span in spans.items()])
            while waiting and waiting[0][1].fixed == len(waiting[0][1]):
                data, record = waiting.popleft()
                yield data, record.nats

    def running(
        self, adapter: Adapter, records: Iterator[tuple[bytes, WriteOnce]]
    ) -> Iterator[tuple[bytes, Nats]]:
        """Documents in order; a chunk is of whole windows, of one document or several."""
        spans: list[Span] = []
        whole: list[tuple[bytes, WriteOnce]] = []  # end in the present chunk
        paid = 0
        for data, record in records:
            for _, first, end in windows(len(record), self.length, self.stride):
                spans.append((0, record, first, end))
                paid += end - first
                if end == len(record):
                    whole.append((data, record))
                if paid >= self.config.chunk:
                    self._score(adapter, spans)
                    yield from ((done, each.nats) for done, each in whole)
                    self._learn(adapter, _merged(spans))
                    spans, whole, paid = [], [], 0
        self._score(adapter, spans)
        yield from ((done, each.nats) for done, each in whole)

    def _score(self, adapter: Adapter, spans: Sequence[Span]) -> None:
        """Fix the nats of spans of documents with the adapter as it is."""
        wanted = [
            (slot, record, *window)
            for slot, record, begin, stop in spans
            for window in windows(stop, self.length, self.stride, begin)
        ]
        nats: list[Nats] = [np.empty(0)] * len(wanted)
        by_length = sorted(range(len(wanted)), key=lambda i: wanted[i][2] - wanted[i][4])
        deltas = adapter.deltas()
        while by_length:
            longest = wanted[by_length[0]][4] - wanted[by_length[0]][2]
            size = max(1, self.batch_tokens // longest)
            rows, by_length = by_length[:size], by_length[size:]
            with torch.inference_mode():
                self._score_batch(deltas, [wanted[row] for row in rows], rows, nats)
        for (_, record, _, first, _), values in zip(wanted, nats, strict=True):
            record.fix(first, values)

    def _score_batch(
        self,
        deltas: Deltas,
        wanted: Sequence[tuple[int, WriteOnce, int, int, int]],
        rows: Sequence[int],
        nats: list[Nats],
    ) -> None:
        device = next(self.model.parameters()).device
        questions = [record.question(start, first, end) for _, record, start, first, end in wanted]
        tokens, paid = padded(questions, device)
        slots = torch.tensor([window[0] for window in wanted], device=device)
        inputs, paid = tokens[:, :-1], paid[:, :-1]
        found = log_probs(self.model, deltas, slots, inputs, paid)
        numbers = [np.arange(first, end) + record.number for _, record, _, first, end in wanted]
        self.observe(np.concatenate(numbers), found)
        picked = found.gather(1, tokens[:, 1:][paid][:, None])[:, 0]
        values = -picked.double().cpu().numpy()
        ends = np.cumsum([len(part) for part in numbers])
        for row, part in zip(rows, np.split(values, ends[:-1]), strict=True):
            nats[row] = part

    def _learn(self, adapter: Adapter, spans: Sequence[Span]) -> None:
        """Hand an adapter copies of what is scored, in windows as long as can be."""
        lessons = [
            (slot, record.lesson(*window))
            for slot, record, begin, stop in spans
            for window in windows(stop, self.length, self.length, begin)
        ]
        with torch.inference_mode(False), torch.no_grad():
            adapter.learn(lessons)
