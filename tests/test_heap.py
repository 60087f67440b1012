"""Memory that the process keeps while it works: no new pages, and at the end all given back."""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from heap_support import BYTES, GLIBC, PAGES, TENSORS, new_pages

from tokgolf.heap import LARGEST, MMAP_THRESHOLD, freed_memory_kept

pytestmark = pytest.mark.skipif(not GLIBC, reason="another C library")


def held() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def given_back() -> Iterator[None]:
    """glibc as it begins: it takes pages from the system for each larger block."""
    libc = ctypes.CDLL(None)
    libc.mallopt(MMAP_THRESHOLD, 128 << 10)
    yield
    libc.mallopt(MMAP_THRESHOLD, LARGEST)


@pytest.mark.usefixtures("given_back")
def test_a_step_takes_no_new_pages_and_at_the_end_they_are_given_back() -> None:
    assert new_pages() >= PAGES
    with freed_memory_kept(torch.device("cpu")):
        assert new_pages() < PAGES / 20
        inside = held()
    assert inside - held() > (TENSORS - 1) * BYTES


def test_they_are_given_back_after_an_error_too() -> None:
    with pytest.raises(ZeroDivisionError), freed_memory_kept(torch.device("cpu")):
        new_pages()
        inside = held()
        print(1 // 0)
    assert inside - held() > (TENSORS - 1) * BYTES


@pytest.mark.usefixtures("given_back")
def test_on_a_gpu_nothing_is_changed() -> None:
    with freed_memory_kept(torch.device("cuda")):
        assert new_pages() >= PAGES
