"""Output heads and add-ons by name. A new one is one file here and one line in a registry.

They are imported when they are used: a scored model needs, and pays for, the one it has.
"""

import importlib
from collections.abc import Mapping
from typing import Any

from tokgolf.config import from_dict, nearest, to_dict
from tokgolf.errors import ConfigError
from tokgolf.heads.base import AddOnConfig, Head, HeadConfig, HeadShape, ParamGroup, Stored

__all__ = [
    "ADDONS",
    "HEADS",
    "Head",
    "HeadConfig",
    "HeadShape",
    "ParamGroup",
    "Stored",
    "addon_config",
    "head_config",
    "head_to_dict",
]

HEADS = {
    "tied": "tokgolf.heads.tied:TiedConfig",
    "untied": "tokgolf.heads.untied:UntiedConfig",
    "factorized": "tokgolf.heads.factorized:FactorizedConfig",
    "vq": "tokgolf.heads.vq:VQConfig",
    "product": "tokgolf.heads.product:ProductConfig",
    "hashed": "tokgolf.heads.hashed:HashedConfig",
    "composed": "tokgolf.heads.composed:ComposedConfig",
    "grouped": "tokgolf.heads.grouped:GroupedConfig",
    "adaptive": "tokgolf.heads.adaptive:AdaptiveConfig",
    "mixture": "tokgolf.heads.mixture:MixtureConfig",
}

ADDONS = {
    "unigram-bias": "tokgolf.heads.unigram_bias:UnigramBiasConfig",
    "bigram-hash": "tokgolf.heads.bigram_hash:BigramHashConfig",
    "bigram-logits": "tokgolf.heads.bigram_logits:BigramLogitsConfig",
    "canonical-mask": "tokgolf.heads.canonical_mask:CanonicalMaskConfig",
}


def head_config(values: Mapping[str, Any], where: str = "head") -> HeadConfig:
    """The config of the head named by `values["name"]`, with the other values as its options.

    Raises `ConfigError` for an unknown head or option, naming the nearest known one.

    {"name": "factorized", "rank": 32} -> FactorizedConfig(rank=32)
    """
    options = dict(values)
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in HEADS:
        hint = nearest(str(name), HEADS)
        if isinstance(name, str) and name in ADDONS:
            hint = f"{name} is an add-on: write --head tied --add {name}"
        raise ConfigError(f"{where}: there is no head {name!r}; {hint}")
    config = from_dict(_class_of(HEADS[name]), options, where)
    assert isinstance(config, HeadConfig)
    return config


def addon_config(name: str, options: Any, where: str = "head.add") -> AddOnConfig:
    """The config of an add-on. Raises `ConfigError`, as `head_config` does.

    "bigram-hash", {"dim": 16} -> BigramHashConfig(dim=16)
    """
    if name not in ADDONS:
        raise ConfigError(f"{where}: there is no add-on {name!r}; {nearest(name, ADDONS)}")
    if not isinstance(options, Mapping):
        raise ConfigError(f"{where}.{name} is {options!r}; give its options as a table")
    config = from_dict(_class_of(ADDONS[name]), options, f"{where}.{name}")
    assert isinstance(config, AddOnConfig)
    return config


def _class_of(place: str) -> Any:
    module, _, cls = place.partition(":")
    return getattr(importlib.import_module(module), cls)


def head_to_dict(config: HeadConfig) -> dict[str, Any]:
    """The inverse of `head_config`: name and options as plain values."""
    values = {"name": config.name, **to_dict(config)}
    return values if config.add else {key: v for key, v in values.items() if key != "add"}
