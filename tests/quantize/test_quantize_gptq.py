"""The second moments of every layer's inputs, against the definition."""

import numpy as np
import pytest
import torch

from tokgolf.config import TrunkConfig
from tokgolf.heads import HeadShape, head_config
from tokgolf.heads.base import LinearHead
from tokgolf.model import build_model
from tokgolf.quantize.gptq import input_hessians

TRUNK = TrunkConfig(layers=2, d_model=16, heads=2, kv_heads=1, mlp_hidden=24, sequence_length=8)
SHAPE = HeadShape(vocab_size=300, d_model=16, bos_id=256)


@pytest.mark.parametrize("name", ["tied", "factorized"])
def test_every_linear_layer_and_the_stored_classifier_has_a_hessian(name: str) -> None:
    tokens = torch.randint(0, 300, (4, 8), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    options = {"rank": 8} if name == "factorized" else {}
    model = build_model(TRUNK, head_config({"name": name, **options}), SHAPE)
    hessians = input_hessians(model, [tokens[:2], tokens[2:]])
    linear = {s.name for s in model.stored() if s.kind == "matrix" and "trunk" in s.name}
    assert set(hessians) == linear | {"head.table"}
    assert isinstance(model.head, LinearHead)
    hidden = model.hidden(tokens).flatten(0, 1)
    hidden = model.head.features(hidden, tokens.flatten()).detach().double()
    expected = (hidden.T @ hidden / tokens.numel()).numpy()
    np.testing.assert_allclose(hessians["head.table"], expected, rtol=1e-5, atol=1e-8)
    for hessian in hessians.values():
        assert (hessian == hessian.T).all() and np.linalg.eigvalsh(hessian).min() > -1e-9
