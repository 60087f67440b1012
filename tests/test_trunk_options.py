"""Options of the trunk together: all that are valid build, are causal, and survive a file."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokgolf.artifact.container import pack
from tokgolf.artifact.encode import encode, header_of
from tokgolf.artifact.load import decode_artifact
from tokgolf.config import TrunkConfig
from tokgolf.eval.incremental import Cache, hidden
from tokgolf.heads import head_config
from tokgolf.ledger import scoring_modules
from tokgolf.model import LanguageModel, build_model, head_shape
from tokgolf.quantize.rows import QuantConfig, Rounder
from tokgolf.tokenizers import build_tokenizer

LENGTH = 8
HEAD = head_config({"name": "tied"})
TOKENIZER = build_tokenizer("byte", [], None)
TOKENS = torch.randint(0, 257, (2, LENGTH), generator=torch.Generator().manual_seed(1))
TOKENS[0, 3] = TOKENIZER.bos_id


@st.composite
def trunks(draw: st.DrawFn) -> TrunkConfig:
    """Any valid trunk of up to four blocks and 16 channels."""
    layers = draw(st.integers(1, 4))
    kv_heads = draw(st.sampled_from([1, 2]))
    start = draw(st.integers(0, layers - 1))
    blocks = draw(st.integers(0, layers - start))
    loops = draw(st.integers(1, 3)) if blocks else 1
    counts = st.integers(0, layers)
    return TrunkConfig(
        layers=layers,
        d_model=16,
        heads=draw(st.sampled_from([2, 4])),
        kv_heads=kv_heads,
        mlp_hidden=20,
        sequence_length=LENGTH,
        skips=draw(st.booleans()),
        negative_slope=draw(st.sampled_from([0.0, 0.5])),
        rope_fraction=draw(st.sampled_from([0.5, 1.0])),
        layer_scale=draw(st.booleans()),
        out_norm=draw(st.booleans()),
        parallel=draw(counts),
        xsa=draw(counts),
        loop_start=start,
        loop_blocks=blocks,
        loops=loops,
        loops_scored=draw(st.integers(0, 4)) if blocks else 0,
        loop_rank=draw(st.integers(0, 3)) if loops > 1 else 0,
        smear=draw(st.booleans()),
        document_mask=draw(st.booleans()),
        orthogonal_init=draw(st.booleans()),
        value_embeddings=draw(counts),
    )


def model_of(trunk: TrunkConfig) -> LanguageModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(trunk, HEAD, head_shape(TOKENIZER, trunk))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.4)
    return model.eval().requires_grad_(False)


@given(trunks())
@settings(max_examples=40, deadline=None)
def test_its_weights_are_counted_and_each_is_in_one_group(trunk: TrunkConfig) -> None:
    model = model_of(trunk)
    listed = [name for _, group in model.trunk.param_groups() for name in group]
    assert sorted(listed) == sorted(n for n, p in model.trunk.named_parameters() if p.numel())
    assert trunk.num_params(257) == sum(p.numel() for p in model.trunk.parameters())
    paid = "tokgolf.lowrank" in scoring_modules(model, TOKENIZER)
    assert paid == bool(trunk.loop_rank)


@given(trunks(), st.integers(0, LENGTH - 1))
@settings(max_examples=40, deadline=None)
def test_no_position_sees_a_later_one(trunk: TrunkConfig, position: int) -> None:
    model = model_of(trunk).double()
    changed = TOKENS.clone()
    changed[:, position] = (changed[:, position] + 1) % 257
    before, after = (model.log_probs(tokens) for tokens in (TOKENS, changed))
    torch.testing.assert_close(after[:, :position], before[:, :position], rtol=0, atol=1e-12)
    assert not torch.equal(after[:, position], before[:, position])


@given(trunks())
@settings(max_examples=20, deadline=None)
def test_one_token_at_a_time_is_as_all_at_once(trunk: TrunkConfig) -> None:
    model = model_of(trunk).double()
    cache, parts = Cache(2, LENGTH), list[Tensor]()
    for at in range(LENGTH):
        cache.begin(0, torch.full((2, 1), at))
        parts.append(hidden(model, TOKENS[:, at : at + 1], cache))
    torch.testing.assert_close(torch.cat(parts, 1), model.hidden(TOKENS), rtol=0, atol=1e-9)


@given(trunks())
@settings(max_examples=12, deadline=None)
def test_a_file_gives_back_what_was_written(trunk: TrunkConfig) -> None:
    model = model_of(trunk)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    rounder = Rounder(model, QuantConfig(method="nearest"))
    quantized = {n: rounder.quantize(n, max(0.02, rounder.finest(n))) for n in rounder.stored}
    header = header_of(trunk, HEAD, trellis=False, lead=[])
    sections = encode(model.stored(), lambda s: quantized[s.name], False)
    again = decode_artifact(pack(header, {"tokenizer": TOKENIZER.asset(), **sections}))
    assert again.trunk == trunk
    for name, value in again.model.state_dict().items():
        torch.testing.assert_close(value, kept[name], rtol=0, atol=0.1)
    for name, numbers in quantized.items():
        rounder.restore(name, numbers)
    assert torch.equal(again.model.log_probs(TOKENS), model.log_probs(TOKENS))
