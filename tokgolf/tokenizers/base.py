"""What every tokenizer is: the abstract `Tokenizer`, and the escape for bytes that are no text.

The engines underneath take text; a tokenizer takes bytes. `encode_runs` bridges the two: valid
UTF-8 goes through the engine, every byte that is not becomes its own byte token.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any, ClassVar, Self

import numpy as np

from tokgolf.errors import TokenizerError
from tokgolf.hashing import BigramBuckets
from tokgolf.tokenizers.asset import extras_of

BOS_ID = 256
MIN_VOCAB_SIZE = 257  # the bytes and BOS
MAX_TOKEN_BYTES = 256
BYTE_TOKENS = [bytes([byte]) for byte in range(256)] + [b""]

Ids = np.ndarray[tuple[int], np.dtype[np.uint16 | np.uint32]]

_NO_IDS = np.array([], np.uint8)
_RUNS = re.compile(r"[\udc80-\udcff]+|[^\udc80-\udcff]+")


class Transform(ABC):
    """A lossless rewriting of text before it is cut into tokens.

    `inverse(forward(data)) == data` for every byte string; `inverse` takes any bytes at all,
    since a model may emit any sequence of marks.
    """

    name: ClassVar[str]

    @abstractmethod
    def forward(self, data: bytes) -> bytes:
        """The text as the tokenizer will see it."""

    @abstractmethod
    def inverse(self, data: bytes) -> bytes:
        """The text again."""

    @abstractmethod
    def live(self, data: bytes) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """For each byte of transformed text, whether it stands for a byte of the text.

        The others are marks; live(data).sum() == len(inverse(data)).
        """


@dataclass(frozen=True, eq=False, repr=False)
class Tokenizer(ABC):
    """A frozen tokenizer, made by `from_asset` and equal in behaviour wherever its asset is.

    `decode(encode(data)) == data` for every byte string, unless `lossless` is False (only a
    foreign tokenizer can be so). `token_bytes[id]` are the bytes of a token, all different but in
    a foreign one; BOS, which `encode` never emits, has none. With a transform they are bytes of
    the transformed text, and `byte_lengths` says how many bytes of the text each token of a
    sequence stands for.
    """

    kind: ClassVar[str]
    _asset: bytes
    token_bytes: list[bytes]
    bos_id: int = field(default=BOS_ID, kw_only=True)
    lossless: bool = field(default=True, kw_only=True)
    extra_modules: tuple[str, ...] = field(default=(), kw_only=True)
    """What restoring this one imported beyond what its kind's module imports: it costs bytes."""

    @classmethod
    @abstractmethod
    def from_asset(cls, data: bytes) -> Self:
        """Restore from asset bytes; anything but an asset of this kind is a `TokenizerError`."""

    @abstractmethod
    def _encode_batch(self, batch: Sequence[bytes]) -> list[Ids]:
        """The ids of each byte string, already transformed."""

    @abstractmethod
    def original_file(self) -> bytes:
        """The same tokenizer as its library's own file, for the ledger's raw accounting."""

    def encode(self, data: bytes) -> Ids:
        """The ids of `data`, without BOS."""
        return self.encode_batch([data])[0]

    def encode_batch(self, batch: Sequence[bytes]) -> list[Ids]:
        """The ids of each byte string, without BOS; faster than one call each."""
        if self.transform:
            batch = [self.transform.forward(data) for data in batch]
        return self._encode_batch(batch)

    def decode(self, ids: Any) -> bytes:
        """The bytes of a sequence or array of ids. Raises `TokenizerError` for an unknown id."""
        data = b"".join(self._pieces(ids))
        return self.transform.inverse(data) if self.transform else data

    def byte_lengths(self, ids: Any) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """How many bytes of the text each id stands for; they sum to len(decode(ids)).

        A mark of a transform stands for none. Raises as `decode`.
        """
        pieces = self._pieces(ids)
        lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
        if self.transform:
            live = self.transform.live(b"".join(pieces))
            before = np.concatenate([[0], np.cumsum(live, dtype=np.int64)])
            lengths = np.diff(before[np.concatenate([[0], np.cumsum(lengths)])])
        return lengths

    def _pieces(self, ids: Any) -> list[bytes]:
        array = np.asarray(ids)
        if array.size == 0:
            return []
        if array.dtype.kind not in "iu" or array.ndim != 1:
            raise TokenizerError(
                f"ids have dtype {array.dtype} and {array.ndim} dimensions; "
                "decode takes one dimension of integers"
            )
        low, high = int(array.min()), int(array.max())
        if low < 0 or high >= self.vocab_size:
            raise TokenizerError(
                f"id {low if low < 0 else high} is outside the vocabulary, "
                f"0 to {self.vocab_size - 1}; decode with the tokenizer that encoded"
            )
        return [self.token_bytes[token] for token in array.tolist()]

    @cached_property
    def transform(self) -> Transform | None:
        """The lossless transform that text goes through first, or None."""
        name = extras_of(self._asset).transform
        if name == "none":
            return None
        # Here, because most tokenizers have no transform, and then its code costs no bytes.
        from tokgolf.tokenizers.transforms import transform_named

        return transform_named(name)

    @property
    def bigram(self) -> BigramBuckets | None:
        """The bucket function for pairs of ids that the asset carries, or None."""
        return extras_of(self._asset).bigram

    def successors(self) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
        """Which ids can follow which in what `encode` emits, as bits; `canonical.py` has how.

        -> (vocab, ceil(vocab / 8)) uint8: id b may follow id a if bit 7 - b % 8 of [a, b // 8]
        is set (as `np.packbits` packs). BOS follows everything and is followed by everything
        that can start a text.
        """
        from tokgolf.tokenizers.canonical import successors

        return successors(self)

    def asset(self) -> bytes:
        """The bytes that restore this tokenizer, and that the ledger charges for it."""
        return self._asset

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the asset, in hex: two tokenizers with the same one encode alike."""
        return sha256(self._asset).hexdigest()

    @property
    def vocab_size(self) -> int:
        """Number of ids, with the 256 bytes and BOS."""
        return len(self.token_bytes)

    @property
    def dtype(self) -> type[np.uint16] | type[np.uint32]:
        """The integer type that `encode` returns."""
        return np.uint16 if self.vocab_size <= 65536 else np.uint32

    def __repr__(self) -> str:
        return f"<{self.kind} tokenizer, {self.vocab_size} tokens, {self.fingerprint[:12]}>"


def text_runs(data: bytes) -> list[str]:
    """Split into maximal runs of valid UTF-8, and of other bytes as lone surrogates.

    b"ab\\xff\\xfec" -> ["ab", "\\udcff\\udcfe", "c"]
    """
    return _RUNS.findall(data.decode("utf-8", "surrogateescape"))


def is_text(run: str) -> bool:
    """Whether a run of `text_runs` is valid text, and not escaped bytes."""
    return not "\udc80" <= run[0] <= "\udcff"


def encode_runs(
    batch: Sequence[bytes],
    encode_texts: Callable[[list[str]], Sequence[Sequence[int] | np.ndarray[Any, Any]]],
    dtype: Any,
) -> list[Ids]:
    """Encode each byte string, its text by `encode_texts` (one call), all else as byte tokens."""
    documents = [_runs_of(data) for data in batch]
    encoded = iter(encode_texts([run for runs in documents for run in runs if is_text(run)]))
    result = []
    for runs in documents:
        parts = [
            np.asarray(next(encoded), dtype)
            if is_text(run)
            else np.frombuffer(run.encode("utf-8", "surrogateescape"), np.uint8).astype(dtype)
            for run in runs
        ]
        # Nearly every document is one run, which is not copied again.
        result.append(
            parts[0] if len(parts) == 1 else np.concatenate([*parts, _NO_IDS], dtype=dtype)
        )
    return result


def _runs_of(data: bytes) -> list[str]:
    """What `text_runs` gives, at once for text without invalid bytes."""
    try:
        return [data.decode("utf-8")] if data else []
    except UnicodeDecodeError:
        return text_runs(data)
