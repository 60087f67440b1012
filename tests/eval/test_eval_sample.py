"""Sampling: a twin without memory, the draw's shares, and where it ends."""

import math

import numpy as np
import pytest
import torch

import tokgolf.eval.sample
from tokgolf.config import TrunkConfig
from tokgolf.errors import ConfigError
from tokgolf.eval.sample import _draw, sample
from tokgolf.heads import HeadShape, head_config
from tokgolf.model import LanguageModel, build_model
from tokgolf.tokenizers import Tokenizer, build_tokenizer

LENGTH = 8


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return build_tokenizer("byte", [], None)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> LanguageModel:
    trunk = TrunkConfig(
        layers=2, d_model=16, heads=2, kv_heads=1, mlp_hidden=16, sequence_length=LENGTH
    )
    shape = HeadShape(vocab_size=tokenizer.vocab_size, d_model=16, bos_id=tokenizer.bos_id)
    torch.manual_seed(0)
    built = build_model(trunk, head_config({"name": "tied"}), shape).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(0, 0.6)
    return built.requires_grad_(False)


@pytest.mark.parametrize("prompt", [b"", b"abc", b"a prompt longer than a window"])
def test_the_likeliest_text_is_that_of_whole_forwards(
    model: LanguageModel, tokenizer: Tokenizer, prompt: bytes
) -> None:
    """Past a full window, the next has its later half as context."""
    text = [tokenizer.bos_id, *prompt]
    start = max(0, len(text) - LENGTH)
    for _ in range(25):
        if len(text) - start > LENGTH:
            start = len(text) - LENGTH // 2
        token = int(model.log_probs(torch.tensor([text[start:]]))[0, -1].argmax())
        if token == tokenizer.bos_id:
            break
        text.append(token)
    assert sample(model, tokenizer, prompt, tokens=25, temperature=0) == bytes(text[1:])
    assert len(text) > len(prompt) + LENGTH


def test_a_seed_is_a_text(model: LanguageModel, tokenizer: Tokenizer) -> None:
    texts = [sample(model, tokenizer, b"x", tokens=12, seed=seed) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    assert all(text.startswith(b"x") and len(text) <= 13 for text in texts)
    assert sample(model, tokenizer, b"x", tokens=0) == b"x"


def test_a_document_ends_with_bos(
    tokenizer: Tokenizer, model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = torch.full((1, tokenizer.vocab_size), -math.inf)
    ends[0, tokenizer.bos_id] = 0.0
    monkeypatch.setattr(tokgolf.eval.sample, "step", lambda *arguments: ends)
    assert sample(model, tokenizer, b"ab") == b"ab"


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (1.0, 1.0, [0.2, 0.5, 0.3, 0]),
        (1.0, 0.6, [0, 5 / 8, 3 / 8, 0]),
        (0.5, 1.0, [4 / 38, 25 / 38, 9 / 38, 0]),
        (0.0, 1.0, [0, 1, 0, 0]),
        (1.0, 1e-9, [0, 1, 0, 0]),
        (1e-3, 1.0, [0, 1, 0, 0]),
    ],
)
def test_tokens_are_drawn_by_their_shares(
    temperature: float, top_p: float, expected: list[float]
) -> None:
    with np.errstate(divide="ignore"):
        log_probs = np.log([0.2, 0.5, 0.3, 0.0])
    rng = np.random.default_rng(0)
    drawn = [_draw(log_probs, temperature, top_p, rng) for _ in range(2000)]
    shares = np.bincount(drawn, minlength=4) / 2000
    np.testing.assert_allclose(shares, expected, atol=0.04)
    assert (shares[np.array(expected) == 0] == 0).all()


@pytest.mark.parametrize(
    "wrong",
    [{"tokens": -1}, {"temperature": -0.1}, {"temperature": float("nan")}, {"top_p": 0.0},
     {"top_p": 1.5}, {"seed": -1}],
)  # fmt: skip
def test_a_number_out_of_range_is_named(
    model: LanguageModel, tokenizer: Tokenizer, wrong: dict[str, float]
) -> None:
    with pytest.raises(ConfigError, match=str(next(iter(wrong.values())))):
        sample(model, tokenizer, **wrong)  # type: ignore[arg-type]
