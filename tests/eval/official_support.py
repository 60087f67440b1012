"""Small SentencePiece models for the official metric and the audit, trained once each."""

import functools
import io
import pydoc_data.topics
from typing import Any

import sentencepiece

from tokgolf.tokenizers import Tokenizer, build_tokenizer, from_asset
from tokgolf.tokenizers.foreign import foreign_asset

# The challenge's trainer, then what each variant changes of it.
_OFFICIAL: dict[str, Any] = {
    "model_type": "bpe",
    "vocab_size": 600,
    "hard_vocab_limit": False,
    "byte_fallback": True,
    "character_coverage": 0.999,
    "split_digits": True,
    "normalization_rule_name": "nmt_nfkc",
    "add_dummy_prefix": False,
    "pad_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "unk_id": 3,
    "num_threads": 1,
    "minloglevel": 2,
}
_IDENTITY = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
VARIANTS: dict[str, dict[str, Any]] = {
    "official": {},
    "identity": _IDENTITY,
    "interior": {"split_by_whitespace": False, "vocab_size": 900},
    "suffix": {"treat_whitespace_as_suffix": True},
    "no bytes": {"byte_fallback": False, "character_coverage": 0.98},
    "dummy prefix": {"add_dummy_prefix": True},
    "unigram": {"model_type": "unigram"},
    "casefold": {"normalization_rule_name": "nmt_nfkc_cf"},
}


@functools.cache
def documents() -> tuple[bytes, ...]:
    """About 60 kB of Python's own documentation with what normalising changes, as documents."""
    topics = [text.encode() for _, text in sorted(pydoc_data.topics.topics.items())]
    return (*topics[:12], "\ufb01ne  \u3000caf\u00e9 \u2026\r\n\tend ".encode(), b"A", b"")


@functools.cache
def model(variant: str = "official") -> bytes:
    """The `.model` file of a variant."""
    file = io.BytesIO()
    lines = [line for text in documents() for line in text.decode().splitlines() if line]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=file, **(_OFFICIAL | VARIANTS[variant])
    )
    return file.getvalue()


@functools.cache
def imported(variant: str = "official") -> Tokenizer:
    """The tokenizer of a variant, imported in this process."""
    return from_asset(foreign_asset(model(variant)))


@functools.cache
def built(kind: str) -> Tokenizer:
    """One of our own, lossless."""
    return build_tokenizer(kind, documents(), None if kind == "byte" else 500)
