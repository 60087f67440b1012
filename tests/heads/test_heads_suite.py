"""What every head must do, run over all heads and the option sets where they differ most.

A new head is picked up from `HEADS` with its default options; it must add a `Reference` here: its
input vectors and its logits again, in the plainest form, straight from its stored weights.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tokgolf.config import TrunkConfig
from tokgolf.errors import ConfigError
from tokgolf.heads import HEADS, Head, HeadConfig, HeadShape, head_config, head_to_dict
from tokgolf.heads.base import Role, StoredKind
from tokgolf.heads.bigram_hash import BigramHashConfig
from tokgolf.heads.factorized import FactorizedConfig
from tokgolf.heads.vq import VQConfig
from tokgolf.model import LanguageModel, Trunk

SHAPE = HeadShape(vocab_size=64, d_model=64, bos_id=7)

CASES: dict[str, dict[str, Any]] = {name: {"name": name} for name in HEADS} | {
    "factorized-rank8": {"name": "factorized", "rank": 8},
    "factorized-rank8-own": {"name": "factorized", "rank": 8, "shared": False},
    "factorized-rank64-own": {"name": "factorized", "rank": 64, "shared": False},
    "vq-frequency": {"name": "vq", "codes": 20, "tail_codes": 8},
    "vq-random": {"name": "vq", "codes": 20, "assignment": "random", "seed": 3},
    "vq-all-codes": {"name": "vq", "codes": 64},
    "vq-frequency-residual": {"name": "vq", "codes": 16, "residual_rank": 8},
    "vq-random-residual": {"name": "vq", "assignment": "random", "residual_rank": 8},
    "bigram-hash-wide": {"name": "bigram-hash", "buckets": 64, "dim": 96},
    "bigram-hash-on-residual": {
        "name": "bigram-hash", "buckets": 97, "dim": 8, "base": {"name": "vq", "residual_rank": 4},
    },
    **{
        f"bigram-hash-on-{base}": {
            "name": "bigram-hash", "buckets": 97, "dim": 8, "base": {"name": base},
        }
        for base in HEADS
        if base != "bigram-hash"
    },
}  # fmt: skip

Weights = dict[str, Tensor]

every_case = pytest.mark.parametrize("case", CASES)
cap_on_and_off = pytest.mark.parametrize("softcap", [30.0, 0.0])


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """A fixed seed and one thread (these tensors are too small for more), both put back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)


def config_of(case: str, softcap: float = 30.0) -> HeadConfig:
    return head_config({**CASES[case], "softcap": softcap})


def counts() -> Tensor:
    return torch.randint(1, 10_000, (SHAPE.vocab_size,))


def built(case: str, softcap: float = 30.0) -> Head:
    return config_of(case, softcap).build(SHAPE, counts())


def randomised(head: Head, std: float = 0.3) -> Head:
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(0.0, std)
    return head


def random_batch(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """tokens, prev, targets, each (n,)"""
    tokens, prev, targets = torch.randint(0, SHAPE.vocab_size, (3, n))
    return tokens, prev, targets


def head_loss(head: Head, tokens: Tensor, prev: Tensor, targets: Tensor) -> Tensor:
    """The head's two ends with nothing but a norm between them."""
    hidden = F.rms_norm(head.embed(tokens[None], prev[None])[0], (SHAPE.d_model,))
    return head.nll(hidden, targets, tokens).mean()


def steps(head: Head, optimizer: torch.optim.Optimizer, count: int) -> None:
    for _ in range(count):
        loss = head_loss(head, *random_batch(256))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def trained(head: Head) -> Head:
    steps(head, torch.optim.Adam(head.parameters(), lr=0.05), 20)
    return head


# The references: loops over tokens, and one formula per head.


class Reference(NamedTuple):
    """A head again: the vector of one token, and the logits of hidden states."""

    embed: Callable[[HeadConfig, Weights, int, int], Tensor]  # config, weights, token, prev
    logits: Callable[[HeadConfig, Weights, Tensor], Tensor]  # config, weights, hidden (n, d)


def vq_logits(config: HeadConfig, w: Weights, hidden: Tensor) -> Tensor:
    assert isinstance(config, VQConfig)
    columns = []
    for token in range(SHAPE.vocab_size):
        z = hidden @ w["codebook"][int(w["codes"][token])]
        if config.residual_rank:
            z = z + (hidden @ w["residual_b"].T) @ w["residual_a"][token] + w["token_bias"][token]
        columns.append(z)
    return torch.stack(columns, dim=1)


def factorized_logits(config: HeadConfig, w: Weights, hidden: Tensor) -> Tensor:
    assert isinstance(config, FactorizedConfig)
    projection = w["input"] if config.shared else w["output"]
    return (hidden @ projection.T) @ w["table"].T


def of_base(config: HeadConfig, w: Weights) -> tuple[Reference, HeadConfig, Weights]:
    assert isinstance(config, BigramHashConfig)
    inner = {k.removeprefix("base."): v for k, v in w.items() if k.startswith("base.")}
    return REFERENCES[config.base["name"]], config.base_config(), inner


def bigram_embed(config: HeadConfig, w: Weights, token: int, prev: int) -> Tensor:
    assert isinstance(config, BigramHashConfig)
    base, base_config, inner = of_base(config, w)
    last = w["table"].shape[0] - 1
    bucket = ((36313 * token) ^ (27191 * prev)) % last
    row = w["table"][last if token == SHAPE.bos_id else bucket]
    return base.embed(base_config, inner, token, prev) + w["scale"] * (row @ w["projection"])


def bigram_logits(config: HeadConfig, w: Weights, hidden: Tensor) -> Tensor:
    base, base_config, inner = of_base(config, w)
    return base.logits(base_config, inner, hidden)


REFERENCES = {
    "tied": Reference(lambda _, w, t, p: w["table"][t], lambda _, w, h: h @ w["table"].T),
    "untied": Reference(lambda _, w, t, p: w["input"][t], lambda _, w, h: h @ w["output"].T),
    "factorized": Reference(lambda _, w, t, p: w["table"][t] @ w["input"], factorized_logits),
    "vq": Reference(lambda _, w, t, p: w["input"][t], vq_logits),
    "bigram-hash": Reference(bigram_embed, bigram_logits),
}


def weights_of(head: Head) -> Weights:
    return {**dict(head.named_parameters()), **dict(head.named_buffers())}


def reference_nll(config: HeadConfig, w: Weights, hidden: Tensor, targets: Tensor) -> Tensor:
    z = REFERENCES[config.name].logits(config, w, hidden)
    if config.softcap:
        z = config.softcap * torch.tanh(z / config.softcap)
    z = z - z.max(dim=1, keepdim=True).values
    p = z.exp() / z.exp().sum(dim=1, keepdim=True)
    return -torch.stack([p[row, int(target)] for row, target in enumerate(targets)]).log()


def test_every_head_has_a_reference_and_a_case() -> None:
    assert set(REFERENCES) == set(HEADS)
    assert {case["name"] for case in CASES.values()} == set(HEADS)


# Normalisation and the loss.


@every_case
@cap_on_and_off
@pytest.mark.parametrize("make", [randomised, trained])
def test_probabilities_sum_to_one(case: str, softcap: float, make: Callable[[Head], Head]) -> None:
    head = make(built(case, softcap))
    hidden = torch.cat([torch.randn(50, SHAPE.d_model), 20 * torch.randn(10, SHAPE.d_model)])
    _, prev, _ = random_batch(60)
    log_probs = head.log_probs(hidden, prev)
    assert log_probs.dtype == torch.float32
    assert log_probs.shape == (60, SHAPE.vocab_size)
    assert log_probs.std(dim=1).min() > 1e-3  # not the trivial, uniform distribution
    total = log_probs.double().exp().sum(dim=1)
    assert (total - 1).abs().max() < 1e-6


@every_case
@cap_on_and_off
def test_nll_is_minus_log_probs_for_all_targets(case: str, softcap: float) -> None:
    head = randomised(built(case, softcap))
    n, vocab = 12, SHAPE.vocab_size
    hidden, (_, prev, _) = torch.randn(n, SHAPE.d_model), random_batch(n)
    log_probs = head.log_probs(hidden, prev)
    every = torch.arange(vocab).repeat(n)
    nll = head.nll(hidden.repeat_interleave(vocab, 0), every, prev.repeat_interleave(vocab, 0))
    torch.testing.assert_close(nll.view(n, vocab), -log_probs, rtol=1e-5, atol=1e-5)


@every_case
def test_nll_of_a_row_does_not_depend_on_other_targets_or_their_order(case: str) -> None:
    head = randomised(built(case))
    hidden, (_, prev, targets) = torch.randn(40, SHAPE.d_model), random_batch(40)
    nll = head.nll(hidden, targets, prev)
    others = torch.cat([targets[:1], (targets[1:] + 1) % SHAPE.vocab_size])
    changed = head.nll(hidden, others, prev)
    assert torch.equal(changed[0], nll[0])
    assert (changed[1:] != nll[1:]).any()
    order = torch.randperm(40)
    permuted = head.nll(hidden[order], targets[order], prev[order])
    torch.testing.assert_close(permuted, nll[order], rtol=1e-6, atol=1e-6)


@every_case
@cap_on_and_off
def test_nll_and_its_gradients_agree_with_a_dense_reference(case: str, softcap: float) -> None:
    config = config_of(case, softcap)
    head = randomised(config.build(SHAPE, counts()).double())
    hidden = torch.randn(20, SHAPE.d_model, dtype=torch.float64, requires_grad=True)
    _, prev, targets = random_batch(20)
    weight = torch.rand(20, dtype=torch.float64)  # a mean or a sum in the wrong place would show
    fast = head.nll(hidden, targets, prev)
    slow = reference_nll(config, weights_of(head), hidden, targets)
    torch.testing.assert_close(fast.double(), slow, rtol=1e-5, atol=1e-5)

    parameters = dict(head.named_parameters())
    inputs = [hidden, *parameters.values()]
    got, expected = (
        torch.autograd.grad((nll.double() * weight).sum(), inputs, materialize_grads=True)
        for nll in (fast, slow)
    )
    assert sum(bool(gradient.any()) for gradient in expected) >= 2
    for name, a, b in zip(["hidden", *parameters], got, expected, strict=True):
        # The logits are fp32 by contract, so this is fp32 precision, relative to the largest.
        worst = float((a - b).abs().max())
        assert worst <= 1e-5 * max(float(b.abs().max()), 1e-3), f"{name}: off by {worst}"


@every_case
def test_embed_agrees_with_the_reference_token_by_token(case: str) -> None:
    config = config_of(case)
    head = randomised(config.build(SHAPE, counts()).double())
    tokens, prev, _ = random_batch(60)
    tokens[::10] = SHAPE.bos_id
    fast = head.embed(tokens.view(4, 15), prev.view(4, 15))
    assert fast.shape == (4, 15, SHAPE.d_model)
    embed, weights = REFERENCES[config.name].embed, weights_of(head)
    pairs = zip(tokens.tolist(), prev.tolist(), strict=True)
    slow = torch.stack([embed(config, weights, t, p) for t, p in pairs])
    torch.testing.assert_close(fast.flatten(0, 1), slow, rtol=1e-12, atol=1e-12)


@every_case
def test_scores_are_the_same_inside_autocast(case: str) -> None:
    head = randomised(built(case))
    hidden, (_, prev, _) = torch.randn(10, SHAPE.d_model), random_batch(10)
    expected = head.log_probs(hidden, prev)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (hidden @ hidden.T).dtype == torch.bfloat16  # it would have mattered
        assert torch.equal(head.log_probs(hidden, prev), expected)


# The ledgers: what is trained, what is stored, what is counted.


@every_case
def test_param_groups_are_a_partition(case: str) -> None:
    head = built(case)
    groups = list(head.param_groups())
    assert all(role in get_args(Role) for role, _ in groups)
    listed = [item for _, parameters in groups for item in parameters.items()]
    named = dict(head.named_parameters())
    assert len(listed) == len(named)
    assert {name: id(p) for name, p in listed} == {name: id(p) for name, p in named.items()}
    assert all(parameter.requires_grad for parameter in named.values())


@every_case
def test_stored_covers_every_trainable_tensor_once_and_else_only_codes(case: str) -> None:
    head = built(case)
    stored = list(head.stored())
    names = [name for name, _, _ in stored]
    assert len(set(names)) == len(names)
    assert all(kind in get_args(StoredKind) for _, _, kind in stored)
    trained_ones = {name: id(t) for name, t, kind in stored if kind != "codes"}
    assert trained_ones == {name: id(p) for name, p in head.named_parameters()}
    codes = {name: t for name, t, kind in stored if kind == "codes"}
    assert all(t.dtype == torch.int64 and not t.requires_grad for t in codes.values())
    persistent = head.state_dict()
    assert set(persistent) == set(names)
    assert sum(t.numel() for t in persistent.values()) == sum(t.numel() for _, t, _ in stored)


@every_case
def test_stored_kinds_fit_their_tensors(case: str) -> None:
    for name, tensor, kind in built(case).stored():
        rank = 2 if kind in ("table", "matrix") else 1
        assert tensor.dim() == rank, name


@every_case
def test_num_params_is_known_before_building(case: str) -> None:
    for vocab, d_model in ((64, 64), (300, 64), (4096, 66)):
        shape = HeadShape(vocab_size=vocab, d_model=d_model, bos_id=0)
        config = config_of(case)
        assert config.num_params(shape) == sum(p.numel() for p in config.build(shape).parameters())


# Learning.


@every_case
def test_the_first_loss_is_the_initial_loss(case: str) -> None:
    head = built(case)
    loss = head_loss(head, *random_batch(2048)).item()
    assert head.initial_loss() == pytest.approx(math.log(SHAPE.vocab_size))
    assert loss == pytest.approx(head.initial_loss(), rel=0.02)


@every_case
@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_every_trainable_tensor_moves_within_three_steps(case: str, kind: str) -> None:
    head = built(case)
    before = {name: p.detach().clone() for name, p in head.named_parameters()}
    parameters = [p for _, group in head.param_groups() for p in group.values()]
    optimizer: torch.optim.Optimizer = (
        torch.optim.Adam(parameters, lr=0.01)
        if kind == "adam"
        else torch.optim.SGD(parameters, lr=0.5)
    )
    steps(head, optimizer, 3)
    for name, parameter in head.named_parameters():
        assert parameter.isfinite().all(), name
        assert not torch.equal(parameter, before[name]), f"{name} did not move"
        assert parameter.grad is not None and parameter.grad.any(), f"{name} has no gradient"


def floor_of(config: HeadConfig, head: Head) -> float:
    """The mean of ln n_code over the vocabulary for a VQ head without residual; else 0."""
    if isinstance(config, BigramHashConfig):
        inner = head.get_submodule("base")
        assert isinstance(inner, Head)
        return floor_of(config.base_config(), inner)
    if not isinstance(config, VQConfig) or config.residual_rank:
        return 0.0
    codes = weights_of(head)["codes"].tolist()
    return sum(math.log(codes.count(code)) for code in codes) / len(codes)


@every_case
def test_a_small_model_overfits_64_tokens_down_to_the_floor(case: str) -> None:
    config = config_of(case)
    head = config.build(SHAPE, counts())
    trunk = Trunk(
        TrunkConfig(
            layers=1, d_model=64, heads=2, kv_heads=1, mlp_hidden=128, sequence_length=64
        )
    )  # fmt: skip
    model = LanguageModel(trunk, head)
    tokens = torch.randperm(SHAPE.vocab_size)[None]  # every token once, each before one other
    targets = tokens.roll(-1, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(80):
        loss = model.nll(tokens, targets).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    final, floor = model.nll(tokens, targets).mean().item(), floor_of(config, head)
    assert floor - 1e-4 < final < floor + 0.1


def test_only_published_vq_heads_have_a_floor() -> None:
    floors = {case: floor_of(config_of(case), built(case)) for case in CASES}
    assert {case for case, floor in floors.items() if floor > 0} == {
        "vq", "vq-frequency", "vq-random", "bigram-hash-on-vq",
    }  # fmt: skip
    # 12 tokens have a code of their own, 52 share 8: four codes have 7 tokens, four have 6.
    expected = (28 * math.log(7) + 24 * math.log(6)) / 64
    assert floors["vq-frequency"] == pytest.approx(expected)
    # 64 tokens over 20 codes: four have 4 tokens, sixteen have 3.
    assert floors["vq-random"] == pytest.approx((16 * math.log(4) + 48 * math.log(3)) / 64)


# Config and state.


@every_case
def test_a_config_survives_the_way_through_a_dict(case: str) -> None:
    for softcap in (30.0, 0.0, 12.5):
        config = config_of(case, softcap)
        values = head_to_dict(config)
        assert values["name"] == CASES[case]["name"]
        assert values["softcap"] == softcap
        assert {key: values[key] for key in CASES[case]} == CASES[case]
        assert head_config(values) == config


@pytest.mark.parametrize("name", HEADS)
def test_an_unknown_head_or_option_names_the_nearest(name: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean '{name}'"):
        head_config({"name": name + "x"})
    for field in dataclasses.fields(head_config({"name": name})):
        with pytest.raises(ConfigError, match=f"did you mean '{field.name}'"):
            head_config({"name": name, field.name + "q": 1})


@pytest.mark.parametrize("values", [{}, {"name": None}, {"name": 3}, {"name": "zzzzzz"}])
def test_a_head_without_a_known_name_lists_the_known_ones(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="known: .*tied.*vq|did you mean") as caught:
        head_config(values, "recipe x, [head]")
    assert str(caught.value).startswith("recipe x, [head]: ")


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("softcap", [-1.0, math.nan, math.inf, -math.inf])
def test_a_bad_softcap_is_refused_by_every_head(name: str, softcap: float) -> None:
    with pytest.raises(ConfigError, match="softcap"):
        head_config({"name": name, "softcap": softcap})


@every_case
def test_a_state_dict_gives_the_same_scores_in_a_fresh_module(case: str) -> None:
    head = randomised(built(case))
    fresh = config_of(case).build(SHAPE)  # without counts: stored codes come from the state
    hidden, (tokens, prev, _) = torch.randn(30, SHAPE.d_model), random_batch(30)
    expected = head.log_probs(hidden, prev)
    assert not torch.equal(fresh.log_probs(hidden, prev), expected)
    fresh.load_state_dict({name: t.clone() for name, t in head.state_dict().items()})
    assert torch.equal(fresh.log_probs(hidden, prev), expected)
    assert torch.equal(fresh.embed(tokens[None], prev[None]), head.embed(tokens[None], prev[None]))


@every_case
def test_the_same_seed_builds_the_same_head(case: str) -> None:
    heads = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        heads.append(built(case).state_dict())
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])
    assert not all(torch.equal(heads[0][name], heads[2][name]) for name in heads[0])
