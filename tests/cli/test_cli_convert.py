"""`import-tokenizer` and `export-tokenizer` on small files, and what they refuse."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
import tokenizers

from tokgolf import cli, load_tokenizer
from tokgolf.tokenizers import build_tokenizer, save_tokenizer

Call = Callable[..., tuple[int, str, str]]
TEXT = "Document 7 says that tiny models learn tiny things."
KEYS = {
    "tokenizer",
    "kind",
    "vocab_size",
    "bos_id",
    "asset_bytes",
    "original_bytes",
    "original_xz_bytes",
    "lossless",
    "losses",
    "warning",
    "fingerprint",
}


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command line in this process: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = cli.run([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small SentencePiece model with the usual normaliser."""
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT.replace("7", str(n)) for n in range(50)]),
        model_writer=file,
        model_type="bpe",
        vocab_size=320,
        hard_vocab_limit=False,
        byte_fallback=True,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("models") / "small.model"
    path.write_bytes(file.getvalue())
    return path


def test_a_model_is_imported_and_compared_with_its_file(
    call: Call, model: Path, tmp_path: Path
) -> None:
    output = tmp_path / "x.tok"
    code, out, _ = call("import-tokenizer", model, "-o", output, "--json")
    values = json.loads(out)
    assert code == 0 and values.keys() == KEYS
    assert values["kind"] == "sentencepiece"
    assert values["asset_bytes"] == output.stat().st_size < 400
    assert values["original_bytes"] == model.stat().st_size > 240_000
    assert values["asset_bytes"] < values["original_xz_bytes"] < values["original_bytes"]
    assert values["lossless"] is False and "it normalises by nmt_nfkc" in values["losses"]
    library = sentencepiece.SentencePieceProcessor(model_file=str(model))
    assert load_tokenizer(output).encode(TEXT.encode()).tolist() == library.encode(TEXT)


def test_people_read_rows(call: Call, model: Path, tmp_path: Path) -> None:
    code, out, err = call("import-tokenizer", model, "-o", tmp_path / "x.tok")
    rows = dict(line.split(maxsplit=1) for line in out.splitlines() if len(line.split()) > 1)
    assert (code, err) == (0, "")
    assert rows["kind"] == "sentencepiece" and rows["lossless"] == "no"
    assert rows["original_bytes"] == f"{model.stat().st_size:,}"


def test_a_tokenizer_is_exported_and_comes_back(call: Call, tmp_path: Path) -> None:
    tokenizer = build_tokenizer("bpe", [TEXT.encode()] * 9, 280)
    save_tokenizer(tokenizer, tmp_path / "x.tok")
    code, out, _ = call("export-tokenizer", tmp_path / "x.tok", "-o", tmp_path / "x.json")
    assert code == 0 and "280" in out
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "x.json"))
    assert library.encode(TEXT).ids == tokenizer.encode(TEXT.encode()).tolist()
    code, out, _ = call("import-tokenizer", tmp_path / "x.json", "-o", tmp_path / "again.tok")
    assert code == 0 and (tmp_path / "again.tok").read_bytes() == tokenizer.asset()


def test_what_a_file_does_not_say_is_a_note(call: Call, tmp_path: Path) -> None:
    save_tokenizer(build_tokenizer("bpe", [TEXT.encode()] * 9, 280), tmp_path / "x.tok")
    arguments = "export-tokenizer", tmp_path / "x.tok", "-o", tmp_path / "x.tiktoken"
    code, out, err = call(*arguments)
    assert code == 0 and err.startswith("note: a rank file has neither the pattern (gpt4)")
    code, out, err = call(*arguments, "--json")
    assert err == "" and json.loads(out)["note"].startswith("a rank file")
    assert json.loads(out)["file_bytes"] == (tmp_path / "x.tiktoken").stat().st_size
    code, out, _ = call(
        "import-tokenizer", tmp_path / "x.tiktoken", "-o", tmp_path / "y.tok", "--pattern", "gpt2"
    )
    again = load_tokenizer(tmp_path / "y.tok")
    assert code == 0 and again.decode(again.encode(TEXT.encode())) == TEXT.encode()


def test_errors_are_one_line_and_leave_no_file(call: Call, model: Path, tmp_path: Path) -> None:
    save_tokenizer(build_tokenizer("bpe", [TEXT.encode()] * 9, 280), tmp_path / "x.tok")
    (tmp_path / "text.json").write_text("{}")
    before = sorted(tmp_path.iterdir())
    for arguments, message in (
        (("import-tokenizer", tmp_path / "text.json", "-o", tmp_path / "y"), "no model with a"),
        (("import-tokenizer", tmp_path / "none", "-o", tmp_path / "y"), "No such file"),
        (("import-tokenizer", tmp_path, "-o", tmp_path / "y"), "Is a directory"),
        (("import-tokenizer", model, "-o", tmp_path / "no" / "y"), "is no folder"),
        (("import-tokenizer", tmp_path / "x.tok", "-o", tmp_path / "y"), "tokenizer already"),
        (("export-tokenizer", tmp_path / "x.tok", "-o", tmp_path / "y.model"), "cannot be a"),
        (("export-tokenizer", tmp_path / "x.tok", "-o", tmp_path / "y.bin"), "cannot export to"),
        (("export-tokenizer", tmp_path / "text.json", "-o", tmp_path / "y.json"), "not a tokeniz"),
    ):
        code, out, err = call(*arguments)
        assert (code, out) == (1, "")
        assert err.startswith("error: ") and message in err and err.count("\n") == 1, err
    assert sorted(tmp_path.iterdir()) == before
