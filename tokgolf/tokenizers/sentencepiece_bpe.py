"""A SentencePiece model, its ids kept: the body of its asset, and the model rebuilt from it.

Unlike `unigram` this holds models of others too, with whatever ids, special pieces and
normaliser they have, so it may be lossy: then `lossless` is False and decode(encode(data)) is
the normalised text. Bytes that are no UTF-8 become byte pieces, or the unknown one where a
model has no byte pieces.

    content
    flags        varint, bits of FLAGS
    bos          varint, the id that starts a document
    normaliser   1 byte, an index into NORMALIZERS: identity needs no more; for the named ones
                 the CRC-32 of the model's own table, then what `_cut` takes from the installed
                 table (varint length, UTF-8, NUL between) and, if that is anything, the CRC-32
                 of what is left; "stored" is followed by the table (varint length, LZMA)
    layout       varint count, then a varint for each run of ids: number << 3 | sort
    text         varint length, then UTF-8, as LZMA if so flagged: the single characters, then
                 the pieces of the sorts from CONTROL on, NUL between, each group in id order
    scores       if so flagged: varint length, then LZMA of float32 little-endian, of all pieces
                 that have one, in id order; else the score is minus the number of such before
    merges       the pairs, as `mergecodec` packs them over the single characters

There may be more single characters than the layout has: merges are made of them, but alone they
have no piece and become byte pieces. That is how tokgolf builds, since a stock model spends two
ids on every ASCII character.

The tables of named normalisers are 240 kB and come with the installed library. A later release
may know more characters: the asset says which of those the model did not.
"""

import lzma
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, final

import numpy as np

from tokgolf.errors import TokenizerError
from tokgolf.tokenizers.asset import read_varint, unwrap
from tokgolf.tokenizers.base import MAX_TOKEN_BYTES, Ids, Tokenizer, is_text, text_runs
from tokgolf.tokenizers.mergecodec import unpack_pairs
from tokgolf.tokenizers.protobuf import field as proto_field
from tokgolf.tokenizers.protobuf import fields

FLAGS = (
    "add_dummy_prefix",
    "remove_extra_whitespaces",
    "escape_whitespaces",
    "treat_whitespace_as_suffix",
    "unigram",
    "stored_scores",
    "packed_text",
)
NORMALIZERS = ("identity", "nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf", "stored")
MERGE, CHARACTER, BYTE, CONTROL, UNKNOWN, USER_DEFINED, UNUSED, WHOLE = range(8)
PROTO_TYPES = (1, 1, 6, 3, 2, 4, 5, 1)  # of these sorts in sentencepiece_model.proto
SCORED = (MERGE, CHARACTER, UNUSED, WHOLE)
MAX_PIECES = 1 << 18
MERGES_PER_BYTE = 8  # of code at most; half of one is usual, and a forged code could go on for ever
# The dictionary is all that unpacking sets aside.
LZMA_FILTERS = [
    {"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, "pb": 0, "dict_size": 1 << 20}
]
SPACE = "\u2581".encode()  # what stands for a space where spaces are escaped
UNKNOWN_SURFACE = " \u2047 ".encode()  # what SentencePiece decodes an unknown piece to


@dataclass(frozen=True, kw_only=True)
class Model:
    """What a model file says, as far as ids depend on it: (sort, piece, score) for each id."""

    flags: frozenset[str]
    bos_id: int
    normalizer: str
    table: bytes  # empty for identity
    pieces: list[tuple[int, bytes, float]]


@final
@dataclass(frozen=True, eq=False, repr=False)
class SentencePieceBpeTokenizer(Tokenizer):
    """A SentencePiece model with its engine.

    Several ids may have the same `token_bytes`: special pieces have none, and the byte piece
    and the character "a" are both b"a". `losses` says what the model does not keep of the text;
    `warning`, if it is not empty, why ids may differ from those of the model that was imported.
    """

    kind: ClassVar[str] = "sentencepiece"
    _model: bytes
    _byte_ids: list[int]
    _engine: Any
    losses: tuple[str, ...] = field(kw_only=True)
    warning: str = field(kw_only=True)

    @classmethod
    def from_asset(cls, data: bytes) -> Self:
        """Restore from an asset, with the installed library's normaliser if it is a named one."""
        model, warning = _decode(unwrap("sentencepiece", data))
        file, losses = model_file(model), _losses(model)
        sorts = [sort for sort, _, _ in model.pieces]
        byte_ids = [token for token, sort in enumerate(sorts) if sort == BYTE]
        return cls(
            data,
            _token_bytes(model),
            file,
            byte_ids or [sorts.index(UNKNOWN)] * 256,
            _load_engine(file),
            bos_id=model.bos_id,
            lossless=not losses,
            losses=losses,
            warning=warning,
        )

    def _encode_batch(self, batch: Sequence[bytes]) -> list[Ids]:
        """Cut the text of each byte string into pieces; all other bytes are byte pieces."""
        documents = [text_runs(data) for data in batch]
        texts = [run for runs in documents for run in runs if is_text(run)]
        encoded = iter(self._engine.encode(texts, out_type=int, num_threads=1) if texts else ())
        result: list[Ids] = []
        for runs in documents:
            ids: list[int] = []
            for run in runs:
                if is_text(run):
                    ids += next(encoded)
                else:
                    ids += [self._byte_ids[byte] for byte in run.encode("utf-8", "surrogateescape")]
            result.append(np.array(ids, dtype=self.dtype))
        return result

    def original_file(self) -> bytes:
        """The same tokenizer as a SentencePiece `.model`."""
        return self._model


def _token_bytes(model: Model) -> list[bytes]:
    """The bytes that each piece stands for; special pieces stand for none.

    The unknown piece is what SentencePiece writes for it, unless it only marks where a document
    starts.
    """
    escaped, next_byte, tokens = "escape_whitespaces" in model.flags, iter(range(256)), []
    for token, (sort, piece, _) in enumerate(model.pieces):
        if sort == BYTE:
            piece = bytes([next(next_byte)])
        elif sort == UNKNOWN and token != model.bos_id:
            piece = UNKNOWN_SURFACE
        elif sort in (CONTROL, UNKNOWN):
            piece = b""
        elif escaped:
            piece = piece.replace(SPACE, b" ")
        tokens.append(piece)
    return tokens


def _losses(model: Model) -> tuple[str, ...]:
    """What the model does not keep of a text; nothing if it gives every byte back."""
    has_bytes = any(sort == BYTE for sort, _, _ in model.pieces)
    rules = "rules of its own" if model.normalizer == "stored" else model.normalizer
    found = {
        f"it normalises by {rules}": model.normalizer != "identity",
        "it adds a space before the text": "add_dummy_prefix" in model.flags,
        "it removes extra spaces": "remove_extra_whitespaces" in model.flags,
        "U+2581 comes back as a space": "escape_whitespaces" in model.flags,
        "it has no byte pieces for unknown characters": not has_bytes,
    }
    return tuple(what for what, lost in found.items() if lost)


def model_file(model: Model) -> bytes:
    """A SentencePiece ModelProto with these pieces."""
    parts = []
    for sort, piece, score in model.pieces:
        entry = proto_field(1, piece) + proto_field(2, score)
        if PROTO_TYPES[sort] != 1:  # the default
            entry += proto_field(3, PROTO_TYPES[sort])
        parts.append(proto_field(1, entry))
    sorts = [sort for sort, _, _ in model.pieces]
    named = [(41, b"<s>"), (42, b"</s>"), (43, b"<pad>")]  # bos_id, eos_id, pad_id
    ids = {piece: token for token, (sort, piece, _) in enumerate(model.pieces) if sort == CONTROL}
    trainer = b"".join(
        proto_field(number, value)
        for number, value in [
            (3, 1 if "unigram" in model.flags else 2),  # model_type
            (4, len(model.pieces)),  # vocab_size
            (24, int("treat_whitespace_as_suffix" in model.flags)),
            (35, int(BYTE in sorts)),  # byte_fallback
            (40, sorts.index(UNKNOWN)),  # unk_id
            *((number, ids.get(piece, (1 << 64) - 1)) for number, piece in named),  # or -1
        ]
    )
    # add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces
    switches = (proto_field(n, int(name in model.flags)) for n, name in enumerate(FLAGS[:3], 3))
    name = b"" if model.normalizer == "stored" else model.normalizer.encode()
    normalizer = proto_field(1, name) + proto_field(2, model.table) + b"".join(switches)
    return b"".join(parts) + proto_field(2, trainer) + proto_field(3, normalizer)


def _decode(body: bytes) -> tuple[Model, str]:
    """The model of an asset body, and a warning or nothing. Raises `TokenizerError`."""
    bits, place = read_varint(body, 0)
    flags = frozenset(name for bit, name in enumerate(FLAGS) if bits >> bit & 1)
    bos_id, place = read_varint(body, place)
    normalizer, table, warning, place = _read_normalizer(body, place)
    layout, place = _read_layout(body, place)
    counts = [sum(n for sort, n in layout if sort == which) for which in range(8)]
    text, place = _take(body, place)
    if "packed_text" in flags:
        text = unpack(text, (MAX_TOKEN_BYTES + 1) * sum(counts))
    if (found := text.count(0)) != sum(counts[CONTROL:]):  # before each becomes an object
        raise unfit(f"{found} pieces in its text, where its layout needs {sum(counts[CONTROL:])}")
    try:
        alphabet, *whole = text.decode("utf-8").split("\0")
    except UnicodeDecodeError as error:
        raise unfit(f"text that is no UTF-8 ({error.reason} at byte {error.start})") from error
    scores = range(0, -sum(counts), -1)
    if "stored_scores" in flags:
        packed, place = _take(body, place)
        columns = unpack(packed, 4 * sum(counts[sort] for sort in SCORED))
        if len(columns) != 4 * sum(counts[sort] for sort in SCORED):
            raise unfit(f"{len(columns)} bytes of scores")
        scores = np.frombuffer(columns, "<f4").tolist()
    if len(alphabet) < counts[CHARACTER]:
        raise unfit(f"{len(alphabet)} characters, where its layout needs {counts[CHARACTER]}")
    if counts[BYTE] not in (0, 256) or counts[UNKNOWN] != 1 or bos_id >= sum(counts) or bits >> 7:
        raise unfit(
            f"{counts[BYTE]} byte and {counts[UNKNOWN]} unknown pieces, BOS {bos_id} and "
            f"flags {bits:#x}, where 0 or 256, 1, an id below {sum(counts)} and 7 bits belong"
        )
    if counts[MERGE] > MERGES_PER_BYTE * (len(body) - place + 1):
        raise unfit(f"{counts[MERGE]} merges in {len(body) - place} bytes of code")
    symbols = [character.encode() for character in alphabet]
    pairs = unpack_pairs(body[place:], counts[MERGE], len(symbols)) if counts[MERGE] else []
    if not pairs and body[place:]:
        raise unfit(f"{len(body) - place} bytes after its end")
    for left, right in pairs:
        symbols.append(symbols[left] + symbols[right])
        if len(symbols[-1]) > MAX_TOKEN_BYTES:
            raise unfit(f"a piece of {len(symbols[-1])} bytes, over {MAX_TOKEN_BYTES}")
    sources = {
        CHARACTER: iter(symbols),
        MERGE: iter(symbols[len(alphabet) :]),
        BYTE: (b"<0x%02X>" % byte for byte in range(256)),
    }
    others = (piece.encode() for piece in whole)
    in_order = iter(scores)
    pieces = [
        (sort, next(sources.get(sort, others)), float(next(in_order)) if sort in SCORED else 0.0)
        for sort, number in layout
        for _ in range(number)
    ]
    model = Model(flags=flags, bos_id=bos_id, normalizer=normalizer, table=table, pieces=pieces)
    return model, warning


def _read_layout(body: bytes, place: int) -> tuple[list[tuple[int, int]], int]:
    """Runs of ids as (sort, number), and the place after them."""
    count, place = read_varint(body, place)
    layout = []
    for _ in range(min(count, len(body))):
        run, place = read_varint(body, place)
        layout.append((run & 7, run >> 3))
    total = sum(number for _, number in layout)
    if total > MAX_PIECES:
        raise unfit(f"{total} pieces, over {MAX_PIECES}")
    return layout, place


def _read_normalizer(body: bytes, place: int) -> tuple[str, bytes, str, int]:
    """Name, table, warning, and the place after them."""
    index, place = (body[place : place + 1] or b"\xff")[0], place + 1
    if index >= len(NORMALIZERS):
        raise unfit(f"normaliser {index}, not one of 0 to {len(NORMALIZERS) - 1}")
    name = NORMALIZERS[index]
    if name == "identity":
        return name, b"", "", place
    if name == "stored":
        packed, place = _take(body, place)
        return name, unpack(packed, 1 << 23), "", place
    own, place = body[place : place + 4], place + 4
    prefixes, place = _take(body, place)
    left, place = (body[place : place + 4], place + 4) if prefixes else (own, place)
    table = installed_table(name)
    if checksum(table) == own:
        return name, table, "", place
    table = cut(table, prefixes.split(b"\0")) if prefixes else table
    if checksum(table) == left:
        return name, table, "", place
    warning = (
        f"the {name} table of the installed sentencepiece has checksum "
        f"{checksum(table).hex()}, the imported model's {own.hex()}: characters new to "
        "Unicode may get other ids; install the sentencepiece release it was imported with"
    )
    return name, table, warning, place


def checksum(table: bytes) -> bytes:
    """CRC-32 as 4 bytes, little-endian."""
    return zlib.crc32(table).to_bytes(4, "little")


def installed_table(name: str) -> bytes:
    """The installed library's precompiled table for a normaliser that it knows by name."""
    import sentencepiece

    made = sentencepiece.SentencePieceNormalizer(rule_name=name).serialized_model_proto()
    spec = next(value for number, value in fields(made) if number == 3)
    table: bytes = next(value for number, value in fields(spec) if number == 2)
    return table


def cut(table: bytes, prefixes: list[bytes]) -> bytes:
    """The table without its rules for texts that start with one of `prefixes`.

    A table is the size of a trie (4 bytes), the trie, and the texts it points into. The trie is
    a double array of 4-byte units (Darts-clone): a child's place is its parent's, xor the
    parent's offset, xor the byte; it is one only if its label is that byte.
    """
    size = int.from_bytes(table[:4], "little")
    units = np.frombuffer(table[4 : 4 + size], "<u4").copy()
    for prefix in prefixes:
        place = 0
        for byte in prefix:
            unit = int(units[place])
            place ^= unit >> 10 << ((unit & 1 << 9) >> 6) ^ byte
            if place >= len(units) or int(units[place]) & 0x800000FF != byte:
                break
        else:
            units[place] = 1 << 31  # a label that no byte has
    return table[:4] + units.tobytes() + table[4 + size :]


def _take(body: bytes, place: int) -> tuple[bytes, int]:
    """Bytes after their length, and the place after them."""
    size, place = read_varint(body, place)
    if size > len(body) - place:
        raise unfit(f"{len(body) - place} bytes where {size} should follow")
    return body[place : place + size], place + size


def unpack(packed: bytes, limit: int) -> bytes:
    """Raw LZMA of at most `limit` bytes."""
    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=LZMA_FILTERS)
    try:
        data = decoder.decompress(packed, max_length=limit + 1)
    except lzma.LZMAError as error:
        raise unfit(f"a part that does not unpack ({error})") from error
    if not decoder.eof or decoder.unused_data or len(data) > limit:
        raise unfit(f"a part that does not unpack to at most {limit} bytes")
    return data


def unfit(what: str) -> TokenizerError:
    """The error for an asset that holds `what`."""
    return TokenizerError(f"sentencepiece tokenizer asset holds {what}; import or build it again")


def _load_engine(file: bytes) -> Any:
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_proto=file)
    except RuntimeError as error:
        reason = " ".join(str(error).split())  # it may quote a newline
        raise unfit(f"pieces that sentencepiece refuses ({reason})") from error
