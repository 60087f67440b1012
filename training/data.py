"""Training tokens: documents to shards on disk, shards to batches.

A corpus is tokenized once, streaming, into the run's own shards (the challenge's format); they
are mapped into memory, so neither documents nor tokens need to fit. The stream is BOS, document,
BOS, document, ...; batches are windows of it. Which windows make up step s is a function of the
seed and s alone: a resumed run goes on exactly where it was.
"""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokgolf.corpora import Corpus, ShardWriter, read_shard, read_sidecar, shard_files
from tokgolf.errors import CorpusError, TrainingError
from tokgolf.files import write_bytes
from tokgolf.tokenizers import Tokenizer

DOCUMENTS_AT_ONCE = 256


class TokenStream:
    """One long sequence of tokens in several memory-mapped shards."""

    def __init__(self, shards: list[NDArray[np.uint16]]) -> None:
        self.shards = shards
        self.starts = np.cumsum([0] + [len(shard) for shard in shards])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, start: int, length: int) -> NDArray[np.int64]:
        """Tokens [start, start + length), across shard borders."""
        parts = []
        shard = int(np.searchsorted(self.starts, start, side="right")) - 1
        while length > 0:
            offset = start - int(self.starts[shard])
            part = self.shards[shard][offset : offset + length]
            parts.append(part.astype(np.int64))
            start, length, shard = start + len(part), length - len(part), shard + 1
        return np.concatenate(parts)

    def counts(self, vocab_size: int) -> NDArray[np.int64]:
        """How often each token occurs; an id outside the vocabulary is a `TrainingError`."""
        total = np.zeros(vocab_size, dtype=np.int64)
        for shard in self.shards:
            for start in range(0, len(shard), 1 << 24):
                part = np.bincount(shard[start : start + (1 << 24)], minlength=vocab_size)
                if len(part) > vocab_size:
                    raise TrainingError(
                        f"the token shards hold id {len(part) - 1}, the tokenizer has "
                        f"{vocab_size} ids; tokenize the corpus with this tokenizer"
                    )
                total += part
        return total


@dataclass(frozen=True, kw_only=True)
class TokenizedCorpus:
    """Where a corpus' tokens are, and what they were made from."""

    stream: TokenStream
    documents: int
    bytes: int


def tokenize(
    corpus: Corpus,
    tokenizer: Tokenizer,
    folder: Path,
    prefix: str,
    corpus_sha256: str,
    say: Callable[[str], None] = lambda line: None,
) -> TokenizedCorpus:
    """Write the corpus as token shards `folder/prefix_*.bin`, or reuse those already there.

    Shards are reused only if their sidecars name this tokenizer and this corpus and none is
    missing or damaged; others of ours are replaced, as `say` is told. Raises `TrainingError` rather
    than replace shards without sidecars, and `CorpusError` for those with another's.
    """
    paths = shard_files(folder, prefix) if folder.is_dir() else []
    bare = [path for path in paths if not path.with_suffix(".json").exists()]
    if bare:
        raise TrainingError(
            f"{folder} holds {len(bare)} {prefix} shards without the .json beside them; remove "
            "them to have the corpus tokenized again, or choose another folder"
        )
    wanted = (tokenizer.fingerprint, corpus_sha256)
    complete = folder / f"{prefix}.complete"  # holds the number of shards: one may be missing
    had = complete.read_bytes().decode("ascii", "replace") if complete.is_file() else ""
    try:
        sidecars = [read_sidecar(path) for path in paths]
        same = all(s is not None and (s.tokenizer, s.corpus) == wanted for s in sidecars)
        if same and had == str(len(paths)):
            return tokenized(tokenizer, folder, prefix)
        found = f"{len(paths)} of {had:.20} token shards" if same else "another text's tokens"
    except CorpusError as error:
        if not had:  # nothing says that they are ours
            raise
        found = f"a damaged shard ({str(error).partition(';')[0]})"
    if had:
        say(f"tokens    {folder} holds {found}: the corpus is tokenized again")
    complete.unlink(missing_ok=True)  # first, so that it never stands beside half a corpus
    for path in paths:
        path.unlink()
        path.with_suffix(".json").unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    with ShardWriter(
        folder, prefix, fingerprint=tokenizer.fingerprint, corpus_sha256=corpus_sha256
    ) as writer:
        for data, tokens in encoded(corpus, tokenizer):
            bos = np.array([tokenizer.bos_id], dtype=tokens.dtype)
            writer.add(np.concatenate([bos, tokens]), len(data))
    write_bytes(complete, str(len(writer.paths)).encode())
    return tokenized(tokenizer, folder, prefix)


def tokenized(tokenizer: Tokenizer, folder: Path, prefix: str) -> TokenizedCorpus:
    """The shards that `tokenize` wrote."""
    paths = shard_files(folder, prefix) if folder.is_dir() else []
    if not paths:
        raise TrainingError(
            f"{folder} holds no {prefix} shards here; all machines of a run must share the folder "
            "that -o names"
        )
    shards = [read_shard(path, fingerprint=tokenizer.fingerprint) for path in paths]
    sidecars = [read_sidecar(path) for path in paths]
    return TokenizedCorpus(
        stream=TokenStream(shards),
        documents=sum(s.documents for s in sidecars if s is not None),
        bytes=sum(s.bytes for s in sidecars if s is not None),
    )


def encoded(
    corpus: Corpus, tokenizer: Tokenizer
) -> Iterator[tuple[bytes, NDArray[np.uint16 | np.uint32]]]:
    """Each document's bytes with its tokens, in the corpus' order."""
    documents = (document.data for document in corpus)
    while data := list(itertools.islice(documents, DOCUMENTS_AT_ONCE)):
        yield from zip(data, tokenizer.encode_batch(data), strict=True)


class Batches:
    """Windows of `length` tokens and their targets, shuffled anew in every epoch.

    Each epoch starts at another offset, so that documents are cut at other places. Window w of an
    epoch, targets included, is the `length` + 1 tokens from offset + `length` * order[w] on; offset
    (below `length`), then order (a permutation of the windows for which any offset leaves room)
    are drawn from NumPy's `Generator(PCG64([seed, epoch]))`. Step s has the next `rows`
    windows of all epochs one after the other, also where one ends. Of `parts`
    processes with `rows` rows each, `part` gets its rows of the batch that they make together.
    """

    def __init__(
        self,
        stream: TokenStream,
        *,
        rows: int,
        length: int,
        seed: int,
        part: int = 0,
        parts: int = 1,
    ) -> None:
        if len(stream) < 2 * length:
            raise TrainingError(
                f"the corpus has {len(stream):,} tokens, fewer than two sequences of {length:,}; "
                "use more text or a smaller trunk.sequence_length"
            )
        self.stream = stream
        self.rows, self.part, self.parts = rows, part, parts
        self.length = length
        self.seed = seed
        self.windows = (len(stream) - length) // length  # with room for any offset
        self._epoch = -1
        self._starts = np.zeros(0, dtype=np.int64)

    def step(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a step.  # each (rows, length) int64"""
        first = (step * self.parts + self.part) * self.rows
        rows = [self._window(first + row) for row in range(self.rows)]
        tokens = torch.from_numpy(np.stack(rows))
        return tokens[:, :-1], tokens[:, 1:]

    def _window(self, index: int) -> NDArray[np.int64]:
        epoch, place = divmod(index, self.windows)
        if epoch != self._epoch:
            random = np.random.Generator(np.random.PCG64([self.seed, epoch]))
            offset = int(random.integers(self.length))
            self._starts = offset + self.length * random.permutation(self.windows)
            self._epoch = epoch
        return self.stream.read(int(self._starts[place]), self.length + 1)


Batch = tuple[Tensor, Tensor]


class Prefetcher:
    """Batches, for a GPU made one step ahead in a thread, in memory that it can fetch by itself.

    On a CPU a batch takes less time than handing it over would. Use it in a `with` block.
    """

    def __init__(self, batches: Batches, device: torch.device) -> None:
        self.batches = batches
        self.pinned = device.type == "cuda"
        self._worker = ThreadPoolExecutor(max_workers=1)
        self._next: tuple[int, Future[Batch]] | None = None

    def step(self, step: int) -> Batch:
        """As `Batches.step`."""
        if not self.pinned:
            return self.batches.step(step)
        if self._next is None or self._next[0] != step:
            self._next = step, self._worker.submit(self._make, step)
        batch = self._next[1].result()
        self._next = step + 1, self._worker.submit(self._make, step + 1)
        return batch

    def _make(self, step: int) -> Batch:
        tokens, targets = self.batches.step(step)
        return tokens.contiguous().pin_memory(), targets.contiguous().pin_memory()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._worker.shutdown()
