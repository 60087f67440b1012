"""The frame of a `*.golf` file: named sections of bytes behind a checked header.

    offset  bytes        content
    0       4            magic "GOLF"
    4       4            version, u32 little-endian (4)
    8       4            header length H, u32, at most 65,536
    12      4            body length B, u32
    16      H            header: canonical JSON (sorted keys, no spaces, ASCII)
    16+H    B            sections, back to back, in the header's order
    16+H+B  32           SHA-256 of everything before

`header["sections"]` is a list of [name, length] whose lengths sum to B. Nothing in a file is
executed, no path is stored, and the hash is checked before anything is interpreted.
"""

import json
import struct
from hashlib import sha256
from typing import Any

from tokgolf.errors import ArtifactError

MAGIC = b"GOLF"
VERSION = 4
MAX_HEADER = 1 << 16
FRAME = struct.Struct("<4sIII")
DIGEST_BYTES = 32


def pack(header: dict[str, Any], sections: dict[str, bytes]) -> bytes:
    """The file of a header and its sections; the same bytes for any order of header keys."""
    header = {**header, "sections": [[name, len(data)] for name, data in sections.items()]}
    text = canonical(header)
    if len(text) > MAX_HEADER:
        raise ArtifactError(f"the header is {len(text):,} bytes; the format allows {MAX_HEADER:,}")
    body = b"".join(sections.values())
    data = FRAME.pack(MAGIC, VERSION, len(text), len(body)) + text + body
    return data + sha256(data).digest()


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The header and sections of a file. Raises `ArtifactError` for anything but a sound one."""
    if len(data) < FRAME.size or data[:4] != MAGIC:
        raise ArtifactError(f"not a .golf artifact: it starts with {data[:4]!r}, not {MAGIC!r}")
    _, version, header_bytes, body_bytes = FRAME.unpack_from(data)
    if version != VERSION:
        raise ArtifactError(
            f"the artifact has format version {version}, this tokgolf reads {VERSION}; "
            "use the tokgolf that wrote it"
        )
    expected = FRAME.size + header_bytes + body_bytes + DIGEST_BYTES
    if header_bytes > MAX_HEADER or len(data) != expected:
        raise ArtifactError(
            f"the artifact is {len(data):,} bytes but declares {expected:,}; "
            "it was cut short or edited"
        )
    if sha256(data[:-DIGEST_BYTES]).digest() != data[-DIGEST_BYTES:]:
        raise ArtifactError("the artifact's checksum does not match: it was damaged or edited")
    header = _parse(data[FRAME.size : FRAME.size + header_bytes])
    sections: dict[str, bytes] = {}
    offset = FRAME.size + header_bytes
    for entry in _list(header.pop("sections", None)):
        name, length = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
        if not isinstance(name, str) or name in sections or type(length) is not int or length < 0:
            raise ArtifactError(f"the artifact's section entry {entry!r} is not usable")
        sections[name] = data[offset : offset + length]
        offset += length
    if offset != FRAME.size + header_bytes + body_bytes:
        raise ArtifactError("the artifact's sections do not add up to its body")
    return header, sections


def canonical(header: Any) -> bytes:
    """The one text of a header: sorted keys, no spaces, ASCII."""
    return json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _parse(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode("ascii"), object_pairs_hook=_unique, parse_constant=_refuse)
        if canonical(header) != text:
            raise ValueError("it has other spaces, key order or spelling")
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"the artifact's header is not canonical JSON: {error}") from error
    if not isinstance(header, dict):
        raise ArtifactError("the artifact's header is not a JSON object")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number")


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ArtifactError("the artifact's header has no list of sections")
    return value
