"""A `tokenizer.json` that tokgolf cannot import, run by its own library in a process of its own.

Normalisers, WordPiece, Unigram, spaces as U+2581: what comes back of a text is seen whatever the
file does. Bytes are counted by the challenge's rule where pieces are stretches of the text (BPE
and Unigram, as bytes or with U+2581); elsewhere no table is looked at. Text only: bytes that are
no UTF-8 are not put to it.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from tokgolf.errors import TokenizerError
from tokgolf.eval.audit.subject import Subject
from tokgolf.eval.official import ByteTable
from tokgolf.tokenizers.bpe import byte_names
from tokgolf.tokenizers.isolated import call_isolated
from tokgolf.tokenizers.sentencepiece_bpe import SPACE

_BYTE_PIECES = {f"<0x{byte:02X}>": byte for byte in range(256)}


def library_subject(data: bytes) -> Subject:
    """The tokenizer in the bytes of a `tokenizer.json`. Raises `TokenizerError`."""
    run = _Library(data)
    facts = run.ask([], describe=True)
    names: dict[str, int] = facts["vocabulary"]
    pieces = [b""] * (max(names.values(), default=-1) + 1)
    byte_of = {name: byte for byte, name in enumerate(byte_names())}
    fallback = {names[name] for name in _BYTE_PIECES if name in names} if facts["bytes"] else set()
    special = {*facts["special"], facts["unknown"]}
    for name, token in names.items():
        mapped = facts["byte_level"] and byte_of.keys() >= set(name)
        pieces[token] = bytes(byte_of[c] for c in name) if mapped else name.encode()
    base = np.zeros(len(pieces), np.int64)
    sizes, lead = base.copy(), base > 0
    for token, piece in enumerate(pieces):
        if token in fallback:
            base[token] = sizes[token] = 1
        elif token not in special and piece:
            lead[token] = piece.startswith(SPACE)
            base[token] = len(piece.removeprefix(SPACE))
            sizes[token] = len(piece.replace(SPACE, b" "))
    kind = f"{facts['model']} of a tokenizer.json"
    rules = ", ".join(facts["rules"]) or "none"
    lone = fallback and SPACE.decode() not in names and facts["model"] in ("BPE", "Unigram")
    return Subject(
        kind=kind,
        pieces=pieces,
        sizes=sizes,
        table=ByteTable(base=base, lead=lead, boundary=base + lead == 0),
        bos_id=-1,
        unknown=-1 if fallback else facts["unknown"],
        byte_pieces=frozenset(fallback),
        escaped_space=tuple(names[f"<0x{byte:02X}>"] for byte in SPACE) if lone else (),
        encode=run.encode,
        decode=lambda ids: run.decoded[tuple(ids)],
        text=lambda data: run.texts[data],
        decodes=False,
        stretches=facts["model"] in ("BPE", "Unigram"),
        text_only=True,
        facts={"kind": kind, "vocab_size": len(names), "normalizer": rules},
    )


class _Library:
    """The child, and what it said of the last batch: by ids what they decode to, by document its
    normalised text."""

    def __init__(self, data: bytes) -> None:
        self.file = data.decode("utf-8", "replace")
        self.decoded: dict[tuple[int, ...], bytes] = {}
        self.texts: dict[bytes, bytes] = {}

    def ask(self, texts: list[str], *, describe: bool) -> dict[str, Any]:
        question = json.dumps({"file": self.file, "texts": texts, "describe": describe})
        answer: dict[str, Any] = json.loads(
            call_isolated(f"{__name__}:answer", question.encode("utf-8"))
        )
        return answer

    def encode(self, batch: Sequence[bytes]) -> list[Any]:
        told = self.ask([data.decode("utf-8", "replace") for data in batch], describe=False)
        self.decoded = {
            tuple(ids): back.encode("utf-8", "replace")
            for ids, back in zip(told["ids"], told["decoded"], strict=True)
        }
        self.texts = {
            data: text.encode("utf-8", "replace").replace(SPACE, b" ")
            for data, text in zip(batch, told["texts"], strict=True)
        }
        return list(told["ids"])


def answer(question: bytes) -> bytes:
    """What the child process does: ids, what they decode to, normalised texts; on request what
    kind of file it is."""
    import tokenizers

    asked = json.loads(question)
    try:
        engine = tokenizers.Tokenizer.from_str(asked["file"])
    except Exception as error:  # the library raises nothing narrower
        reason = " ".join(str(error).split())[:200]
        raise TokenizerError(f"no sound tokenizer.json ({reason})") from error
    engine.no_truncation()
    engine.no_padding()
    encoded = engine.encode_batch(asked["texts"], add_special_tokens=False)
    ids = [each.ids for each in encoded]
    decoded = engine.decode_batch(ids, skip_special_tokens=False)
    rules = engine.normalizer
    texts = [rules.normalize_str(text) if rules else text for text in asked["texts"]]
    if "Prepend" in _kinds(json.loads(asked["file"]).get("normalizer")):
        texts = [text.removeprefix(SPACE.decode()) for text in texts]
    told: dict[str, Any] = {"ids": ids, "decoded": decoded, "texts": texts}
    if asked["describe"]:
        told |= _described(engine, asked["file"])
    return json.dumps(told).encode()


def _described(engine: Any, file: str) -> dict[str, Any]:
    values = json.loads(file)
    model = values["model"]
    vocabulary = engine.get_vocab(with_added_tokens=True)
    added = values.get("added_tokens") or []
    unknown = model.get("unk_token")
    if model.get("unk_id") is not None:  # Unigram gives its place
        unknown = model["vocab"][model["unk_id"]][0]
    return {
        "model": str(model.get("type")),
        "vocabulary": vocabulary,
        "special": [token["id"] for token in added if token.get("special")],
        "unknown": vocabulary.get(unknown, -1),
        "bytes": bool(model.get("byte_fallback")),
        "byte_level": '"ByteLevel"'
        in json.dumps([values.get("pre_tokenizer"), values.get("decoder")]),
        "rules": _kinds(values.get("normalizer")),
    }


def _kinds(rule: Any) -> list[str]:
    """{"type": "Sequence", "normalizers": [{"type": "NFKC"}]} -> ["NFKC"]"""
    if not isinstance(rule, dict):
        return []
    below = rule.get("normalizers")
    return [kind for each in below for kind in _kinds(each)] if below else [str(rule.get("type"))]
