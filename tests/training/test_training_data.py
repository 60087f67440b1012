"""The token stream and its batches against plain slices, and when shards are written anew."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokgolf.corpora import Corpus, Document, ShardWriter, read_shard, shard_files
from tokgolf.errors import CorpusError, TrainingError
from tokgolf.tokenizers import Tokenizer, build_tokenizer
from tokgolf.training import data as data_module
from tokgolf.training.data import Batches, TokenStream, tokenize, tokenized

TEXTS = [b"first document", b"", b"\xff\x00 bytes", b"the last of four documents"]

shards = st.lists(st.lists(st.integers(0, 299), max_size=12), min_size=1, max_size=6)


def stream_of(parts: list[list[int]]) -> TokenStream:
    return TokenStream([np.array(part, dtype=np.uint16) for part in parts])


def counting(length: int) -> TokenStream:
    """A stream in which every token is its own position, in three shards."""
    tokens = np.arange(length, dtype=np.uint16)
    return TokenStream([tokens[: length // 3], tokens[length // 3 : -5], tokens[-5:]])


def corpus_of(texts: list[bytes], name: str = "tiny") -> Corpus:
    documents = [Document(str(i), text) for i, text in enumerate(texts)]
    return Corpus(name=name, split=None, source=lambda: iter(documents))


@pytest.fixture(scope="module")
def byte() -> Tokenizer:
    return build_tokenizer("byte", [], None)


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return build_tokenizer("bpe", [b"the theme of these documents is the theme " * 20], 260)


def tokens_in(folder: Path, tokenizer: Tokenizer, texts: list[bytes]) -> npt.NDArray[np.int64]:
    corpus = corpus_of(texts)
    made = tokenize(corpus, tokenizer, folder, "train", corpus.summary().sha256)
    assert (made.documents, made.bytes) == (len(texts), sum(map(len, texts)))
    return made.stream.read(0, len(made.stream))


def expected(tokenizer: Tokenizer, texts: list[bytes]) -> npt.NDArray[np.int64]:
    ids: list[int] = []
    for text in texts:
        ids += [tokenizer.bos_id, *tokenizer.encode(text).tolist()]
    return np.array(ids, dtype=np.int64)


# --- the stream


@given(shards, st.data())
def test_reading_equals_slicing_the_concatenation(
    parts: list[list[int]], choose: st.DataObject
) -> None:
    stream, whole = stream_of(parts), [token for part in parts for token in part]
    assert len(stream) == len(whole)
    if not whole:
        return
    start = choose.draw(st.integers(0, len(whole) - 1))
    length = choose.draw(st.integers(1, len(whole) - start))
    read = stream.read(start, length)
    assert read.dtype == np.int64
    assert read.tolist() == whole[start : start + length]


@given(shards)
def test_counts_equal_counting_one_by_one(parts: list[list[int]]) -> None:
    whole = [token for part in parts for token in part]
    counts = stream_of(parts).counts(300)
    assert counts.tolist() == [whole.count(token) for token in range(300)]


def test_a_shard_is_counted_to_its_end_however_long_it_is() -> None:
    shard = np.zeros((1 << 24) + 3, dtype=np.uint16)  # more than is counted at once
    shard[-2:] = 1
    assert TokenStream([shard]).counts(2).tolist() == [(1 << 24) + 1, 2]


def test_an_id_outside_the_vocabulary_is_refused_with_both_numbers() -> None:
    stream = stream_of([[0, 1, 2], [3, 299]])
    assert stream.counts(300).sum() == 5
    with pytest.raises(TrainingError, match="hold id 299, the tokenizer has 299 ids"):
        stream.counts(299)


# --- batches


@pytest.mark.parametrize("length", [4, 7, 16])
@pytest.mark.parametrize("size", [64, 100, 131])
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_each_window_of_an_epoch_occurs_exactly_once(length: int, size: int, epoch: int) -> None:
    batches = Batches(counting(size), rows=1, length=length, seed=3)
    first = epoch * batches.windows
    rows = [batches.step(first + i)[0][0].tolist() for i in range(batches.windows)]
    offset = min(row[0] for row in rows)
    assert 0 <= offset < length
    assert sorted(rows) == [
        list(range(offset + i * length, offset + (i + 1) * length)) for i in range(batches.windows)
    ]
    # Nothing is left out but the offset's remainder at both ends.
    assert size - batches.windows * length < 2 * length


def test_targets_are_the_inputs_one_token_later() -> None:
    batches = Batches(counting(200), rows=3, length=8, seed=0)
    for step in range(20):
        inputs, targets = batches.step(step)
        assert inputs.shape == targets.shape == (3, 8)
        assert inputs.dtype == targets.dtype == torch.int64
        assert torch.equal(targets, inputs + 1)


def test_epochs_differ_in_order_and_offset() -> None:
    batches = Batches(counting(300), rows=1, length=8, seed=0)
    epochs = [
        [int(batches.step(epoch * batches.windows + i)[0][0, 0]) for i in range(batches.windows)]
        for epoch in range(6)
    ]
    assert len({tuple(np.argsort(epoch)) for epoch in epochs}) == len(epochs)
    assert len({min(epoch) for epoch in epochs}) > 1
    assert all(epoch != sorted(epoch) for epoch in epochs)
    few = Batches(counting(20), rows=4, length=4, seed=0)  # a step is an epoch
    assert {int(few.step(epoch)[0].min()) for epoch in range(64)} == {0, 1, 2, 3}


@given(st.integers(0, 2**31), st.lists(st.integers(0, 60), min_size=1, max_size=8))
def test_a_batch_is_a_function_of_seed_and_step_alone(seed: int, steps: list[int]) -> None:
    used = Batches(counting(90), rows=2, length=8, seed=seed)
    for step in steps:  # in any order, across epochs
        fresh = Batches(counting(90), rows=2, length=8, seed=seed)
        assert torch.equal(used.step(step)[0], fresh.step(step)[0])


def test_another_seed_gives_another_order() -> None:
    one, two = (Batches(counting(300), rows=30, length=8, seed=seed) for seed in (1, 2))
    assert not torch.equal(one.step(0)[0], two.step(0)[0])
    one, two = (Batches(counting(300), rows=36, length=8, seed=seed) for seed in (1, 2))
    assert one.windows == 36
    assert not torch.equal(one.step(1)[0], two.step(0)[0])  # nor that of a later epoch


def test_rows_do_not_change_the_order_of_windows() -> None:
    narrow, wide = (Batches(counting(300), rows=rows, length=8, seed=1) for rows in (2, 6))
    several = torch.cat([narrow.step(step)[0] for step in range(3)])
    assert torch.equal(wide.step(0)[0], several)


def test_two_sequences_are_just_enough_and_less_is_refused() -> None:
    assert Batches(counting(32), rows=1, length=16, seed=0).windows == 1
    with pytest.raises(TrainingError, match="31 tokens, fewer than two sequences of 16"):
        Batches(counting(31), rows=1, length=16, seed=0)


# --- tokenizing


def test_every_document_follows_a_bos(tmp_path: Path, byte: Tokenizer, bpe: Tokenizer) -> None:
    for tokenizer in (byte, bpe):
        found = tokens_in(tmp_path / tokenizer.kind, tokenizer, TEXTS)
        assert found.tolist() == expected(tokenizer, TEXTS).tolist()
        assert int((found == tokenizer.bos_id).sum()) == len(TEXTS)


def test_more_documents_than_are_encoded_at_once_keep_their_order(
    tmp_path: Path, byte: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_module, "DOCUMENTS_AT_ONCE", 3)
    texts = [f"document {i}".encode() for i in range(10)]
    assert tokens_in(tmp_path, byte, texts).tolist() == expected(byte, texts).tolist()


def test_shards_of_the_same_tokenizer_and_corpus_are_used_again(
    tmp_path: Path, byte: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tokens_in(tmp_path, byte, TEXTS)

    def never(*args: object) -> Iterator[None]:
        raise AssertionError("the corpus was tokenized again")

    monkeypatch.setattr(data_module, "encoded", never)
    assert tokens_in(tmp_path, byte, TEXTS).tolist() == first.tolist()


def test_shards_of_another_corpus_are_written_anew(tmp_path: Path, byte: Tokenizer) -> None:
    tokens_in(tmp_path, byte, TEXTS)
    other = [*TEXTS, b"one more"]
    assert tokens_in(tmp_path, byte, other).tolist() == expected(byte, other).tolist()


def test_shards_of_another_tokenizer_are_written_anew(
    tmp_path: Path, byte: Tokenizer, bpe: Tokenizer
) -> None:
    texts = [b"the theme of the theme"]
    tokens_in(tmp_path, byte, texts)
    assert tokens_in(tmp_path, bpe, texts).tolist() == expected(bpe, texts).tolist()


def test_shards_without_the_mark_of_completion_are_written_anew(
    tmp_path: Path, byte: Tokenizer
) -> None:
    whole = tokens_in(tmp_path, byte, TEXTS)
    (tmp_path / "train.complete").unlink()
    with ShardWriter(
        tmp_path / "half",
        "train",
        fingerprint=byte.fingerprint,
        corpus_sha256=corpus_of(TEXTS).summary().sha256,
    ) as writer:
        writer.add([byte.bos_id], 0)
    for path in (tmp_path / "half").iterdir():
        path.replace(tmp_path / path.name)
    assert len(read_shard(shard_files(tmp_path, "train")[0])) == 1
    assert tokens_in(tmp_path, byte, TEXTS).tolist() == whole.tolist()


def test_half_a_corpus_is_never_taken_for_the_whole_after_another_one(
    tmp_path: Path, byte: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mark of an earlier, complete corpus must not cover a later, interrupted one."""
    with monkeypatch.context() as patch:

        class OneEach(ShardWriter):
            """A shard for every document, and an interrupt at the third."""

            def add(self, tokens: npt.ArrayLike, byte_count: int) -> None:
                if len(self.paths) == 2:
                    raise KeyboardInterrupt
                super().add(tokens, byte_count)
                self._write()

        patch.setattr(data_module, "ShardWriter", OneEach)
        tokens_in(tmp_path, byte, [b"an earlier", b"corpus"])  # of as many shards
        with pytest.raises(KeyboardInterrupt):
            tokens_in(tmp_path, byte, TEXTS)
    assert len(shard_files(tmp_path, "train")) == 2
    assert tokens_in(tmp_path, byte, TEXTS).tolist() == expected(byte, TEXTS).tolist()
    left = {"train.complete", "train_000000.bin", "train_000000.json"}
    assert {path.name for path in tmp_path.iterdir()} == left


def test_shards_with_sidecars_that_are_not_ours_are_left_alone(
    tmp_path: Path, byte: Tokenizer
) -> None:
    names = "train_000000.bin", "train_000000.json"
    for name in names:
        (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(CorpusError, match="is no sound sidecar: it has no 'seal'"):
        tokens_in(tmp_path, byte, TEXTS)
    assert all((tmp_path / name).read_bytes() == b"{}" for name in names)


def test_shards_without_a_sidecar_are_left_alone_and_counted(
    tmp_path: Path, byte: Tokenizer
) -> None:
    tokens_in(tmp_path, byte, TEXTS)
    bare = tmp_path / "train_000001.bin"
    bare.write_bytes((tmp_path / "train_000000.bin").read_bytes())
    with pytest.raises(TrainingError, match=r"holds 1 train shards without the \.json beside them"):
        tokens_in(tmp_path, byte, [*TEXTS, b"one more"])
    assert bare.exists() and (tmp_path / "train.complete").exists()


def test_a_process_that_does_not_find_the_lead_s_shards_says_so(
    tmp_path: Path, byte: Tokenizer, bpe: Tokenizer
) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(TrainingError, match="holds no train shards here; all machines of a"):
            tokenized(byte, folder, "train")
    tokens_in(tmp_path, bpe, TEXTS)
    with pytest.raises(CorpusError, match="tokenizer"):
        tokenized(byte, tmp_path, "train")


def test_other_prefixes_in_the_folder_stay_as_they_are(tmp_path: Path, byte: Tokenizer) -> None:
    corpus = corpus_of(TEXTS)
    sha256 = corpus.summary().sha256
    val = tokenize(corpus, byte, tmp_path, "val", sha256)
    before = val.stream.read(0, len(val.stream)).tolist()
    tokens_in(tmp_path, byte, [b"something else"])
    again = tokenize(corpus, byte, tmp_path, "val", sha256)
    assert again.stream.read(0, len(again.stream)).tolist() == before
