"""From a spec to a corpus: names, paths, splits, and what the errors say."""

import subprocess
import sys
from pathlib import Path

import pytest

from tokgolf.corpora import corpus_names, open_corpus
from tokgolf.errors import CorpusError


def test_every_named_corpus_opens_without_reading_anything() -> None:
    for name, description in corpus_names().items():
        corpus = open_corpus(f"{name}:train")
        assert (corpus.name, corpus.split) == (f"{name}:train", "train")
        assert description and "\n" not in description


def test_split_is_suffix_or_argument_and_both_must_agree() -> None:
    assert open_corpus("stdlib").split is None
    assert open_corpus("stdlib:val", "val").name == "stdlib:val"
    with pytest.raises(CorpusError, match="asks for split val, the argument for test"):
        open_corpus("stdlib:val", "test")


@pytest.mark.parametrize(
    ("spec", "split", "message"),
    [
        ("stdlib:vall", None, "no split 'vall'; did you mean 'val'"),
        ("stdlib:", None, "no split ''; known: test, train, val"),
        ("stdlib", "dev", "no split 'dev'"),
        ("hf:a/b:validation", None, "no split 'validation'"),
        ("stdlb:val", None, "no corpus or path 'stdlb'; did you mean 'stdlib'"),
        ("no/such.txt", None, "no corpus or path 'no/such.txt'; known: fineweb,"),
        ("", None, "no corpus or path ''"),
        ("hf:", None, "'hf:' names no data set"),
        ("hf:@x", None, "names no data set"),
        ("hf:x@", None, "names no data set"),
    ],
)
def test_impossible_specs_are_refused_with_a_hint(
    spec: str, split: str | None, message: str
) -> None:
    with pytest.raises(CorpusError, match=message):
        open_corpus(spec, split)


def test_existing_path_with_a_colon_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "a.txt:val").mkdir()
    (tmp_path / "a.txt:val" / "C:x.txt").write_bytes(b"inside")
    (tmp_path / "a.txt").write_bytes(b"outside")
    corpus = open_corpus(f"{tmp_path}/a.txt:val")
    assert corpus.split is None
    assert [document.id for document in corpus] == ["C:x.txt"]
    assert open_corpus(f"{tmp_path}/a.txt:test").split == "test"


def test_name_wins_over_a_file_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stdlib").mkdir()
    (tmp_path / "stdlib" / "a.txt").write_bytes(b"a")
    assert open_corpus("stdlib").provenance
    assert [document.data for document in open_corpus("./stdlib")] == [b"a"]


def test_importing_corpora_imports_nothing_heavy() -> None:
    code = (
        "import sys, tokgolf.corpora; "
        "print({'torch', 'datasets', 'pyarrow', 'zstandard'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
