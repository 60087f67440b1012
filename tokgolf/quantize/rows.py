"""Choosing the integers: a model's tensors at given steps, to be restored by `tokgolf.quantize`.

With an entropy coder behind it, a tensor's size follows from the ratio of its step to its spread
alone, about log2(spread / step) + 2.05 bits a weight: so the step is the knob, and there is no bit
width. "Step" is here the distance between a weight's choices at its place; a trellis' grid is
twice as fine, at the same bits.

A tensor's rows and columns have steps of their own around that. A column's is in proportion to its
entry on the diagonal of `trellis.error_spread`, so that all columns cost alike at their steps: of
all steps with one product, and so about one size, these cost the least (GPTQ's error is a
triangular system; reverse water-filling on its diagonal). A row's is in proportion to
E[g^2]^(-1/2), g the gradient of its output; a token's, in a table, to its frequency^(-1/4).
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokgolf.config import check_positive
from tokgolf.errors import ArtifactError, ConfigError
from tokgolf.model import LanguageModel
from tokgolf.quantize import FARTHEST, LARGEST, STEPS, Quantized, octaves, path, restored, steps_of
from tokgolf.quantize.gptq import input_hessians, looked_up, output_gradients, some_windows
from tokgolf.quantize.trellis import error_spread, round_rows

METHODS = ("trellis", "gptq", "nearest")
MOST_BITS = 8.0
TUNE = 40
LEAD_IN, LEAD = 3, 13
GRADIENT_TOKENS = 1 << 14
LEAST_STEP = 2.0**-90  # of a tensor of zeros, too
LEAST = 1e-4
"""Of the mean importance: less is taken for so much, a row that nothing depends on too."""
REACH = 1.02  # GPTQ moves a weight a little beyond the largest


@dataclass(frozen=True, kw_only=True)
class QuantConfig:
    """How weights become integers.

    "trellis" and "gptq" need training tokens to calibrate on, "nearest" needs nothing. `bits` are
    what all weight sections take, for each stored weight; without it the cap decides.
    `rate_weight` 1 gives up error for bits at the exchange rate of the step, 0 gives up none.
    `tune` are updates, after each part of the model that is rounded, of what is left (`tuning`); 0
    rounds all at once. "nearest" does without.
    """

    method: Literal["trellis", "gptq", "nearest"] = "trellis"
    bits: float | None = None
    rate_weight: float = 0.25
    tune: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"method is {self.method!r}; it must be one of {', '.join(METHODS)}")
        if self.bits is not None:
            check_positive(self, "bits")
            if self.bits > MOST_BITS:
                raise ConfigError(f"bits is {self.bits}; at most {MOST_BITS} bits a weight")
        if not 0 <= self.rate_weight <= 2:
            raise ConfigError(f"rate_weight is {self.rate_weight}; it must be 0 to 2")
        if self.tune < 0 or (self.tune and self.method == "nearest"):
            raise ConfigError(
                f"tune is {self.tune} with method {self.method}; it must be 0 or more, and 0 with "
                "nearest, which looks at no tokens"
            )


def quant_config(**options: Any) -> QuantConfig:
    """These options, over what the commands do by default: the best that is known, tuning too."""
    tune = 0 if options.get("method") == "nearest" else TUNE
    return QuantConfig(**{"tune": tune, **options})


class Rounder:
    """Rounds the tensors of a model, with what is known of their inputs.

    Raises `ArtifactError`, naming the tensor, if a weight is not finite, or if there is nothing to
    calibrate on.
    """

    def __init__(
        self, model: LanguageModel, config: QuantConfig, calibration: Iterable[Tensor] = ()
    ) -> None:
        """`calibration` are batches of training tokens (rows, time): for "trellis" and "gptq", and
        for the rows of token tables, whose steps depend on how often each token occurs."""
        self.config = config
        self.model = model
        self.trellis = config.method == "trellis"
        self.width = model.head.shape.d_model
        self.stored = {s.name: s for s in model.stored() if s.kind != "codes"}
        for name in self.stored:  # one NaN would spread to every Hessian
            check_finite(name, self.weights(name))
        self.batches = list(calibration)
        vocab_size = model.head.shape.vocab_size
        self.token_weights = np.ones(vocab_size)
        if self.batches:
            tokens = torch.cat([batch.flatten() for batch in self.batches]).cpu()
            self.token_weights = frequency_weights(
                torch.bincount(tokens, minlength=vocab_size).numpy()
            )
        self.hessians: dict[str, NDArray[np.float64]] = {}
        self.importance: dict[str, NDArray[np.float64]] = {}
        self.embedded: dict[str, NDArray[np.float64]] = {}
        if config.method != "nearest":
            if not self.batches:
                raise ArtifactError(
                    f"{config.method} needs calibration tokens and got none; use --method nearest"
                )
            self.hessians = input_hessians(model, self.batches)
            windows = some_windows(self.batches, GRADIENT_TOKENS)
            self.importance, embedded = output_gradients(model, windows)
            if table := looked_up(model):
                self.embedded[table] = embedded
                self.hessians.setdefault(table, np.zeros_like(embedded))
        self.lead = lead_columns(self.hessians, self.width) if self.trellis else []
        # The order of a scalar's columns is nobody's business: those that matter most come first.
        self.orders = {
            name: self._path(len(h)) if self.trellis else np.argsort(-h.diagonal(), kind="stable")
            for name, h in self.hessians.items()
        }
        self.spreads: dict[str, NDArray[np.float64]] = {}
        self.columns: dict[str, NDArray[np.int8]] = {}
        for name, hessian in self.hessians.items():
            self.look(name, hessian)

    def moved(self, model: LanguageModel) -> "Rounder":
        """The same over another model of this shape; what is known of the inputs is taken over."""
        other = copy.copy(self)
        other.model = model
        other.stored = {s.name: s for s in model.stored() if s.kind != "codes"}
        other.spreads, other.columns = dict(self.spreads), dict(self.columns)
        return other

    def observe(self, names: list[str]) -> None:
        """Look anew at what these tensors read, after the model has changed."""
        for name, hessian in input_hessians(self.model, self.batches, names).items():
            self.look(name, hessian)

    def look(self, name: str, hessian: NDArray[np.float64]) -> None:
        """Take in what a tensor reads: how errors move on, and so each column's step."""
        if name in self.embedded:  # a table is looked up too
            hessian = hessian + self.embedded[name]
        order = self.orders[name]
        spread = error_spread(hessian[np.ix_(order, order)])
        columns = np.empty(len(order), np.int8)
        columns[order] = quarters(spread.diagonal())
        self.spreads[name] = spread
        self.columns[name] = columns

    def _path(self, columns: int) -> NDArray[np.int64]:
        return path(columns, self.width, self.lead)

    def weights(self, name: str) -> NDArray[np.float64]:
        """A tensor's weights; one-dimensional ones as one row.  # (rows, columns)"""
        tensor = self.stored[name].tensor.detach()
        return tensor.double().cpu().numpy().reshape(-1, tensor.shape[-1])

    def rows_of(self, name: str) -> NDArray[np.int8] | None:
        """Quarters of octaves by which a tensor's rows have larger steps; None for vectors."""
        _, tensor, kind = self.stored[name]
        rows = tensor.numel() // tensor.shape[-1]
        if kind == "vector":
            return None
        if kind == "table" and rows == len(self.token_weights):
            return quarters(self.token_weights)
        if name not in self.importance:
            return np.zeros(rows, np.int8)
        importance = self.importance[name]
        return quarters(np.maximum(importance, LEAST * importance.mean() + 1e-200) ** -0.5)

    def columns_of(self, name: str, step: float | None = None) -> NDArray[np.int8] | None:
        """The same of its columns, in their own order. At a `step` a column has a larger factor
        where its weights would be beyond the largest integer."""
        _, tensor, kind = self.stored[name]
        if kind == "vector":
            return None
        columns = self.columns.get(name, np.zeros(tensor.shape[-1], np.int8))
        if step is None:
            return columns
        beyond = self._finest_of_columns(name) / max(step, LEAST_STEP)
        needed = np.ceil(4 * np.log2(np.maximum(beyond, 2 ** (-FARTHEST / 4))))
        result: NDArray[np.int8] = np.maximum(columns, needed.clip(max=FARTHEST).astype(np.int8))
        return result

    def _finest_of_columns(self, name: str) -> NDArray[np.float64]:
        """The smallest step of every column at which its weights are within the largest integer,
        beside those of the rows.  # (columns,)"""
        weights, rows = self.weights(name), self.rows_of(name)
        if rows is not None:
            weights = weights / octaves(rows)[:, None]
        most: NDArray[np.float64] = np.abs(weights).max(axis=0)
        return most * REACH / LARGEST

    def spread(self, name: str) -> float:
        """Root mean square of a tensor's weights, each beside its row's multiplier of the step."""
        weights = self.weights(name) / self.multipliers(name)
        return float(np.sqrt(np.square(weights).mean()))

    def finest(self, name: str) -> float:
        """The smallest step at which every weight of a vector is within the largest integer, and
        of most columns of a table or matrix; the others have larger factors then."""
        each, columns = self._finest_of_columns(name), self.columns_of(name)
        if columns is None:
            return max(float(each.max()), LEAST_STEP)
        within = float(np.median(each / octaves(columns)))
        farthest = float(each.max()) / 2 ** (FARTHEST / 4)
        return max(within, farthest, LEAST_STEP)

    def multipliers(self, name: str) -> NDArray[np.float64]:
        """What the tensor's step is multiplied by.  # -> (rows or 1, columns or 1)"""
        none = np.zeros((0, 0), np.int16)
        one = Quantized(none, 0x3F80, self.rows_of(name), self.columns_of(name))
        return steps_of(one).astype(np.float64)

    def quantize(self, name: str, step: float) -> Quantized:
        """A tensor's integers at a step (before what its rows and columns multiply it by)."""
        weights = self.weights(name)
        rows, columns = self.rows_of(name), self.columns_of(name, step)
        trellis = self.trellis and columns is not None
        bits = step_bits(step / 2 if trellis else step)
        found = Quantized(np.zeros(weights.shape, np.int16), bits, rows, columns)
        if columns is None or self.config.method == "nearest":
            codes = np.rint(weights / steps_of(found)).clip(-LARGEST, LARGEST).astype(np.int16)
            return found._replace(codes=codes)
        order = self.orders.get(name, self._path(weights.shape[1]))
        spread = self.spreads.get(name)
        grid = steps_of(found._replace(columns=None)).astype(np.float64)
        codes = round_rows(
            (weights / octaves(columns))[:, order],  # columns in units of their steps
            None if spread is None else spread / octaves(columns[order]),
            np.broadcast_to(grid[:, 0], len(weights)),
            trellis=trellis,
            rate_weight=self.config.rate_weight,
        )
        if trellis:
            return found._replace(codes=codes, columns=columns[order])
        return found._replace(codes=codes[:, np.argsort(order)])

    def restore(self, name: str, quantized: Quantized) -> None:
        """Put what a file would give back in the place of the tensor."""
        tensor, kind = self.stored[name].tensor, self.stored[name].kind
        weights = restored(quantized, kind, self.trellis, self.width, self.lead)
        tensor.detach().copy_(torch.from_numpy(weights).view(tensor.shape))


def lead_columns(hessians: dict[str, NDArray[np.float64]], width: int) -> list[int]:
    """Columns of the residual stream that every path visits first: a few that matter least, then
    those that matter most, whose error the columns after them take up.

    A trained trunk keeps a few channels hundreds of times as large as the others. First in line
    such a channel finds a path still in its one first state, with half the grid. After three
    columns of no account the path can be in any state. Measured on a tied table (V = 2048, d = 256)
    at equal steps, error of the logits: 10,460 with the largest first, 3,620 in order of number,
    1,980 so.
    """
    own = [h.diagonal() / max(h.diagonal().mean(), 1e-300) for h in hessians.values()]
    shares = sum((d for d in own if len(d) == width), np.zeros(width))
    falling = np.argsort(-shares, kind="stable")
    first = falling[width - LEAD_IN :].tolist()
    return [*first, *falling.tolist()][: lead_length(width)]


def quarters(factors: NDArray[np.float64]) -> NDArray[np.int8]:
    """Quarters of octaves nearest to factors beside their geometric mean.

    factors=[1, 2, 4] -> [-4, 0, 4]
    """
    logs = np.log2(factors)
    nearest = np.rint(4 * (logs - logs.mean())).clip(-FARTHEST, FARTHEST)
    result: NDArray[np.int8] = nearest.astype(np.int8)
    return result


def lead_length(width: int) -> int:
    """How many columns `lead_columns` names: 16, but an eighth of a narrow stream."""
    return min(LEAD_IN + LEAD, max(width // 8, 1))


def step_bits(step: float) -> int:
    """Bits of the bfloat16 nearest to a step.

    step=1.0 -> 0x3f80; within 0.4 % from 2^-95 to 2^96, whose ends other steps take
    """
    bits = int(np.array(min(max(step, 2.0**-99), 2.0**99), np.float32).view(np.uint32))
    return min(max(bits + 0x8000 >> 16, STEPS[0]), STEPS[-1])


def frequency_weights(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Factors on the steps of a table's rows, with geometric mean 1: (count + 5)^(-1/4).

    A frequent token's row is read and predicted more often, so its error costs more. Measured on
    a tied table (V = 1024, d = 128): at 4.3 to 4.4 bits a weight the damage is 0.016 bpb with these
    factors and 0.031 without; exponents of -0.35 and -0.5 were no better.
    """
    weights = (counts.astype(np.float64) + 5) ** -0.25
    result: NDArray[np.float64] = weights / np.exp(np.log(weights).mean())
    return result


def check_finite(name: str, weights: NDArray[np.float64]) -> None:
    """Raise `ArtifactError`, naming the tensor, if a weight is NaN or infinite."""
    bad = weights.size - int(np.isfinite(weights).sum())
    if bad:
        raise ArtifactError(
            f"{name} has {bad:,} of {weights.size:,} weights that are not finite; "
            "export an earlier checkpoint"
        )
