"""The grouped head: its groups, and its probabilities against plain loops in fp64."""

import math
from os.path import commonprefix
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from heads_support import inputs, randomised
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokgolf.errors import ConfigError
from tokgolf.heads import HeadShape, head_config
from tokgolf.heads.grouped import GroupedHead, groups_of, slack_of, width_of

WORDS = (b"", b"the", b"then", b"there", b"a", b"an", b"and", b"in", b"i", b"into", b"on", b"one")
TOKENS = (*(bytes([letter]) for letter in b"bcdefghjklmnopqrstuvwxyz(){}"), *WORDS)
SHAPE = HeadShape(vocab_size=40, d_model=16, bos_id=28, token_bytes=TOKENS)


@pytest.fixture(autouse=True)
def seed(one_thread: None) -> None:
    torch.manual_seed(0)


def built(**options: Any) -> GroupedHead:
    head = head_config({"name": "grouped", **options}).build(SHAPE)
    assert isinstance(head, GroupedHead)
    return head


# The groups.


def test_groups_are_cut_where_tokens_have_least_in_common() -> None:
    tokens = (b"a", b"b", b"ab", b"ba", b"abc", b"bc")
    assert groups_of(tokens, 2) == [[0, 2, 4], [1, 3, 5]]
    # 14 of x and 17 of yz: equal groups would have 15 in the first, and part the y from each other.
    uneven = [b"x" + bytes([i]) for i in range(14)] + [b"yz" + bytes([i]) for i in range(17)]
    assert groups_of(tuple(uneven), 2) == [list(range(14)), list(range(14, 31))]


@given(
    tokens=st.lists(st.binary(max_size=4), min_size=1, max_size=120),
    part=st.floats(0, 1),
)
@settings(max_examples=100, deadline=None)
def test_groups_are_runs_of_the_byte_order_of_bounded_size(
    tokens: list[bytes], part: float
) -> None:
    count = 1 + int(part * (len(tokens) - 1))
    groups = groups_of(tuple(tokens), count)
    assert len(groups) == count and all(groups)
    order = [token for group in groups for token in group]
    assert order == sorted(range(len(tokens)), key=lambda t: (tokens[t], t))
    assert max(map(len, groups)) <= width_of(len(tokens), count)
    assert width_of(len(tokens), count) <= 1.25 * len(tokens) / count + 1


@given(tokens=st.lists(st.binary(max_size=3), min_size=32, max_size=120))
@settings(max_examples=50, deadline=None)
def test_no_cut_nearby_would_part_less(tokens: list[bytes]) -> None:
    groups = groups_of(tuple(tokens), 3)
    order = [token for group in groups for token in group]
    slack = slack_of(len(tokens), 3)

    def parted(at: int) -> int:
        return len(commonprefix([tokens[order[at - 1]], tokens[order[at]]]))

    for number in (1, 2):
        cut, even = sum(map(len, groups[:number])), number * len(tokens) // 3
        assert abs(cut - even) <= slack
        assert all(parted(cut) <= parted(at) for at in range(even - slack, even + slack + 1))


def test_the_groups_of_this_vocabulary_never_change() -> None:
    head = built()
    groups = [[TOKENS[t] for t in group] for group in groups_of(TOKENS, 6)]
    assert groups == [
        [b"", b"(", b")", b"a", b"an", b"and"],
        [b"b", b"c", b"d", b"e", b"f", b"g", b"h"],
        [b"i", b"in", b"into", b"j", b"k", b"l", b"m"],
        [b"n", b"o", b"on", b"one", b"p", b"q"],
        [b"r", b"s", b"t", b"the", b"then", b"there", b"u"],
        [b"v", b"w", b"x", b"y", b"z", b"{", b"}"],
    ]
    assert head.sizes.tolist() == [6, 7, 7, 6, 7, 7]
    assert torch.equal(head.places[head.place], torch.arange(40))
    assert {name for name, _ in head.named_buffers()} - set(head.state_dict()) == {
        "place", "places", "sizes",
    }  # fmt: skip


# The probabilities.


def slow_log_prob(head: GroupedHead, groups: list[list[int]], hidden: Tensor, token: int) -> Tensor:
    """ln p of one token at one position.  # (d_model,) -> ()"""

    def score(row: Tensor) -> Tensor:
        z = hidden @ row
        return (head.softcap * (z / head.softcap).tanh() if head.softcap else z).exp()

    weights = torch.stack(
        [len(group) * score(row) for row, group in zip(head.groups, groups, strict=True)]
    )
    g = next(g for g, group in enumerate(groups) if token in group)
    within = torch.stack([score(head.table[t]) for t in groups[g]])
    return (weights[g] / weights.sum() * score(head.table[token]) / within.sum()).log()


@pytest.mark.parametrize("softcap", [30.0, 2.0, 0.0])
@pytest.mark.parametrize("count", [0, 1, 2, 7, 39, 40])
def test_values_and_gradients_are_those_of_plain_loops(softcap: float, count: int) -> None:
    head = randomised(built(softcap=softcap, groups=count)).double()
    groups = groups_of(TOKENS, count or 6)
    hidden, targets, prev = inputs(12)
    hidden.requires_grad_()
    slow = [slow_log_prob(head, groups, h, int(t)) for h, t in zip(hidden, targets, strict=True)]
    expected = -torch.stack(slow)
    got = head.nll(hidden, targets, prev)
    # ln n is an fp32 number.
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    leaves = [hidden, *head.parameters()]
    for a, b in zip(
        torch.autograd.grad(head.loss(hidden, targets, prev), leaves),
        torch.autograd.grad(expected.sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("softcap", [30.0, 0.0])
def test_one_group_is_the_tied_head(softcap: float) -> None:
    head = randomised(built(groups=1, softcap=softcap))
    tied = head_config({"name": "tied", "softcap": softcap}).build(SHAPE)
    dict(tied.named_parameters())["table"].data.copy_(head.table)
    hidden, _, prev = inputs()
    hidden = hidden.float()
    torch.testing.assert_close(
        head.log_probs(hidden, prev), tied.log_probs(hidden, prev), rtol=1e-6, atol=1e-5
    )


def test_groups_of_one_token_are_a_softmax_over_the_groups() -> None:
    head = randomised(built(groups=40))
    hidden, _, prev = inputs()
    z = 30 * torch.tanh(hidden.float() @ head.groups.T / 30)
    order = torch.tensor(groups_of(TOKENS, 40)).flatten()
    expected = torch.empty(20, 40)
    expected[:, order] = z.log_softmax(1)
    torch.testing.assert_close(head.log_probs(hidden, prev), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("softcap", [30.0, 0.0])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_probabilities_sum_to_one_and_are_finite(softcap: float, scale: float) -> None:
    head = randomised(built(softcap=softcap))
    hidden, _, prev = inputs(scale=scale)
    own = head.own_log_probs(hidden.float(), prev)
    assert own.dtype == torch.float32 and own.isfinite().all()
    assert (own.double().exp().sum(1) - 1).abs().max() < 2e-5
    assert (head.log_probs(hidden, prev).double().exp().sum(1) - 1).abs().max() < 1e-6


def test_it_starts_uniform_and_every_tensor_has_a_gradient() -> None:
    head = built()
    hidden, targets, prev = inputs(400)
    hidden = F.rms_norm(hidden, (SHAPE.d_model,)).float()
    loss = head.loss(hidden, targets, prev) / len(targets)
    assert float(loss.detach()) == pytest.approx(math.log(40), rel=0.01)
    # At zero the probabilities are equal, not only their mean.
    at_zero = head.log_probs(torch.zeros(1, 16), prev[:1])
    torch.testing.assert_close(at_zero, torch.full((1, 40), -math.log(40)))
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and bool(p.grad.any()) for p in head.parameters())


# The counts, and options that cannot be used.


@pytest.mark.parametrize("count", [0, 1, 7, 40])
def test_parameters_and_operations_are_counted_before_building(count: int) -> None:
    config = head_config({"name": "grouped", "groups": count})
    head, groups = config.build(SHAPE), count or 6
    params = sum(p.numel() for p in head.parameters())
    assert config.num_params(SHAPE) == params == sum(s.tensor.numel() for s in head.stored())
    assert params == (40 + groups) * 16
    assert isinstance(head, GroupedHead)
    assert config.flops(SHAPE) == 2 * 16 * (groups + len(head.places))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": -1}, "groups is -1"),
        ({"groups": 41}, "groups 41 is greater than the vocabulary 40"),
        ({"groups": 2.0}, "type int"),
        ({"group": 2}, "did you mean 'groups'"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        built(**options)


def test_without_the_tokens_bytes_it_says_so() -> None:
    shape = HeadShape(vocab_size=40, d_model=16, bos_id=0)
    with pytest.raises(ConfigError, match="made from the tokens' bytes"):
        head_config({"name": "grouped"}).build(shape)
