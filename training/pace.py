"""How many steps a time has room for, where finding errors anew (`qat`) takes its part of it.

Unlike compiling it comes again and again until the end: left out, the end would look far.
"""

import math
from dataclasses import dataclass


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
