"""Shards: leaks, repeats, missing documents, byte counts of other tokens, text in lower case."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audit_support import built, documents, imported
from hypothesis import given, settings
from hypothesis import strategies as st

from tokgolf.corpora import write_shard
from tokgolf.errors import CorpusError
from tokgolf.eval.audit.findings import ERROR, WARNING, Finding
from tokgolf.eval.audit.shards import ShardSet, audit_shards, documents_of, longest_run
from tokgolf.eval.audit.subject import MARKS, Subject, mark, subject_of
from tokgolf.eval.audit.tokenmonster import read_vocabulary
from tokgolf.eval.official import token_stream
from tokgolf.tokenizers import Tokenizer

PAGES = [text.decode() for text in documents()[:12]]
TEXTS = [text[at : at + 400].encode() for text in PAGES for at in range(0, len(text), 400)]
VAL, TRAIN = TEXTS[:30], TEXTS[30:]


def raw_shard(path: Path, tokens: Any) -> Path:
    """A shard as the challenge's code writes it: without a sidecar of ours."""
    write_shard(path, tokens, fingerprint="", corpus_sha256="", byte_count=0, documents=0)
    path.with_suffix(".json").unlink()
    return path


def write(folder: Path, name: str, texts: list[bytes], tokenizer: Tokenizer | None = None) -> Path:
    tokens = token_stream(tokenizer or imported(), texts).tokens
    return raw_shard(folder / f"fineweb_{name}_000000.bin", tokens)


def write_sizes(folder: Path, texts: list[bytes], tokenizer: Tokenizer | None = None) -> Path:
    sizes = token_stream(tokenizer or imported(), texts).target_bytes
    return raw_shard(folder / "fineweb_val_bytes_000000.bin", np.append([0], sizes))


def audited(
    folder: Path, subject: Subject | None = None, texts: list[bytes] | None = None
) -> tuple[dict[str, Any], list[Finding]]:
    shards = ShardSet()
    shards.add(folder)
    return audit_shards(shards, subject, texts)


def names(folder: Path, subject: Subject | None = None, texts: list[bytes] | None = None) -> Any:
    return [finding.name for finding in audited(folder, subject, texts)[1]]


OFFICIAL = subject_of(imported())


def test_sound_shards_give_no_finding(tmp_path: Path) -> None:
    write(tmp_path, "val", VAL)
    write(tmp_path, "train", TRAIN)
    write_sizes(tmp_path, VAL)
    facts, found = audited(tmp_path, OFFICIAL, VAL)
    assert found == []
    assert facts["val_documents"], facts["train_documents"] == (len(VAL), len(TRAIN))
    assert facts["val_bytes"] == token_stream(imported(), VAL).text_bytes.sum()
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["bpe", "byte"])
def test_shards_of_our_own_tokenizers_are_sound(kind: str, tmp_path: Path) -> None:
    tokens = [t for text in VAL for t in [256, *built(kind).encode(text).tolist()]]
    write_shard(
        tmp_path / "my_val_000000.bin", tokens, fingerprint=built(kind).fingerprint,
        corpus_sha256="", byte_count=sum(map(len, VAL)), documents=len(VAL),
    )  # fmt: skip
    assert names(tmp_path, subject_of(built(kind)), VAL) == []


# --- val and train


def test_the_first_documents_leak_is_named_with_its_place(tmp_path: Path) -> None:
    """The prep held out the first 10 documents where 30 are scored: 20 are trained on."""
    write(tmp_path, "val", VAL)
    write(tmp_path, "train", VAL[10:] + TRAIN)
    (finding,) = audited(tmp_path)[1]
    assert (finding.name, finding.severity) == ("val-documents-in-train", ERROR)
    assert "20 of 30 documents of val are in train" in finding.evidence
    assert (
        "documents 10 to 29 of val follow each other in train from document 0" in finding.evidence
    )


def test_a_leak_in_any_order_is_named(tmp_path: Path) -> None:
    write(tmp_path, "val", VAL)
    write(tmp_path, "train", TRAIN + VAL[::-3])
    (finding,) = audited(tmp_path)[1]
    assert (finding.name, finding.severity) == ("val-documents-in-train", ERROR)
    assert "the first is document 2" in finding.evidence


def test_few_documents_that_the_web_has_twice_are_a_warning(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    many = [1, *rng.integers(4, 99, 30_000).tolist()]
    many[::15] = [1] * len(many[::15])
    raw_shard(tmp_path / "val.bin", many)
    raw_shard(tmp_path / "train.bin", [1, *rng.integers(4, 99, 50).tolist(), *many[:15]])
    (finding,) = audited(tmp_path)[1]
    assert (finding.name, finding.severity) == ("val-documents-in-train", WARNING)


def test_empty_documents_are_no_leak(tmp_path: Path) -> None:
    write(tmp_path, "val", [b"", *VAL, b""])
    write(tmp_path, "train", [*TRAIN, b"", b""])
    assert names(tmp_path, OFFICIAL) == []


def test_jobs_that_each_wrote_the_first_documents_are_named(tmp_path: Path) -> None:
    write(tmp_path, "val", VAL * 4)
    (finding,) = audited(tmp_path)[1]
    assert (finding.name, finding.severity) == ("documents-repeated", ERROR)
    assert "90 of 120 documents of val" in finding.evidence


def test_a_few_repeated_documents_are_a_warning_and_a_few_in_order_are_not(tmp_path: Path) -> None:
    texts = [b"document number %d" % n for n in range(600)]
    write(tmp_path, "val", [*texts, texts[9], texts[5], texts[7]])
    (finding,) = audited(tmp_path)[1]
    assert (finding.name, finding.severity) == ("documents-repeated", WARNING)
    write(tmp_path, "val", [*texts, *texts[5:9]])
    (finding,) = audited(tmp_path)[1]
    assert (finding.name, finding.severity) == ("documents-repeated", ERROR)
    assert "4 of them in order, from document 600" in finding.evidence


@given(st.lists(st.integers(-1, 4), max_size=12))
def test_the_longest_run_is_the_longest_of_all(places: list[int]) -> None:
    spans = [places[a:b] for a in range(len(places)) for b in range(a + 1, len(places) + 1)]
    runs = [span for span in spans if span[0] >= 0 and span == [*range(span[0], span[-1] + 1)]]
    length, last, number = longest_run(places)
    assert length == max(map(len, runs), default=0)
    if length:
        assert places[number - length + 1 : number + 1] == [*range(last - length + 1, last + 1)]


# --- against the tokenizer and the corpus


def test_documents_that_are_not_there_are_named(tmp_path: Path) -> None:
    write(tmp_path, "val", VAL[:20])
    (finding,) = audited(tmp_path, OFFICIAL, VAL)[1]
    assert finding.name == "documents-missing"
    assert "20 documents are as in the corpus, 10 are not; first document 20" in finding.evidence


def test_documents_in_another_order_are_named(tmp_path: Path) -> None:
    write(tmp_path, "val", VAL[::-1])
    assert names(tmp_path, OFFICIAL, VAL) == ["documents-missing"]
    assert names(tmp_path, OFFICIAL) == []


def test_text_that_was_folded_before_is_named(tmp_path: Path) -> None:
    write(tmp_path, "val", [text.lower() for text in VAL])
    assert names(tmp_path, OFFICIAL, VAL) == ["lower-cased-text"]
    assert names(tmp_path, OFFICIAL) == ["lower-cased-text"]
    write(tmp_path, "val", [text.lower() for text in VAL[:-1]] + VAL[-1:])
    assert names(tmp_path, OFFICIAL, VAL) == ["lower-cased-text"]


def test_another_tokenizer_s_shards_are_named(tmp_path: Path) -> None:
    write(tmp_path, "val", VAL, imported("unigram"))
    assert names(tmp_path, OFFICIAL) == ["not-the-tokenizer's"]
    write(tmp_path, "val", VAL)
    (finding,) = audited(tmp_path, subject_of(built("byte")))[1]
    assert finding.name == "not-the-tokenizer's" and "BOS is 256" in finding.evidence


def monster(capcode: str = "0") -> Subject:
    """A TokenMonster vocabulary of all bytes, "ab" and a BOS."""
    tokens = [*(bytes([byte]) for byte in range(256)), b"ab", b"<bos>"]
    lines = ["charset: utf-8", "normalization: none", f"capcode: {capcode}", "tokens:"]
    for number, token in enumerate(tokens):
        lines += [f"  - token: TokenMonsterHexEncode{{{token.hex()}}}", f"    id: {number}"]
    return read_vocabulary("\n".join(lines).encode())


@pytest.mark.parametrize("capcode", ["0", "2"])
def test_tokenmonster_s_own_cut_is_no_error(capcode: str, tmp_path: Path) -> None:
    """It may cut "ab" in two where the audit would not, so the ids are not held against ours."""
    texts = [b"ab" * (40 + n) + b"A" for n in range(9)]
    raw_shard(tmp_path / "val.bin", [token for text in texts for token in [257, *text]])
    subject = monster(capcode)
    facts, found = audited(tmp_path, subject, texts)
    assert found == []
    assert "whether all documents of the corpus are there" in facts["not_checked"]
    assert ("capitals" in facts["not_checked"]) is (capcode == "2")
    raw_shard(tmp_path / "val.bin", [257, 97, 999])
    assert names(tmp_path, subject, texts) == ["not-the-tokenizer's"]


def test_tokenmonster_s_text_in_lower_case_and_its_counts_are_seen(tmp_path: Path) -> None:
    raw_shard(tmp_path / "val.bin", [257, *b"ab" * 1500])
    assert names(tmp_path, monster()) == ["lower-cased-text"]
    raw_shard(tmp_path / "val.bin", [257, *b"aB" * 1500])
    raw_shard(tmp_path / "val_bytes.bin", [0, *[2] * 3000])
    assert names(tmp_path, monster()) == ["sidecar-does-not-match"]
    assert names(tmp_path, monster("2")) == []  # what its marks stand for is not known here


# --- byte counts beside the tokens


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda sizes: sizes[:-5], "counts stand beside"),
        (lambda sizes: np.append(sizes[7:], sizes[:7]), "bytes are counted for BOS"),
        (lambda sizes: np.where(sizes, sizes + 1, 0), "bytes are counted, the tokens stand for"),
    ],
)
def test_counts_of_other_tokens_are_named(spoil: Any, says: str, tmp_path: Path) -> None:
    write(tmp_path, "val", VAL)
    sizes = np.append([0], token_stream(imported(), VAL).target_bytes)
    raw_shard(tmp_path / "fineweb_val_bytes_000000.bin", spoil(sizes))
    (finding,) = audited(tmp_path, OFFICIAL)[1]
    assert finding.name == "sidecar-does-not-match" and says in finding.evidence


@pytest.mark.parametrize("moved", [True, False])
def test_counts_are_held_against_each_document_and_the_whole(moved: bool, tmp_path: Path) -> None:
    """Bytes moved from one document to another, or 2 % more in every one."""
    write(tmp_path, "val", VAL)
    stream = token_stream(imported(), VAL)
    sizes = np.append([0], stream.target_bytes).astype(int)
    second = stream.starts + 1
    if moved:
        sizes[second[3]] += sizes[second[7] : second[8] - 1].sum()
        sizes[second[7] : second[8] - 1] = 0
    else:
        sizes[second] += stream.text_bytes // 50
    raw_shard(tmp_path / "fineweb_val_bytes_000000.bin", sizes)
    (finding,) = audited(tmp_path, OFFICIAL)[1]
    assert finding.name == "sidecar-does-not-match"
    assert finding.factor == pytest.approx(1 if moved else 1.02, abs=5e-3)
    assert f"document {3 if moved else 0} has" in finding.evidence


def test_counts_of_documents_in_another_order_are_named(tmp_path: Path) -> None:
    texts = sorted(VAL, key=len)
    texts = [text.decode()[: 50 + 12 * n].encode() for n, text in enumerate(texts)]
    bos = {n: token_stream(imported(), [text]) for n, text in enumerate(texts)}
    tokens = np.concatenate([bos[n].tokens for n in bos])
    sizes = np.concatenate([np.append([0], bos[n].target_bytes) for n in reversed(bos)])
    raw_shard(tmp_path / "val.bin", tokens)
    raw_shard(tmp_path / "val_bytes.bin", sizes)
    assert names(tmp_path, OFFICIAL) == ["sidecar-does-not-match"]


def test_case_marks_with_right_counts_beside_them_are_sound(tmp_path: Path) -> None:
    tokenizer = imported("caseops")
    subject = subject_of(tokenizer)
    stream = token_stream(tokenizer, [mark(text) for text in VAL])
    raw_shard(tmp_path / "val.bin", stream.tokens)
    live = [piece not in MARKS.values() for piece in subject.pieces]
    plain = np.append([0], stream.target_bytes)
    raw_shard(tmp_path / "val_bytes.bin", plain * np.array(live)[stream.tokens])
    assert names(tmp_path, subject, VAL) == []
    raw_shard(tmp_path / "val_bytes.bin", plain)  # as the plain table counts
    (finding,) = audited(tmp_path, subject, VAL)[1]
    assert finding.name == "sidecar-does-not-match"
    assert finding.factor is not None and 1.02 < finding.factor < 1.3


def test_a_sidecar_of_ours_that_lies_is_named(tmp_path: Path) -> None:
    path = tmp_path / "val.bin"
    write_shard(path, [1, 5, 6], fingerprint="", corpus_sha256="", byte_count=0, documents=1)
    path.write_bytes(path.read_bytes()[:-2] + b"\x07\x00")
    (finding,) = audited(tmp_path)[1]
    assert finding.name == "sidecar-does-not-match" and "its sidecar says 3" in finding.evidence


# --- reading


@given(st.lists(st.lists(st.integers(2, 9), max_size=6), min_size=1, max_size=8), st.data())
@settings(deadline=None, max_examples=15)
def test_documents_run_across_the_ends_of_shards(
    tmp_path_factory: pytest.TempPathFactory, texts: list[list[int]], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    stream = np.array([token for text in texts for token in [1, *text]])
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=3).map(sorted))
    paths = [
        raw_shard(folder / f"val_{n}.bin", part) for n, part in enumerate(np.split(stream, cuts))
    ]
    assert [tokens.tolist() for tokens in documents_of(paths, 1)] == texts


@pytest.mark.parametrize("tokens", [[], [1]])
@pytest.mark.parametrize("role", ["val", "train"])
def test_a_shard_without_a_target_is_refused(role: str, tokens: list[int], tmp_path: Path) -> None:
    write(tmp_path, "val", VAL)
    raw_shard(tmp_path / f"{role}_1.bin", tokens)
    with pytest.raises(CorpusError, match=f"{role}_1.bin has {len(tokens)} tokens"):
        audited(tmp_path)


def test_a_shard_of_no_known_role_is_refused(tmp_path: Path) -> None:
    raw_shard(tmp_path / "tokens.bin", [1, 2])
    with pytest.raises(CorpusError, match="neither val nor train by its name"):
        ShardSet().add(tmp_path)
    with pytest.raises(CorpusError, match="byte counts but no tokens"):
        audit_shards(ShardSet(sizes=[tmp_path / "val_bytes.bin"]), None, None)
