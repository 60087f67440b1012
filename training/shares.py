"""Which of several processes trains what, and the exchange of gradients and weights.

Optimizer states are divided over the ranks as in ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054,
stage 1): every number has one rank that trains it. A rank gets all gradients of its own parts (a
reduce-scatter, made of one all-to-all), sums and uses them, and all get all weights (one
all-gather). DistributedDataParallel, which sums whole gradients on every rank and lets each do all
of the optimizers' work, has as much traffic. Sums are fp32, in the order of the ranks, which is
that of one process's micro-batches: if each rank has one micro-batch, several processes compute
what one does, to the bit.
"""

import math
from bisect import bisect_right
from collections.abc import Collection
from itertools import accumulate, groupby, pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tokgolf.errors import ConfigError, TrainingError
from tokgolf.training.distributed import Ranks

LANES = 16
"""Tables are cut at multiples of so many numbers, as vector instructions take them: the numbers
that these leave over at an end are rounded otherwise, on a CPU."""


class Part(NamedTuple):
    """What one rank trains of a tensor: all of it, or some rows of a table."""

    name: str
    rank: int
    rows: slice | None = None  # all

    def of(self, tensor: Tensor) -> Tensor:
        """This part of the tensor, or of what is like it; a single number is not divided."""
        return tensor if self.rows is None or not tensor.dim() else tensor[self.rows]


class Shares:
    """Which rank trains what, as `divided`, and the exchange of gradients and weights.

    `own` is what this rank trains: tensors of the model, or leaves on the memory of their rows.
    """

    def __init__(
        self, parameters: dict[str, nn.Parameter], ranks: Ranks, matrices: Collection[str] = ()
    ) -> None:
        self.ranks = ranks
        self.parameters = parameters
        self.parts = divided({n: p.shape for n, p in parameters.items()}, matrices, ranks.size)
        self.own: dict[str, nn.Parameter] = {}
        self._lay_out()

    def adopt(self, name: str, parameter: nn.Parameter, source: str) -> None:
        """Train a new tensor where an old one is trained."""
        self.parameters[name] = parameter
        self.parts += [part._replace(name=name) for part in self.parts if part.name == source]
        self._lay_out()

    def _lay_out(self) -> None:
        """Make room for all parts, a row for each rank."""
        ranks, parameters = self.ranks, self.parameters
        self.mine = {part.name: part for part in self.parts if part.rank == ranks.rank}
        for name, part in self.mine.items():
            if name not in self.own:
                p = parameters[name]
                self.own[name] = p if part.rows is None else nn.Parameter(part.of(p.detach()))
        if ranks.size == 1:
            return
        self._weights = [part.of(parameters[part.name].detach()) for part in self.parts]
        used = [0] * ranks.size
        spans = []
        for part, weights in zip(self.parts, self._weights, strict=True):
            spans.append(slice(used[part.rank], used[part.rank] + weights.numel()))
            used[part.rank] += weights.numel()
        device = self._weights[0].device
        self._all = torch.zeros(ranks.size, max(used), device=device)
        self._room = torch.zeros_like(self._all)
        self._in_all, self._in_row = [], {}
        for part, span, weights in zip(self.parts, spans, self._weights, strict=True):
            self._in_all.append(self._all[part.rank, span].view_as(weights))
            if part.rank == ranks.rank:
                self._in_row[part.name] = self._room[0, span].view_as(weights)
        own = [i for i, name in enumerate(parameters) if name in self.own]
        self._places = torch.tensor(own, device=device)  # a list would be waited for

    @torch.no_grad()
    def reduce(self) -> None:
        """Sum the gradients over all ranks: each part's on the rank that trains it."""
        if self.ranks.size == 1:
            return
        gradients = {name: gradient_of(name, p) for name, p in self.parameters.items()}
        parts = [part.of(gradients[part.name]) for part in self.parts]
        torch._foreach_copy_(self._in_all, parts)
        self.ranks.reduce_scatter(self._all, self._room)
        for name, place in self._in_row.items():
            self.own[name].grad = place

    @torch.no_grad()
    def gather(self) -> None:
        """Give every rank the weights that each has trained."""
        if self.ranks.size == 1:
            return
        torch._foreach_copy_([*self._in_row.values()], [*self.own.values()])
        self.ranks.all_gather(self._room[0], self._all)
        torch._foreach_copy_(self._weights, self._in_all)

    def spread(self, values: Tensor) -> Tensor:
        """A number for each own part in the place of its tensor among all, beside zeros.

        (own,) -> (tensors,)
        """
        if self.ranks.size == 1:
            return values
        return values.new_zeros(len(self.parameters)).index_copy_(0, self._places, values)


def divided(shapes: dict[str, torch.Size], matrices: Collection[str], ranks: int) -> list[Part]:
    """Who trains what: tables, which are Adam's, by rows, and all else whole.

    What is whole goes first, the largest first, each to the rank that has the least. The rows of
    all tables, one table after the other, then fill the ranks in order: `ranks` - 1 cuts at most,
    and no rank has more than the mean and the largest of what is not cut.

    {"table": (4, 16), "matrix": (2, 16)}, {"matrix"}, 2 ->
        table's row 0 and matrix to rank 0, table's rows 1 to 3 to rank 1
    """
    tables = [n for n, shape in shapes.items() if len(shape) > 1 and n not in matrices]
    whole = sorted(shapes.keys() - tables, key=lambda n: (-shapes[n].numel(), n))
    strips = []  # of tables, as narrow as they may be cut
    for name in tables:
        rows = range(shapes[name][0])
        step = LANES // math.gcd(LANES, shapes[name][1:].numel())
        strips += [(name, rows[first : first + step]) for first in rows[::step]]
    if (most := len(whole) + len(strips)) < ranks:
        raise ConfigError(
            f"{ranks} processes for a model of {most} parts that can be trained apart; use at most "
            f"--nproc-per-node {most}"
        )
    load = [0] * ranks
    parts = []
    for name in whole:
        parts.append(Part(name, load.index(min(load))))
        load[parts[-1].rank] += shapes[name].numel()
    ends = [0, *accumulate(len(rows) * shapes[name][1:].numel() for name, rows in strips)]
    wanted = [max(0, sum(load) + ends[-1] - ranks * each) for each in load]  # times `ranks`
    cuts = [0]
    for rank, upto in enumerate(accumulate(wanted)):
        cut = bisect_right(ends, ends[-1] * upto // max(sum(wanted), 1)) - 1
        left = load[rank + 1 :].count(0)  # each of these, and this one, must get something
        cuts.append(min(max(cut, cuts[-1] + (not load[rank])), len(strips) - left))
    for rank, (first, last) in enumerate(pairwise(cuts)):
        for name, group in groupby(strips[first:last], key=lambda strip: strip[0]):
            lines = [row for _, rows in group for row in rows]
            own = slice(lines[0], lines[-1] + 1)
            parts.append(Part(name, rank, None if len(lines) == shapes[name][0] else own))
    order = [*shapes]
    return sorted(parts, key=lambda part: order.index(part.name))


def gradient_of(name: str, parameter: nn.Parameter) -> Tensor:
    """The gradient; a tensor without one takes no part in the loss, which is an error."""
    if parameter.grad is None:
        raise TrainingError(f"{name} received no gradient: it takes no part in the loss")
    return parameter.grad
