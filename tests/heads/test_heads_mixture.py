"""The mixture head: against sums of probabilities in fp64, and what it reduces to."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from heads_support import inputs, randomised
from torch import Tensor

from tokgolf.errors import ConfigError
from tokgolf.heads import HeadShape, head_config
from tokgolf.heads.base import Head
from tokgolf.heads.mixture import MixtureHead
from tokgolf.training.guards import initial_loss

SHAPE = HeadShape(vocab_size=40, d_model=16, bos_id=5)


@pytest.fixture(autouse=True)
def seed(one_thread: None) -> None:
    torch.manual_seed(0)


def built(**options: Any) -> MixtureHead:
    head = head_config({"name": "mixture", **options}).build(SHAPE)
    assert isinstance(head, MixtureHead)
    return head


def slow_probability(head: MixtureHead, hidden: Tensor, token: int) -> Tensor:
    """p of one token at one position, as a sum of probabilities.  # (d_model,) -> ()"""

    def softmax(scores: list[Tensor], at: int) -> Tensor:
        return scores[at].exp() / torch.stack(scores).exp().sum()

    total = torch.zeros((), dtype=torch.float64)
    for k, turn in enumerate(head.turns):
        x = torch.stack([(hidden * row).sum() for row in turn])
        x = x.tanh() if head.tanh else x
        scores = [(x * row).sum() for row in head.table]
        if head.softcap:
            scores = [head.softcap * (z / head.softcap).tanh() for z in scores]
        share = torch.ones(())
        if head.prior is not None:
            share = softmax([(hidden * row).sum() for row in head.prior], k)
        total = total + share * softmax(scores, token)
    return total


@pytest.mark.parametrize("softcap", [30.0, 2.0, 0.0])
@pytest.mark.parametrize("mixtures", [1, 2, 3])
@pytest.mark.parametrize("tanh", [True, False])
def test_values_and_gradients_are_those_of_mixed_probabilities(
    softcap: float, mixtures: int, tanh: bool
) -> None:
    head = randomised(built(softcap=softcap, mixtures=mixtures, tanh=tanh)).double()
    hidden, targets, prev = inputs(6)
    hidden.requires_grad_()
    slow = [slow_probability(head, h, int(t)).log() for h, t in zip(hidden, targets, strict=True)]
    expected = -torch.stack(slow)
    got = head.nll(hidden, targets, prev)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    leaves = [hidden, *head.parameters()]
    for a, b in zip(
        torch.autograd.grad(head.loss(hidden, targets, prev), leaves),
        torch.autograd.grad(expected.sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_it_is_no_mixture_of_logits() -> None:
    head = randomised(built(softcap=0.0)).double()
    hidden, _, prev = inputs()
    assert head.prior is not None
    shares = (hidden @ head.prior.T).softmax(1)
    turned = torch.stack([torch.tanh(hidden @ turn.T) for turn in head.turns], 1)
    one_softmax = ((shares[:, :, None] * turned).sum(1) @ head.table.T).log_softmax(1)
    assert (head.own_log_probs(hidden, prev) - one_softmax).abs().max() > 0.1


def test_its_log_probabilities_exceed_the_rank_of_one_softmax() -> None:
    shape = HeadShape(vocab_size=40, d_model=4, bos_id=0)
    hidden, prev = torch.randn(200, 4, dtype=torch.float64), torch.zeros(200, dtype=torch.int64)
    ranks = []
    for mixtures in (1, 2):
        head = head_config({"name": "mixture", "mixtures": mixtures, "softcap": 0.0}).build(shape)
        assert isinstance(head, MixtureHead)
        ln_p = randomised(head).double().own_log_probs(hidden, prev)
        ranks.append(int(torch.linalg.matrix_rank(ln_p, rtol=1e-9)))
    assert ranks[0] <= 4 + 1  # one more for the normaliser
    assert ranks[1] == 40


@pytest.mark.parametrize("softcap", [30.0, 0.0])
def test_one_linear_softmax_is_the_tied_head(softcap: float) -> None:
    head = built(mixtures=1, tanh=False, softcap=softcap)
    tied = head_config({"name": "tied", "softcap": softcap}).build(SHAPE)
    with torch.no_grad():
        head.table.normal_()
        dict(tied.named_parameters())["table"].copy_(head.table)
    hidden, targets, prev = inputs()
    hidden = hidden.float()
    assert torch.equal(head.embed(targets[None], prev[None]), tied.embed(targets[None], prev[None]))
    # fp32 rounds twice where the tied head rounds once.
    torch.testing.assert_close(
        head.log_probs(hidden, prev), tied.log_probs(hidden, prev), rtol=1e-6, atol=1e-5
    )


def test_equal_softmaxes_are_one_whatever_the_prior() -> None:
    head = randomised(built(mixtures=3))
    one = built(mixtures=1)
    with torch.no_grad():
        for turn in [*head.turns, *one.turns]:
            turn.copy_(head.turns[0])
        one.table.copy_(head.table)
    hidden, _, prev = inputs()
    hidden = hidden.float()
    torch.testing.assert_close(
        head.log_probs(hidden, prev), one.log_probs(hidden, prev), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("softcap", [30.0, 0.0])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_probabilities_sum_to_one_and_are_finite(softcap: float, scale: float) -> None:
    head = randomised(built(mixtures=4, softcap=softcap))
    hidden, _, prev = inputs(scale=scale)
    own = head.own_log_probs(hidden.float(), prev)
    assert own.dtype == torch.float32 and own.isfinite().all()
    assert (own.double().exp().sum(1) - 1).abs().max() < 1e-5
    assert (head.log_probs(hidden, prev).double().exp().sum(1) - 1).abs().max() < 1e-6


def test_a_mixture_starts_uniform_and_every_tensor_has_a_gradient() -> None:
    head = built(mixtures=3)
    hidden, targets, prev = inputs(200)
    hidden = F.rms_norm(hidden, (SHAPE.d_model,)).float()
    loss = head.loss(hidden, targets, prev) / len(targets)
    assert float(loss.detach()) == pytest.approx(math.log(40), rel=0.01)
    assert initial_loss(head, targets, prev) == pytest.approx(math.log(40), rel=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and bool(p.grad.any()) for p in head.parameters())


@pytest.mark.parametrize("mixtures", [1, 2, 5])
def test_parameters_and_operations_are_counted_before_building(mixtures: int) -> None:
    config = head_config({"name": "mixture", "mixtures": mixtures})
    head: Head = config.build(SHAPE)
    params = sum(p.numel() for p in head.parameters())
    assert config.num_params(SHAPE) == params == sum(s.tensor.numel() for s in head.stored())
    prior = 16 if mixtures > 1 else 0
    assert config.flops(SHAPE) == 2 * mixtures * (16 * 16 + 16 * 40 + prior)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixtures": 0}, "mixtures is 0"),
        ({"mixtures": -2}, "mixtures is -2"),
        ({"mixtures": 2.0}, "type int"),
        ({"tanh": 1}, "type bool"),
        ({"mixture": 2}, "did you mean 'mixtures'"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        built(**options)
