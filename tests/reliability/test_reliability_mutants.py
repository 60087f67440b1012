"""No damaged or forged file is taken for a sound one, crashes, hangs or fills the memory."""

import io
import pickle
import resource
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from fuzz_target import run_mutants
from reliability_mutants import golf_signed
from reliability_readers import (
    Reader,
    artifacts,
    make_readers,
    mutant,
    outcome,
    read_artifact,
    tokenizer_of,
)

from tokgolf.artifact.container import pack, unpack
from tokgolf.artifact.load import decode_artifact
from tokgolf.errors import TokgolfError

IN_CI, IN_SLOW = 20_000, 1_000_000
MOST_MEMORY = 1 << 30


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    return make_readers(tmp_path_factory.mktemp("readers"))


def memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def check(readers: dict[str, Reader], total: int, seed: int) -> Counter[tuple[str, str]]:
    before = memory()
    counts, failures = run_mutants(readers, total, seed)
    assert not failures, failures[0]
    assert sum(counts.values()) >= total
    assert memory() - before < MOST_MEMORY
    return counts


def test_sound_files_are_read(readers: dict[str, Reader]) -> None:
    for reader in readers.values():
        for sample in reader.samples:
            assert outcome(reader, sample, signed=False).what == "read"


def test_20_000_mutants_are_refused_or_sound(readers: dict[str, Reader]) -> None:
    counts = check(readers, IN_CI, seed=0)
    for name in readers:  # else the reader refuses everything, or nothing is tried on it
        assert counts[name, "refused"] and (counts[name, "read"] or name == "txt"), name


@pytest.mark.slow
def test_a_million_mutants_are_refused_or_sound(readers: dict[str, Reader]) -> None:
    check(readers, IN_SLOW, seed=1)


def test_mutants_are_the_same_every_time(readers: dict[str, Reader]) -> None:
    for name, reader in readers.items():
        assert mutant(reader, name, 3, 5) == mutant(reader, name, 3, 5)
        assert mutant(reader, name, 3, 5) != mutant(reader, name, 3, 6)


def test_every_truncation_of_a_small_file_is_refused(readers: dict[str, Reader]) -> None:
    for name, reader in readers.items():
        for sample in reader.samples if reader.sealed else ():
            # a checkpoint's tensors take thousands of bytes, of which some lengths will do
            for length in range(0, len(sample), 1 + len(sample) // 3000):
                assert outcome(reader, sample[:length], signed=False).what == "refused", name


def test_every_truncation_under_a_right_hash_is_refused() -> None:
    data = artifacts()[0]
    for length in range(32, len(data)):
        with pytest.raises(TokgolfError):
            decode_artifact(golf_signed(data[:length]))


def test_every_bit_of_every_artifact_counts() -> None:
    for data in artifacts()[:3]:
        for place in range(len(data)):
            damaged = data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :]
            with pytest.raises(TokgolfError):
                decode_artifact(damaged)


def test_tokenizers_that_were_swapped_are_refused_or_make_another_sound_artifact() -> None:
    for data in artifacts():
        header, sections = unpack(data)
        for kind in ("byte", "bpe", "unigram", "sentencepiece", "greedy", "shortest", "foreign"):
            asset = tokenizer_of(kind).asset()
            forged = pack(header, {**sections, "tokenizer": asset})
            if asset == sections["tokenizer"]:
                continue
            try:
                read_artifact(forged)
            except TokgolfError:
                continue
            assert decode_artifact(forged).sha256 != decode_artifact(data).sha256


def test_files_of_other_sorts_are_refused_by_every_sealed_reader(
    readers: dict[str, Reader],
) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("../../evil", b"x")
    files = [archive.getvalue(), pickle.dumps(Path("/")), b"", b"\0" * 10_000, b"{}"]
    files += [reader.samples[0] for reader in readers.values()]
    for reader in readers.values():
        for data in files:
            if reader.sealed and data not in reader.samples:
                assert outcome(reader, data, signed=False).what == "refused"
