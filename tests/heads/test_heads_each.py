"""What is special about each head: reductions to simpler heads, codes, hashes, bad options."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from heads_support import randomised
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tokgolf.errors import ConfigError
from tokgolf.hashing import BigramBuckets
from tokgolf.heads import Head, HeadShape, head_config
from tokgolf.heads.base import LinearHead
from tokgolf.heads.bigram_hash import BigramHash, sign_vectors
from tokgolf.heads.unigram_bias import log_counts
from tokgolf.heads.untied import UntiedHead
from tokgolf.heads.vq import VQHead, frequency_codes, random_codes

SHAPE = HeadShape(vocab_size=40, d_model=16, bos_id=5)
COUNTS = torch.arange(SHAPE.vocab_size) * 7 % 41


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """A fixed seed, and afterwards the generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def built(values: dict[str, Any], shape: HeadShape = SHAPE) -> Head:
    return head_config(values).build(shape, COUNTS)


def copy_into(module: nn.Module, **values: Tensor) -> None:
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)


def inputs(n: int = 30) -> tuple[Tensor, Tensor, Tensor]:
    """hidden (n, d_model), tokens (1, n), prev (1, n)"""
    tokens, prev = torch.randint(0, SHAPE.vocab_size, (2, 1, n))
    return torch.randn(n, SHAPE.d_model), tokens, prev


def effective(head: Head) -> Tensor:
    """The matrix that hidden states meet, whatever the head projects first.  # (vocab, d_model)"""
    assert isinstance(head, LinearHead)
    width = head.shape.d_model
    features = head.features(torch.eye(width), torch.zeros(width, dtype=torch.int64))
    return (head.matrix() @ features.T).detach().double()


def distinct(rows: Tensor) -> int:
    """How many different rows there are.  # (n, m) -> int"""
    return len({tuple(row) for row in rows.tolist()})


# Tied, untied, factorized.


def test_a_tied_state_dict_holds_the_table_once() -> None:
    state = built({"name": "tied"}).state_dict()
    assert {name: tuple(t.shape) for name, t in state.items()} == {"table": (40, 16)}


def test_an_untied_head_starts_at_exactly_ln_v() -> None:
    hidden, _, prev = inputs()
    log_probs = built({"name": "untied"}).log_probs(hidden, prev[0])
    torch.testing.assert_close(log_probs, torch.full((30, 40), -math.log(40)), rtol=1e-6, atol=0)


def test_an_untied_head_with_equal_tables_is_the_tied_head() -> None:
    tied, untied = randomised(built({"name": "tied"})), built({"name": "untied"})
    table = dict(tied.named_parameters())["table"]
    copy_into(untied, input=table, output=table)
    hidden, tokens, prev = inputs()
    assert torch.equal(untied.embed(tokens, prev), tied.embed(tokens, prev))
    assert torch.equal(untied.log_probs(hidden, prev[0]), tied.log_probs(hidden, prev[0]))


@pytest.mark.parametrize("shared", [True, False])
def test_a_factorized_head_of_full_rank_is_the_tied_head(shared: bool) -> None:
    tied = randomised(built({"name": "tied"}))
    head = built({"name": "factorized", "rank": 16, "shared": shared})
    # Any orthogonal Q does: (E Q^T) Q = E.
    turn = torch.linalg.qr(torch.randn(16, 16)).Q
    table = dict(tied.named_parameters())["table"]
    copy_into(head, table=table @ turn.T, input=turn, **({} if shared else {"output": turn}))
    hidden, tokens, prev = inputs()
    torch.testing.assert_close(head.embed(tokens, prev), tied.embed(tokens, prev))
    torch.testing.assert_close(head.log_probs(hidden, prev[0]), tied.log_probs(hidden, prev[0]))


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_a_factorized_matrix_has_its_rank_and_its_table_a_tied_one_s_size(rank: int) -> None:
    matrix = effective(built({"name": "factorized", "rank": rank}))
    assert int(torch.linalg.matrix_rank(matrix, rtol=1e-4)) == rank
    large = head_config({"name": "factorized", "rank": 64}).build(
        HeadShape(vocab_size=4000, d_model=256, bos_id=0)
    )
    sizes = {name: p.std().item() for name, p in large.named_parameters()}
    assert sizes["table"] == pytest.approx(0.005, rel=0.05)


def test_a_factorized_projection_starts_orthonormal() -> None:
    for name in ("input", "output"):
        head = built({"name": "factorized", "rank": 8, "shared": False})
        projection = dict(head.named_parameters())[name].detach()
        torch.testing.assert_close(projection @ projection.T, torch.eye(8), rtol=0, atol=1e-5)


# VQ.


def test_a_vq_head_with_a_code_for_every_token_is_the_untied_head() -> None:
    head = randomised(built({"name": "vq", "codes": 40}))
    assert isinstance(head, VQHead)
    assert sorted(head.codes.tolist()) == list(range(40))
    untied = built({"name": "untied"})
    copy_into(untied, input=head.input, output=head.codebook[head.codes])
    hidden, tokens, prev = inputs()
    torch.testing.assert_close(head.embed(tokens, prev), untied.embed(tokens, prev))
    torch.testing.assert_close(head.log_probs(hidden, prev[0]), untied.log_probs(hidden, prev[0]))


@pytest.mark.parametrize("assignment", ["random", "frequency"])
def test_tokens_of_one_vq_code_share_their_probability_and_never_beat_the_floor(
    assignment: str,
) -> None:
    head = randomised(built({"name": "vq", "codes": 12, "assignment": assignment}))
    assert isinstance(head, VQHead)
    hidden, _, prev = inputs()
    log_probs = head.log_probs(20 * hidden, prev[0])
    for code in range(12):
        members = (head.codes == code).nonzero().flatten()
        columns = log_probs[:, members]
        assert torch.equal(columns, columns[:, :1].expand_as(columns))
        assert columns.max() <= -math.log(len(members)) + 1e-5
    assert distinct(log_probs.T) == 12


def test_a_residual_separates_tokens_of_one_code_only_once_it_is_trained() -> None:
    torch.manual_seed(3)
    head = built({"name": "vq", "codes": 4, "residual_rank": 4})
    plain = built({"name": "vq", "codes": 4})
    assert isinstance(head, VQHead) and isinstance(plain, VQHead)
    codebook = torch.randn(4, 16)
    copy_into(head, codebook=codebook)
    copy_into(plain, codebook=codebook)
    hidden, _, prev = inputs()
    assert torch.equal(head.log_probs(hidden, prev[0]), plain.log_probs(hidden, prev[0]))
    copy_into(head, residual_a=torch.randn(40, 4))
    assert distinct(head.log_probs(hidden, prev[0]).T) == 40


def test_the_default_number_of_codes_is_a_quarter_of_the_vocabulary() -> None:
    for vocab, rows in ((40, 10), (43, 10), (3, 1), (1024, 256)):
        shape = HeadShape(vocab_size=vocab, d_model=4, bos_id=0)
        state = head_config({"name": "vq"}).build(shape).state_dict()
        assert state["codebook"].shape == (rows, 4)


def test_random_codes_cost_nothing_and_frequency_codes_are_stored() -> None:
    kinds = {
        assignment: [
            kind for _, _, kind in built({"name": "vq", "assignment": assignment}).stored()
        ]
        for assignment in ("random", "frequency")
    }
    assert kinds == {"random": ["table", "table"], "frequency": ["table", "table", "codes"]}


@pytest.mark.parametrize(
    ("vocab_size", "codes", "seed", "expected"),
    [
        (5, 2, 0, [1, 0, 0, 0, 1]),
        (8, 3, 0, [0, 1, 0, 1, 1, 0, 2, 2]),
        (8, 3, 1, [0, 1, 1, 1, 0, 2, 0, 2]),
        (4, 1, 9, [0, 0, 0, 0]),
        (1, 1, 0, [0]),
    ],
)
def test_random_codes_have_these_values(
    vocab_size: int, codes: int, seed: int, expected: list[int]
) -> None:
    assert random_codes(vocab_size, codes, seed).tolist() == expected


@given(data=st.data(), vocab_size=st.integers(1, 200), seed=st.integers(0, 2**63))
@settings(max_examples=60, deadline=None)
def test_random_codes_are_balanced_and_repeatable(
    data: st.DataObject, vocab_size: int, seed: int
) -> None:
    codes = data.draw(st.integers(1, vocab_size))
    result = random_codes(vocab_size, codes, seed)
    assert result.dtype == torch.int64
    sizes = torch.bincount(result, minlength=codes)
    assert sizes.numel() == codes
    assert sizes.max() - sizes.min() <= 1
    assert torch.equal(result, random_codes(vocab_size, codes, seed))


def test_another_seed_deals_other_codes_and_changes_the_head() -> None:
    assert len({tuple(random_codes(100, 10, seed).tolist()) for seed in range(20)}) == 20
    heads = [built({"name": "vq", "assignment": "random", "seed": seed}) for seed in (0, 1)]
    weights = randomised(heads[0]).state_dict()
    heads[1].load_state_dict(weights)
    hidden, _, prev = inputs()
    a, b = (head.log_probs(hidden, prev[0]) for head in heads)
    assert (a - b).abs().max() > 0.1


@pytest.mark.parametrize(
    ("counts", "codes", "tail_codes", "expected"),
    [
        ([5, 9, 1, 2], 3, 1, [1, 0, 2, 2]),
        ([5, 9, 1, 2], 2, 1, [1, 0, 1, 1]),
        ([1, 2, 3, 4, 5, 6], 4, 2, [3, 2, 3, 2, 1, 0]),
        ([7, 7, 7, 7], 3, 2, [0, 1, 2, 1]),  # equal counts: by token id
        ([0, 0, 5], 3, 1, [1, 2, 0]),  # a code for every token
        ([3, 2, 1], 1, 1, [0, 0, 0]),
        ([4, 3, 2, 1], 2, 2, [0, 1, 0, 1]),  # all codes are tail codes
    ],
)
def test_frequency_codes_have_these_values(
    counts: list[int], codes: int, tail_codes: int, expected: list[int]
) -> None:
    assert frequency_codes(torch.tensor(counts), codes, tail_codes).tolist() == expected


def test_tokens_of_equal_count_are_ranked_by_id() -> None:
    counts = torch.ones(5000, dtype=torch.int64)  # long enough for a sort to be unstable
    assert torch.equal(frequency_codes(counts, 5000, 1), torch.arange(5000))


@given(data=st.data(), counts=st.lists(st.integers(0, 50), min_size=1, max_size=60))
@settings(max_examples=100, deadline=None)
def test_frequency_codes_separate_the_frequent_and_balance_the_rest(
    data: st.DataObject, counts: list[int]
) -> None:
    codes = data.draw(st.integers(1, len(counts)))
    tail_codes = data.draw(st.integers(1, codes))
    result = frequency_codes(torch.tensor(counts), codes, tail_codes).tolist()
    single = codes - tail_codes
    assert set(result) == set(range(codes))  # no row of the codebook is without a token
    frequent = [token for token, code in enumerate(result) if code < single]
    rest = [token for token, code in enumerate(result) if code >= single]
    assert len(frequent) == single  # each has its code for itself
    if frequent and rest:
        assert min(counts[token] for token in frequent) >= max(counts[token] for token in rest)
    sizes = [result.count(code) for code in range(single, codes)]
    assert max(sizes) - min(sizes) <= 1


# The tied head's own input.


def test_a_low_rank_input_changes_the_input_only() -> None:
    tied, head = built({"name": "tied"}), built({"name": "tied", "input_rank": 4})
    copy_into(head, table=tied.state_dict()["table"])
    hidden, tokens, prev = inputs()
    assert torch.equal(head.embed(tokens, prev), tied.embed(tokens, prev))
    copy_into(head, delta_a=torch.randn(40, 4))
    difference = (head.embed(tokens, prev) - tied.embed(tokens, prev))[0]
    assert int(torch.linalg.matrix_rank(difference.detach(), rtol=1e-4)) == 4
    assert torch.equal(head.log_probs(hidden, prev[0]), tied.log_probs(hidden, prev[0]))


# Untying on the way.


def test_untying_copies_the_table_once_and_changes_no_score() -> None:
    head = randomised(built({"name": "untied", "untie_at": 0.5}))
    assert isinstance(head, UntiedHead)
    hidden, tokens, prev = inputs()
    before = head.log_probs(hidden, prev[0])
    assert [name for name, _, _ in head.stored()] == ["input"]
    assert head.untie() == {"output": "input"}
    assert [name for name, _, _ in head.stored()] == ["input", "output"]
    assert head.untie_at == 0
    assert torch.equal(head.log_probs(hidden, prev[0]), before)
    copy_into(head, output=torch.randn(40, 16))
    assert not torch.equal(head.log_probs(hidden, prev[0]), before)
    # Once untied, it is the head that was never tied.
    plain = built({"name": "untied"})
    plain.load_state_dict(head.state_dict())
    assert torch.equal(head.log_probs(hidden, prev[0]), plain.log_probs(hidden, prev[0]))


# Bigram hash.


def with_pairs(
    buckets: int = 101, dim: int = 8, shape: HeadShape = SHAPE, **options: Any
) -> tuple[Head, BigramHash]:
    options = {"buckets": buckets, "dim": dim, **options}
    head = built({"name": "tied", "add": {"bigram-hash": options}}, shape)
    addon = head.addons["bigram-hash"]
    assert isinstance(addon, BigramHash)
    return head, addon


def test_bigram_hash_changes_nothing_until_it_is_trained_and_then_the_input_only() -> None:
    head, addon = with_pairs()
    plain = built({"name": "tied"})
    copy_into(plain, table=head.state_dict()["table"])
    hidden, tokens, prev = inputs()
    assert torch.equal(head.embed(tokens, prev), plain.embed(tokens, prev))
    copy_into(addon, table=torch.randn(101, 8))
    assert not torch.equal(head.embed(tokens, prev), plain.embed(tokens, prev))
    assert torch.equal(head.log_probs(hidden, prev[0]), plain.log_probs(hidden, prev[0]))


@pytest.mark.parametrize("signs", [False, True])
def test_bigram_vectors_are_the_formula_s(signs: bool) -> None:
    head, addon = with_pairs(signs=signs)
    randomised(addon)
    _, tokens, prev = inputs(200)
    tokens[0, ::7] = SHAPE.bos_id
    found = addon.embed(tokens, prev)[0]
    for place, (token, before) in enumerate(zip(tokens[0].tolist(), prev[0].tolist(), strict=True)):
        before = SHAPE.bos_id if token == SHAPE.bos_id else before
        row = addon.table[100 if token == SHAPE.bos_id else (36313 * token ^ 27191 * before) % 100]
        if signs:
            row = row * sign_vectors(257, 8)[(40503 * token ^ 30011 * before) % 256]
        torch.testing.assert_close(found[place], addon.scale * (row @ addon.projection))


def test_bos_has_the_last_row_of_the_table_to_itself() -> None:
    head, addon = with_pairs()
    randomised(addon)
    every = torch.arange(SHAPE.vocab_size)
    tokens, prev = every.repeat_interleave(40)[None], every.repeat(40)[None]
    before = head.embed(tokens, prev)
    copy_into(addon, table=torch.cat([addon.table[:-1].detach(), torch.randn(1, 8)]))
    changed = (head.embed(tokens, prev) != before).any(dim=-1)
    assert torch.equal(changed, tokens == SHAPE.bos_id)


def test_shifting_prev_by_one_changes_the_embedding() -> None:
    head, addon = with_pairs()
    randomised(addon)
    _, tokens, prev = inputs(200)
    a, b = head.embed(tokens, prev), head.embed(tokens, prev.roll(1, 1))
    same = (a == b).all(dim=-1)
    excused = (tokens == SHAPE.bos_id) | (prev == prev.roll(1, 1))
    assert same[excused].all()
    assert same[~excused].double().mean() < 0.1  # a few pairs share a bucket by chance


def test_large_ids_do_not_overflow_in_the_head() -> None:
    shape = HeadShape(vocab_size=70_000, d_model=2, bos_id=0)
    head = head_config({"name": "tied", "add": {"bigram-hash": {"buckets": 997, "dim": 2}}}).build(
        shape
    )
    addon = head.addons["bigram-hash"]
    assert isinstance(addon, BigramHash)
    copy_into(addon, table=torch.randn(997, 2), projection=torch.eye(2), scale=torch.ones(1))
    tokens = torch.tensor([[59_139, 60_000, 69_999]])
    prev = torch.tensor([[69_999, 1, 65_000]])
    pairs = zip(prev[0].tolist(), tokens[0].tolist(), strict=True)
    rows = addon.table[[BigramBuckets(count=997).bucket(p, t) for p, t in pairs]]  # Python ints
    torch.testing.assert_close(addon.embed(tokens, prev)[0], rows)


@pytest.mark.parametrize(("buckets", "dim"), [(64, 96), (4096, 4), (97, 1)])
def test_a_projection_starts_orthonormal_at_every_size(buckets: int, dim: int) -> None:
    projection = with_pairs(buckets, dim)[1].projection.detach()
    small = projection @ projection.T if dim <= 16 else projection.T @ projection
    torch.testing.assert_close(small, torch.eye(min(dim, 16)), rtol=0, atol=1e-5)


def test_signs_are_the_same_everywhere_and_balanced() -> None:
    signs = sign_vectors(257, 130)
    assert signs[0, :8].tolist() == [1, 1, 1, 1, -1, 1, -1, 1]  # 0xE220A8397B1DCDAF ends in AF
    assert set(signs.flatten().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 0.02
    assert distinct(signs) == 257


# Bigram logits, unigram bias.


def test_bigram_logits_start_at_nothing_and_then_depend_on_the_last_token_alone() -> None:
    head = built({"name": "tied", "add": {"bigram-logits": {"rank": 3}}})
    plain = built({"name": "tied"})
    copy_into(plain, table=head.state_dict()["table"])
    hidden, _, prev = inputs()
    torch.testing.assert_close(head.log_probs(hidden, prev[0]), plain.log_probs(hidden, prev[0]))
    copy_into(head.addons["bigram-logits"], next=torch.randn(40, 3))
    every = torch.arange(40)
    z = head.logits(torch.zeros(40, 16), every).detach()
    z = 30 * torch.atanh(z / 30)
    assert int(torch.linalg.matrix_rank(z, rtol=1e-4)) == 3


def test_exact_bigram_logits_have_no_rank() -> None:
    add = {"bigram-logits": {"exact": True, "rank": 8}}
    with pytest.raises(ConfigError, match="exact and rank 8: the table of all pairs has no rank"):
        head_config({"name": "tied", "add": add})


def test_exact_bigram_logits_of_a_large_vocabulary_are_refused() -> None:
    config = head_config({"name": "tied", "add": {"bigram-logits": {"exact": True}}})
    shape = HeadShape(vocab_size=2049, d_model=4, bos_id=0)
    with pytest.raises(ConfigError, match="2,049 x 2,049 weights; the limit .* 2,048"):
        config.build(shape)


def test_a_unigram_bias_starts_at_the_unigram_distribution() -> None:
    counts = torch.arange(40) * 50
    config = head_config({"name": "untied", "softcap": 0.0, "add": {"unigram-bias": {}}})
    head = config.build(SHAPE, counts)
    log_probs = head.log_probs(torch.randn(3, 16), torch.zeros(3, dtype=torch.int64))
    expected = ((counts + 0.5) / (counts + 0.5).sum()).log()
    torch.testing.assert_close(log_probs, expected.expand(3, 40), rtol=1e-5, atol=1e-5)
    assert float(log_counts(counts).mean()) == pytest.approx(0, abs=1e-6)


def test_a_mask_needs_a_tokenizer() -> None:
    with pytest.raises(ConfigError, match="canonical-mask needs a tokenizer"):
        built({"name": "tied", "add": {"canonical-mask": {}}})


# Options that cannot be used.


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "factorized", "rank": 17}, "rank 17 .* d_model 16"),
        ({"name": "factorized", "rank": 0}, "rank is 0"),
        ({"name": "factorized", "rank": -3}, "rank is -3"),
        ({"name": "factorized", "rank": 2.0}, "type int"),
        ({"name": "factorized", "rank": True}, "type int"),
        ({"name": "factorized", "shared": 1}, "type bool"),
        ({"name": "tied", "rank": 4}, "unknown key 'rank'"),
        ({"name": "vq", "codes": 41}, "codes 41 .* vocabulary 40"),
        ({"name": "vq", "codes": -1}, "codes is -1"),
        ({"name": "vq", "seed": -1}, "seed is -1"),
        ({"name": "vq", "residual_rank": -1}, "residual_rank is -1"),
        ({"name": "vq", "residual_rank": 17}, "residual_rank 17 .* d_model 16"),
        ({"name": "vq", "tail_codes": -1}, "tail_codes is -1"),
        ({"name": "vq", "codes": 8, "tail_codes": 9}, "tail_codes 9 is greater than codes 8"),
        ({"name": "vq", "assignment": "frequent"}, "did you mean 'frequency'"),
        ({"name": "tied", "input_rank": -1}, "input_rank is -1"),
        ({"name": "tied", "input_rank": 17}, "input_rank 17 .* d_model 16"),
        ({"name": "untied", "untie_at": 1.0}, "untie_at is 1.0"),
        ({"name": "untied", "untie_at": -0.1}, "untie_at is -0.1"),
        ({"name": "tied", "add": {"bigram-hash": {"buckets": 1}}}, "buckets >= 2"),
        ({"name": "tied", "add": {"bigram-hash": {"dim": 0}}}, "dim is 0"),
        ({"name": "tied", "add": {"bigram-logits": {"rank": 0}}}, "rank is 0"),
        ({"name": "tied", "add": {"bigram-logits": {"rank": 41}}}, "rank 41 .* vocabulary 40"),
    ],
)
def test_options_that_cannot_be_used_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        built(values)


def test_more_codes_than_tokens_are_refused_before_anything_is_built() -> None:
    with pytest.raises(ConfigError, match="codes 41"):
        head_config({"name": "vq", "codes": 41}).num_params(SHAPE)
    assert head_config({"name": "vq", "codes": 40}).num_params(SHAPE) == 2 * 40 * 16
