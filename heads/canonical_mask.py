"""`canonical-mask`: an add-on for the output, no probability for what the tokenizer never writes.

Of most tokenizers some pairs of ids never stand side by side: their bytes would have been cut in
another way. Which ones follows from the tokenizer alone (`Tokenizer.successors`), so the mask
costs no stored bytes but for the code that finds them, and the distribution is normalised over
what can occur. It is held as bits, V^2 / 8 bytes, and unpacked for one chunk at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokgolf.errors import ConfigError
from tokgolf.heads.base import AddOn, AddOnConfig, Extra, HeadShape, ParamGroup, Stored

LARGEST = 1 << 16  # 512 MiB of bits


@dataclass(frozen=True, kw_only=True)
class CanonicalMaskConfig(AddOnConfig):
    """Options of the canonical mask: none."""

    name: ClassVar[str] = "canonical-mask"

    def num_params(self, shape: HeadShape) -> int:
        return 0

    def flops(self, shape: HeadShape) -> int:
        return 0

    def build(self, shape: HeadShape, counts: Tensor | None) -> AddOn:
        if shape.successors is None:
            raise ConfigError("canonical-mask needs a tokenizer, and this head was given none")
        if shape.vocab_size > LARGEST:
            raise ConfigError(
                f"canonical-mask holds a bit for each pair of tokens; {shape.vocab_size:,} tokens "
                f"are over its limit of {LARGEST:,}"
            )
        return CanonicalMask(torch.from_numpy(shape.successors()))


class CanonicalMask(AddOn):
    """z = -inf where a pair cannot be."""

    needs = ("tokgolf.tokenizers.canonical",)
    successors: Tensor

    def __init__(self, successors: Tensor) -> None:
        super().__init__()
        self.register_buffer("successors", successors, persistent=False)

    def embed(self, tokens: Tensor, prev: Tensor) -> None:
        return None

    def extra(self, prev: Tensor) -> Extra:
        return Extra(successors=self.successors)

    def stored(self) -> Iterator[Stored]:
        return iter(())

    def param_groups(self) -> Iterator[ParamGroup]:
        return iter(())
