"""Documents from files and folders: text, JSON lines, Parquet, each also read back in a stream.

    .txt  .txt.zst       the whole file is one document, its raw bytes; id "name.txt"
    .jsonl  .jsonl.zst   one document a line, field `text`; id "name.jsonl#LINE", from 1
    .parquet             one document a row, column `text`; id "name.parquet#ROW", from 0

A folder is all such files below it in name order, ids prefixed with the relative path. Text is
encoded as UTF-8; lone surrogates, which JSON can spell and UTF-8 cannot, keep their 3 bytes.
"""

import json
import os
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tokgolf.corpora.corpus import (
    CHALLENGE_FILE,
    OWN_SPLITS,
    SPLITS,
    Corpus,
    Document,
    select_by_hash,
    select_by_position,
)
from tokgolf.errors import CorpusError
from tokgolf.files import atomic_open

_CHUNK = 1 << 16
_ZST_PIECE = 1 << 8  # zstd unpacks to at most 32,768 times as much: never over 8 MiB at once
MAX_UNPACKED_BYTES = 1 << 27  # of one document in a .zst file, however small the file is
_ROWS = 16  # at once; each may be a large document that a small file has many times


def open_path(path: Path, split: str | None, name: str, field: str = "text") -> Corpus:
    """The documents of a file or folder. Raises `CorpusError` for a path of no known kind.

    The splits are the source's own where it has any: entries of a folder called train, val,
    validation or test (`val/`, `val.jsonl.zst`), or the positions in the challenge's
    docs_selected.jsonl. Elsewhere `split_of(id)` decides.
    """
    if not path.is_dir():
        _reader(path)
        return _corpus([(path, path.name)], split, split, name, field)
    files = [(file, file.relative_to(path).as_posix()) for file in _known_files(path)]
    if not files:
        raise CorpusError(f"folder {path} holds no documents; it needs files of {_kinds()}")
    own: dict[str, list[tuple[Path, str]]] = {}
    for file, file_id in files:
        entry = file.relative_to(path).parts[0]
        stem = entry if (path / entry).is_dir() else _stem(entry)
        if stem in OWN_SPLITS:
            own.setdefault(OWN_SPLITS[stem], []).append((file, file_id))
    if split is None or not own:
        return _corpus(files, split, split, name, field)
    if split not in own:
        known = ", ".join(each for each in SPLITS if each in own)
        raise CorpusError(f"corpus {name} has no {split} split; its own splits are {known}")
    return _corpus(own[split], split, None, name, field)


def _corpus(
    files: list[tuple[Path, str]], split: str | None, select: str | None, name: str, field: str
) -> Corpus:
    """The corpus of (file, its id); `select` is the split still to be picked out of the files."""

    def source() -> Iterator[Document]:
        for path, file_id in files:
            yield from _select(_reader(path)(path, file_id, field), select, path, name)

    return Corpus(name=name, split=split, source=source)


def write_jsonl(path: str | os.PathLike[str], documents: Iterable[Document]) -> int:
    """Write documents as `.jsonl` or `.jsonl.zst`, atomically; returns how many.

    Each line has `id` and `text`. Raises `CorpusError` for a document that JSON text cannot
    give back byte for byte (it is not UTF-8), and for a path with another ending.
    """
    target = Path(path)
    if _kind(target.name) not in (".jsonl", ".jsonl.zst"):
        raise CorpusError(f"{target} does not end in .jsonl or .jsonl.zst; rename it")
    count = 0
    with atomic_open(target) as file:
        if target.name.lower().endswith(".zst"):
            import zstandard

            packer = zstandard.ZstdCompressor(level=10, write_checksum=True)
            stream: Any = packer.stream_writer(file, closefd=False)
        else:
            stream = file
        for document in documents:
            stream.write(_json_line(document))
            count += 1
        if stream is not file:
            stream.close()
    return count


def _json_line(document: Document) -> bytes:
    try:
        text = document.data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"document {document.id} is not UTF-8 at byte {error.start} of "
            f"{len(document.data)}, so it cannot be a line of JSON; use .txt or .parquet"
        ) from error
    line = json.dumps({"id": document.id, "text": text})
    if json.loads(line)["text"] != text:  # two surrogates side by side are read as one character
        raise CorpusError(
            f"document {document.id} has an encoded surrogate pair, which JSON would merge; "
            "use .txt or .parquet"
        )
    return line.encode("ascii") + b"\n"


# --- kinds of files


def _read_text(path: Path, name: str, field: str) -> Iterator[Document]:
    yield Document(name, b"".join(_chunks(path)))


def _read_jsonl(path: Path, name: str, field: str) -> Iterator[Document]:
    for number, line in enumerate(_lines(_chunks(path)), 1):
        if number == 1:
            line = line.removeprefix(BOM_UTF8)  # no part of a JSON text: RFC 8259, section 8.1
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            value = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise CorpusError(
                f"{where} is not UTF-8 at byte {error.start}; re-encode it"
            ) from error
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"{where} is not JSON: {error}") from error
        text = value.get(field) if isinstance(value, dict) else None
        if not isinstance(text, str):
            raise CorpusError(f"{where} has no string field {field!r}; {_found(value, field)}")
        yield Document(f"{name}#{number}", text.encode("utf-8", "surrogatepass"))


def _found(value: Any, field: str) -> str:
    if isinstance(value, dict):
        if field in value:
            kind = "null" if value[field] is None else f"of type {type(value[field]).__name__}"
            return f"its {field!r} is {kind}"
        return f"its fields are {', '.join(map(repr, value)) or 'none'}"
    return f"it is of type {type(value).__name__}, not an object"


def _read_parquet(path: Path, name: str, field: str) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            schema = table.schema_arrow
            if field not in schema.names:
                raise CorpusError(
                    f"{path} has no column {field!r}; its columns are {', '.join(schema.names)}"
                )
            kind = schema.field(field).type
            if kind not in (
                pyarrow.string(),
                pyarrow.large_string(),
                pyarrow.binary(),
                pyarrow.large_binary(),
            ):
                raise CorpusError(f"{path}: column {field!r} is of type {kind}, not string")
            row = 0
            for batch in table.iter_batches(batch_size=_ROWS, columns=[field]):
                # As binary the stored bytes come out as they are, valid UTF-8 or not.
                for data in batch.column(0).cast(pyarrow.large_binary()).to_pylist():
                    if data is None:
                        raise CorpusError(f"{path} row {row} has a null in column {field!r}")
                    yield Document(f"{name}#{row}", data)
                    row += 1
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the operating system's own: no such file, no permission
        reason = str(error).splitlines()[0]
        raise CorpusError(f"{path} is not a readable Parquet file: {reason}") from error


_Reader = Callable[[Path, str, str], Iterator[Document]]
_READERS: dict[str, _Reader] = {
    ".txt": _read_text,
    ".txt.zst": _read_text,
    ".jsonl": _read_jsonl,
    ".jsonl.zst": _read_jsonl,
    ".parquet": _read_parquet,
}


def _kinds() -> str:
    return ", ".join(_READERS)


def _kind(name: str) -> str | None:
    return next((kind for kind in _READERS if name.lower().endswith(kind)), None)


def _stem(name: str) -> str:
    kind = _kind(name)
    return name[: -len(kind)] if kind else name


def _reader(path: Path) -> _Reader:
    kind = _kind(path.name)
    if kind is None:
        raise CorpusError(f"{path} is not of a known kind; known: {_kinds()}, or a folder of them")
    return _READERS[kind]


# --- folders and splits


def _known_files(folder: Path) -> list[Path]:
    """All files of known kinds below `folder`, by name; nothing hidden, no linked folders."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [each for each in folders if not each.startswith(".")]
        found += [Path(parent, file) for file in files if _kind(file) and file[0] != "."]
    return sorted(found, key=lambda file: file.relative_to(folder).parts)


def _select(
    documents: Iterator[Document], split: str | None, path: Path, name: str
) -> Iterator[Document]:
    # By hash, 90 % of the challenge's validation text would be called train.
    if path.name in (CHALLENGE_FILE, f"{CHALLENGE_FILE}.zst"):
        return select_by_position(documents, split, name)
    return select_by_hash(documents, split)


# --- bytes of a file


def _chunks(path: Path) -> Iterator[bytes]:
    """The file's content in pieces, decompressed if it ends in .zst."""
    with open(path, "rb") as file:
        if path.name.lower().endswith(".zst"):
            yield from _decompressed(iter(lambda: file.read(_ZST_PIECE), b""), path)
        else:
            yield from iter(lambda: file.read(_CHUNK), b"")


def _decompressed(pieces: Iterator[bytes], path: Path) -> Iterator[bytes]:
    """Decompress zstd frames, one after another.

    zstandard's own stream reader takes a frame that was cut short for a complete one, so this
    asks each frame whether it has reached its end. A document of more than `MAX_UNPACKED_BYTES`
    is refused while it is being unpacked: a few kB could fill the memory.
    """
    import zstandard

    decompressor = zstandard.ZstdDecompressor()
    frame: Any = decompressor.decompressobj()
    frames = taken = size = 0
    lines = _kind(path.name) == ".jsonl.zst"
    try:
        for piece in pieces:
            taken += len(piece)
            while piece:
                if frame is None:
                    frame = decompressor.decompressobj()
                unpacked = frame.decompress(piece)
                cut = unpacked.rfind(b"\n") if lines else -1
                size = len(unpacked) - cut - 1 if cut >= 0 else size + len(unpacked)
                if size > MAX_UNPACKED_BYTES:
                    raise CorpusError(
                        f"{path} has a document of over {MAX_UNPACKED_BYTES:,} bytes; divide it "
                        "or unpack the file"
                    )
                yield unpacked
                piece = frame.unused_data if frame.eof else b""
                if frame.eof:
                    frame, frames = None, frames + 1
    except zstandard.ZstdError as error:
        raise CorpusError(f"{path} is not valid zstd data: {error}") from error
    if frame is not None:
        raise CorpusError(
            f"{path} is cut short: its zstd frame {frames + 1} has no end within {taken} bytes; "
            "copy the file again"
        )


def _lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    r"""Split a stream at "\n" and nothing else; a line across many pieces is joined once."""
    pending: list[bytes] = []
    for piece in pieces:
        *ended, rest = piece.split(b"\n")
        for line in ended:
            yield b"".join([*pending, line])
            pending = []
        pending.append(rest)
    yield b"".join(pending)
