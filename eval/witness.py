"""The witness of a score: stands between scorer, tokenizer and text, and shows all to the checks.

It is the encoder that the scorer uses and the observer of its ln p, so each document is encoded
once and what is checked is what is scored.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokgolf.corpora import CorpusSummary
from tokgolf.eval.invariants import (
    Causality,
    ExactDecoding,
    OnceEach,
    Results,
    SameDocuments,
    SumsToOne,
    TrueBytes,
    Unchanged,
)
from tokgolf.eval.official import scored_targets
from tokgolf.eval.protocol import Protocol
from tokgolf.eval.scorer import Nats
from tokgolf.model import LanguageModel
from tokgolf.tokenizers import Tokenizer
from tokgolf.tokenizers.base import Ids


class Witness:
    """An encoder and observer; `protocol` is one with its window and stride settled."""

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        protocol: Protocol,
        corpus: CorpusSummary,
        *,
        trained_on: int | None,
        decoded: LanguageModel | None,
    ) -> None:
        assert protocol.window is not None
        self.tokenizer = tokenizer
        self.true_bytes = TrueBytes()
        self.decoding = ExactDecoding()
        self.same = SameDocuments(corpus, trained_on)
        self.sums = SumsToOne()
        self.causality = causality(model, protocol)
        self.once = OnceEach()
        self.unchanged = Unchanged(model, decoded)

    @property
    def bos_id(self) -> int:
        """As `Encoder.bos_id`."""
        return self.tokenizer.bos_id

    def encode_batch(self, batch: Sequence[bytes]) -> list[Ids]:
        """As `Encoder.encode_batch`."""
        encoded = self.tokenizer.encode_batch(batch)
        for data, ids in zip(batch, encoded, strict=True):
            self.true_bytes.counted(len(data), int(self.tokenizer.byte_lengths(ids).sum()))
            self.decoding.compared(self.tokenizer.decode(ids) == data)
            self.causality.encoded(ids)
        bos = np.array([self.bos_id], self.tokenizer.dtype)
        self.once.expect([np.concatenate([ids, bos]) for ids in encoded])
        return encoded

    def observe(self, numbers: NDArray[np.int64], log_probs: torch.Tensor) -> None:
        """As `Observer`."""
        self.sums.observed(log_probs)
        self.once.observed(numbers, log_probs)

    def scored(self, data: bytes, nats: Nats) -> None:
        """A document as the scorer gives it back."""
        self.same.seen(data)
        self.once.scored(nats)

    def results(
        self, *, nats_per_token: float, bpb: float, targets: int
    ) -> tuple[Results, dict[str, dict[str, Any]]]:
        """All invariants by name, and by letter what was seen; given what is to be published."""
        rates = self.true_bytes.results(nats_per_token=nats_per_token, bpb=bpb, targets=targets)
        found = {
            "a": (rates, self.true_bytes.evidence()),
            "b": (self.decoding.results(), self.decoding.evidence()),
            "c": (self.same.results(), self.same.evidence()),
            "d": (self.sums.results() | self.once.own_nats(), self.sums.evidence()),
            "e": (self.causality.results(), self.causality.evidence()),
            "f": (
                self.once.results() | self.unchanged.results(),
                self.once.evidence() | self.unchanged.evidence(),
            ),
        }
        invariants = {
            name: holds for results, _ in found.values() for name, holds in results.items()
        }
        evidence = {
            letter: {"checks": list(results), **seen} for letter, (results, seen) in found.items()
        }
        return invariants, evidence


def causality(model: LanguageModel, protocol: Protocol) -> Causality:
    """A probe of text that takes two windows at least, and of what adapts two chunks."""
    window = protocol.window or 0
    if protocol.mode == "official":
        return Causality(
            model, length=2 * window + 1, scored=lambda targets: scored_targets(targets, window)
        )
    reach = max(window, protocol.adapt.chunk if protocol.adapt else 0)
    return Causality(model, length=reach + max(1, min(protocol.stride, window // 8)))
