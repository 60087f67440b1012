"""What a run must not go on from: each guard raises one line that names the step and the tensor.

They read numbers that the loop has anyway; none of them changes a run that is well. Steps count
from 1, as in all that a person reads.
"""

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from tokgolf.errors import TrainingError
from tokgolf.heads.base import Head, joined, masked
from tokgolf.heads.tied import TABLE_STD
from tokgolf.model import LanguageModel
from tokgolf.tokenizers import Tokenizer
from tokgolf.training.optimizers import OptimizerConfig

FIRST_LOSS_ABOVE, FIRST_LOSS_BELOW = 0.02, 0.1
"""How far the first loss may be from what the head declares, beside what `first_loss_slack` adds.
Below it by more: related tokens follow each other, and may have rows in common."""
STEPS_TO_MOVE = 4
"""As many tensors may wait for one another, each zero until the one before has moved: the output
table, attention's output, value embeddings (or `loops.out`), their scales (or `loops.into`)."""
LARGE_WEIGHT = 100.0
"""Gains and scales that start at 1 to 5 stay far below, and tables and matrices further."""
MOST_NAMED = 3

INITIAL_LOGITS = 1 << 20
"""That `initial_loss` looks at in one piece: a few copies of 4 MiB."""

Pair = tuple[int, int]
Rates = Mapping[str, tuple[str, float]]
"""Of every trained tensor, by name: the option that is its learning rate, and its value."""


def loss_error(
    loss: float, step: int, saved: int, largest: Mapping[str, float], rates: Rates
) -> TrainingError:
    """For a loss that is not finite: names the tensors that were not finite before either, or the
    one with the largest weight, if that is large.

    `saved` is the step of the latest checkpoint, 0 without one; `largest` are the largest weights
    of the trained tensors by name.
    """
    bad = [name for name, most in largest.items() if not math.isfinite(most)]
    worst = max(largest, key=largest.__getitem__)
    found = f"the largest weight is {largest[worst]:.3g}, in {worst}"
    if bad:
        found = f"not all numbers are finite of {listed(bad)}"
    blamed = bad or ([worst] if largest[worst] > LARGE_WEIGHT else [])
    way = way_on(saved, rates, blamed, usable=saved < step - 1)
    return TrainingError(f"the loss is {loss} at step {step}; {found}; {way}")


def check_gradients(
    norms: Mapping[str, float], step: int, limit: float, saved: int, rates: Rates
) -> None:
    """Raise `TrainingError`, naming them, for tensors whose gradient's norm is above `limit`.

    norms of every trainable tensor by name; one that is not finite is above any limit
    """
    above = {name: norm for name, norm in norms.items() if not norm <= limit}
    if above:
        found = listed([f"{name} ({norm:.3g})" for name, norm in above.items()])
        raise TrainingError(
            f"at step {step} the gradient's norm is above max_gradient {limit:g} for {found}; "
            f"{way_on(saved, rates, above)}"
        )


def check_finite(tensors: Mapping[str, Tensor], step: int, saved: int, rates: Rates) -> None:
    """Raise `TrainingError`, naming them, if any tensor of a checkpoint after so many steps has
    numbers that are not finite: the last update may have made them, and its gradient was not."""
    bad = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if bad:
        raise TrainingError(
            f"after step {step} not all numbers are finite of {listed(bad)}; "
            f"{way_on(saved, rates, bad)}"
        )


def listed(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def way_on(saved: int, rates: Rates, blamed: Collection[str], *, usable: bool = True) -> str:
    """What is left of a run that must not go on, and what to do: half the learning rate of the
    tensors to blame (a checkpoint's names end in theirs), or of all; at most the baseline's.

    A checkpoint of the very weights that gave no loss is not `usable`.
    """
    kept = "there is no checkpoint yet"
    if saved and usable:
        kept = f"the checkpoint of step {saved} is sound, and can be exported"
    elif saved:
        kept = (
            f"the checkpoint of step {saved} has the same weights (without its latest.json the "
            "one before is taken, if there is one)"
        )
    at_fault = [n for n in rates if any(b == n or b.endswith(f".{n}") for b in blamed)]
    options = dict(rates[name] for name in at_fault or rates)
    baseline = {f"optimizer.{name}": rate for name, rate in vars(OptimizerConfig()).items()}
    lower = {option: min(options[option] / 2, baseline[option]) for option in sorted(options)}
    advice = " ".join(f"--set {option}={rate:g}" for option, rate in lower.items())
    return f"{kept}. Start again in another -o with lower learning rates, e.g. {advice}"


@torch.no_grad()
def initial_loss(head: Head, targets: Tensor, prev: Tensor) -> float:
    """Mean nats that an untrained head must show: ln V, unless add-ons know better.

    What a bias and a mask know is taken from these alone, and not from the head, which starts
    knowing nothing: a head that starts wrongly does not declare itself right. No pair may be one
    that the mask forbids (`forbidden_pair`).  # (n,), (n,)
    """
    vocab = head.shape.vocab_size
    known = joined([part._replace(features=None, matrix=None) for part in head.extras(prev)])
    if known.bias is None and known.successors is None:
        return math.log(vocab)
    bias = torch.zeros(vocab, device=prev.device) if known.bias is None else known.bias
    before, which = torch.unique(prev, return_inverse=True)
    if known.successors is None:  # all positions have one distribution
        before, which = before[:1], torch.zeros_like(which)
    totals = [
        masked(bias.expand(len(part), vocab), known.successors, part).double().logsumexp(1)
        for part in before.split(max(INITIAL_LOGITS // vocab, 1))
    ]
    return float((torch.cat(totals)[which] - bias.double()[targets]).mean())


def tied_self_logit(head: Head) -> float:
    """What a table of both ends scores the token before, untrained, if the trunk gives back its
    normalised row: sqrt(d) times its norm of sqrt(d) * `TABLE_STD`, after the softcap."""
    score = TABLE_STD * head.shape.d_model
    return head.softcap * math.tanh(score / head.softcap) if head.softcap else score


def first_loss_slack(declared: float, score: float, repeats: float) -> tuple[float, float]:
    """The least and the most that the first loss may differ from `declared`, in nats, as a table of
    both ends scores the token before itself: at 0 to `score`.

    `repeats` is the part of targets that are the token before. Of V tokens one has e^score of the
    weight, which costs ln(1 + (e^score - 1) / V), and gains `score` where it is the target.
    """
    vocab = math.exp(declared)

    def nats(score: float) -> float:
        return math.log1p(math.expm1(score) / vocab) - repeats * score

    # Convex in the score: the most at an end, the least where its probability is `repeats`.
    odds = repeats * (vocab - 1) / (1 - repeats) if repeats < 1 else math.inf
    best = min(max(math.log(odds) if odds > 0 else 0.0, 0.0), score)
    return nats(best), max(nats(score), 0.0)


def check_first_loss(loss: float, declared: float, score: float, repeats: float) -> None:
    """Raise `TrainingError` unless the first loss is what the head declares; as in
    `first_loss_slack`."""
    below, above = first_loss_slack(declared, score, repeats)
    least = (1 - FIRST_LOSS_BELOW) * declared + below
    most = (1 + FIRST_LOSS_ABOVE) * declared + above
    if not least <= loss <= most:
        raise TrainingError(
            f"the first loss is {loss:.4f} nats, the head declares {declared:.4f} (here "
            f"{least:.4f} to {most:.4f}): its initialisation is not what it says"
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
            f"after {STEPS_TO_MOVE} steps these tensors have not moved: {listed(still)}; "
            "they are not being trained, so the run would not measure what it claims"
        )
