"""The loss of a linear head against a dense softmax in fp64: every softcap, precision and mask."""

import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tokgolf.heads import loss
from tokgolf.heads.base import Classifier
from tokgolf.heads.loss import linear_loss

N, VOCAB, WIDTH = 50, 40, 16
CAPS = [0.0, 0.5, 30.0, 40.0, 60.0, 1e3, 1e6]


@pytest.fixture(autouse=True)
def _chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setitem(loss.CHUNK, "cpu", 9 * VOCAB)


def classifier(softcap: float, scale: float = 1.0) -> tuple[Classifier, Tensor, Tensor]:
    """A softmax of every part but a mask, in fp64; targets and the tokens before"""
    sizes = ((N, WIDTH), (VOCAB, WIDTH), (VOCAB,), (VOCAB, VOCAB))
    features, matrix, bias, rows = (
        torch.randn(size, dtype=torch.float64).requires_grad_() for size in sizes
    )
    targets, prev = torch.randint(0, VOCAB, (2, N))
    with torch.no_grad():
        features.mul_(scale)
    return Classifier(features, matrix, bias, rows, None, softcap), targets, prev


def of_names(tensors: Iterable[Tensor]) -> dict[str, Any]:
    return dict(zip(Classifier._fields, tensors, strict=False))


def dense(c: Classifier, targets: Tensor, prev: Tensor) -> Tensor:
    assert c.bias is not None and c.bigrams is not None
    z = c.features @ c.matrix.T + c.bias + c.bigrams[prev]
    z = c.softcap * torch.tanh(z / c.softcap) if c.softcap else z
    return F.cross_entropy(z, targets, reduction="sum")


def gradients(nats: Tensor, c: Classifier) -> list[Tensor]:
    inputs = [tensor for tensor in c[:4] if tensor is not None]
    return [gradient.double() for gradient in torch.autograd.grad(nats, inputs)]


@pytest.mark.parametrize("softcap", CAPS)
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_the_loss_is_that_of_a_dense_softmax_under_every_softcap(
    softcap: float, scale: float
) -> None:
    c, targets, prev = classifier(softcap, scale)
    expected = dense(c, targets, prev)
    found = linear_loss(c, targets, prev)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-9)
    for a, b in zip(gradients(found, c), gradients(expected, c), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9 * float(b.abs().max()))


@pytest.mark.parametrize("softcap", CAPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_narrower_precision_costs_only_its_rounding(softcap: float, dtype: torch.dtype) -> None:
    c, targets, prev = classifier(softcap)
    rounded = [t.detach().to(dtype) for t in c[:4] if t is not None]
    wide = c._replace(**of_names(t.double().requires_grad_() for t in rounded))
    tables = (t.float() for t in rounded[1:])  # as parameters are
    narrow = c._replace(**of_names(t.requires_grad_() for t in (rounded[0], *tables)))
    expected, found = dense(wide, targets, prev), linear_loss(narrow, targets, prev)
    loose = 1e-5 if dtype == torch.float32 else 0.02
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=loose)
    for a, b in zip(gradients(found, narrow), gradients(expected, wide), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2 * loose * float(b.abs().max()))


@pytest.mark.parametrize("softcap", [0.0, 30.0, 1e3])
def test_a_target_that_cannot_follow_has_infinite_nats(softcap: float) -> None:
    c, targets, prev = classifier(softcap)
    successors = torch.full((VOCAB, VOCAB // 8), 255, dtype=torch.uint8)
    c = c._replace(successors=successors)
    assert torch.isfinite(linear_loss(c, targets, prev))
    successors[prev[0], targets[0] // 8] = 0
    assert linear_loss(c, targets, prev).item() == math.inf
