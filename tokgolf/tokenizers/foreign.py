"""Tokenizers of other libraries: read from their files, written to their files, ids kept.

    file                 becomes kind     left out
    SentencePiece .model sentencepiece    the denormaliser, self-test samples
    tokenizer.json       bpe, foreign     what a post-processor adds; special tokens in text
    tiktoken ranks       foreign          special tokens, which such a file does not have
    byte260 .json        foreign          nothing

A unigram `.model` becomes kind "sentencepiece" with its scores too: kind "unigram" has ids of its
own and rounds scores. `tokenizer.json` is read if it is byte-level BPE without a normaliser,
cut by one regular expression. Whatever would give other ids is refused by name.
"""

import base64
import binascii
import json
import lzma
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokgolf.errors import TokenizerError
from tokgolf.files import write_bytes
from tokgolf.tokenizers import Tokenizer, from_asset
from tokgolf.tokenizers.asset import MAGIC, varint, wrap
from tokgolf.tokenizers.base import BOS_ID, BYTE_TOKENS, MAX_TOKEN_BYTES
from tokgolf.tokenizers.bpe import BpeTokenizer, byte_names
from tokgolf.tokenizers.foreign_bpe import (
    BYTE,
    MAX_TOKENS,
    MERGE,
    ORDERS,
    SPECIAL,
    SPECIAL_MARK,
    WHOLE,
    ForeignBpeTokenizer,
    byte_order,
)
from tokgolf.tokenizers.isolated import foreign_asset_isolated
from tokgolf.tokenizers.pack import pack_merges, pack_pairs
from tokgolf.tokenizers.pack_sentencepiece import pack_model, read_model
from tokgolf.tokenizers.sentencepiece_bpe import SentencePieceBpeTokenizer, model_file
from tokgolf.tokenizers.split import BASES, compiled, expression, pack_pattern

MAX_FILE_BYTES = 1 << 27
FORMATS = (".json", ".model", ".tiktoken")

# What a special token that starts documents is usually called, best first.
_BOS_NAMES = (
    SPECIAL_MARK,
    "<|begin_of_text|>",
    "<s>",
    "<bos>",
    "[BOS]",
    "<|startoftext|>",
    "<|endoftext|>",
    "</s>",
)
_RANK_LINE = re.compile(rb"[A-Za-z0-9+/]+=* \d{1,9}")

Rank = Callable[[bytes, bytes], int | None]


def import_tokenizer(path: str | os.PathLike[str], *, pattern: str | None = None) -> Tokenizer:
    """The tokenizer in another library's file, with its ids; the table above has the kinds.

    What sort of file it is shows in its first bytes. `pattern` is where tiktoken cuts text, as
    in `split.py` (default gpt4); its files do not say. Raises `TokenizerError`, with the path, if
    the file is damaged or holds what would give other ids here. The file is taken apart in a
    process of its own (`isolated.py`): no file, however hostile, can crash this one.
    """
    with open(path, "rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    try:
        if len(data) > MAX_FILE_BYTES:
            raise TokenizerError(
                f"over {MAX_FILE_BYTES} bytes is no tokenizer file; check the path"
            )
        return from_asset(foreign_asset_isolated(data, pattern))
    except TokenizerError as error:
        raise TokenizerError(f"{os.fspath(path)}: {error}") from error


def describe_import(tokenizer: Tokenizer, original: bytes) -> dict[str, Any]:
    """What importing `original` gave: sizes beside it and its xz -9e, and what the bytes lose."""
    model = tokenizer if isinstance(tokenizer, SentencePieceBpeTokenizer) else None
    return {
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "bos_id": tokenizer.bos_id,
        "asset_bytes": len(tokenizer.asset()),
        "original_bytes": len(original),
        "original_xz_bytes": len(lzma.compress(original, preset=9 | lzma.PRESET_EXTREME)),
        "lossless": tokenizer.lossless,
        "losses": "; ".join(model.losses) if model else "",
        "warning": model.warning if model else "",
        "fingerprint": tokenizer.fingerprint,
    }


def foreign_asset(data: bytes, pattern: str | None = None) -> bytes:
    """The asset of the tokenizer in the bytes of another library's file, made in this process.

    For files that are trusted: the libraries it uses can crash on others. Raises
    `TokenizerError` as `import_tokenizer` does, without a path.
    """
    if data.startswith(MAGIC):
        raise TokenizerError("this is a tokgolf tokenizer already; use it as it is")
    if _RANK_LINE.fullmatch(data.partition(b"\n")[0].rstrip()):
        return _from_ranks(data, pattern or "gpt4")
    if pattern is not None:
        raise TokenizerError("only tiktoken files need to be told where text is cut")
    if data.lstrip()[:1] == b"{":
        try:
            return _from_json(data)
        except (AttributeError, KeyError, TypeError) as error:
            raise TokenizerError(f"no sound tokenizer.json: {error!r}; check the file") from error
    return _from_sentencepiece(data)


def checked_asset(data: bytes, pattern: str | None = None) -> bytes:
    """What `foreign_asset` makes, its engine made once: where it may crash, if this is a child."""
    asset = foreign_asset(data, pattern)
    from_asset(asset)
    return asset


def _from_sentencepiece(data: bytes) -> bytes:
    model = read_model(data)
    import sentencepiece

    try:  # before any of its tables is looked into
        sentencepiece.SentencePieceProcessor(model_proto=data)
    except RuntimeError as error:
        reason = " ".join(str(error).split())  # it may quote a newline
        raise TokenizerError(f"sentencepiece refuses this model ({reason})") from error
    return wrap("sentencepiece", pack_model(model))


# --- tiktoken


def _from_ranks(data: bytes, pattern: str) -> bytes:
    """The asset of a rank file: lines of a token in base64 and its rank, which is its id."""
    ids: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        if not _RANK_LINE.fullmatch(line.strip()):
            raise TokenizerError(f"line {number} is {line!r:.60}, no token in base64 and rank")
        name, rank = line.split()
        try:
            token = base64.b64decode(name, validate=True)
        except binascii.Error as error:
            raise TokenizerError(f"line {number} is no base64 ({error})") from error
        if token in ids or not token:
            raise TokenizerError(f"line {number} has a token that is empty or there already")
        ids[token] = int(rank)
    compiled(pattern)
    return _asset(ids, {}, lambda left, right: ids.get(left + right), pattern, whole=True)


# --- tokenizer.json


def _from_json(data: bytes) -> bytes:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"no sound JSON ({error})") from error
    if values.get("tokenizer_type") == "pure_byte":
        return _from_byte_layout(values)
    model = values.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise TokenizerError("no tokenizer.json: it has no model with a vocabulary")
    added = values.get("added_tokens") or []
    unsupported = [
        f"model {model.get('type')}" * (model.get("type") != "BPE"),
        "a normalizer" * bool(values.get("normalizer")),
        "truncation" * bool(values.get("truncation")),
        *(
            name * bool(model.get(name))
            for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
        ),
        "byte_fallback" * bool(model.get("byte_fallback")),
        *(f"added token {t['content']!r}" for t in added if not t.get("special")),
    ]
    if any(unsupported):
        raise TokenizerError(
            f"{', '.join(filter(None, unsupported))[:200]} cannot be imported; only plain "
            "byte-level BPE can"
        )
    pattern = _pattern(values.get("pre_tokenizer"))
    bytes_of = {name: byte for byte, name in enumerate(byte_names())}
    vocabulary = {str(token["content"]): token["id"] for token in added} | model["vocab"]
    special = {token["content"] for token in added}
    ids: dict[bytes, int] = {}
    specials: dict[int, str] = {}
    for name, token in vocabulary.items():
        if name in special or not name or not bytes_of.keys() >= set(name):
            bare = name if name == SPECIAL_MARK else name.removeprefix(SPECIAL_MARK)
            specials[token] = "" if bare == str(token) else bare
        else:
            ids[bytes(bytes_of[character] for character in name)] = token
    ranks: dict[tuple[bytes, bytes], int] = {}
    for rank, merge in enumerate(model.get("merges") or ()):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if len(parts) != 2 or not all(bytes_of.keys() >= set(part) for part in parts):
            raise TokenizerError(f"merge {rank} is {merge!r:.60}, no pair of byte-level tokens")
        left, right = (bytes(bytes_of[character] for character in part) for part in parts)
        ranks.setdefault((left, right), rank)
    whole = bool(model.get("ignore_merges"))
    return _asset(ids, specials, lambda left, right: ranks.get((left, right)), pattern, whole=whole)


def _pattern(pre_tokenizer: Any) -> str:
    """The split pattern of a pre-tokenizer, by name if it is one of ours.

    Supported: ByteLevel with its own expression (GPT-2's), or a Split by an expression, isolated,
    and ByteLevel without.
    """
    steps = (pre_tokenizer or {}).get("pretokenizers") or [pre_tokenizer or {}]
    last = steps[-1]
    plain = last.get("type") == "ByteLevel" and not last.get("add_prefix_space")
    if plain and len(steps) == 1 and last.get("use_regex", True):
        return "gpt2"
    first = steps[0]
    if (
        plain
        and len(steps) == 2
        and not last.get("use_regex", True)
        and first.get("type") == "Split"
        and first.get("behavior") == "Isolated"
        and not first.get("invert")
        and "Regex" in first.get("pattern", {})
    ):
        found = first["pattern"]["Regex"]
        name = next((base for base in BASES if expression(base) == found), f"regex:{found}")
        compiled(name)
        pack_pattern(name)
        return name
    kinds = ", ".join(str(step.get("type")) for step in steps)
    raise TokenizerError(
        f"pre-tokenizer {kinds} cannot be imported; only ByteLevel without a prefix space, or one "
        "isolated Split by a regular expression before it, can"
    )


def _from_byte_layout(values: dict[str, Any]) -> bytes:
    """The asset of a `pure_byte` file: special ids, then the bytes in order."""
    config = values.get("config") or {}
    offset, bos_id = config.get("byte_offset", 4), config.get("bos_id", 1)
    size = values.get("vocab_size")
    if config.get("byte_count", 256) != 256 or size != offset + 256 or not 0 <= bos_id < offset:
        raise TokenizerError(
            f"pure_byte layout of {size} ids with offset {offset} and BOS {bos_id}; the offset "
            "plus 256 ids and a BOS below it can be imported"
        )
    specials = {config.get(f"{name}_id"): f"<{name}>" for name in ("pad", "bos", "eos", "unk")}
    ids = {bytes([byte]): offset + byte for byte in range(256)}
    named = {token: specials.get(token, "") for token in range(offset)}
    return _asset(ids, named, lambda left, right: None, "gpt4", whole=False, bos_id=bos_id)


# --- all byte-level BPE


def _asset(
    ids: dict[bytes, int],
    specials: dict[int, str],
    rank: Rank,
    pattern: str,
    *,
    whole: bool,
    bos_id: int | None = None,
) -> bytes:
    """The asset of byte-level BPE by any ranks: of kind bpe if its ids allow, else foreign.

    One pair a token is enough. Within a longer word BPE treats the bytes of a token as it does
    when they are alone, or something crosses their ends and the token never comes about. So what
    makes a token is always the pair that is left when it is encoded alone; and a token that is
    not made even then is never made, only taken whole (`whole`) or not at all.
    """
    missing = [byte for byte in range(256) if bytes([byte]) not in ids]
    taken = [*ids.values(), *specials]
    if missing or not all(isinstance(token, int) for token in taken):
        raise TokenizerError(
            f"{len(missing)} of 256 bytes have no token, or an id is no number; only byte-level "
            "BPE can be imported"
        )
    if len({*taken}) < len(taken) or min(taken) < 0 or max(taken) >= MAX_TOKENS:
        raise TokenizerError(
            f"{len(taken)} tokens have {len({*taken})} ids from {min(taken)} to {max(taken)}; "
            f"different ones from 0 to {MAX_TOKENS - 1} can be imported"
        )
    longest = max(map(len, ids))
    if longest > MAX_TOKEN_BYTES:
        raise TokenizerError(
            f"a token has {longest} bytes; up to {MAX_TOKEN_BYTES} can be imported"
        )
    bos_id = _bos_id(specials, {*taken}) if bos_id is None else bos_id
    sorts = [SPECIAL] * (max(*taken, bos_id) + 1)
    literals = {token: name.encode() for token, name in specials.items() if token != bos_id}
    literals[bos_id] = specials.get(bos_id, "").removeprefix(SPECIAL_MARK).encode()
    made = []
    for token, number in ids.items():
        found = last_pair(token, rank)
        if len(token) == 1:
            sorts[number] = BYTE
        elif found is not None:
            made.append((*found, number))
            sorts[number] = MERGE
        elif whole:
            sorts[number] = WHOLE
            literals[number] = token
    made.sort()
    symbols = {bytes([byte]): byte for byte in range(256)}
    pairs = []
    for place, (_, left, right, number) in enumerate(made):
        if left not in symbols or right not in symbols or (place and number < made[place - 1][3]):
            raise TokenizerError(
                f"token {number} comes before what it is merged from, or its merge is number "
                f"{place} of {len(made)} and out of the order of ids; sort the merges by id"
            )
        pairs.append((symbols[left], symbols[right]))
        symbols[left + right] = len(symbols)
    if sorts == [BYTE] * BOS_ID + [SPECIAL] + [MERGE] * len(pairs) and bos_id == BOS_ID:
        up = [(left + (left >= BOS_ID), right + (right >= BOS_ID)) for left, right in pairs]
        if all(ids[bytes([byte])] == byte for byte in range(256)):
            return wrap("bpe", pack_merges(up, pattern))
    order = sorted(range(256), key=lambda byte: ids[bytes([byte])])
    return wrap("foreign", _pack(order, bos_id, pattern, sorts, literals, pairs))


def last_pair(token: bytes, rank: Rank) -> tuple[int, bytes, bytes] | None:
    """The last merge when BPE encodes `token` alone, as rank, left and right; None without one.

    b"abc" with ranks {(a, b): 0, (ab, c): 1} -> (1, b"ab", b"c")
    """
    parts = [token[n : n + 1] for n in range(len(token))]
    while True:
        ranks = (rank(left, right) for left, right in zip(parts, parts[1:], strict=False))
        found = min(((r, place) for place, r in enumerate(ranks) if r is not None), default=None)
        if found is None:
            return None
        number, place = found
        if len(parts) == 2:
            return number, parts[0], parts[1]
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


def _bos_id(specials: dict[int, str], taken: set[int]) -> int:
    """The special token that starts documents: by name, else the first, else an id without use.

    specials={}, taken={0, 1, 3} -> 2; taken={0, 1, 2} -> 3
    """
    by_name = {name: token for token, name in specials.items()}
    named = [by_name[name] for name in _BOS_NAMES if name in by_name]
    if named or specials:
        return named[0] if named else min(specials)
    return next(token for token in range(len(taken) + 1) if token not in taken)


def _pack(
    order: list[int],
    bos_id: int,
    pattern: str,
    sorts: list[int],
    literals: dict[int, bytes],
    pairs: list[tuple[int, int]],
) -> bytes:
    """The asset body; `foreign_bpe.py` describes it."""
    name = next((name for name in ORDERS[:-1] if byte_order(name) == order), ORDERS[-1])
    body = bytes([ORDERS.index(name)]) + (bytes(order) if name == ORDERS[-1] else b"")
    body += varint(bos_id) + pack_pattern(pattern)
    runs: list[list[int]] = []
    for sort in sorts:
        if runs and runs[-1][0] == sort:
            runs[-1][1] += 1
        else:
            runs.append([sort, 1])
    body += varint(len(runs)) + b"".join(varint(number << 2 | sort) for sort, number in runs)
    named = (literals.get(token, b"") for token, sort in enumerate(sorts) if sort >= SPECIAL)
    text = b"".join(varint(len(literal)) + literal for literal in named)
    return body + varint(len(text)) + text + (pack_pairs(pairs, 256) if pairs else b"")


# --- export


def export_tokenizer(tokenizer: Tokenizer, path: str | os.PathLike[str]) -> str:
    """Write a tokenizer as another library's file, by suffix; that library gives the same ids.

    `.json` is for `tokenizers` (kinds byte, bpe and foreign), `.model` for `sentencepiece`
    (sentencepiece and unigram), `.tiktoken` for `tiktoken` (byte, bpe and foreign). Returns a
    note on what the file does not say, or "". Raises `TokenizerError` where the same ids cannot
    be had.
    """
    suffix = Path(path).suffix
    if suffix not in FORMATS:
        raise TokenizerError(f"cannot export to {suffix!r}; use a name in {', '.join(FORMATS)}")
    if tokenizer.transform is not None:
        raise TokenizerError(
            f"a tokenizer with the transform {tokenizer.transform.name!r} cannot be exported: no "
            "other library rewrites text so"
        )
    notes = ["the bigram buckets are left out"] if tokenizer.bigram else []
    if tokenizer.kind == "byte" and suffix in (".json", ".tiktoken"):
        tokenizer = from_asset(wrap("bpe", pack_merges([], "gpt4")))
    if isinstance(tokenizer, ForeignBpeTokenizer) and not tokenizer.merges and suffix == ".json":
        data = _byte_layout(tokenizer)
    elif isinstance(tokenizer, BpeTokenizer | ForeignBpeTokenizer) and suffix == ".json":
        data = tokenizer.original_file()
    elif isinstance(tokenizer, BpeTokenizer | ForeignBpeTokenizer) and suffix == ".tiktoken":
        data = _rank_file(tokenizer)
        notes.append(
            f"a rank file has neither the pattern ({tokenizer.pattern}) nor BOS "
            f"({tokenizer.bos_id}): tell tiktoken"
        )
    elif tokenizer.kind == "sentencepiece" and suffix == ".model":
        data = tokenizer.original_file()
    elif tokenizer.kind == "unigram" and suffix == ".model":
        data = _unigram_model(tokenizer)
    else:
        raise TokenizerError(
            f"a {tokenizer.kind} tokenizer cannot be a {suffix} file with the same ids; bpe can be "
            "a .json or .tiktoken, unigram and sentencepiece a .model"
        )
    write_bytes(path, data)
    return "; ".join(notes)


def _rank_file(tokenizer: BpeTokenizer | ForeignBpeTokenizer) -> bytes:
    """The tokens with their ids as tiktoken ranks; ids of special tokens are left out.

    tiktoken joins whatever makes a token, not one pair of it. That is the same if each token is
    made of its pair when it is alone, for the reason given in `_asset`.
    """
    ids = {token: number for number, token in enumerate(tokenizer.token_bytes) if token}
    pairs = {
        tokenizer.token_bytes[left] + tokenizer.token_bytes[right]: (left, right)
        for left, right in tokenizer.merges
    }
    for token, number in ids.items():
        found = last_pair(token, lambda left, right: ids.get(left + right))
        pair = (ids[found[1]], ids[found[2]]) if found else None
        if pair != pairs.get(token):
            raise TokenizerError(
                f"token {number} ({token!r:.40}) would be merged otherwise by tiktoken, which goes "
                "by the joined bytes; export a .json"
            )
    lines = sorted((number, base64.b64encode(token)) for token, number in ids.items())
    return b"".join(b"%s %d\n" % (token, number) for number, token in lines)


def _byte_layout(tokenizer: ForeignBpeTokenizer) -> bytes:
    """A `pure_byte` file, where the bytes come last and in order."""
    offset = tokenizer.vocab_size - 256
    if tokenizer.token_bytes[offset:] != BYTE_TOKENS[:256]:
        raise TokenizerError("bytes that are not the last 256 ids, in order, have no .json file")
    config = {f"{name.strip('<>')}_id": token for token, name in tokenizer.specials.items() if name}
    config |= {"bos_id": tokenizer.bos_id, "byte_offset": offset, "byte_count": 256}
    values = {"tokenizer_type": "pure_byte", "config": config, "vocab_size": offset + 256}
    return json.dumps(values, indent=2).encode() + b"\n"


def _unigram_model(tokenizer: Tokenizer) -> bytes:
    """The model file with the ids of the tokenizer.

    Its engine has pieces of one byte beyond the vocabulary. Here they change places with the
    byte pieces, which stay reachable for what is no text.
    """
    model = read_model(tokenizer.original_file())
    pieces = list(model.pieces)
    for place in range(tokenizer.vocab_size, len(pieces)):
        byte = pieces[place][1][0]
        pieces[place], pieces[byte] = pieces[byte], pieces[place]
    return model_file(replace(model, pieces=pieces))
