"""What a model will cost before it is trained: the rows of its ledger, from its config.

Unlike `ledger` nothing is quantized, so what training decides comes from a stated model:

    all weights       the bits a weight asked for, as `Ledger.bits` counts them of an artifact
    tables, matrices  what the others leave of it, alike for each weight; as a step, that of a
                      Gaussian (`gaussian_bits`)
    vectors           Gaussian, with a step that lets the largest reach code 127
    steps, classes    of each row and column `FACTOR_BITS` and `CLASS_BITS`
    tokenizer         its asset, exactly, if one is given; otherwise the asset of a BPE tokenizer of
                      the size asked for, built from the embedded corpus
    frequency tables  of `CONTEXTS`, or as many as so few weights pay for; each as the encoder
                      reckons: `TABLE_BITS`, and `SYMBOL_BITS` for each symbol in use
    lanes             three bytes each

Code, header, codes and checksum are exact. Where sizes depend on how often each token occurs, the
head is that of Zipf's frequencies.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch

from tokgolf.artifact import container, rans
from tokgolf.artifact.encode import header_of
from tokgolf.artifact.load import MAX_PARAMS, SECTIONS
from tokgolf.artifact.sizes import whole
from tokgolf.artifact.tables import SYMBOL_BITS, TABLE_BITS
from tokgolf.config import TrunkConfig
from tokgolf.corpora import open_corpus
from tokgolf.errors import CapError, ConfigError, TokgolfError
from tokgolf.heads import HeadConfig, Stored, head_config, head_to_dict
from tokgolf.ledger import Ledger, TensorBytes, components_of, ledger_from, scoring_modules
from tokgolf.model import LanguageModel, build_model, head_shape
from tokgolf.quantize import LARGEST
from tokgolf.quantize.rows import MOST_BITS, lead_length
from tokgolf.tokenizers import Tokenizer, build_tokenizer

EMBEDDED = "stdlib:train"
VECTOR_LARGEST = 127
PARITIES = 2  # a context of a trellis-coded weight has two tables
FACTOR_BITS, CLASS_BITS, CONTEXTS = 2.2, 1.2, 25
"""Typical of exports (docs/results/artifact.md)."""
CONTEXT_WEIGHTS = 1 << 14  # a context pays from about so many weights
DENSE = ("table", "matrix")
LANE_BYTES = 3  # see `rans.lanes_of`
UNIT = 10_000
LEAST_BITS = 1.0


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The ledger of a model to be. A tensor's step is in standard deviations of its weights.

    `flops` are of a token of a whole window, forward, as it is scored (`flops_of_token`).
    """

    head: HeadConfig
    params: int
    flops: int
    bits: float
    ledger: Ledger


def embedded_tokenizer(vocab_size: int) -> Tokenizer:
    """A BPE tokenizer of this size from the embedded corpus: its bytes stand in for another's.

    Raises `ConfigError` for a size that the corpus cannot give.
    """
    try:
        return build_tokenizer("bpe", (doc.data for doc in open_corpus(EMBEDDED)), vocab_size)
    except TokgolfError as error:
        raise ConfigError(f"{error}, or a tokenizer of your own: --tokenizer x.tok") from error


def cost_of(
    trunk: TrunkConfig,
    head: HeadConfig,
    tokenizer: Tokenizer,
    *,
    bits: float | None = None,
    cap: int | None = None,
) -> Cost:
    """The bytes of a model at `bits` a weight or, with `cap` instead, at the most bits that fit
    under so many bytes.

    Raises `ConfigError` for bits that no file has, and `CapError` if nothing fits.
    """
    model, head = _model(trunk, head, tokenizer)
    source = _Source(trunk, head, tokenizer, model, scoring_modules(model, tokenizer))
    if cap is not None:
        bits = _most_bits(source, cap)
    assert bits is not None
    if not LEAST_BITS <= bits <= MOST_BITS:
        raise ConfigError(f"bits is {bits:g}; it must be from {LEAST_BITS:g} to {MOST_BITS:g}")
    params = sum(parameter.numel() for parameter in model.parameters())
    flops = flops_of_token(trunk, head, tokenizer, scored=True)
    return Cost(head=head, params=params, flops=flops, bits=bits, ledger=_ledger(source, bits))


def flops_of_token(
    trunk: TrunkConfig, head: HeadConfig, tokenizer: Tokenizer, *, scored: bool
) -> int:
    """Forward floating-point operations of a token; backward twice as many.

    Two for each weight of a matrix that the token meets, as often as it meets it: a block that is
    applied twice counts twice, with what its second pass adds. Of attention the causal half at full
    length. Lookups, norms and scales are free.
    """
    order, wide = trunk.order(scored=scored), trunk.d_model
    kv_width = trunk.kv_heads * (wide // trunk.heads)
    weights = len(order) * 2 * wide * (wide + kv_width + trunk.mlp_hidden)
    again = len(order) - len(set(order))
    weights += again * trunk.pass_params()
    attention = 2 * len(order) * wide * trunk.sequence_length
    return 2 * weights + attention + head.flops(head_shape(tokenizer, trunk))


@dataclass(frozen=True)
class _Source:
    trunk: TrunkConfig
    head: HeadConfig
    tokenizer: Tokenizer
    model: LanguageModel
    modules: tuple[str, ...]


def _model(
    trunk: TrunkConfig, head: HeadConfig, tokenizer: Tokenizer
) -> tuple[LanguageModel, HeadConfig]:
    """The model as its training ends, untied if it unties on the way, and its head's config."""
    values = head_to_dict(head)
    if values.get("untie_at"):
        head = head_config({**values, "untie_at": 0.0})
    shape = head_shape(tokenizer, trunk)
    params = trunk.num_params(shape.vocab_size) + head.num_params(shape)
    if params > MAX_PARAMS:
        raise ConfigError(
            f"the model has {params:,} weights; artifacts hold at most {MAX_PARAMS:,}"
        )
    counts = (1e9 / torch.arange(1, tokenizer.vocab_size + 1)).long()
    with torch.random.fork_rng(devices=[]):
        return build_model(trunk, head, shape, counts), head


def _most_bits(source: _Source, cap: int) -> float:
    """The most bits a weight that fit under a cap, in steps of 1 / UNIT."""
    low, high = round(LEAST_BITS * UNIT), round(MOST_BITS * UNIT)
    least = _ledger(source, LEAST_BITS)
    if least.full > cap:
        asset = dict(least.rows)["tokenizer"]
        raise CapError(
            f"even at {LEAST_BITS:g} bit a weight it is {least.full:,} bytes, over the cap of "
            f"{cap:,}: code {least.code.packed:,}, tokenizer {asset:,}, "
            f"the rest {least.official - least.code.packed:,}. Use a smaller model or vocabulary"
        )
    while low < high:
        middle = (low + high + 1) // 2
        fits = _ledger(source, middle / UNIT).full <= cap
        low, high = (middle, high) if fits else (low, middle - 1)
    return low / UNIT


def _ledger(source: _Source, bits: float) -> Ledger:
    """The rows at these bits a weight: what is known goes first, tables and matrices share the
    rest."""
    stored = source.model.stored()
    components = components_of(source.model)
    numbers = sum(s.tensor.numel() for s in stored if s.kind != "codes")
    dense = [s.tensor.numel() for s in stored if s.kind in DENSE]
    step = gaussian_step(bits)
    contexts = min(CONTEXTS, 1 + sum(dense) // CONTEXT_WEIGHTS)
    tables, lanes = contexts * _table_bytes(sum(dense) // contexts, step), 0
    if numbers:
        lanes = LANE_BYTES * rans.lanes_of(numbers)
    known = {s.name: _known(s) for s in stored if s.kind not in DENSE}
    sides = {s.name: _sides(s, classed=contexts > 1) for s in stored}
    steps, classes = (sum(side[part] for side in sides.values()) for part in (0, 1))
    beside = sum(known.values()) + tables + lanes + steps + classes
    shared = max(0, round(numbers * bits / 8) - beside)
    if dense:
        step = gaussian_step(max(8 * shared / sum(dense), LEAST_BITS / 2))
    spread = iter(whole(dense, shared))
    tensors = tuple(
        TensorBytes(
            name=name,
            kind=kind,
            component=components[name],
            shape=tuple(tensor.shape),
            weights=tensor.numel(),
            step={"codes": None, "vector": _vector_step(tensor.numel())}.get(kind, step),
            coded=next(spread) if kind in DENSE else known[name],
            steps=sides[name][0],
            classes=sides[name][1],
        )
        for name, tensor, kind in stored
    )
    packed = sum(tensor.coded for tensor in tensors if tensor.kind == "codes")
    stream = sum(tensor.coded for tensor in tensors) - packed + lanes
    asset = len(source.tokenizer.asset())
    sizes = (asset, tables, steps + classes, stream, packed)
    width = source.trunk.d_model
    lead = list(range(width))[-lead_length(width) :]
    header = header_of(source.trunk, source.head, trellis=True, lead=lead)
    sections = {name: bytes(size) for name, size in zip(SECTIONS, sizes, strict=True)}
    frame = len(container.pack(header, sections)) - sum(sizes)
    return ledger_from(
        tensors,
        {
            "tokenizer": asset,
            "frequency tables": tables,
            "lanes": lanes,
            "header": frame - container.DIGEST_BYTES,
            "checksum": container.DIGEST_BYTES,
        },
        source.modules,
        original_file=len(source.tokenizer.original_file()),
    )


def _known(stored: Stored) -> int:
    """Bytes of the numbers of a vector, or of codes."""
    count = stored.tensor.numel()
    if stored.kind == "codes":
        return 1 + math.ceil(count * max(1, int(stored.tensor.max()).bit_length()) / 8)
    return round(count * gaussian_bits(_vector_step(count)) / 8)


def _sides(stored: Stored, *, classed: bool) -> tuple[int, int]:
    """Bytes of a tensor's step and of its factors; of its base context and of its classes."""
    if stored.kind not in DENSE:
        return (0 if stored.kind == "codes" else 2), 0
    columns = stored.tensor.shape[-1]
    lines = stored.tensor.numel() // columns + columns
    steps, classes = round(lines * FACTOR_BITS / 8), round(lines * CLASS_BITS / 8)
    return 4 + steps, 1 + (2 + classes) * classed  # a byte for each list


def _vector_step(count: int) -> float:
    """The step, in standard deviations, that lets the largest of so many reach code 127."""
    return NormalDist().inv_cdf(1 - 1 / (2 * count + 2)) / VECTOR_LARGEST


def _table_bytes(count: int, step: float) -> int:
    """Bytes of a context's frequency tables, for so many Gaussian weights."""
    used = int(np.count_nonzero(_probabilities(step) * count / PARITIES > 0.5))
    return math.ceil(PARITIES * (TABLE_BITS + SYMBOL_BITS * used) / 8)


def gaussian_bits(step: float) -> float:
    """Entropy of the codes of Gaussian weights at a step of so many standard deviations.

    The step is the distance between a weight's choices at its place: for a trellis, which has the
    even or the odd multiples of its own step there, twice that. The entropy is then the same, but
    for steps so large that most codes are 0.

    step=0.25 -> 4.051
    """
    p = _probabilities(step)
    used = p[p > 0]
    return -float(used @ np.log2(used))


def gaussian_step(bits: float) -> float:
    """The inverse of `gaussian_bits`, to a relative 1e-9."""
    low, high = 4 / LARGEST, 2.0**12  # with finer steps codes end within four deviations
    while high / low > 1 + 1e-9:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if gaussian_bits(middle) > bits else (low, middle)
    return low


def _probabilities(step: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Of every code from -511 to 511."""
    edges = torch.from_numpy((np.arange(-LARGEST, LARGEST) + 0.5) * step)
    return np.diff(torch.special.ndtr(edges).numpy(), prepend=0.0, append=1.0)
