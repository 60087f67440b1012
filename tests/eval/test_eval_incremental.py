"""One token at a time is the whole forward: every head, many trunks, rows at different places."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokgolf.config import TrunkConfig
from tokgolf.errors import ConfigError
from tokgolf.eval.incremental import Cache, hidden, step
from tokgolf.heads import ADDONS, HEADS, head_config
from tokgolf.model import LanguageModel, build_model, head_shape
from tokgolf.tokenizers import Tokenizer, build_tokenizer

LENGTH = 9
OPTIONS: dict[str, dict[str, Any]] = {
    **{name: {"name": name} for name in HEADS},
    "factorized": {"name": "factorized", "rank": 6},
    "vq": {"name": "vq", "codes": 70, "residual_rank": 3},
    "every add-on": {
        "name": "tied",
        "add": {**{name: {} for name in ADDONS}, "bigram-hash": {"buckets": 64, "dim": 4}},
    },
}
TRUNKS: dict[str, dict[str, Any]] = {
    "one layer": {"layers": 1, "heads": 2, "kv_heads": 2},
    "skips and grouped keys": {"layers": 3, "heads": 4, "kv_heads": 2},
    "one key head": {"layers": 2, "heads": 4, "kv_heads": 1},
    "every option": {
        "layers": 4,
        "negative_slope": 0.3,
        "rope_fraction": 0.5,
        "layer_scale": True,
        "out_norm": True,
        "parallel": 2,
        "xsa": 3,
        "loop_start": 1,
        "loop_blocks": 2,
        "loops": 2,
        "loops_scored": 3,
        "loop_rank": 2,
        "smear": True,
        "document_mask": True,
    },
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return build_tokenizer("bpe", [b"return import " * 30], 264)


def model_of(tokenizer: Tokenizer, head: str, **changes: Any) -> LanguageModel:
    """Random, and in double precision: what is left is no rounding of fp32."""
    shape = {"layers": 3, "heads": 4, "kv_heads": 2, **changes}
    trunk = TrunkConfig(d_model=16, mlp_hidden=24, sequence_length=LENGTH, **shape)
    torch.manual_seed(0)
    built = build_model(trunk, head_config(OPTIONS[head]), head_shape(tokenizer, trunk))
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(0.0, 0.4)
    return built.double().eval().requires_grad_(False)


def ordinary(tokens: int, rows: int, tokenizer: Tokenizer) -> Tensor:
    """Text that the tokenizer writes, so that no mask forbids it.  # (rows, tokens)"""
    ids = torch.from_numpy(tokenizer.encode(b"import x; return 7 import " * 9).astype("int64"))
    return torch.stack([ids[row : row + tokens] for row in range(rows)])


def states(model: LanguageModel, tokens: Tensor, cache: Cache, chunks: list[int]) -> Tensor:
    """Hidden states of windows that are fed in chunks of these lengths.  # (rows, time, d_model)"""
    parts, at = [], 0
    for size in chunks:
        positions = torch.arange(at, at + size).expand(len(tokens), size)
        cache.begin(0, positions)
        parts.append(hidden(model, tokens[:, at : at + size], cache))
        at += size
    return torch.cat(parts, 1)


@pytest.mark.parametrize("head", OPTIONS)
def test_steps_give_every_head_what_the_whole_forward_gives(
    head: str, tokenizer: Tokenizer
) -> None:
    model = model_of(tokenizer, head).float()
    tokens = ordinary(LENGTH, 3, tokenizer)
    expected = model.log_probs(tokens)
    cache = Cache(3, LENGTH)
    for at in range(LENGTH):
        cache.begin(0, torch.full((3, 1), at))
        got = step(model, tokens[:, at : at + 1], cache)
        torch.testing.assert_close(got, expected[:, at], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("trunk", TRUNKS)
@settings(deadline=None, max_examples=30)
@given(chunks=st.lists(st.integers(1, 5), min_size=1, max_size=LENGTH))
def test_any_cut_of_a_window_gives_the_same_hidden_states(
    trunk: str, chunks: list[int], tokenizer: Tokenizer
) -> None:
    model = model_of(tokenizer, "every add-on", **TRUNKS[trunk])
    while sum(chunks) > LENGTH:
        chunks = chunks[:-1]
    tokens = ordinary(sum(chunks), 2, tokenizer)
    tokens[1, 2:3] = tokenizer.bos_id  # another document begins
    got = states(model, tokens, Cache(2, LENGTH), chunks)
    torch.testing.assert_close(got, model.hidden(tokens), rtol=0, atol=1e-12)


@pytest.mark.parametrize("trunk", ["skips and grouped keys", "every option"])
def test_rows_may_be_at_different_places_and_start_anew(trunk: str, tokenizer: Tokenizer) -> None:
    """Row 0 is in its second window while row 1 is late in its first, and row 2 was prefilled."""
    model = model_of(tokenizer, "every add-on", **TRUNKS[trunk])
    texts = ordinary(LENGTH, 3, tokenizer)
    texts[1, 3] = texts[2, 2] = tokenizer.bos_id
    cache = Cache(3, LENGTH)
    states(model, texts[:2].flip(0), cache, [7])
    cache.begin(2, torch.arange(4)[None])
    hidden(model, texts[2:, :4], cache)
    feed = torch.stack([texts[0, :2], texts[0, 7:9], texts[2, 4:6]])
    cache.begin(0, torch.tensor([[0, 1], [7, 8], [4, 5]]))
    got = hidden(model, feed, cache)
    whole = model.hidden(texts)
    expected = torch.stack([whole[0, :2], whole[0, 7:9], whole[2, 4:6]])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_a_shift_is_of_vectors_too() -> None:
    cache, x = Cache(2, 4), torch.arange(1.0, 17.0).view(2, 4, 2)
    cache.begin(0, torch.tensor([[0, 1, 2], [0, 1, 2]]))
    assert torch.equal(cache.shift(x[:, :3], 0)[:, 1:], x[:, :2])
    cache.begin(0, torch.tensor([[3], [0]]))
    assert cache.shift(x[:, 3:], 0).tolist() == [[[5.0, 6.0]], [[0.0, 0.0]]]


def test_a_pass_outside_the_cache_is_an_error() -> None:
    cache = Cache(2, 4)
    with pytest.raises(ConfigError, match="position 4 of row 0 .* 2 rows of 4"):
        cache.begin(0, torch.tensor([[4]]))
    with pytest.raises(ConfigError, match="row 2 is outside"):
        cache.begin(1, torch.tensor([[0], [0]]))
