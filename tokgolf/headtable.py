"""What `tokgolf heads` tells: what each head costs, its floor, and its gradient bottleneck."""

import math
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from tokgolf.artifact.checkpoint import load_run
from tokgolf.artifact.export import calibration_tokens
from tokgolf.errors import ConfigError
from tokgolf.heads import ADDONS, HEADS, Head, HeadShape, Stored, addon_config, head_config
from tokgolf.heads.base import LinearHead

MEASURED_BATCHES = 4


@dataclass(frozen=True, kw_only=True)
class HeadCost:
    """A row: what a head or an add-on costs by itself, before anything is trained.

    `stored_bytes`: every weight at the bits given, a byte for each row's step, codes packed.
    `flops` are of a token, forward. `floor_bits` is what a token costs at least under any trunk,
    at Zipf's frequencies: above 0 where tokens share all that tells them apart; None for an
    add-on. `problem` says why the default options do not fit these sizes; then all else is 0.
    """

    name: str
    params: int = 0
    stored_bytes: int = 0
    flops: int = 0
    floor_bits: float | None = None
    problem: str = ""


def head_costs(shape: HeadShape, bits: float) -> list[HeadCost]:
    """A row for every head, then for every add-on, all with their default options.

    `bits` a weight are what the entropy coder leaves: about 4 for tables under a usual cap.
    """
    if not 0 < bits <= 32 or shape.d_model < 1:
        raise ConfigError(f"bits is {bits} and width {shape.d_model}; bits are above 0, up to 32")
    counts = (1e9 / torch.arange(1, shape.vocab_size + 1)).long()
    rows = []
    for name in HEADS:
        config = head_config({"name": name})
        try:
            head = config.build(shape, counts)
            rows.append(
                HeadCost(
                    name=name,
                    params=config.num_params(shape),
                    stored_bytes=_bytes(list(head.stored()), bits),
                    flops=config.flops(shape),
                    floor_bits=_floor(head, counts),
                )
            )
        except ConfigError as error:
            rows.append(HeadCost(name=name, problem=str(error)))
    for name in ADDONS:
        addon = addon_config(name, {})
        try:
            stored = list(addon.build(shape, counts).stored())
            rows.append(
                HeadCost(
                    name=f"+ {name}",
                    params=addon.num_params(shape),
                    stored_bytes=_bytes(stored, bits),
                    flops=addon.flops(shape),
                )
            )
        except ConfigError as error:
            rows.append(HeadCost(name=f"+ {name}", problem=str(error)))
    return rows


def _bytes(stored: list[Stored], bits: float) -> int:
    size = 0.0
    for _, tensor, kind in stored:
        if kind == "codes":
            width = max(1, (int(tensor.max()).bit_length()))
            size += 1 + math.ceil(tensor.numel() * width / 8)
        else:
            size += tensor.numel() * bits / 8 + (len(tensor) if tensor.dim() == 2 else 1)
    return round(size)


@torch.no_grad()
def _floor(head: Head, counts: Tensor) -> float:
    """The mean of log2 n over tokens, n the number of tokens whose logits are always the same.

    Found by giving all weights random values: logits that then agree, agree for any weights.
    """
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    head = head.double()
    for parameter in head.parameters():
        parameter.normal_()
    # Small, or softcaps would make large logits alike.
    hidden = 0.01 * torch.randn(2, head.shape.d_model, dtype=torch.float64)
    z = head.logits(hidden, torch.full((2,), head.shape.bos_id))
    torch.random.set_rng_state(state)
    # A product may differ in its last bits between columns that are alike.
    columns = [tuple(round(entry, 9) for entry in column) for column in (z / z.std()).T.tolist()]
    same = Counter(columns)
    shares: list[float] = (counts / counts.sum()).tolist()
    return math.fsum(p * math.log2(same[c]) for p, c in zip(shares, columns, strict=True))


@dataclass(frozen=True, kw_only=True)
class Bottleneck:
    """How much of what the loss says of the logits reaches the trunk.

    `rho` is |U^T g|^2 / |g|^2, both summed over positions, g the gradient by the logits and U a
    basis of the columns that hidden states can reach: the share that is not lost. A g without
    direction would leave `isotropic`, the rank of U over the vocabulary size. Source: Godey &
    Artzi 2026 (arXiv 2603.10145).
    """

    head: str
    vocab_size: int
    rank: int
    positions: int
    rho: float
    isotropic: float


@torch.no_grad()
def bottleneck(run: Path) -> Bottleneck:
    """Measure the head of a trained run on windows of its own training tokens.

    Raises `ConfigError` for a head that is not one softmax: its logits are no linear map.
    """
    source = load_run(run)
    head = source.model.head
    if not isinstance(head, LinearHead):
        raise ConfigError(f"{source.head.name} is not one softmax, so it has no such bottleneck")
    width = head.shape.d_model
    # Features are linear in the hidden state, so those of unit vectors are the whole map.
    reach = head.features(torch.eye(width), torch.zeros(width, dtype=torch.int64))
    effective = (head.matrix() @ reach.T).double()  # (vocab, d_model)
    left, sizes, _ = torch.linalg.svd(effective, full_matrices=False)
    basis = left[:, sizes > sizes[0] * 1e-6]  # (vocab, rank)
    kept = total = 0.0
    positions = 0
    for tokens in islice(calibration_tokens(run, source), MEASURED_BATCHES):
        inputs, targets = tokens[:, :-1], tokens[:, 1:].flatten()
        hidden = source.model.hidden(inputs).flatten(0, 1)
        z = head.logits(hidden, inputs.flatten()).double()
        g = z.softmax(1)
        g[torch.arange(len(g)), targets] -= 1
        if head.softcap:
            g *= 1 - (z.nan_to_num(neginf=0) / head.softcap) ** 2
        kept += float((g @ basis).square().sum())
        total += float(g.square().sum())
        positions += len(g)
    return Bottleneck(
        head=source.head.name,
        vocab_size=head.shape.vocab_size,
        rank=basis.size(1),
        positions=positions,
        rho=kept / total,
        isotropic=basis.size(1) / head.shape.vocab_size,
    )
