"""What a tokenizer gives back of the text it was given: all, all but what nmt_nfkc erases, or less.

Two texts are alike if nmt_nfkc makes the same of both. What is lost beyond that is an error with
a name: capitals, or more.
"""

import os.path
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from tokgolf.eval.audit.findings import ERROR, WARNING, Finding, shown
from tokgolf.eval.audit.stress import BYTES, CASE, stress_documents
from tokgolf.eval.audit.subject import Subject
from tokgolf.eval.official import normalise
from tokgolf.tokenizers.base import is_text, text_runs

_BATCH = 256
FOLDED = 100  # so many pieces of words, all in lower case, are no chance
_OTHER = re.compile(rb"[^A-Za-z]")


@dataclass(frozen=True, kw_only=True)
class Losses:
    """How many documents came back exactly, and how many alike; an example of each kind of loss."""

    documents: int
    exact: int
    alike: int
    examples: dict[str, str]

    def facts(self, where: str) -> dict[str, Any]:
        """Counts by name, for a report."""
        return {
            f"{where}_documents": self.documents,
            f"{where}_exact": self.exact,
            f"{where}_exact_or_normalised": self.alike,
        }


def check_text(subject: Subject, documents: Iterable[tuple[str, bytes]]) -> Losses:
    """Encode and decode each named document, in batches."""
    total = exact = alike = 0
    examples: dict[str, str] = {}
    source = iter(documents)
    while batch := list(islice(source, _BATCH)):
        encoded = subject.encode([data for _, data in batch])
        for (name, data), ids in zip(batch, encoded, strict=True):
            back = subject.decode(ids)
            loss = loss_of(data, back)
            total += 1
            exact += loss is None
            alike += loss in (None, "text-normalised")
            if loss is not None and loss not in examples:
                place = len(os.path.commonprefix([data, back]))
                examples[loss] = f"{name}: {shown(data, place)} comes back as {shown(back, place)}"
    return Losses(documents=total, exact=exact, alike=alike, examples=examples)


def stress(subject: Subject) -> Losses:
    """`check_text` on the built-in documents, the one with capitals first."""
    documents = {CASE: b"", **stress_documents()}
    for name in BYTES if subject.text_only else ():
        del documents[name]
    return check_text(subject, documents.items())


def text_findings(subject: Subject, losses: Losses, where: str, *, few: int = 0) -> list[Finding]:
    """One finding for each kind of loss; characters that are unknown are told elsewhere.

    If no more than `few` documents lose more than normalising does, it is a warning.
    """
    found = []
    rare = losses.documents - losses.alike <= few
    for name, example in losses.examples.items():
        if name == "text-changed" and subject.unknown >= 0 and subject.stretches:
            continue
        warning = name == "text-normalised"
        same = losses.exact if warning else losses.alike
        found.append(
            Finding(
                name=name,
                severity=WARNING if warning or rare else ERROR,
                evidence=f"{same} of {losses.documents} documents of {where} come back "
                f"{'exactly' if warning else 'but for normalisation'}; {example}",
                factor=None,
                advice="name the text that is scored: its bytes are of the normalised text"
                if warning
                else "score text that keeps what was lost, or its bytes buy an easier text",
            )
        )
    return found


def folded_findings(subject: Subject) -> list[Finding]:
    """A warning if no piece of two letters has a capital: then the text was folded before."""
    own = (piece for token, piece in enumerate(subject.pieces) if token not in subject.byte_pieces)
    words = [piece for piece in own if len(_OTHER.sub(b"", piece)) > 1]
    lower = sum(piece.islower() for piece in words)
    if subject.case_marks or lower < max(FOLDED, len(words)):
        return []
    return [
        Finding(
            name="lower-cased-text",
            severity=WARNING,
            evidence=f"none of {len(words):,} pieces with two letters or more has a capital: the "
            "vocabulary was learned from text in lower case",
            factor=None,
            advice="audit the shards too: text that was folded before shows in them",
        )
    ]


def loss_of(data: bytes, back: bytes) -> str | None:
    """The kind of loss by which one became the other; None if they are the same.

    b"a  b", b"a b" -> "text-normalised"; b"A", b"a" -> "lower-cased-text"
    """
    if data == back:
        return None
    before, after = _settled(data), _settled(back)
    if before == after:
        return "text-normalised"
    if _settled(_folded(before)) == _settled(_folded(after)):
        return "lower-cased-text"
    return "text-changed"


def _settled(data: bytes) -> bytes:
    """What nmt_nfkc leaves of the text, once it changes nothing more; other bytes stay."""
    parts = []
    for run in text_runs(data):
        if not is_text(run):
            parts.append(run.encode("utf-8", "surrogateescape"))
            continue
        text, again = run.encode(), normalise(run.encode())
        while text != again:
            text, again = again, normalise(again)
        parts.append(text)
    return b"".join(parts)


def _folded(data: bytes) -> bytes:
    text = data.decode("utf-8", "surrogateescape").casefold()
    return text.encode("utf-8", "surrogateescape")
