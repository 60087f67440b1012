"""`product`: digits, their order, what is stored, and its reduction to a tied table."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokgolf.errors import ConfigError
from tokgolf.heads import HeadShape, head_config
from tokgolf.heads.product import ProductConfig, ProductHead, digits, smallest_base

SHAPE = HeadShape(vocab_size=40, d_model=8, bos_id=5)
COUNTS = torch.arange(40) * 7 % 41


def built(shape: HeadShape = SHAPE, **options: Any) -> ProductHead:
    head = head_config({"name": "product", "residual_rank": 0, **options}).build(shape, COUNTS)
    assert isinstance(head, ProductHead)
    return head


@given(vocab=st.integers(1, 3000), length=st.integers(1, 9))
def test_the_smallest_base_is_enough_and_no_smaller_one_is(vocab: int, length: int) -> None:
    base = smallest_base(vocab, length)
    assert base**length >= vocab
    assert base == 1 or (base - 1) ** length < vocab


@given(data=st.data(), vocab=st.integers(1, 300), codebooks=st.integers(1, 6))
@settings(max_examples=80, deadline=None)
def test_digits_name_every_token_and_use_every_row(
    data: st.DataObject, vocab: int, codebooks: int
) -> None:
    least = smallest_base(vocab, codebooks)
    codes = data.draw(st.integers(least, vocab))
    shape = HeadShape(vocab_size=vocab, d_model=1, bos_id=0)
    sizes = ProductConfig(codebooks=codebooks, codes=codes, assignment="id").sizes(shape)
    assert len(sizes) <= codebooks
    rows = digits(vocab, sizes).tolist()
    for token, row in enumerate(rows):
        left = token
        for digit, size in zip(row, sizes, strict=True):
            assert digit == left % size if left >= size else digit == left
            left //= size
    assert [len({row[j] for row in rows}) for j in range(len(sizes))] == sizes


def test_digits_have_these_values() -> None:
    assert digits(5, [2, 3]).tolist() == [[0, 0], [1, 0], [0, 1], [1, 1], [0, 2]]
    assert built(codes=7, assignment="id").columns[[0, 6, 7, 39]].tolist() == [
        [0, 7], [6, 7], [0, 8], [4, 12],
    ]  # fmt: skip


def test_one_codebook_with_a_row_for_each_token_is_the_tied_head() -> None:
    tied = head_config({"name": "tied"}).build(SHAPE)
    table = dict(tied.named_parameters())["table"]
    hidden, prev = torch.randn(9, 8), torch.arange(9)
    for assignment in ("id", "frequency", "random"):
        head = built(codebooks=1, codes=40, assignment=assignment)
        with torch.no_grad():
            table.normal_()
            head.codebook[head.entries()[0][:, 0]] = table
        assert torch.equal(head.embed(prev[None], prev[None]), tied.embed(prev[None], prev[None]))
        torch.testing.assert_close(head.log_probs(hidden, prev), tied.log_probs(hidden, prev))


def test_the_most_frequent_tokens_differ_in_the_first_digit() -> None:
    head = built(codes=16)
    order = torch.argsort(COUNTS, descending=True, stable=True)
    columns = head.entries()[0][order]
    assert columns[:, 0].tolist() == [rank % 16 for rank in range(40)]
    assert columns[:, 1].tolist() == [16 + rank // 16 for rank in range(40)]


def test_only_ranks_are_stored_and_they_are_zero_until_they_are_loaded() -> None:
    def kinds(assignment: str) -> list[str]:
        return [kind for _, _, kind in built(assignment=assignment).stored()]

    assert kinds("id") == kinds("random") == ["table"]
    assert kinds("frequency") == ["table", "codes"]
    assert sorted(built().codes.tolist()) == list(range(40))
    unloaded = head_config({"name": "product"}).build(
        HeadShape(vocab_size=40, d_model=16, bos_id=0)
    )
    assert isinstance(unloaded, ProductHead) and not unloaded.codes.any()


@pytest.mark.parametrize("rank", [40, 63, 1 << 40])
def test_a_rank_out_of_range_is_an_index_error(rank: int) -> None:
    head = built()
    head.codes[3] = rank
    with pytest.raises(IndexError):
        head.log_probs(torch.zeros(1, 8), torch.zeros(1, dtype=torch.int64))


def test_another_seed_draws_other_digits() -> None:
    drawn = {tuple(built(assignment="random", seed=s).columns.flatten().tolist()) for s in range(9)}
    assert len(drawn) == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codes": 6}, r"2 codebooks of 6 codes do not suit a vocabulary of 40; use from 7 to 40"),
        ({"codes": 41}, "use from 7 to 40"),
        ({"codes": 6, "assignment": "random"}, "2 codebooks of 6 codes"),
        ({"codebooks": 1, "codes": 39}, "use from 40 to 40"),
        ({"codebooks": 0}, "codebooks is 0"),
        ({"assignment": "alphabet"}, "assignment"),
    ],
)
def test_bad_options_name_both_numbers_and_a_way_out(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        built(**options)


def test_the_default_number_of_codes_is_a_quarter_of_the_vocabulary_if_that_is_enough() -> None:
    for vocab, codebooks, expected in ((1024, 2, [256, 4]), (1024, 1, [1024]), (9, 2, [3, 3])):
        shape = HeadShape(vocab_size=vocab, d_model=1, bos_id=0)
        assert ProductConfig(codebooks=codebooks).sizes(shape) == expected
