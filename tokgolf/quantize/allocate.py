"""How fine each tensor's step should be, for the least damage at a size.

The damage is the KL divergence from the float model, on training tokens: measured with one tensor
quantized at a time, it grows with the square of the step. A tensor of n weights whose damage is
c * step^2 then costs the least at a given total size when step^2 is in proportion to n / c
(Lagrange; reverse water-filling). The loss itself is too noisy a measure for this, and measuring
anything on the text to be scored would be a leak.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from tokgolf.model import LanguageModel
from tokgolf.quantize.gptq import some_windows
from tokgolf.quantize.rows import Rounder

PROBE = 0.5
"""Step of a measurement, in spreads of the tensor: about 3 bits a weight."""
PROBE_TOKENS = 1 << 12
PROBE_LOGITS = 1 << 26
"""Most log-probabilities of the float model that are kept: 256 MiB."""
COARSEST = {"matrix": 4.0, "table": 4.0, "vector": 1 / 8}
"""Largest step, in spreads. At 4 nearly all integers of a tensor are 0. A vector has few entries,
perhaps one, whose error may happen to be 0 at the step of the measurement: so its step stays small
whatever was measured, and costs next to nothing."""
GAUSSIAN_BITS = 0.5 * math.log2(2 * math.pi * math.e)
"""Differential entropy of a unit Gaussian: what a weight takes at a step of one spread, and
an octave finer costs one bit more."""


def sensitivities(model: LanguageModel, rounder: Rounder) -> dict[str, float]:
    """Damage in nats a token for a step of 1, of every stored tensor.

    Vectors of one name in all blocks are measured together, and share their damage by size.
    """
    tokens = probe_tokens(rounder.batches, model.head.shape.vocab_size)
    reference = list(log_probs_of(model, tokens))
    groups: dict[str, list[str]] = {}
    for name, stored in rounder.stored.items():
        vector = stored.kind == "vector"
        groups.setdefault(name.rpartition(".")[2] if vector else name, []).append(name)
    found = {}
    for names in groups.values():
        steps = {name: max(PROBE * rounder.spread(name), rounder.finest(name)) for name in names}
        damage = max(_damage(model, rounder, steps, tokens, reference), 1e-12)
        weights = {name: rounder.stored[name].tensor.numel() for name in names}
        for name in names:
            share = weights[name] / sum(weights.values())
            found[name] = damage * share / steps[name] ** 2
    return found


def probe_tokens(batches: Iterable[Tensor], vocab_size: int) -> list[Tensor]:
    """Windows for the measurement, spread over the calibration batches, one row each."""
    return some_windows(batches, min(PROBE_TOKENS, PROBE_LOGITS // vocab_size))


def divergences(expected: Tensor, got: Tensor) -> Tensor:
    """The terms p (ln p - ln q) of a KL divergence; what cannot occur has ln p = -inf in both, and
    counts for nothing.  # of any one shape"""
    return torch.where(expected.isfinite(), expected.exp() * (expected - got), 0.0)


@torch.no_grad()
def divergence(
    model: LanguageModel, tokens: Iterable[Tensor], reference: Iterable[Tensor]
) -> float:
    """KL divergence from the reference log-probabilities, in nats a token."""
    total, count = 0.0, 0
    for expected, got in zip(reference, log_probs_of(model, tokens), strict=True):
        total += float(divergences(expected, got).sum(dtype=torch.float64))
        count += len(expected)
    return total / count


@torch.no_grad()
def log_probs_of(model: LanguageModel, tokens: Iterable[Tensor]) -> Iterable[Tensor]:
    """ln p of every next token, of each batch.  # (rows, time) -> (rows * time, vocab)"""
    device = next(model.parameters()).device
    for rows in tokens:
        yield model.log_probs(rows.to(device)).flatten(0, 1)


@torch.no_grad()
def _damage(
    model: LanguageModel,
    rounder: Rounder,
    steps: Mapping[str, float],
    tokens: list[Tensor],
    reference: list[Tensor],
) -> float:
    """The divergence with these tensors quantized; the model is as before afterwards."""
    before = {name: rounder.stored[name].tensor.clone() for name in steps}
    try:
        for name, step in steps.items():
            rounder.restore(name, rounder.quantize(name, step))
        return divergence(model, tokens, reference)
    finally:
        for name, tensor in before.items():
            rounder.stored[name].tensor.copy_(tensor)


def gaussian_bits(step_to_spread: float) -> float:
    """About what a weight takes at a step of so many spreads, after entropy coding.

    0.1 -> 5.37, 1 -> 2.09, 2 -> 1.20
    """
    return 0.5 * math.log2(1 + 2 ** (2 * GAUSSIAN_BITS) / step_to_spread**2)
