"""What `product`, `hashed` and `composed` share, against obvious loops in fp64."""

import math
from typing import Any

import pytest
import torch
from heads_support import randomised
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokgolf.config import TrunkConfig
from tokgolf.errors import ConfigError
from tokgolf.heads import HeadShape, head_config, head_to_dict
from tokgolf.heads.sparse import SparseHead, distinct_draws
from tokgolf.model import LanguageModel, Trunk

WORDS = [b"th", b"he", b"the", b" the", b" The", b"then", b"in", b"ing", b"thing", b"\xff\xfe"]
BYTES = (*(bytes([i]) for i in range(30)), b"", *WORDS)
SHAPE = HeadShape(vocab_size=len(BYTES), d_model=12, bos_id=30, token_bytes=BYTES)
VOCAB = SHAPE.vocab_size
COUNTS = torch.arange(VOCAB) * 7 % 17

CASES: dict[str, dict[str, Any]] = {
    "product": {"name": "product", "residual_rank": 4},
    "product-id": {"name": "product", "assignment": "id", "codebooks": 3, "residual_rank": 0},
    "product-random": {"name": "product", "assignment": "random", "codes": 8, "residual_rank": 2},
    "hashed": {"name": "hashed", "residual_rank": 0, "hashes": 4},
    "hashed-weights": {"name": "hashed", "weights": True, "hashes": 2, "residual_rank": 3},
    "composed": {"name": "composed", "delta_rank": 4},
    "composed-plain": {"name": "composed", "delta_rank": 0, "ngrams": 0, "features": 7},
}
every_case = pytest.mark.parametrize("case", CASES)


def built(case: str, counts: Tensor | None = COUNTS) -> SparseHead:
    head = head_config(CASES[case]).build(SHAPE, counts)
    assert isinstance(head, SparseHead)
    return head


def dense(head: SparseHead) -> Tensor:
    """W entry by entry: S is filled in one number at a time, then two products."""
    columns, values = head.entries()
    s = torch.zeros(VOCAB, len(head.codebook), dtype=head.codebook.dtype)
    for token in range(VOCAB):
        for entry in range(columns.size(1)):
            spot = torch.zeros_like(s)
            spot[token, columns[token, entry]] = 1.0
            s = s + spot * values[token, entry]
    w = s @ head.codebook
    if head.residual_a is not None and head.residual_b is not None:
        w = w + head.residual_a @ head.residual_b
    return w


def batch(n: int = 25) -> tuple[Tensor, Tensor, Tensor]:
    tokens, prev = torch.randint(0, VOCAB, (2, 1, n))
    return torch.randn(n, SHAPE.d_model, dtype=torch.float64), tokens, prev


@every_case
def test_both_ends_use_the_rows_of_an_obvious_dense_product(case: str) -> None:
    head = randomised(built(case).double())
    hidden, tokens, prev = batch()
    w = dense(head)
    torch.testing.assert_close(head.matrix(), w)
    torch.testing.assert_close(head.embed(tokens, prev)[0], w[tokens[0]])
    z = 30 * torch.tanh(hidden @ w.T / 30)
    torch.testing.assert_close(head.logits(hidden, prev[0]), z)
    sums = head.log_probs(hidden, prev[0]).double().exp().sum(1)
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-6)


@every_case
def test_gradients_are_those_of_the_dense_product(case: str) -> None:
    head = randomised(built(case).double())
    hidden, tokens, prev = batch()
    parameters = list(head.parameters())
    fast = head.loss(hidden, tokens[0], prev[0]) + head.embed(prev, tokens).square().sum()
    w = dense(head)
    z = 30 * torch.tanh(hidden @ w.T / 30)
    nats = torch.logsumexp(z, 1) - z.gather(1, tokens.T)[:, 0]
    slow = nats.sum() + w[prev[0]].square().sum()
    torch.testing.assert_close(fast, slow)
    got, expected = (torch.autograd.grad(loss, parameters) for loss in (fast, slow))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)
        assert b.any()


@every_case
def test_rows_of_s_have_length_one_and_are_all_different(case: str) -> None:
    head = built(case)
    with torch.no_grad():
        eye = torch.eye(len(head.codebook))
        columns, values = head.entries()
        s = torch.einsum("vef,ve->vf", eye[columns], values)
    torch.testing.assert_close(s.norm(dim=1), torch.ones(VOCAB), rtol=0, atol=1e-5)
    assert torch.pdist(s).min() > 1e-4


@every_case
def test_the_first_loss_is_near_ln_v_and_a_residual_starts_at_nothing(case: str) -> None:
    torch.manual_seed(1)
    head = built(case)
    hidden, tokens, prev = batch(500)
    loss = head.loss(hidden.float(), tokens[0], prev[0]).item() / 500
    assert loss == pytest.approx(math.log(VOCAB), rel=0.02)
    if head.residual_a is not None and head.residual_b is not None:
        assert not head.residual_a.any()
        gram = head.residual_b @ head.residual_b.T
        torch.testing.assert_close(gram, torch.eye(len(gram)), rtol=0, atol=1e-5)


@every_case
def test_every_tensor_moves_within_three_steps(case: str) -> None:
    torch.manual_seed(2)
    head = built(case)
    before = {name: p.detach().clone() for name, p in head.named_parameters()}
    groups = [p for _, group in head.param_groups() for p in group.values()]
    assert {id(p) for p in groups} == {id(p) for p in head.parameters()}
    optimizer = torch.optim.Adam(groups, lr=0.01)
    hidden, tokens, prev = batch(200)
    for _ in range(3):
        optimizer.zero_grad()
        features = hidden.float() + head.embed(prev, prev)[0]
        head.loss(features, tokens[0], prev[0]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert all(not torch.equal(p, before[name]) for name, p in head.named_parameters())


@every_case
def test_num_params_and_stored_say_what_is_built(case: str) -> None:
    head = built(case)
    config = head_config(CASES[case])
    assert head_config(head_to_dict(config)) == config
    stored = {name: (tensor, kind) for name, tensor, kind in head.stored()}
    assert set(stored) == set(head.state_dict())
    trained = sum(tensor.numel() for tensor, kind in stored.values() if kind != "codes")
    assert trained == sum(p.numel() for p in head.parameters())
    for vocab in (VOCAB, 60):
        token_bytes = tuple(str(i).encode() for i in range(vocab))
        shape = HeadShape(vocab_size=vocab, d_model=24, bos_id=0, token_bytes=token_bytes)
        again = config.build(shape)
        assert config.num_params(shape) == sum(p.numel() for p in again.parameters())


@every_case
def test_a_state_dict_without_counts_gives_the_same_head(case: str) -> None:
    head, fresh = randomised(built(case)), built(case, counts=None)
    fresh.load_state_dict({name: t.clone() for name, t in head.state_dict().items()})
    hidden, _, prev = batch()
    expected = head.log_probs(hidden, prev[0])
    assert torch.equal(fresh.log_probs(hidden, prev[0]), expected)


@every_case
def test_autocast_and_compile_agree_with_eager_fp32(case: str) -> None:
    head = randomised(built(case))
    hidden, tokens, prev = batch()
    plain = head.loss(hidden.float(), tokens[0], prev[0])
    compiled = torch.compile(head.matrix, backend="eager", fullgraph=True)
    assert torch.equal(compiled(), head.matrix())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head.embed(tokens, prev).dtype == torch.float32
        mixed = head.loss(hidden.float(), tokens[0], prev[0])
    torch.testing.assert_close(mixed, plain, rtol=0.02, atol=0)


@pytest.mark.parametrize("name", ["product", "hashed", "composed"])
def test_bad_options_are_refused_with_both_numbers(name: str) -> None:
    rank = "delta_rank" if name == "composed" else "residual_rank"
    with pytest.raises(ConfigError, match=f"{rank} 13 is greater than d_model 12"):
        head_config({"name": name, rank: 13}).build(SHAPE, COUNTS)
    for field, value in head_to_dict(head_config({"name": name})).items():
        if isinstance(value, int) and not isinstance(value, bool):
            with pytest.raises(ConfigError, match=f"{field} is -1"):
                head_config({"name": name, field: -1})


@given(
    seed=st.integers(0, 2**64 - 1),
    count=st.integers(1, 80),
    length=st.integers(1, 5),
    more=st.integers(0, 30),
)
@settings(max_examples=60, deadline=None)
def test_draws_are_distinct_in_range_and_repeatable(
    seed: int, count: int, length: int, more: int
) -> None:
    below = next(b for b in range(1, count + 1) if b**length >= count) + more
    drawn = distinct_draws(seed, count, length, below)
    assert drawn.shape == (count, length) and drawn.dtype == torch.int64
    assert int(drawn.min()) >= 0 and int(drawn.max()) < below
    assert len({tuple(row) for row in drawn.tolist()}) == count
    assert torch.equal(drawn, distinct_draws(seed, count, length, below))


def test_draws_have_these_values() -> None:
    assert distinct_draws(0, 3, 2, 2).tolist() == [[1, 0], [1, 1], [0, 0]]
    assert distinct_draws(1, 4, 1, 4).tolist() == [[1], [3], [2], [0]]
    assert distinct_draws(2**40, 3, 3, 1000).tolist() == [
        [641, 438, 368],
        [388, 849, 159],
        [412, 756, 256],
    ]


# A pass through a model makes W once, for both ends.


def model_of(case: str) -> LanguageModel:
    torch.manual_seed(3)
    trunk = TrunkConfig(
        layers=2, d_model=12, heads=2, kv_heads=1, mlp_hidden=24, sequence_length=16
    )
    return randomised(LanguageModel(Trunk(trunk), built(case)).double())


def counted(head: SparseHead, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by the size of W whenever it is made."""
    made, entries = [], head.entries

    def counting() -> tuple[Tensor, Tensor]:
        found = entries()
        made.append(len(found[0]))
        return found

    monkeypatch.setattr(head, "entries", counting)
    return made


@every_case
def test_a_loss_makes_the_matrix_once_and_its_gradients_are_those_of_two(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, (tokens, targets) = model_of(case), torch.randint(0, VOCAB, (2, 3, 16))
    assert isinstance(model.head, SparseHead)
    made = counted(model.head, monkeypatch)
    parameters = list(model.parameters())
    once = model.loss(tokens, targets)
    assert made == [VOCAB]
    hidden = model.hidden(tokens).flatten(0, 1)  # made for the input end alone, and again
    twice = model.head.loss(hidden, targets.flatten(), tokens.flatten())
    assert made == 3 * [VOCAB]
    torch.testing.assert_close(once, twice, rtol=1e-13, atol=0)
    for a, b in zip(*(torch.autograd.grad(x, parameters) for x in (once, twice)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@every_case
def test_every_pass_sees_the_weights_as_they_are(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, (tokens, targets) = model_of(case), torch.randint(0, VOCAB, (2, 4, 16))
    assert isinstance(model.head, SparseHead)
    whole = torch.autograd.grad(model.loss(tokens, targets), list(model.parameters()))
    made = counted(model.head, monkeypatch)
    for part in (slice(0, 1), slice(1, 4)):  # gradients of micro-batches add up
        model.loss(tokens[part], targets[part]).backward()  # type: ignore[no-untyped-call]
    assert made == 2 * [VOCAB]
    for parameter, expected in zip(model.parameters(), whole, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-11)
    before = model.loss(tokens, targets).detach()
    with torch.no_grad():
        model.head.codebook.add_(0.1 * torch.randn_like(model.head.codebook))
        after = model.loss(tokens, targets)
        scored = model.log_probs(tokens).double().gather(2, targets[..., None])
    assert (after - before).abs() > 1e-6
    torch.testing.assert_close(-scored.sum(), after, rtol=1e-6, atol=0)


def test_the_whole_loss_compiles_without_a_break() -> None:
    model, (tokens, targets) = model_of("hashed-weights"), torch.randint(0, VOCAB, (2, 3, 16))
    compiled = torch.compile(model.loss, backend="aot_eager", fullgraph=True, dynamic=False)
    parameters = list(model.parameters())
    losses = compiled(tokens, targets), model.loss(tokens, targets)
    torch.testing.assert_close(*losses)
    for a, b in zip(*(torch.autograd.grad(x, parameters) for x in losses), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
