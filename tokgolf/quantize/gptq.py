"""What rounding needs to know of a layer: second moments of its inputs and of gradients behind it.

What counts is not the error of the weights but of the layer's outputs on real inputs,
tr(dW H dW^T) with H = X^T X / n. Source: Frantar et al. 2022 (arXiv 2210.17323). `trellis` chooses
integers by it. And not all outputs count alike: the gradients say how much.
"""

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tokgolf.device import in_one_order
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


def output_gradients(
    model: LanguageModel, batches: Iterable[Tensor]
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.float64]]:
    """How much the predictions change with what comes out: E[g^2] of every output of every linear
    layer of the trunk, by the tensor's full name (rows,), and E[g g^T] of the embedded tokens
    (d_model, d_model).

    g is the gradient of the log-probability of tokens that are drawn from the model itself, whose
    second moments are the curvature of the KL divergence (Fisher's information). `batches` are
    tokens (rows, time).
    """
    sums: dict[str, Tensor] = {}
    embedded: list[Tensor] = []
    count = 0

    def add(name: str, moment: Tensor) -> None:
        sums[name] = sums.get(name, 0) + moment

    def watch(name: str, outputs: Tensor) -> None:
        outputs.register_hook(  # type: ignore[no-untyped-call]
            lambda gradient: add(name, gradient.flatten(0, -2).double().square().sum(0))
        )

    def enter(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        embedded.append(inputs[0].detach().requires_grad_(True))
        return embedded[-1], *inputs[1:]

    hooks = [model.trunk.register_forward_pre_hook(enter)]
    hooks += [
        module.register_forward_hook(
            lambda _, inputs, outputs, name=f"trunk.{name}.weight": watch(name, outputs)
        )
        for name, module in model.trunk.named_modules()
        if isinstance(module, nn.Linear)
    ]
    device = next(model.parameters()).device
    draw = torch.Generator(device).manual_seed(0)
    try:
        with in_one_order(device), torch.enable_grad():
            for tokens in (batch.to(device) for batch in batches):
                log_probs = model.log_probs(tokens).flatten(0, 1)
                drawn = torch.multinomial(log_probs.detach().exp(), 1, generator=draw)
                loss = log_probs.gather(1, drawn).sum()
                (gradient,) = torch.autograd.grad(loss, embedded.pop())
                gradient = gradient.flatten(0, 1).double()
                add("", gradient.T @ gradient)
                count += tokens.numel()
    finally:
        for hook in hooks:
            hook.remove()
    moments = {name: (total / count).cpu().numpy() for name, total in sums.items()}
    return moments, moments.pop("")


def looked_up(model: LanguageModel) -> str | None:
    """Name of the stored tensor whose rows are added to the embedded tokens as they are, if there
    is one: the derivative to a token's row is that to its embedding, whatever else is added."""
    vocab_size, d_model = model.head.shape.vocab_size, model.head.shape.d_model
    tables = [s for s in model.stored() if s.tensor.shape == (vocab_size, d_model)]
    if not tables:
        return None
    device = tables[0].tensor.device
    tokens = torch.arange(vocab_size, device=device)[None]
    ways = torch.arange(1.0, d_model + 1, device=device).expand(vocab_size, d_model)
    required = [s.tensor.requires_grad for s in tables]
    try:
        for stored in tables:
            stored.tensor.requires_grad_(True)
        with torch.enable_grad():
            along = (model.head.embed(tokens, tokens)[0] * ways).sum()
            if not along.requires_grad:  # the embedding is made of other tensors
                return None
            gradients = torch.autograd.grad(along, [s.tensor for s in tables], allow_unused=True)
    finally:
        for stored, before in zip(tables, required, strict=True):
            stored.tensor.requires_grad_(before)
    found = zip(tables, gradients, strict=True)
    return next((s.name for s, g in found if g is not None and torch.equal(g, ways)), None)


def some_windows(batches: Iterable[Tensor], tokens: int) -> list[Tensor]:
    """About so many tokens of the batches, in windows spread over them, one row each."""
    rows = [batch[i : i + 1] for batch in batches for i in range(len(batch))]
    wanted = max(tokens // rows[0].numel(), 1)
    return rows[:: max(len(rows) // wanted, 1)][:wanted]
