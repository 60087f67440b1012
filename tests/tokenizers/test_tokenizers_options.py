"""What a build can be told: split patterns, nested sizes, a sample, a transform, buckets."""

import itertools
import random
import unicodedata
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers_reference import slow_bpe
from tokenizers_support import NASTY, english, forged

from tokgolf.codesize import tokenizer_modules
from tokgolf.errors import ConfigError, TokenizerError
from tokgolf.hashing import BigramBuckets, splitmix64
from tokgolf.tokenizers import Tokenizer, build_ladder, build_tokenizer, from_asset
from tokgolf.tokenizers.bpe import BpeTokenizer
from tokgolf.tokenizers.build import _sample
from tokgolf.tokenizers.split import expression, pack_pattern, read_pattern
from tokgolf.tokenizers.unigram import UnigramTokenizer

PATTERNS = [
    "+".join(filter(None, parts))
    for parts in itertools.product(
        ("gpt4", "gpt2"), ("", "digits1", "digits2", "digits3"), ("", "scripts"), ("", "words")
    )
]
MIXED = "Hello, world it's 1234567 мирworld 日本のtext αβγ-delta  x\n\n y\t(don't) III 2nd".split(
    " "
)
TEXT = st.lists(st.sampled_from([*MIXED, " ", "  ", "\n"]), max_size=12).map("".join)


def bpe(pattern: str, size: int = 420) -> BpeTokenizer:
    documents = [*english(), *[(" ".join(MIXED) + str(n)).encode() for n in range(40)]]
    tokenizer = build_tokenizer("bpe", documents, size, pattern=pattern)
    assert isinstance(tokenizer, BpeTokenizer)
    return tokenizer


# --- split patterns


@pytest.mark.parametrize("pattern", [*PATTERNS, r"regex:\w+", "regex:é" + "x" * 200])
def test_a_pattern_comes_back_from_an_asset(pattern: str) -> None:
    packed = pack_pattern(pattern)
    assert read_pattern(packed + b"rest") == (pattern, b"rest")
    assert len(packed) == (1 if not pattern.startswith("regex:") else len(packed))


def test_every_pattern_has_its_own_byte_and_expression() -> None:
    assert len({pack_pattern(pattern) for pattern in PATTERNS}) == len(PATTERNS) == 32
    # Three digits are what gpt4 has anyway.
    assert len({expression(pattern) for pattern in PATTERNS}) == 32 - 4


def test_the_order_of_options_does_not_matter() -> None:
    assert pack_pattern("gpt4+words+digits1") == pack_pattern("gpt4+digits1+words")


@pytest.mark.parametrize("pattern", ["gpt4+scripts", "gpt2+digits2+words", r"regex:\w+|\s"])
@given(text=TEXT)
@settings(max_examples=40, deadline=None)
def test_every_pattern_agrees_with_the_slow_twin(pattern: str, text: str) -> None:
    tokenizer = _cached(pattern)
    assert tokenizer.encode(text.encode()).tolist() == slow_bpe(tokenizer, text)


_built: dict[str, BpeTokenizer] = {}


def _cached(pattern: str) -> BpeTokenizer:
    if pattern not in _built:
        _built[pattern] = bpe(pattern)
    return _built[pattern]


@pytest.mark.parametrize("pattern", ["gpt4+digits1", "gpt2+digits2", "gpt4+scripts", "gpt2+words"])
@pytest.mark.parametrize("data", NASTY, ids=repr)
def test_nasty_strings_come_back_whatever_the_pattern(pattern: str, data: bytes) -> None:
    tokenizer = _cached(pattern)
    assert tokenizer.decode(tokenizer.encode(data)) == data


def all_tokens(documents: list[bytes], pattern: str) -> list[bytes]:
    """The tokens of the largest vocabulary that the documents support."""
    try:
        build_tokenizer("bpe", documents, 60_000, pattern=pattern)
    except TokenizerError as error:
        size = int(str(error).rsplit("--vocab-size ", 1)[1].split()[0])
    return build_tokenizer("bpe", documents, size, pattern=pattern).token_bytes[257:]


@pytest.mark.parametrize(("option", "longest"), [("+digits1", 1), ("+digits2", 2), ("", 3)])
def test_digits_are_cut_as_asked(option: str, longest: int) -> None:
    documents = [b"year 123456 and 123456 or 123456, 789789"] * 20
    tokens = all_tokens(documents, f"gpt4{option}")
    assert b" year" in tokens or b"year" in tokens
    assert max((len(token) for token in tokens if token.isdigit()), default=1) == longest


def scripts_of(token: bytes) -> set[str]:
    letters = [c for c in token.decode("utf-8", "ignore") if c.isalpha()]
    return {unicodedata.name(letter).split()[0] for letter in letters}


@pytest.mark.parametrize(("pattern", "mixed"), [("gpt4", True), ("gpt4+scripts", False)])
def test_scripts_are_cut_as_asked(pattern: str, mixed: bool) -> None:
    tokens = all_tokens(["мирworld мирworld αβγdelta".encode()] * 9, pattern)
    assert b"world" in tokens or mixed
    assert any(len(scripts_of(token)) > 1 for token in tokens) is mixed


@pytest.mark.parametrize(("pattern", "across"), [("gpt4", False), ("gpt4+words", True)])
def test_words_in_a_row_become_one_token_only_when_asked(pattern: str, across: bool) -> None:
    documents = [b"of the people by the people for the people, of the people again"] * 30
    tokens = build_tokenizer("bpe", documents, 275, pattern=pattern).token_bytes
    assert any(b" " in token.strip() for token in tokens) is across


def test_words_are_learned_before_runs_of_words() -> None:
    tokenizer = _cached("gpt2+words")
    within = bpe("gpt2", 257 + round(0.8 * (420 - 257)))
    assert tokenizer.merges[: len(within.merges)] == within.merges


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("gpt5", "unknown split pattern 'gpt5'; use gpt4 or gpt2"),
        ("gpt4+digits4", "unknown split pattern"),
        ("gpt4+words+words", "unknown split pattern"),
        ("gpt4+digits1+digits2", "unknown split pattern"),
        ("", "unknown split pattern ''"),
        ("regex:(", "does not compile"),
        ("regex:", "has 0 bytes; 1 to 4096"),
        ("regex:" + "x" * 5000, "has 5000 bytes; 1 to 4096"),
    ],
)
def test_a_bad_pattern_is_refused_before_any_work(pattern: str, message: str) -> None:
    def documents() -> list[bytes]:
        raise AssertionError("the corpus was read")

    with pytest.raises(TokenizerError) as caught:
        build_tokenizer("bpe", (d for _ in [0] for d in documents()), 300, pattern=pattern)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "start", [b"", b"\x20", b"\xfe", b"\xff", b"\xff\x00", b"\xff\x05ab", b"\xff\x01\xc3"]
)
def test_an_asset_with_a_bad_pattern_is_refused(start: bytes) -> None:
    with pytest.raises(TokenizerError, match="build it again|ends nowhere"):
        read_pattern(start)
    with pytest.raises(TokenizerError):
        from_asset(forged("bpe", start))


# --- nested sizes


@pytest.mark.parametrize("pattern", ["gpt4", "gpt2+digits1"])
def test_a_ladder_is_each_size_built_alone(pattern: str) -> None:
    sizes = [500, 257, 300]
    built = build_ladder("bpe", english(), sizes, pattern=pattern)
    ladder = [entry.tokenizer for entry in built]
    assert [tokenizer.vocab_size for tokenizer in ladder] == sizes
    for tokenizer, size in zip(ladder, sizes, strict=True):
        alone = build_tokenizer("bpe", english(), size, pattern=pattern)
        assert tokenizer.asset() == alone.asset()
    assert ladder[2].token_bytes == ladder[0].token_bytes[:300]


def test_sizes_of_unigram_are_no_ladder() -> None:
    with pytest.raises(TokenizerError, match="2 sizes of unigram would be 2 training runs"):
        build_ladder("unigram", english(), [300, 400])


# --- the sample

DOCUMENTS = st.lists(st.binary(max_size=12), min_size=1, max_size=30).filter(any)


@given(documents=DOCUMENTS, limit=st.integers(1, 120), seed=st.integers(0, 99))
@settings(deadline=None)
def test_a_sample_is_the_documents_of_the_smallest_hashes(
    documents: list[bytes], limit: int, seed: int
) -> None:
    order = sorted(
        (place for place, document in enumerate(documents) if document),
        key=lambda place: splitmix64(seed, place),
    )
    expected, total = order[:1], len(documents[order[0]])
    for place in order[1:]:
        total += len(documents[place])
        if total > limit:
            break
        expected.append(place)
    assert _sample(iter(documents), limit, seed) == [documents[i] for i in sorted(expected)]


def test_a_sample_holds_no_more_than_its_limit() -> None:
    held: set[int] = set()

    class Document(bytes):
        def __del__(self) -> None:
            held.discard(id(self))

    def documents() -> Iterator[bytes]:
        for _ in range(200):
            document = Document(b"x" * 100)
            held.add(id(document))
            assert len(held) <= 10 + 3
            yield document

    assert len(_sample(documents(), 1000, 1)) == 10


def test_another_seed_is_another_sample_and_the_same_one_the_same() -> None:
    assets = [
        build_tokenizer("bpe", english(), 300, sample_bytes=30_000, seed=seed).asset()
        for seed in (1, 1, 2)
    ]
    assert assets[0] == assets[1] != assets[2]


def test_a_corpus_within_the_limit_is_used_whole_whatever_the_seed() -> None:
    assets = {build_tokenizer("bpe", english(), 300, seed=seed).asset() for seed in (1, 2)}
    assert len(assets) == 1


# --- extras


@pytest.mark.parametrize("kind", ["byte", "bpe", "unigram"])
def test_a_build_carries_its_bucket_function(kind: str) -> None:
    bigram = BigramBuckets(count=997, seed=5)
    size = None if kind == "byte" else 300
    tokenizer = build_tokenizer(kind, english(), size, bigram=bigram)
    plain = build_tokenizer(kind, english(), size)
    assert tokenizer.bigram == bigram
    assert plain.bigram is None
    assert tokenizer.token_bytes == plain.token_bytes
    assert tokenizer.fingerprint != plain.fingerprint
    assert len(tokenizer.asset()) - len(plain.asset()) == 2 + 3 + 3 + 1 - 1


@pytest.mark.parametrize("count", [0, 1, (1 << 31) + 1])
def test_a_bucket_count_out_of_range_is_refused(count: int) -> None:
    with pytest.raises(ConfigError, match=f"bucket count is {count};"):
        BigramBuckets(count=count)


def with_transform(name: str) -> Tokenizer:
    return build_tokenizer("bpe", english(), 400, transform=name)


@pytest.mark.parametrize("name", ["caps-v1", "caps", "caps-auto"])
def test_a_transform_comes_before_learning(name: str) -> None:
    tokenizer = with_transform(name)
    assert not any(token.lower() != token for token in tokenizer.token_bytes[257:])
    rng = random.Random(3)
    for document in rng.sample(english(), 10):
        ids = tokenizer.encode(document)
        assert tokenizer.decode(ids) == document
        assert tokenizer.byte_lengths(ids).sum() == len(document)


def test_the_smallest_asset_says_which_code_it_needs() -> None:
    exact = build_tokenizer("bpe", english(), 500)
    smallest = build_tokenizer("bpe", english(), 500, order="max")
    assert len(smallest.asset()) < len(exact.asset())
    assert set(smallest.token_bytes) == set(exact.token_bytes)
    assert exact.extra_modules == ()
    assert smallest.extra_modules == ("tokgolf.tokenizers.maxcodec",)
    assert set(tokenizer_modules(smallest)) - set(tokenizer_modules(exact)) == {
        "tokgolf.tokenizers.maxcodec",
        "tokgolf.tokenizers.setcodec",
    }
    for document in english():
        assert smallest.decode(smallest.encode(document)) == document
        assert len(smallest.encode(document)) == len(exact.encode(document))


def test_a_ladder_of_smallest_assets_counts_what_rounding_changed() -> None:
    entries = build_ladder("bpe", english(), [400, 600], order="max")
    for entry in entries:
        notes = entry.notes
        assert len(entry.tokenizer.asset()) < notes["exact_asset_bytes"]
        assert 0 <= notes["changed_words"] < 0.01 * notes["words"]
        assert notes["words"] > 10_000


@pytest.mark.parametrize("step", [0.125, 0.5, 3.0])
def test_unigram_scores_are_rounded_to_the_step_and_the_change_is_told(step: float) -> None:
    entry = build_ladder("unigram", english(), [400], score_step=step)[0]
    assert isinstance(entry.tokenizer, UnigramTokenizer)
    assert entry.tokenizer.score_step == entry.notes["score_step"] == step
    low, high = {0.125: (0.0, 0.02), 0.5: (0.0, 0.05), 3.0: (0.002, 0.5)}[step]
    assert low <= entry.notes["changed_tokens"] < high


def test_the_change_of_unigram_tokens_is_what_a_slow_count_finds() -> None:
    entry = build_ladder("unigram", english()[:8], [300], score_step=4.0)[0]
    rounded = entry.tokenizer
    fine = build_tokenizer("unigram", english()[:8], 300, score_step=0.125)

    def spans(tokenizer: Tokenizer) -> set[tuple[int, int, int]]:
        found = set()
        for number, document in enumerate(english()[:8]):
            place = 0
            for token in tokenizer.encode(document).tolist():
                end = place + len(tokenizer.token_bytes[token])
                found.add((number, place, end))
                place = end
        return found

    before, after = spans(fine), spans(rounded)
    slow = len(before - after) / len(before)  # `fine` is nearly exact
    assert slow > 0
    assert abs(entry.notes["changed_tokens"] - slow) < 0.01


@pytest.mark.parametrize("step", [0.0, -1.0, 0.3, 40.0])
def test_a_score_step_that_cannot_be_stored_is_refused(step: float) -> None:
    with pytest.raises(TokenizerError, match="score step of"):
        build_tokenizer("unigram", english(), 300, score_step=step)


def test_an_unknown_transform_or_order_is_refused() -> None:
    with pytest.raises(TokenizerError, match="unknown transform 'cap'; did you mean 'caps"):
        with_transform("cap")
    with pytest.raises(TokenizerError, match="unknown asset order 'maxi'; did you mean 'max'"):
        build_tokenizer("bpe", english(), 300, order="maxi")
    with pytest.raises(TokenizerError, match="only bpe merges have an order to round"):
        build_tokenizer("unigram", english(), 300, order="max")
    with pytest.raises(TokenizerError, match="unigram cuts no text before learning"):
        build_tokenizer("unigram", english(), 300, pattern="gpt2")
