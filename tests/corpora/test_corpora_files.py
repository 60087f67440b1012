"""Files and folders of documents: round trips, ids, own splits, damaged input."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tokgolf.corpora import SPLITS, Document, open_corpus, split_of, write_jsonl
from tokgolf.errors import CorpusError

texts = st.lists(st.text(), min_size=1, max_size=6).filter(any)
byte_lists = st.lists(st.binary(max_size=40), min_size=1, max_size=6).filter(any)


def compressed(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def write_table(path: Path, **columns: pyarrow.Array) -> None:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def datas(path: Path, split: str | None = None) -> list[bytes]:
    return [document.data for document in open_corpus(str(path), split)]


def ids(path: Path, split: str | None = None) -> list[str]:
    return [document.id for document in open_corpus(str(path), split)]


@given(values=texts, suffix=st.sampled_from([".jsonl", ".jsonl.zst"]))
def test_jsonl_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, values: list[str], suffix: str
) -> None:
    path = tmp_path_factory.mktemp("corpus") / f"web{suffix}"
    documents = [Document(f"web{suffix}#{n}", text.encode()) for n, text in enumerate(values, 1)]
    assert write_jsonl(path, iter(documents)) == len(documents)
    assert list(open_corpus(str(path))) == documents


@given(values=byte_lists, large=st.booleans())
def test_parquet_gives_back_any_bytes(
    tmp_path_factory: pytest.TempPathFactory, values: list[bytes], large: bool
) -> None:
    path = tmp_path_factory.mktemp("corpus") / "web.parquet"
    kind = pyarrow.large_binary() if large else pyarrow.binary()
    write_table(path, text=pyarrow.array(values, kind), n=pyarrow.array(range(len(values))))
    expected = [Document(f"web.parquet#{row}", data) for row, data in enumerate(values)]
    assert list(open_corpus(str(path))) == expected


@given(values=byte_lists)
def test_folder_of_text_files_gives_back_any_bytes(
    tmp_path_factory: pytest.TempPathFactory, values: list[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    expected = []
    for number, data in enumerate(values):
        packed = number % 2 == 1
        name = f"{number}.txt.zst" if packed else f"{number}.txt"
        (folder / name).write_bytes(compressed(data) if packed else data)
        expected.append(Document(name, data))
    assert list(open_corpus(str(folder))) == expected


def test_parquet_text_spans_row_batches(tmp_path: Path) -> None:
    values = [f"row {number} é" for number in range(3000)]
    write_table(tmp_path / "x.parquet", text=pyarrow.array(values))
    assert datas(tmp_path / "x.parquet") == [value.encode() for value in values]
    assert ids(tmp_path / "x.parquet")[-1] == "x.parquet#2999"


def test_jsonl_lines_are_longer_than_a_read_and_numbered_with_blanks(tmp_path: Path) -> None:
    long = "x" * 200_000
    lines = [
        json.dumps({"text": long}),
        "",
        "  \r",
        '{"text": "\u2028", "id": 5}',
        '{"text": ""}\r',
    ]
    for name, pack in (("a.jsonl", bytes), ("a.jsonl.zst", compressed)):
        (tmp_path / name).write_bytes(pack("\n".join(lines).encode()))
        assert list(open_corpus(str(tmp_path / name))) == [
            Document(f"{name}#1", long.encode()),
            Document(f"{name}#4", "\u2028".encode()),
            Document(f"{name}#5", b""),
        ]


def test_lone_surrogates_keep_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(rb'{"text": "a\ud800b"}')
    assert datas(path) == [b"a\xed\xa0\x80b"]
    write_jsonl(path, [Document("x", b"a\xed\xa0\x80b")])
    assert datas(path) == [b"a\xed\xa0\x80b"]


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"ab\xff", "document d is not UTF-8 at byte 2 of 3"),
     (b"\xed\xa0\xbd\xed\xb8\x80", "document d has an encoded surrogate pair")],
)  # fmt: skip
def test_bytes_that_json_would_change_are_not_written(
    tmp_path: Path, data: bytes, message: str
) -> None:
    for name in ("x.jsonl", "x.jsonl.zst"):
        with pytest.raises(CorpusError, match=message):
            write_jsonl(tmp_path / name, [Document("first", b"fine"), Document("d", data)])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CorpusError, match="does not end in .jsonl"):
        write_jsonl(tmp_path / "x.txt", [])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": ', "line 3 is not JSON"),
        (b"\xef\xbb\xbf{}", "line 3 is not JSON: Unexpected UTF-8 BOM"),
        (b"[" * 100_000, "line 3 is not JSON"),
        (b'{"text": "\xff"}', "line 3 is not UTF-8 at byte 10"),
        (b'{"body": "x", "n": 1}', "line 3 has no string field 'text'; its fields are 'body', 'n'"),
        (b"{}", "line 3 has no string field 'text'; its fields are none"),
        (b'{"text": null}', "line 3 has no string field 'text'; its 'text' is null"),
        (b'{"text": 3}', "line 3 has no string field 'text'; its 'text' is of type int"),
        (b'"text"', "line 3 has no string field 'text'; it is of type str"),
    ],
)
def test_bad_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    for name, pack in (("a.jsonl", bytes), ("a.jsonl.zst", compressed)):
        (tmp_path / name).write_bytes(pack(b'{"text": "fine"}\n\n' + line + b"\n"))
        documents = iter(open_corpus(str(tmp_path / name)))
        assert next(documents).data == b"fine"
        with pytest.raises(CorpusError, match=f"{name} {message}"):
            next(documents)


def test_a_byte_order_mark_is_no_part_of_json_lines_and_stays_in_a_text(tmp_path: Path) -> None:
    for name, pack in (("a.jsonl", bytes), ("a.jsonl.zst", compressed)):
        for text in (b'{"text": "fine"}\n', b'\n{"text": "fine"}'):
            (tmp_path / name).write_bytes(pack(b"\xef\xbb\xbf" + text))
            assert datas(tmp_path / name) == [b"fine"]
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbffine")
    assert datas(tmp_path / "a.txt") == [b"\xef\xbb\xbffine"]


def test_field_other_than_text_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n', encoding="utf-8")
    write_table(tmp_path / "b.parquet", body=pyarrow.array(["y"]))
    assert [each.data for each in open_corpus(str(tmp_path), field="body")] == [b"x", b"y"]


def test_zst_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.txt.zst"
    whole = compressed(bytes(range(256)) * 3)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CorpusError, match=f"is cut short: .*within {length} bytes"):
            datas(path)


def test_zst_frames_are_joined_and_garbage_after_them_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.txt.zst"
    one, two = compressed(b"one,"), compressed(b"two" * 50_000)
    path.write_bytes(one + two)
    assert datas(path) == [b"one," + b"two" * 50_000]
    path.write_bytes(one + two[:-1])
    with pytest.raises(CorpusError, match="zstd frame 2 has no end"):
        datas(path)
    path.write_bytes(one + b"not a frame")
    with pytest.raises(CorpusError, match="not valid zstd data"):
        datas(path)


def test_parquet_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write_table(path, text=pyarrow.array(["some text", "more text"]))
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(
            CorpusError, match="x.parquet is not a readable Parquet file: ."
        ) as info:
            datas(path)
        assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("body", pyarrow.array(["x"]), "no column 'text'; its columns are body"),
        ("text", pyarrow.array([1]), "column 'text' is of type int64, not string"),
        ("text", pyarrow.array(["x", None]), "row 1 has a null in column 'text'"),
    ],
)
def test_parquet_without_text_is_refused(
    tmp_path: Path, column: str, values: pyarrow.Array, message: str
) -> None:
    write_table(tmp_path / "x.parquet", **{column: values})
    with pytest.raises(CorpusError, match=message):
        datas(tmp_path / "x.parquet")


def test_folder_is_its_known_files_in_name_order(tmp_path: Path) -> None:
    for name in (
        "b.txt",
        "a/z.txt",
        "a/deep/x.jsonl",
        "B.TXT",
        ".hidden.txt",
        ".git/x.txt",
        "c.py",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'{"text": "x"}')
    expected = ["B.TXT", "a/deep/x.jsonl#1", "a/z.txt", "b.txt"]
    assert ids(tmp_path) == expected


def test_path_is_split_by_hash_of_the_id(tmp_path: Path) -> None:
    path = tmp_path / "web.jsonl"
    write_jsonl(path, [Document("", b"%d" % number) for number in range(300)])
    parts = [ids(path, split) for split in SPLITS]
    for split, part in zip(SPLITS, parts, strict=True):
        assert part and {split_of(each) for each in part} == {split}
    assert sorted(sum(parts, [])) == sorted(ids(path))


@pytest.mark.parametrize("val", ["val.jsonl", "validation.jsonl", "val/a/b.jsonl"])
def test_own_splits_of_a_folder_win(tmp_path: Path, val: str) -> None:
    (tmp_path / val).parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(tmp_path / val, [Document("", b"held %d" % number) for number in range(40)])
    write_jsonl(tmp_path / "train.jsonl.zst", [Document("", b"seen")])
    (tmp_path / "README.txt").write_bytes(b"about")
    assert datas(tmp_path, "train") == [b"seen"]
    assert datas(tmp_path, "val") == [b"held %d" % number for number in range(40)]
    assert len(datas(tmp_path)) == 42
    with pytest.raises(CorpusError, match="has no test split; its own splits are train, val"):
        open_corpus(str(tmp_path), "test")


def test_challenge_export_keeps_its_own_split(tmp_path: Path) -> None:
    path = tmp_path / "docs_selected.jsonl"
    path.write_bytes(b'{"text": "held out"}\n' * 50_000 + b'{"text": "seen"}\n' * 2)
    for place in (path, tmp_path):
        assert set(datas(place, "val")) == {b"held out"}
        assert datas(place, "train") == [b"seen"] * 2
        assert len(datas(place)) == 50_002


def test_unusable_paths_are_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "x.py").touch()
    with pytest.raises(CorpusError, match=r"x.py is not of a known kind; known: .txt, .txt.zst,"):
        open_corpus(str(tmp_path / "x.py"))
    with pytest.raises(CorpusError, match="holds no documents; it needs files of .txt"):
        open_corpus(str(tmp_path))
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(CorpusError, match="empty.jsonl has no documents"):
        datas(tmp_path / "empty.jsonl")


@pytest.mark.parametrize("spell", [str, lambda path: f"{path}/", lambda path: f"{path}:train"])
def test_reading_twice_starts_again(tmp_path: Path, spell: Callable[[Path], str]) -> None:
    for number in range(20):
        (tmp_path / f"{number}.txt").write_bytes(b"%d" % number)
    corpus = open_corpus(spell(tmp_path))
    next(iter(corpus))
    assert list(corpus) == list(corpus)
    assert len(list(corpus)) > 1
