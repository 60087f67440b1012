"""What adaptation changes and how it learns: low-rank deltas a document, or a model's own tensors.

An adapter is data. Between two updates it is a set of tensors (`Deltas`) that `log_probs` puts over
the frozen model: linear maps of one position each, a bias of the logits, or weights in place of the
model's. None of them can mix positions, so an adapted model is as causal as the model. The model's
own tensors are never written to.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tokgolf.errors import ConfigError
from tokgolf.eval import scorer
from tokgolf.model import LanguageModel

BIAS = "bias"
BETAS, EPSILON = (0.9, 0.99), 1e-8


class Lesson(NamedTuple):
    """Text to learn from: the loss is of `tokens[first + 1 :]`, each given all before it.

    The array is a copy that nobody else holds, and holds scored tokens alone.
    """

    tokens: NDArray[np.int64]
    first: int


@dataclass(frozen=True)
class Deltas:
    """An adapter's state for some slots; a slot is a document, or the one of a running adapter.

    low_rank: name of a linear map -> (slots, rank, in), (slots, out, rank)
    bias: (slots, vocab), added to ln p before it is normalised anew
    tensors: parameter's name -> what stands in its place, for every slot
    """

    low_rank: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    bias: Tensor | None = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


class _Scored(nn.Module):
    """A model's ln p as a forward, so that `functional_call` can put other tensors in."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, paid: Tensor) -> Tensor:
        hidden = self.model.hidden(tokens)[paid]
        return self.model.head.log_probs(hidden, tokens[paid])


def log_probs(
    model: LanguageModel, deltas: Deltas, slots: Tensor, tokens: Tensor, paid: Tensor
) -> Tensor:
    """ln p of the token after each paid position, by the model with deltas over it.

    slots (rows,) of each row; tokens, paid (rows, time) -> (paid, vocab)
    """
    with ExitStack() as stack:
        for name, (down, up) in deltas.low_rank.items():
            linear = model.trunk.get_submodule(name)
            hook = _low_rank_hook(down[slots], up[slots])
            stack.callback(linear.register_forward_hook(hook).remove)
        tensors = {f"model.{name}": tensor for name, tensor in deltas.tensors.items()}
        found: Tensor = torch.func.functional_call(_Scored(model), tensors, (tokens, paid))
    if deltas.bias is None:
        return found
    row_of = torch.arange(len(slots), device=tokens.device)[:, None].expand_as(tokens)[paid]
    return (found + deltas.bias[slots[row_of]]).log_softmax(-1)


def _low_rank_hook(down: Tensor, up: Tensor) -> Callable[..., Tensor]:
    """y + x down^T up^T for each row.  # (rows, rank, in), (rows, out, rank)"""

    def hook(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        return output + (args[0] @ down.transpose(1, 2)) @ up.transpose(1, 2)

    return hook


class Adapter(ABC):
    """Learns from scored text alone: what it is given is all that it has."""

    @abstractmethod
    def reset(self, slot: int) -> None:
        """Forget: a new document begins in this slot."""

    @abstractmethod
    def deltas(self) -> Deltas:
        """The state, for every slot."""

    @abstractmethod
    def learn(self, lessons: Sequence[tuple[int, Lesson]]) -> None:
        """Take steps on (slot, text) pairs; of a running adapter every slot is 0."""


class GradientAdapter(Adapter):
    """Gradient steps, with the loss a mean over each slot's tokens.

    `start` are the initial tensors by name, without an axis of slots. Weight decay pulls back to
    them. With `shared`, there is one slot, and the deltas are the tensors themselves.
    """

    def __init__(
        self,
        model: LanguageModel,
        start: Mapping[str, Tensor],
        as_deltas: Callable[[Mapping[str, Tensor]], Deltas],
        *,
        slots: int,
        optimizer: str,
        lr: float,
        steps: int,
        weight_decay: float,
        batch_tokens: int,
    ) -> None:
        self.model = model
        self.as_deltas = as_deltas
        self.adam = optimizer == "adam"
        self.lr, self.steps, self.weight_decay = lr, steps, weight_decay
        self.batch_tokens = batch_tokens
        self.start = {name: tensor.detach()[None] for name, tensor in start.items()}
        self.values = {name: t.repeat_interleave(slots, 0) for name, t in self.start.items()}
        zeros = self.adam
        self.first = {n: torch.zeros_like(t) for n, t in self.values.items() if zeros}
        self.second = {n: torch.zeros_like(t) for n, t in self.values.items() if zeros}
        self.count = torch.zeros(slots, device=next(iter(self.values.values())).device)

    def reset(self, slot: int) -> None:
        """As `Adapter.reset`."""
        for name, tensor in self.values.items():
            tensor[slot] = self.start[name][0]
        for moment in (*self.first.values(), *self.second.values()):
            moment[slot] = 0
        self.count[slot] = 0

    def deltas(self) -> Deltas:
        """As `Adapter.deltas`."""
        return self.as_deltas(self.values)

    def learn(self, lessons: Sequence[tuple[int, Lesson]]) -> None:
        """As `Adapter.learn`."""
        if not lessons:
            return
        device = self.count.device
        slots, place = torch.unique(
            torch.tensor([slot for slot, _ in lessons], device=device), return_inverse=True
        )
        for _ in range(self.steps):
            leaves = {n: t[slots].requires_grad_() for n, t in self.values.items()}
            grads = {n: torch.zeros_like(t) for n, t in leaves.items()}
            share = torch.zeros(len(slots), device=device)
            for row, (_, lesson) in enumerate(lessons):
                share[place[row]] += len(lesson.tokens) - 1 - lesson.first
            for rows in _parts(lessons, self.batch_tokens):
                tokens, paid = padded([lessons[row][1] for row in rows], device)
                own = place[rows]
                inputs, paid = tokens[:, :-1], paid[:, :-1]
                weight = (1 / share)[own][:, None].expand_as(inputs)[paid]
                with torch.enable_grad():
                    found = log_probs(self.model, self.as_deltas(leaves), own, inputs, paid)
                    picked = found.gather(1, tokens[:, 1:][paid][:, None])[:, 0]
                    loss = -(picked * weight).sum()
                    parts = torch.autograd.grad(loss, list(leaves.values()))
                for name, part in zip(leaves, parts, strict=True):
                    grads[name] += part
            self._step(slots, grads)

    def _step(self, slots: Tensor, grads: Mapping[str, Tensor]) -> None:
        self.count[slots] += 1
        for name, grad in grads.items():
            value = self.values[name][slots]
            if self.adam:
                first = self.first[name][slots].lerp(grad, 1 - BETAS[0])
                second = self.second[name][slots].lerp(grad.square(), 1 - BETAS[1])
                self.first[name][slots], self.second[name][slots] = first, second
                shape = (-1, *[1] * (grad.dim() - 1))
                bias = [(1 - beta ** self.count[slots]).view(shape) for beta in BETAS]
                grad = (first / bias[0]) / ((second / bias[1]).sqrt() + EPSILON)
            if self.weight_decay:
                grad = grad + self.weight_decay * (value - self.start[name])
            self.values[name][slots] = value - self.lr * grad


def padded(lessons: Sequence[Lesson], device: torch.device) -> tuple[Tensor, Tensor]:
    """As the scorer pads windows."""
    return scorer.padded(
        [each.tokens for each in lessons], [each.first for each in lessons], device
    )


def _parts(lessons: Sequence[tuple[int, Lesson]], batch_tokens: int) -> Iterator[list[int]]:
    """Rows in batches of at most `batch_tokens`, or of one."""
    part: list[int] = []
    longest = 0
    for row, (_, lesson) in enumerate(lessons):
        longest = max(longest, len(lesson.tokens))
        if part and (len(part) + 1) * longest > batch_tokens:
            yield part
            part, longest = [], len(lesson.tokens)
        part.append(row)
    yield part


def low_rank_start(
    model: LanguageModel, targets: Sequence[str], rank: int, seed: int
) -> dict[str, Tensor]:
    """Zero deltas: random maps down and zero maps up, and a zero bias if "bias" is a target.

    A target is the end of the names of linear maps of the trunk: "query", "mlp.up". Raises
    `ConfigError` for one that no map has.
    """
    generator = torch.Generator().manual_seed(seed)
    linear = {n: m for n, m in model.trunk.named_modules() if isinstance(m, nn.Linear)}
    device = next(model.parameters()).device
    start: dict[str, Tensor] = {}
    for target in targets:
        if target == BIAS:
            start[BIAS] = torch.zeros(model.head.shape.vocab_size, device=device)
            continue
        found = {name: m for name, m in linear.items() if name.endswith(f".{target}")}
        if not found:
            ends = {name.split(".", 2)[-1] for name in linear}
            raise ConfigError(
                f"adapt.targets has {target!r}, which no linear map of the trunk ends in; "
                f"known: {', '.join(sorted(ends | {BIAS}))}"
            )
        for name, module in found.items():
            down = torch.randn(rank, module.in_features, generator=generator)
            start[f"{name}/down"] = (down / math.sqrt(module.in_features)).to(device)
            start[f"{name}/up"] = torch.zeros(module.out_features, rank, device=device)
    return start


def low_rank_deltas(values: Mapping[str, Tensor]) -> Deltas:
    """The tensors of `low_rank_start`, with an axis of slots, as deltas."""
    names = [name.removesuffix("/down") for name in values if name.endswith("/down")]
    pairs = {name: (values[f"{name}/down"], values[f"{name}/up"]) for name in names}
    return Deltas(low_rank=pairs, bias=values.get(BIAS))


def own_tensors(model: LanguageModel, kinds: Sequence[str]) -> dict[str, Tensor]:
    """The model's own trainable tensors that are stored as these kinds, as a start.

    Raises `ConfigError` for a kind (table, matrix, vector) that none has.
    """
    trainable = dict(model.named_parameters())
    stored = [(name, kind) for name, _, kind in model.stored() if name in trainable]
    for kind in kinds:
        if all(kind != other for _, other in stored):
            known = ", ".join(sorted({kind for _, kind in stored}))
            raise ConfigError(f"adapt.targets has {kind!r}; this model has {known}")
    return {name: trainable[name] for name, kind in stored if kind in kinds}


def own_deltas(values: Mapping[str, Tensor]) -> Deltas:
    """Tensors with an axis of one slot in place of the model's own."""
    return Deltas(tensors={name: tensor[0] for name, tensor in values.items()})
