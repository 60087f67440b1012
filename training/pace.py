"""A run's clock, and how many steps a time has room for.

Compiling is paid from the budget, but is no step: counted as one, it would make the end look near
and the learning rate fall at the start. Finding errors anew (`qat`) comes again and again until the
end: left out, the end would look far.
"""

import math
import operator
from dataclasses import dataclass
from typing import Any


def spent(step: int, remaining: float) -> float:
    """The part of the budget that is spent after `step` steps, when so many remain.

    A fraction is compared with this quotient: as a product, 0.28 of 25 steps is more than 7.
    7, 18.0 -> 0.28
    """
    return step / (step + remaining)


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds `per_step`, and `per_quantizing`: before the step after `until_next` more steps, and
    before every `every`-th from there."""

    per_step: float
    per_quantizing: float
    every: int
    until_next: int

    def steps_in(self, seconds: float) -> float:
        """Steps for which there is time; none after errors that no step would have time to use.

        1 s a step, 3 s before every fourth, the next time after 2: 2, 5, 6, 12 s -> 2, 2, 3, 6
        """
        rest = seconds - self.until_next * self.per_step
        if not self.per_quantizing or rest <= 0:
            return seconds / self.per_step
        times, rest = divmod(rest, self.per_quantizing + self.every * self.per_step)
        after = (rest - self.per_quantizing) / self.per_step
        return self.until_next + times * self.every + (after if after >= 1 else 0)

    def seconds_for(self, steps: float) -> float:
        """The time of so many steps.

        1 s a step, 3 s before every fourth, the next time after 2: 2, 3, 6 -> 2, 6, 9 s
        """
        times = max(math.ceil((steps - self.until_next) / self.every), 0)
        return steps * self.per_step + times * self.per_quantizing


class Clock:
    """Where the seconds of a run went, those of the runs that it was resumed from included."""

    def __init__(self) -> None:
        self.seconds = 0.0  # all
        self.compile_seconds = 0.0  # and of all else that is paid once
        self.quantize_seconds = 0.0  # of finding errors anew, and how many times that was
        self.quantizings = 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint says of it."""
        return dict(vars(self))

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned; older checkpoints know less."""
        self.seconds = float(state["seconds"])
        self.compile_seconds = float(state["compile_seconds"])
        self.quantize_seconds = float(state.get("quantize_seconds", 0.0))
        self.quantizings = operator.index(state.get("quantizings", 0))

    @property
    def step_seconds(self) -> float:
        """Those of steps: all but what is said apart."""
        return max(self.seconds - self.compile_seconds - self.quantize_seconds, 1e-9)

    def pace(self, steps: int, every: int, until_next: int) -> Pace:
        """The mean times of so many steps. For the time of finding errors, nothing is guessed
        before it is known: too high a guess would begin errors and the warmdown for good, too low a
        one is put right."""
        return Pace(
            per_step=self.step_seconds / steps,
            per_quantizing=self.quantize_seconds / max(self.quantizings, 1),
            every=every,
            until_next=until_next,
        )
