"""How a score was taken: everything beside the model and the text that its number depends on.

Stored whole with every score. Two scores can be compared only if their protocols are equal.
"""

import time
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from tokgolf.artifact.load import MAX_ROTARY
from tokgolf.config import MAX_LOOPS, TrunkConfig, check_positive
from tokgolf.errors import ConfigError, ScoreError
from tokgolf.eval.adapt import AdaptConfig
from tokgolf.eval.scorer import settled_stride

Mode = Literal["raw", "official"]
Context = Literal["document", "stream"]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Options of a score.

    `mode` "raw" scores documents as they are, losslessly; "official" is the challenge's pipeline,
    whose numbers are of other text and stand in a table of their own. `context` is what a token
    may be predicted from: its own "document", or the "stream" of all documents before. Documents
    alone are the default: their bits are then independent of each other and of their order, which
    a paired test and a compressor that restores any one of them rest on. Official scores always
    are of a stream.

    `window` is the most tokens that a prediction sees; None: as many as in training. A longer one
    needs no weights, as rotary tables can be computed to any length. `stride` is how far windows
    are apart; 0: disjoint. `loops` is how often a trunk's shared blocks are applied; None: as its
    config says. `precision` "bf16" is an estimate, and never the score.
    `time_budget` is in seconds, for all that scoring takes once the model is read, checks included;
    a score that takes longer is refused. `adapt` is how the model learns from what is scored, if
    it does: in fp32, from documents as they are.
    """

    mode: Mode = "raw"
    context: Context = "document"
    window: int | None = None
    stride: int = 0
    loops: int | None = None
    precision: Precision = "fp32"
    time_budget: float | None = None
    adapt: AdaptConfig | None = None

    def __post_init__(self) -> None:
        if self.mode == "official" and self.context != "stream":
            raise ConfigError(
                "the official mode scores one stream of all documents; it has no context "
                f"{self.context!r}"
            )
        if self.adapt is not None and (self.context, self.precision) != ("document", "fp32"):
            raise ConfigError(
                f"adaptation is of documents, each with its own context, in fp32; this is of the "
                f"context {self.context!r} in {self.precision}"
            )
        if self.window is not None:
            check_positive(self, "window")
        if self.loops is not None and not 1 <= self.loops <= MAX_LOOPS:
            raise ConfigError(f"loops is {self.loops}; it must be from 1 to {MAX_LOOPS}")
        if self.time_budget is not None:
            check_positive(self, "time_budget")

    @property
    def estimate(self) -> bool:
        """Whether the number is only near the score."""
        return self.precision != "fp32"

    def of(self, trunk: TrunkConfig) -> "Protocol":
        """The protocol with the window, stride and loops that it has for a model.

        Raises `ScoreError` for a stride that is no part of the window, a window for which the
        rotary tables do not fit, or loops of a trunk that shares no blocks.
        """
        window = self.window or trunk.sequence_length
        stride = settled_stride(self.stride, window)
        if window * (width := trunk.d_model // trunk.heads) > MAX_ROTARY:
            raise ScoreError(
                f"a window of {window:,} tokens with heads {width:,} wide is over "
                f"{MAX_ROTARY:,} as their product; use at most {MAX_ROTARY // width:,}"
            )
        if self.loops is not None and not trunk.loop_blocks:
            raise ScoreError(f"loops is {self.loops}, and the model's trunk has 0 blocks to repeat")
        loops = (self.loops or trunk.loops_scored or trunk.loops) if trunk.loop_blocks else None
        return replace(self, window=window, stride=stride, loops=loops)

    def as_dict(self) -> dict[str, Any]:
        """Every option as a plain value, for JSON."""
        return asdict(self)


class Clock:
    """The time that scoring takes, and its end if there is a budget."""

    def __init__(self, began: float, budget: float | None, corpus: str) -> None:
        self.began, self.budget, self.corpus = began, budget, corpus

    def check(self) -> float:
        """Seconds up to now. Raises `ScoreError` if they are more than the budget."""
        seconds = time.perf_counter() - self.began
        if self.budget is not None and seconds > self.budget:
            raise ScoreError(
                f"the score of {self.corpus} is invalid: it was not done after {seconds:.1f} s, "
                f"its time budget is {self.budget:g} s; use a longer stride, less text or more time"
            )
        return seconds
