"""The container of a tokenizer asset, `*.tok`: what the byte ledger charges for a tokenizer.

    offset  size  content
    0       3     magic, b"TOK"
    3       1     version, 2
    4       1     kind, an index into KINDS
    5       1     transform, an index into TRANSFORMS
    6       b     bigram bucket function: 0 for none, else four varints (count, two multipliers,
                  seed)
    6 + b   n     body, to the checksum; owned by the file of its kind (byte: empty)
    6+b+n   4     CRC-32 of everything before it, little-endian

A varint is little-endian base 128, the high bit set on all bytes but the last. The body's own
counts bound what it unpacks to, so that no file can make a reader allocate more than a few
megabytes.
"""

import zlib
from dataclasses import dataclass

from tokgolf.errors import ConfigError, TokenizerError
from tokgolf.hashing import BigramBuckets

MAGIC = b"TOK"
VERSION = 2
KINDS = ("byte", "bpe", "unigram", "sentencepiece", "greedy", "shortest", "foreign")
TRANSFORMS = ("none", "caps-v1", "caps", "caps-auto")

_START, _CHECKSUM_SIZE = 6, 4


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What an asset of any kind may carry: a transform of the text, a bucket function."""

    transform: str = "none"
    bigram: BigramBuckets | None = None


def wrap(kind: str, body: bytes, extras: Extras | None = None) -> bytes:
    """The asset with this kind, body and extras."""
    extras = extras or Extras()
    asset = MAGIC + bytes([VERSION, KINDS.index(kind), TRANSFORMS.index(extras.transform)])
    bigram = extras.bigram
    values = (bigram.count, *bigram.multipliers, bigram.seed) if bigram else (0,)
    asset += b"".join(map(varint, values)) + body
    return asset + zlib.crc32(asset).to_bytes(_CHECKSUM_SIZE, "little")


def kind_of(asset: bytes) -> str:
    """The kind of tokenizer in `asset`. Raises `TokenizerError` unless it is whole and sound."""
    if asset[: len(MAGIC)] != MAGIC:
        raise TokenizerError(
            f"not a tokenizer asset: it starts with {asset[: len(MAGIC)]!r}, not {MAGIC!r}; "
            "make one with tokgolf build-tokenizer"
        )
    smallest = _START + 1 + _CHECKSUM_SIZE
    if len(asset) < smallest:
        raise TokenizerError(
            f"tokenizer asset is cut short: {len(asset)} bytes, at least {smallest} expected; "
            "copy or build it again"
        )
    stored = int.from_bytes(asset[-_CHECKSUM_SIZE:], "little")
    actual = zlib.crc32(asset[:-_CHECKSUM_SIZE])
    if stored != actual:
        raise TokenizerError(
            f"tokenizer asset is damaged or cut short: {len(asset)} bytes with checksum "
            f"{actual:08x}, but it says {stored:08x}; copy or build it again"
        )
    version, kind, transform = asset[3:_START]
    if version != VERSION or kind >= len(KINDS) or transform >= len(TRANSFORMS):
        raise TokenizerError(
            f"tokenizer asset has version {version}, kind {kind} and transform {transform}; this "
            f"tokgolf reads version {VERSION}, kinds 0 to {len(KINDS) - 1} and transforms 0 to "
            f"{len(TRANSFORMS) - 1}; use a newer tokgolf or build it again"
        )
    return KINDS[kind]


def unwrap(kind: str, asset: bytes) -> bytes:
    """The body of an asset that must be of this kind."""
    found = kind_of(asset)
    if found != kind:
        raise TokenizerError(f"tokenizer asset is of kind {found}, not {kind}; use from_asset")
    return _split(asset)[1]


def extras_of(asset: bytes) -> Extras:
    """The extras of a sound asset."""
    return _split(asset)[0]


def _split(asset: bytes) -> tuple[Extras, bytes]:
    """Extras and body of an asset that `kind_of` has found sound."""
    rest = asset[_START:-_CHECKSUM_SIZE]
    count, place = read_varint(rest, 0)
    bigram = None
    if count:
        first, place = read_varint(rest, place)
        second, place = read_varint(rest, place)
        seed, place = read_varint(rest, place)
        try:
            bigram = BigramBuckets(count=count, multipliers=(first, second), seed=seed)
        except ConfigError as error:
            raise TokenizerError(f"tokenizer asset: {error}; build it again") from error
    return Extras(transform=TRANSFORMS[asset[5]], bigram=bigram), rest[place:]


def varint(value: int) -> bytes:
    """A number that is not negative, in base 128.

    300 -> b"\\xac\\x02"
    """
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def read_varint(data: bytes, place: int) -> tuple[int, int]:
    """The number at `place`, below 2**63, and the place after it."""
    value = 0
    for shift in range(0, 63, 7):
        if place >= len(data):
            break
        value |= (data[place] & 127) << shift
        place += 1
        if data[place - 1] < 128:
            return value, place
    raise TokenizerError(
        f"tokenizer asset holds a number that ends nowhere before byte {place} of {len(data)}; "
        "build it again"
    )
