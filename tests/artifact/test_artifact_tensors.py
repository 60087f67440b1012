"""Weights as safetensors: the library reads them, and the same model comes back."""

from pathlib import Path

import artifact_support as support
import pytest
import safetensors
import safetensors.torch
import torch

from tokgolf.artifact.checkpoint import FloatModel
from tokgolf.artifact.export import encode_artifact
from tokgolf.artifact.tensors import export_weights, load_weights
from tokgolf.config import TrunkConfig
from tokgolf.errors import ArtifactError, ConfigError
from tokgolf.heads import head_config
from tokgolf.model import build_model, head_shape
from tokgolf.quantize.rows import QuantConfig
from tokgolf.tokenizers import build_tokenizer

TRUNK = TrunkConfig(layers=1, d_model=16, heads=2, kv_heads=1, mlp_hidden=16, sequence_length=16)
TOKENIZER = build_tokenizer("byte", [], None)


@pytest.mark.parametrize("case", ["tied", "vq", "every add-on"])
def test_the_library_reads_them_and_the_logits_are_the_same(case: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    head, shape = head_config(support.OPTIONS[case]), head_shape(TOKENIZER, TRUNK)
    model = build_model(TRUNK, head, shape, torch.arange(shape.vocab_size)).eval()
    source = FloatModel(tokenizer=TOKENIZER, model=model, trunk=TRUNK, head=head, state={})
    artifact = encode_artifact(source, QuantConfig(method="nearest"))
    path = tmp_path / "m.safetensors"
    count, metadata = export_weights(artifact, path)
    read, own = safetensors.torch.load_file(path), artifact.model.state_dict()
    assert len(read) == count and read.keys() == own.keys()
    assert all(torch.equal(read[name], own[name]) for name in own)
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == metadata
    assert metadata["tokenizer"] == TOKENIZER.fingerprint
    assert metadata["artifact_sha256"] == artifact.sha256
    tokens = torch.randint(0, 256, (2, 16))
    again = load_weights(path, TOKENIZER).model
    assert torch.equal(again.log_probs(tokens), artifact.model.log_probs(tokens))
    other = build_tokenizer("bpe", [b"tiny tiny tiny"], 258)
    with pytest.raises(ArtifactError, match="belongs to tokenizer"):
        load_weights(path, other)


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(2)}, path)
    for data in (path.read_bytes(), b"", b"no tensors"):
        path.write_bytes(data)
        with pytest.raises(ArtifactError, match="holds no weights"):
            load_weights(path, TOKENIZER)
    with pytest.raises(ConfigError, match="does not end in .safetensors"):
        export_weights(None, tmp_path / "x.bin")  # type: ignore[arg-type]
