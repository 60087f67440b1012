"""Parts of the trunk, written so that they train faster; scoring does without.

On a CPU, causal attention as matrix products: torch's own kernel never holds the scores, which pays
where memory is short; at the sizes that a CPU trains, its products are too small to be fast, and
its backward pass is half of a step. Here the scores of a few hundred queries are one product, keys
that none of them may see are left out, and the compiler fuses the rest.

Axes: batch, time, heads, kv_heads, head_width, groups (query heads of a key/value head).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokgolf.heads.base import at_least_fp32
from tokgolf.model import MLP, Attention, Trunk, attend

PARTS, LEAST_QUERIES = 4, 64
MOST_SCORES = 1 << 28
"""Above so many scores the kernel that holds none of them is used."""


def attend_in_parts(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """As `tokgolf.model.attend`, by at most `PARTS` ranges of queries; a mask must be causal.

    q (batch, time, heads, head_width), k, v (batch, time, kv_heads, head_width), mask
    (batch, 1, time, time) bool -> (batch, time, heads * head_width)
    """
    batch, time, heads, width = q.shape
    if batch * heads * time * time > MOST_SCORES:
        return attend(q, k, v, mask)
    groups = heads // k.size(2)
    # Query heads that share a key are rows of one product.
    q = (q * width**-0.5).view(batch, time, -1, groups, width).permute(0, 2, 3, 1, 4)
    k, v = k.permute(0, 2, 3, 1), v.transpose(1, 2)
    size = max(LEAST_QUERIES, math.ceil(time / PARTS))
    parts = []
    for start in range(0, time, size):
        end = min(start + size, time)
        rows = q[:, :, :, start:end].flatten(2, 3)  # (batch, kv_heads, groups * queries, width)
        z = at_least_fp32(rows @ k[..., :end]).view(batch, -1, groups, end - start, end)
        position = torch.arange(end, device=q.device)
        if mask is None:
            hidden = position > position[start:, None]
        else:
            hidden = ~mask[:, :, None, start:end, :end]
        z = z.masked_fill(hidden, -math.inf)
        p = z.softmax(-1).to(v.dtype).flatten(2, 3)
        parts.append((p @ v[:, :, :end]).view(batch, -1, groups, end - start, width))
    y = torch.cat(parts, 3) if len(parts) > 1 else parts[0]
    return y.permute(0, 3, 1, 2, 4).reshape(batch, time, heads * width)


def scaled_by_rows(linear: nn.Linear, x: Tensor, scale: Tensor) -> Tensor:
    """As `tokgolf.model.scaled`, the weight's rows scaled in place of the product.

    The scale's gradient is then found from a matrix, not by a sum over all positions, of which a
    GPU makes a slow reduction. (On a CPU a step of two layers took a tenth longer.)
    """
    return F.linear(x, scale[:, None] * linear.weight)


def speed_up(trunk: Trunk, device: torch.device) -> None:
    """Let a trunk compute the same in the way that is fastest in training on this device."""
    for module in trunk.modules():
        if isinstance(module, Attention) and device.type == "cpu":
            module.attend = attend_in_parts
        if isinstance(module, Attention | MLP) and device.type == "cuda":
            module.scaled = scaled_by_rows
