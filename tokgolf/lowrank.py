"""What a block of the trunk adds to its matrices when it is applied again, of low rank.

Apart from the model, which imports it only for a trunk that has such passes: no other artifact pays
for it. Source: Relaxed Recursive Transformers (Bae et al. 2024, arXiv 2410.20672).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


class LowRank(nn.Module):
    """out @ into for each matrix of a block, zero at first.

    Every pass after the first has its own, and those beyond the trained ones have the last.
    """

    def __init__(self, block: nn.Module, passes: int, rank: int) -> None:
        super().__init__()
        shapes = [weight.shape for weight in weights_of(block).values()] * passes
        self.into = nn.ParameterList(torch.randn(rank, n) / n**0.5 for _, n in shapes)
        self.out = nn.ParameterList(torch.zeros(n, rank) for n, _ in shapes)

    def forward(self, block: nn.Module, again: int, given: tuple[Any, ...]) -> Tensor:
        """The block on what it is `given`, after it has been applied `again` times, from 1."""
        weights = weights_of(block)
        start = min(again * len(weights), len(self.out)) - len(weights)
        changed = {
            name: weight + self.out[start + i] @ self.into[start + i]
            for i, (name, weight) in enumerate(weights.items())
        }
        return functional_call(block, changed, given)  # type: ignore[no-any-return]


def weights_of(block: nn.Module) -> dict[str, Tensor]:
    """Weights of a block's linear maps by name; not by type, as others may stand in for them."""
    linear = ((name, part) for name, part in block.named_modules() if isinstance(part, nn.Linear))
    return {f"{name}.weight": part.weight for name, part in linear}
