"""Quantizing in parts: what is still float learns to make up for the parts that are done.

`rows` rounds every tensor by what the float model's layers read. But once the first layers are
rounded the later ones read something else, and could move against the error. So both ends of the
vocabulary are rounded first, then block after block, the vectors last, and after each part a few
updates of Adam bring the tensors that are left nearer to the float model's predictions, on training
tokens. Tuning what is not yet quantized is known from QuIP# (Tseng et al. 2024, arXiv 2402.04396)
and AQLM (Egiazarian et al. 2024, arXiv 2401.06118).
"""

import copy
import itertools
import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from tokgolf.device import in_one_order
from tokgolf.heads.base import Stored
from tokgolf.model import LanguageModel
from tokgolf.quantize import Quantized
from tokgolf.quantize.allocate import divergences
from tokgolf.quantize.rows import Rounder

RATE = 0.003
"""Learning rate of a matrix or table, in each weight's own step: what is rounded finely must stay
where it is. At 0.01 a trunk with a few large channels ended farther from its float model than
without tuning (docs/results/artifact.md)."""
VECTOR_RATE = 0.003
"""Of a vector, in its root mean square."""
WARM = 5  # updates until the full rate, which then falls to zero
BETAS = (0.9, 0.95)
ROWS_TOKENS = 2048
"""Tokens of an update, about."""


def parts_of(stored: Iterable[Stored]) -> list[list[str]]:
    """Names of tensors, in the order in which they are rounded; vectors are the last part."""
    parts: dict[float, list[str]] = {}
    for name, _, kind in stored:
        block = re.match(r"trunk\.blocks\.(\d+)\.", name)
        place = float("inf") if kind == "vector" else int(block[1]) + 1 if block else 0
        parts.setdefault(place, []).append(name)
    return [parts[place] for place in sorted(parts)]


def round_in_parts(
    model: LanguageModel,
    rounder: Rounder,
    steps: Mapping[str, float],
    windows: Iterable[Tensor],
    *,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Rounder, dict[str, Quantized]]:
    """Integers of every tensor at `steps`, and a rounder of the tuned weights that gave them.

    `windows` are batches of training tokens (rows, time), one an update, over and over; there are
    `rounder.config.tune` updates after each part. `model` stays as it is.
    """
    tuned = copy.deepcopy(model)
    rounder = rounder.moved(tuned)
    parts = parts_of(rounder.stored.values())
    batches = itertools.cycle(windows)
    floats: dict[str, Tensor] = {}
    found: dict[str, Quantized] = {}
    device = next(model.parameters()).device
    with in_one_order(device):
        for number, names in enumerate(parts):
            if number:
                rounder.observe(names)
            for name in names:
                tensor = rounder.stored[name].tensor
                floats[name] = tensor.detach().clone()
                found[name] = rounder.quantize(name, max(steps[name], rounder.finest(name)))
                rounder.restore(name, found[name])
            left = [name for part in parts[number + 1 :] for name in part]
            if left and rounder.config.tune:
                rates = [
                    (rounder.stored[name].tensor, rates_of(rounder, name, steps)) for name in left
                ]
                amount = _tune(model, tuned, rates, rounder.config.tune, batches)
                say(
                    f"tuning    part {number + 1} of {len(parts)} is rounded: {amount:.4f} nats a "
                    "token from the float model"
                )
    for name, tensor in floats.items():
        rounder.stored[name].tensor.data.copy_(tensor)
    return rounder, found


def rates_of(rounder: Rounder, name: str, steps: Mapping[str, float]) -> Tensor:
    """Learning rate of every weight of a tensor."""
    tensor = rounder.stored[name].tensor
    if rounder.stored[name].kind == "vector":
        return torch.full_like(tensor, VECTOR_RATE * max(rounder.spread(name), 1e-3))
    rates = torch.from_numpy(RATE * steps[name] * rounder.multipliers(name)).to(tensor)
    return rates.expand(tensor.numel() // tensor.shape[-1], tensor.shape[-1]).view_as(tensor)


def _tune(
    model: LanguageModel,
    tuned: LanguageModel,
    left: list[tuple[Tensor, Tensor]],
    updates: int,
    batches: Iterable[Tensor],
) -> float:
    """Bring `tuned` nearer to `model` by the tensors `left`, each at its learning rate; returns the
    divergence of the last updates."""
    tuned.requires_grad_(False)
    # Adam moves what it tunes by its rate, whatever the gradient: so it tunes the way of every
    # weight in units of the weight's own rate.
    weights = [tensor for tensor, _ in left if isinstance(tensor, nn.Parameter)]
    rates = [rates for tensor, rates in left if isinstance(tensor, nn.Parameter)]
    starts = [tensor.detach().clone() for tensor in weights]
    ways = [torch.zeros_like(tensor) for tensor in starts]
    for tensor in weights:
        tensor.requires_grad_(True)
    optimizer = torch.optim.Adam(ways, lr=1.0, betas=BETAS)
    seen: list[float] = []
    device = left[0][0].device
    for update, tokens in enumerate(itertools.islice(batches, updates)):
        scale = min((update + 1) / WARM, 1.0) * (1 - update / updates)
        optimizer.param_groups[0]["lr"] = scale
        tokens = tokens.to(device)
        with torch.no_grad():
            expected = model.log_probs(tokens)
        loss = divergences(expected, tuned.log_probs(tokens)).sum() / tokens.numel()
        for tensor in weights:
            tensor.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        for tensor, way, rate in zip(weights, ways, rates, strict=True):
            way.grad = None if tensor.grad is None else tensor.grad * rate / rate.mean()
        optimizer.step()
        for tensor, start, way, rate in zip(weights, starts, ways, rates, strict=True):
            tensor.data.copy_(start + way * rate)
        seen.append(float(loss.detach()))
    tuned.requires_grad_(False)
    last = seen[-max(len(seen) // 4, 1) :]
    return sum(last) / len(last)
