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


def held() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_step_takes_no_new_pages_and_at_the_end_they_are_given_back() -> None:
    with freed_memory_kept(torch.device("cpu")):
        assert new_pages() < PAGES / 20
        inside = held()
    assert inside - held() > (TENSORS - 1) * BYTES


def test_it_is_given_back_after_an_error_too() -> None:
    with pytest.raises(ZeroDivisionError), freed_memory_kept(torch.device("cpu")):
        new_pages()
        inside = held()
        print(1 // 0)
    assert inside - held() > (TENSORS - 1) * BYTES


@pytest.mark.parametrize(("device", "kept"), [("cpu", True), ("cuda", False)])
def test_only_a_process_that_works_on_a_cpu_keeps_it(device: str, kept: bool) -> None:
    program = f"""
import torch
from heap_support import new_pages
from tokgolf.heap import freed_memory_kept
with freed_memory_kept(torch.device("{device}")):
    print(new_pages())
"""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < PAGES / 20 if kept else int(run.stdout) > PAGES / 2
