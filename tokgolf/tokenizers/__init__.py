"""Lossless tokenizers: bytes in, ids out, and the same bytes back, for every byte string.

Ids are laid out alike in every kind that is built here: 0..255 are the bytes, 256 is BOS, learned
tokens follow. A tokenizer is its asset (`asset.py` has the format): building one means making an
asset and restoring it. Readers are kept apart from builders (`build*`, `pack*`, `maxasset`,
`orderfree`, `foreign`, `statistics`), which are never needed to score a model. Everything is
imported on first use, so that a byte tokenizer loads neither `tokenizers` nor `sentencepiece`.

A new kind is one file, one line in `_KINDS`, and its name in `asset.KINDS`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from tokgolf.tokenizers.asset import kind_of
from tokgolf.tokenizers.base import BOS_ID, MIN_VOCAB_SIZE, Tokenizer

if TYPE_CHECKING:
    from tokgolf.tokenizers.build import build_ladder, build_tokenizer
    from tokgolf.tokenizers.store import load_tokenizer, save_tokenizer

__all__ = [
    "BOS_ID",
    "MIN_VOCAB_SIZE",
    "Tokenizer",
    "build_ladder",
    "build_tokenizer",
    "from_asset",
    "load_tokenizer",
    "save_tokenizer",
]

_KINDS = {
    "byte": "byte:ByteTokenizer",
    "bpe": "bpe:BpeTokenizer",
    "unigram": "unigram:UnigramTokenizer",
    "sentencepiece": "sentencepiece_bpe:SentencePieceBpeTokenizer",
    "greedy": "greedy:GreedyTokenizer",
    "shortest": "shortest:ShortestTokenizer",
    "foreign": "foreign_bpe:ForeignBpeTokenizer",
}
_LAZY = {
    "build_ladder": "build",
    "build_tokenizer": "build",
    "load_tokenizer": "store",
    "save_tokenizer": "store",
}


def from_asset(data: bytes) -> Tokenizer:
    """Restore the tokenizer, of whatever kind, that `data` is the asset of."""
    module, _, name = _KINDS[kind_of(data)].partition(":")
    kind = getattr(import_module(f"{__name__}.{module}"), name)
    return cast(Tokenizer, kind.from_asset(data))


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
