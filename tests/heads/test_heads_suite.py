"""What every head must do, run over all heads, all add-ons, and option sets where they differ.

A new head or add-on is picked up from the registries with its default options: alone, and each
head with every add-on at once. Logits are checked against plain formulas in `REFERENCES` where a
head has one; losses and gradients against a dense softmax in fp64 for every head.
"""

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from heads_support import randomised
from torch import Tensor

from tokgolf.config import TrunkConfig
from tokgolf.errors import ConfigError, TrainingError
from tokgolf.heads import (
    ADDONS,
    HEADS,
    Head,
    HeadConfig,
    HeadShape,
    head_config,
    head_to_dict,
    loss,
)
from tokgolf.heads.base import Role, StoredKind, StructuredHead, allowed, masked
from tokgolf.heads.factorized import FactorizedConfig
from tokgolf.heads.vq import VQConfig
from tokgolf.model import LanguageModel, Trunk
from tokgolf.quantize.rows import QuantConfig, Rounder
from tokgolf.training import guards
from tokgolf.training.guards import (
    FIRST_LOSS_ABOVE,
    check_first_loss,
    initial_loss,
    tied_self_logit,
)

VOCAB, BOS, WIDTH = 64, 7, 64
LETTERS = b"abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLM"  # 40 tokens of one byte, one of them BOS
TOKENS = [bytes([byte]) for byte in LETTERS]
TOKENS[BOS] = b""
TOKENS += [a + b for a, b in itertools.product(TOKENS[:4], TOKENS[1:7])]


def pairs() -> "np.ndarray[tuple[int, int], np.dtype[np.uint8]]":
    """A table of pairs: BOS before and after anything, of the other pairs two in three."""
    may = np.random.default_rng(0).random((VOCAB, VOCAB)) < 2 / 3
    may[BOS] = may[:, BOS] = True
    packed = np.packbits(may, axis=1)
    assert packed.ndim == 2
    return packed


SHAPE = HeadShape(
    vocab_size=VOCAB, d_model=WIDTH, bos_id=BOS, token_bytes=tuple(TOKENS), successors=pairs
)
# Options under which an add-on is small enough for tests.
SMALL: dict[str, dict[str, Any]] = {
    "bigram-hash": {"buckets": 97, "dim": 8},
    "bigram-logits": {"rank": 8},
}
EVERY_ADDON = {name: SMALL.get(name, {}) for name in ADDONS}

CASES: dict[str, dict[str, Any]] = {
    **{name: {"name": name} for name in HEADS},
    **{f"{name} with all": {"name": name, "add": EVERY_ADDON} for name in HEADS},
    **{
        f"tied with {name}": {"name": "tied", "add": {name: SMALL.get(name, {})}} for name in ADDONS
    },
    "tied-input": {"name": "tied", "input_rank": 8},
    "tied until later": {"name": "untied", "untie_at": 0.5},
    "factorized-rank8": {"name": "factorized", "rank": 8},
    "factorized-rank8-own": {"name": "factorized", "rank": 8, "shared": False},
    "factorized-rank64-own": {"name": "factorized", "rank": 64, "shared": False},
    "vq-frequency": {"name": "vq", "codes": 20, "tail_codes": 8},
    "vq-random": {"name": "vq", "codes": 20, "assignment": "random", "seed": 3},
    "vq-all-codes": {"name": "vq", "codes": 64},
    "vq-frequency-residual": {"name": "vq", "codes": 16, "residual_rank": 8},
    "vq-random-residual": {"name": "vq", "assignment": "random", "residual_rank": 8},
    "bigram-hash-wide": {"name": "tied", "add": {"bigram-hash": {"buckets": 64, "dim": 96}}},
    "bigram-hash-signs": {
        "name": "tied", "add": {"bigram-hash": {"buckets": 31, "dim": 8, "signs": True}},
    },
    "bigram-logits-exact": {"name": "tied", "add": {"bigram-logits": {"exact": True}}},
}  # fmt: skip

Weights = dict[str, Tensor]

every_case = pytest.mark.parametrize("case", CASES)
cap_on_and_off = pytest.mark.parametrize("softcap", [30.0, 0.0])


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def config_of(case: str, softcap: float = 30.0) -> HeadConfig:
    return head_config({**CASES[case], "softcap": softcap})


def counts() -> Tensor:
    return torch.randint(1, 10_000, (VOCAB,))


def built(case: str, softcap: float = 30.0) -> Head:
    return config_of(case, softcap).build(SHAPE, counts())


def random_batch(n: int, head: Head | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """tokens, the token before each, and the one after, each (n,); only pairs that `head` allows"""
    tokens, prev, targets = torch.randint(0, VOCAB, (3, n))
    if head is not None and "canonical-mask" in head.addons:
        may = allowed(torch.from_numpy(pairs()), tokens, VOCAB)
        targets = torch.where(may.gather(1, targets[:, None])[:, 0], targets, BOS)
    return tokens, prev, targets


def head_loss(head: Head, tokens: Tensor, prev: Tensor, targets: Tensor) -> Tensor:
    """The head's two ends with nothing but a norm between them."""
    hidden = F.rms_norm(head.embed(tokens[None], prev[None])[0], (WIDTH,))
    return head.loss(hidden, targets, tokens) / len(targets)


def steps(head: Head, optimizer: torch.optim.Optimizer, count: int) -> None:
    for _ in range(count):
        nats = head_loss(head, *random_batch(256, head))
        optimizer.zero_grad()
        nats.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def trained(head: Head) -> Head:
    steps(head, torch.optim.Adam(head.parameters(), lr=0.05), 20)
    return head


def rounded(head: Head) -> Head:
    """The head after its stored tensors went through the quantizer, as in an artifact."""
    randomised(head)
    rounder = Rounder(small_model(head), QuantConfig(method="nearest"))
    for name in rounder.stored:
        rounder.restore(name, rounder.quantize(name, 0.2 * rounder.spread(name)))
    return head


def small_model(head: Head, length: int = 64) -> LanguageModel:
    config = TrunkConfig(
        layers=1, d_model=WIDTH, heads=2, kv_heads=1, mlp_hidden=128, sequence_length=length
    )
    return LanguageModel(Trunk(config), head)


# The references: loops over tokens, and one formula per head.

Logits = Callable[[HeadConfig, Weights, Tensor], Tensor]  # config, weights, hidden (n, d)


def vq_logits(config: HeadConfig, w: Weights, hidden: Tensor) -> Tensor:
    assert isinstance(config, VQConfig)
    columns = []
    for token in range(VOCAB):
        z = hidden @ w["codebook"][int(w["codes"][token])]
        if config.residual_rank:
            z = z + (hidden @ w["residual_b"].T) @ w["residual_a"][token] + w["token_bias"][token]
        columns.append(z)
    return torch.stack(columns, dim=1)


def factorized_logits(config: HeadConfig, w: Weights, hidden: Tensor) -> Tensor:
    assert isinstance(config, FactorizedConfig)
    projection = w["input"] if config.shared else w["output"]
    return hidden @ (w["table"] @ projection).T


REFERENCES: dict[str, Logits] = {
    "tied": lambda _, w, h: h @ w["table"].T,
    "untied": lambda _, w, h: h @ w.get("output", w["input"]).T,
    "factorized": factorized_logits,
    "vq": vq_logits,
}


def weights_of(head: Head) -> Weights:
    return {**dict(head.named_parameters()), **dict(head.named_buffers())}


def reference_logits(config: HeadConfig, w: Weights, hidden: Tensor, prev: Tensor) -> Tensor:
    z = REFERENCES[config.name](config, w, hidden)
    add = {name: f"addons.{name}." for name in config.add}
    if "unigram-bias" in add:
        z = z + w[add["unigram-bias"] + "values"]
    if "bigram-logits" in add:
        place = add["bigram-logits"]
        if config.add["bigram-logits"].get("exact"):
            rows = w[place + "table"]
        else:
            rows = w[place + "previous"] @ w[place + "next"].T
        z = z + torch.stack([rows[int(token)] for token in prev])
    if config.softcap:
        z = config.softcap * torch.tanh(z / config.softcap)
    if "canonical-mask" in add:
        may = torch.from_numpy(np.unpackbits(pairs(), axis=1)).bool()
        z = torch.where(may[prev], z, -math.inf)
    return z


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case]["name"] in REFERENCES])
@cap_on_and_off
def test_logits_are_the_formula_s(case: str, softcap: float) -> None:
    config = config_of(case, softcap)
    head = randomised(config.build(SHAPE, counts()).double())
    hidden = torch.randn(20, WIDTH, dtype=torch.float64)
    _, prev, _ = random_batch(20)
    expected = reference_logits(config, weights_of(head), hidden, prev)
    torch.testing.assert_close(head.logits(hidden, prev), expected, rtol=1e-10, atol=1e-10)


# Normalisation and the loss.


@every_case
@cap_on_and_off
@pytest.mark.parametrize("make", [randomised, trained, rounded])
def test_probabilities_sum_to_one(case: str, softcap: float, make: Callable[[Head], Head]) -> None:
    head = make(built(case, softcap))
    hidden = torch.cat([torch.randn(50, WIDTH), 20 * torch.randn(10, WIDTH)])
    _, prev, _ = random_batch(60)
    for states in (hidden, hidden.bfloat16()):
        log_probs = head.log_probs(states, prev)
        assert log_probs.dtype == torch.float32
        assert log_probs.shape == (60, VOCAB)
        assert log_probs.exp().std(dim=1).min() > 1e-6  # not the trivial, uniform distribution
        total = log_probs.double().exp().sum(dim=1)
        assert (total - 1).abs().max() < 1e-6
    if isinstance(head, StructuredHead):  # whose own must sum to one before it is made to
        own = copy.deepcopy(head).double().own_log_probs(hidden.double(), prev)
        assert (own.exp().sum(dim=1) - 1).abs().max() < 1e-12


@every_case
@cap_on_and_off
def test_nll_is_minus_log_probs_for_all_targets(case: str, softcap: float) -> None:
    head = randomised(built(case, softcap))
    n = 12
    hidden, (_, prev, _) = torch.randn(n, WIDTH), random_batch(n)
    log_probs = head.log_probs(hidden, prev)
    every = torch.arange(VOCAB).repeat(n)
    nll = head.nll(hidden.repeat_interleave(VOCAB, 0), every, prev.repeat_interleave(VOCAB, 0))
    torch.testing.assert_close(nll.view(n, VOCAB), -log_probs, rtol=1e-5, atol=1e-5)


@every_case
def test_what_the_mask_forbids_has_probability_zero_and_nothing_else(case: str) -> None:
    head = randomised(built(case))
    hidden, (_, prev, _) = torch.randn(20, WIDTH), random_batch(20)
    impossible = head.log_probs(hidden, prev) == -math.inf
    may = allowed(torch.from_numpy(pairs()), prev, VOCAB)
    assert torch.equal(impossible, ~may if "canonical-mask" in head.addons else may & False)


@every_case
def test_nll_of_a_row_does_not_depend_on_other_targets_or_their_order(case: str) -> None:
    head = randomised(built(case))
    hidden, (prev, _, targets) = torch.randn(40, WIDTH), random_batch(40, head)
    nll = head.nll(hidden, targets, prev)
    others = torch.cat([targets[:1], torch.full((39,), BOS)])
    changed = head.nll(hidden, others, prev)
    assert torch.equal(changed[0], nll[0])
    assert (changed[1:] != nll[1:]).any()
    order = torch.randperm(40)
    permuted = head.nll(hidden[order], targets[order], prev[order])
    torch.testing.assert_close(permuted, nll[order], rtol=1e-6, atol=1e-6)


@every_case
@cap_on_and_off
@pytest.mark.parametrize("chunk", [1 << 20, 7 * VOCAB])
def test_loss_and_its_gradients_agree_with_a_dense_softmax(
    case: str, softcap: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loss.CHUNK, "cpu", chunk)  # one chunk, and 7 with a shorter last one
    head = randomised(built(case, softcap).double())
    hidden = torch.randn(47, WIDTH, dtype=torch.float64, requires_grad=True)
    prev, _, targets = random_batch(47, head)
    assert loss.positions_of_chunk("cpu", 47, VOCAB, loss.CHUNK) == (47 if chunk > 1 << 12 else 7)

    def dense() -> Tensor:
        z = head.logits(hidden, prev)
        p = (z - z.max(dim=1, keepdim=True).values).exp()
        picked = torch.stack([p[row, int(target)] for row, target in enumerate(targets)])
        return -(picked / p.sum(dim=1)).log()

    parameters = dict(head.named_parameters())
    inputs = [hidden, *parameters.values()]
    losses = [head.loss(hidden, targets, prev), dense().sum()]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=1e-12)
    # A factor other than 1 would show a gradient that was scaled in the wrong place, or not at all.
    got, expected = (
        torch.autograd.grad(0.37 * nats, inputs, materialize_grads=True) for nats in losses
    )
    assert sum(bool(gradient.any()) for gradient in expected) >= 2
    for name, a, b in zip(["hidden", *parameters], got, expected, strict=True):
        worst = float((a - b).abs().max())
        assert worst <= 1e-9 * max(float(b.abs().max()), 1e-3), f"{name}: off by {worst}"


@every_case
def test_loss_in_bf16_is_the_sum_of_nll_and_has_its_gradient_s_direction(case: str) -> None:
    head = randomised(built(case))
    hidden, (prev, _, targets) = torch.randn(200, WIDTH), random_batch(200, head)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = head.loss(hidden, targets, prev)
    wide = head.nll(hidden, targets, prev).sum()
    assert narrow.dtype == torch.float32
    assert float(narrow.detach()) == pytest.approx(float(wide.detach()), rel=0.01)
    for name, parameter in head.named_parameters():
        a, b = (
            torch.autograd.grad(nats, parameter, retain_graph=True, allow_unused=True)[0]
            for nats in (narrow, wide)
        )
        assert (a is None) == (b is None), name
        if a is not None and b is not None and b.any():
            assert F.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.99, name


def test_a_compiled_loss_is_the_eager_one() -> None:
    head = randomised(built("tied with all"))
    prev, _, targets = random_batch(100, head)
    hidden = torch.randn(100, WIDTH, requires_grad=True)
    compiled = torch.compile(head.loss, backend="aot_eager", fullgraph=True)
    got, expected = (
        (nats.detach(), *torch.autograd.grad(nats, [hidden, *head.parameters()], allow_unused=True))
        for nats in (compiled(hidden, targets, prev), head.loss(hidden, targets, prev))
    )
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@every_case
def test_scores_are_the_same_inside_autocast(case: str) -> None:
    head = randomised(built(case))
    hidden, (_, prev, _) = torch.randn(10, WIDTH), random_batch(10)
    expected = head.log_probs(hidden, prev)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (hidden @ hidden.T).dtype == torch.bfloat16  # it would have mattered
        assert torch.equal(head.log_probs(hidden, prev), expected)


@pytest.mark.parametrize("vocab", [1, 7, 8, 9, 64, 257])
def test_packed_rows_unpack_to_what_was_packed(vocab: int) -> None:
    may = torch.rand(vocab, vocab) < 0.5
    packed = torch.from_numpy(np.packbits(may.numpy(), axis=1))
    rows = torch.randint(0, vocab, (31,))
    assert torch.equal(allowed(packed, rows, vocab), may[rows])
    z = torch.randn(31, vocab)
    assert torch.equal(masked(z, packed, rows), z.masked_fill(~may[rows], -math.inf))


# Causality, and what stands before.


@every_case
def test_the_future_changes_nothing(case: str) -> None:
    head = randomised(built(case))
    model = randomised_model(head)
    tokens = torch.randint(0, VOCAB, (1, 20))
    before = model.log_probs(tokens)
    for place in (1, 7, 19):
        changed = tokens.clone()
        changed[0, place] = (changed[0, place] + 1) % VOCAB
        after = model.log_probs(changed)
        assert torch.equal(after[:, :place], before[:, :place])
        assert not torch.equal(after[:, place], before[:, place])


def randomised_model(head: Head) -> LanguageModel:
    model = small_model(head)
    randomised(model.trunk)
    return model


@every_case
def test_prev_is_the_token_that_was_read_last(case: str) -> None:
    model = randomised_model(randomised(built(case)))
    tokens = torch.randint(0, VOCAB, (2, 9))
    hidden = model.hidden(tokens)
    expected = torch.stack(
        [
            model.head.log_probs(hidden[row, place][None], tokens[row, place][None])[0]
            for row, place in itertools.product(range(2), range(9))
        ]
    )
    torch.testing.assert_close(model.log_probs(tokens).flatten(0, 1), expected)


@pytest.mark.parametrize("case", ["tied with bigram-logits", "tied with canonical-mask"])
def test_shifting_prev_by_one_fails(case: str) -> None:
    head = randomised(built(case))
    hidden, prev = torch.randn(9, WIDTH), torch.randperm(VOCAB)[:9]
    assert not torch.equal(head.log_probs(hidden, prev.roll(1)), head.log_probs(hidden, prev))


@every_case
def test_the_vector_of_bos_ignores_the_document_before(case: str) -> None:
    head = randomised(built(case))
    bos = torch.full((1, VOCAB), BOS)
    vectors = head.embed(bos, torch.arange(VOCAB)[None])[0]
    assert torch.equal(vectors, vectors[:1].expand_as(vectors))


@every_case
def test_every_token_has_a_vector_of_its_own_wherever_it_stands(case: str) -> None:
    head = randomised(built(case))
    tokens, prev, _ = random_batch(60)
    batch = head.embed(tokens.view(4, 15), prev.view(4, 15))
    assert batch.shape == (4, 15, WIDTH)
    each = zip(tokens.view(-1, 1, 1), prev.view(-1, 1, 1), strict=True)
    one_by_one = torch.cat([head.embed(*pair)[0] for pair in each])
    torch.testing.assert_close(batch.flatten(0, 1), one_by_one)
    rows = head.embed(torch.arange(VOCAB)[None], torch.full((1, VOCAB), BOS))[0]
    assert len({tuple(row) for row in rows.tolist()}) == VOCAB


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
def test_what_is_not_stored_does_not_depend_on_the_training_text(case: str) -> None:
    first, second = (
        config_of(case).build(SHAPE, torch.arange(VOCAB) * factor % 71) for factor in (3, 5)
    )
    unstored = [
        {name: b for name, b in head.named_buffers() if name not in head.state_dict()}
        for head in (first, second)
    ]
    assert unstored[0].keys() == unstored[1].keys()
    assert all(torch.equal(buffer, unstored[1][name]) for name, buffer in unstored[0].items())


@every_case
def test_num_params_is_known_before_building(case: str) -> None:
    for shape in (SHAPE, dataclasses.replace(SHAPE, d_model=66)):
        config = config_of(case)
        assert config.num_params(shape) == sum(p.numel() for p in config.build(shape).parameters())
        assert config.flops(shape) > 0


# Learning.


@every_case
def test_the_first_loss_is_the_initial_loss(case: str) -> None:
    head = built(case)
    tokens, prev, targets = random_batch(2048, head)
    found = head_loss(head, tokens, prev, targets).item()
    initial = initial_loss(head, targets, tokens)
    assert found == pytest.approx(initial, rel=0.02)
    if not {"unigram-bias", "canonical-mask"} & {*head.addons}:
        assert initial == pytest.approx(math.log(VOCAB), rel=1e-5)


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
    separates = {"unigram-bias", "bigram-logits", "canonical-mask"} & {*config.add}
    if not isinstance(config, VQConfig) or config.residual_rank or separates:
        return 0.0
    codes = weights_of(head)["codes"].tolist()
    return sum(math.log(codes.count(code)) for code in codes) / len(codes)


@every_case
def test_a_small_model_overfits_64_tokens_down_to_the_floor(case: str) -> None:
    config = config_of(case)
    head = config.build(SHAPE, counts())
    model = small_model(head)
    tokens = torch.randperm(VOCAB)[None]  # every token once, each before one other
    targets = tokens.roll(-1, 1)
    if "canonical-mask" in head.addons:  # a chain that the table of pairs allows
        may = allowed(torch.from_numpy(pairs()), tokens[0], VOCAB)
        targets = torch.where(may.gather(1, targets[0][:, None])[:, 0], targets, BOS)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(100):
        nats = model.loss(tokens, targets) / VOCAB
        optimizer.zero_grad()
        nats.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    final, floor = model.nll(tokens, targets).mean().item(), floor_of(config, head)
    assert floor - 1e-4 < final < floor + 0.1


def test_only_published_vq_heads_have_a_floor() -> None:
    floors = {case: floor_of(config_of(case), built(case)) for case in CASES}
    assert {case for case, floor in floors.items() if floor > 0} == {
        "vq", "vq-frequency", "vq-random",
    }  # fmt: skip
    # 12 tokens have a code of their own, 52 share 8: four codes have 7 tokens, four have 6.
    expected = (28 * math.log(7) + 24 * math.log(6)) / 64
    assert floors["vq-frequency"] == pytest.approx(expected)
    # 64 tokens over 20 codes: four have 4 tokens, sixteen have 3.
    assert floors["vq-random"] == pytest.approx((16 * math.log(4) + 48 * math.log(3)) / 64)


def test_a_head_that_starts_wrongly_does_not_declare_itself_right() -> None:
    head = built("untied")
    tokens, _, targets = random_batch(50)
    head.softcap = 0.0
    with torch.no_grad():
        head.get_parameter("output").normal_()
    assert initial_loss(head, targets, tokens) == math.log(VOCAB)


@pytest.mark.parametrize("logits", [1, 3 * VOCAB, guards.INITIAL_LOGITS])
@pytest.mark.parametrize("known", ["unigram-bias", "canonical-mask", "all"])
def test_the_initial_loss_knows_of_bias_and_mask(
    known: str, logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guards, "INITIAL_LOGITS", logits)
    head = config_of(f"tied with {known}").build(SHAPE, torch.arange(1, VOCAB + 1))
    tokens, _, targets = random_batch(50, head)
    z = torch.zeros(50, VOCAB)
    if known != "canonical-mask":
        z = z + head.get_parameter("addons.unigram-bias.values").detach()
    if known != "unigram-bias":
        may = allowed(torch.from_numpy(pairs()), tokens, VOCAB)
        z = z.masked_fill(~may, -math.inf)
    expected = F.cross_entropy(z, targets)
    assert expected.isfinite() and abs(float(expected) - math.log(VOCAB)) > 0.01
    assert initial_loss(head, targets, tokens) == pytest.approx(float(expected), rel=1e-6)


# Config and state.


@every_case
def test_a_config_survives_the_way_through_a_dict(case: str) -> None:
    for softcap in (30.0, 0.0, 12.5):
        config = config_of(case, softcap)
        values = head_to_dict(config)
        assert values["name"] == CASES[case]["name"]
        assert values["softcap"] == softcap
        given = {key: value for key, value in CASES[case].items() if key != "add"}
        assert {key: values[key] for key in given} == given
        assert values.get("add", {}).keys() == CASES[case].get("add", {}).keys()
        assert head_config(values) == config


def test_an_addon_s_options_are_written_in_full() -> None:
    config = head_config({"name": "tied", "add": {"bigram-hash": {}, "bigram-logits": {}}})
    assert head_to_dict(config)["add"] == {
        "bigram-hash": {"dim": 32, "signs": False},  # buckets: the tokenizer's, or 4096
        "bigram-logits": {"rank": 32, "exact": False},
    }


@pytest.mark.parametrize("name", HEADS)
def test_an_unknown_head_or_option_names_the_nearest(name: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean '{name}'"):
        head_config({"name": name + "x"})
    for field in dataclasses.fields(head_config({"name": name})):
        with pytest.raises(ConfigError, match=f"did you mean '{field.name}'"):
            head_config({"name": name, field.name + "q": 1})


@pytest.mark.parametrize("name", ADDONS)
def test_an_unknown_addon_or_option_of_one_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"no add-on '{name}x'; did you mean '{name}'"):
        head_config({"name": "tied", "add": {name + "x": {}}})
    with pytest.raises(ConfigError, match=f"head.add.{name}: unknown key 'qq'"):
        head_config({"name": "tied", "add": {name: {"qq": 1}}})
    with pytest.raises(ConfigError, match=f"head.add.{name} is 3; give its options as a table"):
        head_config({"name": "tied", "add": {name: 3}})
    with pytest.raises(ConfigError, match=f"is an add-on: write --head tied --add {name}"):
        head_config({"name": name})


@pytest.mark.parametrize("values", [{}, {"name": None}, {"name": 3}, {"name": "zzzzzz"}])
def test_a_head_without_a_known_name_lists_the_known_ones(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="known: .*tied.*vq|did you mean") as caught:
        head_config(values, "recipe x, [head]")
    assert str(caught.value).startswith("recipe x, [head]: ")


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("softcap", [-1.0, math.nan, math.inf, -math.inf, 1e308])
def test_a_bad_softcap_is_refused_by_every_head(name: str, softcap: float) -> None:
    with pytest.raises(ConfigError, match="softcap"):
        head_config({"name": name, "softcap": softcap})


@pytest.mark.parametrize("name", HEADS)
def test_counts_of_another_vocabulary_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="63 token counts for a vocabulary of 64"):
        head_config({"name": name}).build(SHAPE, torch.ones(63))


@every_case
def test_a_state_dict_gives_the_same_scores_in_a_fresh_module(case: str) -> None:
    head = randomised(built(case))
    fresh = config_of(case).build(SHAPE)  # without counts: stored codes come from the state
    hidden, (tokens, prev, _) = torch.randn(30, WIDTH), random_batch(30)
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


# The start, on text: frequent tokens follow each other, and may have rows in common.

TEXT_VOCAB = 1024
STARTS: dict[str, dict[str, Any]] = {
    **{name: {"name": name} for name in HEADS},
    "factorized-rank8": {"name": "factorized", "rank": 8},
    "product-id": {"name": "product", "assignment": "id"},
    "product-random": {"name": "product", "assignment": "random"},
    "product-binary": {"name": "product", "codebooks": 10, "codes": 2},
    "hashed-few": {"name": "hashed", "hashes": 10, "buckets": 1},
    "composed-few": {"name": "composed", "features": 32},
}


def start_on_text(case: str, width: int, repeats: float = 0.0) -> tuple[Head, Tensor]:
    """A head and text of independent tokens, but for a part that repeats the one before."""
    two = [bytes(pair) for pair in itertools.product(LETTERS[:32], repeat=2)]
    shape = HeadShape(
        vocab_size=TEXT_VOCAB,
        d_model=width,
        bos_id=BOS,
        token_bytes=(*TOKENS[:40], *two)[:TEXT_VOCAB],
    )
    zipf = 1 / (torch.arange(TEXT_VOCAB) + 3.0)
    text = torch.multinomial(zipf, 4097, replacement=True)
    again = torch.rand(4096) < repeats
    for place in again.nonzero().flatten().tolist():
        text[place + 1] = text[place]
    return head_config(STARTS[case]).build(shape, text.bincount(minlength=TEXT_VOCAB)), text


def first_loss(head: Head, text: Tensor) -> tuple[float, float]:
    """What an untrained trunk, which gives back its normalised input, makes of it; as declared."""
    tokens, targets = text[:-1], text[1:]
    with torch.no_grad():
        hidden = F.rms_norm(head.embed(tokens[None], tokens[None])[0], (head.shape.d_model,))
        nats = float(head.loss(hidden, targets, tokens)) / len(targets)
    return nats, initial_loss(head, targets, tokens)


@pytest.mark.parametrize("case", STARTS)
@pytest.mark.parametrize("width", [112, 256, 512])
def test_the_first_loss_on_text_is_what_the_head_declares_at_every_width(
    case: str, width: int
) -> None:
    nats, declared = first_loss(*start_on_text(case, width))
    assert nats == pytest.approx(declared, rel=FIRST_LOSS_ABOVE / 3)


@pytest.mark.parametrize("case", STARTS)
@pytest.mark.parametrize(("width", "repeats"), [(512, 0.8), (1024, 0.3), (2048, 0.0)])
def test_a_wide_table_of_both_ends_may_start(case: str, width: int, repeats: float) -> None:
    head, text = start_on_text(case, width, repeats)
    repeated = float((text[1:] == text[:-1]).double().mean())
    check_first_loss(*first_loss(head, text), tied_self_logit(head), repeated)


@pytest.mark.parametrize("softcap", [0.0, 5.0, 30.0])
def test_a_wide_table_of_both_ends_scores_the_token_before_as_is_said(softcap: float) -> None:
    shape = dataclasses.replace(SHAPE, d_model=2048)
    head = head_config({"name": "tied", "softcap": softcap}).build(shape)
    tokens = torch.arange(VOCAB)
    hidden = F.rms_norm(head.embed(tokens[None], tokens[None])[0], (2048,))
    nats = -head.log_probs(hidden, tokens).detach()
    own, others = nats.diagonal().mean(), (nats.sum() - nats.trace()) / VOCAB / (VOCAB - 1)
    assert float(others - own) == pytest.approx(tied_self_logit(head), rel=0.02)


@pytest.mark.parametrize("width", [1024, 2048])
def test_a_table_twice_as_loud_as_it_says_may_not_start(width: int) -> None:
    head, text = start_on_text("tied", width)
    with torch.no_grad():
        head.get_parameter("table").mul_(2)
    repeated = float((text[1:] == text[:-1]).double().mean())
    with pytest.raises(TrainingError, match="the head declares"):
        check_first_loss(*first_loss(head, text), tied_self_logit(head), repeated)
