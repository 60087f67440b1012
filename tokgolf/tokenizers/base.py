"""What every tokenizer is: the abstract `Tokenizer`, and the escape for bytes that are no text.

The engines underneath take text; a tokenizer takes bytes. `encode_runs` bridges the two: valid
UTF-8 goes through the engine, every byte that is not becomes its own byte token.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, ClassVar, Self

import numpy as np

from tokgolf.errors import TokenizerError

BOS_ID = 256
MIN_VOCAB_SIZE = 257  # the bytes and BOS
MAX_TOKEN_BYTES = 256
BYTE_TOKENS = [bytes([byte]) for byte in range(256)] + [b""]

Ids = np.ndarray[tuple[int], np.dtype[np.uint16 | np.uint32]]

_RUNS = re.compile(r"[\udc80-\udcff]+|[^\udc80-\udcff]+")


@dataclass(frozen=True, eq=False, repr=False)
class Tokenizer(ABC):
    """A frozen tokenizer, made by `from_asset` and equal in behaviour wherever its asset is.

    `decode(encode(data)) == data` for every byte string. `token_bytes[id]` are the bytes of a
    token, all different; BOS, which `encode` never emits, has none.
    """

    kind: ClassVar[str]
    bos_id: ClassVar[int] = BOS_ID
    _asset: bytes
    token_bytes: list[bytes]

    @classmethod
    @abstractmethod
    def from_asset(cls, data: bytes) -> Self:
        """Restore from asset bytes; anything but an asset of this kind is a `TokenizerError`."""

    @abstractmethod
    def encode_batch(self, batch: Sequence[bytes]) -> list[Ids]:
        """The ids of each byte string, without BOS; faster than one call each."""

    @abstractmethod
    def original_file(self) -> bytes:
        """The same tokenizer as its library's own file, for the ledger's raw accounting."""

    def encode(self, data: bytes) -> Ids:
        """The ids of `data`, without BOS."""
        return self.encode_batch([data])[0]

    def decode(self, ids: Any) -> bytes:
        """The bytes of a sequence or array of ids. Raises `TokenizerError` for an unknown id."""
        array = np.asarray(ids)
        if array.size == 0:
            return b""
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
        return b"".join([self.token_bytes[token] for token in array.tolist()])

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
    batch: Sequence[bytes], encode_texts: Callable[[list[str]], list[list[int]]], dtype: Any
) -> list[Ids]:
    """Encode each byte string, its text by `encode_texts` (one call), all else as byte tokens."""
    documents = [text_runs(data) for data in batch]
    encoded = iter(encode_texts([run for runs in documents for run in runs if is_text(run)]))
    result = []
    for runs in documents:
        ids: list[int] = []
        for run in runs:
            ids += next(encoded) if is_text(run) else run.encode("utf-8", "surrogateescape")
        result.append(np.array(ids, dtype=dtype))
    return result
