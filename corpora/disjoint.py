"""Proof that no held-out document was trained on: digests of document bytes, and their check.

Training stores the digests of what it read (8 bytes a document) beside the run; scoring checks
its own documents against them. Ids play no part: the same text under another id is still a leak.
"""

import hashlib
import os
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tokgolf.corpora.corpus import Document
from tokgolf.errors import CorpusError
from tokgolf.files import write_bytes

Digests = npt.NDArray[np.uint64]


def document_digests(documents: Iterable[Document]) -> Digests:
    """Sorted unique uint64 digests of the documents' bytes.

    A digest is the first 8 bytes of SHA-256(data), little-endian. At 15 million documents
    against 50,000 the chance of any false alarm is 4e-8.
    """
    joined = bytearray()
    for document in documents:
        joined += hashlib.sha256(document.data).digest()[:8]
    return np.unique(np.frombuffer(joined, dtype="<u8").astype(np.uint64))


def write_digests(path: str | os.PathLike[str], digests: Digests) -> None:
    """Write digests as a NumPy file with the file's SHA-256 after it, which NumPy does not mind."""
    buffer = BytesIO()
    np.save(buffer, digests, allow_pickle=False)
    data = buffer.getvalue()
    write_bytes(path, data + hashlib.sha256(data).digest())


def read_digests(path: str | os.PathLike[str]) -> Digests:
    """The digests that `write_digests` wrote. Raises `CorpusError` for anything else."""
    data = Path(path).read_bytes()
    data, found = data[:-32], data[-32:]
    if hashlib.sha256(data).digest() != found:
        raise CorpusError(f"{os.fspath(path)} is damaged: its last 32 bytes are not its SHA-256")
    file = BytesIO(data)
    try:  # not np.load, which makes room for whatever size the header names
        version = np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # it parses Python literals, and raises what that raises
        reason = " ".join(str(error).split())[:200]
        raise CorpusError(f"{os.fspath(path)} is no file of digests: {reason}") from error
    body = data[file.tell() :]
    if version != (1, 0) or dtype != np.dtype("<u8") or shape != (len(body) // 8,):
        raise CorpusError(
            f"{os.fspath(path)} has {len(body)} bytes for an array of {dtype} of shape {shape}; "
            "digests are one row of 64-bit integers"
        )
    if len(body) % 8 or ((digests := np.frombuffer(body, "<u8"))[1:] <= digests[:-1]).any():
        raise CorpusError(f"{os.fspath(path)} holds digests that are cut or out of order")
    return digests.astype(np.uint64)


def check_disjoint(
    train: Digests,
    held_out: Iterable[Document] | Digests,
    *,
    held_out_name: str = "held-out corpus",
    allowed: int = 0,
) -> int:
    """Count held-out documents that occur in training; raise if there are more than `allowed`.

    `held_out` is a corpus (or any documents), or digests; from digests alone the error can
    name no document, only its digest. Empty documents are legal on both sides: they give
    nothing away. Raises `CorpusError`; otherwise returns the count.
    """
    shared = total = 0
    first = ""
    train = np.setdiff1d(train, document_digests([Document("", b"")]))
    if isinstance(held_out, np.ndarray):
        both = np.intersect1d(train, held_out)
        shared, total = len(both), len(held_out)
        first = f"digest {int(both[0]):016x}" if shared else ""
    else:
        for document in held_out:
            total += 1
            digest = document_digests([document])[0]
            place = int(np.searchsorted(train, digest))
            if place < len(train) and train[place] == digest:
                shared += 1
                first = first or document.id
    if shared > allowed:
        raise CorpusError(
            f"{shared} of {total} documents of {held_out_name} were trained on, {allowed} allowed; "
            f"the first is {first}. Score documents that the run has not seen"
        )
    return shared
