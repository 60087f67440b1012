"""The store: what cells share, under locks that the operating system drops with a killed process.

store/tokenizers/<hash>.tok   by kind, vocabulary, options and corpus
store/tokens/<hash>/          token shards, by tokenizer and corpus; runs hold links to them
store/<id>/                   a cell's run directory
store/sweeps/<name>/          a sweep
"""

import json
import os
import shutil
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from tokgolf.corpora import Corpus
from tokgolf.errors import TokgolfError
from tokgolf.hashing import BigramBuckets
from tokgolf.locks import locked
from tokgolf.tokenizers import Tokenizer, build_tokenizer, load_tokenizer, save_tokenizer
from tokgolf.training.data import TokenizedCorpus, tokenize

ID_LENGTH = 16


def content_id(values: Mapping[str, Any]) -> str:
    """The name of what these plain values decide: 16 hexadecimal digits.

    {"b": 1, "a": 2} and {"a": 2, "b": 1} -> the same
    """
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return sha256(text.encode()).hexdigest()[:ID_LENGTH]


def shared_tokenizer(
    store: Path, options: Mapping[str, Any], corpus: Corpus, corpus_sha256: str
) -> Tokenizer:
    """The tokenizer of these options, built by the first who asks for it."""
    name = content_id({**options, "corpus": corpus_sha256})
    folder = store / "tokenizers"
    path = folder / f"{name}.tok"
    with locked(folder / f".{name}.lock", wait=True):
        if path.is_file():
            try:
                return load_tokenizer(path)
            except TokgolfError:
                path.unlink()  # damaged; what it was made from is at hand
        more = dict(options)
        kind, size = more.pop("kind"), more.pop("vocab_size")
        buckets, seed = more.pop("bigram_buckets", 0), more.pop("bigram_seed", 0)
        bigram = BigramBuckets(count=buckets, seed=seed) if buckets else None
        documents = (document.data for document in corpus)
        tokenizer = build_tokenizer(kind, documents, size, bigram=bigram, **more)
        save_tokenizer(tokenizer, path)
    return tokenizer


def shared_tokens(
    store: Path, tokenizer: Tokenizer, corpus: Corpus, corpus_sha256: str, run: Path
) -> TokenizedCorpus:
    """The corpus' token shards, tokenized by the first who asks, and linked into `run/tokens`."""
    name = content_id({"tokenizer": tokenizer.fingerprint, "corpus": corpus_sha256})
    folder = store / "tokens" / name
    with locked(store / "tokens" / f".{name}.lock", wait=True):
        found = tokenize(corpus, tokenizer, folder, "train", corpus_sha256)
    own, complete = run / "tokens", "train.complete"
    if not (own / complete).is_file():  # it is linked last
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir(parents=True)
        names = sorted(path.name for path in folder.iterdir())
        for file in [n for n in names if n != complete] + [complete]:
            link(folder / file, own / file)
    return found


def link(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where the file system has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
