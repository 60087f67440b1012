"""What a user can get wrong around an artifact: one line that names it, exit code 1, no file."""

import json
import shutil
import struct
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from reliability_readers import TEXT, float_model, save_run

from tokgolf import cli
from tokgolf.artifact.checkpoint import read_checkpoint, write_checkpoint
from tokgolf.artifact.container import VERSION
from tokgolf.sealed import read_sealed, write_sealed

Refused = Callable[..., str]
SETTINGS = [
    "trunk.layers=1", "trunk.parallel=0", "trunk.d_model=8", "trunk.heads=1", "trunk.kv_heads=1",
    "trunk.mlp_hidden=8", "trunk.sequence_length=16", "batch_tokens=64", "micro_batch_tokens=64",
    "precision=fp32", "compile=off", "steps=3",
]  # fmt: skip


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run the command line, which must fail with 1 and one line; returns that line."""

    def run(*arguments: object) -> str:
        code = cli.run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert (code, out) == (1, "") and err.startswith("error: ") and err.count("\n") == 1
        return err.removeprefix("error: ")

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus, a run and an artifact calibrated on its tokens."""
    folder = tmp_path_factory.mktemp("trained")
    texts = [f"Document {n} of a few that a tiny model learns, {n * n}." for n in range(40)]
    (folder / "c.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    corpus = str(folder / "c.jsonl")
    build = ["build-tokenizer", "--vocab-size", "262", "--corpus", corpus]
    assert cli.run([*build, "-o", str(folder / "t.tok")]) == 0
    train = ["train", "--corpus", corpus, "--tokenizer", str(folder / "t.tok")]
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    assert cli.run([*train, *settings, "-o", str(folder / "run")]) == 0
    export = ["export", str(folder / "run"), "--method", "nearest", "--cap", "1MB"]
    assert cli.run([*export, "-o", str(folder / "run" / "m.golf")]) == 0
    return folder


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("which", [0, 3, -1])
def test_weights_that_are_not_finite_are_named(
    which: int, value: float, refused: Refused, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    save_run(run, float_model("tied"))
    tensors, state = read_checkpoint(run)
    names = [name for name, tensor in tensors.items() if name[:6] == "model." and tensor.numel()]
    name = names[which].removeprefix("model.")
    tensors[f"model.{name}"].view(-1)[0] = value
    write_checkpoint(run, tensors, state)
    line = refused("export", run, "--method", "nearest")
    assert line.startswith(f"{name} has 1 of"), line
    assert not (run / "model.golf").exists()


def test_calibration_text_that_is_missing(refused: Refused, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained / "run", run)
    shutil.rmtree(run / "tokens")
    line = refused("export", run, "-o", tmp_path / "m.golf")
    assert (
        f"{run / 'tokens'} holds no training tokens to calibrate on; use --method nearest" in line
    )
    assert not (tmp_path / "m.golf").exists()


def test_calibration_text_that_is_damaged(refused: Refused, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained / "run", run)
    (shard,) = (run / "tokens").glob("*.bin")
    data = bytearray(shard.read_bytes())
    data[1030] ^= 1
    shard.write_bytes(data)
    line = refused("export", run, "-o", tmp_path / "m.golf")
    assert "the tokens were damaged or edited" in line and str(shard) in line
    assert not (tmp_path / "m.golf").exists()


def test_an_artifact_that_was_calibrated_on_the_text_it_is_scored_on(
    refused: Refused, trained: Path, tmp_path: Path
) -> None:
    """Calibration reads the run's own training tokens, so that shared text is found by digest."""
    half = tmp_path / "val.jsonl"
    lines = (trained / "c.jsonl").read_text().splitlines(keepends=True)
    half.write_text("".join(lines[:20]) + json.dumps({"text": "Something else."}) + "\n")
    artifact, result = trained / "run" / "m.golf", tmp_path / "s.json"
    line = refused("score", artifact, "--corpus", half, "--save", result)
    assert f"20 of 21 documents of {half} were trained on" in line
    assert not result.exists()


def test_a_record_of_the_training_text_that_is_damaged(
    refused: Refused, trained: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained / "run", run)
    (tmp_path / "val.txt").write_bytes(TEXT)
    digests = run / "train_documents.npy"
    digests.write_bytes(digests.read_bytes()[:-1] + b"\0")
    line = refused("score", run, "--corpus", tmp_path / "val.txt")
    assert f"{digests} is damaged" in line


@pytest.mark.parametrize("version", [0, 1, VERSION + 1, 255])
def test_an_artifact_of_another_version(
    version: int, refused: Refused, trained: Path, tmp_path: Path
) -> None:
    data = (trained / "run" / "m.golf").read_bytes()
    data = data[:4] + struct.pack("<I", version) + data[8:-32]
    path = tmp_path / "m.golf"
    path.write_bytes(data + sha256(data).digest())
    for command in (["inspect", path], ["score", path, "--corpus", trained / "c.jsonl"]):
        line = refused(*command)
        assert f"format version {version}, this tokgolf reads {VERSION}" in line
        assert "use the tokgolf that wrote it" in line and line.startswith(f"{path}: ")


HOSTILE_STATES: dict[str, tuple[dict[str, Any], str]] = {
    "a file outside": ({"file": "../../../etc/passwd"}, "no checkpoint's name"),
    "an absolute file": ({"file": "/etc/passwd"}, "no checkpoint's name"),
    "a number for a file": ({"file": 3}, "no checkpoint's name"),
    "a list for a hash": ({"sha256": []}, "was damaged or edited"),
    "a list for a state": ({"state": [1]}, "is damaged"),
    "no state": ({"state": {}}, "state is damaged"),
}


@pytest.mark.parametrize("name", HOSTILE_STATES)
def test_a_pointer_made_by_hand(name: str, refused: Refused, tmp_path: Path) -> None:
    run = tmp_path / "run"
    save_run(run, float_model("tied"))
    pointer = run / "checkpoints" / "latest.json"
    changes, message = HOSTILE_STATES[name]
    write_sealed(pointer, {**read_sealed(pointer), **changes})
    assert message in refused("export", run, "--method", "nearest")


@pytest.mark.parametrize("key", ["step", "loss", "seconds", "compile_seconds"])
@pytest.mark.parametrize("value", [None, "x", [], 1.5])
def test_a_state_that_training_cannot_go_on_from(
    key: str, value: object, refused: Refused, trained: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained / "run", run)
    pointer = run / "checkpoints" / "latest.json"
    latest = read_sealed(pointer)
    if isinstance(value, float) and key != "step":
        del latest["state"][key]
    else:
        latest["state"][key] = value
    write_sealed(pointer, latest)
    resume = ["train", "--corpus", trained / "c.jsonl", "--tokenizer", trained / "t.tok", "-o", run]
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    assert "cannot be resumed from" in refused(*resume, *settings, "--set", "steps=9", "--resume")


def test_tensors_under_a_right_hash_that_are_none(refused: Refused, tmp_path: Path) -> None:
    run = tmp_path / "run"
    save_run(run, float_model("tied"))
    (path,) = (run / "checkpoints").glob("*.safetensors")
    pointer = run / "checkpoints" / "latest.json"
    for data, message in (
        (b"no tensors at all", "holds no tensors that can be read"),
        (safetensors.torch.save({"model.x": torch.zeros(2)}), "does not fit its config"),
    ):
        path.write_bytes(data)
        write_sealed(pointer, {**read_sealed(pointer), "sha256": sha256(data).hexdigest()})
        assert message in refused("export", run, "--method", "nearest")


def test_a_list_of_exports_that_holds_something_else(
    refused: Refused, trained: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained / "run", run)
    (run / "exports.txt").write_text("0" * 64 + "\nhello\n")
    (tmp_path / "val.txt").write_bytes(TEXT)
    line = refused("score", run / "m.golf", "--corpus", tmp_path / "val.txt")
    assert "exports.txt line 2 is no SHA-256" in line
