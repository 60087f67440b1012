"""A cell's training in several processes, by torchrun; none of them outlives the cell.

torchrun gives each rank a session of its own, so what happens to the cell or to torchrun itself
reaches no rank by itself. Hence two lock files in the run directory, which the operating system
drops with their holders, whatever ended these:

* the leash, `.leash-<token>`: the cell's process holds it, and every rank waits for it. Who gets it
  has lost its cell, and ends as by a SIGTERM, with a checkpoint.
* `.ranks`: every rank holds a share of it, and before a cell starts any ranks it waits until nobody
  does. A rank takes its share before it looks at the leash, so one that comes too late finds its
  leash gone, and one that does not is waited for.

    python -m torch.distributed.run -m tokgolf.sweep.ranks LEASH train --tokenizer ...
"""

import contextlib
import fcntl
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tokgolf.errors import Interrupted, TrainingError
from tokgolf.locks import locked

RANKS_FILE, LEASH_PREFIX, LOG_FILE = ".ranks", ".leash-", "ranks.log"
LOOK_SECONDS = 0.5
SAVE_SECONDS = 25.0
"""How long ranks may take to save what they have; training ends itself after 20."""
END_SECONDS = 60.0
"""How long ranks may take to be gone; torchrun kills them after 30."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How torchrun ended: its exit status, what it wrote to stdout and to stderr."""

    status: int
    out: str
    err: str


def run_ranks(arguments: list[str], processes: int, run: Path, look: Callable[[], None]) -> Ended:
    """Run a tokgolf command in so many ranks, until all have ended.

    stderr is kept in `run/ranks.log`; `look` is called about twice a second. On Ctrl-C the ranks
    save what they have, and `Interrupted` is raised. Raises `TrainingError` if ranks do not end,
    those of an attempt before among them.
    """
    _wait_for_ranks(run)
    for lost in run.glob(f"{LEASH_PREFIX}*"):  # its holder was killed
        lost.unlink()
    leash = run / f"{LEASH_PREFIX}{secrets.token_hex(4)}"
    try:
        with locked(leash, wait=True):
            return _torchrun(arguments, processes, leash, look)
    finally:
        leash.unlink(missing_ok=True)
        _wait_for_ranks(run)


def _torchrun(arguments: list[str], processes: int, leash: Path, look: Callable[[], None]) -> Ended:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(processes), "-m", "tokgolf.sweep.ranks", str(leash)),
        *arguments,
    ]
    log = leash.with_name(LOG_FILE)
    # Files, as a rank that outlives torchrun would keep a pipe open.
    with tempfile.TemporaryFile() as out, open(log, "wb") as err:
        torchrun = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )
        try:
            while torchrun.poll() is None:
                look()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    torchrun.wait(LOOK_SECONDS)
        except KeyboardInterrupt:
            _end(torchrun)
            raise Interrupted("interrupted; the ranks have saved what they had") from None
        finally:
            torchrun.kill()
            torchrun.wait()
        out.seek(0)
        written = out.read().decode(errors="replace")
    return Ended(
        status=torchrun.returncode, out=written, err=log.read_text("utf-8", errors="replace")
    )


def _end(torchrun: "subprocess.Popen[bytes]") -> None:
    """Have torchrun end its ranks, which it kills if they take too long."""
    torchrun.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        torchrun.wait(END_SECONDS)


def _wait_for_ranks(run: Path) -> None:
    """Return when no rank of this run lives."""
    until = time.monotonic() + END_SECONDS
    while True:
        with locked(run / RANKS_FILE, wait=False) as free:
            if free:
                return
        if time.monotonic() > until:
            raise TrainingError(
                f"ranks of an attempt before at {run} have not ended in {END_SECONDS:.0f} s; end "
                f"the processes that hold {run / RANKS_FILE}, and use --retry-failed"
            )
        time.sleep(0.1)


# --- in a rank


def main() -> int:
    """Be a rank: run the tokgolf command after the leash, as long as its cell lives."""
    from tokgolf.cli import run

    leash = Path(sys.argv[1])
    share = os.open(leash.with_name(RANKS_FILE), os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(share, fcntl.LOCK_SH)
    try:
        held = os.open(leash, os.O_RDONLY)
    except FileNotFoundError:
        return 1
    threading.Thread(target=_follow, args=(held,), daemon=True).start()
    return run(sys.argv[2:])


def _follow(leash: int) -> None:
    """End this process, with a checkpoint if there is something to save, when the cell has."""
    fcntl.flock(leash, fcntl.LOCK_SH)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SAVE_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
