"""What an audit says: findings by name, each with evidence and a factor, and one verdict.

An error means that a number rests on wrong bytes, on text that is not the corpus', or does not
follow from its own parts. A warning means that the text is changed, but only by what nmt_nfkc
changes too (white space, compatibility forms), and the bytes counted are those of the changed
text; or that something wrong is there and was not met, or may be there and cannot be seen. A
sound subject has no error.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

ERROR, WARNING = "error", "warning"

# Every name that a finding can have, and what it means.
NAMES = {
    "space-counted-twice": "the table counts a piece's space in its bytes and once more as a flag",
    "space-counted-as-marker": "the table counts a piece's space as the three bytes of U+2581",
    "no-space-piece": "a lone space has no piece and is written as three byte pieces",
    "space-inside-piece": "spaces inside pieces are counted as the three bytes of U+2581",
    "space-at-piece-end": "spaces at the ends of pieces are counted as the three bytes of U+2581",
    "byte-piece-sized-by-name": "a byte piece is counted as the six characters of its name",
    "unknown-counts-zero": "characters without a token are scored as one that stands for no byte",
    "replacement-character-length": "a token that is no UTF-8 alone is counted as U+FFFD, 3 bytes",
    "case-marks-counted": "marks that stand for no byte of the text are counted",
    "start-space-not-counted": "a space at the start of a document is not counted",
    "bytes-miscounted": "counted bytes are not the text's, for none of the known reasons",
    "lower-cased-text": "capitals are lost, so an easier text is scored",
    "text-normalised": "text is changed by what nmt_nfkc changes too",
    "text-changed": "text is changed by more than nmt_nfkc changes",
    "val-documents-in-train": "documents to be scored are among those trained on",
    "documents-repeated": "a document is there more than once",
    "documents-missing": "the shards do not hold the documents of the corpus, in order",
    "sidecar-does-not-match": "the byte counts beside the tokens are not those of the tokens",
    "not-the-tokenizer's": "shards hold what the tokenizer never writes",
    "scored-twice": "more targets are paid for than there are",
    "scored-in-part": "fewer targets or bytes are scored than there are",
    "ln2-twice": "bits per byte were divided by ln 2 once more",
    "nats-called-bits": "bits per byte were never divided by ln 2",
    "tokens-and-bytes-swapped": "bits per byte were multiplied by bytes a token",
    "bits-a-token": "what is called bits per byte is bits per token",
    "bytes-inflated": "the claim counts more bytes a token than the text has",
    "bytes-deflated": "the claim counts fewer bytes a token than the text has",
    "claim-held-loosely": "the claim differs from the text by what only other text excuses",
    "claim-contradicts-itself": "numbers of one claim do not follow from each other",
    "mean-is-not-the-seeds'": "the claimed number is not the mean of the seeds' own",
    "log-says-otherwise": "a seed's numbers are not those in its log",
    "artifact-is-another": "an artifact in the folder is not the one that the claim is about",
    "bytes-are-not-the-files'": "claimed bytes are not those of the files in the folder",
    "over-the-cap": "script and artifact together have more than 16,000,000 bytes",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong. `factor` is counted bytes over true bytes, where it is known:
    reported bits per byte times `factor` are the true ones."""

    name: str
    severity: str
    evidence: str
    factor: float | None
    advice: str


@dataclass(kw_only=True)
class Report:
    """All that an audit found; `facts` are what was looked at, by subject."""

    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def errors(self) -> list[Finding]:
        """The findings that make the accounting or the claim wrong."""
        return [finding for finding in self.findings if finding.severity == ERROR]

    @property
    def verdict(self) -> str:
        """ "wrong", "sound with warnings" or "sound"."""
        if self.errors:
            return "wrong"
        return "sound with warnings" if self.findings else "sound"

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values for JSON."""
        findings = [{**asdict(finding), "means": NAMES[finding.name]} for finding in self.findings]
        return {
            "verdict": self.verdict,
            "errors": [finding.name for finding in self.errors],
            "findings": findings,
            **self.facts,
        }


def shown(text: bytes, place: int = 0) -> str:
    """A short quotation of bytes around a place, for evidence."""
    part = text[max(0, place - 12) : place + 20]
    return repr(part.decode("utf-8", "backslashreplace"))
