"""The training loss in chunks of positions, so that no (n, vocab) matrix is ever held whole.

Scoring does not use it (the scorer is `Head.log_probs`), so an artifact does not pay for it. A
linear head's gradients are computed in closed form in the forward pass, while a chunk's logits are
still there (as Liger Kernel does, arXiv 2410.10989): the logits are made once, not twice, and a
chunk can stay in the cache. Other heads recompute theirs in the backward pass.

Axes: n (positions), vocab, features.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tokgolf.heads.base import Classifier, at_least_fp32, masked

CHUNK = {"cpu": 1 << 19, "cuda": 1 << 25}
"""Logits of a chunk. On a CPU some MB, to stay in the cache; on a GPU enough to fill it."""


def linear_loss(c: Classifier, targets: Tensor, prev: Tensor) -> Tensor:
    """Summed nats of `targets` under one softmax.  # Classifier of n positions, (n,), (n,) -> ()

    Products run in autocast's precision where it is on, everything else in fp32 (fp64 for fp64).
    """
    device = c.features.device.type
    features, inputs = c.features, c[:4]
    if torch.is_autocast_enabled(device):
        features = features.to(torch.get_autocast_dtype(device))
    c = c._replace(features=features, matrix=c.matrix.to(features.dtype))
    with torch.autocast(device, enabled=False):
        training = torch.is_grad_enabled()
        wanted = [training and tensor is not None and tensor.requires_grad for tensor in inputs]
        nats, gradients = _nats_and_gradients(c, targets, prev, wanted)
        # Zero, but for its gradients, which are those just found. (An autograd.Function would do
        # the same; the compiler takes this without a break.)
        for tensor, gradient in zip(inputs, gradients, strict=True):
            if tensor is not None and gradient is not None:
                linear = (tensor * gradient.to(tensor.dtype)).sum().to(nats.dtype)
                nats = nats + (linear - linear.detach())
    return nats


@torch.no_grad()
def _nats_and_gradients(
    c: Classifier, targets: Tensor, prev: Tensor, wanted: list[bool]
) -> tuple[Tensor, list[Tensor | None]]:
    """The sum, and its gradients by features, matrix, bias and rows, each None if not wanted.

    d nats / d z = p - onehot(target), times 1 - tanh(z / cap)^2 where there is a softcap.
    """
    n, vocab = len(c.features), len(c.matrix)
    wide = at_least_fp32(c.features).dtype
    nats = torch.zeros((), dtype=wide, device=c.features.device)
    d_features: list[Tensor] = []
    d_matrix, d_bias, d_rows = (
        torch.zeros_like(tensor, dtype=wide) if tensor is not None and want else None
        for tensor, want in zip(c[1:4], wanted[1:], strict=True)
    )
    size = positions_of_chunk(c.features.device.type, n, vocab)
    for start in range(0, n, size):
        part = slice(start, start + size)
        x, y, before = c.features[part], targets[part, None], prev[part]
        z = (x @ c.matrix.T).to(wide)
        if c.bias is not None:
            z += c.bias
        if c.rows is not None:
            z += c.rows[before]
        bent = z.div_(c.softcap).tanh_() if c.softcap else z
        capped = masked(c.softcap * bent if c.softcap else z, c.successors, before)
        log_p = capped.log_softmax(1)
        nats = nats - log_p.gather(1, y).sum()
        if not any(wanted):
            continue
        g = log_p.exp_().scatter_add_(1, y, torch.full_like(y, -1, dtype=wide))
        if c.softcap:
            g.addcmul_(g, bent.square_(), value=-1)
        narrow = g.to(x.dtype)
        d_features.append(narrow @ c.matrix)
        if d_matrix is not None:
            d_matrix += (narrow.T @ x).to(wide)
        if d_bias is not None:
            d_bias += g.sum(0)
        if d_rows is not None:
            d_rows.index_add_(0, before, g)
    return nats, [torch.cat(d_features) if wanted[0] else None, d_matrix, d_bias, d_rows]


def chunked_loss(
    nll: Callable[[Tensor, Tensor, Tensor], Tensor],
    hidden: Tensor,
    targets: Tensor,
    prev: Tensor,
    vocab_size: int,
) -> Tensor:
    """Summed nats of any head, a chunk's inner values made again in the backward pass.

    nll(hidden, targets, prev) -> (n,); hidden (n, d_model), targets, prev (n,) -> ()
    """
    size = positions_of_chunk(hidden.device.type, len(hidden), vocab_size)
    if size >= len(hidden):
        return nll(hidden, targets, prev).sum()
    losses: list[Tensor] = []
    for start in range(0, len(hidden), size):
        part = slice(start, start + size)
        again = checkpoint(nll, hidden[part], targets[part], prev[part], use_reentrant=False)
        losses.append(again.sum())
    return torch.stack(losses).sum()


def positions_of_chunk(device: str, n: int, vocab_size: int) -> int:
    """Positions of a chunk: all chunks but the last are alike.

    "cpu", 4096, 1024 -> 1024
    """
    chunks = math.ceil(n * vocab_size / CHUNK.get(device, CHUNK["cuda"]))
    return max(1, math.ceil(n / max(1, chunks)))
