"""Value embeddings of the trunk: what they add, what they cost, and that a file gives them back."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tokgolf.artifact.checkpoint import FloatModel
from tokgolf.artifact.export import export_model
from tokgolf.artifact.load import decode_artifact
from tokgolf.config import TrunkConfig
from tokgolf.errors import ConfigError
from tokgolf.eval.contexts import unrolled, widened
from tokgolf.eval.incremental import Cache, hidden
from tokgolf.heads import head_config
from tokgolf.ledger import components_of
from tokgolf.model import LanguageModel, build_model, head_shape
from tokgolf.quantize.rows import QuantConfig
from tokgolf.tokenizers import build_tokenizer

TRUNK = TrunkConfig(
    layers=3,
    d_model=16,
    heads=4,
    kv_heads=2,
    mlp_hidden=24,
    sequence_length=12,
    value_embeddings=2,
)
BYTES = build_tokenizer("byte", [], None)
HEAD = head_config({"name": "tied"})


def model_of(**changes: Any) -> LanguageModel:
    trunk = dataclasses.replace(TRUNK, **changes)
    torch.manual_seed(1)
    model = build_model(trunk, HEAD, head_shape(BYTES, trunk))
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            parameter.normal_(0, 0.4)
    return model.eval()


def random_tokens(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(2))


def test_each_token_adds_its_row_to_the_values_of_the_last_blocks() -> None:
    model, twin = model_of(), model_of()
    assert model.trunk.values is not None and twin.trunk.values is not None
    tokens, rows = random_tokens(2, 12), model.trunk.values.detach()
    with torch.no_grad():
        twin.trunk.values.zero_()
    for block, scale in ((1, 0), (2, 1)):
        factor = float(model.trunk.value_scales.detach()[scale])
        twin.trunk.get_submodule(f"blocks.{block}.attention.value").register_forward_hook(
            lambda module, inputs, output, factor=factor: output + factor * rows[tokens]
        )
    expected = twin.log_probs(tokens)
    torch.testing.assert_close(model.log_probs(tokens), expected, rtol=1e-5, atol=1e-5)
    for handle in ("blocks.1", "blocks.2"):
        twin.trunk.get_submodule(f"{handle}.attention.value")._forward_hooks.clear()
    assert float((twin.log_probs(tokens) - expected).detach().abs().max()) > 1e-2


def test_they_show_no_position_a_later_token() -> None:
    model, tokens = model_of().double(), random_tokens(1, 12)
    before = model.log_probs(tokens)
    for position in (0, 5, 11):
        changed = tokens.clone()
        changed[0, position] = (tokens[0, position] + 1) % 256
        after = model.log_probs(changed)
        torch.testing.assert_close(after[0, :position], before[0, :position], rtol=0, atol=1e-12)


def test_every_tensor_of_theirs_of_a_tied_head_moves_within_three_steps() -> None:
    torch.manual_seed(0)
    model = build_model(TRUNK, HEAD, head_shape(BYTES, TRUNK))
    own = {n: p.detach().clone() for n, p in model.named_parameters() if ".value" in n}
    assert own.keys() >= {"trunk.values", "trunk.value_scales"}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(3):
        tokens = random_tokens(8, 13) + step
        optimizer.zero_grad()
        model.nll(tokens[:, :-1] % 256, tokens[:, 1:] % 256).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    now = dict(model.named_parameters())
    assert [name for name in own if torch.equal(now[name], own[name])] == []


def test_they_are_one_table_and_a_factor_for_each_block() -> None:
    model = model_of()
    kinds = {name: (tensor.shape, kind) for name, tensor, kind in model.stored()}
    assert kinds["trunk.values"] == ((257, 8), "table")
    assert kinds["trunk.value_scales"] == ((2,), "vector")
    assert components_of(model)["trunk.values"] == "trunk: values"
    count = sum(parameter.numel() for parameter in model.trunk.parameters())
    assert (
        TRUNK.num_params(257)
        == count
        == dataclasses.replace(TRUNK, value_embeddings=0).num_params(257) + 257 * 8 + 2
    )


def test_without_them_nothing_is_stored_or_said() -> None:
    off = dataclasses.replace(TRUNK, value_embeddings=0)
    assert "value_embeddings" not in off.stored()
    assert TRUNK.stored()["value_embeddings"] == 2
    assert not [name for name, _, _ in model_of(value_embeddings=0).stored() if ".values" in name]


def test_a_file_gives_them_back_and_charges_them() -> None:
    source = FloatModel(
        tokenizer=BYTES, model=model_of().requires_grad_(False), trunk=TRUNK, head=HEAD, state={}
    )
    artifact = export_model(source, QuantConfig(method="nearest", bits=6.0)).artifact
    assert dict(artifact.ledger.rows)["trunk: values"] > 257 * 8 * 4 / 8
    again = decode_artifact(artifact.data).model
    values = again.state_dict()["trunk.values"]
    torch.testing.assert_close(values, source.model.state_dict()["trunk.values"], rtol=0, atol=0.1)
    tokens = random_tokens(2, 12)
    assert torch.equal(again.log_probs(tokens), artifact.model.log_probs(tokens))
    other = again.log_probs((tokens + 1) % 256)
    assert not torch.equal(other, again.log_probs(tokens))


@pytest.mark.parametrize("change", ["none", "window", "loops"])
def test_one_token_at_a_time_is_as_all_at_once(change: str) -> None:
    model = model_of(loop_start=1, loop_blocks=2, loops=2)
    if change != "none":
        model = widened(model, 20) if change == "window" else unrolled(model, 3)
    tokens = random_tokens(1, 12)
    whole = model.hidden(tokens)
    cache = Cache(1, 12)
    for at in range(12):
        cache.begin(0, torch.tensor([[at]]))
        found = hidden(model, tokens[:, at : at + 1], cache)
        np.testing.assert_allclose(
            found[0, 0].detach().numpy(), whole[0, at].detach().numpy(), atol=1e-4
        )


def test_more_than_there_are_blocks_are_refused() -> None:
    with pytest.raises(ConfigError, match="value_embeddings is 4; it must be from 0 to 3"):
        dataclasses.replace(TRUNK, value_embeddings=4)
