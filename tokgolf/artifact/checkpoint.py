"""Checkpoints: the float model and all that training needs to go on, in a run directory.

    run/tokenizer.tok            the tokenizer's asset
    run/checkpoints/step-*       model.*, live.* (the weights that training goes on from, where an
                                 average of them is the model), error.* (what quantizing
                                 adds in the forward pass) and optimizer tensors,
                                 "step-000123-1a2b3c4d.safetensors"; the start of its hash keeps it
                                 apart from another of this step
    run/checkpoints/latest.json  which file is the latest, its SHA-256, and the state; sealed
    run/checkpoints/previous.json  the same of the one before, which resuming falls back to

`latest.json` is renamed into place last, so a run is always on a whole checkpoint. No pickle.
"""

import contextlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from tokgolf.artifact.load import FREE_PARAMS, check_size
from tokgolf.config import TrunkConfig, from_dict
from tokgolf.errors import ArtifactError
from tokgolf.files import write_bytes, write_text
from tokgolf.heads import HeadConfig, head_config, head_to_dict
from tokgolf.model import LanguageModel, build_model, head_shape
from tokgolf.sealed import read_sealed, write_sealed
from tokgolf.tokenizers import Tokenizer, load_tokenizer

MODEL_PREFIX = "model."
# A name of this form only, so that nothing outside the folder is read.
_STEP_FILE = re.compile(r"step-\d{6,}-[0-9a-f]{8}\.safetensors")
_LATEST, _PREVIOUS = "latest.json", "previous.json"
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class FloatModel:
    """The trained model of a run before quantization, with what it was trained for."""

    tokenizer: Tokenizer
    model: LanguageModel
    trunk: TrunkConfig
    head: HeadConfig
    state: dict[str, Any]


def write_checkpoint(run: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> Path:
    """Write a checkpoint and make it the latest; the one before stays, older files go.

    `state` must have "step".
    """
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    data = safetensors.torch.save({name: t.contiguous() for name, t in tensors.items()})
    digest = sha256(data).hexdigest()
    path = folder / f"step-{state['step']:06d}-{digest[:8]}.safetensors"
    write_bytes(path, data)
    kept = {path.name}
    with contextlib.suppress(ValueError, KeyError, OSError):  # none, or a damaged one
        before = read_sealed(folder / _LATEST)
        if before["file"] != path.name:
            with open(folder / before["file"], "rb") as file:
                found = file_digest(file, "sha256").hexdigest()
            if found == before["sha256"]:  # or the one before it stays
                write_sealed(folder / _PREVIOUS, before)
    with contextlib.suppress(ValueError, KeyError, OSError):
        kept.add(read_sealed(folder / _PREVIOUS)["file"])
    write_sealed(folder / _LATEST, {"file": path.name, "sha256": digest, "state": state})
    for old in folder.glob("step-*.safetensors"):
        if old.name not in kept and not old.is_dir():
            old.unlink()
    return path


Checkpoint = tuple[dict[str, Tensor], dict[str, Any]]


def holds_checkpoint(run: Path) -> bool:
    """Whether a run has got as far as a checkpoint."""
    return any((run / "checkpoints" / name).is_file() for name in (_LATEST, _PREVIOUS))


def read_sound_checkpoint(run: Path, say: Callable[[str], None]) -> Checkpoint:
    """As `read_checkpoint`, or the one before, as `say` is told, if the latest cannot be read."""
    folder = run / "checkpoints"
    try:
        return read_checkpoint(run)
    except ArtifactError as error:
        if not (folder / _PREVIOUS).is_file():
            raise
        missing = not (folder / _LATEST).exists()
        reason = f"{folder / _LATEST} is missing" if missing else str(error)
        checkpoint = read_checkpoint(run, _PREVIOUS)
        say(f"resume    {reason}; going on from the one before, step {checkpoint[1]['step']}")
        return checkpoint


def read_checkpoint(run: str | os.PathLike[str], which: str = _LATEST) -> Checkpoint:
    """Tensors and state of the latest checkpoint of a run.

    Raises `ArtifactError` if there is none, if it cannot be read, or is not what was written.
    """
    folder = Path(run) / "checkpoints"
    pointer = folder / which
    if not pointer.is_file():
        raise ArtifactError(f"{run} holds no checkpoint; make one with tokgolf train -o {run}")
    try:
        latest = read_sealed(pointer)
        name, expected, state = str(latest["file"]), str(latest["sha256"]), dict(latest["state"])
        if not _STEP_FILE.fullmatch(name):
            raise ValueError(f"it points to {name!r:.80}, which is no checkpoint's name")
        path = folder / name
        data = path.read_bytes()
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
        raise ArtifactError(f"{pointer} is damaged: {error!r}") from error
    except OSError as error:
        raise ArtifactError(f"{pointer}, or what it points to, cannot be read: {error}") from error
    found = sha256(data).hexdigest()
    if found != expected:
        raise ArtifactError(
            f"{path} has SHA-256 {found[:16]}, {pointer.name} says {expected[:16]}: "
            "the checkpoint was damaged or edited"
        )
    try:
        return safetensors.torch.load(data), state
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(f"{path} holds no tensors that can be read: {reason}") from error


def exported(run: Path) -> list[str]:
    """SHA-256 of every artifact that was exported from a run, oldest first.

    Raises `ArtifactError` for a file that holds anything else.
    """
    path = run / "exports.txt"
    lines = path.read_bytes().splitlines() if path.is_file() else []
    hashes = [line.decode("ascii", "replace") for line in lines]
    for number, line in enumerate(hashes, 1):
        if not _HASH.fullmatch(line):
            raise ArtifactError(f"{path} line {number} is no SHA-256; remove the line")
    return hashes


def record_export(run: Path, sha256: str) -> None:
    """Note that an artifact comes from this run: it ties a file to what it was trained on."""
    lines = [line for line in exported(run) if line != sha256] + [sha256]
    write_text(run / "exports.txt", "".join(f"{line}\n" for line in lines))


def load_run(run: str | os.PathLike[str]) -> FloatModel:
    """The float model of the latest checkpoint of a run, in eval mode on the CPU.

    Its trunk repeats no block if no step did so yet: passes that nobody trained make it worse.
    Raises `ArtifactError` if the checkpoint is damaged, or was trained with another tokenizer
    than the one in the run directory.
    """
    tensors, state = read_checkpoint(run)
    try:
        trained_with, config = str(state["tokenizer"]), state["config"]
        trunk = from_dict(TrunkConfig, config["trunk"], f"{run}, trunk")
        head = head_config(config["head"], f"{run}, head")
        if state.get("untied"):
            head = head_config({**head_to_dict(head), "untie_at": 0.0}, f"{run}, head")
        looped = state.get("looped_from", 0) is not None
        if not looped:
            trunk = replace(trunk, loops=1, loops_scored=0, loop_rank=0)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{run}: the checkpoint's state is damaged: {error!r}") from error
    path = Path(run) / "tokenizer.tok"
    tokenizer = load_tokenizer(path)
    if tokenizer.fingerprint != trained_with:
        raise ArtifactError(
            f"{path} has fingerprint {tokenizer.fingerprint[:16]}, but the checkpoint was trained "
            f"with {trained_with[:16]}; put the run's own tokenizer back"
        )
    shape = head_shape(tokenizer, trunk)
    stored = sum(tensor.numel() for tensor in tensors.values())
    check_size(trunk, head, shape, FREE_PARAMS + stored)
    model = build_model(trunk, head, shape)
    weights = {
        name.removeprefix(MODEL_PREFIX): tensor
        for name, tensor in tensors.items()
        if name.startswith(MODEL_PREFIX) and (looped or ".loops." not in name)
    }
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise ArtifactError(f"{run}: the checkpoint does not fit its config: {first}") from error
    model.eval().requires_grad_(False)
    return FloatModel(tokenizer=tokenizer, model=model, trunk=trunk, head=head, state=state)
