"""The hashes that stored models depend on. Standard library only, and never changed.

Both hashes use nothing but `*`, `^`, `+`, `>>` and `%` on non-negative integers, so one body
serves Python ints, NumPy int64/uint64 arrays and torch int64 tensors, with the same result on
every platform.
"""

from dataclasses import dataclass
from typing import Any

from tokgolf.errors import ConfigError

BIGRAM_MULTIPLIERS = (36313, 27191)  # openai/parameter-golf PR #162
_MAX_BUCKETS, _MAX_MULTIPLIER, _MAX_SEED = 1 << 31, 1 << 22, 1 << 62


@dataclass(frozen=True, kw_only=True)
class BigramBuckets:
    """A function from pairs of token ids to `count` buckets (openai/parameter-golf PR #162).

    `bucket(previous, current)` is in [0, count - 2]; bucket `count - 1` is left free for "there
    is no previous token". Seed 0 is the published function; another seed is another function
    of the same quality. Raises `ConfigError` for a count, multiplier or seed out of range.
    """

    count: int
    multipliers: tuple[int, int] = BIGRAM_MULTIPLIERS
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("bucket count", self.count, 2, _MAX_BUCKETS),
            ("bigram multiplier", min(self.multipliers), 1, _MAX_MULTIPLIER),
            ("bigram multiplier", max(self.multipliers), 1, _MAX_MULTIPLIER),
            ("bigram seed", self.seed, 0, _MAX_SEED),
        ):
            if not low <= value <= high:
                raise ConfigError(f"{name} is {value}; it must be from {low} to {high}")

    def bucket(self, previous: Any, current: Any) -> Any:
        """The bucket of (previous, current): ints, or int64 arrays or tensors of one shape.

        Ids must be below 2**40, so that nothing overflows (in 32 bits 36313 * id would, from
        id 59139 on).

            count=4096, previous=5, current=7 -> 1051
        """
        first, second = self.multipliers
        return ((first * current) ^ (second * previous) ^ self.seed) % (self.count - 1)


def splitmix64(seed: int, index: int) -> int:
    """The `index`-th 64-bit output of the SplitMix64 generator started at `seed`.

    A counter-based generator: what a seed regenerates costs no stored bytes, so it must give
    the same value in every language and library version. Source: Steele, Lea & Flood 2014.

        seed=0, index=0 -> 0xE220A8397B1DCDAF
    """
    mask = (1 << 64) - 1
    z = (seed + (index + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)
