"""Mixed precision: which runs have it, and that their gradients are those of bf16 products."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tokgolf.config import TrunkConfig
from tokgolf.tokenizers import build_tokenizer
from tokgolf.training import RunConfig
from tokgolf.training.session import Session, uses_bf16

TRUNK = TrunkConfig(layers=1, d_model=16, heads=2, kv_heads=1, mlp_hidden=24, sequence_length=16)
CONFIG = RunConfig(trunk=TRUNK, batch_tokens=64, steps=12, compile="off")
TOKENIZER = build_tokenizer("byte", [], None)
CPU, GPU = torch.device("cpu"), torch.device("cuda")
TEXT = torch.randint(0, 257, (4, 17), generator=torch.Generator().manual_seed(3))


def session_of(precision: Any) -> Session:
    config = dataclasses.replace(CONFIG, precision=precision)
    session = Session(config, TOKENIZER, np.ones(257, np.int64), "cpu")
    torch.manual_seed(4)
    with torch.no_grad():  # at the start a trunk only normalises
        for parameter in session.model.trunk.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return session


def gradients_of(session: Session) -> dict[str, Tensor]:
    session.accumulate(TEXT[:, :-1], TEXT[:, 1:])
    return {n: p.grad for n, p in session.model.named_parameters() if p.grad is not None}


def test_a_step_in_bf16_has_the_gradients_of_bf16_products() -> None:
    twin = session_of("fp32").model
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = twin.loss(TEXT[:, :-1], TEXT[:, 1:]) / TEXT[:, 1:].numel()
    loss.backward()  # type: ignore[no-untyped-call]
    expected = {n: p.grad for n, p in twin.named_parameters() if p.grad is not None}
    mixed, whole = gradients_of(session_of("bf16")), gradients_of(session_of("fp32"))
    assert mixed.keys() == whole.keys() == expected.keys()
    for name, gradient in mixed.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-7)
    apart = {name: float((mixed[name] - whole[name]).norm() / whole[name].norm()) for name in whole}
    assert 1e-4 < apart["trunk.blocks.0.mlp.up.weight"] < 0.1
    assert 1e-4 < apart["head.table"] < 0.1


@pytest.mark.parametrize("hardware", [True, False])
def test_auto_is_bf16_where_the_hardware_has_it(
    hardware: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def supported(including_emulation: bool = True) -> bool:  # as torch's, on any GPU
        return hardware or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert uses_bf16("auto", GPU) is hardware
    has = "_is_mkldnn_bf16_supported"
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, has, lambda: hardware)
    assert uses_bf16("auto", CPU) is hardware
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not uses_bf16("auto", CPU)
    for device in (CPU, GPU):
        assert uses_bf16("bf16", device) and not uses_bf16("fp32", device)
