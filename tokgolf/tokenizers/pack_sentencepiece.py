"""SentencePiece model files taken apart and packed; the reader is `sentencepiece_bpe.py`.

Needed to import or build, never to restore, so it stays out of a scored model's bytes.
"""

import lzma
from typing import Any, TypeVar

import numpy as np

from tokgolf.errors import TokenizerError
from tokgolf.tokenizers.asset import varint
from tokgolf.tokenizers.base import MAX_TOKEN_BYTES
from tokgolf.tokenizers.pack import pack_pairs
from tokgolf.tokenizers.protobuf import field, fields
from tokgolf.tokenizers.sentencepiece_bpe import (
    BYTE,
    CHARACTER,
    CONTROL,
    FLAGS,
    LZMA_FILTERS,
    MAX_PIECES,
    MERGE,
    NORMALIZERS,
    PROTO_TYPES,
    SCORED,
    UNKNOWN,
    WHOLE,
    Model,
    checksum,
    cut,
    installed_table,
)

# Numbers of fields in sentencepiece_model.proto: TrainerSpec, then NormalizerSpec.
_MODEL_TYPE, _WHITESPACE_AS_SUFFIX, _BYTE_FALLBACK = 3, 24, 35
_BOS_PIECE, _EOS_PIECE, _PAD_PIECE = 46, 47, 48
_UNIGRAM, _BPE = 1, 2

Kind = TypeVar("Kind", bytes, float)


def read_model(file: bytes) -> Model:
    """What a SentencePiece `.model` says. Raises `TokenizerError` for what an asset cannot hold.

    Without a BOS piece, the id that starts a document is the EOS, the padding, or, where byte
    pieces leave nothing unknown, the unknown piece.
    """
    entries: list[dict[int, Any]] = []
    specs: dict[int, dict[int, Any]] = {2: {}, 3: {}}  # TrainerSpec, NormalizerSpec
    for number, value in fields(file):
        if number == 1:
            entries.append(dict(fields(_typed(value, b""))))
        elif number in specs:
            specs[number] = dict(fields(_typed(value, b"")))
    trainer, normalizer = specs[2], specs[3]
    model_type = trainer.get(_MODEL_TYPE, _UNIGRAM)
    if model_type not in (_UNIGRAM, _BPE) or not 0 < len(entries) <= MAX_PIECES:
        raise TokenizerError(
            f"SentencePiece model has type {model_type} and {len(entries)} pieces; only types "
            f"{_UNIGRAM} (unigram) and {_BPE} (BPE) of 1 to {MAX_PIECES} pieces can be imported"
        )
    pieces = [_piece(entry, token) for token, entry in enumerate(entries)]
    names = [piece for sort, piece, _ in pieces if sort == BYTE]
    if names and (
        names != [b"<0x%02X>" % byte for byte in range(256)] or not trainer.get(_BYTE_FALLBACK)
    ):
        raise TokenizerError(
            f"SentencePiece model has {len(names)} byte pieces with byte_fallback "
            f"{trainer.get(_BYTE_FALLBACK, 0)}; only all 256 in order, in use, can be imported"
        )
    switches = {name: normalizer.get(n, 1) for n, name in enumerate(FLAGS[:3], 3)}
    switches[FLAGS[3]] = trainer.get(_WHITESPACE_AS_SUFFIX, 0)
    flags = {name for name, on in switches.items() if on}
    if model_type == _UNIGRAM:
        flags |= {"unigram"}
    table = _typed(normalizer.get(2, b""), b"")
    name = _typed(normalizer.get(1, b""), b"").decode("utf-8", "replace")
    return Model(
        flags=frozenset(flags),
        bos_id=_bos_id(pieces, trainer),
        normalizer=("stored" if name not in NORMALIZERS[1:-1] else name) if table else "identity",
        table=table,
        pieces=pieces,
    )


def _piece(entry: dict[int, Any], token: int) -> tuple[int, bytes, float]:
    """One piece with its sort, as far as it is known without the others."""
    piece, score, kind = _typed(entry.get(1, b""), b""), entry.get(2, 0.0), entry.get(3, 1)
    try:
        text = piece.decode("utf-8")
    except UnicodeDecodeError:
        text = ""
    if not text or "\0" in text or len(piece) > MAX_TOKEN_BYTES or kind not in PROTO_TYPES:
        raise TokenizerError(
            f"piece {token} of the SentencePiece model is of type {kind} and {len(piece)} bytes; "
            f"1 to {MAX_TOKEN_BYTES} bytes of UTF-8 without NUL can be imported"
        )
    sort = PROTO_TYPES.index(kind) if kind != 1 else CHARACTER if len(text) == 1 else WHOLE
    return sort, piece, _typed(score, 0.0)


def _typed(value: Any, like: Kind) -> Kind:
    """The value of a field, which must be of the type of `like`."""
    if not isinstance(value, type(like)):
        raise TokenizerError(
            f"no SentencePiece model: {value!r:.40} where {type(like).__name__} belongs; take the "
            ".model file that its trainer wrote"
        )
    return value


def _bos_id(pieces: list[tuple[int, bytes, float]], trainer: dict[int, Any]) -> int:
    controls = {piece: token for token, (sort, piece, _) in enumerate(pieces) if sort == CONTROL}
    for number, name in ((_BOS_PIECE, b"<s>"), (_EOS_PIECE, b"</s>"), (_PAD_PIECE, b"<pad>")):
        if (piece := trainer.get(number, name)) in controls:
            return controls[piece]
    sorts = [sort for sort, _, _ in pieces]
    if UNKNOWN in sorts and BYTE in sorts:
        return sorts.index(UNKNOWN)
    raise TokenizerError(
        f"SentencePiece model has {len(controls)} control pieces, none of them BOS, EOS or "
        "padding, so that no id can start a document; train it with bos_id"
    )


def pack_model(model: Model) -> bytes:
    """The asset body; `sentencepiece_bpe.py` describes it."""
    scores = [score for sort, _, score in model.pieces if sort in SCORED]
    flags = set(model.flags)
    if "unigram" in flags or any(b >= a for a, b in zip(scores, scores[1:], strict=False)):
        flags |= {"stored_scores"}
    sorts = [sort for sort, _, _ in model.pieces]
    pairs: list[tuple[int, int]] = []
    bare: list[str] = []
    if "unigram" not in flags:
        bare = _bare_characters(model.pieces)
        sorts, pairs = _find_merges(model.pieces, bare)
    names = [piece for _, piece, _ in model.pieces]
    alphabet = b"".join(name for sort, name in zip(sorts, names, strict=True) if sort == CHARACTER)
    others = [name for sort, name in zip(sorts, names, strict=True) if sort >= CONTROL]
    text = b"\0".join([alphabet + "".join(bare).encode(), *others])
    if len(packed := _pack(text)) < len(text):
        text, flags = packed, flags | {"packed_text"}
    runs: list[list[int]] = []
    for sort in sorts:
        if runs and runs[-1][0] == sort:
            runs[-1][1] += 1
        else:
            runs.append([sort, 1])
    body = varint(sum(1 << bit for bit, name in enumerate(FLAGS) if name in flags))
    body += varint(model.bos_id) + _pack_normalizer(model.normalizer, model.table)
    body += varint(len(runs)) + b"".join(varint(number << 3 | sort) for sort, number in runs)
    body += varint(len(text)) + text
    if "stored_scores" in flags:
        packed = _pack(np.array(scores, "<f4").tobytes())
        body += varint(len(packed)) + packed
    return body + (pack_pairs(pairs, len(bare) + sorts.count(CHARACTER)) if pairs else b"")


def _bare_characters(pieces: list[tuple[int, bytes, float]]) -> list[str]:
    """Characters that pieces are made of and that have no piece of their own."""
    used = {char for sort, piece, _ in pieces if sort == WHOLE for char in piece.decode()}
    return sorted(used - {piece.decode() for sort, piece, _ in pieces if sort == CHARACTER})


def _find_merges(
    pieces: list[tuple[int, bytes, float]], bare: list[str]
) -> tuple[list[int], list[tuple[int, int]]]:
    """The sort of every piece, MERGE where two older symbols make it, and those pairs.

    Symbols are the single characters, those of `bare`, then the merges. The pair is what BPE by
    the older merges leaves of the piece, or else the first split whose parts are known; which one
    does not matter for ids, since SentencePiece joins whatever makes a piece.
    """
    symbols: dict[str, int] = {}
    for sort, piece, _ in pieces:
        if sort == CHARACTER:
            symbols[piece.decode()] = len(symbols)
    symbols |= {character: len(symbols) + n for n, character in enumerate(bare)}
    first, sorts, pairs = len(symbols), [], []
    for sort, piece, _ in pieces:
        parts = list(text := piece.decode()) if sort == WHOLE else []
        while len(parts) > 2:
            joined = [symbols.get(a + b, -1) for a, b in zip(parts, parts[1:], strict=False)]
            found = [(rank, place) for place, rank in enumerate(joined) if rank >= first]
            if not found:
                break
            place = min(found)[1]
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        if len(parts) > 2:
            splits = ([text[:n], text[n:]] for n in range(1, len(text)))
            parts = next((s for s in splits if s[0] in symbols and s[1] in symbols), [])
        if parts and parts[0] in symbols and parts[1] in symbols:
            pairs.append((symbols[parts[0]], symbols[parts[1]]))
            symbols[text] = len(symbols)
            sort = MERGE
        sorts.append(sort)
    return sorts, pairs


def _pack_normalizer(name: str, table: bytes) -> bytes:
    """A normaliser by name where the installed table can stand for the model's, else whole."""
    prefixes = None if name in ("identity", "stored") else _spare_prefixes(name, table)
    if name != "identity" and prefixes is None:
        name = "stored"
    head = bytes([NORMALIZERS.index(name)])
    if name == "identity":
        return head
    if prefixes is None:
        packed = _pack(table)
        return head + varint(len(packed)) + packed
    names = b"\0".join(prefixes)
    left = checksum(cut(installed_table(name), prefixes)) if prefixes else b""
    return head + checksum(table) + varint(len(names)) + names + left


def _spare_prefixes(name: str, table: bytes) -> list[bytes] | None:
    """What to cut from the installed table so that it normalises as `table` does, or None.

    A table is a map from texts to texts, of which the longest that fits is replaced; two tables
    with the same map normalise alike.
    """
    installed = installed_table(name)
    if installed == table:
        return []
    wanted, present = _rules(table), _rules(installed)
    if wanted is None or present is None:
        return None
    starts = {key[:n] for key in wanted for n in range(1, len(key) + 1)}
    prefixes = {
        next((key[:n] for n in range(1, len(key) + 1) if key[:n] not in starts), "")
        for key in present.keys() - wanted.keys()
    }
    found = sorted(prefix.encode() for prefix in prefixes)
    return found if all(found) and _rules(cut(installed, found)) == wanted else None


def _rules(table: bytes) -> dict[str, str] | None:
    """The map of a table, or None where the installed library cannot say."""
    import sentencepiece

    spec = sentencepiece.SentencePieceNormalizer(normalizer_spec=field(2, table))
    return dict(spec.decompile()) if hasattr(spec, "decompile") else None


def _pack(data: bytes) -> bytes:
    return lzma.compress(data, lzma.FORMAT_RAW, filters=LZMA_FILTERS)
