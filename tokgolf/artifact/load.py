"""Reading a `*.golf` file: tokenizer and model, decoded from the file's bytes and nothing else."""

import os
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import torch

from tokgolf.artifact import container, weights
from tokgolf.config import TrunkConfig, from_dict
from tokgolf.errors import ArtifactError, TokgolfError
from tokgolf.heads import HeadConfig, HeadShape, head_config, head_to_dict
from tokgolf.model import LanguageModel, build_model, head_shape
from tokgolf.tokenizers import Tokenizer, from_asset

if TYPE_CHECKING:
    from tokgolf.ledger import Ledger

MAX_FILE = 1 << 30
MAX_PARAMS = 1 << 29
# A file of a kilobyte must not make room for gigabytes: an eighth of a bit a weight is far below
# any that was trained, and what is free is for toys.
FREE_PARAMS, PARAMS_PER_BYTE = 1 << 20, 64
MAX_LAYERS = 1 << 10
MAX_WINDOW = 1 << 20
MAX_ROTARY = 1 << 22  # window times width of a head
KEYS = ["head", "lead", "quantizer", "trunk"]
MAX_LEAD = 64
QUANTIZERS = ["scalar", "trellis"]
SECTIONS = ["tokenizer", "tables", "steps", "weights", "packed"]


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """What a `*.golf` file holds. `data` are the file's own bytes."""

    tokenizer: Tokenizer
    model: LanguageModel
    trunk: TrunkConfig
    head: HeadConfig
    data: bytes

    @property
    def sha256(self) -> str:
        """Hash of the whole file."""
        return sha256(self.data).hexdigest()

    @cached_property
    def ledger(self) -> "Ledger":
        """Where the bytes are."""
        from tokgolf.ledger import ledger_of

        return ledger_of(self)


def load_artifact(path: str | os.PathLike[str]) -> Artifact:
    """Read, check and decode the artifact at `path`; the model is in eval mode, on the CPU.

    Raises `ArtifactError`, naming the path, for anything but a sound artifact, and `OSError` if
    the file cannot be read.
    """
    with open(path, "rb") as file:
        data = file.read(MAX_FILE + 1)
    try:
        if len(data) > MAX_FILE:
            raise ArtifactError(f"over {MAX_FILE:,} bytes is no artifact")
        return decode_artifact(data)
    except TokgolfError as error:
        raise ArtifactError(f"{os.fspath(path)}: {error}") from error


def decode_artifact(data: bytes) -> Artifact:
    """The artifact in `data`, the bytes of a file. Raises `TokgolfError` if it is not sound."""
    header, sections = container.unpack(data)
    if sorted(header) != KEYS or list(sections) != SECTIONS:
        raise ArtifactError(
            f"the artifact has header keys {sorted(header)} and sections {list(sections)}; "
            f"this format has {KEYS} and {SECTIONS}"
        )
    if header["quantizer"] not in QUANTIZERS:
        raise ArtifactError(
            f"the artifact's quantizer is {header['quantizer']!r}; it must be one of {QUANTIZERS}"
        )
    trunk = from_dict(TrunkConfig, _table(header, "trunk"), "artifact.trunk")
    head = head_config(_table(header, "head"), "artifact.head")
    tokenizer = from_asset(sections["tokenizer"])
    shape = head_shape(tokenizer, trunk)
    check_size(trunk, head, shape, min(MAX_PARAMS, FREE_PARAMS + PARAMS_PER_BYTE * len(data)))
    model = build_model(trunk, head, shape)
    trellis = header["quantizer"] == "trellis"
    lead = _lead(header["lead"], trunk.d_model)
    weights.decode(model.stored(), sections, trellis, trunk.d_model, lead)
    _check_usable(model)
    spelt_out = {**header, "trunk": trunk.stored(), "head": head_to_dict(head)}
    if container.canonical(spelt_out) != container.canonical(header):
        raise ArtifactError(
            "the artifact's header does not spell out its trunk and head as this tokgolf does, so "
            "that what is left out would be a guess; use the tokgolf that wrote it"
        )
    model.eval().requires_grad_(False)
    return Artifact(tokenizer=tokenizer, model=model, trunk=trunk, head=head, data=data)


def check_size(trunk: TrunkConfig, head: HeadConfig, shape: HeadShape, most: int) -> None:
    """Raise `ArtifactError` for a config that claims more than `most` weights, the number that its
    file can hold, or more than loads at all; before any of it is built."""
    if trunk.layers > MAX_LAYERS or trunk.sequence_length > MAX_WINDOW:
        raise ArtifactError(
            f"the file claims {trunk.layers:,} layers and a window of "
            f"{trunk.sequence_length:,}; at most {MAX_LAYERS:,} and {MAX_WINDOW:,} load"
        )
    params = trunk.num_params(shape.vocab_size) + head.num_params(shape)
    if params > most:
        raise ArtifactError(
            f"the file claims {params:,} weights; at most {most:,} fit one of its size"
        )
    if trunk.sequence_length * (width := trunk.d_model // trunk.heads) > MAX_ROTARY:
        raise ArtifactError(
            f"the file claims a window of {trunk.sequence_length:,} with heads {width:,} wide; at "
            f"most {MAX_ROTARY:,} as their product load"
        )


def _check_usable(model: LanguageModel) -> None:
    """Codes must point into their codebook, and every weight must be a number."""
    hidden = torch.zeros(1, model.head.shape.d_model)
    bos = torch.tensor([model.head.shape.bos_id])
    try:
        finite = all(bool(tensor.isfinite().all()) for _, tensor, _ in model.stored())
        finite = finite and not bool(model.head.log_probs(hidden, bos).isnan().any())
    except IndexError as error:
        raise ArtifactError(f"the artifact's codes do not fit its codebook: {error}") from error
    if not finite:
        raise ArtifactError("the artifact holds weights that are not finite")


def _lead(value: Any, width: int) -> list[int]:
    if (
        not isinstance(value, list)
        or len(value) > MAX_LEAD
        or not all(type(column) is int and 0 <= column < width for column in value)
        or len(set(value)) < len(value)
    ):
        raise ArtifactError(
            f"the artifact's lead is {value!r}; it must be up to {MAX_LEAD} different columns "
            f"below {width}"
        )
    return list(value)


def _table(header: dict[str, Any], key: str) -> dict[str, Any]:
    if not isinstance(header[key], dict):
        raise ArtifactError(f"the artifact's header has {header[key]!r} for {key}")
    return dict(header[key])
