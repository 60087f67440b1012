"""What a document and a corpus are, how a corpus is summed up, and who decides its splits.

The readers (`stdlib`, `files`, `hub`) only produce documents; everything that holds for all of
them is here, once. Standard library only.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

from tokgolf.errors import CorpusError

SPLITS = ("train", "val", "test")

# What data sets call their own splits, and which of ours each one is.
OWN_SPLITS = {"train": "train", "val": "val", "validation": "val", "test": "test"}

# The challenge's export is split by position, not by hash: validation is its first 50,000
# documents (openai/parameter-golf, docs_selected.source_manifest.json, docs_val).
CHALLENGE_FILE = "docs_selected.jsonl"
CHALLENGE_VAL_DOCUMENTS = 50_000


@dataclass(frozen=True, slots=True)
class Document:
    """One document: a stable id and its bytes, exactly as stored."""

    id: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusSummary:
    """One pass over a corpus. `sha256` changes with any byte, boundary or order of documents."""

    name: str
    split: str | None
    documents: int
    bytes: int
    sha256: str
    provenance: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Documents in a fixed order; iterating again starts from the first one.

    `name` includes the split ("stdlib:val"). `source` opens a fresh stream of the documents.
    `provenance` says what else the bytes depend on, such as the Python version.
    """

    name: str
    split: str | None
    source: Callable[[], Iterator[Document]] = field(repr=False)
    provenance: Mapping[str, str] = field(default_factory=dict)

    def documents(self) -> Iterator[Document]:
        """Stream the documents. Raises `CorpusError` at the end if there was nothing in them."""
        documents = size = 0
        for document in self.source():
            documents += 1
            size += len(document.data)
            yield document
        if not documents:
            raise CorpusError(f"corpus {self.name} has no documents; choose another split or file")
        if not size:
            raise CorpusError(
                f"corpus {self.name} has 0 bytes: its documents ({documents}) are all empty"
            )

    def __iter__(self) -> Iterator[Document]:
        return self.documents()

    def summary(self) -> CorpusSummary:
        """Count and hash the documents in one streaming pass.

        The hash is SHA-256 over, for each document, its length (8 bytes, little-endian) and
        its data, so ["ab", "c"], ["a", "bc"] and ["c", "ab"] all differ.
        """
        documents = size = 0
        digest = hashlib.sha256()
        for document in self.documents():
            documents += 1
            size += len(document.data)
            digest.update(framed(document.data))
        return CorpusSummary(
            name=self.name,
            split=self.split,
            documents=documents,
            bytes=size,
            sha256=digest.hexdigest(),
            provenance=self.provenance,
        )


def framed(data: bytes) -> bytes:
    """A document as the hash of a corpus takes it in: its length, then its bytes."""
    return len(data).to_bytes(8, "little") + data


def split_of(document_id: str) -> str:
    """The split that a document belongs to, from its id alone: 90 % train, 5 % val, 5 % test.

    n = the first 8 bytes of SHA-256(id in UTF-8), little-endian, modulo 100; n < 90 is train,
    n < 95 is val, the rest is test. Never changed: every published score depends on it.

        "asyncio.base_events" -> "train"
    """
    digest = hashlib.sha256(document_id.encode("utf-8", "surrogatepass")).digest()
    bucket = int.from_bytes(digest[:8], "little") % 100
    if bucket < 90:
        return "train"
    return "val" if bucket < 95 else "test"


def select_by_hash(documents: Iterator[Document], split: str | None) -> Iterator[Document]:
    """The documents whose id falls into `split`; all of them if it is None."""
    return (doc for doc in documents if split is None or split_of(doc.id) == split)


def select_by_position(
    documents: Iterator[Document], split: str | None, name: str
) -> Iterator[Document]:
    """The challenge's split: the first 50,000 documents are val, the rest train, no test."""
    if split == "test":
        raise CorpusError(f"corpus {name} has no test split; its own splits are train, val")
    if split == "val":
        return islice(documents, CHALLENGE_VAL_DOCUMENTS)
    return islice(documents, CHALLENGE_VAL_DOCUMENTS if split == "train" else 0, None)
