"""Which device the work runs on."""

import torch

from tokgolf.errors import ConfigError


def resolve_device(device: str) -> str:
    """ "auto" is CUDA where there is one. Raises `ConfigError` for a device that is not there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"--device {device}: this machine has no CUDA device; use --device cpu")
    kind, _, index = device.partition(":")
    known = device in ("cpu", "cuda") or (kind == "cuda" and index.isdecimal())
    if not known or (index and int(index) >= torch.cuda.device_count()):
        raise ConfigError(
            f"there is no device {device!r} here; use auto, cpu, cuda, or cuda:N with N below "
            f"{torch.cuda.device_count()}"
        )
    return device
