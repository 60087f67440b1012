"""Weights as safetensors: a model's tensors by name in fp32, for other libraries to read.

Unlike a `*.golf` file nothing is coded and no tokenizer is inside; the file's metadata says which
one belongs to it, and the model's configuration, so that the model can be built again from both.
"""

import json
import os
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from tokgolf.artifact.checkpoint import FloatModel
from tokgolf.artifact.load import FREE_PARAMS, Artifact, check_size
from tokgolf.config import TrunkConfig, from_dict, to_dict
from tokgolf.errors import ArtifactError, ConfigError
from tokgolf.files import write_bytes
from tokgolf.heads import head_config, head_to_dict
from tokgolf.model import build_model, head_shape
from tokgolf.tokenizers import Tokenizer

SUFFIX = ".safetensors"


def export_weights(
    source: Artifact | FloatModel, path: str | os.PathLike[str]
) -> tuple[int, dict[str, str]]:
    """Write the tensors of an artifact (dequantized) or of a run; returns how many, and metadata.

    The metadata are strings: `trunk` and `head` (JSON), `tokenizer` (its fingerprint), and
    `artifact_sha256` of an artifact. Raises `ConfigError` for a path with another ending.
    """
    if Path(path).suffix != SUFFIX:
        raise ConfigError(f"{path} does not end in {SUFFIX}; name it so")
    tensors = {name: tensor.contiguous() for name, tensor in source.model.state_dict().items()}
    metadata = {
        "format": "pt",
        "trunk": json.dumps(to_dict(source.trunk)),
        "head": json.dumps(head_to_dict(source.head)),
        "tokenizer": source.tokenizer.fingerprint,
    }
    if isinstance(source, Artifact):
        metadata["artifact_sha256"] = source.sha256
    write_bytes(path, safetensors.torch.save(tensors, metadata))
    return len(tensors), metadata


def load_weights(path: str | os.PathLike[str], tokenizer: Tokenizer) -> FloatModel:
    """The model that `export_weights` wrote, in eval mode on the CPU.

    Raises `ArtifactError` for a file that is none, or that belongs to another tokenizer.
    """
    try:
        with safetensors.safe_open(os.fspath(path), "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        values: dict[str, Any] = {key: json.loads(metadata[key]) for key in ("trunk", "head")}
        wanted = metadata["tokenizer"]
    except (safetensors.SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{path} holds no weights as tokgolf export-weights writes them: {error}"
        ) from error
    if wanted != tokenizer.fingerprint:
        raise ArtifactError(
            f"{path} belongs to tokenizer {wanted[:16]}, this one is {tokenizer.fingerprint[:16]}; "
            "give the artifact's own"
        )
    trunk = from_dict(TrunkConfig, values["trunk"], f"{path}, trunk")
    head = head_config(values["head"], f"{path}, head")
    shape = head_shape(tokenizer, trunk)
    check_size(trunk, head, shape, FREE_PARAMS + sum(each.numel() for each in tensors.values()))
    model = build_model(trunk, head, shape)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise ArtifactError(f"{path}: the tensors do not fit the config: {first}") from error
    model.eval().requires_grad_(False)
    return FloatModel(tokenizer=tokenizer, model=model, trunk=trunk, head=head, state={})
