"""Which of two scored models is better, how sure that is, and what it is worth in bytes.

A side is one model, or several trained alike but for their seeds. Two questions are kept apart:
whether other documents would agree (a bootstrap over documents, for these very models), and
whether another training would (a t-test over seeds). The challenge's rule asks the second.

Differences are candidate less reference, in bits per byte: below zero, the candidate is better.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from tokgolf.config import nearest
from tokgolf.errors import ConfigError, ScoreError
from tokgolf.eval.exchange import Exchange, Segment
from tokgolf.eval.saved import Doubles, SavedScore, protocol_differences, taken_differences
from tokgolf.eval.statistics import TTest, paired, ratio_interval, welch

# openai/parameter-golf, README: a record beats the one before by 0.005 nats at p < 0.01. The nats
# are a token's in practice, so that the rule in bits per byte depends on the tokenizer.
RULE_NATS = 0.005
RULE_P = 0.01
FEW_DOCUMENTS = 30  # below, a 95 % interval covers the truth in some 90 %: see ratio_interval

Test = Literal["auto", "paired", "welch"]


@dataclass(frozen=True, kw_only=True)
class Side:
    """Scores of one model, or of several that differ by their seeds."""

    scores: tuple[SavedScore, ...]

    @property
    def name(self) -> str:
        """The first score's name, and how many more there are."""
        more = len(self.scores) - 1
        return self.scores[0].name + (f" and {more} more" if more else "")

    @property
    def bpb(self) -> float:
        """Mean over the seeds of pooled bits per byte."""
        return math.fsum(score.bpb for score in self.scores) / len(self.scores)

    @property
    def bytes_per_token(self) -> float:
        """Of the tokens that were paid for, closing BOS included."""
        return math.fsum(self.scores[0].sizes) / self.scores[0].tokens

    @property
    def rule_bpb(self) -> float:
        """The challenge's 0.005 nats a token in bits per byte, for this tokenizer."""
        return RULE_NATS / math.log(2) / self.bytes_per_token

    @property
    def model(self) -> Literal["float", "artifact", "mixed"]:
        """What was scored: weights as they were trained, files as they are shipped, or both."""
        kinds = {score.artifact_sha256 is None for score in self.scores}
        if len(kinds) > 1:
            return "mixed"
        return "float" if kinds == {True} else "artifact"

    @property
    def artifact_bytes(self) -> int | None:
        """Full accounting of the largest artifact; None where a score is of a float model."""
        sizes = [score.artifact_bytes for score in self.scores]
        return None if None in sizes else max(size for size in sizes if size is not None)

    @property
    def document_bits(self) -> Doubles:
        """Mean bits of each document.  # (documents,)"""
        return np.asarray(np.mean([score.bits for score in self.scores], axis=0), np.float64)

    def as_dict(self) -> dict[str, Any]:
        """The side as plain values for JSON."""
        nats = self.bpb * math.log(2)
        return {
            "scores": [score.name for score in self.scores],
            "bpb": self.bpb,
            "nats_per_byte": nats,
            "nats_per_token": nats * self.bytes_per_token,
            "bpb_of_each": [score.bpb for score in self.scores],
            "seeds": [score.seed for score in self.scores],
            "model": self.model,
            "tokenizer": self.scores[0].tokenizer,
            "bytes_per_token": self.bytes_per_token,
            "rule_bpb": self.rule_bpb,
            "artifact_bytes": self.artifact_bytes,
        }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A candidate beside the reference, in bits per byte."""

    reference: Side
    candidate: Side
    level: float
    documents: tuple[float, float] | None
    """The interval over documents; None for fewer than two of them."""

    seeds: TTest | None
    """None for fewer than two scores on a side."""

    segment: Segment | None
    """The measured points about the reference's size, if any were given."""

    @property
    def difference(self) -> float:
        """Candidate less reference."""
        return self.candidate.bpb - self.reference.bpb

    @property
    def same_tokenizer(self) -> bool:
        """Whether nats a token can be compared."""
        return self.reference.scores[0].tokenizer == self.candidate.scores[0].tokenizer

    @property
    def same_model(self) -> bool:
        """Whether all are float models or all artifacts; else quantization is in the difference."""
        return self.reference.model == self.candidate.model != "mixed"

    @property
    def rule_bpb(self) -> float:
        """The challenge's rule; with two tokenizers, that of the one with the larger demand."""
        return max(self.reference.rule_bpb, self.candidate.rule_bpb)

    @property
    def p_rule(self) -> float | None:
        """One-sided p, over seeds, that the gain is less than the rule demands."""
        return None if self.seeds is None else self.seeds.p_below(-self.rule_bpb)

    @property
    def clears(self) -> bool | None:
        """Whether the rule is cleared; None where there are no seeds to tell."""
        return None if self.p_rule is None else self.p_rule < RULE_P

    @property
    def bytes_difference(self) -> int | None:
        """Candidate less reference, full accounting."""
        a, b = self.reference.artifact_bytes, self.candidate.artifact_bytes
        return None if a is None or b is None else b - a

    @property
    def bytes_paid(self) -> float | None:
        """Bytes that went for each bit per byte, where one side is larger and better.

        Always positive: what the larger one paid, whichever it is.
        """
        more = self.bytes_difference
        if not more or not self.difference or (more > 0) == (self.difference > 0):
            return None
        return abs(more / self.difference)

    @property
    def rate(self) -> float | None:
        """Bits per byte for a byte of artifact at the reference's size, by the measured points."""
        return None if self.segment is None else self.segment.rate

    @property
    def worth_bytes(self) -> float | None:
        """Bytes that the reference must grow by to gain as much, at `rate`."""
        return None if self.rate is None else -self.difference / self.rate

    @property
    def difference_at_equal_bytes(self) -> float | None:
        """The difference had the candidate the reference's size, at `rate`."""
        if self.rate is None or self.bytes_difference is None:
            return None
        return self.difference + self.rate * self.bytes_difference

    def as_dict(self) -> dict[str, Any]:
        """The comparison as plain values for JSON."""
        bits = self.difference
        per_token = self.reference.bytes_per_token if self.same_tokenizer else None
        seeds: dict[str, Any] | None = None
        if self.seeds is not None:
            low, high = self.seeds.interval(self.level)
            seeds = {
                "test": self.seeds.kind,
                "low": low,
                "high": high,
                "error": self.seeds.error,
                "freedom": self.seeds.freedom,
                "p_equal": self.seeds.p_equal,
                "p_not_better": self.seeds.p_below(0.0),
                "p_rule": self.p_rule,
            }
        return {
            "reference": self.reference.as_dict(),
            "candidate": self.candidate.as_dict(),
            "same_model": self.same_model,
            "bpb": bits,
            "nats_per_byte": bits * math.log(2),
            "nats_per_token": None if per_token is None else bits * math.log(2) * per_token,
            "documents": None
            if self.documents is None
            else {"low": self.documents[0], "high": self.documents[1]},
            "seeds": seeds,
            "rule_bpb": self.rule_bpb,
            "clears_rule": self.clears,
            "bytes_difference": self.bytes_difference,
            "bytes_paid_per_bpb": self.bytes_paid,
            "exchange": None
            if self.segment is None
            else {**asdict(self.segment), "bpb_per_byte": self.segment.rate},
            "worth_bytes": self.worth_bytes,
            "difference_at_equal_bytes": self.difference_at_equal_bytes,
        }


def compare(
    sides: Sequence[Sequence[SavedScore]],
    *,
    test: str = "auto",
    level: float = 0.95,
    across_protocols: bool = False,
    exchange: Exchange | None = None,
) -> list[Comparison]:
    """Compare every side after the first, the reference, with it.

    `test` "auto" pairs runs by seed where every run's seed is known and both sides have the same
    ones, and is Welch's otherwise; "paired" takes a side's runs in the order given. `level` is of
    the intervals. Raises `ScoreError` for scores that are not of the same documents, mode and
    protocol (between sides, but for `across_protocols`), `ConfigError` for options that do not fit.
    """
    if test not in get_args(Test):
        raise ConfigError(f"--test is {test!r}; {nearest(test, get_args(Test))}")
    if not 0.5 <= level < 1:
        raise ConfigError(f"--level is {level}; it must be from 0.5 to below 1")
    if len(sides) < 2 or not all(sides):
        raise ConfigError(
            f"{sum(map(bool, sides))} side to compare; give two scores or more, or sides of "
            "several seeds with vs between them: a1.json a2.json vs b1.json b2.json"
        )
    reference, *candidates = [_side(side) for side in sides]
    _check_comparable([score for side in sides for score in side], across_protocols)
    return [_comparison(reference, candidate, test, level, exchange) for candidate in candidates]


def _comparison(
    reference: Side, candidate: Side, test: str, level: float, exchange: Exchange | None
) -> Comparison:
    difference = candidate.document_bits - reference.document_bits
    return Comparison(
        reference=reference,
        candidate=candidate,
        level=level,
        documents=ratio_interval(difference, reference.scores[0].sizes, level=level),
        seeds=_seeds_test(reference.scores, candidate.scores, test),
        segment=None if exchange is None else _segment(exchange, reference),
    )


def _segment(exchange: Exchange, reference: Side) -> Segment:
    if reference.artifact_bytes is None:
        raise ScoreError(
            f"{reference.name} is of a float model, which has no size, so --exchange has no place "
            "to be read at; score the exported artifact"
        )
    unlike = exchange.taken and "; ".join(taken_differences(reference.scores[0], exchange.taken))
    if unlike:
        raise ScoreError(
            f"{reference.name} and the scores of --exchange are not of one corpus, mode and "
            f"protocol: {unlike}; score the points as the reference was"
        )
    return exchange.segment(reference.artifact_bytes)


def _seeds_test(a: Sequence[SavedScore], b: Sequence[SavedScore], test: str) -> TTest | None:
    if test == "paired" and len(a) != len(b):
        raise ConfigError(f"--test paired needs equal sides; these have {len(a)} and {len(b)}")
    if min(len(a), len(b)) < 2:
        return None
    known = [[score.seed for score in side if score.seed is not None] for side in (a, b)]
    if test == "auto" and len(known[0]) == len(a) and len(known[1]) == len(b):
        if len(set(known[0])) == len(a) and sorted(known[0]) == sorted(known[1]):
            a, b = (sorted(side, key=lambda score: score.seed or 0) for side in (a, b))
            test = "paired"
    run = paired if test == "paired" else welch
    return run([score.bpb for score in a], [score.bpb for score in b])


def _side(scores: Sequence[SavedScore]) -> Side:
    for index, score in enumerate(scores):
        pair = f"{scores[0].name} and {score.name} are on one side but"
        if score.tokenizer != scores[0].tokenizer:
            raise ScoreError(f"{pair} have different tokenizers; put vs between them")
        unlike = "; ".join(protocol_differences(scores[0], score))
        if unlike:
            raise ScoreError(
                f"{pair} of different protocols: {unlike}; score them alike, or put vs between them"
            )
        for other in scores[:index]:
            pair = f"{other.name} and {score.name}"
            if np.array_equal(score.bits, other.bits):
                raise ScoreError(
                    f"{pair} are one result twice; a side's scores must be of runs that differ by "
                    "their seeds"
                )
            if score.artifact_sha256 is not None and score.artifact_sha256 == other.artifact_sha256:
                raise ScoreError(
                    f"{pair} are on one side but of one artifact, {score.artifact_sha256[:12]}; a "
                    "side's scores must be of runs that differ by their seeds"
                )
    return Side(scores=tuple(scores))


def _check_comparable(scores: Sequence[SavedScore], across_protocols: bool) -> None:
    first = scores[0]
    for score in scores[1:]:
        pair = f"{first.name} and {score.name}"
        if score.mode != first.mode:
            raise ScoreError(
                f"{pair} are of different modes, {first.mode} and {score.mode}; the bytes are not "
                "of the same text, so score both in one mode"
            )
        if score.corpus_sha256 != first.corpus_sha256:
            raise ScoreError(
                f"{pair} are of different documents: {first.corpus} {first.corpus_sha256[:12]} "
                f"and {score.corpus} {score.corpus_sha256[:12]}; score both on one corpus"
            )
        if not np.array_equal(score.sizes, first.sizes):
            raise ScoreError(f"{pair} name one corpus but hold different document_bytes")
        if score.tokenizer == first.tokenizer and score.tokens != first.tokens:
            raise ScoreError(
                f"{pair} have one tokenizer but {first.tokens:,} and {score.tokens:,} tokens"
            )
        unlike = list(protocol_differences(first, score))
        if unlike and not across_protocols:
            raise ScoreError(
                f"{pair} are of different protocols: {'; '.join(unlike)}; score both alike, or "
                "say --across-protocols if that difference is what you want to see"
            )
