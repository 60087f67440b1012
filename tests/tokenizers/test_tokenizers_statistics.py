"""Statistics against slow twins made of Counters, brute force over all functions, known values."""

import itertools
import json
import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers_support import KINDS, built

import tokgolf
from tokgolf.codesize import code_bytes, tokenizer_modules
from tokgolf.hashing import BigramBuckets
from tokgolf.tokenizers import BOS_ID, Tokenizer, from_asset, statistics
from tokgolf.tokenizers.asset import Extras, wrap
from tokgolf.tokenizers.base import BYTE_TOKENS, Ids, Transform
from tokgolf.tokenizers.statistics import (
    PairCounts,
    Usage,
    batches,
    bucket_load,
    describe,
    renyi_entropy,
    row,
    sanity,
    summarize,
    type_usage,
)

LEARNED = [b"ab", "é".encode(), b"a a"]
MARK = b"\xff"


@final
class Shift(Transform):
    """A capital becomes the mark 0xff and its small letter; the text is without that byte."""

    name: ClassVar[str] = "shift"

    def forward(self, data: bytes) -> bytes:
        return re.sub(rb"[A-Z]", lambda match: MARK + match[0].lower(), data)

    def inverse(self, data: bytes) -> bytes:
        return re.sub(rb"\xff(.)", lambda match: match[1].upper(), data, flags=re.DOTALL)

    def live(self, data: bytes) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        live: np.ndarray[tuple[int], np.dtype[np.bool_]] = np.frombuffer(data, np.uint8) != MARK[0]
        return live


@final
class Greedy(Tokenizer):
    """Three learned tokens, taken wherever they match: what it emits can be told by hand."""

    kind: ClassVar[str] = "byte"  # so that any asset will do

    @classmethod
    def from_asset(cls, data: bytes) -> Self:
        return cls(data, BYTE_TOKENS + LEARNED)

    def _encode_batch(self, batch: Sequence[bytes]) -> list[Ids]:
        ids = {token: number for number, token in enumerate(self.token_bytes)}
        pieces = [re.findall(rb"ab|\xc3\xa9|a a|.", data, re.DOTALL) for data in batch]
        return [np.array([ids[p] for p in found], dtype=self.dtype) for found in pieces]

    def original_file(self) -> bytes:
        return b"none"


def greedy(*, shift: bool = False, bigram: BigramBuckets | None = None) -> Greedy:
    tokenizer = Greedy.from_asset(wrap("byte", b"", Extras(bigram=bigram)))
    vars(tokenizer)["transform"] = Shift() if shift else None
    return tokenizer


TEXTS = st.lists(st.text("abAé \n", max_size=30).map(str.encode), max_size=8)
BYTES = st.lists(st.lists(st.sampled_from(b"ab \t\xc3\xa9\x80"), max_size=30).map(bytes))


def fed(usage: Usage, documents: Sequence[bytes], cuts: Sequence[int] = ()) -> Usage:
    """A usage with these documents, in batches that end at `cuts`."""
    places = sorted({0, len(documents), *(cut % (len(documents) + 1) for cut in cuts)})
    for start, end in itertools.pairwise(places):
        usage.add(documents[start:end])
    return usage


# --- counting tokens


@given(documents=TEXTS | BYTES, cuts=st.lists(st.integers(0, 8), max_size=3))
@settings(max_examples=200, deadline=None)
def test_counts_agree_with_counters(documents: list[bytes], cuts: list[int]) -> None:
    tokenizer = greedy()
    pairs = PairCounts(tokenizer)
    usage = fed(Usage(tokenizer, "text", pairs=pairs), documents, cuts)
    encoded = [tokenizer.encode(document).tolist() for document in documents]
    tokens: Counter[int] = Counter(itertools.chain.from_iterable(encoded))
    words = sum(len(re.findall(rb"[^ \t\n\r\v\f]+", document)) for document in documents)
    fallback = sum(n for token, n in tokens.items() if 0x80 <= token < 0x100)
    assert {token: n for token, n in enumerate(usage.counts.tolist()) if n} == dict(tokens)
    values = row("text", [usage])
    assert values["documents"] == len(documents)
    assert values["bytes"] == sum(map(len, documents))
    assert values["tokens"] == tokens.total()
    assert values["bytes_per_token"] == (values["bytes"] / tokens.total() if tokens else None)
    assert values["tokens_per_word"] == (tokens.total() / words if words else None)
    assert values["byte_fallback"] == (fallback / tokens.total() if tokens else None)
    assert values["marks"] is None
    seen: Counter[tuple[int, int]] = Counter()
    for ids in encoded:
        seen.update(itertools.pairwise([BOS_ID, *ids]))
    keys, uses = pairs.totals()
    found = {divmod(key, 260): n for key, n in zip(keys.tolist(), uses.tolist(), strict=True)}
    assert found == dict(seen)


@given(documents=TEXTS, cuts=st.lists(st.integers(0, 8), max_size=3))
@settings(deadline=None)
def test_marks_are_no_byte_fallback(documents: list[bytes], cuts: list[int]) -> None:
    tokenizer = greedy(shift=True)
    values = row("text", [fed(Usage(tokenizer, "text"), documents, cuts)])
    marks = sum(len(re.findall(rb"[A-Z]", document)) for document in documents)
    tokens = sum(len(tokenizer.encode(document)) for document in documents)
    assert values["tokens"] == tokens
    assert values["marks"] == (marks / tokens if tokens else None)
    assert not values["byte_fallback"]  # only a mark is a byte beyond ASCII here
    assert values["bytes"] == sum(map(len, documents))


def test_domains_add_up() -> None:
    tokenizer = greedy(bigram=BigramBuckets(count=64))
    pairs = PairCounts(tokenizer)
    first = fed(Usage(tokenizer, "first", pairs=pairs), [b"ab ab", b"", b"\xff"])
    second = fed(Usage(tokenizer, "second", pairs=pairs), [b"a a ab"])
    values = summarize(tokenizer, [first, second], pairs)
    assert [domain["corpus"] for domain in values["domains"]] == ["first", "second"]
    for name in ("documents", "bytes", "tokens"):
        assert values["all_domains"][name] == sum(domain[name] for domain in values["domains"])
    assert values["all_domains"]["bytes"] == 12
    assert values["all_domains"]["tokens"] == 3 + 1 + 3
    assert values["all_domains"]["byte_fallback"] == 1 / 7
    assert values["types"] == {"types": 259, "dead": 255, "dead_bytes": 254, "rare": 259}
    # BOS ab, ab " ", " " ab; BOS 0xff; BOS "a a", "a a" " ", and " " ab once more
    assert values["bigram"]["pairs"] == 6
    json.dumps(values)


def test_without_pairs_or_a_bucket_function_there_are_no_buckets() -> None:
    plain, hashed = greedy(), greedy(bigram=BigramBuckets(count=64))
    assert summarize(plain, [fed(Usage(plain, "t"), [b"ab"])], PairCounts(plain))["bigram"] is None
    assert summarize(hashed, [fed(Usage(hashed, "t"), [b"ab"])])["bigram"] is None


def test_no_text_is_no_division_by_zero() -> None:
    tokenizer = greedy(bigram=BigramBuckets(count=64))
    pairs = PairCounts(tokenizer)
    usage = fed(Usage(tokenizer, "nothing", pairs=pairs), [b"", b""])
    values = summarize(tokenizer, [usage], pairs)
    assert values["all_domains"]["bytes_per_token"] is None
    assert values["sanity"]["renyi_efficiency"] is None
    assert values["bigram"] == {"pairs": 0, "buckets": 63}
    assert row("white", [fed(Usage(tokenizer, "white"), [b" \n"])])["tokens_per_word"] is None


@given(counts=st.lists(st.integers(0, 300), min_size=260, max_size=260))
@settings(deadline=None)
def test_types_are_counted_without_bos(counts: list[int]) -> None:
    tokenizer = greedy()
    real = {token: n for token, n in enumerate(counts) if token != BOS_ID}
    assert type_usage(tokenizer, np.array(counts)) == {
        "types": 259,
        "dead": sum(n == 0 for n in real.values()),
        "dead_bytes": sum(n == 0 for token, n in real.items() if token < 256),
        "rare": sum(n < 100 for n in real.values()),
    }


@given(documents=TEXTS, cuts=st.lists(st.integers(0, 8), min_size=3, max_size=6))
@settings(deadline=None)
def test_merging_pairs_early_changes_nothing(documents: list[bytes], cuts: list[int]) -> None:
    tokenizer = greedy()
    late, early = PairCounts(tokenizer), PairCounts(tokenizer)
    fed(Usage(tokenizer, "t", pairs=late), documents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "BATCH_BYTES", -1)
        fed(Usage(tokenizer, "t", pairs=early), documents, cuts)
    for one, other in zip(late.totals(), early.totals(), strict=True):
        assert one.tolist() == other.tolist()


# --- entropy


COUNTS = st.lists(st.integers(0, 1000), min_size=1, max_size=40).filter(any)


@given(counts=COUNTS, order=st.sampled_from([0.5, 1.0, 2.0, 2.5, 8.0]))
def test_entropy_agrees_with_its_definition(counts: list[int], order: float) -> None:
    shares = [n / sum(counts) for n in counts if n]
    if order == 1:
        expected = -sum(p * math.log(p) for p in shares)
    else:
        expected = math.log(sum(p**order for p in shares)) / (1 - order)
    assert renyi_entropy(np.array(counts), order) == pytest.approx(expected, abs=1e-12)


@given(counts=COUNTS)
def test_entropy_falls_with_its_order_and_is_at_most_uniform(counts: list[int]) -> None:
    values = [renyi_entropy(np.array(counts), order) for order in (0.5, 1.0, 2.5, 9.0)]
    bounds = [math.log(sum(map(bool, counts))), *values, 0.0]
    assert all(high >= low - 1e-9 for high, low in itertools.pairwise(bounds))


def test_the_worked_example() -> None:
    assert renyi_entropy(np.array([1, 1, 0, 2]), 2) == pytest.approx(-math.log(3 / 8))


def test_a_uniform_distribution_has_efficiency_one() -> None:
    tokenizer = built("byte")
    values = summarize(tokenizer, [fed(Usage(tokenizer, "t"), [bytes(range(256)) * 3])])["sanity"]
    assert values["shannon_efficiency"] == pytest.approx(1)
    assert values["renyi_efficiency"] == pytest.approx(1)
    assert values["unigram_bits_per_byte"] == pytest.approx(8)
    assert "poor predictors" in values["note"]


def test_unigram_bits_are_those_of_the_tokens_over_the_bytes() -> None:
    # Four tokens of two equal types are four bits; they stand for ten bytes.
    values = sanity(np.array([2, 0, 2]), types=4, size=10)
    assert values["unigram_bits_per_byte"] == pytest.approx(0.4)
    assert values["shannon_efficiency"] == pytest.approx(0.5)


# --- buckets


def measured(places: Sequence[int], uses: Sequence[int]) -> dict[str, float]:
    """The measured part of `bucket_load`, by hand: the bucket of each pair, and its uses."""
    inside: dict[int, list[int]] = {}
    for place, n in zip(places, uses, strict=True):
        inside.setdefault(place, []).append(n)
    crowds = [found for found in inside.values() if len(found) > 1]
    return {
        "largest_load": max(map(len, inside.values())),
        "used": len(inside),
        "sharing": sum(map(len, crowds)) / len(uses),
        "sharing_uses": sum(map(sum, crowds)) / sum(uses),
        "outranked_uses": sum(sum(found) - max(found) for found in inside.values()) / sum(uses),
    }


@given(
    pairs=st.dictionaries(
        st.tuples(st.integers(0, 259), st.integers(0, 259)), st.integers(1, 9), min_size=1
    ),
    count=st.integers(2, 40),
    seed=st.integers(0, 1 << 20),
)
@settings(deadline=None)
def test_bucket_load_agrees_with_counting_by_hand(
    pairs: dict[tuple[int, int], int], count: int, seed: int
) -> None:
    function = BigramBuckets(count=count, seed=seed)
    keys = np.array([previous * 260 + current for previous, current in pairs])
    load = bucket_load(keys, np.array([*pairs.values()]), 260, function)
    expected = measured([function.bucket(*pair) for pair in pairs], [*pairs.values()])
    assert {name: load[name] for name in expected} == pytest.approx(expected)
    assert (load["pairs"], load["buckets"]) == (len(pairs), count - 1)
    assert load["pairs_per_bucket"] == len(pairs) / (count - 1)


@pytest.mark.parametrize("uses", [[1], [3, 1], [2, 2, 1], [5, 4, 4, 1]])
@pytest.mark.parametrize("buckets", [1, 2, 3])
def test_the_random_function_is_the_mean_over_all_functions(uses: list[int], buckets: int) -> None:
    every = [measured(f, uses) for f in itertools.product(range(buckets), repeat=len(uses))]
    load = bucket_load(np.arange(len(uses)), np.array(uses), 260, BigramBuckets(count=buckets + 1))
    for name in ("used", "sharing", "outranked_uses"):
        mean = sum(values[name] for values in every) / len(every)
        assert load[f"random_{name}"] == pytest.approx(mean)
    mean = sum(values["sharing_uses"] for values in every) / len(every)
    assert load["random_sharing"] == pytest.approx(mean)


# --- batches


@given(documents=TEXTS, size=st.integers(1, 40), limit=st.none() | st.integers(0, 100))
@settings(max_examples=200, deadline=None)
def test_batches_are_the_text_up_to_the_limit(
    documents: list[bytes], size: int, limit: int | None
) -> None:
    found = list(batches(documents, size=size, limit=limit))
    joined, text = b"".join(itertools.chain(*found)), b"".join(documents)
    assert all(sum(map(len, batch)) >= size for batch in found[:-1])
    assert text.startswith(joined)
    joined.decode()  # no character is cut
    if limit is None or limit > len(text):
        assert list(itertools.chain(*found)) == documents
    else:
        assert limit - 3 <= len(joined) <= limit


@given(data=st.binary(min_size=1, max_size=12), limit=st.integers(0, 12))
def test_a_limit_cuts_any_bytes(data: bytes, limit: int) -> None:
    joined = b"".join(itertools.chain(*batches([data], limit=limit)))
    assert data.startswith(joined)
    assert min(limit, len(data)) - 3 <= len(joined) <= limit


def test_a_limit_ends_the_reading() -> None:
    endless = itertools.repeat("éé".encode())
    assert b"".join(itertools.chain(*batches(endless, limit=7))) == "ééé".encode()


def test_the_example_of_batches() -> None:
    assert list(batches([b"ab", b"c", b"defg"], limit=5, size=3)) == [[b"ab", b"c"], [b"de"]]


# --- facts without text


@pytest.mark.parametrize("kind", ["byte", "bpe", "unigram"])
@pytest.mark.parametrize("bigram", [None, BigramBuckets(count=4096)])
def test_parts_sum_to_the_asset(kind: str, bigram: BigramBuckets | None) -> None:
    plain = built(kind, 290)
    body = plain.asset()[7:-4]
    tokenizer = from_asset(wrap(kind, body, Extras(bigram=bigram)))
    facts = describe(tokenizer)
    parts = facts["asset_parts"]
    assert sum(parts.values()) == facts["asset_bytes"] == len(tokenizer.asset())
    assert parts["body"] == len(body)
    assert parts["bigram"] == (9 if bigram else 1)
    assert facts["bigram_buckets"] == (4096 if bigram else None)
    assert sum(facts["token_lengths"].values()) == facts["vocab_size"] - 1
    assert sum(int(n) * k for n, k in facts["token_lengths"].items()) == sum(
        map(len, tokenizer.token_bytes)
    )
    json.dumps(facts)


def test_facts_of_three_learned_tokens() -> None:
    facts = describe(greedy())
    assert facts["token_lengths"] == {"1": 256, "2": 2, "3": 1}
    assert facts["longest_tokens"][:3] == ["b'a a'", "b'ab'", r"b'\xc3\xa9'"]
    assert facts["longest_token"] == "b'a a'"
    assert (facts["duplicate_tokens"], facts["lossless"], facts["transform"]) == (0, True, "none")


def test_duplicates_are_told() -> None:
    twice = Greedy(wrap("byte", b""), [*BYTE_TOKENS, b"ab", b"ab", b""], lossless=False)
    facts = describe(twice)
    assert (facts["duplicate_tokens"], facts["lossless"]) == (1, False)


# --- the decoder's code


RESTORE = """
import sys
from tokgolf.tokenizers import from_asset
tokenizer = from_asset(bytes.fromhex(sys.argv[1]))
assert tokenizer.decode(tokenizer.encode(b"The cat")) == b"The cat"
print(*sorted(name for name in sys.modules if name.partition(".")[0] == "tokgolf"))
"""


def modules_in_a_fresh_process(asset: bytes) -> list[str]:
    root = str(Path(tokgolf.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", RESTORE, asset.hex()],
        env={"PYTHONPATH": root, "TOKGOLF_ENGINE": "tokenizers"},
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout.split()


@pytest.mark.parametrize("kind", KINDS)
def test_the_decoders_code_is_what_a_fresh_process_imports(kind: str) -> None:
    tokenizer = built(kind, 290)
    modules = tokenizer_modules(tokenizer)
    assert list(modules) == modules_in_a_fresh_process(tokenizer.asset())
    assert code_bytes(modules)[0] > 0


def test_a_transform_is_part_of_the_decoders_code() -> None:
    tokenizer: Any = from_asset(wrap("byte", b"", Extras(transform="caps")))
    modules = tokenizer_modules(tokenizer)
    assert set(modules) - set(tokenizer_modules(built("byte"))) == {"tokgolf.tokenizers.transforms"}
    assert list(modules) == modules_in_a_fresh_process(tokenizer.asset())
