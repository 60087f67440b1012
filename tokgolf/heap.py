"""Memory of a CPU's tensors that stays with the process while it works.

torch frees a tensor on a CPU to the C library, and glibc gives what is free at the end of its heap
back to the system. The next tensor there is then made of new pages, which the system has to find
and to fill with zeros: 11,000 to 28,000 of them in a training step at d 128, a fifth to a third of
its time, by what happens to lie at the heap's end (docs/results/training.md).
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""mallopt's numbers for them, in glibc's malloc.h."""
LARGEST = 32 << 20
"""The most that glibc takes from its heap by itself; above, a block has pages of its own. It comes
to this, and to twice as much for the other threshold, once a block of this size was freed."""


@contextmanager
def freed_memory_kept(device: torch.device) -> Iterator[None]:
    """On a CPU with glibc, keep what is freed until the end of this, and give it back then.

    It changes no bits. Blocks over 32 MiB come and go as before.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" and device.type == "cpu" else None
    if not hasattr(libc, "mallopt"):  # another C library
        yield
        return
    assert libc is not None
    libc.mallopt(MMAP_THRESHOLD, LARGEST)
    libc.mallopt(TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        libc.mallopt(TRIM_THRESHOLD, 2 * LARGEST)
        libc.malloc_trim(0)
