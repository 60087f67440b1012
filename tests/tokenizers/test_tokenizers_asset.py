"""Assets: golden bytes, the packers against their readers, and damage of every sort refused."""

import lzma
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers_support import KINDS, NASTY, body_of, built, forged

from tokgolf.errors import TokenizerError
from tokgolf.tokenizers import _KINDS as REGISTRY
from tokgolf.tokenizers import from_asset, load_tokenizer, save_tokenizer
from tokgolf.tokenizers.asset import KINDS as CODED_KINDS
from tokgolf.tokenizers.asset import kind_of, unwrap, wrap
from tokgolf.tokenizers.bpe import BpeTokenizer
from tokgolf.tokenizers.byte import ByteTokenizer
from tokgolf.tokenizers.pack import RangeEncoder, pack_merges, pack_pieces
from tokgolf.tokenizers.rangecoder import Frequencies, RangeDecoder
from tokgolf.tokenizers.unigram import LZMA_FILTERS

BYTE_ASSET = bytes.fromhex("544f4b010000000000b3265ab4")
BPE_ASSET = bytes.fromhex("544f4b0101090000000003007468fe372f0c5c1dd45f")
UNIGRAM_ASSET = bytes.fromhex(
    "544f4b01021e00000004000000007e81dc549c6f80665932c834e40996fc27c187adffe97a900035d23569"
)


def test_the_registry_and_the_format_know_the_same_kinds() -> None:
    assert tuple(REGISTRY) == CODED_KINDS == KINDS


def test_a_byte_asset_is_these_bytes() -> None:
    assert built("byte").asset() == BYTE_ASSET == built("byte").original_file()


def test_a_bpe_asset_is_these_bytes() -> None:
    merges = [(116, 104), (257, 101), (32, 258)]
    assert wrap("bpe", pack_merges(merges, "gpt4")) == BPE_ASSET
    assert from_asset(BPE_ASSET).token_bytes[257:] == [b"th", b"the", b" the"]


def test_a_unigram_asset_in_these_bytes_is_read() -> None:
    # Read only: another release of liblzma may pack the same columns in other bytes.
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
    with pytest.raises(TokenizerError, match=f"{len(asset) + 1} bytes, but its header says"):
        from_asset(asset + b"\0")


def test_another_version_or_kind_is_refused() -> None:
    import zlib

    for place, value in ((3, 2), (4, len(KINDS))):
        asset = bytearray(BYTE_ASSET[:-4])
        asset[place] = value
        with pytest.raises(TokenizerError, match=r"reads version 1 and kinds 0 to 2"):
            from_asset(bytes(asset) + zlib.crc32(asset).to_bytes(4, "little"))


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


@pytest.mark.parametrize("body", [b"", b"\0\0", b"\x02\0\0", b"\xff\0\0"])
def test_a_bad_bpe_header_is_refused(body: bytes) -> None:
    with pytest.raises(TokenizerError, match="a pattern below 2"):
        from_asset(forged("bpe", body))


def test_a_merge_that_repeats_a_string_is_refused() -> None:
    for merges in ([(97, 98), (97, 98)], [(97, 98), (98, 97), (97, 258), (257, 97)]):
        with pytest.raises(TokenizerError, match=f"merge {len(merges) - 1} of {len(merges)}"):
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
    with pytest.raises(TokenizerError, match="of 65535 makes a token of 2 bytes"):
        from_asset(forged("bpe", b"\0\xff\xff"))


@given(body=st.binary(max_size=60), count=st.integers(0, 40))
@settings(max_examples=300, deadline=None)
def test_forged_merges_are_refused_or_lossless(body: bytes, count: int) -> None:
    try:
        tokenizer = from_asset(forged("bpe", b"\0" + count.to_bytes(2, "little") + body))
    except TokenizerError:
        return
    assert tokenizer.vocab_size == 257 + count
    for data in (body, *NASTY):
        assert tokenizer.decode(tokenizer.encode(data)) == data


def columns(*pieces: tuple[int, bytes]) -> bytes:
    """The body of pieces given as (bytes shared with the one before, bytes that follow)."""
    head = bytes(keep for keep, _ in pieces) + bytes(len(rest) for _, rest in pieces)
    data = head + bytes(10 for _ in pieces) + b"".join(rest for _, rest in pieces)
    packed = lzma.compress(data, lzma.FORMAT_RAW, filters=LZMA_FILTERS)
    return len(pieces).to_bytes(2, "little") + packed


def test_columns_made_by_hand_are_read() -> None:
    body = columns((0, b"ab"), (2, b"c"), (0, "é".encode()))
    assert body == pack_pieces({b"ab": 10, b"abc": 10, "é".encode(): 10})
    assert from_asset(forged("unigram", body)).token_bytes[257:] == [b"ab", b"abc", "é".encode()]


SPARE = b"\0\x02\x0aab" + b"spare"  # one piece, "ab", and bytes of no piece

HOSTILE_PIECES = {
    "spare": b"\x01\0" + lzma.compress(SPARE, lzma.FORMAT_RAW, filters=LZMA_FILTERS),
    "unsorted": columns((0, b"b"), (0, b"ab")),
    "twice": columns((0, b"ab"), (2, b"")),
    "empty": columns((0, b"")),
    "shares too much": columns((0, b"ab"), (3, b"c")),
    "invalid UTF-8": columns((0, b"a\xff")),
    "half a character": columns((0, b"\xc3")),
    "NUL": columns((0, b"\0"), (0, b"ab")),
    "NUL inside": columns((0, b"a\0b")),
    "too long": columns((0, b"a" * 200), (200, b"b" * 57)),
    "no piece": columns(),
    "no body": b"",
    "half a count": b"\x01",
    "no columns": b"\x01\0",
    "noise": b"\x05\0" + bytes(range(200, 250)),
    "cut": columns((0, b"ab"), (0, b"cd"))[:-4],
    "tail": columns((0, b"ab"), (0, b"cd")) + b"x",
    "count too high": b"\x03" + columns((0, b"ab"), (0, b"cd"))[1:],
    "count too low": b"\x01" + columns((0, b"ab"), (0, b"cd"))[1:],
    "bomb": b"\x01\0" + lzma.compress(bytes(10**7), lzma.FORMAT_RAW, filters=LZMA_FILTERS),
}


@pytest.mark.parametrize("name", HOSTILE_PIECES)
def test_unfit_pieces_are_refused(name: str) -> None:
    with pytest.raises(TokenizerError):
        from_asset(forged("unigram", HOSTILE_PIECES[name]))


def test_pieces_of_256_bytes_are_taken() -> None:
    body = columns((0, b"a" * 200), (200, b"b" * 56))
    data = b"a" * 200 + b"b" * 56
    assert from_asset(forged("unigram", body)).encode(data).tolist() == [258]


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


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 50)), max_size=300))
@settings(max_examples=100, deadline=None)
def test_the_range_coder_gives_symbols_back(steps: list[tuple[int, int]]) -> None:
    def fresh() -> Frequencies:
        table = Frequencies(10)
        for symbol in range(10):
            table.add(symbol, 1)
        return table

    table, encoder = fresh(), RangeEncoder()
    for symbol, amount in steps:
        encoder.encode(table, symbol)
        table.add(symbol, amount)
    data, table = encoder.finish(), fresh()
    decoder = RangeDecoder(data)
    for symbol, amount in steps:
        assert decoder.decode(table) == symbol
        table.add(symbol, amount)
    decoder.check_end()


def test_the_range_coder_carries_into_bytes_already_out() -> None:
    """Almost-certain last symbols push the low end up to where the sum of two bytes overflows."""
    rng = random.Random(1)
    for _ in range(300):
        table = Frequencies(3)
        for symbol, amount in enumerate((1, 1, 1 << 20)):
            table.add(symbol, amount)
        symbols = rng.choices(range(3), weights=(1, 1, 3), k=60)
        encoder = RangeEncoder()
        for symbol in symbols:
            encoder.encode(table, symbol)
        decoder = RangeDecoder(encoder.finish())
        assert [decoder.decode(table) for _ in symbols] == symbols


def test_a_code_beyond_the_last_symbol_is_refused() -> None:
    table = Frequencies(3)
    for symbol in range(3):
        table.add(symbol, 1)
    with pytest.raises(TokenizerError, match="impossible code"):
        RangeDecoder(b"\xff" * 6).decode(table)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40))
@settings(deadline=None)
def test_frequencies_agree_with_plain_sums(counts: list[int]) -> None:
    table = Frequencies(len(counts))
    for symbol, count in enumerate(counts):
        table.add(symbol, count)
    assert table.counts == counts
    assert table.total == sum(counts)
    assert [table.before(i) for i in range(len(counts))] == [
        sum(counts[:i]) for i in range(len(counts))
    ]
    expected = [symbol for symbol, count in enumerate(counts) for _ in range(count)]
    assert [table.find(target) for target in range(table.total)] == expected


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
