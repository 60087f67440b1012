"""The container of a tokenizer asset, `*.tok`: what the byte ledger charges for a tokenizer.

    offset  size  content
    0       3     magic, b"TOK"
    3       1     version, 1
    4       1     kind, an index into KINDS
    5       4     n, the length of the body, little-endian
    9       n     body, owned by the file of its kind (byte: empty)
    9 + n   4     CRC-32 of everything before it, little-endian

A reader checks the length before it looks at the body, and the body's own counts bound what
it unpacks to, so that no file can make it allocate more than a few megabytes.
"""

import struct
import zlib

from tokgolf.errors import TokenizerError

MAGIC = b"TOK"
VERSION = 1
KINDS = ("byte", "bpe", "unigram")

_HEADER = struct.Struct("<3sBBI")
_CHECKSUM = struct.Struct("<I")


def wrap(kind: str, body: bytes) -> bytes:
    """The asset with this kind and body."""
    asset = _HEADER.pack(MAGIC, VERSION, KINDS.index(kind), len(body)) + body
    return asset + _CHECKSUM.pack(zlib.crc32(asset))


def kind_of(asset: bytes) -> str:
    """The kind of tokenizer in `asset`. Raises `TokenizerError` unless it is whole and sound."""
    if asset[: len(MAGIC)] != MAGIC:
        raise TokenizerError(
            f"not a tokenizer asset: it starts with {asset[: len(MAGIC)]!r}, not {MAGIC!r}; "
            "make one with tokgolf build-tokenizer"
        )
    overhead = _HEADER.size + _CHECKSUM.size
    if len(asset) < overhead:
        raise TokenizerError(
            f"tokenizer asset is cut short: {len(asset)} bytes, at least {overhead} expected; "
            "copy or build it again"
        )
    _, version, kind, length = _HEADER.unpack_from(asset)
    if len(asset) != overhead + length:
        raise TokenizerError(
            f"tokenizer asset is {len(asset)} bytes, but its header says {overhead + length}; "
            "copy or build it again"
        )
    stored, actual = _CHECKSUM.unpack(asset[-_CHECKSUM.size :])[0], zlib.crc32(asset[:-4])
    if stored != actual:
        raise TokenizerError(
            f"tokenizer asset is damaged: checksum {actual:08x}, but it says {stored:08x}; "
            "copy or build it again"
        )
    if version != VERSION or kind >= len(KINDS):
        raise TokenizerError(
            f"tokenizer asset has version {version} and kind {kind}; this tokgolf reads version "
            f"{VERSION} and kinds 0 to {len(KINDS) - 1}; use a newer tokgolf or build it again"
        )
    return KINDS[kind]


def unwrap(kind: str, asset: bytes) -> bytes:
    """The body of an asset that must be of this kind."""
    found = kind_of(asset)
    if found != kind:
        raise TokenizerError(f"tokenizer asset is of kind {found}, not {kind}; use from_asset")
    return asset[_HEADER.size : -_CHECKSUM.size]
