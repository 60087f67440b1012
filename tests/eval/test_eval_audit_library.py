"""`tokenizer.json` files that cannot be imported: their own library says what they do to a text."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audit_support import documents
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tokgolf.corpora import write_shard
from tokgolf.errors import TokenizerError
from tokgolf.eval.audit import library
from tokgolf.eval.audit.accounting import accounting_findings, measure
from tokgolf.eval.audit.audit import open_subject
from tokgolf.eval.audit.findings import ERROR
from tokgolf.eval.audit.library import answer, library_subject
from tokgolf.eval.audit.lossless import check_text, stress, text_findings
from tokgolf.eval.audit.shards import ShardSet, audit_shards
from tokgolf.eval.audit.subject import Subject

TEXTS = [text.decode() for text in documents()]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child's work done here, which is faster; one test below goes the whole way."""
    monkeypatch.setattr(library, "call_isolated", lambda _, question: answer(question))


def byte_level(**options: Any) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(**{"add_prefix_space": False} | options)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    return made


@functools.cache
def plain() -> Tokenizer:
    return byte_level()


def llama() -> Tokenizer:
    """BPE with U+2581 for spaces and byte pieces, as Llama's files are."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    made.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<unk>", "<s>", *BYTES], show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        + [decoders.Strip(" ", 1, 0)]
    )
    return made


def folding() -> Tokenizer:
    made = Tokenizer.from_str(plain().to_str())
    made.normalizer = normalizers.Lowercase()
    return made


def word_piece() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=False)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=400, special_tokens=["[UNK]"], show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


def unigram() -> Tokenizer:
    values: list[tuple[str, float]] = [("<unk>", 0.0)]
    letters = sorted({character for text in TEXTS for character in text if character < "\x7f"})
    values += [("\u2581" if letter == " " else letter, -3.0) for letter in letters]
    made = Tokenizer(models.Unigram(values, unk_id=0, byte_fallback=False))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    made.decoder = decoders.Metaspace(prepend_scheme="never")
    return made


def errors(subject: Subject) -> list[str]:
    texts = [text.encode() for text in TEXTS]
    found = accounting_findings(subject, measure(subject, texts), "text")
    found += text_findings(subject, check_text(subject, [("", text) for text in texts]), "text")
    found += text_findings(subject, stress(subject), "stress", few=1)
    return sorted({finding.name for finding in found if finding.severity == ERROR})


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (llama, []),
        (folding, ["lower-cased-text"]),
        (word_piece, ["text-changed"]),
        (unigram, ["unknown-counts-zero"]),
        (lambda: byte_level(add_prefix_space=True), ["bytes-miscounted"]),
    ],
)
def test_what_a_file_does_to_a_text_is_named(make: Callable[[], Tokenizer], names: Any) -> None:
    assert errors(library_subject(make().to_str().encode())) == names


def test_a_space_that_is_only_put_first_is_not_missed() -> None:
    subject = library_subject(llama().to_str().encode())
    texts = [text.encode() for text in TEXTS]
    assert accounting_findings(subject, measure(subject, texts), "text") == []


def test_a_byte_level_file_is_the_same_read_either_way(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(plain().to_str())
    ours, theirs = open_subject(path), library_subject(path.read_bytes())
    assert (ours.kind, theirs.kind) == ("foreign", "BPE of a tokenizer.json")
    texts = [text.encode() for text in TEXTS]
    assert [ids.tolist() for ids in ours.encode(texts)] == theirs.encode(texts)
    assert ours.pieces[: len(theirs.pieces)] == theirs.pieces
    assert errors(theirs) == []


def test_shards_are_audited_as_far_as_the_library_tells(tmp_path: Path) -> None:
    """It decodes nothing but what it just encoded, so some of it is left out, and said to be."""
    made = folding()
    made.add_special_tokens(["<s>"])
    subject = library_subject(made.to_str().encode())
    texts = [text[:300].encode() for text in TEXTS]
    bos = len(subject.pieces) - 1
    tokens = [token for ids in subject.encode(texts) for token in [bos, *ids]]
    nothing: Any = {"fingerprint": "", "corpus_sha256": "", "byte_count": 0, "documents": 0}
    write_shard(tmp_path / "val.bin", tokens, **nothing)
    sizes = np.where(np.array(tokens) == bos, 0, 1)
    write_shard(tmp_path / "val_bytes.bin", sizes, **nothing)
    shards = ShardSet()
    shards.add(tmp_path)
    facts, found = audit_shards(shards, subject, texts)
    assert found == []
    assert facts["not_checked"] == "whether the byte counts are those of the text"
    facts, found = audit_shards(shards, subject, None)
    assert found == [] and facts["not_checked"] == (
        "whether the text has these tokens when encoded again; whether capitals are lost; "
        "whether the byte counts are those of the text"
    )
    (finding,) = audit_shards(shards, subject, [*texts[:-1], b"another"])[1]
    assert finding.name == "documents-missing" and f"document {len(texts) - 1}" in finding.evidence


def test_a_file_that_cannot_be_imported_is_run_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    path = tmp_path / "x.json"
    path.write_text(folding().to_str())
    subject = open_subject(path)
    assert subject.decode(subject.encode([b"The End"])[0]) == b"the end"
    assert subject.facts["normalizer"] == "Lowercase"
    path.write_text('{"model": {"type": "BPE"}}')
    with pytest.raises(TokenizerError, match="x.json: no sound tokenizer.json") as caught:
        open_subject(path)
    assert "\n" not in str(caught.value)
