"""The frame of a .golf file: its golden bytes, one refusal a rule, and damage of every bit."""

import json
import struct
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokgolf.artifact.container import MAX_HEADER, pack, unpack
from tokgolf.errors import ArtifactError

HEADER = {"b": [1, 2.5], "a": "\u00e9"}
SECTIONS = {"s": b"hi", "empty": b"", "t": b"\x00\xff"}
GOLDEN = bytes.fromhex(
    "474f4c46"  # GOLF
    "04000000"  # version
    "43000000"  # header bytes
    "04000000"  # body bytes
    "7b2261223a225c7530306539222c2262223a5b312c322e355d2c"  # {"a":"\u00e9","b":[1,2.5],
    "2273656374696f6e73223a5b5b2273222c325d2c5b22656d707479222c305d2c5b2274222c325d5d7d"
    "6869" "00ff"
)  # fmt: skip
TEXT = GOLDEN[16:-4]


def signed(data: bytes) -> bytes:
    return data + sha256(data).digest()


def framed(text: bytes, body: bytes, *, magic: bytes = b"GOLF", version: int = 4) -> bytes:
    """A file with any header text and body, its lengths and hash right, as a forger makes it."""
    return signed(struct.pack("<4sIII", magic, version, len(text), len(body)) + text + body)


def test_a_file_is_these_bytes() -> None:
    assert pack(HEADER, SECTIONS) == signed(GOLDEN)
    assert unpack(signed(GOLDEN)) == (HEADER, SECTIONS)
    assert framed(TEXT, b"hi\x00\xff") == signed(GOLDEN)


def test_the_order_of_header_keys_does_not_matter_at_any_depth() -> None:
    one: dict[str, Any] = {"x": {"p": 1, "q": {"r": 2, "s": 3}}, "y": 0.1}
    other: dict[str, Any] = {"y": 0.1, "x": {"q": {"s": 3, "r": 2}, "p": 1}}
    assert list(one) != list(other)
    assert pack(one, SECTIONS) == pack(other, SECTIONS)


def test_the_order_of_sections_is_kept() -> None:
    turned = dict(reversed(SECTIONS.items()))
    assert list(unpack(pack(HEADER, turned))[1]) == ["t", "empty", "s"]
    assert pack(HEADER, turned) != pack(HEADER, SECTIONS)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    header=st.dictionaries(st.text(max_size=8).filter(lambda k: k != "sections"), json_values),
    sections=st.dictionaries(st.text(max_size=8), st.binary(max_size=30), max_size=5),
)
def test_what_is_packed_is_unpacked(header: dict[str, Any], sections: dict[str, bytes]) -> None:
    data = pack(header, sections)
    found_header, found_sections = unpack(data)
    assert found_header == header
    assert list(found_sections.items()) == list(sections.items())
    assert pack(found_header, found_sections) == data


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_header_value_that_json_lacks_is_not_written(value: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        pack({"a": value}, {})


def test_a_header_over_the_limit_is_neither_written_nor_read() -> None:
    empty = len(b'{"a":"","sections":[]}')
    largest = pack({"a": "x" * (MAX_HEADER - empty)}, {})
    assert unpack(largest)[0] == {"a": "x" * (MAX_HEADER - empty)}
    with pytest.raises(ArtifactError, match="header is 65,537 bytes; .* 65,536"):
        pack({"a": "x" * (MAX_HEADER - empty + 1)}, {})
    text = json.dumps({"a": "x" * (MAX_HEADER - empty + 1), "sections": []}, separators=(",", ":"))
    with pytest.raises(ArtifactError, match="cut short or edited"):
        unpack(framed(text.encode(), b""))


def changed(offset: int, new: bytes) -> Callable[[], bytes]:
    return lambda: signed(GOLDEN[:offset] + new + GOLDEN[offset + len(new) :])


def with_sections(sections: str, body: bytes = b"abcd") -> Callable[[], bytes]:
    return lambda: framed(b'{"sections":' + sections.encode() + b"}", body)


def with_text(text: bytes) -> Callable[[], bytes]:
    return lambda: framed(text, b"")


REFUSALS: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "not a .golf artifact"),
    "only a frame's first bytes": (lambda: GOLDEN[:15], "not a .golf artifact"),
    "only a frame": (lambda: GOLDEN[:16], "is 16 bytes but declares 119"),
    "another magic": (changed(0, b"GOLD"), "starts with b'GOLD', not b'GOLF'"),
    "version 0": (changed(4, b"\0"), "format version 0, this tokgolf reads 4"),
    "version 1": (changed(4, b"\1"), "format version 1, this tokgolf reads 4"),
    "version 2": (changed(4, b"\2"), "format version 2, this tokgolf reads 4"),
    "version 3": (changed(4, b"\3"), "format version 3, this tokgolf reads 4"),
    "a header length of 4 GB": (changed(8, b"\xff" * 4), "is 119 bytes but declares 4,29"),
    "a body length of 4 GB": (changed(12, b"\xff" * 4), "is 119 bytes but declares 4,29"),
    "a body length 1 too small": (changed(12, b"\3"), "declares 118"),
    "a byte after the end": (lambda: signed(GOLDEN) + b"\0", "is 120 bytes but declares 119"),
    "a wrong hash": (lambda: GOLDEN + sha256(b"").digest(), "checksum does not match"),
    "no JSON": (with_text(b"{"), "not canonical JSON"),
    "no header at all": (with_text(b""), "not canonical JSON"),
    "bytes that are not ASCII": (with_text(b'{"\xc3\xa9":1,"sections":[]}'), "not canonical"),
    "a key twice": (with_text(b'{"a":1,"a":1,"sections":[]}'), "a key occurs twice"),
    "a key twice, deep": (with_text(b'{"a":{"b":1,"b":1},"sections":[]}'), "occurs twice"),
    "NaN": (with_text(b'{"a":NaN,"sections":[]}'), "NaN is not a number"),
    "infinity": (with_text(b'{"a":-Infinity,"sections":[]}'), "-Infinity is not a number"),
    "infinity in digits": (with_text(b'{"a":1e999,"sections":[]}'), "not canonical JSON"),
    "ten thousand digits": (
        with_text(b'{"a":' + b"9" * 10_000 + b',"sections":[]}'), "not canonical JSON"),
    "deep nesting": (with_text(b"[" * 60_000), "not canonical JSON"),
    "a space": (with_text(b'{"a": 1,"sections":[]}'), "other spaces, key order or spelling"),
    "keys in another order": (with_text(b'{"sections":[],"a":1}'), "other spaces, key order"),
    "a number in another spelling": (with_text(b'{"a":1.50,"sections":[]}'), "spelling"),
    "a list for a header": (with_text(b"[]"), "not a JSON object"),
    "no sections": (with_text(b"{}"), "no list of sections"),
    "sections that are no list": (with_sections("{}"), "no list of sections"),
    "a section that is no pair": (with_sections('[["a",4,0]]'), "section entry"),
    "a section without a name": (with_sections("[[4,4]]"), "section entry"),
    "a section twice": (with_sections('[["a",2],["a",2]]'), "section entry"),
    "a negative length": (with_sections('[["a",5],["b",-1]]'), "section entry"),
    "a length that is a float": (with_sections('[["a",4.0]]'), "section entry"),
    "a length that is true": (with_sections('[["a",3],["b",true]]'), "section entry"),
    "sections over the body": (with_sections('[["a",5]]'), "do not add up to its body"),
    "sections under the body": (with_sections('[["a",3]]'), "do not add up to its body"),
    "a section of 10**30 bytes": (with_sections(f'[["a",{10**30}]]'), "do not add up"),
}  # fmt: skip


@pytest.mark.parametrize("rule", REFUSALS)
def test_each_rule_has_its_refusal(rule: str) -> None:
    make, message = REFUSALS[rule]
    with pytest.raises(ArtifactError, match=message) as caught:
        unpack(make())
    assert "\n" not in str(caught.value)


def test_the_forger_of_these_tests_makes_sound_files() -> None:
    assert unpack(with_sections('[["a",1],["b",3]]')()) == ({}, {"a": b"a", "b": b"bcd"})
    assert unpack(with_text(b'{"a":1.5,"sections":[]}')()) == ({"a": 1.5}, {})


def test_every_truncation_is_refused() -> None:
    data = signed(GOLDEN)
    for length in range(len(data)):
        with pytest.raises(ArtifactError):
            unpack(data[:length])


def test_every_flipped_bit_is_refused() -> None:
    data = bytearray(signed(GOLDEN))
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ArtifactError):
            unpack(bytes(data))
        data[bit // 8] ^= 1 << bit % 8


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=20))
def test_no_signed_header_gets_another_error(text: bytes, body: bytes) -> None:
    try:
        header, sections = unpack(framed(text, body))
    except ArtifactError:
        return
    assert b"".join(sections.values()) == body and pack(header, sections) == framed(text, body)
