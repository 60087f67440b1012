"""What trains faster computes the same: values and gradients of the trunk's own functions."""

import pytest
import torch
from torch import Tensor, nn

from tokgolf.config import TrunkConfig
from tokgolf.model import MLP, Attention, Trunk, attend, scaled, within_documents
from tokgolf.training import attention
from tokgolf.training.attention import attend_in_parts, scaled_by_rows, speed_up

TRUNK = TrunkConfig(layers=2, d_model=16, heads=2, kv_heads=1, mlp_hidden=24, sequence_length=16)


def inputs(time: int, heads: int, kv_heads: int) -> list[Tensor]:
    torch.manual_seed(time)
    shapes = [(2, time, n, 6) for n in (heads, kv_heads, kv_heads)]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("heads", [(2, 2), (4, 2), (6, 1)], ids=str)
@pytest.mark.parametrize("time", [1, 2, 5, 7, 16])
def test_attention_in_parts_has_the_values_and_gradients_of_the_trunk_s_own(
    time: int, heads: tuple[int, int], masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "LEAST_QUERIES", 2)
    own = inputs(time, *heads)
    fast = [t.detach().clone().requires_grad_() for t in own]
    starts = torch.rand(2, time) < 0.3
    mask = within_documents(starts, None) if masked else None
    expected = attend(own[0], own[1], own[2], mask)
    found = attend_in_parts(fast[0], fast[1], fast[2], mask)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(expected)
    gradients = (torch.autograd.grad(y, x, upstream) for y, x in ((expected, own), (found, fast)))
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(two, one)


def test_attention_in_parts_of_bf16_is_bf16_and_right_but_for_its_rounding() -> None:
    q, k, v = (t.detach().bfloat16() for t in inputs(16, 4, 2))
    found = attend_in_parts(q, k, v)
    assert found.dtype == torch.bfloat16
    exact = attend(q.double(), k.double(), v.double(), None)
    # Queries, scores, weights and sums are rounded, each to 2^-8 of itself at most.
    assert float((found - exact).abs().max()) < 4 * 2**-8 * float(v.abs().max())


def test_too_many_scores_are_left_to_the_kernel_that_holds_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[tuple[int, ...]] = []

    def watched(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        called.append(tuple(q.shape))
        return attend(q, k, v, mask)

    monkeypatch.setattr(attention, "attend", watched)
    monkeypatch.setattr(attention, "MOST_SCORES", 2 * 2 * 8 * 8 - 1)
    q, k, v = inputs(8, 2, 1)
    torch.testing.assert_close(attend_in_parts(q, k, v), attend(q, k, v))
    assert called == [(2, 8, 2, 6)]


def test_scaling_by_rows_has_the_values_and_gradients_of_scaling_the_product() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(5, 7, bias=False).double()
    scale = torch.randn(7, dtype=torch.float64, requires_grad=True)
    x, upstream = torch.randn(9, 5, dtype=torch.float64), torch.randn(9, 7, dtype=torch.float64)
    gradients = []
    for way in (scaled, scaled_by_rows):
        y = way(linear, x, scale)
        torch.testing.assert_close(y, scale * (x @ linear.weight.T))
        gradients.append(torch.autograd.grad((y * upstream).sum(), [scale, linear.weight]))
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


def test_each_device_gets_its_own() -> None:
    trunk = Trunk(TRUNK)
    speed_up(trunk, torch.device("cpu"))
    own = [m for m in trunk.modules() if isinstance(m, Attention)]
    assert own and all(m.attend is attend_in_parts and m.scaled is scaled for m in own)
    speed_up(trunk, torch.device("cuda"))
    parts = [m for m in trunk.modules() if isinstance(m, Attention | MLP)]
    assert len(parts) == 4 and all(m.scaled is scaled_by_rows for m in parts)
