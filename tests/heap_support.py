"""How many new pages a step of much memory takes."""

import ctypes
import resource
import sys

import torch

BYTES = 24 << 20  # below the largest block that glibc takes from its heap
TENSORS = 8
PAGES = TENSORS * BYTES // resource.getpagesize()
GLIBC = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt")


def new_pages() -> int:
    """Of a step that makes `PAGES` pages of tensors and frees them, after a few like it."""
    for _ in range(6):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        tensors = [torch.ones(BYTES // 4) for _ in range(TENSORS)]
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
