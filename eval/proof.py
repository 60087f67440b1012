"""The proof of a score: documents as the file that an arithmetic coder makes of them, and back.

The coder is driven by the artifact's own probabilities, in the scorer's windows, so the file is
as long as the score says. Unlike the scorer both directions run token after token, the same
kernels on the same shapes on one thread, so that they see the same probabilities to the last bit.
On another machine these may differ in that bit: a few are tried before anything is decoded, and
what was decoded is compared with the hash of what was encoded.

The code is the tokenizers' range coder's (`tokenizers/rangecoder.py`), whose shares are any
integers: each token's is floor(p * 2^40) + 1, or 0 where p is 0.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256, shake_256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokgolf.artifact.load import Artifact
from tokgolf.corpora import Document, framed, write_jsonl
from tokgolf.errors import ArtifactError, ConfigError, ScoreError, TokenizerError
from tokgolf.eval.bits import MAGIC, Header, machine, pack, sides, unpack
from tokgolf.eval.incremental import Choose, grow
from tokgolf.eval.scorer import settled_stride
from tokgolf.files import write_bytes
from tokgolf.tokenizers.pack import RangeEncoder
from tokgolf.tokenizers.rangecoder import RangeDecoder

ROWS = 16
QUANTA = 1 << 40

Progress = Callable[[int], None]
"""Is told how many more tokens are done."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What was coded. `nats` are by the model, `code_bytes` what the coder made of them, and
    `file_bytes` are with the header."""

    documents: int
    bytes: int
    tokens: int
    nats: float
    code_bytes: int
    file_bytes: int
    stride: int
    corpus_sha256: str
    artifact_sha256: str
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON. bpb is the model's, file_bpb the file's; None for no bytes."""
        bits = self.nats / np.log(2)
        return {
            "bpb": float(bits / self.bytes) if self.bytes else None,
            "file_bpb": 8 * self.file_bytes / self.bytes if self.bytes else None,
            "documents": self.documents,
            "bytes": self.bytes,
            "tokens": self.tokens,
            "model_bytes": float(bits / 8),
            "code_bytes": self.code_bytes,
            "file_bytes": self.file_bytes,
            "overhead_bytes": float(self.file_bytes - bits / 8),
            "stride": self.stride,
            "corpus_sha256": self.corpus_sha256,
            "artifact_sha256": self.artifact_sha256,
            "seconds": self.seconds,
        }


def compress(
    artifact: Artifact,
    documents: Sequence[bytes],
    *,
    stride: int = 0,
    on_progress: Progress = lambda tokens: None,
) -> tuple[bytes, Proof]:
    """The `*.bits` file of `documents`, in order, and what it amounts to; on the CPU.

    `stride` as in `score`. Raises `ScoreError` for a token with probability zero, a stride that is
    no stride, or a tokenizer that does not give the text back.
    """
    began = time.perf_counter()
    length = artifact.trunk.sequence_length
    stride = settled_stride(stride, length)
    if not documents:
        raise ScoreError("there are no documents to compress")
    texts = [_tokens(artifact, data) for data in documents]
    counts = [len(tokens) for tokens in texts]
    rest = [iter(tokens) for tokens in texts]
    encoder, nats = RangeEncoder(), 0.0

    def choose(log_probs: NDArray[np.float32], at: list[int]) -> list[int]:
        nonlocal nats
        chosen = [next(rest[document]) for document in at]
        for row, (ends, token) in enumerate(zip(shares(log_probs), chosen, strict=True)):
            if ends[token] == (ends[token - 1] if token else 0):
                raise ScoreError("the model gives a token of the text probability zero")
            encoder.encode(ends, token)
            nats -= float(log_probs[row, token])
        on_progress(len(chosen))
        return chosen

    with _one_thread():
        _grow(artifact, counts, stride, choose)
        kernels = probe(artifact)
    code = encoder.finish()
    digest = documents_hash(documents)
    data = pack(
        Header(
            artifact=bytes.fromhex(artifact.sha256)[:2],
            kernels=kernels,
            documents=digest[:4],
            machine=machine(),
            stride=stride % length,
            counts=counts,
            code=code,
        )
    )
    return data, Proof(
        documents=len(documents),
        bytes=sum(map(len, documents)),
        tokens=sum(counts),
        nats=nats,
        code_bytes=len(code),
        file_bytes=len(data),
        stride=stride,
        corpus_sha256=digest.hex(),
        artifact_sha256=artifact.sha256,
        seconds=time.perf_counter() - began,
    )


def decompress(
    artifact: Artifact, data: bytes, *, on_progress: Progress = lambda tokens: None
) -> list[bytes]:
    """The documents of a `*.bits` file, proved to be those that were compressed.

    Raises `ArtifactError` for a file that is damaged, of another artifact or of other kernels.
    """
    header = unpack(data)
    length = artifact.trunk.sequence_length
    if header.artifact != bytes.fromhex(artifact.sha256)[:2]:
        raise ArtifactError(
            f"the file was made with the artifact {header.artifact.hex()}..., "
            f"this is {artifact.sha256[:4]}... (SHA-256); give the one it was made with"
        )
    if header.stride >= length:
        raise ArtifactError(f"the file has a stride of {header.stride}; the window is {length}")
    decoder = RangeDecoder(header.code)

    def choose(log_probs: NDArray[np.float32], at: list[int]) -> list[int]:
        chosen = [decoder.decode(ends) for ends in shares(log_probs)]
        on_progress(len(chosen))
        return chosen

    with _one_thread():
        if probe(artifact) != header.kernels:
            raise ArtifactError(
                f"the model's probabilities are not the same here: {sides(header.machine)}; "
                "decompress where it was compressed"
            )
        try:
            texts = _grow(artifact, header.counts, header.stride or length, choose)
            decoder.check_end()
            documents = [artifact.tokenizer.decode(tokens[:-1]) for tokens in texts]
        except (TokenizerError, ScoreError) as error:
            raise _misread(header.machine) from error
    closed = all(tokens[-1] == artifact.tokenizer.bos_id for tokens in texts)
    if not closed or documents_hash(documents)[:4] != header.documents:
        raise _misread(header.machine)
    return documents


def check_target(path: str | os.PathLike[str], count: int) -> None:
    """Raise `ConfigError` where `write_documents` would have to for that many documents."""
    if count > 1 and not _is_jsonl(path) and os.path.lexists(path):
        raise ConfigError(
            f"{os.fspath(path)} is there; name a new folder for the {count:,} documents"
        )


def write_documents(path: str | os.PathLike[str], documents: Sequence[bytes]) -> None:
    """One document as that file; several as a new folder of text files, or as JSON lines if the
    path says so. All of it or nothing.

    Raises `ConfigError` for a path that is there where a folder is due, and `CorpusError` for a
    document that JSON cannot hold.
    """
    target = Path(path)
    if len(documents) == 1:
        write_bytes(target, documents[0])
        return
    check_target(target, len(documents))
    width = len(str(len(documents)))
    named = [Document(f"{n:0{width}}.txt", data) for n, data in enumerate(documents, 1)]
    if _is_jsonl(target):
        write_jsonl(target, named)
        return
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as place:
        folder = Path(place, "documents")
        folder.mkdir()
        for document in named:
            write_bytes(folder / document.id, document.data)
        folder.rename(target)


def _is_jsonl(path: str | os.PathLike[str]) -> bool:
    return os.fspath(path).lower().endswith((".jsonl", ".jsonl.zst"))


def shares(log_probs: NDArray[np.float32]) -> NDArray[np.int64]:
    """Where the share of each token ends, for the coder; only p = 0 has none.

    Raises `ScoreError` for NaN.  # (rows, vocab) -> (rows, vocab) of up to 2^40 + vocab
    """
    if np.isnan(log_probs).any():
        raise ScoreError("the model gives a probability that is not a number")
    quanta = (np.exp(log_probs.astype(np.float64)) * QUANTA).astype(np.int64)
    result: NDArray[np.int64] = np.cumsum(quanta + (log_probs > -np.inf), axis=1)
    return result


def probe(artifact: Artifact) -> bytes:
    """Two bytes that tell kernels apart: the hash of the shares that a fixed noise draws from.

    Windows of 8 tokens and from 16 rows down to 1, so that every batch size and contexts occur.
    """
    length = min(8, artifact.trunk.sequence_length)
    counts = range(length + 1, length + 1 + ROWS)
    noise = iter(np.frombuffer(shake_256(MAGIC).digest(4 * sum(counts)), "<u4").tolist())
    digest = sha256()

    def choose(log_probs: NDArray[np.float32], at: list[int]) -> list[int]:
        ends = shares(log_probs)
        digest.update(ends.tobytes())
        return [int(row.searchsorted(next(noise) * int(row[-1]) >> 32, "right")) for row in ends]

    grow(artifact.model, counts, choose, length=length, stride=(length + 1) // 2, rows=ROWS)
    return digest.digest()[:2]


def _grow(
    artifact: Artifact, counts: Sequence[int], stride: int, choose: Choose
) -> list[list[int]]:
    length = artifact.trunk.sequence_length
    return grow(artifact.model, counts, choose, length=length, stride=stride, rows=ROWS)


def _tokens(artifact: Artifact, data: bytes) -> list[int]:
    """A document's tokens and the BOS that closes it."""
    tokens: list[int] = artifact.tokenizer.encode(data).tolist()
    if artifact.tokenizer.decode(tokens) != data:
        raise ScoreError(f"the tokenizer does not give a document of {len(data):,} bytes back")
    return [*tokens, artifact.tokenizer.bos_id]


def documents_hash(documents: Sequence[bytes]) -> bytes:
    """As `CorpusSummary.sha256`, and so as a score's."""
    digest = sha256()
    for data in documents:
        digest.update(framed(data))
    return digest.digest()


def _misread(machine: bytes) -> ArtifactError:
    return ArtifactError(
        f"what was decoded is not what was encoded, so nothing is written: {sides(machine)}"
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread, so that no sum depends on how it is shared out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
