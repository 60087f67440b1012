"""The Head: both ends of the vocabulary, the embedding in and the distribution out.

Most heads are one softmax: a linear classifier over hidden states with a matrix that the head
generates from what it stores (`LinearHead`). Some are not (`StructuredHead`: adaptive, grouped,
mixture) and say ln p themselves. Add-ons go onto any of them. For all, with s = 0 columns unless
an add-on brings some:

    z = cap([features(hidden, prev); s(prev)] @ [matrix(); S].T + bias + bigrams[prev])
    p = softmax(z) over the tokens that may follow prev

where a structured head puts its ln p in the place of the product, and has no cap here. Everything
that turns z into a probability or a loss is written here, once, so that normalisation, softcap and
mask cannot differ between two heads that are compared. The trunk and the training loop never know
which head they run.

Axes: batch, time, d_model (trunk width), vocab, n (any number of positions), features.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, cast, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokgolf.config import to_dict
from tokgolf.errors import ConfigError
from tokgolf.hashing import BigramBuckets

StoredKind = Literal["table", "matrix", "codes", "vector"]
"""How a tensor is stored: quantized with one step (`matrix`, and `vector` of small parameters) or
one for each row (`table`), or as packed integers (`codes`). A head's projections are tables too:
they are small, every token goes through them, and tables get finer steps than the trunk's
matrices."""

Role = Literal["tied", "input", "output", "matrix", "vector"]
"""How a tensor is trained: tables that serve both ends, the input or the output end (Adam, one
learning rate each), hidden matrices (Muon), and vectors or scalars (Adam)."""

Packed = np.ndarray[tuple[int, int], np.dtype[np.uint8]]
"""Pairs of ids as bits, (vocab, ceil(vocab / 8)), as `np.packbits` packs a row."""


MAX_SOFTCAP = 1_000_000  # far more than any logit; z / cap must not vanish in fp32


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
    """What a head must know of its surroundings.

    `token_bytes` and `successors` are the tokenizer's, for heads and add-ons that are made from
    it; they stay at None where none of these is built.
    """

    vocab_size: int
    d_model: int
    bos_id: int
    bigram: BigramBuckets | None = None  # the tokenizer's own, if it carries one
    token_bytes: tuple[bytes, ...] | None = None
    successors: Callable[[], Packed] | None = None


@dataclass(frozen=True, kw_only=True)
class AddOnConfig(ABC):
    """Options of an add-on."""

    name: ClassVar[str]

    @abstractmethod
    def num_params(self, shape: HeadShape) -> int:
        """Trainable parameters, known before anything is built."""

    @abstractmethod
    def flops(self, shape: HeadShape) -> int:
        """Forward multiply-adds a token, times two."""

    @abstractmethod
    def build(self, shape: HeadShape, counts: Tensor | None) -> "AddOn":
        """The module; `counts` as in `HeadConfig.build`."""


@dataclass(frozen=True, kw_only=True)
class HeadConfig(ABC):
    """Options of a head. A config counts and builds; the module it builds does the rest."""

    name: ClassVar[str]

    softcap: float = 30.0
    """z = cap * tanh(z / cap); 0 switches it off. Monotone, and bounded away from p = 0."""

    add: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Add-ons by name, with their options."""

    def __post_init__(self) -> None:
        if not 0 <= self.softcap <= MAX_SOFTCAP:
            raise ConfigError(
                f"softcap is {self.softcap}; it must be 0 (off) or positive, up to {MAX_SOFTCAP:,}"
            )
        # Every option in full: an artifact must not depend on what is the default today.
        full = {name: to_dict(addon) for name, addon in self.addons().items()}
        object.__setattr__(self, "add", full)

    @abstractmethod
    def _num_params(self, shape: HeadShape) -> int:
        """Trainable parameters without add-ons."""

    @abstractmethod
    def _flops(self, shape: HeadShape) -> int:
        """Forward multiply-adds a token without add-ons, times two; lookups are free."""

    @abstractmethod
    def _build(self, shape: HeadShape, counts: Tensor | None) -> "Head":
        """The module without add-ons."""

    @final
    def addons(self) -> dict[str, AddOnConfig]:
        """The add-ons' configs, sorted by name."""
        # The registry imports the heads, so it can only be reached late. (To a type checker this
        # file has two names, and what comes back is not of the class above, hence the casts.)
        from tokgolf.heads import addon_config

        return {n: cast(Any, addon_config(n, self.add[n])) for n in sorted(self.add)}

    @final
    def num_params(self, shape: HeadShape) -> int:
        """Trainable parameters, known before anything is built."""
        own = self._num_params(shape)
        return own + sum(addon.num_params(shape) for addon in self.addons().values())

    @final
    def flops(self, shape: HeadShape) -> int:
        """Forward floating-point operations a token (a multiply-add is two)."""
        return self._flops(shape) + sum(addon.flops(shape) for addon in self.addons().values())

    @final
    def build(self, shape: HeadShape, counts: Tensor | None = None) -> "Head":
        """The module. `counts` (vocab,) are the training tokens' counts, for heads whose stored
        tensors start from them; without it these are left at zero, to be loaded.

        Raises `ConfigError` for options that do not fit the vocabulary or the width.
        """
        if counts is not None and counts.shape != (shape.vocab_size,):
            raise ConfigError(
                f"{counts.numel()} token counts for a vocabulary of {shape.vocab_size}"
            )
        head = self._build(shape, counts)
        for name, addon in self.addons().items():
            head.addons[name] = addon.build(shape, counts)
        return head


class Extra(NamedTuple):
    """What an add-on adds to the classifier; see the module's text for each one's place."""

    features: Tensor | None = None  # (n, columns)
    matrix: Tensor | None = None  # (vocab, columns)
    bias: Tensor | None = None  # (vocab,)
    bigrams: Tensor | None = None  # (vocab, vocab): logits of every token, by the one before
    successors: Tensor | None = None  # (vocab, ceil(vocab / 8)) uint8


class Classifier(NamedTuple):
    """A softmax before it is evaluated: cap(features @ matrix.T + bias + bigrams[prev]), masked."""

    features: Tensor  # (n, features)
    matrix: Tensor  # (vocab, features)
    bias: Tensor | None  # (vocab,)
    bigrams: Tensor | None  # (vocab, vocab)
    successors: Tensor | None  # (vocab, ceil(vocab / 8)) uint8
    softcap: float


class AddOn(nn.Module, ABC):
    """Something beside a head: more input, more logits, fewer tokens that may follow."""

    needs: ClassVar[tuple[str, ...]] = ()
    """Modules that scoring imports for this add-on beside its own: they cost bytes."""

    @abstractmethod
    def embed(self, tokens: Tensor, prev: Tensor) -> Tensor | None:
        """Added to the input vectors.  # (batch, time), (batch, time) -> (batch, time, d_model)"""

    @abstractmethod
    def extra(self, prev: Tensor) -> Extra:
        """Added to the classifier; `prev` (n,) is the last known token of each position."""

    @abstractmethod
    def stored(self) -> Iterator[Stored]:
        """As `Head.stored`, by local names."""

    @abstractmethod
    def param_groups(self) -> Iterator[ParamGroup]:
        """As `Head.param_groups`, by local names."""


class Head(nn.Module, ABC):
    """Base of all heads. See the module's text for the contract."""

    def __init__(self, shape: HeadShape, softcap: float) -> None:
        super().__init__()
        self.shape = shape
        self.softcap = softcap
        self.addons = nn.ModuleDict()

    @abstractmethod
    def _embed(self, tokens: Tensor, prev: Tensor) -> Tensor:
        """Input vectors without add-ons.  # (batch, time), same -> (batch, time, d_model)"""

    @abstractmethod
    def _stored(self) -> Iterator[Stored]:
        """Every tensor of the head's own that costs bytes."""

    @abstractmethod
    def _param_groups(self) -> Iterator[ParamGroup]:
        """A partition of all trainable tensors of the head's own into roles."""

    @abstractmethod
    def logits(self, hidden: Tensor, prev: Tensor) -> Tensor:
        """Numbers of at least fp32 whose softmax is p; -inf for a token that cannot follow.

        `prev` is the last known token, the one before the target.
        hidden (n, d_model), prev (n,) -> (n, vocab)
        """

    @abstractmethod
    def loss(
        self, hidden: Tensor, targets: Tensor, prev: Tensor, table: Tensor | None = None
    ) -> Tensor:
        """The sum of `nll`, for training: in chunks, so that memory stays small. A scalar.

        `table` as in `embed`.
        """

    @final
    def embed(self, tokens: Tensor, prev: Tensor, table: Tensor | None = None) -> Tensor:
        """Input vectors of `tokens`; `prev` is the token before each (BOS where none is known).

        `table` is what a head that `Generates` its rows made for this pass; without it they are
        made here.

        tokens, prev (batch, time) int64, table (vocab, d_model) -> (batch, time, d_model)
        """
        x = self._embed(tokens, prev) if table is None else F.embedding(tokens, table)
        for addon in self._addons().values():
            more = addon.embed(tokens, prev)
            x = x if more is None else x + more
        return x

    @final
    def log_probs(self, hidden: Tensor, prev: Tensor) -> Tensor:
        """ln p over the whole vocabulary in fp32, whatever autocast is on: the only scorer.

        hidden (n, d_model), prev (n,) -> (n, vocab)
        """
        with torch.autocast(hidden.device.type, enabled=False):
            return F.log_softmax(self.logits(hidden.float(), prev), dim=-1)

    @final
    def nll(self, hidden: Tensor, targets: Tensor, prev: Tensor) -> Tensor:
        """Nats of each target; may run in mixed precision.  # (n, d), (n,), (n,) -> (n,)"""
        return F.cross_entropy(self.logits(hidden, prev), targets, reduction="none")

    @final
    def stored(self) -> Iterator[Stored]:
        """Every tensor that costs bytes. What a seed or the tokenizer regenerates is absent."""
        yield from self._stored()
        for addon, part in self._addons().items():
            for name, tensor, kind in part.stored():
                yield Stored(f"addons.{addon}.{name}", tensor, kind)

    @final
    def param_groups(self) -> Iterator[ParamGroup]:
        """A partition of all trainable tensors into roles."""
        yield from self._param_groups()
        for addon, part in self._addons().items():
            for role, named in part.param_groups():
                yield ParamGroup(role, {f"addons.{addon}.{name}": p for name, p in named.items()})

    @final
    def modules_needed(self) -> tuple[str, ...]:
        """What scoring imports for the add-ons beside their own modules: it costs bytes."""
        return tuple(name for addon in self._addons().values() for name in addon.needs)

    @final
    def extras(self, prev: Tensor) -> list[Extra]:
        """What each add-on brings to the classifier.  # (n,)"""
        return [addon.extra(prev) for addon in self._addons().values()]

    def _addons(self) -> Mapping[str, AddOn]:
        return cast(Mapping[str, AddOn], dict(self.addons.items()))


class LinearHead(Head):
    """A head that is one softmax over features times a matrix."""

    @abstractmethod
    def features(self, hidden: Tensor, prev: Tensor) -> Tensor:
        """What the classifier sees.  # (n, d_model), (n,) -> (n, features)"""

    @abstractmethod
    def matrix(self) -> Tensor:
        """The classifier's matrix, built anew from what is stored.  # (vocab, features)"""

    @abstractmethod
    def bias(self) -> Tensor | None:
        """The classifier's bias, or none.  # (vocab,)"""

    @final
    def classifier(self, hidden: Tensor, prev: Tensor, table: Tensor | None = None) -> Classifier:
        """The head's own with that of all add-ons beside it; `table` as in `embed`."""
        matrix = self.matrix() if table is None else table
        own = Extra(self.features(hidden, prev), matrix, self.bias())
        parts = joined([own, *self.extras(prev)])
        assert parts.features is not None and parts.matrix is not None
        return Classifier(
            parts.features, parts.matrix, parts.bias, parts.bigrams, parts.successors, self.softcap
        )

    @final
    def logits(self, hidden: Tensor, prev: Tensor) -> Tensor:
        """As `Head.logits`."""
        c = self.classifier(hidden, prev)
        z = at_least_fp32(F.linear(c.features, c.matrix.to(c.features.dtype)))
        if c.bias is not None:
            z = z + c.bias
        if c.bigrams is not None:
            z = z + F.embedding(prev, c.bigrams)
        z = c.softcap * torch.tanh(z / c.softcap) if c.softcap else z
        return masked(z, c.successors, prev)

    @final
    def loss(
        self, hidden: Tensor, targets: Tensor, prev: Tensor, table: Tensor | None = None
    ) -> Tensor:
        """As `Head.loss`."""
        # Here, because scoring does without it.
        from tokgolf.heads.loss import linear_loss

        return linear_loss(cast(Any, self.classifier(hidden, prev, table)), targets, prev)


class StructuredHead(Head):
    """A head that is not one softmax, and gives ln p itself: normalised, differentiable."""

    @abstractmethod
    def own_log_probs(self, hidden: Tensor, prev: Tensor) -> Tensor:
        """ln p of at least fp32, without add-ons; any softcap is within.

        hidden (n, d_model), prev (n,) -> (n, vocab)
        """

    @final
    def logits(self, hidden: Tensor, prev: Tensor) -> Tensor:
        """As `Head.logits`: add-ons' logits are added to ln p, which is normalised anew."""
        z = self.own_log_probs(hidden, prev)
        parts = joined(self.extras(prev))
        if parts.features is not None and parts.matrix is not None:
            z = z + F.linear(parts.features, parts.matrix)
        if parts.bias is not None:
            z = z + parts.bias
        if parts.bigrams is not None:
            z = z + F.embedding(prev, parts.bigrams)
        return masked(z, parts.successors, prev)

    @final
    def loss(
        self, hidden: Tensor, targets: Tensor, prev: Tensor, table: Tensor | None = None
    ) -> Tensor:
        """As `Head.loss`."""
        from tokgolf.heads.loss import chunked_loss

        return chunked_loss(self.nll, hidden, targets, prev, self.shape.vocab_size)


class Generates(ABC):
    """A linear head whose rows serve both ends and take work to make: x = W[t], z = h W^T.

    A pass through a model makes them once and hands them to both ends. They are an argument and
    never kept, so none is left from before an optimizer's step.
    """

    @abstractmethod
    def matrix(self) -> Tensor:
        """As `LinearHead.matrix`.  # (vocab, d_model)"""


class Unties(ABC):
    """A head that becomes another one on the way: the training loop asks for it once."""

    untie_at: float
    """The fraction of the training at which to call `untie`; 0 if it is done, or never due."""

    @abstractmethod
    def untie(self) -> dict[str, str]:
        """Make the tensors of the second phase as copies of the first's.

        Returns new name -> name it is a copy of, so that optimizer state can be copied too.
        """


def joined(parts: list[Extra]) -> Extra:
    """Several parts of a classifier as one: columns side by side, the rest summed."""
    features = [part.features for part in parts if part.features is not None]
    matrices = [part.matrix for part in parts if part.matrix is not None]
    biases = [part.bias for part in parts if part.bias is not None]
    bigrams = [part.bigrams for part in parts if part.bigrams is not None]
    masks = [part.successors for part in parts if part.successors is not None]
    assert len(features) == len(matrices) and len(bigrams) < 2 and len(masks) < 2
    wide = len(features) > 1
    return Extra(
        features=torch.cat([f.to(features[0].dtype) for f in features], 1)
        if wide
        else next(iter(features), None),
        matrix=torch.cat(matrices, 1) if wide else next(iter(matrices), None),
        bias=sum(biases[1:], biases[0]) if biases else None,
        bigrams=next(iter(bigrams), None),
        successors=next(iter(masks), None),
    )


def at_least_fp32(z: Tensor) -> Tensor:
    """`z` itself if it is fp32 or fp64, else in fp32."""
    return z if z.dtype == torch.float64 else z.float()


def stage(x: Tensor, matrix: Tensor, softcap: float) -> Tensor:
    """cap(x @ matrix.T) in at least fp32: the logits of one stage of a structured head.

    x (n, width), matrix (rows, width) -> (n, rows)
    """
    z = at_least_fp32(F.linear(x, matrix.to(x.dtype)))
    return softcap * torch.tanh(z / softcap) if softcap else z


def masked(z: Tensor, successors: Tensor | None, prev: Tensor) -> Tensor:
    """`z` with -inf for every token that cannot follow.  # (n, vocab), ..., (n,) -> (n, vocab)"""
    if successors is None:
        return z
    return z.masked_fill(~allowed(successors, prev, z.size(1)), -math.inf)


def allowed(successors: Tensor, prev: Tensor, vocab_size: int) -> Tensor:
    """Packed rows as booleans.  # (vocab, ceil(vocab / 8)) uint8, (n,) -> (n, vocab)"""
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=successors.device)
    bits = successors[prev].unsqueeze(-1) >> shifts & 1
    return bits.flatten(1)[:, :vocab_size].bool()


def check_range(config: object, low: int, high: int, *names: str) -> None:
    """Raise `ConfigError` unless every named option of `config` is from `low` to `high`."""
    for name in names:
        if not low <= getattr(config, name) <= high:
            raise ConfigError(
                f"{name} is {getattr(config, name)}; it must be from {low} to {high:,}"
            )


def check_not_negative(config: object, *names: str) -> None:
    """Raise `ConfigError` if a named option of `config` is below 0."""
    for name in names:
        if getattr(config, name) < 0:
            raise ConfigError(f"head {name} is {getattr(config, name)}; it cannot be negative")


def check_rank(shape: HeadShape, option: str, rank: int, instead: str = "") -> None:
    """Raise `ConfigError` for a rank above the width; `instead` is a head that would do better."""
    if rank > shape.d_model:
        raise ConfigError(
            f"head {option} {rank} is greater than d_model {shape.d_model}; "
            f"use a rank of at most {shape.d_model}" + (instead and f", or the {instead} head")
        )


def table(rows: int, columns: int, std: float) -> nn.Parameter:
    """A trainable table of N(0, std^2); zeros when std is 0.  # (rows, columns)"""
    values = torch.zeros(rows, columns)
    return nn.Parameter(values.normal_(0.0, std) if std else values)


def orthogonal(rows: int, columns: int) -> nn.Parameter:
    """A trainable matrix with orthonormal rows or columns, whichever are fewer."""
    return nn.Parameter(nn.init.orthogonal_(torch.empty(rows, columns)))
