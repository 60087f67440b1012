"""Building: deterministic, nothing dropped, errors with both numbers, imports kept apart."""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from tokenizers_support import KINDS, built, english

from tokgolf.errors import CorpusError, TokenizerError
from tokgolf.tokenizers import build_tokenizer
from tokgolf.tokenizers.bpe import BpeTokenizer
from tokgolf.tokenizers.build import _sentences
from tokgolf.tokenizers.unigram import UnigramTokenizer

LEARNED = tuple(kind for kind in KINDS if kind != "byte")


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that imports what this one can."""
    keep = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
    here = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
    return subprocess.run(
        [sys.executable, "-c", code],
        env=keep | {"PYTHONPATH": here} | environment,
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.mark.parametrize("kind", LEARNED)
def test_threads_and_hash_seeds_do_not_change_the_asset(kind: str) -> None:
    code = f"from tokenizers_support import built; print(built({kind!r}, 400).fingerprint)"
    for threads, seed, parallel in (("1", "1", "false"), ("4", "2", "true")):
        result = run_python(
            code,
            RAYON_NUM_THREADS=threads,
            PYTHONHASHSEED=seed,
            TOKENIZERS_PARALLELISM=parallel,
        )
        assert result.stdout.strip() == built(kind, 400).fingerprint


@pytest.mark.parametrize("kind", LEARNED)
def test_building_twice_gives_the_same_asset(kind: str) -> None:
    again = build_tokenizer(kind, iter(english()), 600)
    assert again.asset() == built(kind).asset()


@pytest.mark.parametrize("kind", LEARNED)
def test_other_documents_give_another_asset(kind: str) -> None:
    assert build_tokenizer(kind, english()[10:], 600).asset() != built(kind).asset()


@pytest.mark.parametrize("kind", LEARNED)
def test_documents_are_read_once_in_order_to_the_end(kind: str) -> None:
    seen = []

    def documents() -> Iterator[bytes]:
        for number, document in enumerate(english()):
            seen.append(number)
            yield document

    build_tokenizer(kind, documents(), 300)
    assert seen == list(range(len(english())))


@pytest.mark.parametrize("kind", LEARNED)
def test_an_error_of_the_corpus_passes_through(kind: str) -> None:
    def documents() -> Iterator[bytes]:
        yield english()[0]
        raise CorpusError("shard 7 is damaged")

    with pytest.raises(CorpusError, match="shard 7"):
        build_tokenizer(kind, documents(), 300)


@pytest.mark.parametrize("kind", LEARNED)
@pytest.mark.parametrize("spoiler", ["\0", "\t", "\u2581", "\u2585", "\u2047", "\udcff", ""])
def test_a_document_with_reserved_or_bad_bytes_or_a_long_line_still_counts(
    kind: str, spoiler: str
) -> None:
    # One line of 8 kB, and no other document has the word.
    words = [f"zyxgrumbo{n}" for n in range(700)]
    document = (spoiler + " " + " ".join(words)).encode("utf-8", "surrogateescape")
    assert len(document) > 8000
    tokenizer = build_tokenizer(kind, [*english(), document, *[b""]], 700)
    assert any(b"grumbo" in token for token in tokenizer.token_bytes)


def test_only_unlearnable_characters_are_left_out_of_training() -> None:
    text = "a\tb\0c\u2581d\u2047e\u2585f\ufffdg\r\n\n  x\n" + "y" * 25_000 + "\nend"
    sentences = _sentences(text.encode() + b"\xff")
    kept = "".join(c for c in text if c not in "\t\0\u2581\u2047\u2585\ufffd")
    assert "".join(sentences) == kept
    assert max(map(len, sentences)) == 10_000


def test_text_is_cut_where_words_end() -> None:
    sentences = _sentences(b"\n  some words " * 3000)
    assert len(sentences) == 5
    assert all(not a[-1].isspace() and b[0].isspace() for a, b in itertools.pairwise(sentences))


def test_bad_bytes_are_learned_by_nobody() -> None:
    documents = [b"good \xff\xfe words " * 50, *english()]
    for kind in LEARNED:
        tokens = build_tokenizer(kind, documents, 500).token_bytes[257:]
        assert not any(b"\xff" in token or b"\xef\xbf\xbd" in token for token in tokens)


def test_unigram_learns_newlines_and_runs_of_spaces() -> None:
    tokens = built("unigram").token_bytes[257:]
    assert any(set(token) == {ord(" ")} for token in tokens)
    assert any(b"\n" in token for token in tokens)
    assert not any(b"\xe2\x96\x81" in token for token in tokens)


def test_unigram_learns_a_text_with_more_characters_than_tokens() -> None:
    text = "".join(chr(0x4E00 + n) for n in range(3000)) * 2
    tokenizer = build_tokenizer("unigram", [text.encode()], 300)
    assert tokenizer.vocab_size == 300
    assert tokenizer.decode(tokenizer.encode(text.encode())) == text.encode()


def test_one_endless_line_of_one_letter_can_be_learned_from() -> None:
    for kind in LEARNED:
        tokenizer = build_tokenizer(kind, [b"a" * 1_000_000], 258)
        assert set(tokenizer.token_bytes[257]) == {ord("a")}


def test_no_bpe_token_is_longer_than_an_asset_may_hold() -> None:
    with pytest.raises(TokenizerError, match="supports only 265"):
        build_tokenizer("bpe", [b"a" * 5000] * 2, 300)
    tokens = build_tokenizer("bpe", [b"a" * 5000] * 2, 265).token_bytes
    assert 128 <= max(map(len, tokens)) <= 256


@pytest.mark.parametrize("kind", LEARNED)
@pytest.mark.parametrize("document", [b"x", b"\0\t", b"\xff", "日本語".encode(), b"plain text"])
def test_257_tokens_are_the_bytes(kind: str, document: bytes) -> None:
    tokenizer = build_tokenizer(kind, [document], 257)
    assert tokenizer.vocab_size == 257
    assert tokenizer.encode(document).tolist() == list(document)


def test_the_kinds_are_of_their_classes() -> None:
    assert isinstance(built("bpe"), BpeTokenizer)
    assert isinstance(built("unigram"), UnigramTokenizer)


def test_the_pattern_is_kept() -> None:
    tokenizer = build_tokenizer("bpe", english(), 400, pattern="gpt2")
    assert isinstance(tokenizer, BpeTokenizer)
    assert tokenizer.pattern == "gpt2"
    assert tokenizer.asset() != built("bpe", 400).asset()


def test_a_merge_needs_two_occurrences() -> None:
    with pytest.raises(TokenizerError, match="asked for 258 tokens, .* supports only 257"):
        build_tokenizer("bpe", [b"qz"], 258)
    assert build_tokenizer("bpe", [b"qz", b"qz"], 258).token_bytes[257] == b"qz"


@pytest.mark.parametrize("kind", LEARNED)
def test_a_corpus_too_small_says_what_it_supports(kind: str) -> None:
    with pytest.raises(TokenizerError) as caught:
        build_tokenizer(kind, english()[:3], 60_000)
    message = str(caught.value)
    supported = int(message.rsplit("--vocab-size ", 1)[1].split()[0])
    assert message == (
        f"asked for 60000 tokens, but the corpus supports only {supported} "
        f"({supported - 257} beside the bytes and BOS); use --vocab-size {supported} or more text"
    )
    assert 257 < supported < 60_000
    if kind == "bpe":  # the unigram trainer prunes towards the size asked for
        assert build_tokenizer(kind, english()[:3], supported).vocab_size == supported


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        ("bpee", 300, "unknown tokenizer kind 'bpee'; did you mean 'bpe'?"),
        ("word", 300, "unknown tokenizer kind 'word'; known: bpe, byte"),
        ("bpe", 256, "vocabulary size 256 is outside 257 (the bytes and BOS) to 65536;"),
        ("unigram", 65537, "vocabulary size 65537 is outside 257 (the bytes and BOS) to 65536;"),
        ("bpe", -1, "vocabulary size -1 is outside 257"),
        ("bpe", None, "a bpe tokenizer needs a size; add --vocab-size"),
        ("byte", 300, "a byte tokenizer has 257 tokens, not 300;"),
    ],
)
def test_a_wrong_kind_or_size_is_refused(kind: str, size: int | None, message: str) -> None:
    with pytest.raises(TokenizerError) as caught:
        build_tokenizer(kind, english(), size)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", LEARNED)
@pytest.mark.parametrize("documents", [[], [b""], [b"", b""]])
def test_an_empty_corpus_is_refused(kind: str, documents: list[bytes]) -> None:
    with pytest.raises(TokenizerError, match="the corpus has 0 bytes"):
        build_tokenizer(kind, documents, 300)


def test_a_byte_tokenizer_needs_no_documents() -> None:
    assert build_tokenizer("byte", [], 257).asset() == build_tokenizer("byte", [], None).asset()


BPE = {"bpe", "engines", "mergecodec", "rangecoder", "split", "windows"}
MODULES: dict[str, set[str]] = {
    "byte": {"byte"},
    "bpe": BPE,
    "unigram": {"unigram", "rangecoder", "setcodec"},
    "sentencepiece": {"sentencepiece_bpe", "mergecodec", "protobuf", "rangecoder"},
    "greedy": BPE | {"greedy", "setcodec", "tokenset"},
    "shortest": BPE | {"shortest", "setcodec", "tokenset"},
}
LIBRARIES = {
    "byte": set(),
    "bpe": {"tokenizers"},
    "unigram": {"sentencepiece"},
    "sentencepiece": {"sentencepiece"},
    "greedy": {"tokenizers"},
    "shortest": {"tokenizers"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_restoring_imports_only_its_own_kind(kind: str) -> None:
    code = (
        "import sys; from tokgolf.tokenizers import from_asset\n"
        f"tokenizer = from_asset(bytes.fromhex({built(kind, 290).asset().hex()!r}))\n"
        "assert tokenizer.decode(tokenizer.encode(b'text')) == b'text'\n"
        "print(*sys.modules)"
    )
    modules = set(run_python(code, TOKGOLF_ENGINE="tokenizers").stdout.split())
    assert modules & {"tokenizers", "sentencepiece", "torch"} == LIBRARIES[kind]
    own = {name.removeprefix("tokgolf.tokenizers.") for name in modules if "f.tokenizers." in name}
    assert own == {"asset", "base"} | MODULES[kind]


def test_importing_the_package_imports_no_library() -> None:
    code = "import sys, tokgolf.tokenizers, tokgolf.tokenizers.build; print(*sys.modules)"
    modules = set(run_python(code).stdout.split())
    assert not modules & {"tokenizers", "sentencepiece", "torch"}


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    import tokgolf.tokenizers

    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = tokgolf.tokenizers.nonsense


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs /proc and fork")
@pytest.mark.parametrize("kind", LEARNED)
def test_encoding_starts_no_threads_and_leaves_fork_safe(kind: str) -> None:
    code = (
        "import os; from tokenizers_support import built\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        f"tokenizer = built({kind!r}, 300)\n"
        "tokenizer.encode_batch([b'some text'] * 100)\n"
        "assert len(os.listdir('/proc/self/task')) == before\n"
        "child = os.fork()\n"
        "tokenizer.encode_batch([b'some text'] * 100)\n"
        "if child: os.waitpid(child, 0)"
    )
    assert run_python(code).stderr == ""
