"""Small files that claim, nest or unpack to a lot; run as a program, it reads each in a process.

Every bomb has the memory that its format declares as the most for such a file (`cap`, in bytes).
A child is forked for each from a parent that has read sound files of all sorts, so that what
grows in it is the bomb's doing; it prints one JSON line: name, outcome, growth of resident
memory and `cap` in bytes, CPU seconds, size of the file.
"""

import gc
import io
import json
import os
import resource
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pyarrow
import pyarrow.parquet
import torch
import zstandard
from reliability_mutants import golf_file
from reliability_readers import (
    TRUNK,
    Reader,
    artifacts,
    make_readers,
)

from tokgolf.artifact.container import FRAME, MAGIC, VERSION, unpack
from tokgolf.artifact.load import FREE_PARAMS, PARAMS_PER_BYTE
from tokgolf.config import to_dict
from tokgolf.corpora.files import MAX_UNPACKED_BYTES
from tokgolf.tokenizers.asset import varint, wrap
from tokgolf.tokenizers.pack_sentencepiece import _pack

MIB = 1 << 20
MOST = 1 << 30  # of any child, whatever is declared


@dataclass(frozen=True, kw_only=True)
class Bomb:
    """A file for one of the readers; `signed` if the reader is to make its hash right first."""

    reader: str
    data: bytes
    cap: int = 0
    signed: bool = False


def forged(header: dict[str, Any], sections: dict[str, bytes] | None = None) -> bytes:
    """The first artifact with other header values and sections, its hash right."""
    old, parts = unpack(artifacts()[0])
    parts |= sections or {}
    entries = [[name, len(part)] for name, part in parts.items()]
    return golf_file({**old, **header, "sections": entries}, b"".join(parts.values()))


def framed(text: bytes) -> bytes:
    """An artifact with any text for a header and no sections."""
    data = FRAME.pack(MAGIC, VERSION, len(text), 0) + text
    return data + sha256(data).digest()


def trunk(**changes: Any) -> dict[str, Any]:
    """A header's trunk with other values."""
    return {"trunk": {**to_dict(TRUNK), **changes}}


def special_ids(number: int) -> bytes:
    """A foreign tokenizer of the bytes and that many special ids, in a few bytes and a NUL each."""
    layout = varint(2) + varint(256 << 2 | 1) + varint(number << 2 | 2)
    body = b"\0" + varint(256) + b"\0" + layout + varint(number) + bytes(number)
    return wrap("foreign", body)


def sentencepiece(flags: int, text: bytes, pieces: int = 1, normalizer: bytes = b"\0") -> bytes:
    """A sentencepiece asset with 256 bytes, an unknown piece and whole pieces."""
    layout = varint(3) + varint(256 << 3 | 2) + varint(1 << 3 | 4) + varint(pieces << 3 | 7)
    body = varint(flags) + varint(256) + normalizer + layout + varint(len(text)) + text
    return wrap("sentencepiece", body)


def in_rows(size: int, rows: int) -> bytes:
    """A table of the same document again and again, which it stores once."""
    file = io.BytesIO()
    table = pyarrow.table(
        {"text": pyarrow.array(["a" * size]).dictionary_encode().take([0] * rows)}
    )
    pyarrow.parquet.write_table(table, file, compression="zstd", store_schema=False)
    return file.getvalue()


def digests(shape: int) -> bytes:
    """A file of digests that claims to be long."""
    header = b"{'descr': '<u8', 'fortran_order': False, 'shape': (%d,), }" % shape
    data = b"\x93NUMPY\x01\0" + struct.pack("<H", len(header) + 1) + header + b"\n"
    return data + sha256(data).digest()


def shard(count: int) -> bytes:
    """A shard that claims that many tokens and has none."""
    return struct.pack("<3i", 20240520, 1, count).ljust(1024, b"\0")


def tensors(shape: list[int], end: int) -> bytes:
    """A safetensors file of one tensor that claims a shape and an end."""
    header = {"model.x": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


def zipped(data: bytes, times: int) -> bytes:
    """`data` again and again, by zstd."""
    packer = zstandard.ZstdCompressor(level=3).compressobj()
    return b"".join(packer.compress(data) for _ in range(times)) + packer.flush()


def make_bombs() -> dict[str, Bomb]:
    """The bombs by what they do."""
    narrow = {"d_model": 2, "heads": 1, "kv_heads": 1, "mlp_hidden": 1}
    wide = {"d_model": 512, "mlp_hidden": 512}
    most = 4 * (FREE_PARAMS + PARAMS_PER_BYTE * 4000)
    mask = {"name": "tied", "add": {"canonical-mask": {}}}
    return {
        "half a billion weights": Bomb(
            reader="artifact", data=forged(trunk(layers=64, d_model=2048, heads=16, kv_heads=16)),
        ),
        "as many weights as such a file may have": Bomb(
            reader="artifact", data=forged(trunk(**wide)), cap=most,
        ),
        "1,024 narrow layers": Bomb(
            reader="artifact", data=forged(trunk(layers=1024, **narrow)), cap=16 * MIB,
        ),
        "a window of a million": Bomb(
            reader="artifact", data=forged(trunk(sequence_length=MIB)), cap=64 * MIB,
        ),
        "a window of a million, wide": Bomb(
            reader="artifact", data=forged(trunk(sequence_length=MIB, d_model=64)),
        ),
        "262,144 ids in a tokenizer": Bomb(
            reader="artifact", data=forged({}, {"tokenizer": special_ids((1 << 18) - 256)}),
            cap=64 * MIB,
        ),
        "a mask of 65,536 x 65,536": Bomb(
            reader="artifact",
            data=forged({"head": mask} | trunk(**narrow), {"tokenizer": special_ids(65_280)}),
            cap=512 * MIB,
        ),
        "tables of one endless number": Bomb(
            reader="artifact", data=forged({}, {"tables": b"\xff" * MIB}), cap=2 * MIB,
        ),
        "a header nested 60,000 deep": Bomb(
            reader="artifact", data=framed(b"[" * 60_000),
        ),
        "a header of 6,000 sections": Bomb(
            reader="artifact",
            data=golf_file({"sections": [[f"{n:x}", 0] for n in range(6000)]}, b""),
        ),
        "LZMA to 67 MB of empty pieces": Bomb(
            reader="tokenizer", data=sentencepiece(64, _pack(bytes(67 * 10**6)), (1 << 18) - 257),
            cap=68 * MIB,
        ),
        "LZMA to 67 MB of letters": Bomb(
            reader="tokenizer", data=sentencepiece(64, _pack(b"a" * 67 * 10**6), (1 << 18) - 257),
            cap=68 * MIB,
        ),
        "LZMA to a table of 100 MB": Bomb(
            reader="tokenizer", cap=8 * MIB,
            data=sentencepiece(
                0, b"x\0<unk>", normalizer=b"\5" + varint(len(big := _pack(bytes(10**8)))) + big
            ),
        ),
        "65,535 merges of nothing": Bomb(
            reader="tokenizer", data=wrap("bpe", b"\0\0\xff\xff" + bytes(64)), cap=16 * MIB,
        ),
        "an expression of nested repeats": Bomb(
            reader="tokenizer", cap=16 * MIB,
            data=wrap(
                "bpe", b"\0\xff" + varint(4001) + b"(?:" * 800 + b"a" + b")*" * 800 + b"\0\0"
            ),
        ),
        "zstd to 1 GiB in one document": Bomb(
            reader="txt.zst", data=zipped(bytes(MIB), 1024), cap=MAX_UNPACKED_BYTES,
        ),
        "zstd to 1 GiB in one line": Bomb(
            reader="jsonl.zst", data=zipped(b"[" * MIB, 1024), cap=MAX_UNPACKED_BYTES,
        ),
        "one megabyte in 512 rows": Bomb(
            reader="parquet", data=in_rows(MIB, 512), cap=128 * MIB,
        ),
        "a trillion digests": Bomb(reader="digests", data=digests(10**12)),
        "two billion tokens": Bomb(reader="official shard", data=shard(2**31 - 1)),
        "tensors of 2**62 numbers": Bomb(
            reader="checkpoint tensors", data=tensors([1 << 31, 1 << 31], 0), signed=True,
        ),
        "a recipe of a million brackets": Bomb(
            reader="recipe", data=b"x = " + b"[" * MIB, cap=8 * MIB,
        ),
        "a recipe of a million digits": Bomb(
            reader="recipe", data=b"steps = " + b"9" * MIB, cap=8 * MIB,
        ),
        "a line of ten million brackets": Bomb(
            reader="jsonl", data=b"[" * (10 * MIB), cap=40 * MIB,
        ),
    }  # fmt: skip


def resident() -> int:
    """The most memory this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def explode(name: str, bomb: Bomb, reader: Reader) -> None:
    """In a forked child: read the bomb under the limits and print how it went."""
    with open("/proc/self/statm", encoding="ascii") as file:
        pages, now = (int(word) * resource.getpagesize() for word in file.read().split()[:2])
    most = pages + MOST
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    read: Callable[[bytes], None] = reader.read
    if bomb.signed and reader.read_signed is not None:
        read = reader.read_signed
    began = time.process_time()
    try:
        read(bomb.data)
        outcome = "read"
    except BaseException as error:
        outcome = f"{type(error).__name__}: {error}"[:300]
    seconds = time.process_time() - began
    row = [name, outcome, resident() - now, bomb.cap, seconds, len(bomb.data)]
    print(json.dumps(row), flush=True)


def main() -> None:
    """Read every bomb, each in a child of its own."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        readers = make_readers(Path(folder))
        for reader in readers.values():
            for sample in reader.samples:
                reader.read(sample)
        bombs = make_bombs()
        gc.collect()
        gc.freeze()
        for name, bomb in bombs.items():
            child = os.fork()
            if child == 0:
                try:
                    explode(name, bomb, readers[bomb.reader])
                finally:
                    os._exit(0)
            _, status = os.waitpid(child, 0)
            if status:
                print(json.dumps([name, f"ended with {status}", 0, 0, 0.0, 0]), flush=True)


if __name__ == "__main__":
    main()
