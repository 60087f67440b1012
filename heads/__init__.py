"""Output heads by name. A new head is one file here and one line in `HEADS`.

Heads are imported when they are used: a scored model needs, and pays for, the one it has.
"""

import importlib
from collections.abc import Mapping
from typing import Any

from tokgolf.config import from_dict, nearest, to_dict
from tokgolf.errors import ConfigError
from tokgolf.heads.base import Head, HeadConfig, HeadShape, ParamGroup, Stored

__all__ = [
    "HEADS",
    "Head",
    "HeadConfig",
    "HeadShape",
    "ParamGroup",
    "Stored",
    "head_config",
    "head_to_dict",
]

HEADS = {
    "tied": "tokgolf.heads.tied:TiedConfig",
    "untied": "tokgolf.heads.untied:UntiedConfig",
    "factorized": "tokgolf.heads.factorized:FactorizedConfig",
    "vq": "tokgolf.heads.vq:VQConfig",
    "bigram-hash": "tokgolf.heads.bigram_hash:BigramHashConfig",
}


def head_config(values: Mapping[str, Any], where: str = "head") -> HeadConfig:
    """The config of the head named by `values["name"]`, with the other values as its options.

    Raises `ConfigError` for an unknown head or option, naming the nearest known one.

    {"name": "factorized", "rank": 32} -> FactorizedConfig(rank=32)
    """
    options = dict(values)
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in HEADS:
        raise ConfigError(f"{where}: there is no head {name!r}; {nearest(str(name), HEADS)}")
    module, _, cls = HEADS[name].partition(":")
    config = from_dict(getattr(importlib.import_module(module), cls), options, where)
    assert isinstance(config, HeadConfig)
    return config


def head_to_dict(config: HeadConfig) -> dict[str, Any]:
    """The inverse of `head_config`: name and options as plain values."""
    return {"name": config.name, **to_dict(config)}
