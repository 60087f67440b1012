"""Small files that claim, nest or unpack to a lot: one error, soon, and in bounded memory."""

import json
import subprocess
import sys
from pathlib import Path

from tokgolf import errors

MIB = 1 << 20
SLACK, MOST, LARGEST_FILE = 64 * MIB, 1 << 30, 10 * MIB
SECONDS = 3  # of CPU; a mask of 65,536 tokens alone takes over one
OURS = {name for name, kind in vars(errors).items() if isinstance(kind, type)}
SOUND = {  # large or odd, but what they say
    "a window of a million",
    "one megabyte in 512 rows",
    "an expression of nested repeats",
}


def test_every_bomb_is_refused_in_the_memory_that_its_format_declares() -> None:
    program = Path(__file__).with_name("reliability_bombs.py")
    done = subprocess.run([sys.executable, program], capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) >= 12
    failed = [
        (name, outcome, growth, cap, seconds)
        for name, outcome, growth, cap, seconds, size in rows
        if not (
            (outcome.partition(":")[0] in OURS or (outcome == "read" and name in SOUND))
            and growth <= cap + SLACK <= MOST
            and seconds < SECONDS
            and size <= LARGEST_FILE
        )
    ]
    assert not failed
