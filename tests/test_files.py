"""Atomic writing: the whole file or the old one, and never anything else in the folder."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokgolf.files import atomic_open, write_bytes, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@given(chunks=st.lists(st.binary(max_size=200), max_size=5))
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_file_holds_what_was_written(tmp_path: Path, chunks: list[bytes]) -> None:
    target = tmp_path / "a.bin"
    with atomic_open(target) as file:
        for chunk in chunks:
            file.write(chunk)
    assert target.read_bytes() == b"".join(chunks)
    assert names(tmp_path) == ["a.bin"]


def test_a_file_does_not_exist_before_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    with atomic_open(target) as file:
        file.write(b"half")
        file.flush()
        assert not target.exists()
        assert len(names(tmp_path)) == 1  # what is being written is in the same folder
    assert target.read_bytes() == b"half"


def test_an_old_file_is_read_until_the_new_one_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old and longer")
    with atomic_open(target) as file:
        file.write(b"new")
        file.flush()
        assert target.read_bytes() == b"old and longer"
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt, SystemExit])
def test_an_old_file_survives_whatever_the_writer_raises(
    tmp_path: Path, error: type[BaseException]
) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with pytest.raises(error, match="mine"), atomic_open(target) as file:
        file.write(b"new, but only half")
        raise error("mine")
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_nothing_is_left_when_a_first_writer_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), atomic_open(tmp_path / "a.bin") as file:
        file.write(b"half")
        raise ValueError("mine")
    assert names(tmp_path) == []


def test_a_missing_folder_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_open(tmp_path / "none" / "a.bin"):
        pytest.fail("the block must not be entered")
    assert names(tmp_path) == []


def test_a_target_that_is_a_folder_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError), atomic_open(tmp_path / "a") as file:
        file.write(b"data")
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == []


def test_files_of_one_folder_can_be_written_at_once(tmp_path: Path) -> None:
    with atomic_open(tmp_path / "a") as one, atomic_open(tmp_path / "b") as two:
        one.write(b"1")
        two.write(b"2")
    assert [(tmp_path / name).read_bytes() for name in ("a", "b")] == [b"1", b"2"]
    assert names(tmp_path) == ["a", "b"]


def test_bytes_and_text_are_written_as_they_are(tmp_path: Path) -> None:
    write_bytes(str(tmp_path / "a"), b"\x00\xff\r\n")
    write_text(tmp_path / "b", "é\r\n日\n")
    assert (tmp_path / "a").read_bytes() == b"\x00\xff\r\n"
    assert (tmp_path / "b").read_bytes() == b"\xc3\xa9\r\n\xe6\x97\xa5\n"
    assert names(tmp_path) == ["a", "b"]
