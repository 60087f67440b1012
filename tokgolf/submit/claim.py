"""What a submission claims: numbers over seeds, bytes by convention, and what is missing.

Pure values of the runs that were read; whether they hold is for `submission.py` to find out.
"""

import statistics
from dataclasses import dataclass
from typing import Literal

from tokgolf.corpora import corpus_names
from tokgolf.errors import CapError, ConfigError
from tokgolf.eval.audit.claims import CHALLENGE_BYTES, SAME_TEXT
from tokgolf.eval.compare import RULE_NATS, RULE_P, Comparison
from tokgolf.submit.seeds import Seed

SEEDS = 3  # the challenge wants so many to call a difference significant
LIMIT_SECONDS = 600  # of training, and again of scoring, on its 8xH100
Track = Literal["10min_16mb", "non_record_16mb"]


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What only the author knows. What is not given is null in submission.json."""

    author: str | None = None
    github_id: str | None = None
    blurb: str | None = None
    date: str | None = None
    hardware: str | None = None


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The claim of a folder. `text` is the corpus that was scored; `seeds` are in the order of
    their numbers and alike in all else; `against` is their comparison with the record to beat.

    `code` are the bytes of train_gpt.py, `readable` those of the files it was packed from.
    """

    name: str
    track: Track
    labels: Labels
    text: str
    seeds: list[Seed]
    cap: int
    code: int
    readable: int
    training: bool
    against: Comparison | None = None

    @property
    def val_loss(self) -> float:
        """Mean nats a token."""
        return statistics.fmean(seed.val_loss for seed in self.seeds)

    @property
    def val_bpb(self) -> float:
        """Mean bits a byte."""
        return statistics.fmean(seed.val_bpb for seed in self.seeds)

    @property
    def val_loss_std(self) -> float | None:
        """Over seeds, with n - 1; None for one seed."""
        return _deviation([seed.val_loss for seed in self.seeds])

    @property
    def val_bpb_std(self) -> float | None:
        """As `val_loss_std`."""
        return _deviation([seed.val_bpb for seed in self.seeds])

    @property
    def model(self) -> int:
        """Bytes of the largest artifact; its tokenizer is in it."""
        return max(len(seed.artifact.data) for seed in self.seeds)

    @property
    def total(self) -> int:
        """What is held against the cap: script and largest artifact."""
        return self.code + self.model

    @property
    def official(self) -> bool:
        """Whether the text and windows are the challenge's."""
        return self.seeds[0].protocol.mode == "official"

    @property
    def scored_bytes(self) -> int:
        """Bytes of the text that was scored, each seed by itself."""
        return int(self.seeds[0].score.sizes.sum())

    @property
    def whole_split(self) -> bool:
        """Whether the text has the size of the challenge's validation split, normalised."""
        return self.official and abs(self.scored_bytes / CHALLENGE_BYTES - 1) < SAME_TEXT

    @property
    def train_in_time(self) -> bool:
        """Whether each run trained no longer than the challenge allows, on whatever hardware."""
        return max(seed.seconds for seed in self.seeds) <= LIMIT_SECONDS

    @property
    def eval_in_time(self) -> bool:
        """Whether each score was taken in as long, with its checks."""
        return max(float(seed.values["seconds"]) for seed in self.seeds) <= LIMIT_SECONDS

    @property
    def significant(self) -> bool | None:
        """Whether the challenge's rule is cleared; None without a record to beat, or with too few
        seeds on either side to tell."""
        if self.against is None:
            return None
        fewest = min(len(self.seeds), len(self.against.reference.scores))
        return self.against.clears if fewest >= SEEDS else None

    def missing(self) -> list[str]:
        """What the folder lacks for a record of the challenge, a line each."""
        found = []
        if len(self.seeds) < SEEDS:
            found.append(
                f"{len(self.seeds)} of {SEEDS} seeds: no difference to another record "
                "can be called significant"
            )
        if self.against is not None:
            count = len(self.against.reference.scores)
            if count < SEEDS:
                found.append(
                    f"{count} of {SEEDS} seeds of the record to beat: no difference to it can be "
                    "called significant"
                )
            elif self.significant is False:
                found.append(
                    f"the record to beat is not beaten by {RULE_NATS} nats a token at "
                    f"p < {RULE_P}: p = {self.against.p_rule:.2g}"
                )
        if not self.official:
            found.append(
                "raw mode: the text is scored as it is, so the number stands in no table with the "
                "challenge's"
            )
        elif not self.whole_split:
            found.append(
                f"{self.scored_bytes:,} bytes were scored, the challenge's split has "
                f"{CHALLENGE_BYTES:,}: the number stands in no table with the challenge's"
            )
        if self.seeds[0].values["invariants"]["train_disjoint"] is not True:
            found.append("whether a scored document was trained on was not checked")
        for what, in_time in (("training", self.train_in_time), ("scoring", self.eval_in_time)):
            if not in_time:
                found.append(f"{what} took over {LIMIT_SECONDS} s")
        if not self.labels.hardware:
            found.append("the hardware is not named, so the times say nothing")
        if not self.labels.author or not self.labels.github_id:
            found.append("author and github_id are not both given")
        if not self.training:
            found.append("train_gpt.py scores and does not train")
        return found

    def check(self) -> None:
        """Raise `CapError` if it is over the cap, `ConfigError` if it is none for its track."""
        if self.total > self.cap:
            spare = self.cap - self.code
            least = min(seed.ledger.code.packed for seed in self.seeds)
            advice = (
                f"export with --cap {spare + least} or less"
                if spare > 0
                else "the script alone is over it"
            )
            raise CapError(
                f"train_gpt.py ({self.code:,} bytes) and the artifact ({self.model:,}) make "
                f"{self.total:,} bytes, {self.total - self.cap:,} over the cap of {self.cap:,}; "
                f"{advice}" + (", or use --no-training" if self.training else "")
            )
        if self.track == "10min_16mb" and (missing := self.missing()):
            raise ConfigError(
                f"this is no record for the track 10min_16mb: {missing[0]} (and "
                f"{len(missing) - 1} more); submit it to --track non_record_16mb"
            )


def is_named(spec: str) -> bool:
    """Whether a corpus is given by a name that says the same on every machine, not by a path."""
    return spec.partition(":")[0] in corpus_names() or spec.startswith("hf:")


def shown_name(spec: str) -> str:
    """A corpus' name without the folders of a path, which are nobody's business."""
    return spec if is_named(spec) else spec.rpartition("/")[2]


def _deviation(values: list[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None
