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

RATE = 0.01
"""Learning rate of a matrix or table, in its steps: a tensor that is rounded finely must stay where
it is. At 0.03, or at 0.01 of the root mean square, a trunk with a few large channels ended farther
from its float model than without tuning (docs/log.md)."""
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
                rates = [(rounder.stored[name].tensor, rate(rounder, name, steps)) for name in left]
                amount = _tune(model, tuned, rates, rounder.config.tune, batches)
                say(
                    f"tuning    part {number + 1} of {len(parts)} is rounded: {amount:.4f} nats a "
                    "token from the float model"
                )
    for name, tensor in floats.items():
        rounder.stored[name].tensor.data.copy_(tensor)
    return rounder, found


def rate(rounder: Rounder, name: str, steps: Mapping[str, float]) -> float:
    """Learning rate of a tensor."""
    if rounder.stored[name].kind != "vector":
        return RATE * steps[name]
    return VECTOR_RATE * max(rounder.spread(name), 1e-3)


def _tune(
    model: LanguageModel,
    tuned: LanguageModel,
    left: list[tuple[Tensor, float]],
    updates: int,
    batches: Iterable[Tensor],
) -> float:
    """Bring `tuned` nearer to `model` by the tensors `left`, each at its learning rate; returns the
    divergence of the last updates."""
    tuned.requires_grad_(False)
    groups = []
    for tensor, rate in left:
        if isinstance(tensor, nn.Parameter):
            groups.append({"params": [tensor.requires_grad_(True)], "rate": rate})
    optimizer = torch.optim.Adam(groups, betas=BETAS)
    seen: list[float] = []
    device = left[0][0].device
    for update, tokens in enumerate(itertools.islice(batches, updates)):
        scale = min((update + 1) / WARM, 1.0) * (1 - update / updates)
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * scale
        tokens = tokens.to(device)
        with torch.no_grad():
            expected = model.log_probs(tokens)
        loss = divergences(expected, tuned.log_probs(tokens)).sum() / tokens.numel()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        seen.append(float(loss.detach()))
    tuned.requires_grad_(False)
    last = seen[-max(len(seen) // 4, 1) :]
    return sum(last) / len(last)
