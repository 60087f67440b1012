"""tokgolf.corpora: where documents come from, always as bytes.

A corpus is a name, an optional split and a stream of documents in a fixed order. Nothing here
decodes text, knows a tokenizer or imports torch; a corpus larger than memory streams through.

    from tokgolf.corpora import open_corpus
    for document in open_corpus("stdlib:val"):
        print(document.id, len(document.data))
"""

from tokgolf.corpora.catalog import corpus_names, open_corpus
from tokgolf.corpora.corpus import SPLITS, Corpus, CorpusSummary, Document, framed, split_of
from tokgolf.corpora.disjoint import (
    check_disjoint,
    document_digests,
    read_digests,
    write_digests,
)
from tokgolf.corpora.files import write_jsonl
from tokgolf.corpora.shards import (
    ShardInfo,
    ShardWriter,
    read_shard,
    read_sidecar,
    shard_files,
    write_shard,
)

__all__ = [
    "SPLITS",
    "Corpus",
    "CorpusSummary",
    "Document",
    "ShardInfo",
    "ShardWriter",
    "check_disjoint",
    "corpus_names",
    "document_digests",
    "framed",
    "open_corpus",
    "read_digests",
    "read_shard",
    "read_sidecar",
    "shard_files",
    "split_of",
    "write_digests",
    "write_jsonl",
    "write_shard",
]
