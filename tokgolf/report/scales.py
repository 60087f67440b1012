"""Scales of a chart: values to places, round ticks, numbers in few letters. Pure functions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Values from `low` to `high` lie from `start` to `end`; `log` needs values above 0."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value.  Scale(low=0, high=10, start=0, end=100)(5) -> 50"""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        """At most about so many round values within the scale."""
        if not self.log:
            return linear_ticks(self.low, self.high, most)
        choices = [_log_ticks(self.low, self.high, f) for f in ((1, 2, 5), (1, 3), (1,))]
        if len(choices[0]) < 3:  # too little of a decade for these
            return linear_ticks(self.low, self.high, most)
        found = next((ticks for ticks in choices if 3 <= len(ticks) <= most), choices[-1])
        while len(found) > most:
            found = found[::2]
        return found


def scale(
    values: Sequence[float], start: float, end: float, *, log: bool = False, margin: float = 0.05
) -> Scale:
    """A scale that holds the values, with some room at both ends."""
    low, high = min(values), max(values)
    if log:
        room = (high / low) ** margin if high > low else 1.2
        return Scale(low=low / room, high=high * room, start=start, end=end, log=True)
    room = margin * (high - low) or 0.05 * abs(high) or 1.0
    return Scale(low=low - room, high=high + room, start=start, end=end)


def linear_ticks(low: float, high: float, most: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten.  0.9, 2.1, 5 -> [1, 1.5, 2]"""
    raw = (high - low) / max(1, most)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _log_ticks(low: float, high: float, factors: Sequence[int]) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = (factor * 10.0**power for power in powers for factor in factors)
    return [value for value in found if low <= value <= high]


def short(value: float, digits: int = 4) -> str:
    """A number in few letters.  250000 -> "250k", 1.5e6 -> "1.5M", 1.25 -> "1.25" """
    for size, prefix in PREFIXES:
        if abs(value) >= size:
            return f"{value / size:.{digits}g}{prefix}"
    return f"{value:.{digits}g}"


def labels(values: Sequence[float]) -> list[tuple[float, str]]:
    """Each value with as many digits as tell all apart.  119780, 119820 -> "119.78k", "119.82k" """
    for digits in range(4, 12):
        found = [short(value, digits) for value in values]
        if len(set(found)) == len(set(values)):
            break
    return list(zip(values, found, strict=True))
