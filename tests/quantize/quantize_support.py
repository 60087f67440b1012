"""Shared by the quantizer's tests: a small model of 60 tokens, width 16, and tokens for it."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokgolf.config import TrunkConfig
from tokgolf.heads import HeadShape, head_config
from tokgolf.model import LanguageModel, build_model

VOCAB, WIDTH = 60, 16
TRUNK = TrunkConfig(layers=2, d_model=WIDTH, heads=2, kv_heads=1, mlp_hidden=40, sequence_length=16)


def pairs() -> NDArray[np.uint8]:
    """Packed rows of what may follow what: every third token never follows its neighbour."""
    ids = np.arange(VOCAB)
    return np.packbits((ids[:, None] + ids) % 3 != 0, axis=1)


SHAPE = HeadShape(vocab_size=VOCAB, d_model=WIDTH, bos_id=0, successors=pairs)


def small_model(seed: int = 0, **head: Any) -> LanguageModel:
    torch.manual_seed(seed)
    config = head_config({"name": "tied", **head})
    model = build_model(TRUNK, config, SHAPE, torch.arange(VOCAB)).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(0, 0.3)
    return model


def batches(count: int = 3, seed: int = 0) -> list[Tensor]:
    """Batches of 4 windows of 16 tokens, some tokens far more frequent than others."""
    random = torch.Generator().manual_seed(seed)
    draws = torch.rand((count, 4, 16), generator=random)
    return list((draws**2 * VOCAB).long())
