"""Token shards: the challenge's `.bin` files, written and read, with a `.json` sidecar.

    bytes 0-1023    256 little-endian int32: 20240520, 1, token count N, then unspecified
    bytes 1024-     N little-endian uint16 token ids; the file has exactly 1024 + 2 N bytes

Unlike an official shard, one of ours has a sidecar that says which tokenizer and corpus it came
from, how many document bytes its tokens stand for, and the hash of the file, so that no changed
token goes unnoticed. Official shards are read as they are.
"""

import os
import re
from dataclasses import asdict, dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tokgolf.errors import CorpusError
from tokgolf.files import atomic_open
from tokgolf.sealed import read_sealed, write_sealed

MAGIC = 20240520
VERSION = 1
HEADER_BYTES = 1024
MAX_ID = 65_535
_MAX_TOKENS = 2**31 - 1  # the count is an int32

Tokens = npt.NDArray[np.uint16]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardInfo:
    """The sidecar: tokenizer fingerprint, corpus hash, what tokens stand for, the file's hash."""

    tokenizer: str
    corpus: str
    bytes: int
    tokens: int
    documents: int
    sha256: str

    def __post_init__(self) -> None:
        if min(self.bytes, self.tokens, self.documents) < 0:
            raise CorpusError(
                f"a shard cannot have {self.bytes} bytes, {self.tokens} tokens and "
                f"{self.documents} documents; counts start at 0"
            )


def write_shard(
    path: str | os.PathLike[str],
    tokens: npt.ArrayLike,
    *,
    fingerprint: str,
    corpus_sha256: str,
    byte_count: int,
    documents: int,
) -> ShardInfo:
    """Write one shard and its sidecar, atomically each; returns what the sidecar says.

    Raises `CorpusError` for ids outside 0..65535, or a path that does not end in `.bin`.
    """
    target = Path(path)
    if target.suffix != ".bin":
        raise CorpusError(f"{target} does not end in .bin; a token shard must")
    ids = _as_ids(tokens)
    if len(ids) > _MAX_TOKENS:
        raise CorpusError(f"{len(ids)} tokens do not fit a shard of {_MAX_TOKENS}; write several")
    header = np.zeros(HEADER_BYTES // 4, dtype="<i4")
    header[:3] = MAGIC, VERSION, len(ids)
    body = np.ascontiguousarray(ids, dtype="<u2")
    digest = sha256(header.tobytes())
    digest.update(body.data)
    info = ShardInfo(
        tokenizer=fingerprint,
        corpus=corpus_sha256,
        bytes=byte_count,
        tokens=len(ids),
        documents=documents,
        sha256=digest.hexdigest(),
    )
    # The sidecar goes first, so that a new shard never stands there without it.
    write_sealed(target.with_suffix(".json"), asdict(info))
    with atomic_open(target) as file:
        file.write(header.tobytes())
        file.write(body.data)
    return info


def read_shard(path: str | os.PathLike[str], *, fingerprint: str | None = None) -> Tokens:
    """The tokens of a shard: read-only, mapped rather than loaded.

    With `fingerprint`, a sidecar that is there must name that tokenizer, the same number of
    tokens and the hash of the file. Raises `CorpusError` for a file that is not a shard of exactly
    the stated length.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(HEADER_BYTES)
    if len(head) < HEADER_BYTES:
        raise CorpusError(f"{path} has {size} bytes, a shard's header alone has {HEADER_BYTES}")
    magic, version, count = (int(value) for value in np.frombuffer(head, "<i4", 3))
    if magic != MAGIC:
        raise CorpusError(f"{path} is not a token shard: it starts with {magic}, not {MAGIC}")
    if version != VERSION:
        raise CorpusError(f"{path} is a shard of version {version}; only {VERSION} is known")
    if count < 0 or size != HEADER_BYTES + 2 * count:
        raise CorpusError(
            f"{path} has {size} bytes, but its header says {count} tokens, which is "
            f"{HEADER_BYTES + 2 * count}; copy it again"
        )
    if fingerprint is not None:
        _check_sidecar(path, fingerprint, count)
    if not count:  # an empty file part cannot be mapped
        return np.frombuffer(b"", dtype="<u2")
    return np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES, shape=(count,))


def read_sidecar(path: str | os.PathLike[str]) -> ShardInfo | None:
    """What the sidecar of the shard at `path` says; None if there is none."""
    sidecar = Path(path).with_suffix(".json")
    try:
        values = read_sealed(sidecar)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CorpusError(
            f"{sidecar} is no sound sidecar: {error}; remove the shard and tokenize again"
        ) from error
    kinds: dict[str, Any] = ShardInfo.__annotations__
    if {key: type(values[key]) for key in values} != kinds:
        wanted = ", ".join(f"{key} ({kind.__name__})" for key, kind in kinds.items())
        raise CorpusError(f"{sidecar} is not a shard's sidecar; it must have exactly {wanted}")
    return ShardInfo(**values)


def shard_files(folder: str | os.PathLike[str], prefix: str) -> list[Path]:
    """The shards `PREFIX_000000.bin`, ... in order; not `fineweb_val_bytes_*` for `fineweb_val`.

    The challenge's byte-count files have the same layout and would match `fineweb_val_*.bin`.
    """
    pattern = re.compile(re.escape(prefix) + r"_\d{6}\.bin")
    return sorted(path for path in Path(folder).iterdir() if pattern.fullmatch(path.name))


class ShardWriter:
    """Writes documents into as many shards as they need; use it in a `with` block.

    A document is never divided, so that each sidecar's byte count is exact: a shard is closed
    before the document that would take it over `shard_tokens`, and one document longer than
    that has a shard to itself. After an exception the unfinished shard is not written.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        prefix: str,
        *,
        fingerprint: str,
        corpus_sha256: str,
        shard_tokens: int = 10**8,
    ) -> None:
        if shard_tokens < 1:
            raise CorpusError(f"shard_tokens is {shard_tokens}; it must be at least 1")
        self.paths: list[Path] = []
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        if old := shard_files(self._folder, prefix):
            raise CorpusError(
                f"{self._folder} already holds {len(old)} shards {prefix}_*.bin, which would be "
                "read with the new ones; remove them or choose another folder"
            )
        self._prefix = prefix
        self._fingerprint = fingerprint
        self._corpus_sha256 = corpus_sha256
        self._shard_tokens = shard_tokens
        self._pending: list[Tokens] = []
        self._tokens = self._bytes = 0

    def add(self, tokens: npt.ArrayLike, byte_count: int) -> None:
        """Append one document: its tokens and the length of its bytes."""
        ids = _as_ids(tokens)
        if self._pending and self._tokens + len(ids) > self._shard_tokens:
            self._write()
        self._pending.append(ids)
        self._tokens += len(ids)
        self._bytes += byte_count

    def _write(self) -> None:
        path = self._folder / f"{self._prefix}_{len(self.paths):06d}.bin"
        write_shard(
            path,
            np.concatenate(self._pending),
            fingerprint=self._fingerprint,
            corpus_sha256=self._corpus_sha256,
            byte_count=self._bytes,
            documents=len(self._pending),
        )
        self.paths.append(path)
        self._pending = []
        self._tokens = self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self._pending:
            self._write()


def _check_sidecar(path: str | os.PathLike[str], fingerprint: str, count: int) -> None:
    info = read_sidecar(path)
    if info is None:
        return
    if info.tokenizer != fingerprint:
        raise CorpusError(
            f"{path} was written by tokenizer {info.tokenizer[:12]}, not {fingerprint[:12]}; "
            "tokenize the corpus again"
        )
    if info.tokens != count:
        raise CorpusError(f"{path} has {count} tokens, its sidecar says {info.tokens}")
    with open(path, "rb") as file:
        found = file_digest(file, "sha256").hexdigest()
    if found != info.sha256:
        raise CorpusError(
            f"{path} has SHA-256 {found[:16]}, its sidecar says {info.sha256[:16]}: the tokens "
            "were damaged or edited; tokenize the corpus again"
        )


def _as_ids(tokens: npt.ArrayLike) -> Tokens:
    """The tokens as uint16, refused if any of them would change by it."""
    ids = np.asarray(tokens)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise CorpusError(f"tokens are a {ids.ndim}-d array of {ids.dtype}; give 1-d integers")
    if ids.size and not (0 <= int(ids.min()) and int(ids.max()) <= MAX_ID):
        raise CorpusError(
            f"token ids run from {ids.min()} to {ids.max()}; a shard holds 0 to {MAX_ID}, "
            "so use a smaller vocabulary"
        )
    return ids.astype(np.uint16)
