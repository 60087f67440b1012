"""Adaptive range coding with integer shares: the decoder; `pack.py` has the encoder.

A 64-bit range coder over shares that both sides compute alike (Martin 1979; Schindler 1998 for
this carryless division form). Integers only, so a stream means the same everywhere. Precision
is no concern: totals stay below 2**43, the range above 2**56.
"""

from typing import Any

from tokgolf.errors import TokenizerError

RANGE_BITS = 64
RENORMALIZE_BELOW = 1 << (RANGE_BITS - 8)


class RangeDecoder:
    """Reads symbols back from `data`, of which up to 8 zero bytes at the end were left out."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._range = 1 << RANGE_BITS
        self._position = RANGE_BITS // 8
        self._code = int.from_bytes(data[: self._position].ljust(self._position, b"\0"))

    def decode(self, ends: Any) -> int:
        """The next symbol, given where the share of each ends: an array of rising integers.

        ends=[2, 2, 5]: symbol 0 has 2 of 5 shares, 1 none and 2 the other 3
        """
        unit = self._range // int(ends[-1])
        symbol = int(ends.searchsorted(self._code // unit, "right"))
        if symbol == len(ends):
            raise TokenizerError("tokenizer asset holds an impossible code; build it again")
        start = int(ends[symbol - 1]) if symbol else 0
        self._code -= unit * start
        self._range = unit * (int(ends[symbol]) - start)
        self.refill()
        return symbol

    def refill(self) -> None:
        """Take in bytes until the range has its full precision."""
        while self._range < RENORMALIZE_BELOW:
            if self._position >= len(self._data) + RANGE_BITS // 8:
                raise TokenizerError(
                    f"tokenizer asset holds only {len(self._data)} bytes of code, but more are "
                    "needed; copy or build it again"
                )
            following = self._data[self._position : self._position + 1] or b"\0"
            self._code = self._code << 8 | following[0]
            self._range <<= 8
            self._position += 1

    def check_end(self) -> None:
        """Raise `TokenizerError` if bytes are left that no symbol has used."""
        if self._position < len(self._data):
            raise TokenizerError(
                f"tokenizer asset holds {len(self._data)} bytes of code, "
                f"but only {self._position} are used; build it again"
            )
