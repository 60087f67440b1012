"""Foreign tokenizer files are taken apart in a process of their own, under limits.

The libraries that look into such a file can do more than raise: one panics past `except
Exception`, a C++ parser can crash, an expression can take for ever. Here that ends a child, not
the caller, who gets one error. The child is given the file's bytes on stdin and answers with what
a function of ours makes of them, or the reason, on stdout; it writes no file.
"""

import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import tokgolf
from tokgolf.errors import TokenizerError, TokgolfError

CPU_SECONDS = 120
WALL_SECONDS = 240
MEMORY_BYTES = 4 << 30
_REFUSED = 3  # the child's exit code when stdout is a reason, not a result

_CHILD = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from tokgolf.tokenizers.isolated import child; child()"
)


def foreign_asset_isolated(data: bytes, pattern: str | None) -> bytes:
    """What `foreign.foreign_asset` makes of a file, in a child process.

    Raises `TokenizerError` with the same words, or for a child that crashed, ran out of memory
    or of time.
    """
    arguments = [] if pattern is None else [pattern]
    return call_isolated("tokgolf.tokenizers.foreign:checked_asset", data, *arguments)


def call_isolated(function: str, data: bytes, *arguments: str) -> bytes:
    """What a function of this package, "module:name", makes of a file's bytes, in a child process.

    It takes the bytes and the arguments and returns bytes. Raises `TokenizerError` with the words
    of the `TokgolfError` that it raises, or for a child that crashed, ran out of memory or of time.
    """
    root = str(Path(tokgolf.__file__).resolve().parent.parent)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, root, function, *arguments],
            input=data,
            capture_output=True,
            timeout=WALL_SECONDS,
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        raise TokenizerError(
            f"reading it takes over {WALL_SECONDS} seconds; it is damaged or hostile"
        ) from error
    if done.returncode == _REFUSED:
        raise TokenizerError(done.stdout.decode("utf-8", "replace"))
    if done.returncode != 0:
        raise TokenizerError(f"{_how_it_ended(done)}; it is damaged or hostile, or too large")
    return done.stdout


def _how_it_ended(done: "subprocess.CompletedProcess[bytes]") -> str:
    said = done.stderr.decode("utf-8", "replace").split("\n")
    last = next((line.strip() for line in reversed(said) if line.strip()), "no message")
    if done.returncode < 0:
        return f"reading it was ended by {signal.Signals(-done.returncode).name}"
    return f"reading it failed in a library ({last[:200]})"


def child() -> None:
    """What the child process does."""
    module, _, name = sys.argv[2].partition(":")
    function = getattr(import_module(module), name)
    limit()
    try:
        result = function(sys.stdin.buffer.read(), *sys.argv[3:])
    except TokgolfError as error:
        sys.stdout.buffer.write(str(error).encode("utf-8", "replace"))
        sys.stdout.buffer.flush()
        os._exit(_REFUSED)
    sys.stdout.buffer.write(result)


def limit() -> None:
    """Bound this process' memory, CPU time and files, where the system can."""
    if sys.platform == "win32":
        return
    import resource

    wanted = [
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ]
    for what, most in wanted:
        _, hard = resource.getrlimit(what)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(what, (most, most))
        except (ValueError, OSError):  # a system that has the name but not the limit
            continue
