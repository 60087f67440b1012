"""The shared transformer trunk, and the language model that joins it to a head.

The trunk with its default config is the challenge's naive baseline re-implemented from its
description (openai/parameter-golf, record 2026-03-17): RMSNorm without weights, no biases,
rotary attention with normalised queries and keys and grouped key/value heads, relu^2 MLP, a mix
of the first residual into every block, U-Net skips. A head gives it vectors and takes hidden states
back; it sees tokens only for value embeddings.

Axes: batch, time, d_model, heads, kv_heads, head_width, mlp_hidden.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokgolf.config import SMEAR_INPUTS, TrunkConfig
from tokgolf.errors import ConfigError
from tokgolf.heads.base import (
    Generates,
    Head,
    HeadConfig,
    HeadShape,
    ParamGroup,
    Stored,
    StoredKind,
)
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


RMS_EPS = 2.0**-23
"""Added to a mean square: fp32's, in every precision."""


def rms_norm(x: Tensor) -> Tensor:
    """Root-mean-square norm over the last axis, without weights.

    Embeddings may be so small that what is added to their mean square counts (`RMS_EPS`).
    """
    return F.rms_norm(x, (x.size(-1),), eps=RMS_EPS)


def rotary_tables(config: TrunkConfig, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary embedding.  # each (length, rotary_width / 2)

    Computed in double precision: the tables are regenerated on load, and must not depend on how
    a library evaluates a float32 power.
    """
    width = config.rotary_width()
    frequency = config.rope_base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle = torch.outer(torch.arange(length, dtype=torch.float64), frequency)
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the two halves of the last axis, (a cos + b sin, b cos - a sin), or of its start."""
    half = cos.size(-1)
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos + b * sin, b * cos - a * sin, rest], dim=-1)


def within_documents(starts: Tensor, cache: "Cache | None") -> Tensor:
    """Which positions each may see: the earlier ones of its document.

    starts (batch, time) bool -> (batch, 1, time, seen) bool
    """
    seen = starts.long() if cache is None else cache.extend(starts.long())
    document = seen.cumsum(1)
    own = document if cache is None else document.gather(1, cache.positions)
    same = (own[:, :, None] == document[:, None, :])[:, None]
    return same.tril() if cache is None else same & cache.mask


def scaled(linear: nn.Linear, x: Tensor, scale: Tensor) -> Tensor:
    """scale * linear(x).  # scale (rows,)"""
    return scale.to(x.dtype) * linear(x)  # type: ignore[no-any-return]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention, causal without a mask; consecutive query heads share a key/value head.

    q (batch, time, heads, head_width), k, v (batch, seen, kv_heads, head_width), mask
    (batch, 1, time, seen) bool
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

    def __init__(self, config: TrunkConfig, index: int) -> None:
        super().__init__()
        self.config = config
        self.exclusive = index >= config.layers - config.xsa
        kv_width = config.kv_heads * (config.d_model // config.heads)
        self.query = nn.Linear(config.d_model, config.d_model, bias=False)
        self.key = nn.Linear(config.d_model, kv_width, bias=False)
        self.value = nn.Linear(config.d_model, kv_width, bias=False)
        self.out = nn.Linear(config.d_model, config.d_model, bias=False)
        self.gain = nn.Parameter(torch.full((config.heads,), config.qk_gain))
        self.attend, self.scaled = attend, scaled
        nn.init.zeros_(self.out.weight)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        scale: Tensor,
        mask: Tensor | None = None,
        cache: "Cache | None" = None,
        added: Tensor | None = None,
    ) -> Tensor:
        batch, time, _ = x.shape
        q = self.query(x).view(batch, time, self.config.heads, -1)
        k = self.key(x).view(batch, time, self.config.kv_heads, -1)
        v = self.value(x).view(batch, time, self.config.kv_heads, -1)
        if added is not None:
            v = v + added.to(v.dtype).view_as(v)
        q = rotate(rms_norm(q), cos, sin) * self.gain.to(q.dtype)[:, None]
        k = rotate(rms_norm(k), cos, sin)
        own = v
        if cache is not None:
            k, v = cache.extend(k), cache.extend(v)
        y = self.attend(q, k, v.to(q.dtype), mask)
        if self.config.out_norm:
            y = rms_norm(y)
        if self.exclusive:  # last, as it leaves nothing at the first position: no norm of that
            # (batch, time, kv_heads, groups, head_width), every query head beside its own value
            own = F.normalize(own, dim=-1).to(y.dtype)[:, :, :, None]
            y = y.view(batch, time, self.config.kv_heads, -1, own.size(-1))
            y = (y - (y * own).sum(-1, keepdim=True) * own).flatten(2)
        return self.scaled(self.out, y, scale)


class MLP(nn.Module):
    """scale * out(relu(up(x))^2)."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.config = config
        self.up = nn.Linear(config.d_model, config.mlp_hidden, bias=False)
        self.out = nn.Linear(config.mlp_hidden, config.d_model, bias=False)
        self.scaled = scaled
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        slope = self.config.negative_slope
        x = self.up(x)
        x = (F.leaky_relu(x, slope) if slope else F.relu(x)).square()
        return self.scaled(self.out, rms_norm(x) if self.config.out_norm else x, scale)


class Block(nn.Module):
    """A mix with the trunk's input, then attention and MLP, each with a scale per channel."""

    def __init__(self, config: TrunkConfig, index: int) -> None:
        super().__init__()
        self.read_scale = (index + 1) ** -0.5 if config.layer_scale else 1.0
        self.parallel = index >= config.layers - config.parallel
        self.attention = Attention(config, index)
        self.mlp = MLP(config)
        self.attention_scale = nn.Parameter(torch.ones(config.d_model))
        self.mlp_scale = nn.Parameter(torch.ones(config.d_model))
        ones, zeros = torch.ones(config.d_model), torch.zeros(config.d_model)
        self.residual_mix = nn.Parameter(torch.stack([ones, zeros]))
        if config.loop_rank and 0 <= index - config.loop_start < config.loop_blocks:
            from tokgolf.lowrank import LowRank

            self.loops = LowRank(self, config.loops - 1, config.loop_rank)

    def forward(
        self,
        x: Tensor,
        first: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None = None,
        cache: "Cache | None" = None,
        added: Tensor | None = None,
    ) -> Tensor:
        mix = self.residual_mix.to(x.dtype)
        x = mix[0] * x + mix[1] * first
        read = self._read(x)
        x = x + self.attention(read, cos, sin, self.attention_scale, mask, cache, added)
        read = read if self.parallel else self._read(x)
        return x + self.mlp(read, self.mlp_scale)  # type: ignore[no-any-return]

    def _read(self, x: Tensor) -> Tensor:
        x = rms_norm(x)
        return x if self.read_scale == 1 else x * self.read_scale


class Trunk(nn.Module):
    """Blocks with U-Net skips: the first half's outputs are added, last in first out, before the
    blocks of the second half; with an odd count the last block gets none. Of a block that is
    applied several times this is the first time."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: TrunkConfig, vocab_size: int = 0) -> None:
        super().__init__()
        self.config = config
        self.values: nn.Parameter | None = None
        if count := config.value_embeddings:
            kv_width = config.kv_heads * (config.d_model // config.heads)
            self.values = nn.Parameter(torch.zeros(vocab_size, kv_width))
            self.value_scales = nn.Parameter(torch.ones(count))
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.layers))
        half = config.layers // 2 if config.skips else 0
        self.skips = nn.Parameter(torch.ones(half, config.d_model))
        # The gate's weights, then how much it lets through.
        self.smear = nn.Parameter(torch.zeros(SMEAR_INPUTS + 1)) if config.smear else None
        if config.orthogonal_init:
            for name, parameter in self.blocks.named_parameters():
                if name.endswith(".weight") and not name.endswith("out.weight"):
                    nn.init.orthogonal_(parameter)
        cos, sin = rotary_tables(config, config.sequence_length)
        self.register_buffer("cos", cos[:, None, :], persistent=False)  # broadcast over heads
        self.register_buffer("sin", sin[:, None, :], persistent=False)

    def forward(
        self,
        x: Tensor,
        cache: "Cache | None",
        starts: Tensor,
        tokens: Tensor,
    ) -> Tensor:
        """Embedded tokens to final hidden states; `starts` are documents' first positions.

        x (batch, time, d_model), starts (batch, time) bool, tokens (batch, time)
        -> (batch, time, d_model)
        """
        time = x.size(1)
        if time > self.config.sequence_length:
            raise ConfigError(
                f"a window of {time} tokens is longer than the model's "
                f"sequence_length of {self.config.sequence_length}"
            )
        if self.smear is not None:
            x = x + self._smeared(x, cache, starts)
        x = first = rms_norm(x)
        at = slice(time) if cache is None else cache.positions
        cos, sin = self.cos[at].to(x.dtype), self.sin[at].to(x.dtype)
        mask = None if cache is None else cache.mask
        if self.config.document_mask:
            mask = within_documents(starts, cache)
        half = len(self.skips)
        outputs: list[Tensor] = []
        applied: list[int] = []
        for index in self.config.order(scored=not self.training):
            again = applied.count(index)
            applied.append(index)
            if half <= index < 2 * half and not again:
                x = x + self.skips[index - half].to(x.dtype) * outputs.pop()
            added, place = None, index - self.config.layers + self.config.value_embeddings
            if self.values is not None and place >= 0:
                added = self.value_scales[place] * F.embedding(tokens, self.values)
            block, given = self.blocks[index], (x, first, cos, sin, mask, cache, added)
            if again and self.config.loop_rank:
                x = block.get_submodule("loops")(block, again, given)
            else:
                x = block(*given)
            if index < half and not again:
                outputs.append(x)
        return rms_norm(x)

    def _smeared(self, x: Tensor, cache: "Cache | None", starts: Tensor) -> Tensor:
        """What the position before adds.  # (batch, time, d_model), (batch, time) -> as x"""
        assert self.smear is not None
        before = F.pad(x[:, :-1], (0, 0, 1, 0)) if cache is None else cache.shift(x, 0)
        smear = self.smear.to(x.dtype)
        gate = smear[-1] * torch.sigmoid(x[..., :SMEAR_INPUTS] @ smear[:-1])
        gate = gate.masked_fill(starts, 0)
        return gate[..., None] * before

    def param_groups(self) -> Iterator[ParamGroup]:
        """A partition of all trainable tensors into roles."""
        named = dict(self.named_parameters())
        linear = {name for name in named if name.endswith(".weight") or ".loops." in name}
        yield ParamGroup("matrix", {name: p for name, p in named.items() if name in linear})
        vectors = {name: p for name, p in named.items() if name not in linear and p.numel()}
        yield ParamGroup("vector", vectors)

    def stored(self) -> Iterator[Stored]:
        """Every tensor that costs bytes: matrices and vectors are what the groups call so."""
        for role, parameters in self.param_groups():
            for name, parameter in parameters.items():
                vector: StoredKind = "table" if name == "values" else "vector"
                yield Stored(name, parameter, "matrix" if role == "matrix" else vector)


class LanguageModel(nn.Module):
    """A trunk between the two ends of a head."""

    def __init__(self, trunk: Trunk, head: Head) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head

    def hidden(self, tokens: Tensor, table: Tensor | None = None) -> Tensor:
        """Final hidden states; position t has seen tokens 0..t. `table` as in `Head.embed`.

        tokens (batch, time) int64, time <= sequence_length -> (batch, time, d_model)
        """
        bos = self.head.shape.bos_id
        prev = F.pad(tokens[:, :-1], (1, 0), value=bos)
        x = self.head.embed(tokens, prev, table)
        if x.is_cuda and torch.is_autocast_enabled("cuda"):
            # All that blocks add to. The baseline's step takes 0.69 of the time on an H100; on a
            # CPU it would take 1.07.
            x = x.to(torch.get_autocast_dtype("cuda"))
        return self.trunk(x, None, tokens == bos, tokens)  # type: ignore[no-any-return]

    def nll(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Nats of each of `targets`, the tokens after `tokens`.

        tokens, targets (batch, time) -> (batch * time,)
        """
        hidden = self.hidden(tokens)
        return self.head.nll(hidden.flatten(0, 1), targets.flatten(), tokens.flatten())

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The sum of `nll`, in little memory; for training.  # same shapes -> ()"""
        table = self.head.matrix() if isinstance(self.head, Generates) else None
        hidden = self.hidden(tokens, table)
        return self.head.loss(hidden.flatten(0, 1), targets.flatten(), tokens.flatten(), table)

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
    return LanguageModel(Trunk(trunk, shape.vocab_size), head.build(shape, counts))
