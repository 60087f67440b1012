"""The shared transformer trunk, and the language model that joins it to a head.

The trunk with its default config is the challenge's naive baseline re-implemented from its
description (openai/parameter-golf, record 2026-03-17): RMSNorm without weights, no biases,
rotary attention with normalised queries and keys and grouped key/value heads, relu^2 MLP, a mix
of the first residual into every block, U-Net skips. It never sees a token: a head gives it
vectors and takes hidden states back.

Axes: batch, time, d_model, heads, kv_heads, head_width, mlp_hidden.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokgolf.config import TrunkConfig
from tokgolf.errors import ConfigError
from tokgolf.heads.base import Generates, Head, HeadConfig, HeadShape, ParamGroup, Stored
from tokgolf.tokenizers.base import Tokenizer

if TYPE_CHECKING:
    from typing import Protocol

    class Cache(Protocol):
        """What a pass over some positions remembers of earlier ones; `eval` has the real one.

        Every call of `extend` or `shift` in a pass has a memory of its own, by their order: a
        block that is applied twice remembers both. In place of a cache, None is a pass over whole
        windows.
        """

        @property
        def positions(self) -> Tensor:
            """Where in its window each token of the pass is.  # (batch, time) int64"""

        @property
        def mask(self) -> Tensor:
            """Which of the positions so far each may see.  # (batch, 1, time, seen) bool"""

        def extend(self, x: Tensor) -> Tensor:
            """All positions so far.  # (batch, time, ...) -> (batch, seen, ...)"""

        def shift(self, x: Tensor, first: int) -> Tensor:
            """The position before each, `first` before the window.  # (batch, time, ...), same"""


def rms_norm(x: Tensor) -> Tensor:
    """Root-mean-square norm over the last axis, without weights."""
    return F.rms_norm(x, (x.size(-1),))


def rotary_tables(config: TrunkConfig, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary embedding.  # each (length, head_width / 2)

    Computed in double precision: the tables are regenerated on load, and must not depend on how
    a library evaluates a float32 power.
    """
    width = config.d_model // config.heads
    frequency = config.rope_base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle = torch.outer(torch.arange(length, dtype=torch.float64), frequency)
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the two halves of the last axis: (a cos + b sin, b cos - a sin)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos + b * sin, b * cos - a * sin], dim=-1)


def scaled(linear: nn.Linear, x: Tensor, scale: Tensor) -> Tensor:
    """scale * linear(x).  # scale (rows,)"""
    return scale.to(x.dtype) * linear(x)  # type: ignore[no-any-return]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention, causal without a mask; consecutive query heads share a key/value head.

    q (batch, time, heads, head_width), k, v (batch, seen, kv_heads, head_width), mask as a cache's
    -> (batch, time, heads * head_width)
    """
    grouped = q.size(2) > k.size(2)
    # (batch, time, heads, head_width) -> (batch, heads, time, head_width)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=grouped)
    return y.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Causal self-attention with grouped key/value heads and a learned gain per query head.

    `attend` and `scaled` may be replaced by functions of the same values that train faster.
    """

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.config = config
        kv_width = config.kv_heads * (config.d_model // config.heads)
        self.query = nn.Linear(config.d_model, config.d_model, bias=False)
        self.key = nn.Linear(config.d_model, kv_width, bias=False)
        self.value = nn.Linear(config.d_model, kv_width, bias=False)
        self.out = nn.Linear(config.d_model, config.d_model, bias=False)
        self.gain = nn.Parameter(torch.full((config.heads,), config.qk_gain))
        self.attend, self.scaled = attend, scaled
        nn.init.zeros_(self.out.weight)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, scale: Tensor, cache: "Cache | None" = None
    ) -> Tensor:
        batch, time, _ = x.shape
        q = self.query(x).view(batch, time, self.config.heads, -1)
        k = self.key(x).view(batch, time, self.config.kv_heads, -1)
        v = self.value(x).view(batch, time, self.config.kv_heads, -1)
        q = rotate(rms_norm(q), cos, sin) * self.gain.to(q.dtype)[:, None]
        k = rotate(rms_norm(k), cos, sin)
        mask = None
        if cache is not None:
            k, v, mask = cache.extend(k), cache.extend(v), cache.mask
        return self.scaled(self.out, self.attend(q, k, v.to(q.dtype), mask), scale)


class MLP(nn.Module):
    """scale * out(relu(up(x))^2)."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.d_model, config.mlp_hidden, bias=False)
        self.out = nn.Linear(config.mlp_hidden, config.d_model, bias=False)
        self.scaled = scaled
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.scaled(self.out, F.relu(self.up(x)).square(), scale)


class Block(nn.Module):
    """A mix with the trunk's input, then attention and MLP, each with a scale per channel."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.mlp = MLP(config)
        self.attention_scale = nn.Parameter(torch.ones(config.d_model))
        self.mlp_scale = nn.Parameter(torch.ones(config.d_model))
        ones, zeros = torch.ones(config.d_model), torch.zeros(config.d_model)
        self.residual_mix = nn.Parameter(torch.stack([ones, zeros]))

    def forward(
        self, x: Tensor, first: Tensor, cos: Tensor, sin: Tensor, cache: "Cache | None" = None
    ) -> Tensor:
        mix = self.residual_mix.to(x.dtype)
        x = mix[0] * x + mix[1] * first
        x = x + self.attention(rms_norm(x), cos, sin, self.attention_scale, cache)
        return x + self.mlp(rms_norm(x), self.mlp_scale)  # type: ignore[no-any-return]


class Trunk(nn.Module):
    """Blocks with U-Net skips: the first half's outputs are added, last in first out, before the
    blocks of the second half; with an odd count the last block gets none."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.skips = nn.Parameter(torch.ones(config.layers // 2, config.d_model))
        cos, sin = rotary_tables(config, config.sequence_length)
        self.register_buffer("cos", cos[:, None, :], persistent=False)  # broadcast over heads
        self.register_buffer("sin", sin[:, None, :], persistent=False)

    def forward(self, x: Tensor, cache: "Cache | None" = None) -> Tensor:
        """Embedded tokens to final hidden states.  # (batch, time, d_model) -> the same"""
        time = x.size(1)
        if time > self.config.sequence_length:
            raise ConfigError(
                f"a window of {time} tokens is longer than the model's "
                f"sequence_length of {self.config.sequence_length}"
            )
        x = first = rms_norm(x)
        at = slice(time) if cache is None else cache.positions
        cos, sin = self.cos[at].to(x.dtype), self.sin[at].to(x.dtype)
        half = self.config.layers // 2
        outputs: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            if half <= index < 2 * half:
                x = x + self.skips[index - half].to(x.dtype) * outputs.pop()
            x = block(x, first, cos, sin, cache)
            if index < half:
                outputs.append(x)
        return rms_norm(x)

    def param_groups(self) -> Iterator[ParamGroup]:
        """A partition of all trainable tensors into roles."""
        named = dict(self.named_parameters())
        linear = {name for name in named if name.endswith(".weight")}
        yield ParamGroup("matrix", {name: p for name, p in named.items() if name in linear})
        vectors = {name: p for name, p in named.items() if name not in linear and p.numel()}
        yield ParamGroup("vector", vectors)

    def stored(self) -> Iterator[Stored]:
        """Every tensor that costs bytes: matrices and vectors are what the groups call so."""
        for role, parameters in self.param_groups():
            for name, parameter in parameters.items():
                yield Stored(name, parameter, "matrix" if role == "matrix" else "vector")


class LanguageModel(nn.Module):
    """A trunk between the two ends of a head."""

    def __init__(self, trunk: Trunk, head: Head) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head

    def hidden(self, tokens: Tensor, rows: Tensor | None = None) -> Tensor:
        """Final hidden states; position t has seen tokens 0..t. `rows` as in `Head.embed`.

        tokens (batch, time) int64, time <= sequence_length -> (batch, time, d_model)
        """
        prev = F.pad(tokens[:, :-1], (1, 0), value=self.head.shape.bos_id)
        x = self.head.embed(tokens, prev, rows)
        if x.is_cuda and torch.is_autocast_enabled("cuda"):
            # All that blocks add to. The baseline's step takes 0.69 of the time on an H100; on a
            # CPU it would take 1.07.
            x = x.to(torch.get_autocast_dtype("cuda"))
        return self.trunk(x)  # type: ignore[no-any-return]

    def nll(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Nats of each of `targets`, the tokens after `tokens`.

        tokens, targets (batch, time) -> (batch * time,)
        """
        hidden = self.hidden(tokens)
        return self.head.nll(hidden.flatten(0, 1), targets.flatten(), tokens.flatten())

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The sum of `nll`, in little memory; for training.  # same shapes -> ()"""
        rows = self.head.matrix() if isinstance(self.head, Generates) else None
        hidden = self.hidden(tokens, rows)
        return self.head.loss(hidden.flatten(0, 1), targets.flatten(), tokens.flatten(), rows)

    def log_probs(self, tokens: Tensor) -> Tensor:
        """ln p of every possible next token at every position, in fp32; for scoring.

        tokens (batch, time) -> (batch, time, vocab)
        """
        hidden = self.hidden(tokens)
        flat = self.head.log_probs(hidden.flatten(0, 1), tokens.flatten())
        return flat.view(*tokens.shape, -1)

    def param_groups(self) -> Iterator[ParamGroup]:
        """A partition of all trainable tensors of both parts, by their full names."""
        for part in ("head", "trunk"):
            for role, parameters in getattr(self, part).param_groups():
                yield ParamGroup(role, {f"{part}.{name}": p for name, p in parameters.items()})

    def stored(self) -> list[Stored]:
        """Every tensor that costs bytes, by its full name, sorted by name."""
        tensors = [
            Stored(f"{part}.{name}", tensor, kind)
            for part in ("head", "trunk")
            for name, tensor, kind in getattr(self, part).stored()
        ]
        return sorted(tensors, key=lambda stored: stored.name)


def head_shape(tokenizer: Tokenizer, trunk: TrunkConfig) -> HeadShape:
    """What a head between this tokenizer and this trunk must know."""
    return HeadShape(
        vocab_size=tokenizer.vocab_size,
        d_model=trunk.d_model,
        bos_id=tokenizer.bos_id,
        bigram=tokenizer.bigram,
        token_bytes=tuple(tokenizer.token_bytes),
        successors=tokenizer.successors,
    )


def build_model(
    trunk: TrunkConfig, head: HeadConfig, shape: HeadShape, counts: Tensor | None = None
) -> LanguageModel:
    """A freshly initialised model; seed torch before. `counts` as in `HeadConfig.build`."""
    if shape.d_model != trunk.d_model:
        raise ConfigError(f"the head's width {shape.d_model} is not the trunk's {trunk.d_model}")
    return LanguageModel(Trunk(trunk), head.build(shape, counts))
