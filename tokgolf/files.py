"""Writing files so that nobody ever sees half of one. Standard library only.

A file appears under its final name complete or not at all: it is written under a temporary
name in the same folder, flushed to disk, then renamed. Whatever goes wrong in between (full
disk, Ctrl-C, an exception in the writer), the temporary file is removed and an older file of
that name stays as it was. What a killed process left behind, the next writer there removes.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_TEMPORARY = re.compile(r"\..+\.(\d+)\.tokgolf-tmp")
_open_here: set[Path] = set()  # the temporary files of this process


@contextmanager
def atomic_open(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open `path` for binary writing; it exists only once the block has ended without error.

    Raises `OSError` as the operating system gives it (no such folder, disk full, ...).
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tokgolf-tmp")
    _remove_orphans(target.parent)  # first, since they may be what fills the disk
    _open_here.add(temporary)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    finally:
        _open_here.discard(temporary)
    _sync_folder(target.parent)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_open(path) as file:
        file.write(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def _remove_orphans(folder: Path) -> None:
    """Remove temporary files whose process is gone; failing at it must not stop the writer."""
    with suppress(OSError):
        for path in folder.iterdir():
            match = _TEMPORARY.fullmatch(path.name)
            if match and path not in _open_here and not _other_runs(int(match[1])):
                path.unlink()


def _other_runs(process: int) -> bool:
    """Whether a process other than this one has this number. In a container numbers recur."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; not every file system can open a folder, and none must."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
