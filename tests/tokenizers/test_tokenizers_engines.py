"""Every engine gives the ids of the slow twin, on any table, any text and any length."""

import functools
import os
import pickle
import random
import sys
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers_reference import slow_bpe
from tokenizers_support import NASTY, built, english

from tokgolf.errors import TokenizerError
from tokgolf.tokenizers import Tokenizer, engines, from_asset, windows
from tokgolf.tokenizers.asset import wrap
from tokgolf.tokenizers.bpe import BpeTokenizer
from tokgolf.tokenizers.engines import ENGINE_VARIABLE, installed_engines
from tokgolf.tokenizers.pack import pack_merges

BLOCK = 8192  # what the fast engine calls so
PATTERNS = ("gpt4", "gpt2", "gpt4+digits1", "gpt2+digits2", "gpt4+words", "gpt2+words")

every_engine = pytest.mark.parametrize("engine", installed_engines())
needs_fastokens = pytest.mark.skipif(
    "fastokens" not in installed_engines(), reason="fastokens is not installed"
)
needs_proc = pytest.mark.skipif(
    not os.path.exists("/proc/self/statm"), reason="reads memory in /proc"
)


def with_engine(engine: str, merges: list[tuple[int, int]], pattern: str = "gpt4") -> BpeTokenizer:
    """A tokenizer with these merges, made while the environment asks for `engine`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENGINE_VARIABLE, engine)
        tokenizer = from_asset(wrap("bpe", pack_merges(merges, pattern)))
    assert isinstance(tokenizer, BpeTokenizer)
    assert tokenizer._engine.name == engine
    return tokenizer


@functools.cache
def english_bpe(engine: str) -> BpeTokenizer:
    tokenizer = built("bpe")
    assert isinstance(tokenizer, BpeTokenizer)
    return with_engine(engine, tokenizer.merges)


def random_merges(rng: random.Random, letters: list[int], count: int) -> list[tuple[int, int]]:
    """A sound table whose tokens overlap in every way; many can never be the last merge."""
    tokens = {letter: bytes([letter]) for letter in letters}
    merges: list[tuple[int, int]] = []
    for _ in range(count):
        pair = rng.choice(list(tokens)), rng.choice(list(tokens))
        token = tokens[pair[0]] + tokens[pair[1]]
        if token not in tokens.values() and len(token) <= 256:
            tokens[257 + len(merges)] = token
            merges.append(pair)
    return merges


@every_engine
@given(text=st.text(st.sampled_from("theraion \n.'S12") | st.characters(exclude_categories=["Cs"])))
@settings(max_examples=150, deadline=None)
def test_an_engine_agrees_with_the_slow_twin_on_any_text(engine: str, text: str) -> None:
    tokenizer = english_bpe(engine)
    assert tokenizer.encode(text.encode()).tolist() == slow_bpe(tokenizer, text)


@every_engine
@given(seed=st.integers(0, 1 << 32), text=st.text(alphabet="ab .", max_size=60))
@settings(max_examples=40, deadline=None)
def test_an_engine_agrees_with_the_slow_twin_on_any_table(
    engine: str, seed: int, text: str
) -> None:
    rng = random.Random(seed)
    tokenizer = with_engine(engine, random_merges(rng, [97, 98, 32, 46], 25))
    assert tokenizer.encode(text.encode()).tolist() == slow_bpe(tokenizer, text)


@needs_fastokens
@pytest.mark.parametrize("pattern", PATTERNS)
def test_each_pattern_cuts_alike_beside_every_sort_of_character(pattern: str) -> None:
    # Every lead and every trailing byte merges with what stands beside it, if nothing cuts.
    beside = [ord(c) for c in "a1 .\n"]
    merges = [(s, byte) for s in beside for byte in range(0xC2, 0xF5)]
    merges += [(byte, s) for s in beside for byte in range(0x80, 0xC0)]
    points = [*range(0x80, 0x3100, 3), *range(0x3100, 0x110000, 401), 0x180E, 0x200B, 0x2028]
    characters = [chr(point) for point in points if not 0xD800 <= point < 0xE000]
    texts = [s + c + s for c in characters for s in "a1 .\n"] + [f" {c}a" for c in characters]
    data = [text.encode() for text in texts]
    fast, plain = (with_engine(name, merges, pattern) for name in ("fastokens", "tokenizers"))
    for text, got, expected in zip(
        texts, fast.encode_batch(data), plain.encode_batch(data), strict=True
    ):
        assert got.tolist() == expected.tolist(), repr(text)


@st.composite
def long_texts(draw: st.DrawFn) -> str:
    """Runs of every sort around the length of a few blocks, with something between them."""
    runs = ["a", "ab", "the", " ", "\n", "\t", "=", "=-.", "'", "!", "日", "日本語", "é", "👍", "1"]
    text = ""
    for _ in range(draw(st.integers(1, 3))):
        run = draw(st.sampled_from(runs))
        length = draw(st.integers(2 * BLOCK - 3, 4 * BLOCK)) // len(run) * len(run)
        rng = random.Random(draw(st.integers(0, 99)))
        shuffled = draw(st.booleans())
        text += "".join(rng.choices(run, k=length)) if shuffled else run * (length // len(run))
        text += draw(st.sampled_from(["", " ", "x", "\n", ". ", "'s", "\u0301", "12"]))
    return text


@every_engine
@pytest.mark.parametrize("pattern", ["gpt4", "gpt2", "gpt4+words"])
@given(text=long_texts(), seed=st.integers(0, 1000))
@settings(max_examples=8, deadline=None)
def test_long_runs_are_encoded_alike_in_windows(
    engine: str, pattern: str, text: str, seed: int
) -> None:
    letters = [97, 98, 32, 10, 9, 61, 45, 33, 39, 49]
    merges = random_merges(random.Random(seed), letters, 200)
    tokenizer = with_engine(engine, merges, pattern)
    whole = tokenizer._engine._library.encode(text).ids
    assert tokenizer.encode(text.encode()).tolist() == whole


def test_windows_are_used_for_long_runs_only() -> None:
    def edges(text: str) -> list[int]:
        return windows._edges(text, long_numbers=False)

    assert edges("a" * 3 * BLOCK) == [BLOCK, 2 * BLOCK]
    assert edges("x " + "b" * 3 * BLOCK) == [2 * BLOCK]
    assert edges("a" * (2 * BLOCK - 1)) == []
    assert edges(b"".join(english()).decode()) == []
    assert edges("\n" + " " * 3 * BLOCK + "\n") == []  # all of this is one word, parts are not
    assert edges("x" + " " * 3 * BLOCK + "\n") == [2 * BLOCK]
    assert edges("\n" + " " * 3 * BLOCK + "x") == [2 * BLOCK]
    assert edges("." + "\n" * 3 * BLOCK + " \n") == []  # "." takes the newlines, not the space
    assert edges("12" * 2 * BLOCK) == []  # groups of three, which a window would shift
    assert windows._edges("12" * 2 * BLOCK, long_numbers=True) == [BLOCK, 2 * BLOCK, 3 * BLOCK]


@every_engine
def test_ten_megabytes_of_spaces_are_no_trouble(engine: str) -> None:
    tokenizer = english_bpe(engine)  # the library alone panics: its expression gives up
    spaces = b" " * 10_000_001
    assert tokenizer.decode(tokenizer.encode(spaces)) == spaces


@every_engine
def test_words_that_are_kept_together_may_go_on_for_long(engine: str) -> None:
    # fastokens alone raises: its regular expression runs out of stack within the second text.
    tokenizer = with_engine(engine, english_bpe(engine).merges, "gpt4+words")
    texts = [b"A short one.", b"the words go on " * 20_000, b"", b"Another."]
    plain = tokenizer._engine._library
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert ids.tolist() == plain.encode(text.decode()).ids


@pytest.mark.parametrize(("wrong", "calls"), [([1], 4), ([2, 3], 5)])
def test_a_window_whose_start_was_wrong_is_mended(wrong: list[int], calls: int) -> None:
    tokenizer, text = english_bpe("tokenizers"), "ab" * 2 * BLOCK
    lengths: list[int] = []

    def encode(part: str) -> windows.EngineIds:
        ids = tokenizer._engine._encode_by_library([part])[0]
        lengths.append(len(part))
        if len(lengths) - 1 in wrong:
            ids[0] = 0  # as if the window before had ended in another token
        return ids

    found = windows._encode_long(text, [BLOCK, 2 * BLOCK], encode, tokenizer.token_bytes)
    assert found.tolist() == tokenizer._engine._library.encode(text).ids
    assert len(lengths) == calls


@every_engine
def test_an_engine_gives_bytes_back(engine: str) -> None:
    tokenizer = english_bpe(engine)
    batch = [*NASTY, b"", *english()[:5], b"\xff"]
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(batch)] == batch
    assert all(ids.dtype == tokenizer.dtype for ids in tokenizer.encode_batch(batch))


@every_engine
def test_a_copy_by_pickle_chooses_its_engine_anew(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = english_bpe(engine)
    ids = tokenizer.encode(b"pickled text").tolist()
    monkeypatch.setenv(ENGINE_VARIABLE, "tokenizers")
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy._engine.name == "tokenizers"
    assert copy.encode(b"pickled text").tolist() == ids


@every_engine
@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")
def test_an_engine_starts_no_threads_and_survives_a_fork(engine: str) -> None:
    tokenizer = english_bpe(engine)
    batch = [b"".join(english())] * 4
    before = len(os.listdir("/proc/self/task"))
    expected = [len(ids) for ids in tokenizer.encode_batch(batch)]
    assert len(os.listdir("/proc/self/task")) == before
    child = os.fork()
    if not child:
        same = [len(ids) for ids in tokenizer.encode_batch(batch)] == expected
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0


def grown(restore: Callable[[int], Tokenizer], times: int) -> int:
    """The bytes of memory that are kept after `times` tokenizers were restored and used."""

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = 0
    for number in range(-10, times):
        before = before if number else resident()
        restore(number).encode(b"a few words")
    return resident() - before


@every_engine
@needs_proc
def test_tokenizers_that_are_gone_take_no_memory(engine: str) -> None:
    merges = random_merges(random.Random(0), [*range(97, 103)], 20)
    # a probe's words would take 1.5 MB each time
    assert grown(lambda number: with_engine(engine, merges), times=20) < 10 << 20


@needs_proc
def test_split_expressions_of_many_assets_take_no_memory() -> None:
    ranges = "|".join(rf"[\p{{L}}{n}]+" for n in range(300))
    assets = [wrap("bpe", pack_merges([(97, 98)], f"regex:{ranges}|{n}")) for n in range(60)]
    # one takes 3 MB
    assert grown(lambda number: from_asset(assets[number]), times=50) < 30 << 20


def test_the_fastest_engine_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENGINE_VARIABLE, raising=False)
    tokenizer = from_asset(built("bpe").asset())
    assert isinstance(tokenizer, BpeTokenizer)
    assert tokenizer._engine.name == installed_engines()[0]


def test_an_unknown_engine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENGINE_VARIABLE, "fastoken")
    with pytest.raises(TokenizerError, match="TOKGOLF_ENGINE is 'fastoken'.*fastokens"):
        from_asset(built("bpe").asset())


def test_without_the_package_the_library_works(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = built("bpe").encode(b"some words, and more").tolist()
    monkeypatch.setattr(engines, "find_spec", lambda name: name == "tokenizers")
    monkeypatch.setitem(sys.modules, "fastokens", None)
    assert installed_engines() == ["tokenizers"]
    tokenizer = from_asset(built("bpe").asset())
    assert isinstance(tokenizer, BpeTokenizer)
    assert tokenizer.encode(b"some words, and more").tolist() == expected
    assert tokenizer._engine.name == "tokenizers"
    monkeypatch.setenv(ENGINE_VARIABLE, "fastokens")
    with pytest.raises(TokenizerError, match=r"not installed; pip install 'tokgolf\[fast\]'"):
        from_asset(built("bpe").asset())


@needs_fastokens
def test_an_engine_that_differs_on_the_probe_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from tokgolf.tokenizers import engine_fastokens

    encode = engine_fastokens.Fastokens._encode
    monkeypatch.setattr(
        engine_fastokens.Fastokens,
        "_encode",
        lambda self, texts: [ids[:-1] for ids in encode(self, texts)],
    )
    tokenizer = from_asset(built("bpe").asset())
    assert isinstance(tokenizer, BpeTokenizer)
    assert tokenizer._engine.name == "tokenizers"


@needs_fastokens
@pytest.mark.parametrize("pattern", ["regex:[a-z]+|[^a-z]+", "gpt4+scripts"])
def test_patterns_that_may_differ_stay_with_the_library(pattern: str) -> None:
    tokenizer = from_asset(wrap("bpe", pack_merges([(97, 98)], pattern)))
    assert isinstance(tokenizer, BpeTokenizer)
    assert tokenizer._engine.name == "tokenizers"
