"""The hashes that stored models depend on: golden values, and one result in every number type."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokgolf.hashing import BIGRAM_MULTIPLIERS, BigramBuckets, splitmix64

IDS = st.integers(0, 10**6)
SEEDS = st.integers(0, 2**64 - 1)


def stateful_splitmix64(seed: int, count: int) -> list[int]:
    """The generator as published: a 64-bit state that grows by the golden ratio."""
    state, outputs = seed, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = (z ^ (z // 2**30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z // 2**27)) * 0x94D049BB133111EB % 2**64
        outputs.append(z ^ (z // 2**31))
    return outputs


@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        (
            0,
            [
                0xE220A8397B1DCDAF,
                0x6E789E6AA1B965F4,
                0x06C45D188009454F,
                0xF88BB8A8724C81EC,
                0x1B39896A51A8749B,
            ],
        ),
        (
            1234567,
            [
                6457827717110365317,
                3203168211198807973,
                9817491932198370423,
                4593380528125082431,
                16408922859458223821,
            ],
        ),
    ],
)
def test_splitmix64_gives_the_published_sequences(seed: int, expected: list[int]) -> None:
    assert [splitmix64(seed, index) for index in range(5)] == expected


@given(seed=SEEDS)
@settings(deadline=None)
def test_splitmix64_agrees_with_the_stateful_generator(seed: int) -> None:
    outputs = [splitmix64(seed, index) for index in range(20)]
    assert outputs == stateful_splitmix64(seed, 20)
    assert len(set(outputs)) == 20
    assert all(0 <= output < 2**64 for output in outputs)


@given(seed=st.integers(0, 2**64 - 2**40), index=st.integers(0, 2**30))
@settings(deadline=None)
def test_splitmix64_of_another_seed_is_another_value(seed: int, index: int) -> None:
    assert splitmix64(seed, index) != splitmix64(seed + 1, index)


@pytest.mark.parametrize(
    ("previous", "current", "buckets", "expected"),
    [
        (5, 7, 4096, 1051),
        (0, 0, 4096, 0),
        (1, 0, 4096, 27191 % 4095),
        (0, 1, 4096, 36313 % 4095),
        (7, 5, 4096, (181565 ^ 190337) % 4095),
        (59_139, 59_139, 10_240, (2_147_514_507 ^ 1_608_048_549) % 10_239),
        (10**6, 10**6, 2, 0),
    ],
)
def test_bigram_buckets_have_these_values(
    previous: int, current: int, buckets: int, expected: int
) -> None:
    assert BigramBuckets(count=buckets).bucket(previous, current) == expected


def test_the_bigram_multipliers_never_change() -> None:
    assert BIGRAM_MULTIPLIERS == (36313, 27191)


@given(pairs=st.lists(st.tuples(IDS, IDS), min_size=1, max_size=30), buckets=st.integers(2, 20_000))
@settings(deadline=None)
def test_a_bucket_is_the_same_in_every_number_type(
    pairs: list[tuple[int, int]], buckets: int
) -> None:
    expected = [BigramBuckets(count=buckets).bucket(p, c) for p, c in pairs]
    assert expected == [((36313 * c) ^ (27191 * p)) % (buckets - 1) for p, c in pairs]
    previous, current = np.array(pairs, dtype=np.int64).T
    assert BigramBuckets(count=buckets).bucket(previous, current).tolist() == expected
    unsigned = BigramBuckets(count=buckets).bucket(
        previous.astype(np.uint64), current.astype(np.uint64)
    )
    assert unsigned.tolist() == expected
    tensors = torch.from_numpy(previous.copy()), torch.from_numpy(current.copy())
    assert BigramBuckets(count=buckets).bucket(*tensors).tolist() == expected


@given(
    previous=st.integers(0, 2**40 - 1),
    current=st.integers(0, 2**40 - 1),
    buckets=st.integers(2, 10**6),
)
@settings(deadline=None)
def test_the_last_bucket_is_never_hashed_to(previous: int, current: int, buckets: int) -> None:
    expected = BigramBuckets(count=buckets).bucket(previous, current)
    assert 0 <= expected <= buckets - 2
    pair = torch.tensor([previous]), torch.tensor([current])
    assert BigramBuckets(count=buckets).bucket(*pair).tolist() == [expected]


def test_every_other_bucket_is_hashed_to() -> None:
    ids = torch.arange(300)
    buckets = BigramBuckets(count=97).bucket(ids[:, None], ids[None, :])
    assert set(buckets.flatten().tolist()) == set(range(96))


def test_the_order_of_a_pair_matters() -> None:
    ids = torch.arange(200)
    forward = BigramBuckets(count=4096).bucket(ids[:, None], ids[None, :])
    share = (forward == forward.T).double().mean()
    assert share < 0.02  # the diagonal alone is 0.005


def test_32_bits_overflow_from_id_59139_on() -> None:
    largest = np.iinfo(np.int32).max
    assert 36313 * 59_138 <= largest < 36313 * 59_139
    for token, fits in ((59_138, True), (59_139, False)):
        right = BigramBuckets(count=4096).bucket(3, token)
        narrow_numpy = BigramBuckets(count=4096).bucket(
            np.array([3], dtype=np.int32), np.array([token], dtype=np.int32)
        )
        narrow_torch = BigramBuckets(count=4096).bucket(
            torch.tensor([3], dtype=torch.int32), torch.tensor([token], dtype=torch.int32)
        )
        assert (narrow_numpy.item() == right) is fits
        assert (narrow_torch.item() == right) is fits
