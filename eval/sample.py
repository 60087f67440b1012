"""Text from a model: a token at a time, drawn from what it gives each.

Unlike the scorer's windows, a full window is left with its later half as the context of the next,
so that no token has less than half a window behind it.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from tokgolf.errors import ConfigError
from tokgolf.eval.incremental import Cache, step
from tokgolf.model import LanguageModel
from tokgolf.tokenizers import Tokenizer


@torch.inference_mode()
def sample(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: bytes = b"",
    *,
    tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> bytes:
    """`prompt` and up to `tokens` more tokens, fewer if the model ends the document.

    `temperature` 0 takes the likeliest token. Of the rest, `top_p` keeps the fewest likeliest
    whose share is at least that. The same seed gives the same text on the same machine. Raises
    `ConfigError` for a number out of range.
    """
    if tokens < 0 or not 0 <= temperature < math.inf or not 0 < top_p <= 1 or seed < 0:
        raise ConfigError(
            f"tokens {tokens}, temperature {temperature}, top-p {top_p}, seed {seed}: none can be "
            "negative, the temperature must be finite and top-p above 0, at most 1"
        )
    length = model.trunk.config.sequence_length
    rng, cache = np.random.default_rng(seed), Cache(1, length)
    text = [tokenizer.bos_id, *tokenizer.encode(prompt).tolist()]
    given, start, seen = len(text), max(0, len(text) - length), 0
    while len(text) < given + tokens:
        if len(text) - start > length:
            start, seen = len(text) - max(1, length // 2), 0
        feed = torch.tensor([text[start + seen :]])
        cache.begin(0, torch.arange(seen, len(text) - start)[None])
        seen = len(text) - start
        token = _draw(step(model, feed, cache)[0].double().numpy(), temperature, top_p, rng)
        if token == tokenizer.bos_id:
            break
        text.append(token)
    return tokenizer.decode(text[1:])


def _draw(
    log_probs: NDArray[np.float64], temperature: float, top_p: float, rng: np.random.Generator
) -> int:
    """A token of the sharpened and cut distribution.

    p=[.5, .3, .2], temperature=1, top_p=.6 -> 0 with 5/8, 1 with 3/8
    """
    order = np.argsort(-log_probs, kind="stable")
    if temperature == 0:
        return int(order[0])
    ordered = log_probs[order]
    ends = np.cumsum(np.exp((ordered - ordered[0]) / temperature))
    kept = int(np.searchsorted(ends, top_p * ends[-1])) + 1
    place = np.searchsorted(ends[:kept], rng.random() * ends[:kept][-1], "right")
    return int(order[min(int(place), kept - 1)])
