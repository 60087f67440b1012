"""SentencePiece models: same ids as the library has with the original, and what is lost is said."""

import functools
import io
import pickle
import random
import zlib
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers_support import NASTY, english, forged

from tokgolf.errors import TokenizerError
from tokgolf.tokenizers import from_asset, pack_sentencepiece, sentencepiece_bpe
from tokgolf.tokenizers.asset import unwrap, varint, wrap
from tokgolf.tokenizers.build_sentencepiece import build_sentencepiece_bpe
from tokgolf.tokenizers.pack import pack_pairs
from tokgolf.tokenizers.pack_sentencepiece import pack_model, read_model
from tokgolf.tokenizers.protobuf import field, fields
from tokgolf.tokenizers.sentencepiece_bpe import (
    NORMALIZERS,
    SentencePieceBpeTokenizer,
    checksum,
    cut,
    installed_table,
    model_file,
)

RULES = NORMALIZERS[:-1]
OTHERS: dict[str, dict[str, Any]] = {
    "official": {"add_dummy_prefix": False, "split_digits": True, "pad_id": 3},
    "keeps spaces": {
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
    },
    "no bytes": {"byte_fallback": False},
    "suffix": {"treat_whitespace_as_suffix": True},
    "user defined": {"user_defined_symbols": ["<a>", "foo bar", "\n"], "control_symbols": ["<c>"]},
    "no bos": {"bos_id": -1, "eos_id": -1},
    "unigram": {"model_type": "unigram"},
    "own rules": {"normalization_rule_tsv": "rules"},
}
MODELS = [*RULES, *OTHERS]

# What normalisers, merges and byte pieces each do something to.
PARTS = st.sampled_from(
    ["the ", "function", "  ", "\n", "\t", "\u3000", "\ufb01", "\u2581", "\u2047", "<s>", "<a>"]
    + ["foo bar", "A\u030a", "\uff26\uff35", "\u0130", "\u1e9e", "\u061c", "\ua7f1", "\u200b", "\0"]
)
TEXT = st.one_of(st.text(max_size=60), st.lists(PARTS, max_size=20).map("".join))


@functools.cache
def trained(name: str) -> bytes:
    """A small model file of SentencePiece, by the name of its rule or its other options."""
    options = {"normalization_rule_name": name} if name in RULES else dict(OTHERS[name])
    if name == "own rules":  # the trainer takes a file only; the table can be put in afterwards
        model = read_model(trained("identity"))
        made = sentencepiece.SentencePieceNormalizer(norm_map=[("e", "3"), ("th", "\u00fe")])
        spec = dict(fields(made.serialized_normalizer_spec()))
        return model_file(replaced(model, normalizer="stored", table=spec[2]))
    file = io.BytesIO()
    lines = [line for text in english()[:30] for line in text.decode().splitlines()]
    arguments = {
        "model_type": "bpe",
        "vocab_size": 420,
        "hard_vocab_limit": False,
        "byte_fallback": True,
        "num_threads": 1,
        "minloglevel": 2,
    } | options
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=file, **arguments
    )
    return file.getvalue()


def replaced(model: Any, **changes: Any) -> Any:
    return type(model)(**(vars(model) | changes))


@functools.cache
def original(name: str) -> Any:
    return sentencepiece.SentencePieceProcessor(model_proto=trained(name))


@functools.cache
def imported(name: str) -> SentencePieceBpeTokenizer:
    return SentencePieceBpeTokenizer.from_asset(
        wrap("sentencepiece", pack_model(read_model(trained(name))))
    )


@functools.cache
def own(vocab_size: int = 400) -> SentencePieceBpeTokenizer:
    return SentencePieceBpeTokenizer.from_asset(build_sentencepiece_bpe(english(), vocab_size))


@pytest.mark.parametrize("name", MODELS)
@given(text=TEXT)
@settings(max_examples=60, deadline=None)
def test_ids_are_those_of_the_original(name: str, text: str) -> None:
    assert imported(name).encode(text.encode()).tolist() == original(name).encode(text)


@pytest.mark.parametrize("name", MODELS)
def test_ids_of_documents_are_those_of_the_original(name: str) -> None:
    texts = [text.decode() for text in english()]
    ours = imported(name).encode_batch([text.encode() for text in texts])
    assert [ids.tolist() for ids in ours] == original(name).encode(texts)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "no bytes"])
@given(text=TEXT)
@settings(max_examples=40, deadline=None)
def test_decoding_gives_the_normalised_text(name: str, text: str) -> None:
    tokenizer, data = imported(name), text.encode()
    normal = original(name).normalize(text).replace("\u2581", " ").encode()
    ids = tokenizer.encode(data)
    assert tokenizer.decode(ids) == normal
    assert tokenizer.byte_lengths(ids).sum() == len(normal)


@pytest.mark.parametrize("name", MODELS)
def test_every_id_has_the_bytes_of_its_piece(name: str) -> None:
    tokenizer, model = imported(name), original(name)
    assert tokenizer.vocab_size == model.get_piece_size()
    for token, data in enumerate(tokenizer.token_bytes):
        if model.is_byte(token):
            assert data == bytes([int(model.id_to_piece(token)[3:-1], 16)])
        elif model.is_control(token):
            assert data == b""
        elif not model.is_unknown(token):
            assert data == model.id_to_piece(token).replace("\u2581", " ").encode()


@pytest.mark.parametrize("name", MODELS)
def test_the_library_reads_the_rebuilt_model_the_same(name: str) -> None:
    again = sentencepiece.SentencePieceProcessor(model_proto=imported(name).original_file())
    model = original(name)
    pieces = range(model.get_piece_size())
    assert [again.id_to_piece(n) for n in pieces] == [model.id_to_piece(n) for n in pieces]
    assert [again.is_unused(n) for n in pieces] == [model.is_unused(n) for n in pieces]
    special = [model.bos_id(), model.eos_id(), model.pad_id(), model.unk_id()]
    assert [again.bos_id(), again.eos_id(), again.pad_id(), again.unk_id()] == special
    assert abs(len(imported(name).original_file()) - len(trained(name))) < 200


@pytest.mark.parametrize("name", RULES[1:])
def test_a_named_table_is_not_stored(name: str) -> None:
    assert len(trained(name)) > 240_000
    assert len(imported(name).asset()) < 600


def test_the_start_of_a_document_is_a_special_id() -> None:
    assert imported("official").bos_id == original("official").bos_id() == 1
    assert imported("no bos").bos_id == original("no bos").unk_id()
    assert all(imported("no bos").bos_id not in ids for ids in own().encode_batch(english()))


def test_what_is_lost_is_said() -> None:
    assert imported("nmt_nfkc").losses == (
        "it normalises by nmt_nfkc",
        "it adds a space before the text",
        "it removes extra spaces",
        "U+2581 comes back as a space",
    )
    assert imported("keeps spaces").losses == ("U+2581 comes back as a space",)
    assert "it has no byte pieces for unknown characters" in imported("no bytes").losses
    assert imported("own rules").losses[0] == "it normalises by rules of its own"
    assert not any(imported(name).lossless for name in MODELS)
    assert own().lossless and own().losses == ()


def test_bytes_that_are_no_text_are_byte_pieces_or_unknown() -> None:
    tokenizer = imported("official")
    assert tokenizer.decode(tokenizer.encode(b"one\xff\xfetwo")) == b"one\xff\xfetwo"
    unknown = original("no bytes").unk_id()
    assert imported("no bytes").encode(b"\xff\xfe").tolist() == [unknown, unknown]
    assert imported("no bytes").decode([unknown]) == " \u2047 ".encode()


def test_a_model_without_ranks_in_id_order_keeps_its_scores() -> None:
    model = read_model(trained("identity"))
    rng = random.Random(2)
    scores = [float(-rng.randrange(40)) for _ in model.pieces]  # with ties
    pieces = [(s, p, score) for (s, p, _), score in zip(model.pieces, scores, strict=True)]
    changed = replaced(model, pieces=pieces)
    tokenizer = from_asset(wrap("sentencepiece", pack_model(changed)))
    library = sentencepiece.SentencePieceProcessor(model_proto=model_file(changed))
    for text in english()[:40]:
        assert tokenizer.encode(text).tolist() == library.encode(text.decode())
        assert library.encode(text.decode()) != original("identity").encode(text.decode())


def test_unused_pieces_are_kept_unused() -> None:
    model = read_model(trained("identity"))
    unused = sentencepiece_bpe.UNUSED
    pieces = [
        (unused if n % 3 == 0 and s == sentencepiece_bpe.WHOLE else s, p, score)
        for n, (s, p, score) in enumerate(model.pieces)
    ]
    changed = replaced(model, pieces=pieces)
    tokenizer = from_asset(wrap("sentencepiece", pack_model(changed)))
    library = sentencepiece.SentencePieceProcessor(model_proto=model_file(changed))
    assert sum(map(library.is_unused, range(len(pieces)))) > 10
    for text in english()[:40]:
        assert tokenizer.encode(text).tolist() == library.encode(text.decode())


# --- normaliser tables of another release


def older(name: str, *prefixes: str) -> bytes:
    """A model file as a release would write it that knows no rules for these prefixes."""
    model = read_model(trained(name))
    table = cut(installed_table(name), [prefix.encode() for prefix in prefixes])
    return model_file(replaced(model, table=table))


def test_cutting_rules_takes_them_and_no_others() -> None:
    table = installed_table("nmt_nfkc")
    before, after = (
        dict(sentencepiece.SentencePieceNormalizer(normalizer_spec=field(2, each)).decompile())
        for each in (table, cut(table, ["\ufb01".encode(), b"A"]))
    )
    gone = {key for key in before if key.startswith(("\ufb01", "A"))}
    assert len(gone) > 10
    assert after == {key: value for key, value in before.items() if key not in gone}
    assert cut(table, [b"no such rule"]) == table


def test_a_model_of_an_older_release_keeps_its_ids_without_its_table() -> None:
    file = older("nmt_nfkc", "\ufb01", "A")
    library = sentencepiece.SentencePieceProcessor(model_proto=file)
    asset = wrap("sentencepiece", pack_model(read_model(file)))
    tokenizer = SentencePieceBpeTokenizer.from_asset(asset)
    assert len(asset) < 600
    assert tokenizer.warning == ""
    text = "\ufb01 \ufb02 A\u030a \u061c"
    assert tokenizer.encode(text.encode()).tolist() == library.encode(text)
    assert library.encode(text) != original("nmt_nfkc").encode(text)


def test_the_model_s_own_table_needs_no_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    file = older("nmt_nfkc", "\ufb01")
    asset = wrap("sentencepiece", pack_model(read_model(file)))
    table = read_model(file).table
    monkeypatch.setattr(sentencepiece_bpe, "installed_table", lambda name: table)
    tokenizer = SentencePieceBpeTokenizer.from_asset(asset)
    assert tokenizer.warning == ""
    assert read_model(tokenizer.original_file()).table == table


def test_another_table_on_restoring_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    other = cut(installed_table("nfkc"), ["\ufb01".encode()])
    monkeypatch.setattr(sentencepiece_bpe, "installed_table", lambda name: other)
    tokenizer = SentencePieceBpeTokenizer.from_asset(imported("nfkc").asset())
    own_sum, other_sum = checksum(read_model(trained("nfkc")).table), checksum(other)
    assert "nfkc table of the installed sentencepiece" in tokenizer.warning
    assert own_sum.hex() in tokenizer.warning and other_sum.hex() in tokenizer.warning


def test_a_table_with_more_rules_than_the_installed_one_is_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = cut(installed_table("nfkc"), ["\ufb01".encode()])
    monkeypatch.setattr(pack_sentencepiece, "installed_table", lambda name: known)
    asset = wrap("sentencepiece", pack_model(read_model(trained("nfkc"))))
    assert 50_000 < len(asset) < 150_000
    assert from_asset(asset).encode("\ufb01".encode()).tolist() == original("nfkc").encode("\ufb01")


# --- built ones


ANY_BYTES = st.one_of(
    st.binary(max_size=120), st.text(max_size=60).map(str.encode), TEXT.map(str.encode)
)


@given(data=ANY_BYTES)
@settings(max_examples=150, deadline=None)
def test_a_built_one_gives_every_byte_back(data: bytes) -> None:
    tokenizer = own()
    ids = tokenizer.encode(data)
    assert tokenizer.decode(ids) == data
    assert tokenizer.bos_id not in ids
    assert tokenizer.byte_lengths(ids).sum() == len(data)


@pytest.mark.parametrize(
    "data", [*NASTY, b"a" * 100_000, b" " * 100_000], ids=lambda d: repr(d[:20])
)
def test_a_built_one_gives_nasty_bytes_back(data: bytes) -> None:
    assert own().decode(own().encode(data)) == data


def test_a_built_one_has_our_ids() -> None:
    tokens = own().token_bytes
    assert tokens[:257] == [*(bytes([byte]) for byte in range(256)), b""]
    assert own().vocab_size == len(set(tokens)) == 400
    assert own().bos_id == 256
    assert all(len(token) > 1 for token in tokens[257:])
    used = {token for ids in own().encode_batch(english()) for token in ids.tolist()}
    assert len(used & {*range(257, 400)}) > 130
    assert own().encode(b"\xe2\x96\x81").tolist() == [0xE2, 0x96, 0x81]


@pytest.mark.parametrize("vocab_size", [257, 258, 300, 1000])
def test_a_built_one_has_exactly_the_size_asked_for(vocab_size: int) -> None:
    tokenizer = own(vocab_size)
    assert tokenizer.vocab_size == vocab_size
    if vocab_size == 257:
        assert tokenizer.encode(b"text\xc3\xa9").tolist() == [*b"text\xc3\xa9"]


def test_building_again_gives_the_same_asset() -> None:
    assert build_sentencepiece_bpe(iter(english()), 400) == own().asset()


@pytest.mark.parametrize("spoiler", ["\0", "\t", "\u2581", "\u2585", "\u2047", "\udcff", ""])
def test_a_document_with_reserved_or_bad_bytes_or_a_long_line_still_counts(spoiler: str) -> None:
    words = " ".join(f"zyxgrumbo{n}" for n in range(700))
    document = (spoiler + " " + words).encode("utf-8", "surrogateescape")
    tokenizer = from_asset(build_sentencepiece_bpe([*english(), document], 600))
    assert any(b"grumbo" in token for token in tokenizer.token_bytes)


def test_more_characters_than_ids_leave_half_of_the_ids_to_merges() -> None:
    text = "".join(chr(0x4E00 + n) for n in range(3000)) * 2
    tokenizer = from_asset(build_sentencepiece_bpe([text.encode()], 300))
    assert tokenizer.vocab_size == 300
    assert tokenizer.decode(tokenizer.encode(text.encode())) == text.encode()
    assert {len(token) for token in tokenizer.token_bytes[257:]} >= {3, 6}


def test_too_few_documents_say_what_they_support() -> None:
    with pytest.raises(TokenizerError, match="asked for 60000 tokens, .* supports only") as caught:
        build_sentencepiece_bpe(english()[:3], 60_000)
    supported = int(str(caught.value).rsplit("--vocab-size ", 1)[1].split()[0])
    tokenizer = from_asset(build_sentencepiece_bpe(english()[:3], supported))
    assert tokenizer.vocab_size == supported


def test_a_pickled_one_encodes_alike() -> None:
    for tokenizer in (own(), imported("nmt_nfkc")):
        copy = pickle.loads(pickle.dumps(tokenizer))
        assert copy.encode(b"pickled text").tolist() == tokenizer.encode(b"pickled text").tolist()


# --- damage


def test_every_flipped_bit_and_truncation_is_refused() -> None:
    asset = own(290).asset()
    for bit in range(8 * len(asset)):
        damaged = bytearray(asset)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(TokenizerError):
            from_asset(bytes(damaged))
    for length in range(len(asset)):
        with pytest.raises(TokenizerError):
            from_asset(asset[:length])


@pytest.mark.parametrize("make", [lambda: own(290), lambda: imported("official")])
def test_damage_under_a_right_checksum_is_refused_or_still_a_tokenizer(make: Any) -> None:
    body, rng, refused = unwrap("sentencepiece", make().asset()), random.Random(3), 0
    for _ in range(150):
        damaged = bytearray(body)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            tokenizer = from_asset(forged("sentencepiece", bytes(damaged)))
        except TokenizerError as error:
            assert "\n" not in str(error)
            refused += 1
            continue
        for data in NASTY:
            ids = tokenizer.encode(data)
            assert tokenizer.decode(ids) == data or not tokenizer.lossless
    assert refused > 20


def body(
    flags: int = 0, bos: int = 256, normalizer: bytes = b"\0", layout: Any = None, text: Any = None
) -> bytes:
    """An asset body without merges, sound unless told otherwise."""
    runs = layout if layout is not None else [(256, 2), (1, 4), (1, 1)]
    out = varint(flags) + varint(bos) + normalizer + varint(len(runs))
    out += b"".join(varint(number << 3 | sort) for number, sort in runs)
    names: bytes = b"x\0<unk>" if text is None else text
    return out + varint(len(names)) + names


def test_a_body_made_by_hand_is_read() -> None:
    tokenizer = from_asset(forged("sentencepiece", body()))
    assert tokenizer.token_bytes == [*(bytes([byte]) for byte in range(256)), b"", b"x"]
    assert tokenizer.encode(b"xy").tolist() == [257, ord("y")]
    assert tokenizer.lossless


HOSTILE = {
    "nothing": b"",
    "2**32 pieces": body(layout=[(1 << 32, 0)]),
    "endless merges": body(layout=[(256, 2), (1, 4), (60_000, 0), (1, 1)]),
    "2**32 runs": varint(0) + varint(256) + b"\0" + varint(1 << 32),
    "too many flags": body(flags=128),
    "BOS outside": body(bos=258),
    "half of the bytes": body(layout=[(128, 2), (1, 4), (129, 1)]),
    "no unknown piece": body(layout=[(256, 2), (1, 1)]),
    "two unknown pieces": body(layout=[(256, 2), (2, 4)], text=b"x\0<unk>\0<unk2>"),
    "the same piece twice": body(layout=[(256, 2), (1, 4), (2, 1)], text=b"xx\0<unk>"),
    "too few characters": body(text=b"\0<unk>"),
    "no names": body(text=b"x"),
    "too many names": body(text=b"x\0<unk>\0more"),
    "empty name": body(text=b"x\0"),
    "no UTF-8": body(text=b"\xff\0<unk>"),
    "text that is not there": body()[:-9] + varint(1000),
    "no LZMA": body(flags=64),
    "scores that are not there": body(flags=32) + varint(3) + b"abc",
    "tail": body() + b"tail",
    "unknown normaliser": body(normalizer=b"\6"),
    "stored table that is none": body(normalizer=b"\5" + varint(4) + b"none"),
    "table cut short": varint(0) + varint(256) + b"\1abc",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_body_is_refused(name: str) -> None:
    with pytest.raises(TokenizerError):
        from_asset(forged("sentencepiece", HOSTILE[name]))


def test_merges_cannot_make_endless_pieces() -> None:
    doubling = [(256, 2), (1, 4), (9, 0), (1, 1)]
    pairs = [(0, 0), *((n, n) for n in range(1, 9))]
    made = body(layout=doubling) + pack_pairs(pairs, 1)
    with pytest.raises(TokenizerError, match="a piece of 512 bytes, over 256"):
        from_asset(forged("sentencepiece", made))


def test_the_zipped_parts_are_bounded() -> None:
    bomb = pack_sentencepiece._pack(bytes(10**7))
    with pytest.raises(TokenizerError, match="at most"):
        from_asset(forged("sentencepiece", body(flags=64, text=bomb)))


@given(
    st.lists(
        st.tuples(
            st.integers(1, 300),
            st.one_of(st.integers(0, (1 << 64) - 1), st.binary(max_size=9), st.just(-2.5)),
        ),
        max_size=6,
    )
)
@settings(deadline=None)
def test_protobuf_fields_come_back(entries: list[tuple[int, Any]]) -> None:
    message = b"".join(field(number, value) for number, value in entries)
    assert list(fields(message)) == entries


@given(st.binary(max_size=40))
@settings(deadline=None)
def test_any_bytes_are_fields_or_an_error(message: bytes) -> None:
    try:
        assert all(number >= 0 for number, _ in fields(message))
    except TokenizerError as error:
        assert "stop making sense at byte" in str(error)


def test_checksums_are_crc_32() -> None:
    assert checksum(b"table") == zlib.crc32(b"table").to_bytes(4, "little")
    assert np.frombuffer(installed_table("nfkc")[:4], "<u4")[0] % 4 == 0
