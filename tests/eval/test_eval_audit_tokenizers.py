"""Each public mistake in counting bytes, made here on purpose, is found by its name; what is sound
is not."""

import functools
import io
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from audit_support import built, documents, imported
from hypothesis import given, settings
from hypothesis import strategies as st

from tokgolf.errors import TokenizerError
from tokgolf.eval.audit.accounting import Usage, accounting_findings, measure, table_findings
from tokgolf.eval.audit.findings import NAMES, WARNING, Finding, Report
from tokgolf.eval.audit.lossless import (
    check_text,
    folded_findings,
    loss_of,
    stress,
    text_findings,
)
from tokgolf.eval.audit.stress import BYTES, TEXTS, stress_documents
from tokgolf.eval.audit.subject import MARKS, Subject, mark, subject_of, unmark
from tokgolf.eval.audit.tables import pack_table, read_table, with_table
from tokgolf.eval.audit.tokenmonster import (
    is_vocabulary,
    pack_vocabulary,
    read_vocabulary,
    vocabulary_findings,
)
from tokgolf.eval.official import ByteTable, token_stream
from tokgolf.tokenizers import Tokenizer, build_tokenizer, from_asset
from tokgolf.tokenizers.foreign import export_tokenizer, foreign_asset

NORMALISED = ["text-normalised"]


def audited(subject: Subject, texts: tuple[bytes, ...] = ()) -> Report:
    """What the command would say of a tokenizer, without files."""
    texts = texts or documents()
    usage = measure(subject, texts)
    found = accounting_findings(subject, usage, "text")
    found += text_findings(subject, check_text(subject, [("", text) for text in texts]), "text")
    names = {finding.name for finding in found}
    more = text_findings(subject, stress(subject), "stress", few=1) + folded_findings(subject)
    return Report(findings=found + [finding for finding in more if finding.name not in names])


def named(report: Report, severity: str = "") -> list[str]:
    return sorted(f.name for f in report.findings if f.severity == severity or not severity)


@functools.cache
def tokenizer(name: str, folder: str = "") -> Tokenizer:
    if name == "caps":
        return build_tokenizer("bpe", documents(), 500, transform="caps")
    if name == "byte260":
        layout = {"tokenizer_type": "pure_byte", "config": {"byte_offset": 4}, "vocab_size": 260}
        return from_asset(foreign_asset(json.dumps(layout).encode()))
    return built(name)


# --- what is sound


@pytest.mark.parametrize("name", ["bpe", "byte", "sentencepiece", "unigram", "caps", "byte260"])
def test_a_lossless_tokenizer_gives_no_finding(name: str) -> None:
    report = audited(subject_of(tokenizer(name)))
    assert report.findings == [] and report.verdict == "sound"


@pytest.mark.parametrize("suffix", [".tiktoken", ".json"])
def test_sound_files_of_other_libraries_give_no_finding(suffix: str, tmp_path: Any) -> None:
    export_tokenizer(built("bpe"), tmp_path / f"x{suffix}")
    data = (tmp_path / f"x{suffix}").read_bytes()
    assert audited(subject_of(from_asset(foreign_asset(data)))).findings == []


@pytest.mark.parametrize("variant", ["official", "identity", "unigram", "dummy prefix"])
def test_an_official_style_model_only_gives_the_warning_that_it_normalises(variant: str) -> None:
    report = audited(subject_of(imported(variant)))
    assert named(report) == named(report, WARNING) == NORMALISED
    assert report.verdict == "sound with warnings"


# --- models whose bytes are wrong by the challenge's rule


@pytest.mark.parametrize(
    ("variant", "name", "low", "high"),
    [
        ("interior", "space-inside-piece", 1.01, 1.1),
        ("suffix", "space-at-piece-end", 1.2, 1.4),
        ("no bytes", "unknown-counts-zero", 0.9, 0.9999),
        ("no space: official", "no-space-piece", 1.001, 1.3),
        ("no space: dummy prefix", "no-space-piece", 1.001, 1.3),
        ("caseops", "case-marks-counted", 1.02, 1.3),
    ],
)
def test_a_model_that_is_counted_wrong_is_named(
    variant: str, name: str, low: float, high: float
) -> None:
    subject = subject_of(imported(variant))
    report = audited(subject)
    assert named(report, "error") == [name]
    (finding,) = report.errors
    usage = measure(subject, documents())
    assert finding.factor == pytest.approx(usage.factor) and low < usage.factor < high
    assert report.verdict == "wrong"


def test_lower_cased_text_is_named() -> None:
    report = audited(subject_of(imported("casefold")))
    assert named(report, "error") == ["lower-cased-text"]
    assert "comes back as 't" in report.errors[0].evidence


def test_a_vocabulary_of_lower_case_is_a_warning() -> None:
    lower = build_tokenizer("bpe", [text.lower() for text in documents()], 500)
    assert named(audited(subject_of(lower)), WARNING) == ["lower-cased-text"]


def test_a_space_that_bos_swallows_is_a_warning() -> None:
    subject = subject_of(imported("identity"))
    report = audited(subject, (b" one space first", b"none"))
    assert named(report) == ["start-space-not-counted", "text-normalised"]
    (finding,) = [f for f in report.findings if f.name == "start-space-not-counted"]
    assert finding.severity == WARNING and finding.factor == pytest.approx(19 / 20)


# --- tables that others made


def arrays(table: ByteTable) -> dict[str, Any]:
    return {
        "base_bytes": table.base.astype(np.int16),
        "has_leading_space": table.lead,
        "is_boundary_token": table.boundary,
    }


def npz(**columns: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **columns)
    return file.getvalue()


def changed(subject: Subject, how: str) -> ByteTable:
    """The table of a subject with one mistake in it."""
    base, lead, boundary = (
        getattr(subject.table, name).copy() for name in ("base", "lead", "boundary")
    )
    if how == "space":
        base[lead] += 1
    elif how in ("marker", "marker and flag"):
        base[lead] += 3
        lead &= how == "marker and flag"
    elif how == "names":
        base[[*subject.byte_pieces]] = 6
    elif how == "replacement":
        shown = [len(piece.decode("utf-8", "replace").encode()) for piece in subject.pieces]
        base = np.array(shown)
    elif how == "boundary":
        boundary[:] = False
    elif how == "other":
        base[base == 2] = 7
    return ByteTable(base=base, lead=lead, boundary=boundary)


UNICODE = ("caf\u00e9 \u65e5\u672c \U0001f600 na\u00efve ".encode() * 4, *documents())


@pytest.mark.parametrize(
    ("make", "how", "name"),
    [
        (lambda: imported(), "space", "space-counted-twice"),
        (lambda: imported(), "marker", "space-counted-as-marker"),
        (lambda: imported(), "marker and flag", "space-counted-as-marker"),
        (lambda: imported(), "names", "byte-piece-sized-by-name"),
        (lambda: built("byte"), "replacement", "replacement-character-length"),
        (lambda: built("bpe"), "replacement", "replacement-character-length"),
        (lambda: tokenizer("caps"), "marks", "case-marks-counted"),
        (lambda: imported("dummy prefix"), "boundary", "bytes-miscounted"),
        (lambda: built("bpe"), "other", "bytes-miscounted"),
    ],
)
def test_a_wrong_table_is_named(make: Callable[[], Tokenizer], how: str, name: str) -> None:
    subject = subject_of(make())
    table = read_table(npz(**arrays(changed(subject, how))))
    wrong = with_table(subject, table)
    report = audited(wrong, UNICODE)
    assert named(report, "error") == [name]
    assert report.errors[0].factor == pytest.approx(measure(wrong, UNICODE).factor)


@pytest.mark.parametrize("make", [lambda: imported(), lambda: built("bpe")])
def test_a_right_table_gives_no_error(make: Callable[[], Tokenizer]) -> None:
    subject = subject_of(make())
    longer = {key: np.append(column, [0, 0]) for key, column in arrays(subject.table).items()}
    longer["is_boundary"] = longer.pop("is_boundary_token")
    assert not audited(with_table(subject, read_table(npz(**longer))), UNICODE).errors


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_the_reasons_add_up_to_the_whole_difference(data: st.DataObject) -> None:
    variant = data.draw(st.sampled_from(["official", "no bytes", "no space: dummy prefix"]))
    subject = subject_of(imported(variant))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    size = len(subject.pieces)
    table = ByteTable(
        base=rng.integers(0, 9, size), lead=rng.random(size) < 0.5, boundary=rng.random(size) < 0.1
    )
    usage = measure(with_table(subject, table), UNICODE)
    findings = accounting_findings(with_table(subject, table), usage, "text")
    extra = sum(f.factor - 1 for f in findings if f.factor is not None)
    assert 1 + extra == pytest.approx(usage.factor)


def test_what_was_never_used_is_a_warning() -> None:
    subject = with_table(subject_of(imported()), changed(subject_of(imported()), "names"))
    report = audited(subject, (b"The assert statement",))
    assert named(report, "error") == [] and "byte-piece-sized-by-name" in named(report, WARNING)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no table of bytes"),
        (b"PK\x03\x04 no zip", "no table of bytes"),
        (npz(base_bytes=np.ones(3)), "no table of bytes .*has_leading_space"),
        (
            npz(base_bytes=np.ones(3), has_leading_space=np.ones(3), is_boundary=np.ones(3)),
            "kinds 'fff'",
        ),
        (
            npz(base_bytes=[1], has_leading_space=[True, False], is_boundary=[True]),
            r"shapes \[\(1,\), \(2,\)\]",
        ),
        (npz(base_bytes=[-1], has_leading_space=[True], is_boundary=[True]), "from -1 to -1"),
        (npz(base_bytes=[{}], has_leading_space=[True], is_boundary=[True]), "no table of bytes"),
    ],
)
def test_what_is_no_table_is_one_line(data: bytes, message: str) -> None:
    with pytest.raises(TokenizerError, match=message) as caught:
        pack_table(data)
    assert "\n" not in str(caught.value)


def test_a_table_of_another_tokenizer_is_refused() -> None:
    with pytest.raises(TokenizerError, match="table has 2 tokens, the tokenizer 257"):
        short = ByteTable(base=np.ones(2, int), lead=np.ones(2, bool), boundary=np.ones(2, bool))
        with_table(subject_of(built("byte")), short)


# --- TokenMonster


def yaml(tokens: list[bytes], **settings: str) -> bytes:
    lines = [f"{key}: {value}" for key, value in settings.items()] + ["tokens:"]
    for number, token in enumerate(tokens):
        try:
            text = json.dumps(token.decode())
        except UnicodeDecodeError:
            text = f'"TokenMonsterHexEncode{{{token.hex()}}}"'
        lines += [f"    - token:   {text}", f"      id:      {number}", "      encoded: true"]
    return "\n".join(lines).encode() + b"\n"


WHOLE = {"charset": "none", "normalization": '"none"', "capcode": "0"}
ALL = [bytes([byte]) for byte in range(256)]
WORDS = [b"the ", b" the", b"\xe2\x80", b"caf", b'quo"te\\', b"\n\n"]


def test_a_vocabulary_of_all_bytes_is_sound_and_greedy() -> None:
    data = yaml(ALL + WORDS, **WHOLE)
    assert is_vocabulary(data) and not is_vocabulary(b'{"model": 1}') and not is_vocabulary(b"")
    subject = read_vocabulary(data)
    assert subject.encode([b"x the the \n\n"])[0] == [ord("x"), 257, 257, ord(" "), 261]
    assert not audited(subject, UNICODE).findings and not vocabulary_findings(subject)


def test_of_two_tokens_with_the_same_bytes_the_later_is_written() -> None:
    subject = read_vocabulary(yaml([*ALL, b"ab", b"\x80", b" "], **WHOLE))
    assert subject.encode([b"ab \x80"])[0] == [256, 258, 257]
    base = subject.table.base.copy()
    assert base[128] == base[32] == 0 and subject.facts["vocab_size"] == 259
    assert not audited(with_table(subject, replace(subject.table, base=base))).findings


def test_marks_of_a_capcode_vocabulary_are_counted_by_a_plain_table() -> None:
    subject = read_vocabulary(yaml([*ALL, b"the", b" D", b".CD"], **WHOLE | {"capcode": "2"}))
    assert not subject.exact and not table_findings(subject)
    table = ByteTable(
        base=np.array([len(piece) for piece in subject.pieces]),
        lead=subject.table.lead,
        boundary=subject.table.boundary,
    )
    assert [f.name for f in table_findings(with_table(subject, table))] == ["case-marks-counted"]
    wrong = with_table(subject, changed(subject, "replacement"))
    assert "replacement-character-length" in [f.name for f in table_findings(wrong)]


def test_lengths_of_the_replacement_character_are_found_in_its_table() -> None:
    subject = read_vocabulary(yaml(ALL + WORDS, **WHOLE))
    wrong = with_table(subject, changed(subject, "replacement"))
    assert named(audited(wrong, UNICODE), "error") == ["replacement-character-length"]


def test_a_vocabulary_without_all_bytes_loses_text() -> None:
    subject = read_vocabulary(yaml([byte for byte in ALL if byte < b"\x80"], **WHOLE))
    report = audited(subject, UNICODE)
    assert named(report, "error") == ["unknown-counts-zero"]
    lost = sum(byte >= 128 for text in UNICODE for byte in text)
    assert report.errors[0].factor == pytest.approx(1 - lost / sum(map(len, UNICODE)))


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"capcode": "2"}, ["case-marks-counted"]),
        ({"normalization": '"lowercase"'}, ["lower-cased-text"]),
        ({"normalization": "nfd"}, ["text-normalised"]),
    ],
)
def test_settings_of_a_vocabulary_are_findings(settings: dict[str, str], names: list[str]) -> None:
    found = vocabulary_findings(read_vocabulary(yaml(ALL, **WHOLE | settings)))
    assert [finding.name for finding in found] == names


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (yaml([], **WHOLE), "0 tokens have 0 ids"),
        (yaml([b"a", b"b"], **WHOLE).replace(b"  1\n", b"  0\n"), "2 tokens have 1 ids"),
        (yaml([b"a"], **WHOLE).replace(b"  0\n", b"  x\n"), "no id of a token"),
        (yaml([b"a"], **WHOLE).replace(b'"a"', b'"a'), "no token in quotes"),
        (yaml([b"a" * 300], **WHOLE), "has 300 bytes; 1 to 256 can be"),
        (yaml([b"a"], **WHOLE).replace(b"  0\n", b"  99999999\n"), "below 262144"),
    ],
)
def test_what_is_no_vocabulary_is_one_line(data: bytes, message: str) -> None:
    with pytest.raises(TokenizerError, match=message) as caught:
        pack_vocabulary(data)
    assert "\n" not in str(caught.value)


# --- texts


def test_a_normalising_model_s_text_is_normalised_once() -> None:
    """A ligature before a combining accent: normalised twice it would be another text."""
    text = "\ufb01\u0301".encode()
    stream = token_stream(imported(), [text])
    assert stream.tokens.tolist() == [1, *imported().encode(text).tolist()]
    assert stream.text_bytes.tolist() == stream.document_bytes.tolist() == [4]
    assert stream.decoded.all() and subject_of(imported()).text(text) == "fi\u0301".encode()


@pytest.mark.parametrize(
    ("data", "back", "name"),
    [
        (b"same", b"same", None),
        (b" a  b\n", b"a b", "text-normalised"),
        ("\ufb01\u0301".encode(), "fi\u0301".encode(), "text-normalised"),
        (b"The END", b"the end", "lower-cased-text"),
        ("Stra\u00dfe".encode(), b"strasse", "lower-cased-text"),
        (b"abc", b"ab", "text-changed"),
        ("caf\u00e9".encode(), b"cafe", "text-changed"),
        (b"a\xff", b"a\xef\xbf\xbd", "text-changed"),
    ],
)
def test_a_loss_has_its_name(data: bytes, back: bytes, name: str | None) -> None:
    assert loss_of(data, back) == name


@given(st.text("aBcD \ue001\ue002\ue003\ue004\u00c9\n", max_size=20))
def test_case_marks_come_off_again(text: str) -> None:
    marked = mark(text.encode())
    assert unmark(marked) == text.encode() and marked.lower() == marked
    live = marked.decode()
    for character in MARKS.values():
        live = live.replace(character.decode(), "")
    plain = text.encode()
    for character in MARKS.values():
        plain = plain.replace(character, b"")
    assert live.encode() == plain.lower()


def test_case_marks_are_the_challenge_s() -> None:
    marked = mark("The NASA of OpenAI, I am x\ue001".encode()).decode()
    assert marked == ("\ue001the \ue002nasa of \ue001open\ue003a\ue003i, \ue001i am x\ue004\ue001")


def test_the_stress_set_is_small_and_has_no_document_twice() -> None:
    texts = stress_documents()
    assert len(texts) == len(TEXTS) + len(BYTES) == len({*texts.values()})
    assert 2_000 < sum(map(len, texts.values())) < 8_000


def test_every_finding_has_a_meaning() -> None:
    finding = Finding(name="ln2-twice", severity="error", evidence="", factor=None, advice="")
    assert Report(findings=[finding]).as_dict()["findings"][0]["means"] == NAMES["ln2-twice"]
    with pytest.raises(KeyError):
        Report(findings=[replace(finding, name="no name")]).as_dict()


def test_bytes_a_token_are_those_of_the_stream() -> None:
    subject = subject_of(built("byte"))
    usage: Usage = measure(subject, [b"ab", b"cde"])
    assert (usage.targets, usage.true, usage.documents) == (6, 5, 2)
    assert usage.bytes_per_token == 5 / 6
