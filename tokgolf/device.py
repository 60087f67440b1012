"""Which device the work runs on, and that it gives the same bits there each time."""

from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def in_one_order(device: torch.device) -> Iterator[None]:
    """On a CPU, sums in the same order each time, whatever the number of threads.

    Without it the gradient of a table is added up as the threads come by: two compiled runs
    differed from the second step on, and an adapted score from itself. It costs no time that could
    be measured in training.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(before or device.type == "cpu")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def exact_products() -> Iterator[None]:
    """Products of fp32 in fp32, whatever is allowed elsewhere."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
