"""Files of other libraries: imported with their ids, exported so that the libraries give ours."""

import base64
import functools
import json
import pickle
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers
from tokenizers_support import NASTY, built, english, forged

from tokgolf.errors import TokenizerError
from tokgolf.hashing import BigramBuckets
from tokgolf.tokenizers import Tokenizer, from_asset
from tokgolf.tokenizers.asset import Extras, unwrap, varint, wrap
from tokgolf.tokenizers.bpe import byte_names
from tokgolf.tokenizers.build_sentencepiece import build_sentencepiece_bpe
from tokgolf.tokenizers.foreign import (
    export_tokenizer,
    foreign_asset,
    import_tokenizer,
    last_pair,
)
from tokgolf.tokenizers.foreign_bpe import ForeignBpeTokenizer
from tokgolf.tokenizers.pack import pack_merges, pack_pairs
from tokgolf.tokenizers.split import expression

WORDS = ["the ", "function", "  ", "\n", "'s", "aaaa", "abab", "123456", "\u00e9", "<|endoftext|>"]
TEXT = st.one_of(
    st.text(max_size=60),
    st.text("ab ", max_size=30),
    st.lists(st.sampled_from(WORDS), max_size=12).map("".join),
)
TEXTS = [text.decode() for text in english()[:40]] + [
    text.decode() for text in NASTY if text.decode("utf-8", "ignore").encode() == text
]
BYTE260 = {
    "tokenizer_type": "pure_byte",
    "config": {
        "pad_id": 0,
        "bos_id": 1,
        "eos_id": 2,
        "unk_id": 3,
        "byte_offset": 4,
        "byte_count": 256,
    },
    "vocab_size": 260,
}


def write(content: str | bytes, name: str = "file") -> Path:
    """A file with this content, in a folder of its own."""
    path = Path(tempfile.mkdtemp(dir=FOLDER)) / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


FOLDER = ""


@pytest.fixture(autouse=True, scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    global FOLDER
    FOLDER = str(tmp_path_factory.mktemp("foreign"))


def from_text(content: str | bytes, **options: Any) -> Tokenizer:
    """Import in this process, which is faster; `import_tokenizer` takes one of its own."""
    data = content.encode() if isinstance(content, str) else content
    return from_asset(foreign_asset(data, **options))


@functools.cache
def library(cut: str = "gpt2") -> tokenizers.Tokenizer:
    """Byte-level BPE as the library trains it, special tokens first."""
    made = tokenizers.Tokenizer(models.BPE())
    if cut == "gpt2":
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        split = pre_tokenizers.Split(tokenizers.Regex(cut), "isolated")
        names = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.pre_tokenizer = pre_tokenizers.Sequence([split, names])
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<pad>", "<s>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([text.decode() for text in english()], trainer)
    return made


@functools.cache
def imported(cut: str = "gpt2") -> ForeignBpeTokenizer:
    tokenizer = from_text(library(cut).to_str())
    assert isinstance(tokenizer, ForeignBpeTokenizer)
    return tokenizer


CUTS = ["gpt2", expression("gpt4"), r"\w+|[^\w]+"]


def plain_ids(made: tokenizers.Tokenizer, text: str) -> list[int]:
    """The library's ids; its special tokens in the text are no text to it, so there are none."""
    return list(made.encode(text, add_special_tokens=False).ids)


# --- tokenizer.json


@pytest.mark.parametrize("cut", CUTS)
@given(text=TEXT)
@settings(max_examples=80, deadline=None)
def test_a_tokenizer_json_keeps_its_ids(cut: str, text: str) -> None:
    text = text.replace("<|endoftext|>", "<|end|>")
    assert imported(cut).encode(text.encode()).tolist() == plain_ids(library(cut), text)


@given(data=st.binary(max_size=80))
@settings(deadline=None)
def test_a_foreign_one_gives_every_byte_back(data: bytes) -> None:
    ids = imported().encode(data)
    assert imported().decode(ids) == data
    assert imported().byte_lengths(ids).sum() == len(data)


@pytest.mark.parametrize("data", NASTY, ids=repr)
def test_a_foreign_one_gives_nasty_bytes_back(data: bytes) -> None:
    assert imported().decode(imported().encode(data)) == data
    assert (
        imported().encode_batch([data, b"", data])[2].tolist() == imported().encode(data).tolist()
    )


def test_special_tokens_are_ids_but_never_text() -> None:
    tokenizer = imported()
    assert tokenizer.specials == {0: "<pad>", 1: "<s>", 2: "<|endoftext|>"}
    assert tokenizer.bos_id == 1
    assert not {0, 1, 2} & {*tokenizer.encode(b"<s> <pad> <|endoftext|>").tolist()}
    assert tokenizer.decode([0, 1, 2]) == b""


def test_the_pattern_is_named_where_it_is_ours() -> None:
    assert [imported(cut).pattern for cut in CUTS] == ["gpt2", "gpt4", "regex:" + CUTS[2]]


def test_a_foreign_one_survives_its_asset_and_pickling() -> None:
    for again in (from_asset(imported().asset()), pickle.loads(pickle.dumps(imported()))):
        assert again.token_bytes == imported().token_bytes
        assert again.encode(b"some text").tolist() == imported().encode(b"some text").tolist()
    assert len(imported().asset()) < 3 * 241 + 60


@given(st.data())
@settings(max_examples=120, deadline=None)
def test_any_merge_table_keeps_its_ids(data: st.DataObject) -> None:
    """Repeated strings, tokens that nothing makes, whole words: whatever the library takes."""
    rng = random.Random(data.draw(st.integers(0, 1 << 30)))
    whole = data.draw(st.booleans())
    names = byte_names()
    vocabulary = {name: n for n, name in enumerate(names)}
    merges: list[tuple[str, str]] = []
    pool = ["a", "b", "c"]
    for _ in range(data.draw(st.integers(1, 12))):
        pair = rng.choice(pool), rng.choice(pool)
        if pair in merges or len("".join(pair)) > 9:
            continue
        merges.append(pair)
        if "".join(pair) not in vocabulary:
            vocabulary["".join(pair)] = len(vocabulary)
            pool.append("".join(pair))
    if whole:
        vocabulary.setdefault("cabb", len(vocabulary))
    made = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=whole))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    try:
        tokenizer = from_text(made.to_str())
    except TokenizerError as error:
        assert "sort the merges by id" in str(error)
        return
    for _ in range(20):
        text = "".join(rng.choices("abc ", k=rng.randrange(1, 14)))
        assert tokenizer.encode(text.encode()).tolist() == plain_ids(made, text), text


def test_our_own_json_comes_back_as_the_same_asset(tmp_path: Path) -> None:
    for tokenizer in (built("bpe"), imported(), imported(CUTS[2])):
        export_tokenizer(tokenizer, tmp_path / "again.json")
        assert import_tokenizer(tmp_path / "again.json").asset() == tokenizer.asset()


def changed(**changes: Any) -> str:
    values = json.loads(library().to_str())
    for key, value in changes.items():
        *parents, last = key.split("__")
        place = values
        for parent in parents:
            place = place[parent]
        place[last] = value
    return json.dumps(values)


UNSUPPORTED: dict[str, tuple[Callable[[], str], str]] = {
    "normalizer": (lambda: changed(normalizer={"type": "NFC"}), "a normalizer cannot"),
    "unigram": (lambda: changed(model__type="Unigram"), "model Unigram cannot"),
    "dropout": (lambda: changed(model__dropout=0.1), "dropout cannot"),
    "prefix": (lambda: changed(model__continuing_subword_prefix="##"), "continuing_subword_prefix"),
    "byte fallback": (lambda: changed(model__byte_fallback=True), "byte_fallback cannot"),
    "added token": (
        lambda: changed(added_tokens=[{"id": 500, "content": "foo", "special": False}]),
        "added token 'foo' cannot",
    ),
    "prefix space": (
        lambda: changed(pre_tokenizer__add_prefix_space=True),
        "pre-tokenizer ByteLevel cannot",
    ),
    "no pre-tokenizer": (lambda: changed(pre_tokenizer=None), "pre-tokenizer None cannot"),
    "other pre-tokenizer": (
        lambda: changed(pre_tokenizer={"type": "Metaspace"}),
        "pre-tokenizer Metaspace cannot",
    ),
    "missing bytes": (lambda: changed(model__vocab={"a": 0}), "of 256 bytes have no token"),
    "merge of three": (lambda: changed(model__merges=["a b c"]), "merge 0 is 'a b c'"),
    "no model": (lambda: "{}", "no model with a vocabulary"),
    "no JSON": (lambda: "{", "no sound JSON"),
    "odd types": (lambda: changed(added_tokens=3), "no sound tokenizer.json"),
    "pure bytes elsewhere": (
        lambda: json.dumps(BYTE260 | {"vocab_size": 300}),
        "pure_byte layout of 300 ids",
    ),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_would_give_other_ids_is_refused_by_name(name: str) -> None:
    content, message = UNSUPPORTED[name]
    with pytest.raises(TokenizerError, match=message) as caught:
        from_text(content())
    assert "\n" not in str(caught.value)


def test_merges_out_of_the_order_of_ids_are_refused() -> None:
    values = json.loads(library().to_str())
    values["model"]["merges"].reverse()
    with pytest.raises(TokenizerError, match="sort the merges by id|comes before"):
        from_text(json.dumps(values))


# --- tiktoken


def ranks_of(tokenizer: Tokenizer) -> dict[bytes, int]:
    return {token: number for number, token in enumerate(tokenizer.token_bytes) if token}


def rank_file(ranks: dict[bytes, int]) -> bytes:
    return b"".join(base64.b64encode(t) + b" %d\n" % n for t, n in ranks.items())


@functools.cache
def of_tiktoken() -> tuple[Any, Tokenizer]:
    """tiktoken by GPT-2's byte order, with a token that only a whole word can be."""
    order = sorted(range(256), key=lambda byte: byte_names()[byte])
    tokens = [bytes([byte]) for byte in order] + built("bpe").token_bytes[257:] + [b"zqxj"]
    ranks = {token: n for n, token in enumerate(tokens)}
    made = tiktoken.Encoding(
        "made", pat_str=expression("gpt2"), mergeable_ranks=ranks, special_tokens={}
    )
    return made, from_text(rank_file(ranks), pattern="gpt2")


@given(text=st.one_of(TEXT, st.lists(st.sampled_from(["zqxj", " ", "x"])).map("".join)))
@settings(max_examples=150, deadline=None)
def test_a_rank_file_keeps_its_ids(text: str) -> None:
    made, tokenizer = of_tiktoken()
    assert tokenizer.encode(text.encode()).tolist() == made.encode_ordinary(text)


def test_a_rank_file_keeps_its_ids_on_documents() -> None:
    made, tokenizer = of_tiktoken()
    for text in TEXTS:
        assert tokenizer.encode(text.encode()).tolist() == made.encode_ordinary(text)
    assert tokenizer.bos_id == made.n_vocab
    assert tokenizer.encode(b"zqxj").tolist() == [made.n_vocab - 1]


def test_the_exported_ranks_give_tiktoken_the_same_ids(tmp_path: Path) -> None:
    tokenizer = built("bpe")
    note = export_tokenizer(tokenizer, tmp_path / "x.tiktoken")
    assert note == "a rank file has neither the pattern (gpt4) nor BOS (256): tell tiktoken"
    lines = (tmp_path / "x.tiktoken").read_bytes().splitlines()
    made = tiktoken.Encoding(
        "made",
        pat_str=expression("gpt4"),
        mergeable_ranks={base64.b64decode(n): int(r) for n, r in map(bytes.split, lines)},
        special_tokens={"<bos>": 256},
    )
    for text in TEXTS:
        assert made.encode_ordinary(text) == tokenizer.encode(text.encode()).tolist()
    assert import_tokenizer(tmp_path / "x.tiktoken").asset() == tokenizer.asset()


def test_merges_that_tiktoken_would_do_otherwise_are_not_exported(tmp_path: Path) -> None:
    # "abc" is made of a and bc, but ab goes first: tiktoken would join ab and c, this never does.
    merges = [(97, 98), (98, 99), (97, 258)]
    tokenizer = from_asset(wrap("bpe", pack_merges(merges, "gpt4")))
    assert tokenizer.encode(b"abc").tolist() == [257, 99]
    with pytest.raises(TokenizerError, match="token 259 .* export a .json"):
        export_tokenizer(tokenizer, tmp_path / "x.tiktoken")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"YQ== 0\nYg== 1\n", "254 of 256 bytes have no token"),
        (b"YQ== 0\nYQ== 1\n", "line 2 has a token that is empty or there already"),
        (b"YQ== 0\nnonsense\n", "line 2 is b'nonsense'"),
        (b"YQ== 0\nYQ= 1\n", "line 2 is no base64"),
        (b"YQ== 999999999\n", "255 of 256"),
    ],
)
def test_a_damaged_rank_file_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        from_text(content)


def test_a_rank_beyond_all_tokens_is_refused() -> None:
    ranks = {bytes([byte]): byte for byte in range(255)} | {b"\xff": 999_999_999}
    with pytest.raises(TokenizerError, match="256 ids from 0 to 999999999"):
        from_text(rank_file(ranks))


def test_a_pattern_is_for_rank_files_only() -> None:
    with pytest.raises(TokenizerError, match="only tiktoken files"):
        from_text(library().to_str(), pattern="gpt2")
    with pytest.raises(TokenizerError, match="unknown split pattern 'gpt5'"):
        from_text(rank_file(ranks_of(built("byte"))), pattern="gpt5")


@pytest.mark.parametrize(
    ("token", "ranks", "result"),
    [
        (b"abc", {b"ab": 0, b"abc": 1}, (1, b"ab", b"c")),
        (b"aaa", {b"aa": 0, b"aaa": 1}, (1, b"aa", b"a")),
        (b"abc", {b"abc": 1}, None),
        (b"a", {}, None),
    ],
)
def test_the_last_pair_is_what_is_merged_last(
    token: bytes, ranks: dict[bytes, int], result: tuple[int, bytes, bytes] | None
) -> None:
    assert last_pair(token, lambda left, right: ranks.get(left + right)) == result


# --- byte260, SentencePiece, and what is none of these


def test_byte260_is_bytes_after_four_special_ids(tmp_path: Path) -> None:
    tokenizer = from_text(json.dumps(BYTE260))
    assert tokenizer.vocab_size == 260 and tokenizer.bos_id == 1
    for data in NASTY:
        assert tokenizer.encode(data).tolist() == [byte + 4 for byte in data]
        assert tokenizer.decode(tokenizer.encode(data)) == data
    export_tokenizer(tokenizer, tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == BYTE260
    assert import_tokenizer(tmp_path / "again.json").asset() == tokenizer.asset()
    assert len(tokenizer.asset()) < 50


@pytest.mark.parametrize("kind", ["unigram", "sentencepiece"])
def test_the_exported_model_gives_sentencepiece_the_same_ids(kind: str, tmp_path: Path) -> None:
    tokenizer = (
        built(kind) if kind == "unigram" else from_asset(build_sentencepiece_bpe(english(), 500))
    )
    assert export_tokenizer(tokenizer, tmp_path / "x.model") == ""
    made = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "x.model"))
    for text in [*TEXTS, "".join(map(chr, range(1, 400)))]:
        assert made.encode(text) == tokenizer.encode(text.encode()).tolist()
    if kind == "sentencepiece":
        assert import_tokenizer(tmp_path / "x.model").asset() == tokenizer.asset()


@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_the_exported_json_gives_the_library_the_same_ids(kind: str, tmp_path: Path) -> None:
    assert export_tokenizer(built(kind), tmp_path / "x.json") == ""
    made = tokenizers.Tokenizer.from_file(str(tmp_path / "x.json"))
    for text in TEXTS:
        ids = built(kind).encode(text.encode()).tolist()
        assert plain_ids(made, text) == ids
        assert made.decode(ids) == text


def test_an_imported_one_is_exported_again(tmp_path: Path) -> None:
    export_tokenizer(imported(), tmp_path / "x.json")
    made = tokenizers.Tokenizer.from_file(str(tmp_path / "x.json"))
    for text in TEXTS:
        assert plain_ids(made, text) == imported().encode(text.encode()).tolist()


def test_buckets_are_left_out_and_said(tmp_path: Path) -> None:
    extras = Extras(bigram=BigramBuckets(count=64, multipliers=(3, 5), seed=1))
    tokenizer = from_asset(wrap("byte", b"", extras))
    assert export_tokenizer(tokenizer, tmp_path / "x.json") == "the bigram buckets are left out"


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("bpe", "x.model", "a bpe tokenizer cannot be a .model file"),
        ("unigram", "x.json", "a unigram tokenizer cannot be a .json file"),
        ("byte", "x.model", "a byte tokenizer cannot be"),
        ("bpe", "x.bin", "cannot export to '.bin'; use a name in .json, .model, .tiktoken"),
    ],
)
def test_what_cannot_be_exact_is_not_exported(
    kind: str, name: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(TokenizerError, match=message):
        export_tokenizer(built(kind), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has type 1 and 0 pieces"),
        (b"\xff\xff\xff", "stop making sense at byte"),
        (b"hello, this is text", "no SentencePiece model"),
        (b"\x0a\x03abc", "stop making sense"),
        (b"TOK\x02", "is a tokgolf tokenizer already"),
    ],
)
def test_a_file_that_is_none_is_refused_with_its_path(content: bytes, message: str) -> None:
    with pytest.raises(TokenizerError, match=message) as caught:
        import_tokenizer(write(content))
    assert str(caught.value).startswith(FOLDER) and "\n" not in str(caught.value)


def test_a_damaged_model_is_refused_or_still_a_tokenizer() -> None:
    file, rng, refused = built("unigram").original_file(), random.Random(4), 0
    for _ in range(60):
        damaged = bytearray(file)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            assert from_text(bytes(damaged)).vocab_size > 256
        except TokenizerError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 10


# --- damage of foreign assets


def test_every_flipped_bit_and_truncation_is_refused() -> None:
    asset = from_text(json.dumps(BYTE260)).asset()
    for bit in range(8 * len(asset)):
        flipped = bytearray(asset)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(TokenizerError):
            from_asset(bytes(flipped))
    for length in range(len(asset)):
        with pytest.raises(TokenizerError):
            from_asset(asset[:length])


def test_damage_under_a_right_checksum_is_refused_or_lossless() -> None:
    body, rng, refused = unwrap("foreign", imported().asset()), random.Random(3), 0
    for _ in range(150):
        damaged = bytearray(body)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            tokenizer = from_asset(forged("foreign", bytes(damaged)))
        except TokenizerError:
            refused += 1
            continue
        for data in NASTY:
            assert tokenizer.decode(tokenizer.encode(data)) == data
    assert refused > 20


def body(
    order: bytes = b"\0", bos: int = 0, runs: Any = None, literals: Any = None, code: bytes = b""
) -> bytes:
    """An asset body: BOS, the bytes, sound unless told otherwise."""
    layout = [(1, 2), (256, 1)] if runs is None else runs
    out = order + varint(bos) + b"\0" + varint(len(layout))
    out += b"".join(varint(number << 2 | sort) for number, sort in layout)
    names = b"".join(varint(len(n)) + n for n in ([b"<s>"] if literals is None else literals))
    return out + varint(len(names)) + names + code


def test_a_body_made_by_hand_is_read() -> None:
    tokenizer = from_asset(forged("foreign", body(order=b"\2" + bytes(range(255, -1, -1)))))
    assert tokenizer.encode(b"\xff\0").tolist() == [1, 256]


MERGED = [(1, 2), (256, 1), (1, 0)]
HOSTILE = {
    "nothing": b"",
    "unknown order": body(order=b"\3"),
    "a byte twice": body(order=b"\2" + bytes(256)),
    "BOS outside": body(bos=257),
    "BOS is a byte": body(bos=1),
    "2**32 tokens": body(runs=[(1 << 32, 0)]),
    "endless merges": body(runs=[*MERGED, (60_000, 0)]),
    "few bytes": body(runs=[(1, 2), (255, 1)]),
    "no names": body(literals=[]),
    "too many names": body(literals=[b"<s>", b"more"]),
    "tail": body(code=b"tail"),
    "whole without merges": body(runs=[(1, 2), (256, 1), (1, 3)], literals=[b"", b"word"]),
    "whole and merged": body(
        runs=[*MERGED, (1, 3)], literals=[b"", b"ab"], code=pack_pairs([(97, 98)], 256)
    ),
    "empty whole": body(
        runs=[*MERGED, (1, 3)], literals=[b"", b""], code=pack_pairs([(97, 98)], 256)
    ),
    "one name twice": body(
        runs=[(2, 2), *MERGED[1:]], literals=[b"<s>"] * 2, code=pack_pairs([(97, 98)], 256)
    ),
    "a token too long": body(
        runs=[*MERGED[:2], (9, 0)],
        code=pack_pairs([(97, 97), *((n, n) for n in range(256, 264))], 256),
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_body_is_refused(name: str) -> None:
    with pytest.raises(TokenizerError):
        from_asset(forged("foreign", HOSTILE[name]))
