"""What benchmarks of training share: the loop that they compare with, its texts, its clock's wait.

No script: it has nothing to run.
"""

import sysconfig
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tokgolf.model import LanguageModel


class Plain:
    """A loop as one writes it: all logits and F.cross_entropy, AdamW, and Muon for matrices."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        weights = [p for n, p in model.trunk.named_parameters() if n.endswith(".weight")]
        kept = {id(p) for p in weights}
        others = [p for p in model.parameters() if id(p) not in kept]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, lr=0.04, betas=(0.9, 0.95), weight_decay=0.0),
            torch.optim.Muon(weights, lr=0.04, momentum=0.95, weight_decay=0.0),
        ]

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The sum over all positions.  # (batch, time), same -> ()"""
        hidden = self.model.hidden(tokens).flatten(0, 1)
        logits = self.model.head.logits(hidden, tokens.flatten())
        return F.cross_entropy(logits.float(), targets.flatten(), reduction="sum")

    def update(self) -> None:
        """Step, then clear the gradients."""
        for optimizer in self.optimizers:
            optimizer.step()
        self.model.zero_grad(set_to_none=True)


@cache
def sources(files: int = 100) -> tuple[bytes, ...]:
    """Sources of the standard library, the first files by name."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return tuple(path.read_bytes() for path in sorted(root.glob("*.py"))[:files])


def synchronize(device: torch.device) -> None:
    """Wait for all that a GPU was given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
