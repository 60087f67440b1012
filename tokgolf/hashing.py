"""The hashes that stored models depend on. Standard library only, and never changed.

Both functions use nothing but `*`, `^`, `+`, `>>` and `%` on non-negative integers, so one body
serves Python ints, NumPy int64/uint64 arrays and torch int64 tensors, with the same result on
every platform.
"""

from typing import Any

BIGRAM_MULTIPLIERS = (36313, 27191)  # openai/parameter-golf PR #162


def bigram_bucket(previous: Any, current: Any, buckets: int) -> Any:
    """Bucket of the token pair (previous, current), in [0, buckets - 2].

    Bucket `buckets - 1` is left free for "there is no previous token". Arguments are ints or
    int64 arrays/tensors of one shape; ids must be below 2**40, so that nothing overflows (in
    32 bits 36313 * id would, from id 59139 on). Source: openai/parameter-golf PR #162.

        previous=5, current=7, buckets=4096 -> 1051
    """
    current_multiplier, previous_multiplier = BIGRAM_MULTIPLIERS
    return ((current_multiplier * current) ^ (previous_multiplier * previous)) % (buckets - 1)


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
