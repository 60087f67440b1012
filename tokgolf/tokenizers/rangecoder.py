"""Adaptive range coding with integer frequencies: the decoder; `pack.py` has the encoder.

A 48-bit range coder over frequency tables that both sides update alike (Martin 1979; Schindler
1998 for this carryless division form). Integers only, so a stream means the same everywhere.
Precision is no concern: totals stay below 2**21, the range above 2**40.
"""

from tokgolf.errors import TokenizerError

RANGE_BITS = 48
RENORMALIZE_BELOW = 1 << (RANGE_BITS - 8)


class Frequencies:
    """Counts of the symbols 0..size-1 with prefix sums in O(log size): a Fenwick tree."""

    def __init__(self, size: int) -> None:
        self.counts = [0] * size
        self.total = 0
        self._top = 1 << (size.bit_length() - 1)  # largest power of two <= size
        self._tree = [0] * (size + 1)

    def add(self, symbol: int, amount: int) -> None:
        """Raise the count of `symbol`."""
        self.counts[symbol] += amount
        self.total += amount
        node = symbol + 1
        while node < len(self._tree):
            self._tree[node] += amount
            node += node & -node

    def before(self, symbol: int) -> int:
        """Sum of the counts of all smaller symbols."""
        total = 0
        while symbol:
            total += self._tree[symbol]
            symbol &= symbol - 1
        return total

    def find(self, target: int) -> int:
        """The symbol with before(symbol) <= target < before(symbol) + counts[symbol].

        counts=[2, 0, 3], target=2 -> 2
        """
        symbol, step = 0, self._top
        while step:
            if symbol + step < len(self._tree) and self._tree[symbol + step] <= target:
                symbol += step
                target -= self._tree[symbol]
            step >>= 1
        return symbol


class RangeDecoder:
    """Reads symbols back from `data`, which ends where only zero bytes would follow."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._range = 1 << RANGE_BITS
        self._position = RANGE_BITS // 8
        self._code = int.from_bytes(data[: self._position].ljust(self._position, b"\0"))

    def decode(self, table: Frequencies) -> int:
        """The next symbol; the caller then updates `table` as the encoder did."""
        unit = self._range // table.total
        target = self._code // unit
        if target >= table.total:
            raise TokenizerError("tokenizer asset holds an impossible code; build it again")
        symbol = table.find(target)
        self._code -= unit * table.before(symbol)
        self._range = unit * table.counts[symbol]
        while self._range < RENORMALIZE_BELOW:
            following = self._data[self._position : self._position + 1] or b"\0"
            self._code = self._code << 8 | following[0]
            self._range <<= 8
            self._position += 1
        return symbol

    def check_end(self) -> None:
        """Raise `TokenizerError` if bytes are left that no symbol has used."""
        if self._position < len(self._data):
            raise TokenizerError(
                f"tokenizer asset holds {len(self._data)} bytes of code, "
                f"but only {self._position} are used; build it again"
            )
