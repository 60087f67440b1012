"""Sealed JSON: what was written comes back, and no other byte sequence does."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokgolf.sealed import read_sealed, sealed, write_sealed

VALUES = {"a": 1, "b": [0.1, "\u00e9", None], "c": {"d": True}}
# printf '{"a": 1}' | sha256sum
GOLDEN = (
    '{\n "a": 1,\n "seal": "f9d86028c6e0d64e225186f96acb69338b2c59764df79162107f5c4bb34d1310"\n}\n'
)


def test_the_seal_is_the_hash_of_the_rest() -> None:
    assert sealed({"a": 1}) == GOLDEN


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.dictionaries(
        st.text(max_size=5).filter(lambda key: key != "seal"),
        st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.none(),
    )
)
def test_values_come_back(tmp_path: Path, values: dict[str, Any]) -> None:
    write_sealed(tmp_path / "x.json", values)
    assert read_sealed(tmp_path / "x.json") == values


def test_every_other_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    text = sealed(VALUES).encode()
    for place in range(len(text)):
        for changed in (text[:place], text[:place] + bytes([text[place] ^ 1]) + text[place + 1 :]):
            path.write_bytes(changed)
            with pytest.raises(ValueError):
                read_sealed(path)
    for spelt in (
        text + b"\n",
        text.replace(b" ", b""),
        text.replace(b'"a": 1', b'"a": 1, "a": 1'),
    ):
        path.write_bytes(spelt)
        with pytest.raises(ValueError, match="not what its seal says"):
            read_sealed(path)


@pytest.mark.parametrize("data", [b"[]", b"{}", b'"seal"', b"[" * 100_000])
def test_what_was_never_sealed_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(ValueError, match="has no 'seal'|nested too deeply"):
        read_sealed(tmp_path / "x.json")
