"""`hashed`: hashes and signs by an obvious loop, collisions, weights."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokgolf.errors import ConfigError
from tokgolf.hashing import splitmix64
from tokgolf.heads import HeadShape, head_config
from tokgolf.heads.hashed import HashedConfig, HashedHead

SHAPE = HeadShape(vocab_size=40, d_model=8, bos_id=5)


def built(shape: HeadShape = SHAPE, **options: Any) -> HashedHead:
    head = head_config({"name": "hashed", "residual_rank": 0, **options}).build(shape)
    assert isinstance(head, HashedHead)
    return head


@given(
    vocab=st.integers(1, 60),
    hashes=st.integers(1, 4),
    buckets=st.integers(1, 12),
    seed=st.integers(0, 2**63),
)
@settings(max_examples=60, deadline=None)
def test_rows_are_signed_sums_that_no_two_tokens_share(
    vocab: int, hashes: int, buckets: int, seed: int
) -> None:
    shape = HeadShape(vocab_size=vocab, d_model=3, bos_id=0)
    options: dict[str, Any] = {"hashes": hashes, "buckets": buckets, "seed": seed}
    if (2 * buckets) ** hashes < vocab:
        with pytest.raises(ConfigError, match=f"to {buckets} buckets .* vocabulary of {vocab}"):
            built(shape, **options)
        return
    head = built(shape, **options).double()
    seen: list[tuple[int, ...]] = []
    at = 0
    while len(seen) < vocab:
        drawn = tuple(splitmix64(seed, at + j) % (2 * buckets) for j in range(hashes))
        at += hashes
        if drawn not in seen:
            seen.append(drawn)
    for token, drawn in enumerate(seen):
        row = torch.zeros(3, dtype=torch.float64)
        for j, value in enumerate(drawn):
            row += (-1) ** (value % 2) * head.codebook[j * buckets + value // 2].detach()
        torch.testing.assert_close(head.matrix()[token], row / hashes**0.5, rtol=1e-6, atol=1e-9)


def test_hashes_and_signs_have_these_values() -> None:
    head = built(hashes=2, buckets=8, seed=3)
    signs = head.values.sign().int()
    assert head.columns[:4].tolist() == [[6, 12], [0, 15], [3, 11], [4, 11]]
    assert signs[:4].tolist() == [[-1, -1], [-1, -1], [1, -1], [1, 1]]


def test_one_hash_to_half_as_many_buckets_makes_pairs_of_opposite_rows() -> None:
    matrix = built(hashes=1, buckets=20).matrix()
    same = (matrix[:, None] == -matrix[None]).all(-1)
    assert same.sum(1).tolist() == [1] * 40


def test_the_default_is_half_as_many_rows_as_tokens_and_always_enough() -> None:
    shapes = [HeadShape(vocab_size=vocab, d_model=1, bos_id=0) for vocab in (1024, 8192)]
    assert [HashedConfig().rows(shape) for shape in shapes] == [256, 2048]
    for vocab in range(1, 70):
        for hashes in range(1, 6):
            shape = HeadShape(vocab_size=vocab, d_model=1, bos_id=0)
            assert 2 * hashes * HashedConfig(hashes=hashes).rows(shape) >= vocab


def test_weights_start_as_nothing_and_scale_each_pick() -> None:
    plain, head = built(), built(weights=True)
    assert head.weights is not None
    with torch.no_grad():
        head.codebook.copy_(plain.codebook)
        assert torch.equal(head.matrix(), plain.matrix())
        head.weights.zero_()
        head.weights[7, 1] = -3.0
    assert not head.matrix()[:7].any() and not head.matrix()[8:].any()
    column = head.columns[7, 1]
    expected = -3.0 * head.values[7, 1] * head.codebook[column]
    torch.testing.assert_close(head.matrix()[7], expected)
    assert [s.kind for s in head.stored()] == ["table", "table"]
    assert [s.kind for s in plain.stored()] == ["table"]


def test_another_seed_is_another_head() -> None:
    columns = {tuple(built(seed=seed).columns.flatten().tolist()) for seed in range(9)}
    assert len(columns) == 9
