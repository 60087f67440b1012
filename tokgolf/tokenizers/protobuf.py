"""The little of protobuf that SentencePiece model files need: fields out, fields in.

Unlike the protobuf package this knows no schema: a message is a sequence of numbered fields,
and a field is an int (varint), the 4 bytes of a float, or bytes (text, a message).
"""

import struct
from collections.abc import Iterator
from typing import Any

from tokgolf.errors import TokenizerError
from tokgolf.tokenizers.asset import varint


def field(number: int, value: int | float | bytes) -> bytes:
    """One field: an int, not negative, as a varint; a float as 4 bytes; bytes after their length.

    number=3, value=300 -> b"\\x18\\xac\\x02"; number=1, value=b"ab" -> b"\\x0a\\x02ab"
    """
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a message in order, as number and int, float or bytes.

    Negative ints come as they are stored, above 2**63.

    b"\\x18\\xac\\x02" -> (3, 300). Raises `TokenizerError` if there is no sense in it.
    """
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, place = _varint(message, place)
            yield number, value
            continue
        if wire == 2:
            size, place = _varint(message, place)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise _no_message(message, place)
        if size > len(message) - place:
            raise _no_message(message, place)
        data, place = message[place : place + size], place + size
        yield number, struct.unpack("<f", data)[0] if wire == 5 else data


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            break
        value |= (message[place] & 127) << shift
        place += 1
        if message[place - 1] < 128:
            return value, place
    raise _no_message(message, place)


def _no_message(message: bytes, place: int) -> TokenizerError:
    return TokenizerError(
        f"no SentencePiece model: {len(message)} bytes stop making sense at byte {place}; "
        "take the .model file that its trainer wrote"
    )
