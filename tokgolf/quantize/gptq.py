"""GPTQ: round a matrix column by column, each error corrected in the columns still to come.

What counts is not the error of the weights but of the layer's outputs on real inputs,
tr(dW H dW^T) with H = X^T X / n. Source: Frantar et al. 2022 (arXiv 2210.17323); the challenge's
records use it with the same settings (damping 1 %, columns by falling diagonal, blocks of 128).
"""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tokgolf.heads.base import LinearHead
from tokgolf.model import LanguageModel

DAMPING = 0.01
BLOCK = 128


def round_columns(
    weights: NDArray[np.float64],
    hessian: NDArray[np.float64],
    step: NDArray[np.float64],
    largest: int,
) -> NDArray[np.int8]:
    """Codes of `weights` for the given row steps that keep the outputs on real inputs.

    weights (rows, columns), hessian (columns, columns), step (rows,) -> codes (rows, columns)
    """
    columns = weights.shape[1]
    damping = DAMPING * max(float(hessian.diagonal().mean()), 1e-12)
    order = np.argsort(-hessian.diagonal(), kind="stable")
    damped = hessian[np.ix_(order, order)] + damping * np.eye(columns)
    # Upper Cholesky factor of the inverse: row j says how to spread column j's error.
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    rest = weights[:, order].copy()
    codes = np.zeros(weights.shape, dtype=np.int8)
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        errors = np.zeros((len(weights), end - start))
        for j in range(start, end):
            code = np.rint(rest[:, j] / step).clip(-largest, largest)
            error = (rest[:, j] - code * step) / upper[j, j]
            rest[:, j + 1 : end] -= np.outer(error, upper[j, j + 1 : end])
            errors[:, j - start] = error
            codes[:, order[j]] = code
        rest[:, end:] -= errors @ upper[start:end, end:]
    return codes


@torch.no_grad()
def input_hessians(
    model: LanguageModel, batches: Iterable[Tensor]
) -> dict[str, NDArray[np.float64]]:
    """X^T X / n of the inputs of every linear layer, and of the classifier where the head is one
    softmax whose own matrix is one stored tensor, by the tensor's full name. `batches` are tokens
    (rows, time)."""
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
        if isinstance(module, nn.Linear)
    ]
    head = model.head
    linear = head if isinstance(head, LinearHead) else None
    matrix = None if linear is None else linear.matrix()
    classifier = next((s.name for s in model.stored() if s.tensor is matrix), None)
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
