"""The models of `official_support`, and those that only an audit has to do with."""

import functools
import io
from dataclasses import replace

import official_support
import sentencepiece
from official_support import built, documents, model

from tokgolf.eval.audit.subject import MARKS, mark
from tokgolf.tokenizers import Tokenizer, from_asset
from tokgolf.tokenizers.foreign import foreign_asset
from tokgolf.tokenizers.pack_sentencepiece import read_model
from tokgolf.tokenizers.sentencepiece_bpe import SPACE, model_file

__all__ = ["built", "documents", "imported"]


@functools.cache
def imported(variant: str = "official") -> Tokenizer:
    """A variant of `official_support`; "caseops", on text with case marks; or "no space" with
    the name of a variant, which is that one without a piece for a lone space."""
    if variant == "caseops":
        return from_asset(foreign_asset(_caseops()))
    kind, _, base = variant.partition(": ")
    if kind != "no space":
        return official_support.imported(variant)
    original = read_model(model(base))  # nothing can make the trainer leave U+2581 out
    pieces = [
        (sort, "\ue010".encode() if piece == SPACE else piece, score)
        for sort, piece, score in original.pieces
    ]
    return from_asset(foreign_asset(model_file(replace(original, pieces=pieces))))


def _caseops() -> bytes:
    file = io.BytesIO()
    lines = [line for text in documents() for line in mark(text).decode().splitlines() if line]
    marks = {"user_defined_symbols": [character.decode() for character in MARKS.values()]}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=file, **(official_support._OFFICIAL | marks)
    )
    return file.getvalue()
