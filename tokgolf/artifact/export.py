"""Export: a run's float model, quantized and entropy-coded, into one file that was read back."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tokgolf.artifact import container
from tokgolf.artifact.checkpoint import FloatModel, load_run, record_export
from tokgolf.artifact.encode import encode
from tokgolf.artifact.load import Artifact, decode_artifact
from tokgolf.config import to_dict
from tokgolf.corpora import read_shard, shard_files
from tokgolf.errors import ArtifactError
from tokgolf.files import write_bytes
from tokgolf.heads import Stored, head_to_dict
from tokgolf.ledger import Ledger, ledger_of
from tokgolf.quantize import Quantized
from tokgolf.quantize.gptq import input_hessians
from tokgolf.quantize.rows import QuantConfig, check_finite, quantize

CALIBRATION_TOKENS = 1 << 16
CALIBRATION_ROWS = 16


def encode_artifact(
    source: FloatModel, config: QuantConfig, calibration: Iterable[Tensor] = ()
) -> Artifact:
    """Quantize and encode a model, decode the bytes again, and return what came back.

    `calibration` are batches of training tokens (rows, time); GPTQ needs them, and
    they weight the rows of tables by how often each token occurs. Raises
    `ArtifactError` for weights that are not finite, naming the tensor.
    """
    for name, tensor, _ in source.model.stored():  # one NaN would spread to every Hessian
        check_finite(name, tensor.detach().float().cpu().numpy())
    batches = list(calibration)
    if config.method == "gptq" and not batches:
        raise ArtifactError("GPTQ needs calibration tokens and got none; use --method nearest")
    hessians = input_hessians(source.model, batches) if config.method == "gptq" else {}
    counts = None
    if batches:
        tokens = torch.cat([batch.flatten() for batch in batches])
        counts = torch.bincount(tokens, minlength=source.tokenizer.vocab_size).numpy()

    def quantized(stored: Stored) -> Quantized:
        values = stored.tensor.detach().float().cpu().numpy()
        hessian = hessians.get(stored.name)
        return quantize(stored.name, values, stored.kind, config, hessian, counts)

    header = {
        "trunk": to_dict(source.trunk),
        "head": head_to_dict(source.head),
        "quantizer": "scalar",
    }
    sections = encode(source.model.stored(), quantized, trellis=False)
    data = container.pack(header, {"tokenizer": source.tokenizer.asset(), **sections})
    return decode_artifact(data)


def calibration_tokens(run: Path, source: FloatModel) -> Iterator[Tensor]:
    """Batches of windows spread evenly over the first shard of a run's training tokens."""
    folder = run / "tokens"
    paths = shard_files(folder, "train") if folder.is_dir() else []
    if not paths:
        raise ArtifactError(
            f"{folder} holds no training tokens to calibrate on; use --method nearest"
        )
    shard = read_shard(paths[0], fingerprint=source.tokenizer.fingerprint)
    length = source.trunk.sequence_length
    count = max(1, min(CALIBRATION_TOKENS, len(shard)) // length)
    starts = np.linspace(0, len(shard) - length, count).astype(np.int64)
    for first in range(0, count, CALIBRATION_ROWS):
        rows = [shard[start : start + length] for start in starts[first : first + CALIBRATION_ROWS]]
        yield torch.from_numpy(np.stack(rows).astype(np.int64))


def export_run(
    run: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    cap: int,
    config: QuantConfig | None = None,
) -> Ledger:
    """Write the latest checkpoint of `run` as an artifact to `path`; returns its ledger.

    Raises `CapError`, and writes nothing, when the full accounting is over `cap` bytes.
    """
    source = load_run(run)
    config = config or QuantConfig()
    # Rounding to the nearest does without, but not without the tokens' frequencies if it can.
    wanted = config.method == "gptq" or (Path(run) / "tokens").is_dir()
    calibration = calibration_tokens(Path(run), source) if wanted else ()
    artifact = encode_artifact(source, config, calibration)
    ledger = ledger_of(artifact)
    ledger.check_cap(cap)
    write_bytes(path, artifact.data)
    record_export(Path(run), artifact.sha256)
    return ledger
