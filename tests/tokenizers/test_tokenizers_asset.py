"""Assets: golden bytes, the packers against their readers, and damage of every sort refused."""

import random
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers_support import KINDS, NASTY, body_of, built, forged

from tokgolf.errors import TokenizerError
from tokgolf.hashing import BigramBuckets
from tokgolf.tokenizers import _KINDS as REGISTRY
from tokgolf.tokenizers import from_asset, load_tokenizer, save_tokenizer
from tokgolf.tokenizers.asset import KINDS as CODED_KINDS
from tokgolf.tokenizers.asset import Extras, kind_of, read_varint, unwrap, varint, wrap
from tokgolf.tokenizers.bpe import BpeTokenizer
from tokgolf.tokenizers.byte import ByteTokenizer
from tokgolf.tokenizers.pack import pack_merges, pack_pieces, pack_set

BYTE_ASSET = bytes.fromhex("544f4b02000000b00bd231")
BPE_ASSET = bytes.fromhex("544f4b0201000000000300be161f81fcb5155cf1")
UNIGRAM_ASSET = bytes.fromhex(
    "544f4b0202000004000000000000000000000000020000000cfe06a17775f33ea3357be690090ab44d69905c"
)


def test_the_registry_and_the_format_know_the_same_kinds() -> None:
    assert tuple(REGISTRY) == CODED_KINDS == (*KINDS, "foreign")


def test_a_byte_asset_is_these_bytes() -> None:
    assert built("byte").asset() == BYTE_ASSET == built("byte").original_file()


def test_a_bpe_asset_is_these_bytes() -> None:
    merges = [(116, 104), (257, 101), (32, 258)]
    assert wrap("bpe", pack_merges(merges, "gpt4")) == BPE_ASSET
    assert from_asset(BPE_ASSET).token_bytes[257:] == [b"th", b"the", b" the"]


def test_a_unigram_asset_is_these_bytes() -> None:
    costs = {b"a": 9, b" the": 10, b"then": 10}
    assert wrap("unigram", pack_pieces(costs)) == UNIGRAM_ASSET
    tokenizer = from_asset(UNIGRAM_ASSET)
    assert tokenizer.token_bytes[257:] == [b" the", b"then"]
    assert tokenizer.encode(b"then the").tolist() == [258, 257]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_assets_are_smaller_than_the_library_files(kind: str) -> None:
    tokenizer = built(kind)
    assert len(tokenizer.asset()) < 3 * (tokenizer.vocab_size - 257) + 150
    assert len(tokenizer.original_file()) > 8 * len(tokenizer.asset())


@pytest.mark.parametrize("kind", KINDS)
def test_every_flipped_bit_is_refused(kind: str) -> None:
    asset = built(kind, 290).asset()
    for bit in range(8 * len(asset)):
        damaged = bytearray(asset)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(TokenizerError):
            from_asset(bytes(damaged))


@pytest.mark.parametrize("kind", KINDS)
def test_every_truncation_and_extension_is_refused(kind: str) -> None:
    asset = built(kind, 290).asset()
    for length in range(len(asset)):
        with pytest.raises(TokenizerError):
            from_asset(asset[:length])
    with pytest.raises(TokenizerError, match=f"{len(asset) + 1} bytes with checksum"):
        from_asset(asset + b"\0")


@pytest.mark.parametrize(("place", "value"), [(3, 1), (3, 3), (4, 200), (5, 200)])
def test_another_version_kind_or_transform_is_refused(place: int, value: int) -> None:
    asset = bytearray(BYTE_ASSET[:-4])
    asset[place] = value
    known = f"reads version 2, kinds 0 to {len(CODED_KINDS) - 1} and transforms 0 to 3"
    with pytest.raises(TokenizerError, match=known):
        from_asset(bytes(asset) + zlib.crc32(asset).to_bytes(4, "little"))


BUCKETS = st.builds(
    BigramBuckets,
    count=st.integers(2, 1 << 31),
    multipliers=st.tuples(st.integers(1, 1 << 22), st.integers(1, 1 << 22)),
    seed=st.integers(0, 1 << 62),
)


@given(bigram=BUCKETS)
@settings(deadline=None)
def test_an_asset_carries_a_bucket_function(bigram: BigramBuckets) -> None:
    asset = wrap("byte", b"", Extras(bigram=bigram))
    assert from_asset(asset).bigram == bigram
    assert from_asset(asset).encode(b"ab").tolist() == [97, 98]


def test_most_assets_carry_no_bucket_function() -> None:
    assert all(built(kind).bigram is None for kind in KINDS)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((1, 3, 3, 0), "bucket count is 1;"),
        ((1 << 32, 3, 3, 0), "bucket count is 4294967296;"),
        ((4096, 0, 3, 0), "bigram multiplier is 0;"),
        ((4096, 3, (1 << 22) + 1, 0), "bigram multiplier is 4194305;"),
        ((4096, 3, 3, (1 << 62) + 1), "bigram seed is"),
        ((4096, 3), "ends nowhere"),
        (((1 << 63), 3, 3, 0), "ends nowhere"),
    ],
)
def test_an_unfit_bucket_function_is_refused(numbers: tuple[int, ...], message: str) -> None:
    asset = BYTE_ASSET[:6] + b"".join(map(varint, numbers))
    with pytest.raises(TokenizerError, match=message):
        from_asset(asset + zlib.crc32(asset).to_bytes(4, "little"))


@given(value=st.integers(0, (1 << 63) - 1), tail=st.binary(max_size=3))
@settings(deadline=None)
def test_varints_come_back(value: int, tail: bytes) -> None:
    data = varint(value)
    assert read_varint(data + tail, 0) == (value, len(data))


def test_an_asset_of_another_kind_is_refused_by_name() -> None:
    assert kind_of(BPE_ASSET) == "bpe"
    with pytest.raises(TokenizerError, match="of kind bpe, not byte"):
        ByteTokenizer.from_asset(BPE_ASSET)
    with pytest.raises(TokenizerError, match="of kind byte, not bpe"):
        BpeTokenizer.from_asset(BYTE_ASSET)
    assert unwrap("byte", BYTE_ASSET) == b""


def test_a_byte_asset_with_a_body_is_refused() -> None:
    with pytest.raises(TokenizerError, match="body of 1 bytes, 0 expected"):
        from_asset(forged("byte", b"x"))


@pytest.mark.parametrize("body", [b"\2\0\0\0", b"\xff\0\0\0", b"\0\0\0", b"\0\0"])
def test_an_unknown_codec_or_a_missing_count_is_refused(body: bytes) -> None:
    with pytest.raises(TokenizerError, match="but codec 0 or 1 and 2 bytes at least"):
        from_asset(forged("bpe", body))


@pytest.mark.parametrize("body", [b"", b"\0", b"\0\x7f\0\0"])
def test_a_bad_bpe_header_is_refused(body: bytes) -> None:
    with pytest.raises(TokenizerError):
        from_asset(forged("bpe", body))


def test_a_merge_that_repeats_a_string_is_refused() -> None:
    merges = [(97, 98), (98, 97), (97, 258), (257, 97)]
    with pytest.raises(TokenizerError, match="merge 3 of 4"):
        from_asset(forged("bpe", pack_merges(merges, "gpt4")))


def test_a_merge_of_more_than_256_bytes_is_refused() -> None:
    doubling = [(97, 97)] + [(257 + i, 257 + i) for i in range(7)]
    assert len(from_asset(forged("bpe", pack_merges(doubling, "gpt4"))).token_bytes[-1]) == 256
    doubling.append((264, 264))
    with pytest.raises(TokenizerError, match="token of 512 bytes"):
        from_asset(forged("bpe", pack_merges(doubling, "gpt4")))


def test_bytes_after_the_merges_are_refused() -> None:
    with pytest.raises(TokenizerError, match="are used"):
        from_asset(forged("bpe", body_of(built("bpe")) + b"tail" * 5))


def test_a_count_of_merges_without_the_merges_is_refused() -> None:
    with pytest.raises(TokenizerError, match="only 0 bytes of code"):
        from_asset(forged("bpe", b"\0\0\xff\xff"))


@given(body=st.binary(max_size=60), count=st.integers(0, 40))
@settings(max_examples=300, deadline=None)
def test_forged_merges_are_refused_or_lossless(body: bytes, count: int) -> None:
    try:
        tokenizer = from_asset(forged("bpe", b"\0\0" + count.to_bytes(2, "little") + body))
    except TokenizerError:
        return
    assert tokenizer.vocab_size == 257 + count
    for data in (body, *NASTY):
        assert tokenizer.decode(tokenizer.encode(data)) == data


def pieces(*longer: bytes, characters: int = 0, step: int = 4, tail: bytes = b"") -> bytes:
    """The body of these pieces with a code of zeros, which says that each has the cost 0."""
    code = pack_set(longer)
    return bytes([step]) + characters.to_bytes(16, "little") + varint(len(code)) + code + tail


def test_pieces_made_by_hand_are_read() -> None:
    body = pieces(b"ab", b"abc", "é".encode(), characters=1 << 97, tail=bytes(3))
    assert body == pack_pieces({b"a": 0, b"ab": 0, b"abc": 0, "é".encode(): 0})
    assert from_asset(forged("unigram", body)).token_bytes[257:] == [b"ab", b"abc", "é".encode()]


HOSTILE_PIECES = {
    "invalid UTF-8": pieces(b"a\xff"),
    "half a character": pieces(b"\xc3a"),
    "NUL": pieces(b"ab", characters=1),
    "NUL inside": pieces(b"a\0b"),
    "no step": pieces(b"ab", step=0),
    "no piece": pieces(),
    "no body": b"",
    "half a head": b"\4\0\0",
    "no set": pieces()[:17],
    "a set beyond the end": pieces()[:17] + varint(1 << 40),
    "noise": b"\4" + bytes(16) + b"\x30" + bytes(range(200, 250)),
    "tail": pieces(b"ab", tail=b"spare bytes"),
}


@pytest.mark.parametrize("name", HOSTILE_PIECES)
def test_unfit_pieces_are_refused(name: str) -> None:
    with pytest.raises(TokenizerError):
        from_asset(forged("unigram", HOSTILE_PIECES[name]))


@pytest.mark.parametrize("step", [0, 0.3, 32, -1, 1 / 16])
def test_an_unfit_score_step_is_refused(step: float) -> None:
    with pytest.raises(TokenizerError, match="is no multiple of 1/8"):
        pack_pieces({b"ab": 1}, step)


def test_the_score_step_is_part_of_the_asset() -> None:
    fine, coarse = (from_asset(wrap("unigram", pack_pieces({b"ab": 8}, s))) for s in (0.25, 2))
    assert fine.score_step == 0.25  # type: ignore[attr-defined]
    assert coarse.score_step == 2  # type: ignore[attr-defined]
    assert fine.fingerprint != coarse.fingerprint


def test_pieces_of_256_bytes_are_taken() -> None:
    data = b"a" * 200 + b"b" * 56
    tokenizer = from_asset(forged("unigram", pieces(data, b"a" * 200, tail=bytes(2))))
    assert tokenizer.encode(data).tolist() == [258]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_damage_under_a_right_checksum_is_refused_or_lossless(kind: str) -> None:
    body, rng, refused = body_of(built(kind, 290)), random.Random(3), 0
    for _ in range(80):
        damaged = bytearray(body)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            tokenizer = from_asset(forged(kind, bytes(damaged)))
        except TokenizerError:
            refused += 1
            continue
        for data in NASTY:
            assert tokenizer.decode(tokenizer.encode(data)) == data
    assert refused > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_file_is_the_asset(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "small.tok"
    save_tokenizer(built(kind), path)
    assert path.read_bytes() == built(kind).asset()
    assert load_tokenizer(path).fingerprint == built(kind).fingerprint
    assert load_tokenizer(str(path)).token_bytes == built(kind).token_bytes
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"hello", b"{}", b"TOK", BPE_ASSET[:-1]])
def test_a_file_that_is_no_asset_is_refused_with_its_path(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "notes.tok"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match=r"notes\.tok: .*(build|copy)") as caught:
        load_tokenizer(path)
    assert "\n" not in str(caught.value)


def test_a_huge_file_is_refused_without_reading_it_all(tmp_path: Path) -> None:
    path = tmp_path / "huge.tok"
    with open(path, "wb") as file:
        file.truncate(1 << 40)  # sparse: a terabyte that takes no room
    with pytest.raises(TokenizerError, match=r"huge\.tok: over 33554432 bytes"):
        load_tokenizer(path)


def test_a_missing_file_stays_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_tokenizer(tmp_path / "none.tok")
