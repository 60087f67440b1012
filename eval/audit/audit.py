"""The audit: files in, a report out. What a file is shows in its name and first bytes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tokgolf.corpora import Corpus
from tokgolf.errors import ConfigError, TokenizerError, TokgolfError
from tokgolf.eval.audit.accounting import (
    TABLE_NAMES,
    Usage,
    accounting_findings,
    measure,
    table_findings,
)
from tokgolf.eval.audit.claims import (
    CHALLENGE_BYTES,
    OTHER_TEXT,
    SAME_TEXT,
    Claim,
    Reference,
    claim_findings,
    corrected,
)
from tokgolf.eval.audit.findings import WARNING, Finding, Report
from tokgolf.eval.audit.library import library_subject
from tokgolf.eval.audit.lossless import check_text, folded_findings, stress, text_findings
from tokgolf.eval.audit.record import record_findings
from tokgolf.eval.audit.shards import ShardSet, audit_shards
from tokgolf.eval.audit.subject import Subject, subject_of
from tokgolf.eval.audit.tables import read_table, with_table
from tokgolf.eval.audit.tokenmonster import is_vocabulary, read_vocabulary, vocabulary_findings
from tokgolf.eval.official import ByteTable
from tokgolf.tokenizers import from_asset, load_tokenizer
from tokgolf.tokenizers.asset import MAGIC
from tokgolf.tokenizers.foreign import MAX_FILE_BYTES
from tokgolf.tokenizers.isolated import foreign_asset_isolated

_CORPUS_TEXT = 2000  # documents of the corpus that are decoded again


@dataclass(kw_only=True)
class _Given:
    """The paths, sorted by what they are."""

    tokenizers: list[tuple[str, Subject]] = field(default_factory=list)
    tables: list[tuple[str, ByteTable]] = field(default_factory=list)
    shards: ShardSet = field(default_factory=ShardSet)

    @property
    def has_shards(self) -> bool:
        return bool(self.shards.val or self.shards.train or self.shards.sizes)


def audit(
    paths: Sequence[Path],
    *,
    corpus: Corpus,
    own_corpus: bool = True,
    tokenizer: Path | None = None,
    claim: Claim | None = None,
    record: Path | None = None,
    challenge: bool = False,
) -> Report:
    """Audit tokenizers, tables of bytes, shards, and a claim.

    Bytes are counted on `corpus`; `own_corpus` says that it is the text that the shards or the
    claim are about, so that they are held against it too. `tokenizer` is whose table or shards
    the others are. `record` is the folder of the claim, whose logs and files are held against it.
    With `challenge` the claim is about the challenge's whole validation split.
    Raises `TokgolfError` for what cannot be read, or does not say enough.
    """
    given, report = _sorted(paths), Report()
    named = [*given.tokenizers]
    if tokenizer is not None:
        named.append((tokenizer.name, open_subject(tokenizer)))
    if not (named or given.tables or given.has_shards or claim):
        raise ConfigError("there is nothing to audit; give a file, or a claim")
    if (given.tables or given.has_shards or claim) and len(named) > 1:
        raise ConfigError(
            f"{len(named)} tokenizers are given with a table, shards or a claim; give its own alone"
        )
    if given.tables and not named:
        raise ConfigError(f"whose table is {given.tables[0][0]}? Give its tokenizer beside it")
    if len(given.tables) > 1:
        raise ConfigError(f"{len(given.tables)} tables are given; audit one at a time")
    if challenge and claim is None:
        raise ConfigError("--challenge is about a claim; add --claim, or --val-loss and --val-bpb")
    if own_corpus and not named:
        raise ConfigError(
            f"nothing is there to encode {corpus.name} with; add the tokenizer, or give no corpus"
        )
    usage = None
    for name, subject in named:
        if given.tables:
            name, subject = given.tables[0][0], with_table(subject, given.tables[0][1])
        usage = _tokenizer(report, name, subject, corpus)
    if given.has_shards:
        documents = (d.data for d in corpus) if own_corpus and named else None
        facts, found = audit_shards(given.shards, named[0][1] if named else None, documents)
        report.facts["shards"] = facts
        report.findings += found
        matched = not any(f.name == "sidecar-does-not-match" for f in found)
        if "val_bytes" in facts and named[0][1].decodes and matched:
            _not_used(report, 0, "the byte counts beside the shards are right")
    if claim is not None:
        reference = _reference(corpus, own_corpus, challenge, claim, usage, report)
        right = _claim(report, claim, reference)
        if reference is not None and right and not given.tables:
            _not_used(report, reference.tolerance, "the claim counts the bytes of the text")
    if record is not None:
        report.findings += record_findings(record)
    return report


def open_subject(path: Path) -> Subject:
    """The tokenizer in a file: .tok, .golf, what tokgolf imports, or TokenMonster's YAML.

    Raises `TokgolfError`, naming the path, for anything else.
    """
    with open(path, "rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if data.startswith(MAGIC):
        return subject_of(load_tokenizer(path))
    if data.startswith(b"GOLF"):
        from tokgolf.artifact.load import load_artifact

        return subject_of(load_artifact(path).tokenizer)
    try:
        if path.suffix == ".vocab" and not is_vocabulary(data):
            raise TokenizerError(
                "a binary .vocab is not read; take TokenMonster's YAML, or SentencePiece's .model"
            )
        return _foreign(data)
    except TokgolfError as error:
        raise type(error)(f"{path}: {error}") from error


def _foreign(data: bytes) -> Subject:
    if len(data) > MAX_FILE_BYTES:
        raise TokenizerError(f"over {MAX_FILE_BYTES} bytes is no tokenizer file; check the path")
    if is_vocabulary(data):
        return read_vocabulary(data)
    try:
        return subject_of(from_asset(foreign_asset_isolated(data, None)))
    except TokenizerError:
        if data.lstrip()[:1] != b"{":
            raise
        return library_subject(data)


def _sorted(paths: Sequence[Path]) -> _Given:
    given = _Given()
    for path in paths:
        if path.is_dir() or path.suffix == ".bin":
            given.shards.add(path)
        elif path.suffix == ".npz":
            try:
                with open(path, "rb") as file:
                    given.tables.append((path.name, read_table(file.read(MAX_FILE_BYTES))))
            except TokgolfError as error:
                raise type(error)(f"{path}: {error}") from error
        else:
            given.tokenizers.append((path.name, open_subject(path)))
    return given


def _tokenizer(report: Report, name: str, subject: Subject, corpus: Corpus) -> Usage | None:
    """Add what is to be said of one tokenizer and its table; how the corpus used it, if it can."""
    several = "tokenizers" in report.facts
    facts = report.facts.setdefault("tokenizers", {})
    if not subject.exact:
        facts[name] = subject.facts
        found = vocabulary_findings(subject) + table_findings(subject)
        report.findings += _said_of(name, found, several)
        return None
    usage = measure(subject, (document.data for document in corpus))
    texts = (
        (document.id, document.data)
        for document, _ in zip(corpus, range(_CORPUS_TEXT), strict=False)
    )
    built_in, own = stress(subject), check_text(subject, texts)
    found = accounting_findings(subject, usage, corpus.name)
    found += text_findings(subject, own, corpus.name)
    names = {finding.name for finding in found}
    more = text_findings(subject, built_in, "the stress set", few=1) + folded_findings(subject)
    if subject.kind == "tokenmonster":
        more = vocabulary_findings(subject) + more
    found += [finding for finding in more if finding.name not in names]
    report.findings += _said_of(name, found, several)
    facts[name] = {
        **subject.facts,
        **built_in.facts("stress"),
        **own.facts("corpus"),
        "corpus": corpus.name,
        "bytes": usage.raw,
        "text_bytes": usage.true,
        "counted_bytes": usage.counted if subject.stretches else None,
        "factor": usage.factor if subject.stretches else None,
        "factor_of_raw": usage.counted / usage.raw if subject.stretches else None,
        "tokens": usage.tokens,
        "bytes_per_token": usage.bytes_per_token,
    }
    return usage


def _not_used(report: Report, slack: float, why: str) -> None:
    """What the plain table would count wrong does no harm where the bytes are right without it.

    That shows only of a factor further from 1 than `slack`.
    """
    report.findings = [
        replace(each, severity=WARNING, evidence=f"{each.evidence}; but {why}")
        if each.name in TABLE_NAMES and each.factor is not None and abs(each.factor - 1) > slack
        else each
        for each in report.findings
    ]


def _said_of(name: str, findings: list[Finding], several: bool) -> list[Finding]:
    if not several:
        return findings
    return [replace(each, evidence=f"{name}: {each.evidence}") for each in findings]


def _reference(
    corpus: Corpus,
    own_corpus: bool,
    challenge: bool,
    claim: Claim,
    usage: Usage | None,
    report: Report,
) -> Reference | None:
    """What the claim is held against: the challenge's split, the shards, or the corpus."""
    counted = usage.factor if usage else 1.0
    shards = report.facts.get("shards", {})
    if challenge:
        if claim.targets is None:
            raise ConfigError(
                "the claim does not say how many tokens were scored; add --tokens for --challenge"
            )
        return Reference(
            name=f"the challenge's split ({CHALLENGE_BYTES:,} bytes)",
            bytes_per_token=CHALLENGE_BYTES / claim.targets,
            targets=None,
            tolerance=SAME_TEXT,
            counted=counted,
            whole=True,
        )
    if shards.get("val_bytes"):
        targets = shards["val_tokens"] - 1
        return Reference(
            name="the val shards",
            bytes_per_token=shards["val_bytes"] / targets,
            targets=targets,
            tolerance=SAME_TEXT,
            counted=counted,
        )
    if not usage or not own_corpus:
        return None
    # Far more targets than the corpus has are those of a longer text that it is a sample of.
    scored = (claim.targets or math.inf) / usage.targets
    return Reference(
        name=corpus.name,
        bytes_per_token=usage.bytes_per_token,
        targets=usage.targets if scored < 1.5 else None,
        tolerance=min(OTHER_TEXT, SAME_TEXT + abs(scored - 1)),
        counted=counted,
    )


def _claim(report: Report, claim: Claim, reference: Reference | None) -> bool:
    """Add what is to be said of a claim; whether no error is."""
    found = claim_findings(claim, reference)
    report.findings += found
    facts: dict[str, Any] = {"pairs": len(claim.pairs), "targets": claim.targets}
    if claim.pairs:
        final = claim.pairs[-1]
        facts |= {
            "val_loss": final.loss,
            "val_bpb": final.bpb,
            "bytes_per_token": final.bytes_per_token,
            "held_against": "itself alone",
        }
        if reference is not None:
            off = any(finding.factor is not None for finding in found)
            facts |= {
                "held_against": reference.name,
                "true_bytes_per_token": reference.bytes_per_token,
                "tolerance": reference.tolerance,
                "factor": final.bytes_per_token / reference.bytes_per_token,
                "corrected_bpb": corrected(final, reference) if off else final.bpb,
            }
    report.facts["claim"] = facts
    return all(finding.severity == WARNING for finding in found)
