"""The file of a proof, `*.bits`: a header as short as can be before the coder's output.

`*.bits`, numbers little-endian:

    offset  bytes  content
    0       2      magic "TG"
    2       1      version, 1
    3       2      CRC-16 (CCITT, as `binascii.crc_hqx` from 0) of everything from offset 5 on
    5       2      the artifact: the first bytes of its SHA-256
    7       2      the kernels: the first bytes of the hash of `probe`
    9       4      the documents: the first bytes of their hash, as `Corpus.summary` has it
    13      2      torch's major version * 16 + the CPU's capability, minor version
    15      n      varints: 2 * number of documents, + 1 if there is a stride (else: the window);
                   the stride if there is one; tokens of each document with its closing BOS
    15 + n  ...    the code of all tokens, in the order of `incremental.grow` with 16 rows

The hash of the documents is what the proof rests on. The others are there to say at once, and by
name, why it would fail; they are short because a score has no room for them.
"""

import binascii
import os
import re
from dataclasses import dataclass

import torch

from tokgolf.artifact.load import MAX_FILE
from tokgolf.errors import ArtifactError, ScoreError, TokenizerError
from tokgolf.tokenizers.asset import read_varint, varint

MAGIC, VERSION = b"TG", 1
SIGNED, START = 5, 15
CAPABILITIES = ("DEFAULT", "AVX2", "AVX512", "AVX512_VNNI", "NEON", "SVE256", "VSX", "ZVECTOR")
OTHER = 15  # a capability of another name
# A file of a hundred bytes must not keep a decoder busy for a day: so few bits a token are noise.
FREE_TOKENS, TOKENS_PER_BYTE = 1 << 20, 1 << 10


@dataclass(frozen=True, kw_only=True)
class Header:
    """A `*.bits` file taken apart: the first bytes of hashes, tokens of each document, the code."""

    artifact: bytes
    kernels: bytes
    documents: bytes
    machine: bytes
    stride: int
    counts: list[int]
    code: bytes


def pack(header: Header) -> bytes:
    """The file. Raises `ScoreError` for one that `unpack` would refuse as too good to be true."""
    if sum(header.counts) > (most := most_tokens(len(header.code))):
        raise ScoreError(
            f"{sum(header.counts):,} tokens in {len(header.code):,} bytes are more than the "
            f"{most:,} that a file of that size can hold; compress fewer documents at once"
        )
    strides = [header.stride] if header.stride else []
    numbers = 2 * len(header.counts) + len(strides), *strides, *header.counts
    body = b"".join(
        (
            header.artifact,
            header.kernels,
            header.documents,
            header.machine,
            *(varint(number) for number in numbers),
            header.code,
        )
    )
    return MAGIC + bytes([VERSION]) + _checksum(body) + body


def unpack(data: bytes) -> Header:
    """Check and take apart a file. Raises `ArtifactError` for anything but a sound one."""
    if data[:2] != MAGIC:
        raise ArtifactError(f"not a .bits file: it starts with {data[:2]!r}, not {MAGIC!r}")
    if len(data) < START or _checksum(data[SIGNED:]) != data[3:SIGNED]:
        raise ArtifactError(
            f"the .bits file's checksum does not match its {len(data):,} bytes: it was cut short, "
            "damaged or edited"
        )
    if data[2] != VERSION:
        raise ArtifactError(
            f"the .bits file has format version {data[2]}, this tokgolf reads {VERSION}; "
            "use the tokgolf that wrote it"
        )
    try:
        number, place = read_varint(data, START)
        stride, place = read_varint(data, place) if number % 2 else (0, place)
        counts: list[int] = []
        while len(counts) < number // 2:  # each takes a byte, so that the file bounds them
            count, place = read_varint(data, place)
            counts.append(count)
    except TokenizerError as error:
        raise ArtifactError("the .bits file ends within its list of documents") from error
    most = most_tokens(len(data) - place)
    if not counts or min(counts) < 1 or sum(counts) > most:
        raise ArtifactError(
            f"the .bits file claims {len(counts):,} documents of {sum(counts):,} tokens; each has "
            f"at least 1, and {most:,} fit a file of its size"
        )
    return Header(
        artifact=data[5:7],
        kernels=data[7:9],
        documents=data[9:13],
        machine=data[13:START],
        stride=stride,
        counts=counts,
        code=data[place:],
    )


def read_bits(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a `*.bits` file. Raises `ArtifactError` for one too large to be one."""
    with open(path, "rb") as file:
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise ArtifactError(f"{os.fspath(path)}: over {MAX_FILE:,} bytes is no .bits file")
    return data


def most_tokens(code_bytes: int) -> int:
    """How many tokens a code of that many bytes may claim."""
    return FREE_TOKENS + TOKENS_PER_BYTE * code_bytes


def _checksum(body: bytes) -> bytes:
    return binascii.crc_hqx(body, 0).to_bytes(2, "little")


def machine() -> bytes:
    """What the kernels depend on, as far as it has a name."""
    major, minor = (int(number) for number in re.findall(r"\d+", torch.__version__)[:2])
    capability = torch.backends.cpu.get_cpu_capability()
    known = CAPABILITIES.index(capability) if capability in CAPABILITIES else OTHER
    return bytes([major % 16 * 16 + known, minor % 256])


def sides(there: bytes) -> str:
    """The machine a file names, and this one, in words."""

    def words(side: bytes) -> str:
        known = side[0] % 16
        name = CAPABILITIES[known] if known < len(CAPABILITIES) else "another CPU"
        return f"torch {side[0] // 16}.{side[1]} on {name}"

    if there == machine():
        return f"{words(there)} there and here, but another processor or library"
    return f"{words(there)} there, {words(machine())} here"
