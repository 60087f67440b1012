"""Memory that the process keeps while it works: no new pages, and at the end all given back."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from heap_support import BYTES, GLIBC, PAGES, TENSORS, new_pages

from tokgolf.heap import freed_memory_kept

pytestmark = pytest.mark.skipif(not GLIBC, reason="another C library")

PROGRAM = """
import ctypes
import torch
from heap_support import new_pages
from tokgolf.heap import MMAP_THRESHOLD, freed_memory_kept

ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 128 << 10)  # as glibc begins
before = new_pages()
with freed_memory_kept(torch.device("cpu")):
    print(before, new_pages())
"""


def held() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_step_takes_no_new_pages() -> None:
    here = Path(__file__).parent  # in a process of its own, whose heap has no room left over
    path = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    without, within = map(int, run.stdout.split())
    assert without >= PAGES and within < PAGES / 20


@pytest.mark.parametrize("error", [None, ZeroDivisionError])
def test_at_the_end_they_are_given_back(error: type[Exception] | None) -> None:
    inside = 0
    try:
        with freed_memory_kept(torch.device("cpu")):
            new_pages()
            inside = held()
            if error is not None:
                raise error
    except ZeroDivisionError:
        pass
    assert inside - held() > (TENSORS - 1) * BYTES


def test_where_tensors_are_on_a_gpu_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    set_now: list[tuple[int, ...]] = []

    class Library:
        def mallopt(self, *values: int) -> None:
            set_now.append(values)

        def malloc_trim(self, pad: int) -> None:
            pass

    monkeypatch.setattr("tokgolf.heap.ctypes.CDLL", lambda name: Library())
    with freed_memory_kept(torch.device("cuda")):
        pass
    assert not set_now
    with freed_memory_kept(torch.device("cpu")):
        assert len(set_now) == 2


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokgolf.heap.ctypes.CDLL", lambda name: object())
    with freed_memory_kept(torch.device("cpu")):
        pass
