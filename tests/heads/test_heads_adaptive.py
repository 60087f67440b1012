"""The adaptive head: against PyTorch's, against plain loops in fp64, and whatever its codes are."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from heads_support import inputs, randomised
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tokgolf.errors import ConfigError
from tokgolf.heads import HeadShape, head_config
from tokgolf.heads.adaptive import AdaptiveConfig, AdaptiveHead

SHAPE = HeadShape(vocab_size=40, d_model=16, bos_id=5)
COUNTS = torch.arange(40) * 7 % 41


@pytest.fixture(autouse=True)
def seed(one_thread: None) -> None:
    torch.manual_seed(0)


def built(counts: Tensor | None = COUNTS, **options: Any) -> AdaptiveHead:
    head = head_config({"name": "adaptive", **options}).build(SHAPE, counts)
    assert isinstance(head, AdaptiveHead)
    return head


def members(head: AdaptiveHead) -> list[list[int]]:
    """The tokens of each cluster, in the order of their rows."""
    codes = head.codes.tolist()
    return [[t for t in range(40) if codes[t] == c] for c in range(len(head.tables))]


def slow_row(head: AdaptiveHead, token: int) -> Tensor:
    """The token's row at full width.  # () -> (d_model,)"""
    for c, tokens in enumerate(members(head)):
        if token in tokens:
            row = head.tables[c][tokens.index(token)]
            return torch.as_tensor(row @ head.projections[c - 1] if c else row)
    raise AssertionError(token)


def slow_log_prob(head: AdaptiveHead, hidden: Tensor, token: int) -> Tensor:
    """ln p of one token at one position.  # (d_model,) -> ()"""
    words, *tails = members(head)

    def cap(z: Tensor) -> Tensor:
        return head.softcap * (z / head.softcap).tanh() if head.softcap else z

    scores = {t: cap(hidden @ slow_row(head, t)).exp() for t in range(40)}
    first = {t: scores[t] for t in words}
    if head.slots is not None:
        for c, tokens in enumerate(tails, 1):
            first[-c] = len(tokens) * cap(hidden @ head.slots[c - 1]).exp()
    total = torch.stack(list(first.values())).sum()
    if token in words:
        return (first[token] / total).log()
    c = next(c for c, tokens in enumerate(tails, 1) if token in tokens)
    within = scores[token] / torch.stack([scores[t] for t in tails[c - 1]]).sum()
    return (first[-c] / total * within).log()


EVERY_SHAPE = [
    {"cuts": []},
    {"cuts": [0.25]},
    {"cuts": [5, 20]},
    {"cuts": [0.125, 0.5], "divisor": 2},
    {"cuts": [1, 39], "divisor": 1},
]


@pytest.mark.parametrize("softcap", [30.0, 2.0, 0.0])
@pytest.mark.parametrize("options", EVERY_SHAPE)
def test_values_and_gradients_are_those_of_plain_loops(
    softcap: float, options: dict[str, Any]
) -> None:
    head = randomised(built(softcap=softcap, **options)).double()
    hidden, targets, prev = inputs(12)
    hidden.requires_grad_()
    slow = [slow_log_prob(head, h, int(t)) for h, t in zip(hidden, targets, strict=True)]
    expected = -torch.stack(slow)
    got = head.nll(hidden, targets, prev)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    embedded = head.embed(targets[None], prev[None])[0]
    rows = torch.stack([slow_row(head, int(t)) for t in targets])
    torch.testing.assert_close(embedded, rows, rtol=1e-12, atol=1e-12)
    leaves = [hidden, *head.parameters()]
    for a, b in zip(
        torch.autograd.grad(head.loss(hidden, targets, prev) + embedded.sin().sum(), leaves),
        torch.autograd.grad(expected.sum() + rows.sin().sum(), leaves, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("options", [{"cuts": [5, 20]}, {"cuts": [0.25], "divisor": 2}])
def test_it_agrees_with_pytorch_on_a_vocabulary_sorted_by_frequency(
    options: dict[str, Any],
) -> None:
    head = randomised(built(softcap=0.0, **options)).double()
    assert head.slots is not None
    sizes = [len(tokens) for tokens in members(head)]
    peer = nn.AdaptiveLogSoftmaxWithLoss(
        16, 40, [sum(sizes[: c + 1]) for c in range(len(sizes) - 1)],
        div_value=options.get("divisor", 4), head_bias=True,
    ).double()  # fmt: skip
    with torch.no_grad():
        # Its classes are ranks, its first layer has the slots last, its projections come first,
        # and our ln n of a slot is a bias there.
        peer.head.weight.copy_(torch.cat([head.tables[0], head.slots]))
        peer.head.bias.copy_(F.pad(torch.tensor(sizes[1:]).log(), (sizes[0], 0)))
        for tail, rows, projection in zip(
            peer.tail, list(head.tables)[1:], head.projections, strict=True
        ):
            assert isinstance(tail, nn.Sequential)
            for layer, weight in zip(tail, (projection, rows), strict=True):
                layer.get_parameter("weight").copy_(weight)
    hidden, targets, prev = inputs(30)
    by_rank = peer.log_prob(hidden)
    expected = torch.empty_like(by_rank)
    expected[:, torch.tensor(sum(members(head), []))] = by_rank
    # The peer's bias is the fp32 logarithm, as ours is.
    torch.testing.assert_close(head.own_log_probs(hidden, prev), expected, rtol=1e-6, atol=1e-6)
    ranks = head.places()[targets]
    # Its "output" is ln p, not nats, but its "loss" is the mean of nats.
    torch.testing.assert_close(
        head.loss(hidden, targets, prev) / 30, peer(hidden, ranks).loss, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("softcap", [30.0, 0.0])
def test_one_cluster_is_the_tied_head_and_stores_no_codes(softcap: float) -> None:
    head = randomised(built(cuts=[], softcap=softcap))
    tied = head_config({"name": "tied", "softcap": softcap}).build(SHAPE)
    dict(tied.named_parameters())["table"].data.copy_(head.tables[0])
    hidden, targets, prev = inputs()
    hidden = hidden.float()
    assert torch.equal(head.embed(targets[None], prev[None]), tied.embed(targets[None], prev[None]))
    torch.testing.assert_close(
        head.log_probs(hidden, prev), tied.log_probs(hidden, prev), rtol=1e-6, atol=1e-5
    )
    assert set(head.state_dict()) == {"tables.0"}
    assert [stored.name for stored in head.stored()] == ["tables.0"]


def test_clusters_hold_the_most_frequent_tokens_first_and_ties_by_id() -> None:
    counts = torch.zeros(40, dtype=torch.int64)
    counts[[7, 30, 11]] = torch.tensor([9, 5, 5])
    head = built(counts, cuts=[2, 4])
    first, second, third = members(head)
    assert first == [7, 11]
    assert second == [0, 30]
    assert third == [t for t in range(40) if t not in (0, 7, 11, 30)]
    codes = next(s for s in head.stored() if s.kind == "codes")
    assert codes.tensor.dtype == torch.int64 and set(codes.tensor.tolist()) == {0, 1, 2}


@given(codes=st.lists(st.integers(0, 2**31 - 1) | st.integers(0, 3), min_size=40, max_size=40))
@settings(max_examples=50, deadline=None)
def test_probabilities_sum_to_one_for_any_codes_that_a_file_can_hold(codes: list[int]) -> None:
    torch.manual_seed(0)
    head = randomised(built(cuts=[5, 20]))
    head.codes.copy_(torch.tensor(codes))
    assert sorted(head.places().tolist()) == list(range(40))
    hidden, targets, prev = inputs()
    own = head.own_log_probs(hidden.float(), prev)
    assert (own.double().exp().sum(1) - 1).abs().max() < 1e-5
    assert head.embed(targets[None], prev[None]).isfinite().all()


def test_codes_come_back_with_the_state() -> None:
    head, fresh = randomised(built()), built(counts=None)
    hidden, targets, prev = inputs()
    fresh.load_state_dict(head.state_dict())
    assert torch.equal(fresh.log_probs(hidden.float(), prev), head.log_probs(hidden.float(), prev))
    assert torch.equal(
        fresh.embed(targets[None], prev[None]), head.embed(targets[None], prev[None])
    )


@pytest.mark.parametrize("softcap", [30.0, 0.0])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_probabilities_sum_to_one_and_are_finite(softcap: float, scale: float) -> None:
    head = randomised(built(softcap=softcap))
    hidden, _, prev = inputs(scale=scale)
    own = head.own_log_probs(hidden.float(), prev)
    assert own.dtype == torch.float32 and own.isfinite().all()
    assert (own.double().exp().sum(1) - 1).abs().max() < 1e-5
    assert (head.log_probs(hidden, prev).double().exp().sum(1) - 1).abs().max() < 1e-6


@pytest.mark.parametrize("options", EVERY_SHAPE)
def test_it_starts_uniform_and_every_tensor_has_a_gradient(options: dict[str, Any]) -> None:
    head = built(**options)
    hidden, targets, prev = inputs(400)
    hidden = F.rms_norm(hidden, (SHAPE.d_model,)).float()
    loss = head.loss(hidden, targets, prev) / len(targets)
    assert float(loss.detach()) == pytest.approx(math.log(40), rel=0.01)
    # At zero the probabilities are equal, not only their mean.
    at_zero = head.log_probs(torch.zeros(1, 16), prev[:1])
    torch.testing.assert_close(at_zero, torch.full((1, 40), -math.log(40)))
    loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in head.named_parameters():
        # A cluster of one token is decided by its slot: the output says nothing of its row.
        alone = options["cuts"] == [1, 39] and name in ("tables.2", "projections.1")
        assert parameter.grad is not None and bool(parameter.grad.any()) != alone, name


@pytest.mark.parametrize("options", EVERY_SHAPE)
def test_parameters_are_counted_before_building(options: dict[str, Any]) -> None:
    config = head_config({"name": "adaptive", **options})
    head = config.build(SHAPE)
    dense = sum(s.tensor.numel() for s in head.stored() if s.kind != "codes")
    assert config.num_params(SHAPE) == sum(p.numel() for p in head.parameters()) == dense
    listed = [name for _, named in head.param_groups() for name in named]
    assert sorted(listed) == sorted(name for name, _ in head.named_parameters())


def test_the_published_cuts_have_the_known_size() -> None:
    shape = HeadShape(vocab_size=1024, d_model=512, bos_id=0)
    config = AdaptiveConfig(cuts=[0.125, 0.5], divisor=4)
    assert config.clusters(shape) == [(128, 512), (384, 128), (512, 32)]
    projections = 128 * 512 + 32 * 512
    tables = 128 * 512 + 384 * 128 + 512 * 32
    assert config.num_params(shape) == tables + projections + 2 * 512
    assert config.flops(shape) == 2 * (tables + 2 * projections + 2 * 512)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divisor": 0}, "divisor is 0"),
        ({"divisor": 17, "cuts": [10]}, "divisor 17 leaves cluster 1 no column of d_model 16"),
        ({"cuts": [10, 10]}, "at tokens .10, 10. of 40; they must rise"),
        ({"cuts": [0.5, 0.25]}, "must rise"),
        ({"cuts": [40]}, "from 1 to 39"),
        ({"cuts": [0.001]}, "at tokens .0. of 40"),
        ({"cuts": [0]}, "cuts has 0"),
        ({"cuts": [-0.5]}, "cuts has -0.5"),
        ({"cuts": [2.5]}, "cuts has 2.5"),
        ({"cuts": [math.nan]}, "cuts has nan"),
        ({"cuts": [math.inf]}, "cuts has inf"),
        ({"cuts": [True]}, "cuts has True"),
        ({"cuts": ["0.5"]}, "cuts has '0.5'"),
        ({"cuts": 0.5}, "type list"),
        ({"cut": [0.5]}, "did you mean 'cuts'"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        built(**options)
