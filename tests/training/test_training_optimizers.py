"""Muon and Adam against their oracles, and the coverage check that names what is not trained."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tokgolf.config import TrunkConfig, from_dict
from tokgolf.corpora import Corpus, Document
from tokgolf.errors import ConfigError, TrainingError
from tokgolf.heads import HEADS, Head, HeadShape, ParamGroup, head_config
from tokgolf.heads.tied import TiedConfig, TiedHead
from tokgolf.heads.untied import UntiedConfig, UntiedHead
from tokgolf.model import LanguageModel, Trunk
from tokgolf.tokenizers import build_tokenizer
from tokgolf.training import RunConfig, guards, session, train
from tokgolf.training.distributed import Ranks
from tokgolf.training.optimizers import (
    Adam,
    Muon,
    OptimizerConfig,
    Optimizers,
    check_coverage,
    orthogonalize,
)
from tokgolf.training.shares import gradient_of

TRUNK = TrunkConfig(layers=2, d_model=16, heads=2, kv_heads=1, mlp_hidden=24, sequence_length=16)
TOKENS = *(bytes([byte]) for byte in range(256)), b""
SHAPE = HeadShape(vocab_size=257, d_model=16, bos_id=256, token_bytes=TOKENS)
SHAPES = [(16, 16), (48, 16), (16, 48), (7, 31), (64, 8), (1, 5)]

every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """A fixed seed and one thread (these tensors are too small for more), both put back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)


def constant_momentum(beta: float) -> OptimizerConfig:
    return OptimizerConfig(muon_momentum=beta, muon_momentum_start=beta)


def parameters(*shapes: tuple[int, ...]) -> dict[str, nn.Parameter]:
    return {f"p{i}": nn.Parameter(torch.randn(shape)) for i, shape in enumerate(shapes)}


def copies(named: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(p.detach().clone()) for name, p in named.items()}


def give_gradients(*sets: dict[str, nn.Parameter]) -> None:
    """The same random gradients to each of several equal sets of parameters."""
    for name, parameter in sets[0].items():
        gradient = torch.randn_like(parameter)
        for each in sets:
            each[name].grad = gradient.clone()


# --- orthogonalisation


@every_shape
def test_orthogonalized_singular_values_are_near_one(shape: tuple[int, int]) -> None:
    x = torch.randn(5, *shape)
    values = torch.linalg.svdvals(orthogonalize(x).float())
    assert values.shape == (5, min(shape))
    # A square Gaussian matrix has singular values next to 0, which five steps need not lift.
    lifted = torch.linalg.svdvals(x) / x.norm(dim=(-2, -1), keepdim=True).squeeze(-1) > 0.01
    assert lifted.float().mean() > 0.8
    assert float(values[lifted].min()) > 0.6
    assert float(values.max()) < 1.3


@every_shape
def test_orthogonalizing_keeps_the_singular_vectors(shape: tuple[int, int]) -> None:
    x = torch.randn(3, *shape)
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    inside = u.mT @ orthogonalize(x).float() @ v.mT
    off = inside - torch.diag_embed(torch.diagonal(inside, dim1=-2, dim2=-1))
    assert float(off.abs().max()) < 0.05
    large = s > 0.1 * s.norm(dim=-1, keepdim=True)
    assert float(torch.diagonal(inside, dim1=-2, dim2=-1)[large].min()) > 0.6


@pytest.mark.parametrize("scale", [2.0**-10, 2.0**10])
def test_orthogonalizing_ignores_the_scale(scale: float) -> None:
    x = torch.randn(2, 12, 20)
    assert torch.allclose(orthogonalize(x).float(), orthogonalize(scale * x).float(), atol=1e-2)


def test_orthogonalizing_zero_gives_zero() -> None:
    assert torch.equal(orthogonalize(torch.zeros(1, 4, 6)).float(), torch.zeros(1, 4, 6))


# --- Muon


def test_batched_muon_equals_one_matrix_at_a_time() -> None:
    batched = parameters((16, 24), (16, 24), (24, 16), (16, 24), (8, 8))
    single = copies(batched)
    config = OptimizerConfig(muon_momentum_steps=3)
    muon = Muon(batched, config)
    twins = [Muon({name: p}, config) for name, p in single.items()]
    assert len(muon.batches) == 3 < len(twins)
    for step in range(5):
        give_gradients(batched, single)
        muon.step(step, 0.7)
        for twin in twins:
            twin.step(step, 0.7)
    for name in batched:
        torch.testing.assert_close(batched[name], single[name], rtol=0, atol=2e-3)


@pytest.mark.parametrize("beta", [0.5, 0.95])
@pytest.mark.parametrize("shape", [(16, 24), (48, 16), (20, 20)], ids=str)
def test_muon_agrees_with_torch(shape: tuple[int, int], beta: float) -> None:
    """torch's buffer is an average, ours a sum: a factor that orthogonalising takes out again."""
    ours = parameters(shape)
    theirs = copies(ours)
    start = ours["p0"].detach().clone()
    config = constant_momentum(beta)
    muon = Muon(ours, config)
    oracle = torch.optim.Muon(
        theirs.values(), lr=config.lr_matrix, momentum=beta, nesterov=True, weight_decay=0.0
    )
    for step in range(4):
        give_gradients(ours, theirs)
        muon.step(step, 1.0)
        oracle.step()  # type: ignore[no-untyped-call]
        mine, other = ours["p0"].detach(), theirs["p0"].detach()
        # Both round in bf16, at different places: 4 % apart is usual, 20 % would be another rule.
        assert float((mine - other).norm() / (mine - start).norm()) < 0.08
        summed = oracle.state[theirs["p0"]]["momentum_buffer"] / (1 - beta)
        torch.testing.assert_close(muon.state()["p0"], summed, rtol=1e-4, atol=1e-4)


def test_muon_momentum_rises_linearly_from_its_start_to_its_end() -> None:
    config = OptimizerConfig(muon_momentum_start=0.5, muon_momentum=0.9, muon_momentum_steps=4)
    named = parameters((4, 4))
    muon = Muon(named, config)
    expected = torch.zeros(4, 4)
    for step, beta in enumerate([0.5, 0.6, 0.7, 0.8, 0.9, 0.9]):
        give_gradients(named)
        gradient = gradient_of("p0", named["p0"]).clone()
        expected = beta * expected + gradient
        muon.step(step, 1.0)
        torch.testing.assert_close(muon.state()["p0"], expected)


def test_muon_steps_are_in_proportion_to_the_scale() -> None:
    half = parameters((8, 12))
    full = copies(half)
    start = half["p0"].detach().clone()
    give_gradients(half, full)
    Muon(half, OptimizerConfig()).step(0, 0.5)
    Muon(full, OptimizerConfig()).step(0, 1.0)
    torch.testing.assert_close(2 * (half["p0"] - start), full["p0"] - start)


def test_a_matrix_that_waits_is_left_as_it_is_beside_one_of_its_shape() -> None:
    """Without decay too, and what moves does so as if it were alone."""
    named = parameters((8, 12), (8, 12))
    alone = copies({"p1": named["p1"]})
    waits = named["p0"].detach().clone()
    named["p0"].requires_grad_(False)
    give_gradients(alone, named)
    config = OptimizerConfig(muon_decay=0.2)
    Muon(named, config).step(0, 1.0)
    Muon(alone, config).step(0, 1.0)
    assert torch.equal(named["p0"], waits)
    assert torch.equal(named["p1"], alone["p1"])


# --- Adam


@pytest.mark.parametrize(
    ("beta1", "beta2", "eps"), [(0.9, 0.95, 1e-8), (0.5, 0.7, 0.1)], ids=["default", "other"]
)
def test_adam_equals_torch_with_a_rate_for_each_tensor(
    beta1: float, beta2: float, eps: float
) -> None:
    ours = parameters((5, 3), (7,), (2, 2))
    theirs = copies(ours)
    rates = {"p0": 0.05, "p1": 0.6, "p2": 0.008}
    adam = Adam(ours, rates, OptimizerConfig(adam_beta1=beta1, adam_beta2=beta2, adam_eps=eps))
    oracles = {
        name: torch.optim.Adam([p], lr=rates[name], betas=(beta1, beta2), eps=eps)
        for name, p in theirs.items()
    }
    for scale in (1.0, 1.0, 0.5, 0.25):
        give_gradients(ours, theirs)
        adam.step(scale)
        for name, oracle in oracles.items():
            oracle.param_groups[0]["lr"] = scale * rates[name]
            oracle.step()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name])


def test_a_copy_goes_on_as_its_source_would() -> None:
    """At the same rate and from the same averages of gradients, each with its own from then on."""
    named = parameters((5, 3), (7,))
    adam = Adam(named, {"p0": 0.6, "p1": 0.008}, OptimizerConfig())
    give_gradients(named)
    adam.step(1.0)
    for new, source in (("p2", "p0"), ("p3", "p2")):
        adam.copy(new, nn.Parameter(named[source].detach().clone()), source)
    for _ in range(3):
        gradient = torch.randn(5, 3)
        for name, p in named.items():
            p.grad = torch.ones(7) if name == "p1" else gradient.clone()
        adam.step(1.0)
    assert torch.equal(named["p2"], named["p0"]) and torch.equal(named["p3"], named["p0"])
    assert len({adam.adam.state[p]["exp_avg"].data_ptr() for p in named.values()}) == 4


def test_defaults_are_the_baselines_constants() -> None:
    assert dataclasses.asdict(OptimizerConfig()) == {
        "lr_tied": 0.05,
        "lr_input": 0.6,
        "lr_output": 0.008,
        "lr_matrix": 0.04,
        "lr_vector": 0.04,
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "adam_eps": 1e-8,
        "muon_momentum": 0.95,
        "muon_momentum_start": 0.85,
        "muon_momentum_steps": 500,
        "muon_iterations": 5,
        "muon_coefficients": "constant",
        "muon_rows": False,
        "muon_decay": 0.0,
    }


@pytest.mark.parametrize("field", ["lr_tied", "lr_input", "lr_output", "lr_matrix", "lr_vector"])
@pytest.mark.parametrize("value", [0.0, -0.1, float("nan")])
def test_a_rate_that_trains_nothing_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=field):
        from_dict(OptimizerConfig, {field: value}, "optimizer")


@pytest.mark.parametrize("field", ["adam_beta1", "adam_beta2", "muon_momentum"])
@pytest.mark.parametrize("value", [1.0, -0.1])
def test_a_momentum_outside_zero_to_one_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=field):
        from_dict(OptimizerConfig, {field: value}, "optimizer")


# --- coverage: heads that are broken on purpose


class Forgotten(TiedHead):
    """Has a tensor that it uses but puts in no group."""

    def __init__(self) -> None:
        super().__init__(SHAPE, TiedConfig())
        self.gain = nn.Parameter(torch.ones(SHAPE.d_model))

    def features(self, hidden: Tensor, prev: Tensor) -> Tensor:
        return hidden * self.gain


class Unused(Forgotten):
    """Has a tensor in a group that takes no part in the loss."""

    def features(self, hidden: Tensor, prev: Tensor) -> Tensor:
        return hidden

    def _param_groups(self) -> Iterator[ParamGroup]:
        yield from super()._param_groups()
        yield ParamGroup("vector", {"gain": self.gain})


class UnusedMatrix(TiedHead):
    """The same with a matrix, which is Muon's."""

    def __init__(self) -> None:
        super().__init__(SHAPE, TiedConfig())
        self.mix = nn.Parameter(torch.eye(SHAPE.d_model))

    def _param_groups(self) -> Iterator[ParamGroup]:
        yield from super()._param_groups()
        yield ParamGroup("matrix", {"mix": self.mix})


class Twice(UntiedHead):
    """Has its output table in two groups."""

    def __init__(self) -> None:
        super().__init__(SHAPE, UntiedConfig())

    def _param_groups(self) -> Iterator[ParamGroup]:
        yield from super()._param_groups()
        assert self.output is not None
        yield ParamGroup("tied", {"again": self.output})


class Foreign(TiedHead):
    """Lists a tensor that is not its own."""

    def __init__(self) -> None:
        super().__init__(SHAPE, TiedConfig())

    def _param_groups(self) -> Iterator[ParamGroup]:
        yield from super()._param_groups()
        yield ParamGroup("vector", {"stray": nn.Parameter(torch.ones(3))})


class Stuck(TiedHead):
    """Adds a product of two zero matrices: each has a gradient, which stays zero for ever."""

    def __init__(self) -> None:
        super().__init__(SHAPE, TiedConfig())
        self.left = nn.Parameter(torch.zeros(SHAPE.d_model, 4))
        self.right = nn.Parameter(torch.zeros(4, SHAPE.d_model))

    def features(self, hidden: Tensor, prev: Tensor) -> Tensor:
        return hidden + hidden @ self.left @ self.right

    def _param_groups(self) -> Iterator[ParamGroup]:
        yield from super()._param_groups()
        yield ParamGroup("matrix", {"left": self.left, "right": self.right})


class Loud(TiedHead):
    """Starts far from what it declares."""

    def __init__(self) -> None:
        super().__init__(SHAPE, TiedConfig())
        nn.init.normal_(self.table, std=1.0)


def model_of(head: Head) -> LanguageModel:
    return LanguageModel(Trunk(TRUNK), head)


def one_step(model: LanguageModel, optimizers: Optimizers | None = None) -> None:
    optimizers = optimizers or Optimizers(model, OptimizerConfig())
    tokens = torch.randint(0, SHAPE.vocab_size, (2, 9))
    model.nll(tokens[:, :-1], tokens[:, 1:]).mean().backward()  # type: ignore[no-untyped-call]
    optimizers.step(0, 1.0)


@pytest.mark.parametrize("name", HEADS)
def test_every_head_has_each_tensor_in_one_group(name: str) -> None:
    options = {"name": name, "rank": 8} if name == "factorized" else {"name": name}
    head = head_config(options).build(SHAPE, torch.arange(SHAPE.vocab_size))
    model = model_of(head)
    roles = check_coverage(model, OptimizerConfig())
    assert set(roles) == {n for n, p in model.named_parameters() if p.numel()}


def test_a_tensor_in_no_group_is_named() -> None:
    with pytest.raises(TrainingError, match=r"head\.gain is trainable but in no parameter group"):
        Optimizers(model_of(Forgotten()), OptimizerConfig())


def test_a_tensor_in_two_groups_is_named() -> None:
    with pytest.raises(TrainingError, match=r"head\.output is in two .*: output and tied"):
        Optimizers(model_of(Twice()), OptimizerConfig())


def test_a_tensor_of_no_part_of_the_model_is_named() -> None:
    with pytest.raises(TrainingError, match=r"head\.stray is in a parameter group but not in"):
        Optimizers(model_of(Foreign()), OptimizerConfig())


def test_a_tensor_with_rate_zero_is_named() -> None:
    config = OptimizerConfig()
    object.__setattr__(config, "lr_tied", 0.0)  # the config itself would refuse it
    with pytest.raises(TrainingError, match=r"head\.table has learning rate 0\.0"):
        Optimizers(model_of(TiedHead(SHAPE, TiedConfig())), config)


@pytest.mark.parametrize(("head", "name"), [(Unused, "gain"), (UnusedMatrix, "mix")])
def test_a_tensor_without_gradient_is_named(head: Callable[[], Head], name: str) -> None:
    with pytest.raises(TrainingError, match=rf"head\.{name} received no gradient"):
        one_step(model_of(head()))


def test_a_frozen_tensor_needs_no_group() -> None:
    head = Forgotten()
    head.gain.requires_grad_(False)
    one_step(model_of(head))
    assert torch.equal(head.gain, torch.ones(SHAPE.d_model))


def test_optimizer_state_restores_and_a_missing_tensor_is_named() -> None:
    torch.manual_seed(1)
    first, second = (model_of(TiedHead(SHAPE, TiedConfig())) for _ in range(2))
    second.load_state_dict(first.state_dict())
    tokens = torch.randint(0, SHAPE.vocab_size, (2, 9))

    def step(model: LanguageModel, optimizers: Optimizers, number: int) -> None:
        model.nll(tokens[:, :-1], tokens[:, 1:]).mean().backward()  # type: ignore[no-untyped-call]
        optimizers.step(number, 1.0)

    one = Optimizers(first, OptimizerConfig())
    step(first, one, 0)
    two = Optimizers(second, OptimizerConfig())
    state = {name: tensor.clone() for name, tensor in one.state().items()}
    second.load_state_dict(first.state_dict())
    two.load(state)
    step(first, one, 1)
    step(second, two, 1)
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b), name
    missing = sorted(state)[-1]
    del state[missing]
    with pytest.raises(TrainingError, match=f"holds no optimizer state '{missing}'"):
        two.load(state)


def test_what_guards_read_is_of_each_tensor_by_name_and_of_new_ones_too() -> None:
    head = UntiedHead(SHAPE, UntiedConfig(untie_at=0.5))
    model = model_of(head)
    optimizers = Optimizers(model, OptimizerConfig())
    one_step(model, optimizers)
    optimizers.adopt({f"head.{new}": f"head.{old}" for new, old in head.untie().items()})
    tokens = torch.randint(0, SHAPE.vocab_size, (2, 9))
    model.nll(tokens[:, :-1], tokens[:, 1:]).mean().backward()  # type: ignore[no-untyped-call]
    named = dict(model.named_parameters())
    assert {*optimizers.names} == {n for n, p in named.items() if p.numel()} == {*optimizers.rates}
    found = zip(
        optimizers.names,
        optimizers.gradient_norms().tolist(),
        optimizers.largest_weights().tolist(),
        strict=True,
    )
    for name, norm, largest in found:
        assert norm == pytest.approx(float(gradient_of(name, named[name]).norm())), name
        assert largest == float(named[name].detach().abs().max()), name
    assert optimizers.rates["head.input"] == optimizers.rates["head.output"]
    assert optimizers.rates["trunk.blocks.0.mlp.up.weight"] == ("optimizer.lr_matrix", 0.04)


def test_a_rank_trains_a_copy_of_what_it_trains_alone() -> None:
    trunk = dataclasses.replace(TRUNK, layers=1, mlp_hidden=2048)  # two matrices, two ranks
    trained = []
    for rank in range(3):
        head = UntiedHead(SHAPE, UntiedConfig(untie_at=0.5))
        model = LanguageModel(Trunk(trunk), head)
        optimizers = Optimizers(model, OptimizerConfig(), ranks=Ranks(rank=rank, size=3))
        for parameter in optimizers.adam.parameters.values():
            parameter.grad = torch.ones_like(parameter)
        optimizers.adam.step(1.0)
        optimizers.adopt({f"head.{new}": f"head.{old}" for new, old in head.untie().items()})
        trained.append({"head.input", "head.output"} & optimizers.adam.parameters.keys())
    assert trained == [set(), set(), {"head.input", "head.output"}]


def test_a_trunk_of_one_layer_has_no_skips_and_trains() -> None:
    trunk = Trunk(dataclasses.replace(TRUNK, layers=1))
    assert trunk.skips.numel() == 0
    one_step(LanguageModel(trunk, TiedHead(SHAPE, TiedConfig())))


# --- the same through the training loop, which must stop


def masked_without(*pairs: bytes) -> Head:
    """A tied head with a mask that forbids these pairs of bytes."""
    may = np.ones((257, 257), dtype=bool)
    for before, after in pairs:
        may[before, after] = False
    packed: Any = np.packbits(may, axis=1)
    shape = dataclasses.replace(SHAPE, successors=lambda: packed)
    return head_config({"name": "tied", "add": {"canonical-mask": {}}}).build(shape)


def test_the_first_pair_that_a_mask_forbids_is_found() -> None:
    text = torch.tensor([list(b"a small document"), list(b"of small letters")])
    for pair in (b"oc", b"le", b"a ", b"rs"):
        head = masked_without(pair, b"rs")  # the last
        assert guards.forbidden_pair(head, text[:, :-1], text[:, 1:]) == (*pair,)
    assert guards.forbidden_pair(masked_without(b"xy"), text[:, :-1], text[:, 1:]) is None
    for head in (TiedHead(SHAPE, TiedConfig()), head_config(BIASED).build(SHAPE)):
        assert guards.forbidden_pair(head, text[:, :-1], text[:, 1:]) is None


def test_a_forbidden_pair_is_named_whichever_part_of_the_batch_has_it() -> None:
    guards.check_pairs([None, None], BYTES, 3)
    with pytest.raises(TrainingError, match=r"at step 3: .* token 98 \(b'b'\) follows token 97 "):
        guards.check_pairs([None, (97, 98)], BYTES, 3)


BIASED: dict[str, Any] = {"name": "tied", "add": {"bigram-logits": {"rank": 2}}}
BYTES = build_tokenizer("byte", [], None)
RATES = {
    "trunk.a": ("optimizer.lr_vector", 0.04),
    "head.b": ("optimizer.lr_tied", 0.05),
    "trunk.c": ("optimizer.lr_matrix", 0.01),
    "trunk.d": ("optimizer.lr_matrix", 0.01),
}
HALVED = {
    "trunk.a": "--set optimizer.lr_vector=0.02",
    "head.b": "--set optimizer.lr_tied=0.025",
    "trunk.c": "--set optimizer.lr_matrix=0.005",
    "all": "--set optimizer.lr_matrix=0.005 --set optimizer.lr_tied=0.025 "
    "--set optimizer.lr_vector=0.02",
}


@pytest.mark.parametrize(
    ("largest", "found", "blamed"),
    [
        ([99.0, 2.0, 1.0, 0.5], "the largest weight is 99, in trunk.a; ", "all"),
        ([101.0, 2.0, 1.0, 0.5], "the largest weight is 101, in trunk.a; ", "trunk.a"),
        ([1.0, 2.0, 1e20, 0.5], "the largest weight is 1e+20, in trunk.c; ", "trunk.c"),
        ([9.0, 1.0, math.nan, math.inf], "not all numbers are finite of trunk.c, ", "trunk.c"),
    ],
)
def test_a_loss_that_is_not_finite_is_blamed_on_a_tensor_and_its_rate(
    largest: list[float], found: str, blamed: str
) -> None:
    named = dict(zip(RATES, largest, strict=True))
    message = str(guards.loss_error(math.nan, 7, 5, named, RATES))
    assert message.startswith(f"the loss is nan at step 7; {found}")
    assert "the checkpoint of step 5 is sound" in message
    assert message.endswith(f"e.g. {HALVED[blamed]}")


@pytest.mark.parametrize("blamed", [name for name in RATES if name in HALVED])
def test_what_is_advised_is_half_the_rate_that_trains_the_tensor(blamed: str) -> None:
    norms = dict.fromkeys(RATES, 100.0)
    guards.check_gradients(norms, 7, 100, 0, RATES)
    norms[blamed] = 1e9
    with pytest.raises(TrainingError, match="above max_gradient 100 for") as raised:
        guards.check_gradients(norms, 7, 100, 0, RATES)
    assert str(raised.value).endswith(
        f"there is no checkpoint yet. Start again in another -o with "
        f"lower learning rates, e.g. {HALVED[blamed]}"
    )
    tensors = {f"{at}{name}": torch.ones(2) for name in RATES for at in ("model.", "live.")}
    tensors[f"adam.exp_avg.{blamed}"] = torch.tensor([1.0, math.inf])
    with pytest.raises(TrainingError, match="after step 7 not all numbers") as raised:
        guards.check_finite(tensors, 7, 3, RATES)
    assert str(raised.value).endswith(f"e.g. {HALVED[blamed]}")


def test_three_names_are_listed_and_the_others_counted() -> None:
    assert guards.listed(["a", "b", "c"]) == "a, b, c"
    assert guards.listed([*"abcde"]) == "a, b, c and 2 more"


def test_a_rate_far_too_high_is_not_advised_by_half() -> None:
    advice = guards.way_on(0, {"trunk.a": ("optimizer.lr_vector", 1e20)}, ["trunk.a"])
    assert advice.endswith("e.g. --set optimizer.lr_vector=0.04")


@pytest.mark.parametrize("declared", [2.0, 7.0])
def test_the_first_loss_may_be_two_percent_above_and_ten_below(declared: float) -> None:
    for sound in (0.901, 1.0, 1.019):
        guards.check_first_loss(sound * declared, declared, 0.0, 0.0)
    for odd in (0.899, 1.021, math.nan):
        with pytest.raises(TrainingError, match="its initialisation is not what it says"):
            guards.check_first_loss(odd * declared, declared, 0.0, 0.0)


@given(st.floats(0, 12), st.floats(0, 1), st.floats(0, 1), st.integers(2, 5000))
def test_what_a_table_of_both_ends_may_differ_by_is_of_the_score_it_gives_itself(
    most: float, part: float, repeats: float, vocab: int
) -> None:
    scores = torch.zeros(vocab, dtype=torch.float64)
    scores[0] = part * most
    nats = -torch.log_softmax(scores, 0)
    differs = float(repeats * nats[0] + (1 - repeats) * nats[1]) - math.log(vocab)
    below, above = guards.first_loss_slack(math.log(vocab), most, repeats)
    assert below - 1e-9 <= differs <= above + 1e-9


def test_that_difference_is_met_at_the_ends_and_where_the_probability_is_right() -> None:
    vocab, score = 64, 8.0
    at_most = math.log((vocab - 1 + math.exp(score)) / vocab)
    assert guards.first_loss_slack(math.log(vocab), score, 0.0) == pytest.approx((0.0, at_most))
    below, above = guards.first_loss_slack(math.log(vocab), score, 1.0)
    assert (below, above) == pytest.approx((at_most - score, 0.0))
    assert guards.first_loss_slack(math.log(vocab), score, 1 / 128)[0] == 0.0  # below a guess
    # Of 64 tokens one has half of the probability, and half of the targets.
    best = 0.5 * math.log(2) + 0.5 * math.log(2 * (vocab - 1)) - math.log(vocab)
    assert guards.first_loss_slack(math.log(vocab), score, 0.5)[0] == pytest.approx(best)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (Forgotten, r"head\.gain is trainable but in no parameter group"),
        (Twice, r"head\.output is in two parameter groups"),
        (Unused, r"head\.gain received no gradient"),
        (Stuck, r"after 4 steps these tensors have not moved: head\.left, head\.right;"),
        (
            lambda: masked_without(b"ma"),
            r"not finite at step 1: in the text token 97 \(b'a'\) follows token 109 \(b'm'\), "
            "which canonical-mask forbids",
        ),
        (Loud, r"the first loss is \d+\.\d+ nats, the head declares 5\.549"),
    ],
)
def test_training_a_broken_head_stops_and_says_what_is_wrong(
    head: Callable[[], Head], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> LanguageModel:
        return model_of(head())

    monkeypatch.setattr(session, "build_model", broken)
    documents = [Document(str(i), f"document {i} of a small corpus ".encode()) for i in range(20)]
    corpus = Corpus(name="tiny", split=None, source=lambda: iter(documents))
    config = RunConfig(
        trunk=TRUNK, batch_tokens=64, steps=5, warmdown_steps=0, precision="fp32", compile="off"
    )
    with pytest.raises(TrainingError, match=message):
        train(config, BYTES, corpus, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run" / "checkpoints").exists()
