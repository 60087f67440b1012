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
"""Logits of a chunk. On a CPU two MB, to stay in the cache; on a GPU enough to fill it."""

COMPILED_CHUNK = {"cpu": 1 << 19, "cuda": 1 << 27}
"""The same for a linear head's loss under the compiler, which unrolls the loop over the chunks and
fuses what is done to a logit: on a GPU few large chunks, of which only what the products need is
held. On a CPU a whole step of the demo took 20 % longer with 2^22."""

LOG2_E = math.log2(math.e)


def linear_loss(c: Classifier, targets: Tensor, prev: Tensor) -> Tensor:
    """Summed nats of `targets` under one softmax.  # Classifier of n positions, (n,), (n,) -> ()

    Products run in autocast's precision where it is on, everything else in fp32 (fp64 for fp64).
    """
    device = c.features.device.type
    dtype = c.features.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        training = torch.is_grad_enabled()
        wanted = [training and tensor is not None and tensor.requires_grad for tensor in c[:4]]
        nats, gradients = _nats_and_gradients(c, targets, prev, dtype, wanted)
        # Zero, but for its gradients, which are those just found. (An autograd.Function would do
        # the same; the compiler takes this without a break.)
        for tensor, gradient in zip(c[:4], gradients, strict=True):
            if tensor is not None and gradient is not None:
                linear = torch.dot(tensor.flatten(), gradient.to(tensor.dtype).flatten())
                nats = nats + (linear - linear.detach()).to(nats.dtype)
    return nats


@torch.no_grad()
def _nats_and_gradients(
    c: Classifier, targets: Tensor, prev: Tensor, dtype: torch.dtype, wanted: list[bool]
) -> tuple[Tensor, list[Tensor | None]]:
    """The sum, and its gradients by features, matrix, bias and bigrams, each None if not wanted.

    d nats / d z = p - onehot(target), times 1 - tanh(z / cap)^2 where there is a softcap.

    On a CPU the time is in the functions of a logit, so these are the cheap ones: 2^u for e^z, and
    s = sigmoid(2 z / cap) for tanh(z / cap) = 2 s - 1, with 1 - tanh^2 = 4 s (1 - s). Constant
    factors go into the matrix, and p is divided by its sum where that is n x d_model, not n x
    vocab. A softcap bounds the logits, so 2^u needs no largest one subtracted. Of a wide softcap
    both would be wrong: 2^u overflows, and the cap magnifies what 2 s - 1 rounds off.
    """
    n, vocab = len(c.features), len(c.matrix)
    wide = at_least_fp32(c.features).dtype
    span = 2 * c.softcap * LOG2_E  # from the least to the largest u that a softcap allows
    narrow_cap = 0 < span < math.log2(torch.finfo(dtype).max) - math.log2(vocab) - 1
    scale = 2 / c.softcap if narrow_cap else 1.0 if c.softcap else LOG2_E
    matrix = (c.matrix * scale).to(dtype)
    bias = None if c.bias is None else c.bias * scale
    nats = torch.zeros((), dtype=wide, device=c.features.device)
    d_features = torch.empty_like(c.features) if wanted[0] else None
    d_matrix, d_bias, d_bigrams = (
        torch.zeros_like(tensor, dtype=wide) if tensor is not None and want else None
        for tensor, want in zip(c[1:4], wanted[1:], strict=True)
    )
    chunks = COMPILED_CHUNK if torch.compiler.is_compiling() else CHUNK
    size = positions_of_chunk(c.features.device.type, n, vocab, chunks)
    for start in range(0, n, size):
        part = slice(start, start + size)
        x, y, before = c.features[part].to(dtype), targets[part, None], prev[part]
        z = (x @ matrix.T).to(wide)
        if bias is not None:
            z += bias
        if c.bigrams is not None:
            z += c.bigrams[before] * scale
        if c.softcap:
            u = z.sigmoid_() * span if narrow_cap else z.div_(c.softcap).tanh_() * (span / 2)
        else:
            u = z
        u = masked(u, c.successors, before)
        if not narrow_cap:
            u = u - u.amax(1, keepdim=True)
        of_target = u.gather(1, y)
        p = u.exp2_()  # times `total`
        total = p.sum(1, keepdim=True)
        nats = nats + (total.log2() - of_target).sum() / LOG2_E
        if not any(wanted):
            continue
        g = p.scatter_add_(1, y, -total)
        if c.softcap:
            g *= z.addcmul_(z, z, value=-1) if narrow_cap else 1 - z.square_()
        factor = (4 if narrow_cap else 1) / total
        narrow = g.to(dtype)
        if d_features is not None:
            d_features[part] = (narrow @ matrix) * (factor / scale)
        if d_matrix is not None:
            d_matrix += narrow.T @ (x * factor).to(dtype)
        if d_bias is not None:
            d_bias += g.T @ factor[:, 0]
        if d_bigrams is not None:
            d_bigrams.index_add_(0, before, g * factor)
    return nats, [d_features, d_matrix, d_bias, d_bigrams]


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
    size = positions_of_chunk(hidden.device.type, len(hidden), vocab_size, CHUNK)
    if size >= len(hidden):
        return nll(hidden, targets, prev).sum()
    losses: list[Tensor] = []
    for start in range(0, len(hidden), size):
        part = slice(start, start + size)
        again = checkpoint(nll, hidden[part], targets[part], prev[part], use_reentrant=False)
        losses.append(again.sum())
    return torch.stack(losses).sum()


def positions_of_chunk(device: str, n: int, vocab_size: int, logits: dict[str, int]) -> int:
    """Positions of a chunk of so many logits: all chunks but the last are alike.

    "cpu", 4096, 1024, {"cpu": 1 << 19} -> 512
    """
    chunks = math.ceil(n * vocab_size / logits.get(device, logits["cuda"]))
    return max(1, math.ceil(n / max(1, chunks)))
