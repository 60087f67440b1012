"""Shared by the head tests: random weights, and random inputs of a head of 40 tokens, width 16."""

from typing import TypeVar

import torch
from torch import Tensor, nn

AnyModule = TypeVar("AnyModule", bound=nn.Module)

VOCAB, WIDTH = 40, 16


def randomised(module: AnyModule, std: float = 0.3) -> AnyModule:
    """The module with N(0, std^2) in every parameter."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, std)
    return module


def inputs(n: int = 20, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """fp64 hidden (n, d_model), targets (n,), prev (n,)"""
    targets, prev = torch.randint(0, VOCAB, (2, n))
    return scale * torch.randn(n, WIDTH, dtype=torch.float64), targets, prev
