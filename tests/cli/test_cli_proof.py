"""compress, decompress and sample as commands: round trips, JSON keys, one line for a fault."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tokgolf import cli, open_corpus
from tokgolf.artifact.checkpoint import FloatModel
from tokgolf.artifact.export import encode_artifact
from tokgolf.config import TrunkConfig
from tokgolf.heads import head_config
from tokgolf.model import build_model, head_shape
from tokgolf.quantize.rows import QuantConfig
from tokgolf.tokenizers import build_tokenizer

KEYS = {
    "bpb", "file_bpb", "documents", "bytes", "tokens", "model_bytes", "code_bytes", "file_bytes",
    "overhead_bytes", "stride", "corpus_sha256", "artifact_sha256", "seconds",
}  # fmt: skip
TEXTS = ["One document, r\u00e9sum\u00e9.", "", "Another\none."]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an artifact `m.golf` and a corpus `c.jsonl`."""
    folder = tmp_path_factory.mktemp("made")
    trunk = TrunkConfig(
        layers=1, d_model=16, heads=2, kv_heads=1, mlp_hidden=16, sequence_length=16
    )
    tokenizer, head = build_tokenizer("byte", [], None), head_config({"name": "tied"})
    torch.manual_seed(0)
    model = build_model(trunk, head, head_shape(tokenizer, trunk)).eval()
    made = FloatModel(tokenizer=tokenizer, model=model, trunk=trunk, head=head, state={})
    data = encode_artifact(made, QuantConfig(method="nearest")).data
    (folder / "m.golf").write_bytes(data)
    (folder / "c.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    return folder


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capfdbinary: pytest.CaptureFixture[bytes]) -> Call:
    def run(*arguments: object) -> tuple[int, str, str]:
        code = cli.run([str(argument) for argument in arguments])
        out, err = capfdbinary.readouterr()
        return code, out.decode("utf-8", "surrogateescape"), err.decode()

    return run


def compressed(call: Call, made: Path, *what: object, to: Path) -> dict[str, object]:
    code, out, err = call("compress", *what, "-m", made / "m.golf", "-o", to, "--json")
    assert code == 0, err
    values = json.loads(out)
    assert set(values) == KEYS and values["file_bytes"] == to.stat().st_size
    return dict(values)


def test_a_file_comes_back_bit_for_bit(call: Call, made: Path, tmp_path: Path) -> None:
    for data in (b"", b"x", b"\xff\x00\xfe" + bytes(range(200))):
        (tmp_path / "in").write_bytes(data)
        values = compressed(call, made, tmp_path / "in", "--stride", 4, to=tmp_path / "x.bits")
        assert (values["documents"], values["bytes"], values["stride"]) == (1, len(data), 4)
        assert (values["bpb"] is None) == (not data)
        code, out, err = call(
            "decompress", tmp_path / "x.bits", "-m", made / "m.golf", "-o", tmp_path / "out"
        )
        assert code == 0 and f"{len(data)}" in out and err == ""
        assert (tmp_path / "out").read_bytes() == data


def test_a_corpus_comes_back_as_one(call: Call, made: Path, tmp_path: Path) -> None:
    corpus = open_corpus(str(made / "c.jsonl")).summary()
    bits = tmp_path / "x.bits"
    values = compressed(call, made, "--corpus", made / "c.jsonl", to=bits)
    assert values["corpus_sha256"] == corpus.sha256
    assert values["documents"] == len(TEXTS)
    code, out, _ = call("score", made / "m.golf", "--corpus", made / "c.jsonl", "--json")
    scored = json.loads(out)
    assert scored["bpb"] == pytest.approx(values["bpb"], rel=1e-6)
    assert scored["corpus_sha256"] == values["corpus_sha256"]
    for name in ("folder", "c.jsonl", "c.jsonl.zst"):
        target = tmp_path / name
        code, out, err = call("decompress", bits, "-m", made / "m.golf", "-o", target, "--json")
        assert code == 0, err
        assert json.loads(out)["documents"] == len(TEXTS)
        assert open_corpus(str(target)).summary().sha256 == corpus.sha256


def test_what_is_wrong_is_one_line_and_nothing_is_written(
    call: Call, made: Path, tmp_path: Path
) -> None:
    bits, model = tmp_path / "x.bits", made / "m.golf"
    compressed(call, made, "--corpus", made / "c.jsonl", to=bits)
    (cut := tmp_path / "cut.bits").write_bytes(bits.read_bytes()[:-1])
    before = sorted(tmp_path.iterdir())
    out = tmp_path / "out"
    for arguments, message in (
        (("decompress", cut, "-m", model, "-o", out), "cut short, damaged or edited"),
        (("decompress", model, "-m", model, "-o", out), "not a .bits file"),
        (("decompress", bits, "-m", bits, "-o", out), "not a .golf artifact"),
        (("decompress", bits, "-m", model, "-o", tmp_path), "name a new folder for the 3"),
        (("decompress", bits, "-m", model, "-o", out / "x"), "no folder"),
        (("decompress", out, "-m", model, "-o", out), "No such file"),
        (("compress", out, "-m", model, "-o", out), "No such file"),
        (("compress", bits, "-m", model, "-o", out, "--stride", 17), "stride is 17"),
        (("compress", "--corpus", "nothing", "-m", model, "-o", out), "no corpus or path"),
        (("sample", model, "--top-p", 0), "top-p"),
    ):
        code, printed, err = call(*arguments)
        assert (code, printed) == (1, ""), arguments
        assert err.startswith("error: ") and err.count("\n") == 1 and message in err
        assert sorted(tmp_path.iterdir()) == before


def test_files_and_a_corpus_are_not_given_together(call: Call, made: Path) -> None:
    for what in ((), (made / "c.jsonl", "--corpus", "stdlib")):
        code, _, err = call("compress", *what, "-m", made / "m.golf", "-o", made / "x")
        assert code == 2 and "FILES or --corpus" in err


def test_a_sample_is_bytes_on_stdout(call: Call, made: Path) -> None:
    options = ("--prompt", "r\u00e9", "--tokens", 20, "--seed", 1)
    code, out, err = call("sample", made / "m.golf", *options)
    assert code == 0 and err == "" and out.startswith("r\u00e9") and len(out) > 2
    assert call("sample", made / "m.golf", *options)[1] == out
