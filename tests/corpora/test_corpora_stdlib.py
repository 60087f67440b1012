"""The embedded corpus: the same every time, by id, and honest about its splits."""

import ast
import gc
import sys
import sysconfig
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokgolf.corpora import (
    SPLITS,
    Document,
    check_disjoint,
    document_digests,
    open_corpus,
    split_of,
)
from tokgolf.corpora.stdlib import docstrings, read_documentation


def test_stdlib_is_megabytes_of_sorted_documents_with_a_version() -> None:
    corpus = open_corpus("stdlib")
    documents = list(corpus)
    ids = [document.id for document in documents]
    assert ids == sorted(set(ids))
    assert all(document.data for document in documents)
    assert len(documents) > 300  # a Python without its test suite has about 500 modules
    assert corpus.summary().bytes > 1_000_000
    assert sys.version.split()[0] in corpus.summary().provenance["python"]


def test_stdlib_passes_are_equal() -> None:
    assert open_corpus("stdlib:val").summary() == open_corpus("stdlib", "val").summary()
    assert list(open_corpus("stdlib")) == list(open_corpus("stdlib"))


def test_stdlib_splits_partition_it_and_share_no_text() -> None:
    parts = {split: list(open_corpus("stdlib", split)) for split in SPLITS}
    for split, documents in parts.items():
        assert documents
        assert {split_of(document.id) for document in documents} == {split}
    joined = [document for documents in parts.values() for document in documents]
    assert sorted(joined, key=lambda each: each.id) == list(open_corpus("stdlib"))
    train = document_digests(parts["train"])
    assert check_disjoint(train, parts["val"]) == 0
    assert check_disjoint(train, parts["test"]) == 0


def test_stdlib_documents_are_the_docstrings() -> None:
    documents = {document.id: document.data for document in open_corpus("stdlib")}
    assert (textwrap.dedent.__doc__ or "missing").splitlines()[0].encode() in documents["textwrap"]
    assert documents["json"].startswith(b"JSON (JavaScript Object Notation)")
    assert b"truth" in documents["pydoc_data.topics:truth"]
    assert gc.isenabled()  # reading suspends it


def test_docstrings_agree_with_walking_the_whole_tree() -> None:
    root = Path(sysconfig.get_paths()["stdlib"])
    for name in ("ast.py", "dataclasses.py", "typing.py", "textwrap.py", "enum.py"):
        tree = ast.parse((root / name).read_bytes())
        kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
        nodes.sort(key=lambda node: getattr(node, "lineno", 0))
        assert list(docstrings(tree)) == [
            text for node in nodes if (text := ast.get_docstring(node))
        ]


SOURCE = '''
"""Module."""
x = lambda: "not one"
if x:
    class A:
        """Class.

        Indented.
        """
        async def f(self): "In f."
else:
    try:
        def g(): "In try."
    except OSError:
        def g(): "In except."
    finally:
        with x: 
            def h():
                for _ in x:
                    def inner(): "Inner."
match x:
    case 1:
        def m(): "In case."
'''  # noqa: W291


def test_docstrings_are_found_in_every_kind_of_block() -> None:
    assert list(docstrings(ast.parse(SOURCE))) == [
        "Module.", "Class.\n\nIndented.", "In f.", "In try.", "In except.", "Inner.", "In case.",
    ]  # fmt: skip


def test_modules_are_named_as_imported_and_broken_ones_left_out(tmp_path: Path) -> None:
    files = {
        "b.py": b'"""Same."""',
        "a.py": b'"""Same."""',
        "latin.py": b'# coding: latin-1\n"""caf\xe9"""',
        "lone.py": b'"""\\ud800"""',
        "warns.py": b'"""A \\d."""\nx = "\\d"\nassert (1, 2)',
        "broken.py": b'"""x"""\nprint 1',
        "nulls.py": b'"""x"""\0',
        "silent.py": b"x = 1",
        "not-a-name.py": b'"""x"""',
        "site-packages/other.py": b'"""x"""',
        "pack/__init__.py": b'"""Pack."""',
        "pack/test/deep.py": b'"""Deep."""',
        "pydoc_data/topics.py": b"topics = {'z': 'last', 'a': 'first\\n'}",
    }
    for name, data in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    assert list(read_documentation(tmp_path)) == [
        Document("a", b"Same."),  # and not b: its bytes have been seen
        Document("latin", "café".encode()),
        Document("lone", b"\xed\xa0\x80"),
        Document("pack", b"Pack."),
        Document("pack.test.deep", b"Deep."),
        Document("pydoc_data.topics:a", b"first\n"),
        Document("pydoc_data.topics:z", b"last"),
        Document("warns", b"A \\d."),
    ]


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_any_docstring_comes_out_as_python_cleans_it(text: str) -> None:
    tree = ast.parse(f"def f(): {text!r}\n")
    expected = ast.get_docstring(tree.body[0])  # type: ignore[arg-type]
    assert list(docstrings(tree)) == ([expected] if expected else [])


@pytest.mark.parametrize("topic", ["a", "z"])
def test_topics_are_read_and_not_run(tmp_path: Path, topic: str) -> None:
    (tmp_path / "pydoc_data").mkdir()
    code = f"other = {{}}\ntopics = {{{topic!r}: 'text'}}\nraise SystemExit\n"
    (tmp_path / "pydoc_data" / "topics.py").write_text(code, encoding="utf-8")
    assert [each.id for each in read_documentation(tmp_path)] == [f"pydoc_data.topics:{topic}"]
