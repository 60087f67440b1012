"""Fewest tokens: a set of tokens without an order, and of all ways to cut the shortest.

Each piece that the split pattern cuts becomes the fewest tokens that spell it (PathPiece, Schmidt
et al. 2024). Of several such ways the one with the longest last token is taken, then the longest
before it, and so on back to the start. Unlike BPE it needs no merges, so the asset is the set
alone.

The engine is the `tokenizers` library's Unigram where every token has the score -1. Sums of -1
are exact, so that ties are ties, and among these it keeps the first way found to each place:
the longest token that ends there. Its work is at most MAX_TOKEN_BYTES steps a byte.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, final

from tokgolf.tokenizers.base import Ids, Tokenizer, encode_runs
from tokgolf.tokenizers.bpe import import_library
from tokgolf.tokenizers.tokenset import make_engine, read_tokens, token_names


@final
@dataclass(frozen=True, eq=False, repr=False)
class ShortestTokenizer(Tokenizer):
    """A set of tokens with its engine."""

    kind: ClassVar[str] = "shortest"
    pattern: str
    _engine: Any

    @classmethod
    def from_asset(cls, data: bytes) -> Self:
        """Restore from an asset, checking its pattern and its tokens."""
        pattern, tokens = read_tokens("shortest", data)
        model = import_library().models.Unigram([(name, -1.0) for name in token_names(tokens)])
        return cls(data, tokens, pattern, make_engine(model, pattern))

    def _encode_batch(self, batch: Sequence[bytes]) -> list[Ids]:
        """Cut the text of each byte string into the fewest tokens."""
        return encode_runs(batch, self._encode_texts, self.dtype)

    def _encode_texts(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._engine.encode_batch_fast(texts)]

    def original_file(self) -> bytes:
        """The same tokenizer as `tokenizer.json`, a Unigram model of equal scores."""
        text: str = self._engine.to_str()
        return text.encode("utf-8")
