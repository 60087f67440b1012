"""The N-th call that writes fails, for N = 1, 2, ... until none does: the old file always stays.

What fails is a call of the operating system, as the writers make it: opening, writing, syncing,
renaming, making a folder, removing a file. Before the error half of the data may have been written.
"""

import builtins
import errno
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reliability_readers import LINES, TEXT, float_model, save_run, tokenizer_of

from tokgolf import cli
from tokgolf.artifact.checkpoint import load_run, write_checkpoint
from tokgolf.artifact.export import export_run
from tokgolf.artifact.load import load_artifact
from tokgolf.corpora import (
    Document,
    ShardWriter,
    document_digests,
    open_corpus,
    read_digests,
    read_shard,
    write_digests,
    write_jsonl,
)
from tokgolf.errors import TokgolfError
from tokgolf.files import write_bytes
from tokgolf.quantize.rows import QuantConfig
from tokgolf.tokenizers import load_tokenizer, save_tokenizer

CONFIG = QuantConfig(method="nearest")
CAP = 10**6


class _Disk:
    """Counts the calls that write, and makes one of them fail."""

    def __init__(self, patch: pytest.MonkeyPatch, fails_at: int, error: int) -> None:
        self.calls, self.fails_at, self.error = 0, fails_at, error
        for name in ("fsync", "replace", "mkdir", "unlink"):
            patch.setattr(os, name, self.failing(getattr(os, name)))
        self.open = builtins.open
        patch.setattr("tokgolf.files.open", self.opened, raising=False)

    def call(self) -> None:
        self.calls += 1
        if self.calls == self.fails_at:
            raise OSError(self.error, os.strerror(self.error))

    def failing(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def function(*arguments: Any, **options: Any) -> Any:
            self.call()
            return real(*arguments, **options)

        return function

    def opened(self, path: Path, mode: str) -> io.BufferedWriter:
        self.call()
        return io.BufferedWriter(_ShortFile(self, path, mode), buffer_size=512)


class _ShortFile(io.FileIO):
    """Writes at most 300 bytes a call, as a network disk may; half of them before it fails."""

    def __init__(self, disk: _Disk, path: Path, mode: str) -> None:
        super().__init__(path, mode)
        self.disk = disk

    def write(self, data: Any, /) -> int:
        part = bytes(data)[:300]
        if self.disk.calls + 1 == self.disk.fails_at:
            super().write(part[: len(part) // 2])
        self.disk.call()
        return super().write(part)


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def export(folder: Path) -> None:
    export_run(folder / "run", folder / "model.golf", cap=CAP, config=CONFIG)


def is_exported(folder: Path) -> bool:
    if not (folder / "model.golf").exists():
        return False
    load_artifact(folder / "model.golf")
    return True


def checkpoint(folder: Path) -> None:
    save_run(folder / "run", float_model("tied", seed=9))


def is_run(folder: Path) -> bool:
    load_run(folder / "run")
    return True


def later_checkpoint(folder: Path) -> None:
    source = load_run(folder / "run")
    tensors = {f"model.{n}": t + 1 for n, t in source.model.state_dict().items()}
    write_checkpoint(folder / "run", tensors, {**source.state, "step": 4})


def tokenizer(folder: Path) -> None:
    save_tokenizer(tokenizer_of("unigram"), folder / "x.tok")


def is_tokenizer(folder: Path) -> bool:
    if not (folder / "x.tok").exists():
        return False
    load_tokenizer(folder / "x.tok")
    return True


def score(folder: Path) -> None:
    from tokgolf.eval.score import save_score
    from tokgolf.eval.score import score as score_of

    (folder / "v.txt").write_bytes(TEXT[:50])
    save_score(score_of(load_run(folder / "run"), open_corpus(str(folder / "v.txt"))), folder / "s")


def is_score(folder: Path) -> bool:
    if not (folder / "s").exists():
        return False
    assert json.loads((folder / "s").read_bytes())["bytes"] == 50
    return True


def shards(folder: Path) -> None:
    write_digests(folder / "d.npy", document_digests([Document("a", b"a")]))
    with ShardWriter(folder / "tokens", "train", fingerprint="f", corpus_sha256="c") as writer:
        writer.add([1, 2, 3], 3)


def is_sharded(folder: Path) -> bool:
    if (folder / "d.npy").exists():
        assert len(read_digests(folder / "d.npy")) == 1
    if not (folder / "tokens" / "train_000000.bin").exists():
        return False
    assert read_shard(folder / "tokens/train_000000.bin", fingerprint="f").tolist() == [1, 2, 3]
    return True


def documents(folder: Path) -> None:
    write_jsonl(folder / "c.jsonl.zst", [Document(str(n), line) for n, line in enumerate(LINES)])


def is_corpus(folder: Path) -> bool:
    path = folder / "c.jsonl.zst"
    return path.exists() and open_corpus(str(path)).summary().documents == len(LINES)


JOBS = {
    "export": (export, is_exported),
    "the first checkpoint again": (checkpoint, is_run),
    "a later checkpoint": (later_checkpoint, is_run),
    "a tokenizer": (tokenizer, is_tokenizer),
    "a score": (score, is_score),
    "shards and digests": (shards, is_sharded),
    "documents": (documents, is_corpus),
}


@pytest.mark.parametrize("job", JOBS)
def test_whichever_call_fails_each_file_is_the_old_one_or_the_new_one(
    job: str, tmp_path: Path
) -> None:
    work, is_sound = JOBS[job]
    for fails_at in range(1, 500):
        folder = tmp_path / str(fails_at)
        folder.mkdir()
        save_run(folder / "run", float_model("tied"))
        before = content(folder)
        with pytest.MonkeyPatch.context() as patch:
            error = errno.EIO if fails_at % 2 else errno.ENOSPC
            disk = _Disk(patch, fails_at, error)
            try:
                work(folder)
                failed = False
            except OSError as raised:
                assert raised.errno == error
                failed = True
        done = disk.calls < fails_at
        after = content(folder)
        assert not [name for name in after if name.endswith("tmp")] or not done
        is_sound(folder)  # whatever stands under a final name is whole
        load_run(folder / "run")
        if failed and job in ("export", "a tokenizer", "a score", "documents"):
            kept = {n: d for n, d in after.items() if n in before and not n.endswith("exports.txt")}
            assert kept == before  # and nothing else has changed
        try:
            work(folder)  # once there is room again
        except TokgolfError:
            assert job == "shards and digests" and is_sound(folder)  # it refuses to write twice
        assert is_sound(folder)
        assert not [name for name in content(folder) if name.endswith("tmp")]
        if done:
            assert not failed
            break
    else:
        pytest.fail("it never succeeded")
    assert fails_at > 4, "too few calls were made to fail"


def test_a_file_of_a_process_that_was_killed_goes_with_the_next_write(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    dead = tmp_path / f".other.{child}.tokgolf-tmp"
    own = tmp_path / f".other.{os.getpid()}.tokgolf-tmp"  # the number that a dead one had
    alive = tmp_path / f".x.{os.getppid()}.tokgolf-tmp"
    others = [tmp_path / name for name in (".x.tmp", "y.1.tokgolf-tmp", ".z.1a.tokgolf-tmp")]
    for path in (dead, own, alive, *others):
        path.touch()
    write_bytes(tmp_path / "x", b"x")
    assert sorted(tmp_path.iterdir()) == sorted([alive, *others, tmp_path / "x"])


def test_two_files_open_at_once_do_not_take_each_other_for_orphans(tmp_path: Path) -> None:
    from tokgolf.files import atomic_open

    with atomic_open(tmp_path / "a") as one:
        one.write(b"1")
        write_bytes(tmp_path / "b", b"2")
    assert content(tmp_path) == {"a": b"1", "b": b"2"}


def test_a_full_disk_is_one_line_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_run(tmp_path / "run", float_model("tied"))
    _Disk(monkeypatch, 3, errno.ENOSPC)
    code = cli.run(["export", str(tmp_path / "run"), "--method", "nearest"])
    out, err = capsys.readouterr()
    *progress, error = err.splitlines()
    assert (code, out) == (1, "") and all(line.startswith("pass ") for line in progress)
    assert error.startswith("error: the disk is full (No space left on device); free some space")
    assert is_run(tmp_path) and not (tmp_path / "run" / "model.golf").exists()
