"""Token shards: golden bytes, round trips, and one refusal for each rule of the format."""

import struct
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tokgolf.corpora import ShardInfo, ShardWriter, read_shard, read_sidecar, shard_files
from tokgolf.corpora import write_shard as write_any_shard
from tokgolf.errors import CorpusError
from tokgolf.sealed import read_sealed, write_sealed

Array = npt.NDArray[Any]
id_arrays = hnp.arrays(np.uint16, st.integers(0, 50))


def write_shard(path: Path, tokens: npt.ArrayLike) -> ShardInfo:
    return write_any_shard(
        path, tokens, fingerprint="f" * 64, corpus_sha256="c" * 64, byte_count=7, documents=2
    )


@given(tokens=id_arrays)
def test_shard_gives_back_its_tokens_read_only(
    tmp_path_factory: pytest.TempPathFactory, tokens: Array
) -> None:
    path = tmp_path_factory.mktemp("shard") / "x_000000.bin"
    info = write_shard(path, tokens)
    read = read_shard(path, fingerprint="f" * 64)
    assert np.array_equal(read, tokens) and read.dtype == np.uint16
    assert not read.flags.writeable
    assert info == read_sidecar(path)
    assert path.stat().st_size == 1024 + 2 * len(tokens)


def test_shard_has_golden_bytes(tmp_path: Path) -> None:
    write_shard(tmp_path / "x.bin", [1, 256, 65535])
    head = struct.pack("<3i", 20240520, 1, 3)
    body = b"\x01\x00\x00\x01\xff\xff"
    assert (tmp_path / "x.bin").read_bytes() == head.ljust(1024, b"\0") + body
    assert read_sealed(tmp_path / "x.json") == {
        "tokenizer": "f" * 64, "corpus": "c" * 64, "bytes": 7, "tokens": 3, "documents": 2,
        "sha256": sha256((tmp_path / "x.bin").read_bytes()).hexdigest(),
    }  # fmt: skip


def test_official_shard_needs_no_sidecar(tmp_path: Path) -> None:
    head = struct.pack("<4i", 20240520, 1, 2, 999)  # forks keep a byte count in the fourth place
    (tmp_path / "x.bin").write_bytes(head.ljust(1024, b"\0") + b"\x05\x00\x06\x00")
    assert read_shard(tmp_path / "x.bin", fingerprint="anything").tolist() == [5, 6]
    assert read_sidecar(tmp_path / "x.bin") is None


def test_shard_cut_or_extended_at_any_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    write_shard(path, range(10))
    whole = path.read_bytes()
    for length in [*range(0, 13), 500, *range(1018, len(whole)), len(whole) + 1, len(whole) + 2]:
        path.write_bytes(whole[:length].ljust(length, b"\0"))
        with pytest.raises(CorpusError, match=f"has {length} bytes.* (1024|1044)"):
            read_shard(path)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, 20240521, "starts with 20240521, not 20240520"),
        (1, 2, "version 2; only 1"),
        (2, 3, "has 1028 bytes, but its header says 3 tokens, which is 1030"),
        (2, -1, "header says -1 tokens"),
    ],
)
def test_shard_with_a_foreign_header_is_refused(
    tmp_path: Path, place: int, value: int, message: str
) -> None:
    path = tmp_path / "x.bin"
    write_shard(path, [1, 2])
    data = bytearray(path.read_bytes())
    data[4 * place : 4 * place + 4] = struct.pack("<i", value)
    path.write_bytes(data)
    with pytest.raises(CorpusError, match=message):
        read_shard(path)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([1, 65536], "ids run from 1 to 65536; a shard holds 0 to 65535"),
        ([-1, 3], "ids run from -1 to 3"),
        ([1.0], "1-d array of float64"),
        ([[1]], "2-d array of int64"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(
    tmp_path: Path, tokens: list[Any], message: str
) -> None:
    with pytest.raises(CorpusError, match=message):
        write_shard(tmp_path / "x.bin", tokens)
    assert list(tmp_path.iterdir()) == []


def test_shard_must_be_called_bin(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="does not end in .bin"):
        write_shard(tmp_path / "x.json", [1])


def change(**values: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda old: {**old, **values}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (change(tokenizer="a" * 64), "by tokenizer aaaaaaaaaaaa, not ffffffffffff"),
        (change(tokens=3), "has 2 tokens, its sidecar says 3"),
        (change(tokens=-2), "cannot have 7 bytes, -2 tokens and 2 documents"),
        (change(bytes=True), r"must have exactly tokenizer \(str\), corpus \(str\), bytes \(int\)"),
        (change(more=1), "must have exactly"),
        (lambda old: {"tokens": 2}, "must have exactly"),
        (change(sha256="0" * 64), "says 0000000000000000: the tokens were damaged or edited"),
    ],
)
def test_wrong_sidecar_is_refused_when_it_matters(
    tmp_path: Path, edit: Callable[[Any], Any], message: str
) -> None:
    path, sidecar = tmp_path / "x.bin", tmp_path / "x.json"
    write_shard(path, [1, 2])
    write_sealed(sidecar, edit(read_sealed(sidecar)))
    with pytest.raises(CorpusError, match=message):
        read_shard(path, fingerprint="f" * 64)
    assert read_shard(path).tolist() == [1, 2]


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000, b"[]", b"{}"])
def test_damaged_sidecar_is_refused(tmp_path: Path, data: bytes) -> None:
    write_shard(tmp_path / "x.bin", [1])
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(CorpusError, match="x.json is no sound sidecar"):
        read_sidecar(tmp_path / "x.bin")


def writer(folder: Path, shard_tokens: int) -> ShardWriter:
    return ShardWriter(
        folder, "web_val", fingerprint="f", corpus_sha256="c", shard_tokens=shard_tokens
    )


@settings(deadline=None)  # it waits for the disk
@given(documents=st.lists(id_arrays, max_size=8), shard_tokens=st.integers(1, 60))
def test_writer_divides_documents_among_shards_and_no_document(
    tmp_path_factory: pytest.TempPathFactory, documents: list[Array], shard_tokens: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    with writer(folder, shard_tokens) as out:
        for document in documents:
            out.add(document, 3 * len(document))
    assert out.paths == shard_files(folder, "web_val")
    left = list(documents)
    for path in out.paths:
        info = read_sidecar(path)
        assert info is not None and info.documents >= 1
        expected = np.concatenate(left[: info.documents])
        assert np.array_equal(read_shard(path), expected)
        assert info.tokens == len(expected) and info.bytes == 3 * len(expected)
        assert info.tokens <= shard_tokens or len(left[0]) > shard_tokens
        del left[: info.documents]
    assert left == []


def test_writer_leaves_out_the_unfinished_shard_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), writer(tmp_path, 2) as out:
        out.add([1, 2], 1)
        out.add([3], 1)
        raise KeyError
    assert [path.name for path in shard_files(tmp_path, "web_val")] == ["web_val_000000.bin"]


def test_writer_refuses_a_folder_with_shards_and_a_size_of_nothing(tmp_path: Path) -> None:
    with writer(tmp_path, 5) as out:
        out.add([1], 1)
    with pytest.raises(CorpusError, match="already holds 1 shards web_val_"):
        writer(tmp_path, 5)
    with pytest.raises(CorpusError, match="shard_tokens is 0"):
        writer(tmp_path / "new", 0)


def test_byte_count_files_are_not_taken_for_shards(tmp_path: Path) -> None:
    for name in ("fineweb_val_000001", "fineweb_val_000000", "fineweb_val_bytes_000000"):
        (tmp_path / f"{name}.bin").touch()
    (tmp_path / "fineweb_val_000000.json").touch()
    names = [path.name for path in shard_files(tmp_path, "fineweb_val")]
    assert names == ["fineweb_val_000000.bin", "fineweb_val_000001.bin"]
