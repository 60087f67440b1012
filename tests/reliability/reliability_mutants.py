"""Damaged and forged files, made from sound ones; number i of a seed is always the same.

Unlike a coverage fuzzer this needs nothing but a seed, so a failure is named by three words
(reader, seed, number) and made again in a moment. `damage` changes bytes as disks, copies and
editors do; `golf_forgery` rewrites an artifact as somebody would who knows the format.
"""

import json
import random
import struct
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

from tokgolf.artifact.container import FRAME, MAGIC, VERSION, unpack

FOREIGN = (
    b"", b"\x7fELF\x02\x01\x01" + bytes(57), b"PK\x03\x04" + bytes(26), b"\x80\x04K\x01.",
    b"\x89PNG\r\n\x1a\n" + bytes(20), b"GGUF\x03\0\0\0" + bytes(16), b"\x1f\x8b\x08" + bytes(15),
    b"PAR1" + bytes(20) + b"PAR1", b"{}", b"[]", b"null\n", b"TOK\x02", b"GOLF\x01\0\0\0",
    b"\x28\xb5\x2f\xfd\0\x58\0\0", b"\xff" * 64, bytes(4096), b"#!/bin/sh\nexit 0\n",
)  # fmt: skip
NUMBERS = (0, 1, -1, 2, 127, 128, 255, 256, 65535, 65536, 1 << 31, (1 << 32) - 1, 1 << 63, 10**400)
VALUES: tuple[Any, ...] = (*NUMBERS, 0.5, 1e308, -0.0, True, None, "", "x" * 300, [], {}, [[]])


def source(seed: int, reader: str, number: int) -> random.Random:
    """The random numbers of one mutant."""
    return random.Random(f"{seed} {reader} {number}")


def damage(rng: random.Random, data: bytes, others: Sequence[bytes]) -> tuple[str, bytes]:
    """What was done, and `data` after it, never the same. `others` are sound files of the sort."""
    what, damaged = rng.choice(_DAMAGE)(rng, data, others)
    return (what, damaged) if damaged != data else _flip(rng, data, others)


def _flip(rng: random.Random, data: bytes, others: Sequence[bytes]) -> tuple[str, bytes]:
    out = bytearray(data or b"\0")
    bit = rng.randrange(8 * len(out))
    out[bit // 8] ^= 1 << bit % 8
    return f"bit {bit} flipped", bytes(out)


def _set(rng: random.Random, data: bytes, others: Sequence[bytes]) -> tuple[str, bytes]:
    out, places = bytearray(data or b"\0"), []
    for _ in range(rng.randint(1, 5)):
        places.append((rng.randrange(len(out)), rng.randrange(256)))
        out[places[-1][0]] = places[-1][1]
    return f"bytes set: {places}", bytes(out)


def _truncate(rng: random.Random, data: bytes, others: Sequence[bytes]) -> tuple[str, bytes]:
    end = rng.randrange(len(data) + 1)
    return f"cut at {end}", data[:end]


def _insert(rng: random.Random, data: bytes, others: Sequence[bytes]) -> tuple[str, bytes]:
    place, new = rng.randrange(len(data) + 1), rng.randbytes(rng.choice((1, 2, 4, 64)))
    return f"{len(new)} bytes put in at {place}", data[:place] + new + data[place:]


def _delete(rng: random.Random, data: bytes, others: Sequence[bytes]) -> tuple[str, bytes]:
    start, size = rng.randrange(len(data) + 1), rng.choice((1, 2, 4, 64, 512))
    return f"{size} bytes taken out at {start}", data[:start] + data[start + size :]


def _zero(rng: random.Random, data: bytes, others: Sequence[bytes]) -> tuple[str, bytes]:
    start = rng.randrange(len(data) + 1)
    size = min(rng.choice((1, 4, 32, 512, 4096)), len(data) - start)
    fill = rng.choice((b"\0", b"\xff")) * size
    return f"{size} bytes filled at {start}", data[:start] + fill + data[start + size :]


def _swap(rng: random.Random, data: bytes, others: Sequence[bytes]) -> tuple[str, bytes]:
    a, b, c = sorted(rng.randrange(len(data) + 1) for _ in range(3))
    return f"blocks {a}:{b} and {b}:{c} swapped", data[:a] + data[b:c] + data[a:b] + data[c:]


def _number(rng: random.Random, data: bytes, others: Sequence[bytes]) -> tuple[str, bytes]:
    width, value = rng.choice((1, 2, 4, 8)), rng.choice(NUMBERS)
    new = (value & (1 << 8 * width) - 1).to_bytes(width, rng.choice(("little", "big")))
    place = rng.randrange(len(data) + 1)
    return f"{new.hex()} written at {place}", data[:place] + new + data[place + width :]


def _splice(rng: random.Random, data: bytes, others: Sequence[bytes]) -> tuple[str, bytes]:
    other = rng.choice(others)
    place = rng.randrange(min(len(data), len(other)) + 1)
    return f"goes on as another file from {place}", data[:place] + other[place:]


def _double(rng: random.Random, data: bytes, others: Sequence[bytes]) -> tuple[str, bytes]:
    return "the file twice", data + data


def _other_sort(rng: random.Random, data: bytes, others: Sequence[bytes]) -> tuple[str, bytes]:
    other = rng.choice(FOREIGN)
    return "another sort of file", other + (data if rng.random() < 0.5 else b"")


def _varints(rng: random.Random, data: bytes, others: Sequence[bytes]) -> tuple[str, bytes]:
    place, run = rng.randrange(len(data) + 1), rng.choice((1, 2, 4, 8, 9, 10, 100))
    new = b"\xff" * run + bytes([rng.randrange(128)])
    return f"a varint of {run + 1} bytes at {place}", data[:place] + new + data[place + run + 1 :]


_Damage = Callable[[random.Random, bytes, Sequence[bytes]], tuple[str, bytes]]
_DAMAGE: tuple[_Damage, ...] = (
    _flip, _flip, _flip, _set, _set, _truncate, _insert, _delete, _zero, _swap, _number, _splice,
    _double, _other_sort, _varints,
)  # fmt: skip


# --- JSON


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places in a JSON value: {"a": [1]} -> (), ("a",), ("a", 0)."""
    keys: Sequence[Any] = ()
    if isinstance(value, dict):
        keys = [*value]
    elif isinstance(value, list):
        keys = range(len(value))
    return [path, *(place for key in keys for place in paths_of(value[key], (*path, key)))]


def json_forgery(rng: random.Random, value: Any) -> tuple[str, Any]:
    """A JSON value with one thing in it changed, taken out, renamed or doubled."""
    value = json.loads(json.dumps(value))
    path = rng.choice(paths_of(value))
    if not path:
        new = rng.choice(VALUES)
        return f"all of it is {new!r:.20}", new
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    key, kind = path[-1], rng.randrange(4)
    if kind == 0:
        del parent[key]
        return f"{path} taken out", value
    if kind == 1 and isinstance(parent, dict):
        parent[rng.choice(("x", key + "s", key[::-1], ""))] = parent.pop(key)
        return f"{path} renamed", value
    if kind == 2 and isinstance(parent[key], int | float):
        parent[key] = rng.choice(
            (parent[key] + 1, parent[key] - 1, -parent[key], parent[key] * 2, str(parent[key]))
        )
        return f"{path} near what it was", value
    parent[key] = rng.choice(VALUES)
    return f"{path} is {parent[key]!r:.20}", value


# --- artifacts


def golf_file(header: Any, body: bytes) -> bytes:
    """The file with any JSON for a header, its lengths and hash right, as a forger makes it."""
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    data = FRAME.pack(MAGIC, VERSION, len(text), len(body)) + text + body
    return data + sha256(data).digest()


def golf_signed(data: bytes) -> bytes:
    """`data`, its last 32 bytes the hash of the rest and its body length as it must be."""
    data = data[: max(len(data) - 32, 0)]
    if len(data) >= FRAME.size:
        header_bytes = struct.unpack_from("<I", data, 8)[0]
        body = len(data) - FRAME.size - header_bytes
        if 0 <= body:
            data = data[:12] + struct.pack("<I", body) + data[16:]
    return data + sha256(data).digest()


def golf_forgery(rng: random.Random, data: bytes, others: Sequence[bytes]) -> tuple[str, bytes]:
    """An artifact that somebody who knows the format has rewritten, with a right hash."""
    header, sections = unpack(data)
    names = list(sections)
    kind = rng.randrange(8)
    if kind == 0:  # another value in the header, or another header
        what, header = json_forgery(rng, header)
        if not isinstance(header, dict):
            return what, golf_file(header, b"".join(sections.values()))
    elif kind == 1:  # a lie about lengths or names
        body = b"".join(sections.values())
        entries: Any = [[name, len(part)] for name, part in sections.items()]
        what, entries = json_forgery(rng, entries)
        return f"sections: {what}", golf_file({**header, "sections": entries}, body)
    elif kind == 2:  # two sections have each other's content
        one, other = rng.sample(names, 2)
        sections[one], sections[other] = sections[other], sections[one]
        what = f"{one} and {other} swapped"
    elif kind == 3:  # sections of another artifact
        theirs = unpack(rng.choice(others))[1]
        taken = [name for name in rng.sample(names, rng.randint(1, 3)) if name in theirs]
        sections |= {name: theirs[name] for name in taken}
        what = f"{taken} from another artifact"
    elif kind == 4:  # the header of another artifact
        what, header = "the header of another artifact", unpack(rng.choice(others))[0]
    elif kind == 5:  # order, names
        rng.shuffle(names)
        name = rng.choice(names)
        renamed = {name: rng.choice(("", "../x", "/etc/passwd", "tokenizer ", "\u00e9"))}
        sections = {renamed.get(each, each): sections[each] for each in names}
        what = f"order {names}, {renamed}"
    else:  # damage within one section
        name = rng.choice(names)
        what, sections[name] = damage(rng, sections[name], [sections[name]])
        what = f"{name}: {what}"
    entries = [[name, len(part)] for name, part in sections.items()]
    return what, golf_file({**header, "sections": entries}, b"".join(sections.values()))
