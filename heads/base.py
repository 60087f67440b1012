"""The Head: both ends of the vocabulary, the embedding in and the distribution out.

A head is a linear classifier over (possibly extended) hidden states with a matrix that it
generates from what it stores:

    z = cap(features(hidden, prev) @ matrix().T + bias()),    p = softmax(z) over all V tokens

Subclasses say what `embed`, `features`, `matrix` and `bias` are; everything that turns z into a
probability or a loss is written here, once for all heads, so that normalisation and the softcap
cannot differ between two heads that are compared. The trunk and the training loop never know
which head they run.

Axes: batch, time, d_model (trunk width), vocab, n (any number of positions), features.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokgolf.errors import ConfigError
from tokgolf.hashing import BigramBuckets

StoredKind = Literal["table", "matrix", "codes", "vector"]
"""How a tensor is stored: `table` and `matrix` are quantized per row, `vector` as one row of
small parameters, `codes` as packed integers."""

Role = Literal["tied", "input", "output", "matrix", "vector"]
"""How a tensor is trained: tables that serve both ends, the input or the output end (Adam, one
learning rate each), hidden matrices (Muon), and vectors or scalars (Adam)."""


class Stored(NamedTuple):
    """A tensor that costs bytes in the artifact."""

    name: str
    tensor: Tensor
    kind: StoredKind


class ParamGroup(NamedTuple):
    """Trainable tensors that share a role, by their full name."""

    role: Role
    parameters: dict[str, nn.Parameter]


@dataclass(frozen=True, kw_only=True)
class HeadShape:
    """What a head must know of its surroundings."""

    vocab_size: int
    d_model: int
    bos_id: int
    bigram: BigramBuckets | None = None  # the tokenizer's own, if it carries one


@dataclass(frozen=True, kw_only=True)
class HeadConfig(ABC):
    """Options of a head. A config counts and builds; the module it builds does the rest."""

    name: ClassVar[str]

    softcap: float = 30.0
    """z = cap * tanh(z / cap); 0 switches it off. Monotone, and bounded away from p = 0."""

    def __post_init__(self) -> None:
        if not (self.softcap >= 0 and math.isfinite(self.softcap)):
            raise ConfigError(f"softcap is {self.softcap}; it must be 0 (off) or positive")

    @abstractmethod
    def num_params(self, shape: HeadShape) -> int:
        """Trainable parameters, known before anything is built."""

    @abstractmethod
    def build(self, shape: HeadShape, counts: Tensor | None = None) -> "Head":
        """The module. `counts` (vocab,) are the training tokens' counts, for heads whose
        stored codes depend on them; without it such codes are left at zero, to be loaded."""


class Head(nn.Module, ABC):
    """Base of all heads. See the module's text for the contract."""

    def __init__(self, shape: HeadShape, softcap: float) -> None:
        super().__init__()
        self.shape = shape
        self.softcap = softcap

    @abstractmethod
    def embed(self, tokens: Tensor, prev: Tensor) -> Tensor:
        """Input vectors of `tokens`; `prev` is the token before each (BOS where none is known).

        tokens, prev (batch, time) int64 -> (batch, time, d_model)
        """

    @abstractmethod
    def features(self, hidden: Tensor, prev: Tensor) -> Tensor:
        """What the classifier sees; `prev` is the last known token, the one before the target.

        hidden (n, d_model), prev (n,) -> (n, features)
        """

    @abstractmethod
    def matrix(self) -> Tensor:
        """The classifier's matrix, built anew from what is stored.  # (vocab, features)"""

    @abstractmethod
    def bias(self) -> Tensor | None:
        """The classifier's bias, or none.  # (vocab,)"""

    @abstractmethod
    def stored(self) -> Iterator[Stored]:
        """Every tensor that costs bytes. What a seed or the tokenizer regenerates is absent."""

    @abstractmethod
    def param_groups(self) -> Iterator[ParamGroup]:
        """A partition of all trainable tensors into roles."""

    def initial_loss(self) -> float:
        """Mean loss in nats that an untrained head must show: ln V for a (near) zero start."""
        return math.log(self.shape.vocab_size)

    def logits(self, hidden: Tensor, prev: Tensor) -> Tensor:
        """Softcapped fp32 logits.  # (n, d_model), (n,) -> (n, vocab)"""
        features, matrix = self.features(hidden, prev), self.matrix()
        z = F.linear(features, matrix.to(features.dtype)).float()
        bias = self.bias()
        if bias is not None:
            z = z + bias.float()
        return self.softcap * torch.tanh(z / self.softcap) if self.softcap else z

    def log_probs(self, hidden: Tensor, prev: Tensor) -> Tensor:
        """ln p over the whole vocabulary in fp32, whatever autocast is on: the only scorer.

        hidden (n, d_model), prev (n,) -> (n, vocab)
        """
        with torch.autocast(hidden.device.type, enabled=False):
            return F.log_softmax(self.logits(hidden.float(), prev), dim=-1)

    def nll(self, hidden: Tensor, targets: Tensor, prev: Tensor) -> Tensor:
        """Nats of each target; may run in mixed precision.  # (n, d), (n,), (n,) -> (n,)"""
        return F.cross_entropy(self.logits(hidden, prev), targets, reduction="none")


def table(rows: int, columns: int, std: float) -> nn.Parameter:
    """A trainable table of N(0, std^2); zeros when std is 0.  # (rows, columns)"""
    values = torch.zeros(rows, columns)
    return nn.Parameter(values.normal_(0.0, std) if std else values)


def orthogonal(rows: int, columns: int) -> nn.Parameter:
    """A trainable matrix with orthonormal rows or columns, whichever are fewer."""
    return nn.Parameter(nn.init.orthogonal_(torch.empty(rows, columns)))
