"""The trunk against a slow twin, causality bit by bit, and the ledgers of the whole model."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from tokgolf.config import TrunkConfig
from tokgolf.heads import HeadShape, ParamGroup, Stored, head_config
from tokgolf.heads.base import LinearHead
from tokgolf.model import LanguageModel, Trunk, rms_norm

Array = npt.NDArray[np.float64]
Module = TypeVar("Module", bound=torch.nn.Module)

SHAPE = HeadShape(vocab_size=50, d_model=16, bos_id=3)

HEAD_OPTIONS: dict[str, dict[str, Any]] = {
    "tied": {"name": "tied"},
    "untied": {"name": "untied"},
    "factorized": {"name": "factorized", "rank": 8, "shared": False},
    "vq": {"name": "vq", "residual_rank": 4},
    "bigram-hash": {"name": "tied", "add": {"bigram-hash": {"buckets": 97, "dim": 8}}},
}
every_head = pytest.mark.parametrize("head", HEAD_OPTIONS)


def tiny(**changes: Any) -> TrunkConfig:
    shape = dict(layers=3, d_model=16, heads=4, kv_heads=2, mlp_hidden=24, sequence_length=12)
    return TrunkConfig(**{**shape, **changes})


TRUNKS = {
    "baseline shape": tiny(),
    "one layer": tiny(layers=1),
    "two layers": tiny(layers=2),
    "four layers": tiny(layers=4),
    "five layers": tiny(layers=5),
    "one key head": tiny(kv_heads=1),
    "as many key heads": tiny(kv_heads=4),
    "one head": tiny(heads=1, kv_heads=1),
    "narrow heads": tiny(heads=8, kv_heads=2, mlp_hidden=7),
    "other constants": tiny(rope_base=77.0, qk_gain=3.5),
    "leaky": tiny(negative_slope=0.5),
    "partial rope": tiny(heads=2, kv_heads=1, rope_fraction=0.5),
    "layer scale": tiny(layer_scale=True),
    "norms before projections": tiny(out_norm=True),
    "parallel": tiny(layers=4, parallel=2),
    "exclusive": tiny(xsa=2),
    "loop": tiny(layers=5, loop_start=1, loop_blocks=2, loops=3),
    "more loops in scoring": tiny(layers=4, loop_start=1, loop_blocks=2, loops_scored=2),
    "loop of low rank": tiny(
        layers=4, loop_start=1, loop_blocks=2, loops=3, loops_scored=5, loop_rank=2
    ),
    "no skips": tiny(layers=4, skips=False),
    "smear": tiny(smear=True),
    "orthogonal": tiny(orthogonal_init=True),
    "document mask": tiny(document_mask=True),
    "all at once": tiny(
        layers=6,
        negative_slope=0.3,
        rope_fraction=0.5,
        layer_scale=True,
        out_norm=True,
        parallel=2,
        xsa=4,
        loop_start=2,
        loop_blocks=3,
        loops=2,
        loops_scored=3,
        loop_rank=1,
        smear=True,
        document_mask=True,
        orthogonal_init=True,
    ),
}
OPTIONS = list(TRUNKS)[10:]
MATRICES = [
    *(f"attention.{name}.weight" for name in ("query", "key", "value", "out")),
    *(f"mlp.{name}.weight" for name in ("up", "out")),
]
every_trunk = pytest.mark.parametrize("config", TRUNKS.values(), ids=TRUNKS)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """A fixed seed and one thread (these tensors are too small for more), both put back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)


def randomised(module: Module) -> Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, 0.4)
    return module


def model_with(head: str = "tied", config: TrunkConfig | None = None) -> LanguageModel:
    built = head_config(HEAD_OPTIONS[head]).build(SHAPE, torch.arange(SHAPE.vocab_size))
    return randomised(LanguageModel(Trunk(config or tiny()), built))


def random_tokens(batch: int, time: int) -> Tensor:
    return torch.randint(0, SHAPE.vocab_size, (batch, time))


# The slow twin: one sequence, one head, one position at a time, in double precision.


def norm(x: Array) -> Array:
    result: Array = x / math.sqrt(float(np.mean(x * x)) + 2**-23)
    return result


def rotated(x: Array, position: int, config: TrunkConfig) -> Array:
    width, base = int(len(x) * config.rope_fraction), config.rope_base
    result = x.copy()
    for i in range(width // 2):
        angle = position * base ** (-2 * i / width)
        a, b = x[i], x[i + width // 2]
        result[i] = a * math.cos(angle) + b * math.sin(angle)
        result[i + width // 2] = b * math.cos(angle) - a * math.sin(angle)
    return result


def slow_attention(
    config: TrunkConfig, w: dict[str, Array], x: list[Array], index: int
) -> list[Array]:
    width = config.d_model // config.heads
    queries_per_key = config.heads // config.kv_heads
    outputs = [np.zeros(config.d_model) for _ in x]
    for head in range(config.heads):
        own = slice(head * width, (head + 1) * width)
        shared = head // queries_per_key
        key_rows = slice(shared * width, (shared + 1) * width)
        keys = [
            rotated(norm(w["attention.key.weight"][key_rows] @ xt), t, config)
            for t, xt in enumerate(x)
        ]
        values = [w["attention.value.weight"][key_rows] @ xt for xt in x]
        begins = [max((s for s in w["starts"] if s <= t), default=0) for t in range(len(x))]
        for t, xt in enumerate(x):
            query = rotated(norm(w["attention.query.weight"][own] @ xt), t, config)
            query = query * w["attention.gain"][head]
            begin = begins[t] if config.document_mask else 0
            scores = [float(query @ keys[s]) / math.sqrt(width) for s in range(begin, t + 1)]
            weights = [math.exp(score - max(scores)) for score in scores]
            for weight, value in zip(weights, values[begin:], strict=False):
                outputs[t][own] += weight / sum(weights) * value
    if config.out_norm:
        outputs = [norm(output) for output in outputs]
    for head in range(config.heads if index >= config.layers - config.xsa else 0):
        own, shared = slice(head * width, (head + 1) * width), head // queries_per_key
        for xt, output in zip(x, outputs, strict=True):
            value = w["attention.value.weight"][shared * width : (shared + 1) * width] @ xt
            output[own] -= (output[own] @ value) / (value @ value) * value
    return [w["attention.out.weight"] @ output for output in outputs]


def slow_mlp(config: TrunkConfig, w: dict[str, Array], x: Array) -> Array:
    hidden = w["mlp.up.weight"] @ x
    hidden = np.where(hidden > 0, hidden, config.negative_slope * hidden) ** 2
    if config.out_norm:
        hidden = norm(hidden)
    result: Array = w["mlp.out.weight"] @ hidden
    return result


def slow_block(
    config: TrunkConfig, w: dict[str, Array], x: list[Array], first: list[Array], index: int
) -> list[Array]:
    keep, back = w["residual_mix"]
    x = [keep * xt + back * ft for xt, ft in zip(x, first, strict=True)]
    divisor = math.sqrt(index + 1) if config.layer_scale else 1.0
    before = [norm(xt) / divisor for xt in x]
    attended = slow_attention(config, w, before, index)
    x = [xt + w["attention_scale"] * at for xt, at in zip(x, attended, strict=True)]
    if index < config.layers - config.parallel:
        before = [norm(xt) / divisor for xt in x]
    mixed = [slow_mlp(config, w, bt) for bt in before]
    return [xt + w["mlp_scale"] * mt for xt, mt in zip(x, mixed, strict=True)]


def slow_smear(w: Array, x: Array, starts: list[int]) -> Array:
    result = x.copy()
    for t in range(1, len(x)):
        if t not in starts:
            result[t] += w[12] / (1 + math.exp(-float(x[t][:12] @ w[:12]))) * x[t - 1]
    return result


def slow_trunk(
    trunk: Trunk, embedded: Array, nearest_first: bool = True, starts: tuple[int, ...] = ()
) -> Array:
    """One sequence through the trunk; `nearest_first=False` pairs the skips the wrong way."""
    config = trunk.config
    weights = {n: p.detach().double().numpy() for n, p in trunk.named_parameters()}
    if config.smear:
        embedded = slow_smear(weights["smear"], embedded, [*starts])
    x = first = [norm(row) for row in embedded]
    half = config.layers // 2 if config.skips else 0
    outputs: dict[int, list[Array]] = {}
    times: Counter[int] = Counter()
    end = config.loop_start + config.loop_blocks
    loops = config.loops if trunk.training else config.loops_scored or config.loops
    sequence = [*range(end), *[*range(config.loop_start, end)] * (loops - 1)]
    for index in [*sequence, *range(end, config.layers)]:
        skip = index - half
        if 0 <= skip < half and index not in outputs:
            source = half - 1 - skip if nearest_first else skip
            pairs = zip(x, outputs[source], strict=True)
            x = [xt + weights["skips"][skip] * ot for xt, ot in pairs]
        prefix = f"blocks.{index}."
        own = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
        if config.loop_rank and (again := min(times[index], config.loops - 1)):
            for place, name in enumerate(MATRICES, 6 * (again - 1)):
                own[name] = own[name] + own[f"loops.out.{place}"] @ own[f"loops.into.{place}"]
        times[index] += 1
        x = slow_block(config, {**own, "starts": np.array(starts)}, x, first, index)
        outputs.setdefault(index, x)  # of several times the first
    return np.stack([norm(xt) for xt in x])


def through(trunk: Trunk, x: torch.Tensor, starts: torch.Tensor | None = None) -> torch.Tensor:
    """A trunk without value embeddings, by itself."""
    starts = torch.zeros(x.shape[:2], dtype=torch.bool) if starts is None else starts
    result: torch.Tensor = trunk(x, None, starts, torch.zeros(x.shape[:2], dtype=torch.int64))
    return result


@pytest.mark.parametrize("training", [True, False])
@every_trunk
def test_the_trunk_agrees_with_its_slow_twin(config: TrunkConfig, training: bool) -> None:
    trunk = randomised(Trunk(config)).double().train(training)
    embedded = torch.randn(2, 9, 16, dtype=torch.float64)
    starts = torch.zeros(2, 9, dtype=torch.bool)
    starts[:, [0, 4]] = True
    fast = through(trunk, embedded, starts).detach().numpy()
    for row in range(2):
        slow = slow_trunk(trunk, embedded[row].numpy(), starts=(0, 4))
        # The rotary tables are rounded to float32.
        np.testing.assert_allclose(fast[row], slow, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "orthogonal"])
def test_every_option_changes_what_a_trunk_computes(name: str) -> None:
    changed = TRUNKS[name]
    plain = tiny(layers=changed.layers, heads=changed.heads, kv_heads=changed.kv_heads)
    trunks = [Trunk(config).eval() for config in (changed, plain)]
    for trunk in trunks:
        torch.manual_seed(1)
        randomised(trunk)
    shared = {name: value for name, value in trunks[0].state_dict().items() if value.numel()}
    trunks[1].load_state_dict(shared, strict=False)
    x, starts = torch.randn(1, 9, 16), torch.arange(9)[None] % 5 == 0
    assert (
        float((through(trunks[0], x, starts) - through(trunks[1], x, starts)).detach().abs().max())
        > 1e-2
    )


def test_orthogonal_weights_are_orthogonal_and_the_others_as_they_were() -> None:
    trunk = Trunk(tiny(orthogonal_init=True))
    for name, weight in trunk.named_parameters():
        if name.endswith("out.weight"):
            assert not weight.any()
        elif name.endswith(".weight"):
            w = weight if weight.size(0) <= weight.size(1) else weight.T
            torch.testing.assert_close(w @ w.T, torch.eye(len(w)))


def test_a_block_that_is_applied_twice_is_stored_once() -> None:
    assert tiny(loop_blocks=3, loops=4).num_params() == tiny().num_params()
    assert tiny(layers=4, loop_start=1, loop_blocks=2, loops=2).order(scored=False) == [
        *(0, 1, 2, 1, 2, 3)
    ]


def test_what_a_later_pass_adds_is_zero_at_first_and_its_own() -> None:
    config = tiny(layers=4, loop_start=1, loop_blocks=2, loops=3, loop_rank=2)
    trunk, plain = randomised(Trunk(config)), Trunk(dataclasses.replace(config, loop_rank=0))
    assert all(not p.any() for n, p in Trunk(config).named_parameters() if ".loops.out." in n)
    plain.load_state_dict(trunk.state_dict(), strict=False)
    x, outs = torch.randn(1, 9, 16), trunk.get_submodule("blocks.1.loops.out")
    adds = [p for n, p in trunk.named_parameters() if ".loops.out." in n]
    with torch.no_grad():
        kept = [p.clone() for p in outs.parameters()]
        for parameter in adds:
            parameter.zero_()
        assert torch.equal(through(trunk, x), through(plain, x))
        seen = [through(trunk, x)]
        for parameter, value in zip(outs.parameters(), kept, strict=True):
            parameter.copy_(value)
            seen.append(through(trunk, x))
            parameter.zero_()
    assert len(seen) == 13  # two passes, six matrices
    different = {tuple(y.flatten().tolist()) for y in seen}
    assert len(different) == 13


def test_passes_beyond_the_trained_ones_are_as_the_last() -> None:
    config = tiny(layers=3, loop_start=1, loop_blocks=1, loops=2, loops_scored=4, loop_rank=3)
    more = dataclasses.replace(config, loops=4, loops_scored=0)
    trunk, twin = randomised(Trunk(config)).eval(), Trunk(more).eval()
    values = {**trunk.state_dict(), **dict.fromkeys(twin.state_dict())}
    for name in values:
        head, dot, last = name.rpartition(".")
        source = f"{head}.{int(last) % 6}" if ".loops." in name else name
        values[name] = trunk.state_dict()[source]
    twin.load_state_dict(values)
    x = torch.randn(1, 9, 16)
    assert torch.equal(through(trunk, x), through(twin, x))


@pytest.mark.parametrize("layers", [4, 5, 6, 7])
def test_skips_are_last_in_first_out(layers: int) -> None:
    trunk = randomised(Trunk(tiny(layers=layers))).double()
    embedded = torch.randn(1, 6, 16, dtype=torch.float64)
    fast = through(trunk, embedded)[0].detach().numpy()
    right, wrong = (slow_trunk(trunk, embedded[0].numpy(), order) for order in (True, False))
    np.testing.assert_allclose(fast, right, rtol=0, atol=1e-5)
    assert np.abs(fast - wrong).max() > 1e-2


def test_the_model_agrees_with_the_slow_twin_between_two_lookups() -> None:
    model = model_with("tied")
    tokens = random_tokens(1, 12)
    table = dict(model.head.named_parameters())["table"].detach().double().numpy()
    hidden = slow_trunk(model.trunk, table[tokens[0].numpy()])
    z = 30 * np.tanh(hidden @ table.T / 30)
    expected = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    got = model.log_probs(tokens)[0].detach().numpy()
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)  # the model is fp32
    targets = random_tokens(1, 12)
    nll = model.nll(tokens, targets).detach().double().numpy()
    np.testing.assert_allclose(nll, -expected[range(12), targets[0]], rtol=0, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-4, 1e-3, 1.0])
def test_a_norm_is_the_same_in_every_precision(scale: float) -> None:
    x = scale * torch.randn(4, 64, dtype=torch.float64)
    expected = x / (x.square().mean(-1, keepdim=True) + 2**-23).sqrt()
    torch.testing.assert_close(rms_norm(x), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(rms_norm(x.float()).double(), expected, rtol=1e-6, atol=0)


def test_a_fresh_trunk_only_normalises() -> None:
    # All output projections start at zero, and each skip adds a multiple of the same vector.
    trunk, x = Trunk(tiny(layers=5)), torch.randn(2, 12, 16)
    expected = x / x.square().mean(dim=-1, keepdim=True).sqrt()
    torch.testing.assert_close(through(trunk, x), expected, rtol=1e-5, atol=1e-5)


# Causality.


@every_head
def test_a_token_changes_the_scores_at_its_position_and_later_only(head: str) -> None:
    model = model_with(head)
    tokens = random_tokens(2, 12)
    before = model.log_probs(tokens)
    for position in range(12):
        changed = tokens.clone()
        changed[:, position] = (changed[:, position] + 1) % SHAPE.vocab_size
        after = model.log_probs(changed)
        assert torch.equal(after[:, :position], before[:, :position])  # bit for bit
        differs = (after[:, position:] != before[:, position:]).any(dim=-1)
        assert differs.all()


@pytest.mark.parametrize("name", OPTIONS)
def test_no_option_lets_a_position_see_a_later_one(name: str) -> None:
    model = model_with("tied", TRUNKS[name]).double()
    tokens = random_tokens(1, 12)
    before = model.log_probs(tokens)
    for position in (0, 5, 11):
        changed = tokens.clone()
        changed[0, position] = (tokens[0, position] + 1) % SHAPE.vocab_size
        after = model.log_probs(changed)
        torch.testing.assert_close(after[0, :position], before[0, :position], rtol=0, atol=1e-12)
        assert not torch.equal(after[0, position], before[0, position])


@pytest.mark.parametrize("smear", [False, True])
def test_a_masked_document_is_what_it_is_alone(smear: bool) -> None:
    model = model_with("tied", tiny(document_mask=True, smear=smear)).double()
    bos, (text,) = SHAPE.bos_id, random_tokens(1, 12)
    text[text == bos] = 0
    text[[0, 4, 9]] = bos
    together = model.hidden(text[None])
    for begin, end in ((0, 4), (4, 9), (9, 12)):
        # Positions are relative, but for the rounding of the tables.
        alone = model.hidden(text[None, begin:end])
        torch.testing.assert_close(together[:, begin:end], alone, rtol=0, atol=1e-5)


def test_nothing_smears_across_the_start_of_a_document() -> None:
    """Only the input's smearing: attention sees across documents, so it is taken out."""
    model = model_with("tied", tiny(layers=1, smear=True))
    with torch.no_grad():
        model.trunk.get_parameter("blocks.0.attention.out.weight").zero_()
    tokens = torch.tensor([[7, 8, SHAPE.bos_id, 9]])
    other = torch.tensor([[7, 6, SHAPE.bos_id, 9]])
    one, two = model.hidden(tokens), model.hidden(other)
    assert torch.equal(one[:, 2:], two[:, 2:])
    other = torch.tensor([[7, 8, 5, 9]])
    assert not torch.equal(model.hidden(other)[:, 3], one[:, 3])


@every_head
def test_rows_of_a_batch_are_independent(head: str) -> None:
    model = model_with(head)
    tokens = random_tokens(3, 12)
    together = model.log_probs(tokens)
    alone = torch.cat([model.log_probs(row[None]) for row in tokens])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    changed = tokens.clone()
    changed[1] = (changed[1] + 1) % SHAPE.vocab_size
    after = model.log_probs(changed)
    assert torch.equal(after[[0, 2]], together[[0, 2]])
    assert not torch.equal(after[1], together[1])


@every_head
def test_a_shorter_window_is_the_start_of_a_longer_one(head: str) -> None:
    model = model_with(head)
    tokens = random_tokens(2, 12)
    full = model.log_probs(tokens)
    for time in (1, 2, 7, 11):
        short = model.log_probs(tokens[:, :time])
        assert short.shape == (2, time, SHAPE.vocab_size)
        torch.testing.assert_close(short, full[:, :time], rtol=1e-5, atol=1e-5)


class Recorder(LinearHead):
    """A head that passes everything to another one and keeps the `prev` it was given."""

    def __init__(self, inner: LinearHead) -> None:
        super().__init__(inner.shape, inner.softcap)
        self.inner = inner
        self.seen: list[tuple[str, list[int]]] = []

    def _embed(self, tokens: Tensor, prev: Tensor) -> Tensor:
        self.seen.append(("embed", prev.flatten().tolist()))
        return self.inner.embed(tokens, prev)

    def features(self, hidden: Tensor, prev: Tensor) -> Tensor:
        self.seen.append(("features", prev.flatten().tolist()))
        return self.inner.features(hidden, prev)

    def matrix(self) -> Tensor:
        return self.inner.matrix()

    def bias(self) -> Tensor | None:
        return self.inner.bias()

    def _stored(self) -> Iterator[Stored]:
        return self.inner.stored()

    def _param_groups(self) -> Iterator[ParamGroup]:
        return self.inner.param_groups()


def test_prev_is_the_token_before_the_input_and_before_the_target() -> None:
    inner = head_config({"name": "tied"}).build(SHAPE)
    assert isinstance(inner, LinearHead)
    head = Recorder(inner)
    model = LanguageModel(Trunk(tiny()), head)
    tokens = torch.tensor([[10, 11, 12], [20, 21, 22]])
    bos = SHAPE.bos_id
    expected = [
        ("embed", [bos, 10, 11, bos, 20, 21]),
        ("features", [10, 11, 12, 20, 21, 22]),
    ]
    model.log_probs(tokens)
    assert head.seen == expected
    head.seen.clear()
    model.nll(tokens, torch.tensor([[30, 31, 32], [33, 34, 35]]))
    assert head.seen == expected


@every_head
def test_training_and_scoring_see_the_same_model(head: str) -> None:
    model = model_with(head)
    tokens, targets = random_tokens(2, 12), random_tokens(2, 12)
    nll = model.nll(tokens, targets)
    scores = model.log_probs(tokens)
    assert nll.shape == (24,)
    assert scores.shape == (2, 12, SHAPE.vocab_size)
    expected = [-scores[row, t, int(targets[row, t])].item() for row in range(2) for t in range(12)]
    torch.testing.assert_close(nll, torch.tensor(expected), rtol=1e-5, atol=1e-5)


# The ledgers.


def test_the_baseline_has_17059912_parameters() -> None:
    shape = HeadShape(vocab_size=1024, d_model=512, bos_id=1)
    config = head_config({"name": "tied"})
    model = LanguageModel(Trunk(TrunkConfig()), config.build(shape))
    assert sum(p.numel() for p in model.parameters()) == 17_059_912
    assert TrunkConfig().num_params() + config.num_params(shape) == 17_059_912
    assert sum(tensor.numel() for _, tensor, _ in model.stored()) == 17_059_912


@every_trunk
def test_num_params_of_a_trunk_is_known_before_building(config: TrunkConfig) -> None:
    assert config.num_params() == sum(p.numel() for p in Trunk(config).parameters())


@every_head
@pytest.mark.parametrize("layers", [1, 2, 5])
def test_param_groups_are_a_partition(head: str, layers: int) -> None:
    model = model_with(head, tiny(layers=layers))
    listed = [item for _, parameters in model.param_groups() for item in parameters.items()]
    named = {name: p for name, p in model.named_parameters() if p.numel()}
    assert len(listed) == len(named)
    assert {name: id(p) for name, p in listed} == {name: id(p) for name, p in named.items()}


def test_matrices_and_vectors_of_the_trunk_have_their_roles() -> None:
    trunk = Trunk(tiny())
    roles = {name: role for role, group in trunk.param_groups() for name in group}
    assert set(roles.values()) == {"matrix", "vector"}
    linear = ("query", "key", "value", "out", "up")
    for name, role in roles.items():
        is_linear = name.split(".")[-2:-1] and name.split(".")[-2] in linear
        assert role == ("matrix" if is_linear else "vector"), name
    assert sum(role == "matrix" for role in roles.values()) == 3 * 6


@every_head
@pytest.mark.parametrize("layers", [1, 2, 5])
def test_stored_is_sorted_unique_and_total(head: str, layers: int) -> None:
    model = model_with(head, tiny(layers=layers))
    stored = model.stored()
    names = [name for name, _, _ in stored]
    assert names == sorted(set(names))
    parameters = {name: id(p) for name, p in model.named_parameters() if p.numel()}
    assert {name: id(t) for name, t, kind in stored if kind != "codes"} == parameters
    state = {name for name, tensor in model.state_dict().items() if tensor.numel()}
    assert set(names) == state
    kinds = {name: kind for name, _, kind in stored}
    for role, group in model.trunk.param_groups():
        for name in group:
            assert kinds[f"trunk.{name}"] == role


@pytest.mark.parametrize(
    ("head", "trunk"),
    [*((head, "baseline shape") for head in HEAD_OPTIONS), *(("tied", name) for name in OPTIONS)],
)
def test_every_tensor_of_the_model_moves_within_four_steps(head: str, trunk: str) -> None:
    built = head_config(HEAD_OPTIONS[head]).build(SHAPE, torch.arange(SHAPE.vocab_size))
    model = LanguageModel(Trunk(TRUNKS[trunk]), built)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.numel()}
    grouped = [p for _, group in model.param_groups() for p in group.values()]
    optimizer = torch.optim.Adam(grouped, lr=0.01)
    for _ in range(4):
        loss = model.nll(random_tokens(8, 12), random_tokens(8, 12)).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    after = dict(model.named_parameters())
    still = [name for name, p in before.items() if torch.equal(p, after[name])]
    assert still == []


def test_rotary_tables_cost_nothing() -> None:
    names = set(Trunk(tiny()).state_dict())
    assert names == {name for name, _ in Trunk(tiny()).named_parameters()}
