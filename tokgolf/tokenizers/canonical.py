"""Canonical pairs: which id can follow which in anything that `encode` emits.

Some pairs of ids never stand side by side, because the tokenizer would have cut their bytes in
another way. The table follows from the tokenizer alone, so it costs no stored bytes. It is sound:
no byte string hits a forbidden pair. It is tight for BPE and greedy matching, where a sequence is
canonical just if each pair of neighbours is; for unigram and the fewest tokens it has every pair
that wins, or ties, on its own. Of a kind without a rule here everything is allowed.

A pair stands within a piece of text that the split pattern does not cut, if the kind's rule lets
it and the pattern can leave it whole; or it stands around a cut; or beside bytes that are no text,
or beside BOS. What a pattern does is learned from the splitter itself, as an automaton over classes
of characters (after Angluin 1987), then checked on random text. A pattern that fails the check, or
looks behind, is taken to cut anywhere, which forbids next to nothing.

It forbids less than one might think: at 16,384 tokens learned from English web text 2.4% of the ids
at a place for BPE, and 0.5% of all pairs for greedy matching.
"""

import random
import re
from bisect import bisect_left, bisect_right
from codecs import utf_8_decode
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np

from tokgolf.tokenizers.base import MAX_TOKEN_BYTES, Tokenizer

Packed = np.ndarray[tuple[int, int], np.dtype[np.uint8]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]
Ints = np.ndarray[Any, np.dtype[np.int64]]

# Some ids, and for each of them which ids may follow within a piece: (len(ids), vocab).
Blocks = Iterator[tuple[Ints, Bools]]

_BLOCK = 256  # rows at a time: 16 MB of int32 at 16,384 ids

# The inside of a UTF-8 character, as the shortest prefix that says all about what may follow:
# any one, two or three bytes 80..BF; or the second byte in a narrower range.
_MIDDLES = (b"\xc3", b"\xe1", b"\xf1", b"\xe0", b"\xed", b"\xf0", b"\xf4")

# One character of each general category, of each kind of space and of some scripts.
_SAMPLE = (
    "aA\u01c5\u02b0\u05d0\u0301\u0903\u20dd1\u2167\u00bd_-()\u00ab\u00bb!+$^\u00a9 \u00a0\t\n\r"
    "\v\f\x85\u2028\u2029\0\u00ad\ue000\u0378\U0001f600\u03b1\u0436\u0627\u0905\u0e01\ud55c\u65e5"
    "\u3042\u30a2\u10d0.'"
)
_MAX_SAMPLE, _MAX_STATES, _TRIALS = 500, 100, 3000


def successors(tokenizer: Tokenizer) -> Packed:
    """The table of pairs; bit 7 - b % 8 of [a, b // 8] says whether id b may follow id a.

    -> (vocab, ceil(vocab / 8)) uint8; bits past the last id are 0. Documents are taken to be
    joined by BOS, and some to be empty.
    """
    rule = _RULES.get(tokenizer.kind)
    if rule is None:
        size = tokenizer.vocab_size
        return np.tile(np.packbits(np.ones(size, np.bool_)), (size, 1))
    return rule(tokenizer)


class _Cuts(NamedTuple):
    """What a split pattern does, as an automaton over the characters of one piece.

    State 0 is before the first character; `len(step) - 1` is "the piece has ended before".
    """

    classes: dict[str, int]  # of characters; any other is of class 0
    coarse: list[int]  # of each class, which of the fewer classes for what follows later
    step: Ints  # (states + 1, classes)
    cut: Bools  # (states, classes, coarse + 1, coarse + 1): a piece may end before such a text
    last: Bools  # (states,): a piece may end with the text


# Text that is never cut, and text that may be cut anywhere.
_WHOLE, _ANYWHERE = (
    _Cuts({}, [0], np.array([[1], [1], [2]]), np.array([[[[x]]]] * 2), np.array([False, True]))
    for x in (False, True)
)


def _bpe(tokenizer: Any) -> Packed:
    """BPE: a and b stay apart unless a merge joins the end of a to the start of b before merges
    inside a or b use them up.

    Merge t = (l, r) crosses if l is a, or on the right edge of the tree of a and used by a later
    merge; and r is b, or on the left edge of b and not used before t (a tie goes to the left).
    With each token placed under the right part of its merge, later merges first, the first sort
    of a is a range of that order; likewise under the left part for b. So a merge forbids a
    rectangle.
    """
    size, merges = tokenizer.vocab_size, tokenizer.merges
    first = size - len(merges)
    left_inner, right_inner = [0] * size, [0] * size  # tokens below, so far
    left_offset, right_offset = [0] * size, [0] * size
    heights, widths = [0] * size, [0] * size
    for token in range(size - 1, first - 1, -1):
        left, right = merges[token - first]
        heights[token] = 1 + right_inner[left]
        left_offset[token] = 1 + left_inner[left]
        left_inner[left] += 1 + left_inner[token]
        widths[token] = 1 + left_inner[right]
        right_offset[token] = 1 + right_inner[right]
        right_inner[right] += 1 + right_inner[token]
    for inner, offset, side in ((left_inner, left_offset, 0), (right_inner, right_offset, 1)):
        place = 0
        for token in range(size):
            if token < first:
                offset[token] = place
                place += 1 + inner[token]
            else:
                offset[token] += offset[merges[token - first][side]]
    rectangles = [
        (top := right_offset[left], top + heights[token], west := left_offset[right],
         west + widths[token])
        for token, (left, right) in enumerate(merges, first)
    ]  # fmt: skip
    blocks = _outside(rectangles, np.argsort(right_offset), np.array(left_offset))
    return _assemble(tokenizer, _reachable(size, merges), blocks, _cuts(tokenizer))


def _reachable(size: int, merges: list[tuple[int, int]]) -> Bools:
    """Which tokens BPE makes of their own bytes; no text gives the others."""
    first = size - len(merges)
    made = {pair: token for token, pair in enumerate(merges, first)}
    reachable = np.ones(size, np.bool_)
    for token, (left, right) in enumerate(merges, first):
        sound = bool(reachable[left] and reachable[right])
        a, a_used = left, size
        while sound:
            b, b_used = right, size
            while True:
                crossing = made.get((a, b), token)
                if crossing != token and crossing < a_used and crossing <= b_used:
                    sound = False
                if b < first:
                    break
                b, b_used = merges[b - first][0], b
            if a < first:
                break
            a, a_used = merges[a - first][1], a
        reachable[token] = sound
    return reachable


def _greedy(tokenizer: Any) -> Packed:
    """Greedy: b cannot follow a if a token is a with the start of b, as that would be taken."""
    tokens = tokenizer.token_bytes
    ids = {token: i for i, token in enumerate(tokens)}
    order = sorted(range(len(tokens)), key=tokens.__getitem__)
    ordered = [tokens[i] for i in order]
    rectangles = [
        (ids[token[:n]], ids[token[:n]] + 1, *_starting(ordered, token[n:]))
        for token in tokens
        for n in range(1, len(token))
        if token[:n] in ids
    ]
    blocks = _outside(rectangles, np.arange(len(tokens)), np.argsort(order))
    return _assemble(tokenizer, np.ones(len(tokens), np.bool_), blocks, _cuts(tokenizer))


def _shortest(tokenizer: Any) -> Packed:
    """Fewest tokens, the last as long as can be: b cannot follow a if a token is the end of a
    with b, and what is left of a is a token or nothing."""
    tokens = tokenizer.token_bytes
    ids = {token: i for i, token in enumerate(tokens)}
    after: dict[bytes, list[int]] = {}  # what makes a token of these bytes
    for token in tokens:
        for n in range(1, len(token)):
            if token[n:] in ids:
                after.setdefault(token[:n], []).append(ids[token[n:]])

    def blocks() -> Blocks:
        for some in _some_ids(len(tokens)):
            fits = np.ones((len(some), len(tokens)), np.bool_)
            for row, token in zip(fits, (tokens[i] for i in some), strict=True):
                for n in range(len(token)):
                    if token[:n] in ids:  # BOS stands for nothing
                        row[after.get(token[n:], [])] = False
            yield some, fits

    return _assemble(tokenizer, np.ones(len(tokens), np.bool_), blocks(), _cuts(tokenizer))


def _unigram(tokenizer: Any) -> Packed:
    """Unigram: b cannot follow a if other pieces spell both for less.

    Scores are whole eighths of a nat, so the engine's sums, which are floats of 24 bits, are exact
    up to 2**21 nats: about a megabyte of text without an invalid byte. Such another way has a
    piece across the border, an end s of a with a start p of b:
    best(a without s) + cost(s + p) + best(b without p) < cost(a) + cost(b).
    Bytes that are no pieces may stand beside anything.
    """
    costs: dict[bytes, int] = tokenizer.costs
    tokens, size = tokenizer.token_bytes, tokenizer.vocab_size
    pieces = sorted(costs)
    ids = {token: i for i, token in enumerate(tokens)}
    columns = np.array([ids[piece] for piece in pieces])
    never = 1 << 20  # over twice the cost of any piece in single bytes
    before = {piece: _cheapest(piece, costs, never) for piece in pieces}
    back = {piece[::-1]: cost for piece, cost in costs.items()}
    gain = np.full((len(pieces), max(map(len, pieces)) + 1), never)  # (pieces, bytes off the start)
    for row, piece in zip(gain, pieces, strict=True):
        row[: len(piece) + 1] = np.array(_cheapest(piece[::-1], back, never)[::-1]) - costs[piece]
    reachable = np.ones(size, np.bool_)
    for piece in pieces:
        reachable[ids[piece]] = before[piece][-1] >= costs[piece]

    def across(end: bytes) -> Ints | None:
        """The gain for each b of the best piece that starts with `end` and goes on into b."""
        best = None
        for piece in pieces[slice(*_starting(pieces, end))]:
            if len(piece) > len(end):
                low, high = _starting(pieces, piece[len(end) :])
                if low < high:
                    if best is None:
                        best = np.full(len(pieces), never)
                    reached = costs[piece] + gain[low:high, len(piece) - len(end)]
                    np.minimum(best[low:high], reached, out=best[low:high])
        return best

    def blocks() -> Blocks:
        # By last bytes, so that each end is met in one go; `ends` has the latest of each length.
        rows = sorted(range(size), key=lambda i: tokens[i][::-1])
        ends: dict[int, tuple[bytes, Ints | None]] = {}
        for some in (np.array(rows)[part] for part in _some_ids(size)):
            fits = np.ones((len(some), size), np.bool_)
            for row, token in zip(fits, (tokens[i] for i in some), strict=True):
                for n in range(len(token) if token in costs else 0):
                    if before[token][n] < never:
                        if ends.get(len(token) - n, (b"",))[0] != token[n:]:
                            ends[len(token) - n] = token[n:], across(token[n:])
                        best = ends[len(token) - n][1]
                        if best is not None:
                            row[columns] &= best >= costs[token] - before[token][n]
            yield some, fits

    return _assemble(tokenizer, reachable, blocks(), _WHOLE)


def _cheapest(text: bytes, costs: dict[bytes, int], never: int) -> list[int]:
    """The least cost of pieces that spell each start of `text`, or `never`.

    text=b"abc", costs={b"a": 3, b"bc": 2} -> [0, 3, never, 5]
    """
    best = [0]
    for end in range(1, len(text) + 1):
        ways = (best[n] + costs[text[n:end]] for n in range(end) if text[n:end] in costs)
        best.append(min(ways, default=never))
    return [min(cost, never) for cost in best]


_RULES: dict[str, Callable[[Any], Packed]] = {
    "bpe": _bpe,
    "greedy": _greedy,
    "shortest": _shortest,
    "unigram": _unigram,
}


def _some_ids(size: int) -> Iterator[Ints]:
    """0..size-1 in blocks."""
    for low in range(0, size, _BLOCK):
        yield np.arange(low, min(low + _BLOCK, size))


def _starting(ordered: list[bytes], start: bytes) -> tuple[int, int]:
    """The range of a sorted list that starts with these bytes."""
    low = bisect_left(ordered, start)
    return low, bisect_right(ordered, start + b"\xff" * MAX_TOKEN_BYTES, low)


def _outside(rectangles: list[tuple[int, int, int, int]], rows: Ints, places: Ints) -> Blocks:
    """The pairs that lie in none of the rectangles (top, bottom, left, right), ends excluded.

    `rows` has the id of each row, `places` the column of each id.
    """
    size = len(rows)
    table = np.array(rectangles, np.int64).reshape(-1, 4)
    corners = np.concatenate(  # (row, column, what all later rows and columns count more)
        [
            np.column_stack([table[:, i], table[:, j], np.full(len(table), sign)])
            for i, j, sign in ((0, 2, 1), (0, 3, -1), (1, 2, -1), (1, 3, 1))
        ]
    )
    corners = corners[np.argsort(corners[:, 0], kind="stable")]
    carried = np.zeros(size + 1, np.int32)
    for some in _some_ids(size):
        low, high = np.searchsorted(corners[:, 0], (some[0], some[-1] + 1))
        row, column, sign = corners[low:high].T
        change = np.zeros((len(some), size + 1), np.int32)
        np.add.at(change, (row - some[0], column), sign)
        change[0] += carried
        for above, below in pairwise(change):  # several times faster than cumsum over rows
            below += above
        carried = change[-1].copy()
        np.cumsum(change, axis=1, out=change)
        yield rows[some], np.take(change == 0, places, axis=1)


def _assemble(tokenizer: Tokenizer, reachable: Bools, blocks: Blocks, cuts: _Cuts) -> Packed:
    """The table from what fits within a piece, what the cuts do, UTF-8, raw bytes and BOS."""
    tokens, size, bos = tokenizer.token_bytes, tokenizer.vocab_size, tokenizer.bos_id
    states = len(cuts.last)
    enters, leaves, cut = _passages(tokens, cuts)
    emitted = reachable & enters.any(axis=1)
    if tokenizer.transform:  # all of them write a capital as a mark and a small letter
        emitted &= [re.search(rb"[A-Z]", token) is None for token in tokens]
    emitted[bos] = False
    enters, leaves = enters & emitted[:, None], leaves & emitted[:, None]
    starts = enters[:, 0]
    # `encode_runs` gives bytes that are no text their byte tokens, and cuts the text there.
    raw = np.zeros(size, np.bool_)
    raw[128:256] = True
    around = starts | raw
    around[bos] = True  # a document may be empty
    # The tokens leave in few ways. Products of floats, as those of integers are far slower.
    ways, way_of = np.unique(leaves.astype(np.float32), axis=0, return_inverse=True)
    whole = np.packbits(ways @ enters.T.astype(np.float32) > 0, axis=1)
    around_cut = (ways[:, :states] @ cut.T.astype(np.float32) > 0) & starts
    around_cut |= (ways[:, :states] @ cuts.last > 0)[:, None] & (raw | (np.arange(size) == bos))
    apart = np.packbits(around_cut, axis=1)
    table = np.zeros((size, -(-size // 8)), np.uint8)
    for some, fits in blocks:
        way = way_of[some]
        table[some] = np.packbits(fits, axis=1) & whole[way] | apart[way]
    table[[*range(0x80, 0xC2), *range(0xE0, 0x100), bos]] |= np.packbits(around)
    around[0x80:0xC0] = False  # after the other first bytes these would make a character
    table[0xC2:0xE0] |= np.packbits(around)
    return table


def _passages(tokens: list[bytes], cuts: _Cuts) -> tuple[Bools, Bools, Bools]:
    """For each token and each state (of `cuts`, then `_MIDDLES`): whether it can be met there,
    whether it can leave there; and for the states of `cuts` only, whether a piece that is left
    there can end before it.
    """
    states, middles = len(cuts.last), len(_MIDDLES)
    enters = np.zeros((len(tokens), states + middles), np.bool_)
    leaves = np.zeros_like(enters)
    cut = np.zeros((len(tokens), states), np.bool_)
    for token, data in enumerate(tokens):
        rest = data.lstrip(bytes(range(0x80, 0xC0)))
        inside = len(data) > len(rest)
        try:
            text, used = utf_8_decode(rest, "strict", False)
        except UnicodeDecodeError:
            continue  # in no text
        reached = np.arange(states)
        classes = [cuts.classes.get(character, 0) for character in text]
        for each in classes:
            reached = cuts.step[reached, each]
        alive = reached < states
        if inside:
            for n, start in enumerate(_MIDDLES):
                tail = _tail(start + data)
                enters[token, states + n] = tail is not None and alive.any()
                if tail:
                    leaves[token, states + _middle(tail)] = True
                elif tail == b"" and not rest:
                    leaves[token, 1:states] = True
        else:
            enters[token, :states] = alive
            following = [cuts.coarse[each] for each in classes[1:3]]
            ahead = cuts.cut
            for each in (*classes[:1], *following):
                ahead = ahead[:, each]
            cut[token] = ahead.reshape(states, -1).any(axis=1)
            if used < len(rest):
                leaves[token, states + _middle(rest[used:])] = True
        if text and used == len(rest):
            leaves[token, reached[alive]] = True
    return enters, leaves, cut


def _tail(data: bytes) -> bytes | None:
    """What `data` has of a character at its end, or None if no text starts with it.

    b"a\\xe2\\x82" -> b"\\xe2\\x82"
    """
    try:
        return data[utf_8_decode(data, "strict", False)[1] :]
    except UnicodeDecodeError:
        return None


def _middle(tail: bytes) -> int:
    """Which of `_MIDDLES` says what may follow the start of a character."""
    if tail in _MIDDLES:
        return _MIDDLES.index(tail)
    return (tail[0] >= 0xE0) + (tail[0] >= 0xF0) + 1 - len(tail)


def _cuts(tokenizer: Any) -> _Cuts:
    """The automaton of a tokenizer's split pattern, for the characters in its tokens."""
    texts = (token.decode("utf-8", "ignore") for token in tokenizer.token_bytes)
    return _learn(tokenizer.pattern, "".join(sorted({c for text in texts for c in text})))


@lru_cache(8)
def _learn(pattern: str, characters: str) -> _Cuts:
    """The automaton of a split pattern, or `_ANYWHERE` if none describes it."""
    from tokgolf.tokenizers.bpe import splitter
    from tokgolf.tokenizers.split import expression

    split, regex = splitter(pattern), expression(pattern)
    if re.search(r"\(\?<[=!]|\\[bBAGK]|(?<!\[)\^", regex):
        return _ANYWHERE  # what stands before a piece matters to it

    def first(text: str) -> int:
        """The length of the first piece."""
        return int(split.pre_tokenize_str(text)[0][1][1])

    # What stands in the expression as it is: "'re" of "...|'re|...", in each case.
    plain = re.sub(r"\\p\{\^?\w+\}|\\.|\(\?\w*", "\0", regex)
    words = {form for w in re.findall(r"[\w'-]+", plain) for form in (w, w.lower(), w.upper())}
    sample = dict.fromkeys(_SAMPLE + "".join(sorted(words)))
    if len(sample) > _MAX_SAMPLE:
        return _ANYWHERE
    # Characters are alike if pieces are as long with one as with the other: beside other
    # characters for the coarse classes, and in the words too for the fine ones.
    holes = [
        (start + w[:n], w[n + 1 :] + end)
        for w in sorted(words)
        for n in range(len(w))
        for start in ("", "a")
        for end in ("", "a")
        if len(w) < 8
    ]

    def beside(c: str, neighbours: Iterable[str]) -> tuple[int, ...]:
        texts = (
            (c + x, x + c, c + c + x, c + x + c, c + x + x, x + c + c, x + c + x, x + x + c)
            for x in neighbours
        )
        return tuple(first(text) for group in texts for text in group)

    found: dict[tuple[int, ...], str] = {}
    for c in sample:
        found.setdefault(beside(c, sample), c)
    sample |= dict.fromkeys(characters)
    classes: dict[str, int] = {}
    coarse: list[int] = []
    leaders: dict[Any, str] = {}
    coarse_leaders: dict[Any, str] = {}
    numbers: dict[Any, int] = {}
    for c in sample:
        near = beside(c, found.values())
        key = near, tuple(first(start + c + end) for start, end in holes)
        coarse_leaders.setdefault(near, c)
        if key not in leaders:
            leaders[key] = c
            numbers[key] = len(coarse)
            coarse.append(list(coarse_leaders).index(near))
        classes[c] = numbers[key]
    fine, later = list(leaders.values()), [*coarse_leaders.values(), ""]
    # Starts of pieces are one state if every such text after them is cut alike.
    suffixes = ["", *fine, *(c + d for c in fine for d in later[:-1])]
    suffixes += [w[n:] + end for w in sorted(words) for n in range(len(w)) for end in ("", "a")]
    starts = [""]
    states: dict[tuple[int, ...], int] = {(): 0}
    step: list[list[int]] = []
    for start in starts:
        step.append([])
        for c in fine:
            text = start + c
            state = tuple(max(first(text + suffix) - len(text), -1) for suffix in suffixes)
            if max(state) < 0:
                step[-1].append(-1)
                continue
            if state not in states:
                states[state] = len(starts)
                starts.append(text)
            step[-1].append(states[state])
        if len(starts) > _MAX_STATES:
            return _ANYWHERE
    table = np.array([*step, [-1] * len(fine)])
    table[table < 0] = len(starts)
    cut = np.zeros((len(starts), len(fine), len(later), len(later)), np.bool_)
    for (n, start), (i, c), (j, d), (k, e) in product(
        *map(enumerate, (starts, fine, later, later))
    ):
        if start and (d or not e):
            cut[n, i, j, k] = first(start + c + d + e) == len(start)
    last = np.array([bool(start) and first(start) == len(start) for start in starts])
    cuts = _Cuts(classes, coarse, table, cut, last)
    return cuts if _describes(cuts, split, sample, fine) else _ANYWHERE


def _describes(cuts: _Cuts, split: Any, characters: Iterable[str], leaders: list[str]) -> bool:
    """Whether the automaton allows every cut that the splitter makes in random text."""
    characters = list(characters)
    rng = random.Random(0)
    for _ in range(_TRIALS):
        some = [rng.choice(rng.choice((characters, leaders))) for _ in range(rng.randint(1, 6))]
        text = "".join(rng.choice(some) * rng.choice((1, 1, 1, 2, 3, 7)) for _ in range(8))
        classes = [cuts.classes[c] for c in text]
        later = [cuts.coarse[each] for each in classes] + [-1, -1]  # the last is the end of text
        for _, (start, end) in split.pre_tokenize_str(text):
            state = 0
            for each in classes[start:end]:
                state = cuts.step[state, each]
            if state == len(cuts.last) or not (
                cuts.last[state]
                if end == len(text)
                else cuts.cut[state, classes[end], later[end + 1], later[end + 2]]
            ):
                return False
    return True
