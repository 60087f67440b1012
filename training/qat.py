"""Quantization-aware training: late in a run, the forward pass sees weights as export leaves them.

Every so many steps the weights are quantized as `tokgolf export --bits` would, by the same code:
steps, factors of rows and columns, the trellis, and what moves a column's error onto the others.
The errors of that are added to the weights in the forward pass until they are found anew. The
gradient is taken at the weights with their errors, and moves the float ones. Noise in the place of
rounding is known from Fan et al. 2020 (arXiv 2004.07320) and Defossez et al. 2021 (arXiv
2104.09987). Rounding to the nearest for every batch, as is common (Bengio et al. 2013, arXiv
1308.3432), loses here: its errors are many times an export's (docs/results/training.md).

The errors stand in the parameters themselves while a batch is computed, so there is nothing that a
compiled graph could have folded away.
"""

import contextlib
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tokgolf.artifact.checkpoint import FloatModel
from tokgolf.artifact.export import Fit, calibration_tokens
from tokgolf.config import TrunkConfig, check_positive, check_types
from tokgolf.errors import ConfigError
from tokgolf.heads import HeadConfig
from tokgolf.model import LanguageModel, build_model, head_shape
from tokgolf.quantize.gptq import some_windows
from tokgolf.quantize.rows import QuantConfig, Rounder
from tokgolf.tokenizers import Tokenizer
from tokgolf.training.pace import spent

TOKENS = 1 << 12
"""Of the run's training text, to calibrate on, about: a sixteenth of what an export takes, or
looking at them would take three times as long as rounding."""


@dataclass(frozen=True, kw_only=True)
class QatConfig:
    """From which fraction of the budget on weights have an export's errors (1: never).

    `bits` a weight and `method` as in `tokgolf export`; the errors are found anew after `every`
    steps, in the time of looking at `TOKENS` tokens and rounding each tensor once. The first time
    takes longer: it measures how fine each tensor should be. It waits for the first steps of what
    later passes of a trunk add (`trunk.loop_rank`), and is not begun where fewer than `every` steps
    are left. A run by the clock counts on that time from the second time on, when it is known, and
    then ends before errors that no step would have time to use.
    """

    start: float = 1.0
    bits: float = 3.3
    every: int = 16
    method: Literal["trellis", "gptq", "nearest"] = "trellis"

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 < self.start <= 1:
            raise ConfigError(
                f"qat.start is {self.start}; it must be above 0 and at most 1 (never), usually 0.8"
            )
        check_positive(self, "every")
        QuantConfig(method=self.method, bits=self.bits)


class Quantizer:
    """What an export of a run's weights would do to them, on a copy on the same device.

    A table's row that rounds to zero, as that of a token which training has not met yet may, stays
    as it is: norms divide by a row's length, one after another, so a gradient there has no bounds.

    `steps` of all tensors are chosen for the first weights, unless they are given.
    """

    def __init__(
        self,
        trunk: TrunkConfig,
        head: HeadConfig,
        tokenizer: Tokenizer,
        run: Path,
        config: QatConfig,
        device: torch.device,
        steps: Mapping[str, float] | None = None,
    ) -> None:
        """`run` has the training tokens to calibrate on."""
        with torch.random.fork_rng(devices=[]):  # the weights that it begins with are not used
            model = build_model(trunk, head, head_shape(tokenizer, trunk))
        model.to(device).eval().requires_grad_(False)
        self.source = FloatModel(tokenizer=tokenizer, model=model, trunk=trunk, head=head, state={})
        self.config = QuantConfig(method=config.method, bits=config.bits)
        self.tokens = some_windows(calibration_tokens(run, self.source), TOKENS)
        self.steps = dict(steps or {})

    def errors(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What quantizing adds to each stored tensor, by full name.

        `values` are a model's weights by name.
        """
        model = self.source.model
        model.load_state_dict(dict(values))
        rounder = Rounder(model, self.config, self.tokens)
        if self.steps:
            steps = {name: max(step, rounder.finest(name)) for name, step in self.steps.items()}
            quantized = {name: rounder.quantize(name, step) for name, step in steps.items()}
        else:
            fit = Fit(self.source, rounder)
            fit.settle(None)
            # No step of a fit is below its tensor's finest, and the integers are at these steps.
            self.steps, quantized = fit.steps, fit.quantized
        errors = {}
        for name, integers in quantized.items():
            tensor = rounder.stored[name].tensor.detach()
            before = tensor.clone()
            rounder.restore(name, integers)
            errors[name] = tensor - before
            if rounder.stored[name].kind == "table":
                gone = ~tensor.any(dim=-1, keepdim=True)
                errors[name].masked_fill_(gone, 0)
        return errors


class RoundingErrors:
    """The errors that a run's weights have in its forward passes, and when they are found."""

    def __init__(self, config: QatConfig) -> None:
        self.config = config
        self.errors: dict[str, Tensor] = {}  # by full name; none before they begin
        self.since = 0  # the step before which they were found first
        self.quantizer: Quantizer | None = None  # the lead's, of this process
        self.steps: dict[str, float] = {}  # the lead's

    def state(self) -> dict[str, Any]:
        """What a checkpoint says of them, beside `errors`."""
        return {"quantized_from": self.since, "quantizer_steps": self.steps}

    def load(self, errors: dict[str, Tensor], state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's."""
        self.errors = errors
        self.since = operator.index(state.get("quantized_from", 0))
        self.steps = {name: float(s) for name, s in state.get("quantizer_steps", {}).items()}

    def due(self, step: int, remaining: float) -> bool:
        """Whether to find them before the next step: from a fraction of the budget on, after so
        many steps each."""
        if self.errors:
            return (step - self.since) % self.config.every == 0
        begun = spent(step, remaining) >= self.config.start  # never at 1, as a step remains
        return begun and remaining >= self.config.every  # one time would not be worth it

    def until_next(self, step: int) -> int:
        """Steps until they are found anew."""
        return (self.since - step) % self.config.every


@contextlib.contextmanager
def shifted(model: LanguageModel, errors: Mapping[str, Tensor]) -> Iterator[None]:
    """The model with these errors on its tensors; afterwards as it was, bit by bit."""
    if not errors:
        yield
        return
    named = dict(model.named_parameters())
    tensors: list[Tensor] = [named[name] for name in errors]
    before = [tensor.detach().clone() for tensor in tensors]
    try:
        with torch.no_grad():
            torch._foreach_add_(tensors, [*errors.values()])
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(tensors, before)
