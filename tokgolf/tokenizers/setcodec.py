"""Sets of byte strings by context mixing: `pack.pack_set` writes what `unpack_set` reads.

The strings are a trie, told breadth first. The children of a node are yes-no questions: about
the bytes that follow its longest proper suffix in the trie, then about those that follow the
next shorter one, and so on while it has more. A child is asked whether it is a string of the
set, and if so whether it has no children. Each answer is predicted from several contexts (the
bytes before it, what the trie has for the suffix and for the twin in lower case, how many pairs
of shorter strings make it up), mixed in the logistic domain (Mahoney 2005, PAQ6), range coded.
The two tables hold rounded logarithms, none near a tie, so that they are the same on every
platform; all else is integers.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from tokgolf.errors import TokenizerError
from tokgolf.tokenizers.rangecoder import RangeDecoder

MAX_BYTES = 256  # of a string

# Probabilities are in 1/65536; stretched, as logarithms of odds, in 1/256 from -8 to 8.
SQUASH = [round(65536 / (1 + math.exp(-odds / 256))) for odds in range(-2047, 2048)]
STRETCH = [
    max(-2047, min(2047, round(256 * math.log((share + 0.5) / (4095.5 - share)))))
    for share in range(4096)
]
# After n answers in a context: how far the next moves its probability; how far to trust it.
_RATES = [655360 // (10 * n + 16) for n in range(256)]
_TRUST = [65536 * 2 * n // (2 * n + 3) for n in range(256)]
_FIRST_WEIGHT, _LEARNING = 20000, 12

# Learned vocabularies take 20 questions a byte of code and random strings up to 270, but a forged
# code could go on for ever; nor shall it fill the memory.
FREE_QUESTIONS, QUESTIONS_PER_BYTE = 1 << 14, 300
_MOST_CELLS = 1 << 17

_SYMBOLS = [bytes([byte]) for byte in range(256)]
_THERE, _MEMBER, _LEAF = 1, 2, 3  # what a node of the trie is


class Oracle(ABC):
    """Has the answers about a set, and learns from each how likely the next are."""

    def __init__(self) -> None:
        self.asked = 0
        self._tables: dict[str, list[dict[Any, list[int]]]] = {}
        self._weights: dict[str, list[int]] = {}

    @abstractmethod
    def answer(self, share: int, question: str, node: bytes) -> int:
        """1 for yes, which has `share` of 65536, or 0."""

    def ask(self, question: str, node: bytes, *contexts: Any) -> int:
        """Whether there is such a node ("child"), it is of the set ("end") and has no children
        ("leaf"), or has "more" of them than were told."""
        self.asked += 1
        if question not in self._tables:
            self._tables[question] = [{} for _ in contexts]
            self._weights[question] = [_FIRST_WEIGHT] * len(contexts) + [0]
        weights = self._weights[question]
        cells = []
        for table, context in zip(self._tables[question], contexts, strict=True):
            if context not in table:
                if len(table) == _MOST_CELLS:
                    table.clear()
                table[context] = [32768, 0]
            cells.append(table[context])
        inputs = [STRETCH[share >> 4] * _TRUST[times] >> 16 for share, times in cells] + [256]
        odds = sum(map(int.__mul__, weights, inputs)) >> 16
        share = SQUASH[max(0, min(4094, odds + 2047))]
        answer = self.answer(share, question, node)
        wanted = 65535 * answer
        error = (wanted - share) * _LEARNING
        weights[:] = [w + (x * error >> 18) for w, x in zip(weights, inputs, strict=True)]
        for cell in cells:
            cell[0] += (wanted - cell[0]) * _RATES[cell[1]] >> 16
            cell[1] += cell[1] < 255
        return answer

    def strings(self) -> Iterator[bytes]:
        """The strings of the set, of 2 bytes or more, by length."""
        state = dict.fromkeys(_SYMBOLS, _MEMBER)
        children: dict[bytes, list[bytes]] = {}  # last bytes of the children of each node
        level = [b""]
        while level:
            following = []
            for node in sorted(level, key=bytes.swapcase):  # lower case first, for the twins
                last, member = node[-1:], state.get(node, 0) > _THERE
                first_kind, last_kind, depth = _kind(node[:1]), _kind(last), len(node)
                twin = node.lower()
                has_twin = twin != node and twin in children
                heads = [n for n in range(1, depth + 1) if state[node[:n]] > _THERE]
                groups = [children[node[n:]] for n in range(1, depth + 1) if node[n:] in children]
                told = children[node] = []
                done: set[bytes] = set()
                step = 0
                for group in [*groups, _SYMBOLS]:
                    group = [symbol for symbol in group if symbol not in done]
                    if not group:
                        continue
                    kinds = first_kind, last_kind, min(3, len(group))
                    if told and not self.ask("more", node, (len(done) // 4, len(told)), kinds):
                        break
                    done.update(group)
                    for symbol in group:
                        child, kind = node + symbol, _kind(symbol)
                        pairs = min(3, sum(state.get(child[n:], 0) > _THERE for n in heads))
                        suffix = state.get(child[1:], 0) if node else 0
                        twins = state.get(twin + symbol, 0) if has_twin else -1
                        if not self.ask(
                            "child",
                            child,
                            child[-2:],
                            child[-3:],
                            child[-4:],
                            (min(5, depth), member, pairs, kind, suffix),
                            (symbol, min(2, depth), suffix),
                            (twins, kind, last_kind, step, min(3, len(told)), pairs > 0),
                        ):
                            continue
                        told.append(symbol)
                        if not node:
                            following.append(child)
                            continue
                        around = first_kind, kind, suffix
                        state[child] = _THERE
                        if self.ask(
                            "end",
                            child,
                            child[-2:],
                            child[-3:],
                            (pairs, suffix),
                            (twins, member, pairs),
                            (around, min(2, pairs)),
                        ):
                            yield child
                            state[child] = _MEMBER
                            beyond = around, min(3, depth)
                            if self.ask("leaf", child, (twins, pairs, last, symbol), beyond):
                                state[child] = _LEAF
                        if state[child] < _LEAF:
                            following.append(child)
                    step = min(2, step + 1)
                if node and (not told or depth >= MAX_BYTES):
                    raise TokenizerError("token set holds a string without an end; build it again")
            level = following


def _kind(symbol: bytes) -> int:
    """The sort of a character that a byte is, or none."""
    if symbol.isalnum():
        return 3 if symbol.isdigit() else 1 + symbol.isupper()
    return 0 if symbol == b" " else 4 + (symbol > b"\x7f")


class _Decoder(Oracle, RangeDecoder):
    """Reads the answers from a code."""

    def __init__(self, code: bytes) -> None:
        Oracle.__init__(self)
        RangeDecoder.__init__(self, code)
        self._allowed = FREE_QUESTIONS + QUESTIONS_PER_BYTE * len(code)

    def answer(self, share: int, question: str, node: bytes) -> int:
        if self.asked > self._allowed:
            raise TokenizerError(
                f"token set of {self._allowed} answers has no end; build the tokenizer again"
            )
        bound = (self._range >> 16) * share
        answer = self._code < bound
        if answer:
            self._range = bound
        else:
            self._code -= bound
            self._range -= bound
        self.refill()
        return int(answer)


def unpack_set(code: bytes) -> list[bytes]:
    """The strings, each of 2 to 256 bytes, in byte order.

    Raises `TokenizerError` for a code that ends too late, or that holds what no packer writes.
    """
    decoder = _Decoder(code)
    strings = sorted(decoder.strings())
    decoder.check_end()
    return strings
