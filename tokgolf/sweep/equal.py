"""Equal bytes: a trunk as wide as fits under a cap at so many bits a weight."""

from dataclasses import replace

from tokgolf.config import TrunkConfig
from tokgolf.cost import cost_of
from tokgolf.errors import CapError, ConfigError
from tokgolf.heads import HeadConfig, head_config, head_to_dict
from tokgolf.model import head_shape
from tokgolf.tokenizers import Tokenizer

UNIT = 8  # of an MLP's width, which processors like
WIDEST = 1 << 14  # times 2 * heads


def as_exported(head: HeadConfig) -> HeadConfig:
    """The head as its training ends: untied, if it unties on the way."""
    values = head_to_dict(head)
    return head_config({**values, "untie_at": 0.0}) if values.get("untie_at") else head


def weights_of(trunk: TrunkConfig, head: HeadConfig, tokenizer: Tokenizer) -> int:
    """Weights of a model before anything is trained, with a head as it will be exported."""
    return as_exported(head).num_params(head_shape(tokenizer, trunk)) + trunk.num_params()


def grown(
    trunk: TrunkConfig, head: HeadConfig, tokenizer: Tokenizer, *, cap: int, bits: float, grow: str
) -> TrunkConfig:
    """`trunk` made wider, or narrower, until the model takes the cap at `bits` a weight.

    "width" keeps the MLP in proportion and gives it what is left over; "mlp" changes nothing else.
    Bytes beside the weights are those that `cost_of` finds for `trunk`. Raises `CapError` if not
    even the narrowest fits.
    """
    overhead = _overhead(trunk, head, tokenizer, bits)

    def size(one: TrunkConfig) -> float:
        return overhead + weights_of(one, head, tokenizer) * bits / 8

    best = trunk
    if grow == "width":
        unit, ratio = 2 * trunk.heads, trunk.mlp_hidden / trunk.d_model

        def wide(units: int) -> TrunkConfig:
            d_model = unit * units
            mlp = max(UNIT, round(ratio * d_model / UNIT) * UNIT)
            return replace(trunk, d_model=d_model, mlp_hidden=mlp)

        low, high = 0, WIDEST
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if size(wide(middle)) <= cap else (low, middle - 1)
        if not low:
            raise CapError(_too_small(cap, bits, overhead, size(wide(1))))
        best = wide(low)
    narrow = replace(best, mlp_hidden=UNIT)
    per_unit = 2 * best.layers * best.d_model * UNIT * bits / 8
    units = 1 + int((cap - size(narrow)) // per_unit)
    if units < 1:
        raise CapError(_too_small(cap, bits, overhead, size(narrow)))
    return replace(best, mlp_hidden=UNIT * units)


def _overhead(trunk: TrunkConfig, head: HeadConfig, tokenizer: Tokenizer, bits: float) -> float:
    """Bytes beside the weights: code, tokenizer, header, codes."""
    found = cost_of(trunk, head, tokenizer, bits=bits)
    if found.params != weights_of(trunk, head, tokenizer):
        raise ConfigError(
            f"the head {head.name} says it has {weights_of(trunk, head, tokenizer):,} weights with "
            f"the trunk, it builds {found.params:,}; mend its num_params"
        )
    return found.ledger.full - found.params * bits / 8


def _too_small(cap: int, bits: float, overhead: float, least: float) -> str:
    return (
        f"no trunk fits under the cap of {cap:,} bytes at {bits:g} bits a weight: the narrowest is "
        f"{round(least):,} bytes, code and tokenizer {round(overhead):,} of them; raise the cap, "
        "or take a smaller vocabulary or head, or fewer layers"
    )
