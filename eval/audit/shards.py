"""Token shards: whether what is scored was trained on, is all there, and has the bytes it claims.

A document is what lies between two BOS, across the ends of shards. Two documents are the same if
their tokens are, so no tokenizer is needed to compare shards that one tokenizer wrote. Which shard
is which shows in its name: `val`, `train`, and `bytes` for the byte counts beside the val tokens.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import file_digest
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokgolf.corpora import read_shard, read_sidecar
from tokgolf.errors import CorpusError
from tokgolf.eval.audit.findings import ERROR, WARNING, Finding, shown
from tokgolf.eval.audit.lossless import loss_of
from tokgolf.eval.audit.subject import Subject
from tokgolf.tokenizers.statistics import batches

# Web text holds some documents twice. Up to this share of the documents is only a warning, unless
# they are in the same order too.
OWN_DUPLICATES = 0.01
RUN = 3  # so many documents in the same order are no chance
_SAMPLE = 256  # documents that are encoded again
_LETTERS = 2000  # so many in lower case without a capital are no chance

Tokens = NDArray[np.uint16]


@dataclass(kw_only=True)
class ShardSet:
    """The shards of a folder or list, by role, each in name order."""

    val: list[Path] = field(default_factory=list)
    train: list[Path] = field(default_factory=list)
    sizes: list[Path] = field(default_factory=list)

    def add(self, path: Path) -> None:
        """Add a shard, or all shards of a folder. Raises `CorpusError` if a name has no role."""
        files = sorted(path.glob("*.bin")) if path.is_dir() else [path]
        if not files:
            raise CorpusError(f"{path} holds no token shards (.bin); give a folder that does")
        for file in files:
            name = file.name
            if "bytes" in name:
                self.sizes.append(file)
            elif ("val" in name) == ("train" in name):
                raise CorpusError(f"{file} is neither val nor train by its name; rename it")
            else:
                (self.val if "val" in name else self.train).append(file)


def documents_of(paths: Sequence[Path], bos_id: int) -> Iterator[Tokens]:
    """The tokens of each document without its BOS; what precedes the first BOS is one too."""
    waiting: list[Tokens] = []
    for path in paths:
        tokens = read_shard(path)
        places = np.flatnonzero(tokens == bos_id)
        for part, start in zip(np.split(tokens, places), [-1, *places.tolist()], strict=True):
            if start >= 0:
                if waiting:
                    yield np.concatenate(waiting)
                waiting = [part[1:]]
            elif len(part):
                waiting.append(part)
    if waiting:
        yield np.concatenate(waiting)


def audit_shards(
    shards: ShardSet, subject: Subject | None, documents: Iterable[bytes] | None
) -> tuple[dict[str, Any], list[Finding]]:
    """Facts and findings; with a tokenizer its pieces are looked at, with documents their order.

    What the tokenizer cannot be asked is among the facts as `not_checked`. Raises `CorpusError`
    for shards that hold nothing to score.
    """
    first = (shards.val or shards.train)[:1]
    if not first:
        raise CorpusError("there are byte counts but no tokens; give the shards beside them")
    for path in shards.val + shards.train:
        if (tokens := len(read_shard(path))) < 2:
            raise CorpusError(
                f"{path} has {tokens} tokens; a shard to score or train on has 2 or more, so "
                "tokenize again or leave it out"
            )
    known = subject is not None and subject.bos_id >= 0
    bos_id = subject.bos_id if subject and known else int(read_shard(first[0])[:1].sum())
    facts: dict[str, Any] = {"bos_id": bos_id}
    found = [finding for path in shards.val + shards.train for finding in _own_sidecar(path)]
    val = Digests.of(shards.val, bos_id)
    train = Digests.of(shards.train, bos_id)
    for name, digests in (("val", val), ("train", train)):
        facts[f"{name}_documents"], facts[f"{name}_tokens"] = digests.documents, digests.tokens
    found += _repeated(val, "val") + _repeated(train, "train") + _overlap(val, train)
    if subject and shards.val:
        wrong = _outside(shards, subject)
        if not wrong:
            wrong = _encoded_again(shards.val, bos_id, subject) if subject.decodes else []
            if documents is not None and subject.same_ids and not wrong:
                wrong = _against_corpus(shards.val, bos_id, subject, documents)
            if shards.sizes:
                facts["val_bytes"], more = _sizes(shards, bos_id, subject)
                found += more
            if skipped := _not_checked(shards, subject, documents is not None):
                facts["not_checked"] = "; ".join(skipped)
        found += wrong
    return facts, found


@dataclass(frozen=True, kw_only=True)
class Digests:
    """A 64-bit digest of each document's tokens, in order."""

    values: NDArray[np.uint64]
    tokens: int
    empty: int = int.from_bytes(hashlib.sha256(b"").digest()[:8], "little")

    @classmethod
    def of(cls, paths: Sequence[Path], bos_id: int) -> "Digests":
        """The documents of these shards."""
        joined = bytearray()
        for tokens in documents_of(paths, bos_id):
            joined += hashlib.sha256(np.ascontiguousarray(tokens, "<u2").data).digest()[:8]
        total = sum(len(read_shard(path)) for path in paths)
        return cls(values=np.frombuffer(bytes(joined), "<u8"), tokens=total)

    @property
    def documents(self) -> int:
        """How many there are."""
        return len(self.values)


def _repeated(digests: Digests, role: str) -> list[Finding]:
    """Documents that were there before; in the same order they were written more than once."""
    first: dict[int, int] = {}
    places = []
    for number, value in enumerate(digests.values.tolist()):
        seen = value in first and value != digests.empty
        places.append(first[value] if seen else -1)
        first.setdefault(value, number)
    again = sum(place >= 0 for place in places)
    if not again:
        return []
    run, _, number = longest_run(places)
    order = f"; {run:,} of them in order, from document {number - run + 1:,}" if run >= RUN else ""
    severe = run >= RUN or again > OWN_DUPLICATES * len(places)
    return [
        Finding(
            name="documents-repeated",
            severity=ERROR if severe else WARNING,
            evidence=f"{again:,} of {len(places):,} documents of {role} were there before{order}",
            factor=None,
            advice="write each document once; web text has few of its own",
        )
    ]


def _overlap(val: Digests, train: Digests) -> list[Finding]:
    """Documents of val among those of train; in the same order they were never held out."""
    place = {value: n for n, value in enumerate(val.values.tolist()) if value != val.empty}
    places = [place.get(value, -1) for value in train.values.tolist()]
    shared = {*places} - {-1}
    if not shared:
        return []
    run, last, number = longest_run(places)
    order = (
        f"; documents {last - run + 1:,} to {last:,} of val follow each other in train from "
        f"document {number - run + 1:,}"
        if run >= RUN
        else f"; the first is document {min(shared):,}"
    )
    severe = run >= RUN or len(shared) > OWN_DUPLICATES * val.documents
    return [
        Finding(
            name="val-documents-in-train",
            severity=ERROR if severe else WARNING,
            evidence=f"{len(shared):,} of {val.documents:,} documents of val are in train{order}",
            factor=None,
            advice="hold out the same documents when tokenizing train as when tokenizing val",
        )
    ]


def longest_run(places: list[int]) -> tuple[int, int, int]:
    """The longest run of places that count up by one: its length, last place, and where it ends.

    -1 is no place. [7, 4, 5, 6, -1] -> (3, 6, 3)
    """
    best = (0, 0, 0)
    run, before = 0, -1
    for number, place in enumerate(places):
        run = run + 1 if run and place == before + 1 else int(place >= 0)
        best = max(best, (run, place, number), key=lambda each: each[0])
        before = place
    return best


def _outside(shards: ShardSet, subject: Subject) -> list[Finding]:
    """Ids that the tokenizer does not have, or a stream that does not start with its BOS."""
    start = int(read_shard(shards.val[0])[:1].sum())
    highest = max(
        (int(read_shard(p).max()) for p in shards.val + shards.train if len(read_shard(p))),
        default=0,
    )
    if highest < len(subject.pieces) and (subject.bos_id < 0 or start == subject.bos_id):
        return []
    evidence = (
        f"the first id is {start}, BOS is {subject.bos_id}; the highest is {highest}, the "
        f"tokenizer has {len(subject.pieces)}"
    )
    return [_foreign(ERROR, evidence)]


def _not_checked(shards: ShardSet, subject: Subject, has_corpus: bool) -> list[str]:
    """What the shards are not held against, because this tokenizer is not to be had whole here."""
    compared = has_corpus and subject.same_ids  # token by token, which shows both of these too
    skipped = []
    if not compared and not (subject.decodes and subject.same_ids):
        skipped.append("whether the text has these tokens when encoded again")
    if not compared and not subject.decodes:
        skipped.append("whether capitals are lost")
    if shards.sizes and not subject.decodes:
        skipped.append("whether the byte counts are those of the text")
    if has_corpus and not subject.same_ids:
        skipped.append("whether all documents of the corpus are there")
    return skipped


def _foreign(severity: str, evidence: str) -> Finding:
    advice = "give the tokenizer that wrote the shards, or tokenize again"
    return Finding(
        name="not-the-tokenizer's", severity=severity, evidence=evidence, factor=None, advice=advice
    )


def _encoded_again(paths: list[Path], bos_id: int, subject: Subject) -> list[Finding]:
    """Documents of a sample that do not come back when their text is encoded again."""
    sample = [
        tokens for tokens, _ in zip(documents_of(paths, bos_id), range(_SAMPLE), strict=False)
    ]
    texts = [subject.decode(tokens) for tokens in sample]
    letters = b"".join(texts).decode("utf-8", "ignore")
    if sum(map(str.islower, letters)) >= _LETTERS and not any(map(str.isupper, letters)):
        return [_lower_cased(f"the first {len(sample)} documents of val have no capital")]
    if not subject.same_ids:
        return []
    again = subject.encode(texts)
    wrong = [n for n, ids in enumerate(again) if not np.array_equal(ids, sample[n])]
    if len(wrong) <= len(sample) // 100 + 1:  # normalising twice may change a document
        return []
    evidence = (
        f"{len(wrong)} of the first {len(sample)} documents have other tokens when encoded again, "
        f"first document {wrong[0]}: {shown(texts[wrong[0]])}"
    )
    return [_foreign(ERROR, evidence)]


def _against_corpus(
    paths: list[Path], bos_id: int, subject: Subject, documents: Iterable[bytes]
) -> list[Finding]:
    """Whether the shards hold the corpus, document after document."""
    there = missing = folded = 0
    first = ""
    both = zip_longest(documents_of(paths, bos_id), _encoded(subject, documents))
    for number, (tokens, encoded) in enumerate(both):
        data = encoded[0] if encoded else None
        if tokens is not None and encoded and np.array_equal(encoded[1], tokens):
            there += 1
            continue
        missing += 1
        if tokens is not None and data is not None and subject.decodes:
            folded += loss_of(data, subject.decode(tokens)) == "lower-cased-text"
        first = first or (
            f"first document {number}: "
            + (shown(data) if data is not None else "not in the corpus")
            + ("" if tokens is not None else ", not in the shards")
        )
    if not missing:
        return []
    if folded > missing // 2:
        return [_lower_cased(f"{folded:,} documents of val are the corpus' in lower case")]
    return [
        Finding(
            name="documents-missing",
            severity=ERROR,
            evidence=f"{there:,} documents are as in the corpus, {missing:,} are not; {first}",
            factor=None,
            advice="tokenize all documents of the corpus in its order",
        )
    ]


def _encoded(subject: Subject, documents: Iterable[bytes]) -> Iterator[tuple[bytes, Any]]:
    """Documents with their ids, many at a time: a tokenizer may run in another process."""
    for batch in batches(documents):
        yield from zip(batch, subject.encode(batch), strict=True)


def _lower_cased(evidence: str) -> Finding:
    return Finding(
        name="lower-cased-text",
        severity=ERROR,
        evidence=evidence,
        factor=None,
        advice="tokenize the text with its capitals",
    )


def _sizes(shards: ShardSet, bos_id: int, subject: Subject) -> tuple[int, list[Finding]]:
    """The bytes that the counts beside the tokens sum to, and what is wrong with them."""
    tokens = np.concatenate([read_shard(path) for path in shards.val])
    sizes = np.concatenate([read_shard(path) for path in shards.sizes]).astype(np.int64)
    total, problem = int(sizes.sum()), ""
    factor = None
    if len(sizes) != len(tokens):
        problem = f"{len(sizes):,} counts stand beside {len(tokens):,} tokens"
    elif paid := int(sizes[tokens == bos_id].sum()):
        problem = f"{paid:,} bytes are counted for BOS"
    elif subject.decodes:
        starts = np.flatnonzero(tokens == bos_id)
        counted = np.add.reduceat(sizes, starts) if len(starts) else np.zeros(0, np.int64)
        true = np.array([len(subject.decode(t)) for t in documents_of(shards.val, bos_id)])
        off = np.flatnonzero(np.abs(counted - true) > np.maximum(8, true // 20))
        factor = total / int(true.sum())
        # The counts may be of the text before it was normalised, which differs by little.
        if len(off) > len(true) // 100 or abs(factor - 1) > 2e-3:
            n = int(off[0]) if len(off) else 0
            problem = (
                f"{total:,} bytes are counted, the tokens stand for {int(true.sum()):,}; document "
                f"{n} has {counted[n]:,} against {true[n]:,}"
            )
    if not problem:
        return total, []
    advice = "make the counts and the tokens in one run, from the same documents"
    return total, [
        Finding(
            name="sidecar-does-not-match",
            severity=ERROR,
            evidence=problem,
            factor=factor,
            advice=advice,
        )
    ]


def _own_sidecar(path: Path) -> list[Finding]:
    """What the `.json` that tokgolf writes beside a shard says against it."""
    info = read_sidecar(path)
    if info is None:
        return []
    with open(path, "rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    if (info.tokens, info.sha256) == (len(read_shard(path)), digest):
        return []
    return [
        Finding(
            name="sidecar-does-not-match",
            severity=ERROR,
            evidence=f"{path.name} has {len(read_shard(path)):,} tokens and SHA-256 {digest[:12]}, "
            f"its sidecar says {info.tokens:,} and {info.sha256[:12]}",
            factor=None,
            advice="the tokens were edited or damaged; tokenize again",
        )
    ]
