"""Greedy longest match: a set of tokens without an order, left to right, always the longest.

Within each piece that the split pattern cuts, the longest token that the rest starts with is
taken, or else one byte (as BERT's WordPiece does, Devlin et al. 2019; on BPE's tokens, Uzan et
al. 2024). Unlike BPE it needs no merges, so the asset is the set alone.

The engine is the `tokenizers` library's WordPiece. It tries every length of what is left of a
word, hence is quadratic; pieces over MAX_ENGINE_BYTES go through `longest_matches` instead, with
the same result and at most MAX_TOKEN_BYTES look-ups a token.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, final

from tokgolf.tokenizers.base import BOS_ID, Ids, Tokenizer, encode_runs
from tokgolf.tokenizers.bpe import import_library
from tokgolf.tokenizers.tokenset import BOS_NAME, make_engine, read_tokens, token_names

# Of 308,466 pieces of web text 8 are longer. Words of just this size without any token take the
# engine a fourth of its normal speed; at 100, WordPiece's own default, a fourteenth.
MAX_ENGINE_BYTES = 32


@final
@dataclass(frozen=True, eq=False, repr=False)
class GreedyTokenizer(Tokenizer):
    """A set of tokens with its engine; `_ids` and `_lengths` are what `longest_matches` takes."""

    kind: ClassVar[str] = "greedy"
    pattern: str
    _ids: dict[str, int]
    _lengths: dict[str, list[int]]
    _engine: Any

    @classmethod
    def from_asset(cls, data: bytes) -> Self:
        """Restore from an asset, checking its pattern and its tokens."""
        pattern, tokens = read_tokens("greedy", data)
        ids = {name: token for token, name in enumerate(token_names(tokens))}
        model = import_library().models.WordPiece(
            vocab=ids,
            unk_token=BOS_NAME,  # what a piece over the limit becomes
            continuing_subword_prefix="",
            max_input_chars_per_word=MAX_ENGINE_BYTES,
        )
        return cls(data, tokens, pattern, ids, lengths_by_start(ids), make_engine(model, pattern))

    def _encode_batch(self, batch: Sequence[bytes]) -> list[Ids]:
        """Cut the text of each byte string into longest matches."""
        return encode_runs(batch, self._encode_texts, self.dtype)

    def _encode_texts(self, texts: list[str]) -> list[list[int]]:
        encoded = [encoding.ids for encoding in self._engine.encode_batch_fast(texts)]
        return [
            self._fill(ids, text) if BOS_ID in ids else ids
            for ids, text in zip(encoded, texts, strict=True)
        ]

    def _fill(self, ids: list[int], text: str) -> list[int]:
        """The ids with each BOS, which stands for one long piece of `text`, replaced by its ids."""
        pieces = (piece for piece, _ in self._engine.pre_tokenizer.pre_tokenize_str(text))
        long = (piece for piece in pieces if len(piece) > MAX_ENGINE_BYTES)
        filled: list[int] = []
        for token in ids:
            if token == BOS_ID:
                filled += longest_matches(next(long), self._ids, self._lengths)
            else:
                filled.append(token)
        return filled

    def original_file(self) -> bytes:
        """The same tokenizer as `tokenizer.json`, a WordPiece model without a limit on words."""
        file = json.loads(self._engine.to_str())
        file["model"]["max_input_chars_per_word"] = (1 << 32) - 1
        return json.dumps(file, ensure_ascii=False).encode("utf-8")


def lengths_by_start(ids: dict[str, int]) -> dict[str, list[int]]:
    """The lengths of the names that start with the same two characters, longest first.

    {"a": 97, "ab": 257, "abcd": 258} -> {"ab": [4, 2]}
    """
    lengths: dict[str, set[int]] = {}
    for name in ids:
        if len(name) > 1:
            lengths.setdefault(name[:2], set()).add(len(name))
    return {start: sorted(found, reverse=True) for start, found in lengths.items()}


def longest_matches(word: str, ids: dict[str, int], lengths: dict[str, list[int]]) -> list[int]:
    """The ids of `word`, from its start the longest name each time.

    word="abcab", ids={"a": 97, "b": 98, "c": 99, "ab": 257, "abc": 258} -> [258, 257]
    """
    result = []
    place = 0
    while place < len(word):
        for length in lengths.get(word[place : place + 2], ()):
            token = ids.get(word[place : place + length])
            if token is not None:  # near the end of the word this may be a shorter name
                break
        else:
            token, length = ids[word[place]], 1
        result.append(token)
        place += length
    return result
