"""Counted bytes against true bytes, token by token and document by document, with the reasons.

For each token there is what a table counts for it and what it stands for. Where they differ the
way they differ tells the reason (`_reasons`); how often a corpus uses the token tells what the
reason is worth. What no token explains (unknown characters, a space in three pieces, a space at
the start) is counted on the documents. The sum of all that must be the difference exactly.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tokgolf.eval.audit.findings import ERROR, WARNING, Finding, shown
from tokgolf.eval.audit.subject import MARKS, Subject
from tokgolf.tokenizers.sentencepiece_bpe import SPACE
from tokgolf.tokenizers.statistics import batches

_ADVICE = {
    "space-counted-twice": "strip U+2581 from the piece before counting, or drop the flag",
    "space-counted-as-marker": "compare with U+2581 itself, and strip it before counting",
    "no-space-piece": "put U+2581 into the vocabulary, or count bytes on the text",
    "space-inside-piece": "count each U+2581 as one byte, or train with split_by_whitespace",
    "space-at-piece-end": "count each U+2581 as one byte, or train without "
    "treat_whitespace_as_suffix",
    "byte-piece-sized-by-name": "count a byte piece as 1",
    "unknown-counts-zero": "train with byte_fallback, so that every character has tokens",
    "replacement-character-length": "count the token's own bytes, never len(decode([id]))",
    "case-marks-counted": "count bytes on the text without marks (a sidecar made from it)",
    "start-space-not-counted": "count bytes on the text",
    "bytes-miscounted": "count bytes on the documents and compare the tables",
}
# What another count of the bytes puts right; nothing does for characters that are lost.
TABLE_NAMES = {*_ADVICE} - {"unknown-counts-zero"}


@dataclass
class Usage:
    """What the documents of a corpus came to."""

    counts: NDArray[np.int64]
    documents: int = 0
    tokens: int = 0
    counted: int = 0
    true: int = 0
    raw: int = 0
    escaped_bytes: int = 0
    start_spaces: int = 0
    examples: dict[int, bytes] = field(default_factory=dict)

    @property
    def factor(self) -> float:
        """Counted bytes over true ones."""
        return self.counted / self.true

    @property
    def bytes_per_token(self) -> float:
        """True bytes a target of the challenge's stream, in which each document has a BOS."""
        return self.true / self.targets

    @property
    def targets(self) -> int:
        """Tokens and a BOS for each document, without the first BOS."""
        return self.tokens + self.documents - 1


def measure(subject: Subject, documents: Iterable[bytes]) -> Usage:
    """Encode the documents and count."""
    usage = Usage(counts=np.zeros(len(subject.pieces), np.int64))
    for batch in batches(documents):
        for data, found in zip(batch, subject.encode(batch), strict=True):
            ids = np.asarray(found, np.int64)
            text = subject.text(data)
            usage.documents += 1
            usage.tokens += len(ids)
            usage.raw += len(data)
            usage.true += len(text)
            usage.counts += np.bincount(ids, minlength=len(subject.pieces))
            usage.counted += _counted(subject, ids)
            usage.escaped_bytes += _escaped(ids, subject.escaped_space, text)
            usage.start_spaces += _start_space(subject, ids, text)
            if subject.unknown >= 0 and subject.unknown not in usage.examples:
                if (ids == subject.unknown).any():
                    usage.examples[subject.unknown] = data
    return usage


def accounting_findings(subject: Subject, usage: Usage, where: str) -> list[Finding]:
    """What the table gets wrong; `where` names the corpus in the evidence."""
    if not subject.stretches:
        return []
    mid = subject.table.base + subject.table.lead
    delta = mid - subject.sizes
    found = []
    explained = 0
    reasons = {} if subject.counted is not None else _reasons(subject, delta)
    for name, tokens in reasons.items():
        extra = int((usage.counts[tokens] * delta[tokens]).sum())
        explained += extra
        token = max(tokens, key=lambda each: (int(usage.counts[each]), -each))
        evidence = (
            f"{len(tokens):,} pieces, e.g. {shown(subject.pieces[token])} (id {token}): "
            f"{int(mid[token])} bytes counted, {int(subject.sizes[token])} true; "
            f"{int(usage.counts[tokens].sum()):,} uses in {where}"
        )
        found.append(_finding(name, evidence, extra, usage))
    if subject.escaped_space:
        explained += usage.escaped_bytes
        evidence = (
            f"U+2581 is no piece: a space without one is 3 tokens, for {usage.escaped_bytes:,} "
            f"bytes too many in {where}"
        )
        found.append(_finding("no-space-piece", evidence, usage.escaped_bytes, usage, always=True))
    if usage.start_spaces:
        explained -= usage.start_spaces
        evidence = f"{usage.start_spaces:,} documents of {where} start with a space after BOS"
        found.append(_finding("start-space-not-counted", evidence, -usage.start_spaces, usage))
    rest = usage.counted - usage.true - explained
    unknown = int(usage.counts[subject.unknown]) if subject.unknown >= 0 else 0
    if subject.unknown >= 0:
        example = shown(usage.examples.get(subject.unknown, b""))
        evidence = (
            f"there are no byte pieces; {unknown:,} unknown tokens in {where}"
            + (f", the first in {example}" if unknown else "")
            + f", for {-rest if unknown else 0:,} bytes"
        )
        extra = rest if unknown else 0
        found.append(_finding("unknown-counts-zero", evidence, extra, usage, always=True))
        rest -= extra
    if rest:
        evidence = (
            f"{usage.counted:,} bytes counted in {where}, {usage.true:,} true; {rest:+,} left"
        )
        found.append(_finding("bytes-miscounted", evidence, rest, usage))
    return found


def table_findings(subject: Subject) -> list[Finding]:
    """What the table gets wrong of a tokenizer that no text can be encoded with here."""
    mid = subject.table.base + subject.table.lead
    found = []
    for name, tokens in _reasons(subject, mid - subject.sizes).items():
        token = tokens[0]
        evidence = (
            f"{len(tokens):,} pieces, e.g. {shown(subject.pieces[token])} (id {token}): "
            f"{int(mid[token])} bytes counted, {int(subject.sizes[token])} true"
        )
        found.append(
            Finding(name=name, severity=ERROR, evidence=evidence, factor=None, advice=_ADVICE[name])
        )
    return found


def _finding(
    name: str, evidence: str, extra: int, usage: Usage, *, always: bool = False
) -> Finding:
    """An error if it changes the count (or always); else a warning that it could."""
    small = name == "start-space-not-counted"
    return Finding(
        name=name,
        severity=ERROR if always or (extra and not small) else WARNING,
        evidence=evidence,
        factor=1 + extra / usage.true,
        advice=_ADVICE[name],
    )


def _reasons(subject: Subject, delta: NDArray[np.int64]) -> dict[str, list[int]]:
    """The tokens whose count is wrong, by reason."""
    found: dict[str, list[int]] = {}
    for token in np.flatnonzero(delta).tolist():
        if token != subject.unknown:
            found.setdefault(_reason(subject, token, int(delta[token])), []).append(token)
    return found


def _reason(subject: Subject, token: int, delta: int) -> str:
    piece, table = subject.pieces[token], subject.table
    inside = piece.removeprefix(SPACE).count(SPACE)
    marks = sum(map(piece.count, MARKS.values())) if subject.case_marks else 0
    if token in subject.byte_pieces:
        return "byte-piece-sized-by-name" if table.base[token] == len(piece) else "bytes-miscounted"
    if marks and delta == 3 * marks:
        return "case-marks-counted"
    if subject.kind != "sentencepiece" and 0 < delta == len(piece) - subject.sizes[token]:
        return "case-marks-counted"  # bytes of the piece that are none of the text
    if delta == 1 and table.lead[token]:
        return "space-counted-twice"
    if piece.startswith(SPACE) and table.base[token] == len(piece):
        return "space-counted-as-marker"
    if inside and delta == 2 * inside:
        at_end = piece.endswith(SPACE) and piece.strip(SPACE) == piece.removesuffix(SPACE)
        return "space-at-piece-end" if at_end else "space-inside-piece"
    shown_size = len(piece.decode("utf-8", "replace").encode())
    if shown_size != len(piece) and table.base[token] == shown_size:
        return "replacement-character-length"
    return "bytes-miscounted"


def _counted(subject: Subject, ids: NDArray[np.int64]) -> int:
    """The bytes that the table counts for a document; after BOS, or what stands for one."""
    if subject.counted is not None:
        return subject.counted(ids)
    table = subject.table
    if subject.bos_id >= 0:
        return int(table.target_bytes(np.concatenate([[subject.bos_id], ids])).sum())
    return int(table.base[ids[:1]].sum() + table.target_bytes(ids).sum()) if len(ids) else 0


def _escaped(ids: NDArray[np.int64], space: tuple[int, ...], text: bytes) -> int:
    """The bytes too many of spaces written as the bytes in `space`: 2 each.

    One that was only put before the text stands for nothing, so it is 3.
    ids=[5, 1, 2, 3, 9], space=(1, 2, 3) -> 2
    """
    if not space or len(ids) < len(space):
        return 0
    last = len(ids) - len(space) + 1
    hits = np.ones(last, bool)
    for place, token in enumerate(space):
        hits &= ids[place : place + last] == token
    return 2 * int(hits.sum()) + int(hits[0] and not text.startswith(b" "))


def _start_space(subject: Subject, ids: NDArray[np.int64], text: bytes) -> int:
    """1 if the text starts with a space that the table does not count because it follows BOS."""
    if subject.counted is not None or not len(ids) or not text.startswith(b" "):
        return 0
    after_boundary = subject.bos_id < 0 or subject.table.boundary[subject.bos_id]
    return int(subject.table.lead[ids[0]] and after_boundary)
