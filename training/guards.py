"""What a run must not go on from: each guard raises one line that names the step and the tensor.

They read numbers that the loop has anyway; none of them changes a run that is well.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tokgolf.errors import TrainingError
from tokgolf.heads.base import Head
from tokgolf.model import LanguageModel
from tokgolf.tokenizers import Tokenizer

FIRST_LOSS_ABOVE, FIRST_LOSS_BELOW = 0.02, 0.1
"""How far the first loss may be from what the head declares. Below it by more: at the start a table
of both ends prefers the token itself, the wider the more, and text repeats tokens (tied at d 512
starts 5 % lower on source code)."""
STEPS_TO_MOVE = 3
MOST_NAMED = 3

Pair = tuple[int, int]


def check_loss(loss: float, step: int, saved: int) -> None:
    """Raise `TrainingError` for a loss that is not finite. `saved` is the step of the latest
    checkpoint, 0 without one."""
    if not math.isfinite(loss):
        raise TrainingError(f"the loss is {loss} at step {step}; {way_on(saved)}")


def check_gradients(norms: dict[str, float], step: int, limit: float, saved: int) -> None:
    """Raise `TrainingError`, naming them, for tensors whose gradient's norm is above `limit`.

    norms of every trainable tensor by name; one that is not finite is above any limit
    """
    above = {name: norm for name, norm in norms.items() if not norm <= limit}
    if above:
        found = listed([f"{name} ({norm:.3g})" for name, norm in above.items()])
        raise TrainingError(
            f"at step {step} the gradient's norm is above max_gradient {limit:g} for {found}; "
            f"{way_on(saved)}"
        )


def check_finite(tensors: Mapping[str, Tensor], step: int, saved: int) -> None:
    """Raise `TrainingError`, naming them, if any tensor of a checkpoint after so many steps has
    numbers that are not finite: the last update may have made them, and its gradient was not."""
    bad = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if bad:
        raise TrainingError(
            f"after step {step} not all numbers are finite of {listed(bad)}; {way_on(saved)}"
        )


def listed(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def way_on(saved: int) -> str:
    """What is left of a run that must not go on, and what to do."""
    kept = "there is no checkpoint yet"
    if saved:
        kept = f"the checkpoint of step {saved} is sound, and can be exported"
    return (
        f"{kept}. Start again in another -o with lower learning rates, e.g. "
        "--set optimizer.lr_matrix=0.01"
    )


def check_first_loss(loss: float, declared: float) -> None:
    """Raise `TrainingError` unless the first loss is what the head declares."""
    off = loss / declared - 1
    if not -FIRST_LOSS_BELOW <= off <= FIRST_LOSS_ABOVE:
        raise TrainingError(
            f"the first loss is {loss:.4f} nats, the head declares {declared:.4f} (at most "
            f"{FIRST_LOSS_ABOVE:.0%} above or {FIRST_LOSS_BELOW:.0%} below): its "
            "initialisation is not what it says"
        )


def check_pairs(pairs: Sequence[Pair | None], tokenizer: Tokenizer, step: int) -> None:
    """Blame the mask for a loss that is not finite, if it forbids a pair that the text has.

    pairs as `forbidden_pair` finds them, one for each part of the batch
    """
    pair = next((pair for pair in pairs if pair is not None), None)
    if pair is not None:
        before, after = (f"{token} ({tokenizer.token_bytes[token]!r})" for token in pair)
        raise TrainingError(
            f"the loss is not finite at step {step}: in the text token {after} follows "
            f"token {before}, which canonical-mask forbids, as the tokenizer would not encode "
            "text so; train without canonical-mask, or on what the tokenizer encodes"
        )


def forbidden_pair(head: Head, tokens: Tensor, targets: Tensor) -> Pair | None:
    """The first token with a target after it that the head's canonical mask forbids, if any.

    tokens, targets of the same shape, int64
    """
    if "canonical-mask" not in head.addons:
        return None
    successors = head.get_buffer("addons.canonical-mask.successors")
    before, after = tokens.flatten(), targets.flatten()
    may = successors[before, after // 8] >> (7 - after % 8).to(torch.uint8) & 1
    at = (may == 0).nonzero().flatten().tolist()
    return (int(before[at[0]]), int(after[at[0]])) if at else None


def check_moved(initial: dict[str, Tensor], model: LanguageModel) -> None:
    """Raise `TrainingError`, naming them, if any trainable tensor still is as it began."""
    still = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        and parameter.numel()
        and torch.equal(parameter.detach(), initial[name])
    ]
    if still:
        raise TrainingError(
            f"after {STEPS_TO_MOVE} steps these tensors have not moved: {', '.join(still)}; "
            "they are not being trained, so the run would not measure what it claims"
        )
