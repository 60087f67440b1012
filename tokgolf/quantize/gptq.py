"""What GPTQ needs to know of a layer: the second moments of its inputs on real tokens.

What counts is not the error of the weights but of the layer's outputs on real inputs,
tr(dW H dW^T) with H = X^T X / n. Source: Frantar et al. 2022 (arXiv 2210.17323). `trellis` chooses
integers by it.
"""

from collections.abc import Collection, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tokgolf.heads.base import LinearHead
from tokgolf.model import LanguageModel


@torch.no_grad()
def input_hessians(
    model: LanguageModel, batches: Iterable[Tensor], only: Collection[str] | None = None
) -> dict[str, NDArray[np.float64]]:
    """X^T X / n of the inputs of every linear layer, and of the classifier where the head is one
    softmax whose own matrix is one stored tensor, by the tensor's full name; `only` of some,
    if that is said. `batches` are tokens (rows, time)."""
    sums: dict[str, Tensor] = {}
    count = 0

    def add(name: str, inputs: Tensor) -> None:
        x = inputs.reshape(-1, inputs.size(-1)).double()
        sums[name] = sums.get(name, 0) + x.T @ x

    hooks = [
        module.register_forward_pre_hook(
            lambda _, inputs, name=f"{name}.weight": add(name, inputs[0])
        )
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and (only is None or f"{name}.weight" in only)
    ]
    head = model.head
    linear = head if isinstance(head, LinearHead) else None
    matrix = None if linear is None else linear.matrix()
    classifier = next((s.name for s in model.stored() if s.tensor is matrix), None)
    if only is not None and classifier not in only:
        classifier = None
    try:
        device = next(model.parameters()).device
        for tokens in (batch.to(device) for batch in batches):
            hidden = model.hidden(tokens).flatten(0, 1)
            if linear is not None and classifier is not None:
                add(classifier, linear.features(hidden, tokens.flatten()))
            count += tokens.numel()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: (total / count).cpu().numpy() for name, total in sums.items()}
