"""A slow twin of a whole training run, written from what the docs and docstrings say.

One process, whole batches, no autocast, no fused kernel, all in double precision. The model's
forward pass and its initial weights are the project's own; all that `train` does with them is here
a second time: the order of batches, gradients, both optimizers, schedules, averages.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from tokgolf.artifact.checkpoint import MODEL_PREFIX, read_checkpoint
from tokgolf.corpora import Document
from tokgolf.heads import head_config
from tokgolf.heads.base import Unties
from tokgolf.model import build_model, head_shape
from tokgolf.tokenizers import Tokenizer
from tokgolf.training import RunConfig

JORDAN = (3.4445, -4.7750, 2.0315)  # https://kellerjordan.github.io/posts/muon/
POLAR_EXPRESS = [  # Amsel et al., arXiv 2505.16932; all but the last one are made safe by 1.01
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
]
SAFE = 1.01


class Twin:
    """`run` trains; `losses` and `scales` are then those of the steps.

    What it computes is in methods of a few lines, so that a test can get one of them wrong.
    """

    muon_eps = 1e-7  # added to what a matrix and its rows are divided by

    def __init__(
        self, config: RunConfig, tokenizer: Tokenizer, documents: Iterable[Document]
    ) -> None:
        self.config = config
        ids = [np.append(tokenizer.bos_id, tokenizer.encode(d.data)) for d in documents]
        self.stream = torch.from_numpy(np.concatenate(ids).astype(np.int64))
        torch.manual_seed(config.seed)
        self.model = build_model(
            config.trunk,
            head_config(config.head),
            head_shape(tokenizer, config.trunk),
            torch.bincount(self.stream, minlength=tokenizer.vocab_size),
        )
        self.frozen: set[str] = set()
        if config.trunk_from:
            tensors, _ = read_checkpoint(Path(config.trunk_from))
            names = [n for n, _ in self.model.named_parameters() if n.startswith("trunk.")]
            trunk = {name: tensors[MODEL_PREFIX + name] for name in names}
            self.model.load_state_dict(trunk, strict=False)
            self.frozen = {*names} if config.freeze_trunk else set()
        self.model.double().train()
        self.roles = {n: g.role for g in self.model.param_groups() for n in g.parameters}
        self.momentum: dict[str, Tensor] = {}
        self.moments: dict[str, tuple[Tensor, Tensor]] = {}
        self.average = self.weights()
        self.averaged = 0
        self.losses: list[float] = []
        self.scales: list[float] = []

    def weights(self) -> dict[str, Tensor]:
        """Those that training goes on from."""
        return {n: p.detach().clone() for n, p in self.model.named_parameters()}

    def exported(self) -> dict[str, Tensor]:
        """Those that are the model at the end."""
        return self.average if self.averaged else self.weights()

    def run(self) -> Self:
        for step in range(self.config.steps):
            self.train_step(step)
        return self

    def due(self, step: int, fraction: float) -> bool:
        """Whether what begins at this fraction of the budget has begun by `step`, from 0."""
        return step / self.config.steps >= fraction

    def train_step(self, step: int) -> None:
        config, head = self.config, self.model.head
        inputs, targets = self.batch(step)
        if not self.due(step, config.short_until):
            inputs = inputs.reshape(-1, config.short_length)
            targets = targets.reshape(-1, config.short_length)
        once = replace(config.trunk, loops=1, loop_rank=0)
        self.model.trunk.config = config.trunk if self.due(step, config.loops_from) else once
        if isinstance(head, Unties) and head.untie_at and self.due(step, head.untie_at):
            self.untie(head)
        self.model.zero_grad()
        loss = self.model.nll(inputs, targets).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        self.losses.append(loss.item())
        self.scales.append(self.rate_scale(step))
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                if name not in self.frozen and p.grad is not None:
                    self.update(name, p, p.grad, step)
        self.take_average(step + 1)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets.  # (rows, length) each"""
        length = self.config.trunk.sequence_length
        rows = self.config.batch_tokens // length
        windows = (len(self.stream) - length) // length
        found = []
        for index in range(step * rows, (step + 1) * rows):
            epoch, place = divmod(index, windows)
            random = np.random.Generator(np.random.PCG64([self.config.seed, epoch]))
            offset = int(random.integers(length))
            start = offset + length * int(random.permutation(windows)[place])
            found.append(self.stream[start : start + length + 1])
        both = torch.stack(found)
        return both[:, :-1], both[:, 1:]

    def untie(self, head: Unties) -> None:
        for new, old in head.untie().items():
            new, old = f"head.{new}", f"head.{old}"
            self.roles[new] = self.roles[old]
            self.moments[new] = self.moments[old]
            self.average[new] = self.average[old]

    def rate_scale(self, step: int) -> float:
        config = self.config
        length = config.warmdown_steps or config.warmdown_fraction * config.steps
        left = min(1.0, (config.steps - step) / length) if length else 1.0
        return config.warmdown_to + (1 - config.warmdown_to) * left

    def update(self, name: str, p: nn.Parameter, grad: Tensor, step: int) -> None:
        o, role, scale = self.config.optimizer, self.roles[name], self.rate_scale(step)
        if role == "matrix":
            rate = o.lr_matrix * scale
            direction = self.direction(name, grad, step)
            if o.muon_rows:
                direction = direction / (direction.norm(dim=1, keepdim=True) + self.muon_eps)
            p.mul_(1 - rate * o.muon_decay)
            p.sub_(rate * self.shape_scale(p) * self.orthogonal(direction))
        else:
            p.sub_(getattr(o, f"lr_{role}") * scale * self.adam(name, grad, step))

    def adam(self, name: str, grad: Tensor, step: int) -> Tensor:
        o = self.config.optimizer
        first, second = self.moments.get(name, (torch.zeros_like(grad), torch.zeros_like(grad)))
        first = o.adam_beta1 * first + (1 - o.adam_beta1) * grad
        second = o.adam_beta2 * second + (1 - o.adam_beta2) * grad**2
        self.moments[name] = first, second
        mean = first / (1 - o.adam_beta1 ** (step + 1))
        square = second / (1 - o.adam_beta2 ** (step + 1))
        return mean / (square.sqrt() + o.adam_eps)

    def direction(self, name: str, grad: Tensor, step: int) -> Tensor:
        """Nesterov momentum."""
        o = self.config.optimizer
        part = min(1.0, step / o.muon_momentum_steps)
        beta = o.muon_momentum_start + part * (o.muon_momentum - o.muon_momentum_start)
        self.momentum[name] = beta * self.momentum.get(name, torch.zeros_like(grad)) + grad
        return grad + beta * self.momentum[name]

    def shape_scale(self, p: Tensor) -> float:
        return float(max(1.0, p.size(0) / p.size(1)) ** 0.5)

    def narrow(self, x: Tensor) -> Tensor:
        """What `train` has in bf16: all that `orthogonal` computes. Here it is exact."""
        return x

    def orthogonal(self, direction: Tensor) -> Tensor:
        o, narrow = self.config.optimizer, self.narrow
        polar = o.muon_coefficients == "polar-express"
        x = narrow(direction if direction.size(0) <= direction.size(1) else direction.T)
        x = narrow(x / narrow(narrow(x.norm()) * (SAFE if polar else 1) + self.muon_eps))
        for i in range(o.muon_iterations):
            a, b, c = POLAR_EXPRESS[min(i, 7)] if polar else JORDAN
            if polar and i < 7:
                a, b, c = a / SAFE, b / SAFE**3, c / SAFE**5
            square = narrow(x @ x.T)
            x = narrow(a * x + narrow(b * square + c * square @ square) @ x)
        return x if direction.size(0) <= direction.size(1) else x.T

    def take_average(self, step: int) -> None:
        """After so many steps."""
        options = self.config.average
        if options.ema:
            part = 1 - self.decay(step)
        elif options.swa_from == 1:
            return
        elif step / self.config.steps >= options.swa_from and step % options.swa_every == 0:
            part = 1 / (self.averaged + 1)
        else:
            return
        self.averaged += 1
        now = self.weights()
        self.average = {n: w + part * (now[n] - w) for n, w in self.average.items()}

    def decay(self, step: int) -> float:
        return min(self.config.average.ema, (1 + step) / (10 + step))
