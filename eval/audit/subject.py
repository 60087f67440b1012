"""A tokenizer as an audit sees it: what it writes, what each token is worth, what it gives back.

Unlike `tokgolf.tokenizers.Tokenizer` this keeps the pieces as the vocabulary has them, with
U+2581, and a table of bytes that may be somebody else's; and it may be a vocabulary that tokgolf
can read but not encode with exactly (TokenMonster).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokgolf.eval.official import ByteTable, byte_table
from tokgolf.tokenizers import Tokenizer
from tokgolf.tokenizers.base import is_text, text_runs
from tokgolf.tokenizers.pack_sentencepiece import read_model
from tokgolf.tokenizers.sentencepiece_bpe import (
    BYTE,
    CONTROL,
    SPACE,
    UNKNOWN,
    UNUSED,
    SentencePieceBpeTokenizer,
)
from tokgolf.tokenizers.transforms import ALLCAPS, CAPNEXT, ESC, TITLE, CapsV1

Lengths = NDArray[np.int64]
# CaseOps, the case marks of the challenge's records: U+E001 to U+E004 for our bytes.
MARKS = {
    mark: character.encode()
    for mark, character in zip(
        (TITLE, ALLCAPS, CAPNEXT, ESC), ("\ue001", "\ue002", "\ue003", "\ue004"), strict=True
    )
}


@dataclass(frozen=True, eq=False, kw_only=True)
class Subject:
    """`sizes` are the bytes of text that each token stands for, in the middle of a text; `table`
    what is counted for it. `text` is what the tokens of a document should decode to."""

    kind: str
    pieces: list[bytes]
    sizes: Lengths
    table: ByteTable
    bos_id: int
    unknown: int = -1
    byte_pieces: frozenset[int] = frozenset()
    """The ids of byte pieces, of a model that has such."""
    escaped_space: tuple[int, ...] = ()
    """The byte pieces that a lone space is written as, where it has no piece."""
    case_marks: bool = False
    """Whether the vocabulary is of text with case marks."""
    encode: Callable[[Sequence[bytes]], list[Any]]
    decode: Callable[[Any], bytes]
    text: Callable[[bytes], bytes]
    counted: Callable[[Any], int] | None = None
    """Bytes of a document's ids, where they depend on more than two tokens."""
    exact: bool = True
    """Whether `encode` is what the tokenizer does, or near it; else nothing can be measured."""
    same_ids: bool = True
    """Whether `encode` writes the very ids that the tokenizer does, or only near ones."""
    decodes: bool = True
    """Whether `decode` gives the text of any ids, or only of those that `encode` just wrote."""
    stretches: bool = True
    """Whether its pieces are stretches of the text, so that their bytes can be counted."""
    text_only: bool = False
    """Whether it takes nothing but UTF-8."""
    facts: dict[str, Any] = field(default_factory=dict)


def subject_of(tokenizer: Tokenizer) -> Subject:
    """A tokenizer of tokgolf, imported ones included, with the challenge's table for it."""
    facts = {
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "lossless": tokenizer.lossless,
        "fingerprint": tokenizer.fingerprint,
    }
    if isinstance(tokenizer, SentencePieceBpeTokenizer):
        return _sentencepiece(tokenizer, facts | {"losses": "; ".join(tokenizer.losses)})
    sizes = np.array([len(piece) for piece in tokenizer.token_bytes], np.int64)
    if transform := tokenizer.transform:
        sizes = np.array([int(transform.live(p).sum()) for p in tokenizer.token_bytes], np.int64)
    return Subject(
        kind=tokenizer.kind,
        pieces=tokenizer.token_bytes,
        sizes=sizes,
        table=byte_table(tokenizer),
        bos_id=tokenizer.bos_id,
        encode=tokenizer.encode_batch,
        decode=tokenizer.decode,
        text=lambda data: data,
        case_marks=tokenizer.transform is not None,
        counted=lambda ids: int(tokenizer.byte_lengths(ids).sum()),
        facts=facts,
    )


def _sentencepiece(tokenizer: SentencePieceBpeTokenizer, facts: dict[str, Any]) -> Subject:
    import sentencepiece

    file = tokenizer.original_file()
    model, engine = read_model(file), sentencepiece.SentencePieceProcessor(model_proto=file)
    pieces = [piece for _, piece, _ in model.pieces]
    sorts = [sort for sort, _, _ in model.pieces]
    words = {p for s, p in zip(sorts, pieces, strict=True) if s not in (BYTE, CONTROL, UNUSED)}
    escapes = "escape_whitespaces" in model.flags
    marked = words >= {*MARKS.values()}
    sizes = np.zeros(len(pieces), np.int64)
    for token, (sort, piece) in enumerate(zip(sorts, pieces, strict=True)):
        if sort == BYTE:
            sizes[token] = 1
        elif sort not in (CONTROL, UNKNOWN, UNUSED):
            text = piece.replace(SPACE, b" ") if escapes else piece
            for character in MARKS.values() if marked else ():
                text = text.replace(character, b"")
            sizes[token] = len(text)
    byte_ids = [token for token, sort in enumerate(sorts) if sort == BYTE]
    lone = escapes and bool(byte_ids) and SPACE not in words
    prefix = "add_dummy_prefix" in model.flags
    suffix = prefix and "treat_whitespace_as_suffix" in model.flags

    def without_dummy(text: bytes) -> bytes:
        if suffix:
            return text.removesuffix(b" ")
        return text.removeprefix(b" ") if prefix else text

    def normal(data: bytes) -> bytes:
        parts = [
            engine.normalize(run).encode().replace(SPACE, b" ")
            if is_text(run)
            else run.encode("utf-8", "surrogateescape")
            for run in text_runs(data)
        ]
        return without_dummy(b"".join(parts))

    return Subject(
        kind="sentencepiece",
        pieces=pieces,
        sizes=sizes,
        table=byte_table(tokenizer),
        bos_id=tokenizer.bos_id,
        unknown=sorts.index(UNKNOWN) if not byte_ids else -1,
        byte_pieces=frozenset(byte_ids),
        escaped_space=tuple(byte_ids[byte] for byte in SPACE) if lone else (),
        case_marks=marked,
        encode=lambda batch: tokenizer.encode_batch([mark(d) for d in batch] if marked else batch),
        decode=lambda ids: (
            unmark(tokenizer.decode(ids)) if marked else without_dummy(tokenizer.decode(ids))
        ),
        text=normal,
        facts=facts | {"case_marks": marked},
    )


def mark(data: bytes) -> bytes:
    """Text with CaseOps marks, as the challenge's records write it; what is no UTF-8 as it is.

    b"The NASA" -> "\\ue001the \\ue002nasa" in UTF-8
    """
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return data
    for character in reversed(MARKS.values()):  # ESC, the last, first
        data = data.replace(character, MARKS[ESC] + character)
    data = CapsV1().forward(data)
    for byte, character in MARKS.items():
        data = data.replace(byte, character)
    return data


def unmark(data: bytes) -> bytes:
    """The text of marked text; unmark(mark(data)) == data."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return data
    for byte, character in MARKS.items():
        data = data.replace(character, byte)
    data = CapsV1().inverse(data)
    for byte, character in MARKS.items():
        data = data.replace(byte, character)
    return data
