"""What holds for every corpus: order hash, emptiness, splits, disjointness."""

import hashlib
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tokgolf.corpora import (
    SPLITS,
    Corpus,
    Document,
    check_disjoint,
    document_digests,
    split_of,
)
from tokgolf.corpora.corpus import select_by_hash, select_by_position
from tokgolf.errors import CorpusError

some_bytes = st.lists(st.binary(max_size=20), min_size=1, max_size=8).filter(any)


def corpus_of(datas: list[bytes]) -> Corpus:
    def source() -> Iterator[Document]:
        return (Document(f"d{number}", data) for number, data in enumerate(datas))

    return Corpus(name="made", split=None, source=source)


@given(some_bytes)
def test_summary_agrees_with_the_documents_and_repeats(datas: list[bytes]) -> None:
    corpus = corpus_of(datas)
    assert [document.data for document in corpus] == datas
    assert corpus.summary() == corpus.summary()
    assert corpus.summary().documents == len(datas)
    assert corpus.summary().bytes == len(b"".join(datas))


@given(some_bytes, some_bytes)
def test_order_hash_is_equal_only_for_equal_lists(one: list[bytes], other: list[bytes]) -> None:
    same = corpus_of(one).summary().sha256 == corpus_of(other).summary().sha256
    assert same == (one == other)


@given(some_bytes)
def test_order_hash_changes_with_order(datas: list[bytes]) -> None:
    shuffled = sorted(datas)
    assume(shuffled != datas)
    assert corpus_of(shuffled).summary().sha256 != corpus_of(datas).summary().sha256


@given(st.binary(min_size=1, max_size=20), st.data())
def test_order_hash_changes_with_boundaries(data: bytes, draw: st.DataObject) -> None:
    cut = draw.draw(st.integers(0, len(data)))
    divided = corpus_of([data[:cut], data[cut:]]).summary().sha256
    assert divided != corpus_of([data]).summary().sha256


def test_order_hash_has_its_documented_value() -> None:
    plain = b"\2\0\0\0\0\0\0\0ab" + b"\0" * 8 + b"\1\0\0\0\0\0\0\0c"
    assert corpus_of([b"ab", b"", b"c"]).summary().sha256 == hashlib.sha256(plain).hexdigest()


@pytest.mark.parametrize(
    ("datas", "message"),
    [([], "corpus made has no documents"), ([b"", b""], r"made has 0 bytes.*\(2\)")],
)
def test_corpus_of_nothing_is_refused(datas: list[bytes], message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        corpus_of(datas).summary()
    with pytest.raises(CorpusError, match=message):
        list(corpus_of(datas))


def test_split_of_has_its_published_values() -> None:
    assert {name: split_of(name) for name in GOLDEN_SPLITS} == GOLDEN_SPLITS


GOLDEN_SPLITS = {
    "": "train",
    "asyncio.base_events": "train",
    "web.jsonl#1": "train",
    "é": "train",
    "pydoc_data.topics:if": "val",
    "33": "val",
    "30": "test",
    "38": "test",
}


def test_split_of_divides_90_5_5() -> None:
    counts = Counter(split_of(f"web.jsonl#{number}") for number in range(20_000))
    assert counts["train"] == pytest.approx(18_000, abs=200)
    assert counts["val"] == pytest.approx(1_000, abs=150)
    assert counts["test"] == pytest.approx(1_000, abs=150)


@given(st.lists(st.text(max_size=8), unique=True))
def test_splits_partition_the_documents(ids: list[str]) -> None:
    documents = [Document(each, b"x") for each in ids]
    parts = [document for split in SPLITS for document in select_by_hash(iter(documents), split)]
    assert Counter(parts) == Counter(documents)
    assert list(select_by_hash(iter(documents), None)) == documents


def test_challenge_split_is_by_position_at_50_000() -> None:
    documents = [Document(str(number), b"") for number in range(50_003)]

    def chosen(split: str | None) -> list[Document]:
        return list(select_by_position(iter(documents), split, "challenge"))

    assert chosen("val") == documents[:50_000]
    assert chosen("train") == documents[50_000:]
    assert chosen(None) == documents
    with pytest.raises(CorpusError, match="challenge has no test split"):
        chosen("test")


@given(st.lists(st.binary(max_size=3), max_size=30))
def test_digests_are_sorted_unique_and_independent_of_order(datas: list[bytes]) -> None:
    documents = [Document("", data) for data in datas]
    digests = document_digests(documents)
    expected = {int.from_bytes(hashlib.sha256(data).digest()[:8], "little") for data in datas}
    assert digests.dtype == np.uint64
    assert digests.tolist() == sorted(expected)
    assert np.array_equal(digests, document_digests(documents[::-1]))


@given(st.lists(st.binary(max_size=1), max_size=20), st.lists(st.binary(max_size=1), max_size=20))
def test_check_disjoint_counts_every_shared_document(train: list[bytes], held: list[bytes]) -> None:
    digests = document_digests(Document("", data) for data in train)
    documents = [Document(f"held#{number}", data) for number, data in enumerate(held)]
    shared = [each.id for each in documents if each.data and each.data in train]
    if not shared:
        assert check_disjoint(digests, documents) == 0
        assert check_disjoint(digests, document_digests(documents)) == 0
        return
    message = f"^{len(shared)} of {len(held)} documents of val were .* first is {shared[0]}\\."
    with pytest.raises(CorpusError, match=message):
        check_disjoint(digests, documents, held_out_name="val")
    with pytest.raises(CorpusError, match="first is digest [0-9a-f]{16}"):
        check_disjoint(digests, document_digests(documents))
    assert check_disjoint(digests, documents, allowed=len(shared)) == len(shared)
