"""The byte tokenizer: every byte is its own id, nothing is learned. Numpy only."""

from collections.abc import Sequence
from typing import ClassVar, Self, final

import numpy as np

from tokgolf.errors import TokenizerError
from tokgolf.tokenizers.asset import unwrap
from tokgolf.tokenizers.base import BYTE_TOKENS, Ids, Tokenizer


@final
class ByteTokenizer(Tokenizer):
    """257 ids: the bytes and BOS."""

    kind: ClassVar[str] = "byte"

    @classmethod
    def from_asset(cls, data: bytes) -> Self:
        """Restore from an asset, whose body must be empty."""
        body = unwrap("byte", data)
        if body:
            raise TokenizerError(
                f"byte tokenizer asset has a body of {len(body)} bytes, 0 expected; build it again"
            )
        return cls(data, list(BYTE_TOKENS))

    def _encode_batch(self, batch: Sequence[bytes]) -> list[Ids]:
        """The bytes of each string as ids."""
        return [np.frombuffer(data, np.uint8).astype(self.dtype) for data in batch]

    def original_file(self) -> bytes:
        """The asset: no library has a file for this."""
        return self.asset()
