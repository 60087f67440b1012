"""What else a score can be predicted from: the stream of all documents, longer windows, more loops.

Apart from `scorer.py`, because an artifact pays for the code that scores it, and is not scored so.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch

from tokgolf.config import TrunkConfig
from tokgolf.eval.scorer import Row
from tokgolf.model import LanguageModel, Trunk
from tokgolf.tokenizers.base import Ids


def stream_rows(targets: Iterable[Ids], bos: int, length: int, stride: int) -> Iterator[Row]:
    """The windows of all targets as one text, whose length is not known before its end."""
    tokens: Ids | None = None  # from input `base` on
    base = first = 0
    for ids in targets:
        tokens = np.insert(ids, 0, bos) if tokens is None else np.concatenate([tokens, ids])
        count = base + len(tokens) - 1
        while (end := length if first == 0 else first + stride) <= count:
            start = max(0, end - length)
            yield Row(tokens[start - base : end + 1 - base], first - start, first)
            first = end
        if (drop := max(0, first + 1 - length) - base) > 0:
            tokens, base = tokens[drop:], base + drop
    if tokens is not None and (end := base + len(tokens) - 1) > first:
        start = max(0, end - length)
        yield Row(tokens[start - base :], first - start, first)


def widened(model: LanguageModel, window: int) -> LanguageModel:
    """The same model for windows up to `window`: its weights, with longer rotary tables."""
    if window <= model.trunk.config.sequence_length:
        return model
    return _with_config(model, replace(model.trunk.config, sequence_length=window))


def unrolled(model: LanguageModel, loops: int | None) -> LanguageModel:
    """The same model with its shared blocks applied `loops` times; None: as its config says."""
    config = model.trunk.config
    if loops is None or loops == (config.loops_scored or config.loops):
        return model
    return _with_config(model, replace(config, loops_scored=loops))


def _with_config(model: LanguageModel, config: TrunkConfig) -> LanguageModel:
    """The model's weights under a config of the same shapes, with rotary tables of its own."""
    with torch.random.fork_rng(devices=[]):  # the weights that it begins with are not used
        trunk = Trunk(config, model.head.shape.vocab_size)
    trunk.load_state_dict(model.trunk.state_dict(), assign=True)
    trunk.cos, trunk.sin = (table.to(model.trunk.cos) for table in (trunk.cos, trunk.sin))
    return LanguageModel(trunk, model.head).eval().requires_grad_(False)
