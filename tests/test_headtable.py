"""What `tokgolf heads` tells: estimates beside what is built, floors, and the bottleneck."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tokgolf.config import TrunkConfig
from tokgolf.corpora import Corpus, Document
from tokgolf.errors import ConfigError
from tokgolf.heads import ADDONS, HEADS, HeadShape, head_config
from tokgolf.headtable import bottleneck, head_costs
from tokgolf.tokenizers import build_tokenizer
from tokgolf.training import RunConfig, train

VOCAB, WIDTH = 300, 64
SHAPE = HeadShape(
    vocab_size=VOCAB,
    d_model=WIDTH,
    bos_id=256,
    token_bytes=(*(bytes([b]) for b in range(256)), b"", *(bytes([97, b]) for b in range(43))),
    successors=lambda: np.full((VOCAB, 38), 255, dtype=np.uint8),
)


def test_every_head_and_addon_has_a_row() -> None:
    rows = head_costs(SHAPE, 8)
    assert [row.name for row in rows] == [*HEADS, *(f"+ {name}" for name in ADDONS)]
    for row in rows:
        assert not row.problem
        if not row.name.startswith("+"):
            assert row.params == head_config({"name": row.name}).num_params(SHAPE)


def test_bytes_are_bits_a_weight_a_step_a_row_and_packed_codes() -> None:
    rows = {row.name: row for row in head_costs(SHAPE, 5)}
    assert rows["tied"].stored_bytes == VOCAB * WIDTH * 5 // 8 + VOCAB
    # 75 codes: 7 bits for each of 300 tokens, and the width.
    tables = (VOCAB + 75) * WIDTH * 5 // 8 + VOCAB + 75
    assert rows["vq"].stored_bytes == tables + 1 + math.ceil(300 * 7 / 8)
    assert rows["+ canonical-mask"].stored_bytes == 0


def test_only_a_head_that_cannot_tell_tokens_apart_has_a_floor() -> None:
    floors = {row.name: row.floor_bits for row in head_costs(SHAPE, 5)}
    assert {name for name, floor in floors.items() if floor} == {"vq"}
    # 57 tokens have a code of their own, 243 share 18: nine of 14 tokens, nine of 13.
    weights = [1 / rank for rank in range(58, 301)]
    sizes = [14 if place % 18 < 9 else 13 for place in range(243)]
    bits = sum(w * math.log2(n) for w, n in zip(weights, sizes, strict=True))
    assert floors["vq"] == pytest.approx(bits / sum(1 / rank for rank in range(1, 301)), rel=1e-3)


@pytest.mark.parametrize("vocab", [257, 300, 1000])
@pytest.mark.parametrize("width", [64, 100])
def test_a_floor_is_that_of_the_codes_at_any_size(vocab: int, width: int) -> None:
    shape = HeadShape(vocab_size=vocab, d_model=width, bos_id=256)
    found = next(row.floor_bits for row in head_costs(shape, 5) if row.name == "vq")
    counts = (1e9 / torch.arange(1, vocab + 1)).long()
    codes = head_config({"name": "vq"}).build(shape, counts).state_dict()["codes"].tolist()
    bits = [math.log2(codes.count(code)) for code in codes]
    shares = (counts / counts.sum()).tolist()
    assert found == pytest.approx(sum(p * b for p, b in zip(shares, bits, strict=True)), rel=1e-6)


def test_a_head_that_does_not_fit_says_why() -> None:
    small = HeadShape(vocab_size=VOCAB, d_model=8, bos_id=256)
    rows = {row.name: row for row in head_costs(small, 5)}
    assert "rank 64 is greater than d_model 8" in rows["factorized"].problem
    assert "needs a tokenizer" in rows["+ canonical-mask"].problem
    assert rows["tied"].params == 2400


@pytest.mark.parametrize("bits", [0, -1, 33, math.nan])
def test_bits_out_of_range_are_refused(bits: float) -> None:
    with pytest.raises(ConfigError, match="bits"):
        head_costs(SHAPE, bits)


def trained(path: Path, head: dict[str, object]) -> Path:
    documents = [
        Document(str(i), f"document {i} is about {i * i}. ".encode() * 9) for i in range(9)
    ]
    corpus = Corpus(name="tiny", split=None, source=lambda: iter(documents))
    tokenizer = build_tokenizer("bpe", [document.data for document in documents], 270)
    trunk = TrunkConfig(
        layers=1, d_model=16, heads=2, kv_heads=1, mlp_hidden=16, sequence_length=16
    )
    config = RunConfig(
        trunk=trunk, head=head, batch_tokens=64, steps=4, warmdown_steps=0, compile="off"
    )
    train(config, tokenizer, corpus, path, device="cpu")
    return path


def test_a_bottleneck_is_the_share_of_the_gradient_that_a_head_passes_on(tmp_path: Path) -> None:
    wide = bottleneck(trained(tmp_path / "wide", {"name": "tied", "softcap": 0.0}))
    narrow = bottleneck(trained(tmp_path / "narrow", {"name": "factorized", "rank": 3}))
    assert (wide.rank, narrow.rank) == (16, 3)
    assert wide.isotropic == 16 / 270 and narrow.isotropic == 3 / 270
    assert 0 < narrow.rho < wide.rho < 1


def test_rho_agrees_with_autograd(tmp_path: Path) -> None:
    """g E is the gradient by the hidden state; U comes from E = U S V^T, so g U = g E V / S."""
    from tokgolf.artifact.checkpoint import load_run
    from tokgolf.artifact.export import calibration_tokens

    run = trained(tmp_path / "run", {"name": "tied", "softcap": 5.0})
    source = load_run(run)
    tokens = torch.cat(list(calibration_tokens(run, source)))  # the run has few: all are measured
    hidden = source.model.hidden(tokens[:, :-1]).flatten(0, 1).detach().requires_grad_()
    z = source.model.head.logits(hidden, tokens[:, :-1].flatten())
    raw = hidden @ source.model.head.state_dict()["table"].T
    g = torch.autograd.grad(
        torch.nn.functional.cross_entropy(z, tokens[:, 1:].flatten(), reduction="sum"), hidden
    )[0].double()
    table = source.model.head.state_dict()["table"].double()
    _, sizes, right = torch.linalg.svd(table, full_matrices=False)
    kept = ((g @ right.T) / sizes).square().sum()
    raw = raw.detach().requires_grad_()
    nats = torch.nn.functional.cross_entropy(
        5 * torch.tanh(raw / 5), tokens[:, 1:].flatten(), reduction="sum"
    )
    total = torch.autograd.grad(nats, raw)[0].double().square().sum()
    found = bottleneck(run)
    assert found.positions == len(g)
    assert found.rho == pytest.approx(float(kept / total), rel=1e-3)
