"""Packing asset bodies; the readers are in `bpe.py` and `unigram.py`.

Needed to build a tokenizer, never to restore one, so it stays out of a scored model's bytes.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from tokgolf.errors import TokenizerError
from tokgolf.tokenizers.asset import varint
from tokgolf.tokenizers.base import BOS_ID
from tokgolf.tokenizers.bpe import EXACT
from tokgolf.tokenizers.mergecodec import PairModel
from tokgolf.tokenizers.rangecoder import RANGE_BITS, RENORMALIZE_BELOW
from tokgolf.tokenizers.setcodec import (
    FREE_QUESTIONS,
    MAX_BYTES,
    QUESTIONS_PER_BYTE,
    Oracle,
)
from tokgolf.tokenizers.split import pack_pattern
from tokgolf.tokenizers.unigram import SCORE_STEP, STEPS_PER_NAT, CostModel


def pack_merges(merges: list[tuple[int, int]], pattern: str) -> bytes:
    """The asset body of a merge table; `bpe.py` describes it."""
    pairs = [(left - (left > BOS_ID), right - (right > BOS_ID)) for left, right in merges]
    header = bytes([EXACT]) + pack_pattern(pattern) + len(merges).to_bytes(2, "little")
    return header + pack_pairs(pairs, BOS_ID)


def check_score_step(score_step: float) -> None:
    """Raise `TokenizerError` unless the step, in nats, can be stored."""
    steps = score_step * STEPS_PER_NAT
    if not (1 <= steps <= 255 and steps == int(steps)):
        raise TokenizerError(
            f"a score step of {score_step} nats is no multiple of 1/{STEPS_PER_NAT} up to "
            f"{255 / STEPS_PER_NAT}; use {SCORE_STEP}"
        )


def pack_pieces(costs: dict[bytes, int], score_step: float = SCORE_STEP) -> bytes:
    """The asset body of pieces with their costs, each 0 to 255; `unigram.py` describes it.

    A cost is -score / `score_step`, which is in nats, a multiple of 1 / STEPS_PER_NAT.
    """
    check_score_step(score_step)
    step = round(score_step * STEPS_PER_NAT)
    pieces = sorted(costs, key=lambda piece: (len(piece), piece))
    characters = sum(1 << piece[0] for piece in pieces if len(piece) == 1)
    code = pack_set(piece for piece in pieces if len(piece) != 1)
    encoder, model = RangeEncoder(), CostModel()
    for piece in pieces:
        encoder.encode(model.ends(piece), costs[piece])
        model.update(piece, costs[piece])
    head = bytes([step]) + characters.to_bytes(16, "little") + varint(len(code))
    return head + code + encoder.finish()


def pack_pairs(pairs: list[tuple[int, int]], symbols: int) -> bytes:
    """The code of merge pairs over the ids 0..symbols-1, where pair i makes the id symbols + i.

    `mergecodec.unpack_pairs` reads it. Raises `TokenizerError` for a pair that occurs twice or
    names an id that is not there yet.
    """
    model, encoder = PairModel(len(pairs), symbols), RangeEncoder()
    known: set[tuple[int, int]] = set()
    for new, (left, right) in enumerate(pairs, symbols):
        if (left, right) in known or not (0 <= left < new and 0 <= right < new):
            raise TokenizerError(
                f"merge {new - symbols} of {len(pairs)} joins the ids {left} and {right}, but "
                f"{new} ids are there and no pair can occur twice; give each merge once, in order"
            )
        known.add((left, right))
        encoder.encode(model.lefts(), left)
        encoder.encode(model.rights(left), right)
        model.update(left, right)
    return encoder.finish()


def pack_set(tokens: Iterable[bytes]) -> bytes:
    """The code of a set of strings of 2 to 256 bytes; `setcodec.unpack_set` reads it."""
    strings = set(tokens)
    for string in strings:
        if not 2 <= len(string) <= MAX_BYTES:
            raise TokenizerError(
                f"token of {len(string)} bytes, 2 to {MAX_BYTES} expected; single bytes are "
                "always tokens, longer ones never"
            )
    encoder = _SetEncoder(strings)
    for _ in encoder.strings():
        pass
    code = encoder.coder.finish()
    allowed = FREE_QUESTIONS + QUESTIONS_PER_BYTE * len(code)
    if encoder.asked > allowed:
        raise TokenizerError(
            f"token set takes {encoder.asked} questions in {len(code)} bytes, {allowed} are "
            "allowed; use tokens learned from text"
        )
    return code


class _SetEncoder(Oracle):
    """Answers truly, and writes the answers down."""

    def __init__(self, strings: set[bytes]) -> None:
        super().__init__()
        self.coder = RangeEncoder()
        self._strings = strings
        nodes = {string[:n] for string in strings for n in range(1, len(string) + 1)}
        self._untold = Counter(node[:-1] for node in nodes)  # children yet to come
        self._nodes = nodes

    def answer(self, share: int, question: str, node: bytes) -> int:
        if question == "child":
            answer = node in self._nodes
            self._untold[node[:-1]] -= answer
        elif question == "end":
            answer = node in self._strings
        else:
            answer = (self._untold[node] > 0) == (question == "more")
        self.coder.encode_bit(share, answer)
        return int(answer)


class RangeEncoder:
    """Writes what `RangeDecoder` reads, with any carry added into the bytes already out."""

    def __init__(self) -> None:
        self._out = bytearray()
        self._low = 0
        self._range = 1 << RANGE_BITS

    def encode(self, ends: Any, symbol: int) -> None:
        """Append a symbol, given where the share of each ends; its own must not be 0."""
        unit = self._range // int(ends[-1])
        start = int(ends[symbol - 1]) if symbol else 0
        self._low += unit * start
        self._range = unit * (int(ends[symbol]) - start)
        self._settle()

    def encode_bit(self, share: int, bit: int) -> None:
        """Append a bit, which is 1 with `share` of 65536."""
        bound = (self._range >> 16) * share
        if bit:
            self._range = bound
        else:
            self._low += bound
            self._range -= bound
        self._settle()

    def _settle(self) -> None:
        while self._range < RENORMALIZE_BELOW:
            self._shift_out()
            self._range <<= 8

    def finish(self) -> bytes:
        """The stream: the number in the last range with the most trailing zeros, those cut off."""
        shifted = len(self._out)  # the decoder will miss no more than what is shifted out here
        for bits in range(RANGE_BITS, -1, -1):
            rounded = -(-self._low >> bits) << bits
            if rounded < self._low + self._range:
                break
        self._low = rounded
        for _ in range(RANGE_BITS // 8):
            self._shift_out()
        return bytes(self._out).rstrip(b"\0").ljust(shifted, b"\0")

    def _shift_out(self) -> None:
        if self._low >> RANGE_BITS:  # a carry: the byte before the 0xff bytes goes up by one
            place = len(self._out) - 1
            while self._out[place] == 0xFF:
                self._out[place] = 0
                place -= 1
            self._out[place] += 1
            self._low -= 1 << RANGE_BITS
        self._out.append(self._low >> (RANGE_BITS - 8))
        self._low = (self._low << 8) & ((1 << RANGE_BITS) - 1)
