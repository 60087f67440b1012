"""Muon for matrices, Adam for everything else, and the coverage check over both.

Matrices are those between vectors: the trunk's, and the projections of heads and add-ons. Muon
(Jordan 2024) replaces a matrix's momentum by its nearest semi-orthogonal matrix, found with a few
Newton-Schulz steps. Matrices of one shape are orthogonalised as one batch: at the sizes of this
project the cost is in the number of calls, not in the arithmetic.
"""

import math
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tokgolf.config import check_positive, check_types
from tokgolf.errors import ConfigError, TrainingError
from tokgolf.heads.base import Role
from tokgolf.model import LanguageModel
from tokgolf.training.distributed import ALONE, Ranks
from tokgolf.training.shares import Shares, gradient_of

MAX_RATE = 1e38  # of a learning rate: a float32 holds little more


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Learning rate of each role, above 0, and optimizers' constants; defaults are the baseline's.

    Source: openai/parameter-golf, record 2026-03-17 "NaiveBaseline".
    """

    lr_tied: float = 0.05
    lr_input: float = 0.6
    lr_output: float = 0.008
    lr_matrix: float = 0.04
    lr_vector: float = 0.04

    adam_beta1: float = 0.9
    """From 0 to below 1, as `adam_beta2`."""

    adam_beta2: float = 0.95
    adam_eps: float = 1e-8

    muon_momentum: float = 0.95
    """From 0 to below 1, like `muon_momentum_start`, from which it rises linearly."""

    muon_momentum_start: float = 0.85

    muon_momentum_steps: int = 500
    """Steps of training until `muon_momentum` is reached; the first has `muon_momentum_start`."""

    muon_iterations: int = 5
    """Steps of `orthogonalize`; at least 1."""

    muon_coefficients: Literal["constant", "polar-express"] = "constant"
    """The second brings the singular values nearer to 1 in as many steps."""

    muon_rows: bool = False
    """Brings all rows of what is to be orthogonalised, the gradient with Nesterov's momentum, to
    one length, but for 1e-7 that is added to each row's own."""

    muon_decay: float = 0.0
    """Decoupled weight decay of matrices, a part of the step's learning rate, taken off before the
    step; 0.1 is usual. Times `lr_matrix` it is from 0 to below 1."""

    def __post_init__(self) -> None:
        check_types(self)
        rates = "lr_tied", "lr_input", "lr_output", "lr_matrix", "lr_vector"
        check_positive(self, *rates)
        for name in rates:
            if not getattr(self, name) <= MAX_RATE:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}; it must be at most {MAX_RATE:g}"
                )
        check_positive(self, "adam_eps", "muon_iterations", "muon_momentum_steps")
        for name in ("adam_beta1", "adam_beta2", "muon_momentum", "muon_momentum_start"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be in [0, 1)")
        if not 0 <= self.muon_decay * self.lr_matrix < 1:
            raise ConfigError(
                f"muon_decay {self.muon_decay} times lr_matrix {self.lr_matrix} must be in [0, 1); "
                "0.1 is usual"
            )

    def rate(self, role: Role) -> float:
        """Base learning rate of a role."""
        return float(getattr(self, f"lr_{role}"))


CONSTANT = (3.4445, -4.7750, 2.0315)
"""Source: Jordan et al., https://kellerjordan.github.io/posts/muon/."""

SAFETY = 1.01
"""Rounding in bf16 must not take a singular value out of a polynomial's range."""
POLAR_EXPRESS = (
    *(
        (a / SAFETY, b / SAFETY**3, c / SAFETY**5)
        for a, b, c in (
            (8.28721201814563, -23.595886519098837, 17.300387312530933),
            (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
            (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
            (3.3184196573706015, -2.488488024314874, 0.51004894012372),
            (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
            (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
            (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
        )
    ),
    (1.875, -1.25, 0.375),
)
"""Minimax polynomials for singular values from 0.001 to 1, one a step. The last one, for all steps
that follow, leaves a 1 as it is, so it alone has no safety factor.
Source, of the factor too: Amsel et al., arXiv 2505.16932."""


def orthogonalize(matrices: Tensor, iterations: int = 5, *, polar_express: bool = False) -> Tensor:
    """Approximate the nearest semi-orthogonal matrices by quintic Newton-Schulz steps, in bf16.

    They start from the matrix over its Frobenius norm + 1e-7; with `polar_express`, that norm
    times 1.01.
    Singular values that are 0.001 to 1 of their matrix's norm are 0.47 to 1.20 after 5 steps, and
    with `polar_express` 0.84 to 1.12 after 5 and within 0.7 % of 1 after 6, but for the rounding.

    (batch, rows, columns) -> (batch, rows, columns)
    """
    x = matrices.bfloat16()
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * (SAFETY if polar_express else 1) + 1e-7)
    for step in range(iterations):
        a, b, c = POLAR_EXPRESS[min(step, len(POLAR_EXPRESS) - 1)] if polar_express else CONSTANT
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon:
    """Nesterov momentum, orthogonalised; the step is scaled by sqrt(max(1, rows / columns)).

        momentum = beta * momentum + gradient
        update = orthogonalize(gradient + beta * momentum)

    The gradient's factor is 1 as in Jordan's, not 1 - beta as in torch.optim.Muon: while beta rises
    they are not the same.

    Tensors that require no gradient yet are left as they are, without decay too, until they do:
    all at once.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], config: OptimizerConfig) -> None:
        self.config = config
        alike: dict[tuple[torch.Size, bool], dict[str, nn.Parameter]] = defaultdict(dict)
        for name, parameter in parameters.items():
            alike[parameter.shape, parameter.requires_grad][name] = parameter
        self.batches = list(alike.values())
        self.names = [name for batch in self.batches for name in batch]
        self.momentum = [
            torch.stack([torch.zeros_like(p) for p in batch.values()]) for batch in self.batches
        ]

    @torch.no_grad()
    def step(self, step: int, scale: float) -> None:
        """Update from the gradients; `step` counts from 0, `scale` multiplies the rate."""
        c = self.config
        warmed = min(1.0, step / c.muon_momentum_steps)
        beta = (1 - warmed) * c.muon_momentum_start + warmed * c.muon_momentum
        for batch, momentum in zip(self.batches, self.momentum, strict=True):
            if not next(iter(batch.values())).requires_grad:
                continue
            gradient = torch.stack([gradient_of(name, p) for name, p in batch.items()])
            momentum.mul_(beta).add_(gradient)
            wanted = gradient.add_(momentum, alpha=beta)
            if c.muon_rows:
                wanted /= wanted.norm(dim=-1, keepdim=True) + 1e-7
            update = orthogonalize(
                wanted, c.muon_iterations, polar_express=c.muon_coefficients == "polar-express"
            ).float()
            rows, columns = update.shape[-2:]
            rate = c.lr_matrix * scale * max(1.0, rows / columns) ** 0.5
            if c.muon_decay:
                torch._foreach_mul_([*batch.values()], 1 - c.lr_matrix * scale * c.muon_decay)
            torch._foreach_add_([*batch.values()], [*update.unbind()], alpha=-rate)

    def state(self) -> dict[str, Tensor]:
        """Momentum of each matrix, by name."""
        pairs = zip(self.batches, self.momentum, strict=True)
        return {name: m for batch, stack in pairs for name, m in zip(batch, stack, strict=True)}


class Adam:
    """Adam (Kingma & Ba 2014) with a learning rate for each tensor and no weight decay.

    `rates` may name tensors that another rank trains.
    """

    def __init__(
        self, parameters: dict[str, nn.Parameter], rates: dict[str, float], config: OptimizerConfig
    ) -> None:
        groups = [
            {"params": [p for n, p in parameters.items() if rates[n] == rate], "rate": rate}
            for rate in sorted(set(rates.values()))
        ]
        betas = (config.adam_beta1, config.adam_beta2)
        self.parameters = parameters
        self.rates = rates
        self.adam = torch.optim.Adam(groups, betas=betas, eps=config.adam_eps, fused=True)

    def copy(self, name: str, parameter: nn.Parameter, source: str) -> None:
        """Take over `parameter` with the rate and the state that `source` has."""
        self.rates[name] = self.rates[source]
        before = self.adam.state[self.parameters[source]]
        self.parameters[name] = parameter
        group = next(g for g in self.adam.param_groups if g["rate"] == self.rates[source])
        group["params"].append(parameter)
        self.adam.state[parameter] = {key: value.clone() for key, value in before.items()}

    def step(self, scale: float) -> None:
        """Update from the gradients; `scale` multiplies every rate."""
        for name, parameter in self.parameters.items():
            gradient_of(name, parameter)
        for group in self.adam.param_groups:
            group["lr"] = group["rate"] * scale
        self.adam.step()


class Optimizers:
    """Both optimizers over all of a model's trainable tensors, each in exactly one group.

    `frozen` are the tensors that stay as they are, by name; none is but these. Of several ranks
    each has the optimizers of its own parts only.
    """

    def __init__(
        self,
        model: LanguageModel,
        config: OptimizerConfig,
        frozen: Collection[str] = (),
        ranks: Ranks = ALONE,
    ) -> None:
        found = check_coverage(model, config).items()
        roles = {name: role for name, role in found if name not in frozen}
        self.rates = {n: (f"optimizer.lr_{role}", config.rate(role)) for n, role in roles.items()}
        self.model = model
        self.ranks = ranks
        matrices = {name for name, role in roles.items() if role == "matrix"}
        trained = {n: p for n, p in model.named_parameters() if n in roles}
        self.shares = Shares(trained, ranks, matrices)
        own = self.shares.own
        self.muon = Muon({n: p for n, p in own.items() if n in matrices}, config)
        others = {n: p for n, p in own.items() if n not in matrices}
        rates = {name: config.rate(role) for name, role in roles.items() if name not in matrices}
        self.adam = Adam(others, rates, config)

    @property
    def names(self) -> list[str]:
        """Every tensor that is trained."""
        return [*self.shares.parameters]

    @torch.no_grad()
    def gradient_norms(self) -> Tensor:
        """Norm of the gradient of this rank's part of each of `names`, or 0.  # (names,)"""
        gradients = [gradient_of(name, p) for name, p in self.shares.own.items()]
        return self.shares.spread(torch.stack(torch._foreach_norm(gradients)))

    @torch.no_grad()
    def largest_weights(self) -> Tensor:
        """The largest absolute value in each of `names`.  # (names,)"""
        return torch.stack(torch._foreach_norm([*self.shares.parameters.values()], math.inf))

    def adopt(self, copies: dict[str, str]) -> None:
        """Train new tensors of the model too, each a copy of one trained by Adam.

        `copies` are full names, new -> old.
        """
        named = dict(self.model.named_parameters())
        for name, source in copies.items():
            self.rates[name] = self.rates[source]
            self.shares.adopt(name, named[name], source)
            if source in self.shares.own:
                self.adam.copy(name, self.shares.own[name], source)

    def step(self, step: int, scale: float) -> None:
        """Update every tensor, then clear the gradients."""
        self.muon.step(step, scale)
        self.adam.step(scale)
        self.shares.gather()
        self.model.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs, as tensors by name; the lead gets all ranks'."""
        tensors = {f"muon.{name}": buffer for name, buffer in self.muon.state().items()}
        for name, parameter in self.adam.parameters.items():
            for key, value in self.adam.adam.state[parameter].items():
                tensors[f"adam.{key}.{name}"] = value
        return self.ranks.gather_named(tensors)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state` gave. Raises `TrainingError` if a tensor is missing."""
        try:
            for name, buffer in self.muon.state().items():
                buffer.copy_(tensors[f"muon.{name}"])
            for name, parameter in self.adam.parameters.items():
                part = self.shares.mine[name]
                self.adam.adam.state[parameter] = {
                    key: part.of(tensors[f"adam.{key}.{name}"]).to(parameter.device)
                    for key in ("step", "exp_avg", "exp_avg_sq")
                }
        except KeyError as error:
            raise TrainingError(f"the checkpoint holds no optimizer state {error}") from error


def check_coverage(model: LanguageModel, config: OptimizerConfig) -> dict[str, Role]:
    """The role of every trainable tensor, by name.

    Raises `TrainingError`, naming the tensor, unless each is in exactly one group and that
    group's learning rate is above zero. Much of the public evidence on output heads is void
    because a new tensor was in no group.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    roles: dict[str, Role] = {}
    for role, parameters in model.param_groups():
        for listed, parameter in parameters.items():
            name = names.get(id(parameter))
            if name is None:
                raise TrainingError(f"{listed} is in a parameter group but not in the model")
            if name in roles:
                raise TrainingError(f"{name} is in two parameter groups: {roles[name]} and {role}")
            if not config.rate(role) > 0:
                raise TrainingError(f"{name} has learning rate {config.rate(role)}; it must be > 0")
            roles[name] = role
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.numel() and name not in roles:
            raise TrainingError(f"{name} is trainable but in no parameter group")
    return roles
