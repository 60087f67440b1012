"""Which of several processes trains which tensor, and the exchange of gradients and weights.

Unlike DistributedDataParallel, which sums whole gradients on every rank and lets each do all of
the optimizers' work: here every tensor has one rank that trains it. A rank gets all gradients of
its own tensors (one all-to-all), sums and uses them, and all get all weights (one all-gather). That
is as much traffic, and an optimizer's work and memory are divided by the number of ranks. Sums are
fp32, in the order of the ranks, which is that of one process's micro-batches: if each rank has one
micro-batch, several processes compute what one does, to the bit.
"""

import torch
from torch import Tensor, nn

from tokgolf.errors import ConfigError, TrainingError
from tokgolf.training.distributed import Ranks


class Shares:
    """Which rank trains which tensor, and the exchange of their gradients and weights.

    A rank's tensors are as many numbers as the next one's, as nearly as whole tensors can be. That
    divides Muon's work too, as most matrices of a trunk are equally narrow.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], ranks: Ranks) -> None:
        self.ranks = ranks
        self.parameters = parameters
        sizes = {name: parameter.numel() for name, parameter in parameters.items()}
        self.owner = owners(sizes, ranks.size)
        self._lay_out()

    @property
    def own(self) -> dict[str, nn.Parameter]:
        """The tensors that this rank trains."""
        return {n: p for n, p in self.parameters.items() if self.owner[n] == self.ranks.rank}

    def adopt(self, name: str, parameter: nn.Parameter, source: str) -> None:
        """Train a new tensor where an old one is trained."""
        self.parameters[name], self.owner[name] = parameter, self.owner[source]
        self._lay_out()

    def _lay_out(self) -> None:
        """Make room for all tensors, a row for each rank."""
        ranks = self.ranks
        if ranks.size == 1:
            return
        used = [0] * ranks.size
        at = {}
        for name, parameter in self.parameters.items():
            at[name] = used[self.owner[name]]
            used[self.owner[name]] += parameter.numel()
        device = next(iter(self.parameters.values())).device
        self._all = torch.zeros(ranks.size, max(used), device=device)
        self._room = torch.zeros_like(self._all)
        self._in_all, self._in_row = {}, {}
        for name, p in self.parameters.items():
            part = slice(at[name], at[name] + p.numel())
            self._in_all[name] = self._all[self.owner[name], part].view_as(p)
            if self.owner[name] == ranks.rank:
                self._in_row[name] = self._room[0, part].view_as(p)
        own = [i for i, owner in enumerate(self.owner.values()) if owner == ranks.rank]
        self._places = torch.tensor(own, device=device)  # a list would be waited for

    @torch.no_grad()
    def reduce(self) -> None:
        """Sum the gradients over all ranks: each tensor's on the rank that trains it."""
        if self.ranks.size == 1:
            return
        gradients = [gradient_of(name, p) for name, p in self.parameters.items()]
        torch._foreach_copy_([*self._in_all.values()], gradients)
        self.ranks.scattered(self._all, self._room)
        for name, place in self._in_row.items():
            self.parameters[name].grad = place

    @torch.no_grad()
    def gather(self) -> None:
        """Give every rank the weights that each has trained."""
        if self.ranks.size == 1:
            return
        torch._foreach_copy_([*self._in_row.values()], [*self.own.values()])
        self.ranks.gathered(self._room[0], self._all)
        torch._foreach_copy_([*self.parameters.values()], [*self._in_all.values()])

    def spread(self, values: Tensor) -> Tensor:
        """A number for each own tensor in its place among all, beside zeros.

        (own,) -> (tensors,)
        """
        if self.ranks.size == 1:
            return values
        return values.new_zeros(len(self.owner)).index_copy_(0, self._places, values)


def owners(sizes: dict[str, int], ranks: int) -> dict[str, int]:
    """The rank of each tensor: the largest first, each to the rank that has the least.

    {"a": 5, "b": 3, "c": 3}, 2 -> {"a": 0, "b": 1, "c": 1}
    """
    if len(sizes) < ranks:
        raise ConfigError(
            f"{ranks} processes for a model of {len(sizes)} trainable tensors; use at most "
            f"--nproc-per-node {len(sizes)}"
        )
    load = [0] * ranks
    found = {}
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        found[name] = load.index(min(load))
        load[found[name]] += sizes[name]
    return {name: found[name] for name in sizes}


def gradient_of(name: str, parameter: nn.Parameter) -> Tensor:
    """The gradient; a tensor without one takes no part in the loss, which is an error."""
    if parameter.grad is None:
        raise TrainingError(f"{name} received no gradient: it takes no part in the loss")
    return parameter.grad
