"""Averages of the weights over the steps: what is exported in place of the last step's weights.

An average changes nothing about the training itself, which goes on from its own weights.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokgolf.config import check_positive, check_types
from tokgolf.errors import ConfigError

EMA_WARMUP = 10
"""An average of decay d weighs as if d were at most (1 + step) / (EMA_WARMUP + step): the first
steps, where weights are still what they began as, do not stay in it.
Source: tf.train.ExponentialMovingAverage with `num_updates`."""


@dataclass(frozen=True, kw_only=True)
class AverageConfig:
    """Which average of the weights a run exports: none, `ema`, or the plain mean (SWA)."""

    ema: float = 0.0
    """Decay of an exponential average over all steps, below 1, usually 0.99 to 0.999 (0: off). It
    starts as the weights at the start, and with less decay (`EMA_WARMUP`)."""

    swa_from: float = 1.0
    """The fraction of the budget from which on the plain mean is taken (1: off): of the weights
    after steps that end there or later."""

    swa_every: int = 10
    """Of these, the weights after every step whose number, from 1, is a multiple of this go into
    the plain mean; if none does, the last weights are exported."""

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "swa_every")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"ema is {self.ema}; it must be in [0, 1), usually 0.99 to 0.999")
        if not 0 <= self.swa_from <= 1:
            raise ConfigError(f"swa_from is {self.swa_from}; it must be between 0 and 1")
        if self.ema and self.swa_from < 1:
            raise ConfigError(
                f"ema is {self.ema} and swa_from {self.swa_from}: set ema to 0 or swa_from to 1"
            )


class Averages:
    """The average of every parameter of a module, of frozen ones too, beside the tensor itself."""

    def __init__(self, module: nn.Module, config: AverageConfig) -> None:
        self.module, self.config = module, config
        self.count = 0  # of the steps that are in it
        self.weights: dict[str, Tensor] = {}
        if config.ema or config.swa_from < 1:
            self.weights = {n: p.detach().clone() for n, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, step: int, progress: float) -> None:
        """Take in the weights after `step` steps, at that part of the budget."""
        c = self.config
        if c.ema:
            part = 1 - min(c.ema, (1 + step) / (EMA_WARMUP + step))
        elif progress < c.swa_from:  # none yet, or none any more: the budget grew
            self.count = 0
            return
        elif self.weights and step % c.swa_every == 0:
            part = 1 / (self.count + 1)
        else:
            return
        self.count += 1
        named = dict(self.module.named_parameters())
        torch._foreach_lerp_([*self.weights.values()], [named[n] for n in self.weights], part)

    def adopt(self, copies: dict[str, str]) -> None:
        """Average new tensors too, each a copy of an old one: full names, new -> old."""
        if self.weights:
            self.weights.update({new: self.weights[old].clone() for new, old in copies.items()})

    def exported(self) -> dict[str, Tensor]:
        """What replaces the weights in an export, by name; nothing before the first step."""
        return self.weights if self.count else {}
