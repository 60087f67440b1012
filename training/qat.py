"""Quantization-aware training: late in a run, the forward pass sees weights as export rounds them.

The steps are those that `tokgolf export --bits` would choose for the weights at that moment, by the
same code on the same tokens, and rows and columns have the same factors. Each weight is rounded
to the nearest multiple of its step; an export at the same steps may choose a neighbour (GPTQ, a
trellis' path), which rounding for every batch would be too slow for. The gradient passes straight
through (Bengio et al. 2013, arXiv 1308.3432): it is taken at the rounded weights, and moves the
float ones. The rounded values stand in the parameters themselves while a batch is computed, so
there is nothing that a compiled graph could have folded away.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tokgolf.artifact.checkpoint import FloatModel
from tokgolf.artifact.export import Fit, calibration_tokens
from tokgolf.config import TrunkConfig
from tokgolf.errors import ConfigError
from tokgolf.heads import HeadConfig
from tokgolf.model import LanguageModel, build_model, head_shape
from tokgolf.quantize import Quantized, steps_of
from tokgolf.quantize.rows import QuantConfig, Rounder, step_bits
from tokgolf.tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True)
class QatConfig:
    """From which fraction of the budget on weights are rounded (1: never), and how finely.

    `bits` a weight and `method` as in `tokgolf export`, which choose the steps. "nearest" chooses
    in no time and "trellis" as the default export does, in the time of one.
    """

    start: float = 1.0
    bits: float = 3.3
    method: Literal["trellis", "gptq", "nearest"] = "trellis"

    def __post_init__(self) -> None:
        if not 0 < self.start <= 1:
            raise ConfigError(
                f"qat.start is {self.start}; it must be above 0 and at most 1 (never), usually 0.85"
            )
        QuantConfig(method=self.method, bits=self.bits)


def export_grids(
    values: Mapping[str, Tensor],
    trunk: TrunkConfig,
    head: HeadConfig,
    tokenizer: Tokenizer,
    run: Path,
    config: QatConfig,
) -> dict[str, Tensor]:
    """The steps of every stored tensor that an export of these weights would choose.

    `values` are a model's weights by name, `run` has the training tokens to calibrate on; works on
    a copy, on the CPU. -> by full name (rows, columns), or (1, 1) of a vector
    """
    with torch.random.fork_rng(devices=[]):  # the weights that it begins with are not used
        model = build_model(trunk, head, head_shape(tokenizer, trunk))
    model.load_state_dict({name: value.cpu() for name, value in values.items()})
    model.eval().requires_grad_(False)
    source = FloatModel(tokenizer=tokenizer, model=model, trunk=trunk, head=head, state={})
    rounder = Rounder(
        model,
        QuantConfig(method=config.method, bits=config.bits),
        calibration_tokens(run, source),
    )
    fit = Fit(source, rounder)
    fit.settle(None)
    return {name: _steps_of(rounder, name, step) for name, step in fit.steps.items()}


def _steps_of(rounder: Rounder, name: str, step: float) -> Tensor:
    """The steps of a tensor's weights as the file will hold them, or the one of all."""
    none = np.zeros((0, 0), np.int16)
    grid = Quantized(none, step_bits(step), rounder.rows_of(name), rounder.columns_of(name, step))
    steps = steps_of(grid)
    return torch.from_numpy(steps.astype(np.float32))


@contextlib.contextmanager
def rounded(model: LanguageModel, grids: Mapping[str, Tensor]) -> Iterator[None]:
    """The model with every tensor that has steps rounded to them; afterwards as it was.

    Integers have no bound here: an export's step grows with a tensor's largest weight.
    """
    named = dict(model.named_parameters())
    before = {name: named[name].detach().clone() for name in grids}
    try:
        with torch.no_grad():
            for name, steps in grids.items():
                rows = before[name].view(-1, named[name].shape[-1])
                named[name].copy_((torch.round(rows / steps) * steps).view_as(named[name]))
        yield
    finally:
        with torch.no_grad():
            for name, value in before.items():
                named[name].copy_(value)
