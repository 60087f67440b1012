"""`tokgolf audit` on small files: what it prints, its keys, its exit codes, what it refuses."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece

from tokgolf import cli
from tokgolf.corpora import open_corpus, write_shard
from tokgolf.eval.audit.audit import audit as run_audit
from tokgolf.eval.audit.claims import Claim, pair
from tokgolf.eval.official import byte_table, token_stream
from tokgolf.tokenizers import Tokenizer, build_tokenizer, from_asset, save_tokenizer
from tokgolf.tokenizers.foreign import foreign_asset

Call = Callable[..., tuple[int, str, str]]
TEXTS = [f"Document {n}:\n\tTiny models learn tiny caf\u00e9 things." for n in range(40)]
KEYS = {"verdict", "errors", "findings", "tokenizers"}


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command line in this process: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = cli.run(["audit", *(str(argument) for argument in arguments)])
        return code, *capsys.readouterr()

    return run


def train(path: Path, **options: Any) -> Path:
    file = io.BytesIO()
    usual: dict[str, Any] = {"byte_fallback": True, "add_dummy_prefix": False, "vocab_size": 330}
    usual |= {"model_type": "bpe", "hard_vocab_limit": False, "minloglevel": 2, "num_threads": 1}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=file, **(usual | options)
    )
    path.write_bytes(file.getvalue())
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, an official-style model and one that counts too much, a tokenizer of ours."""
    place = tmp_path_factory.mktemp("audit")
    lines = [json.dumps({"text": text}) + "\n" for text in TEXTS]
    (place / "text.jsonl").write_text("".join(lines))
    (place / "empty.d").mkdir()
    write_shard(
        place / "val.bin", [1, 5, 6], fingerprint="", corpus_sha256="", byte_count=0, documents=1
    )
    train(place / "good.model")
    train(place / "suffix.model", treat_whitespace_as_suffix=True)
    save_tokenizer(build_tokenizer("bpe", [t.encode() for t in TEXTS], 280), place / "ours.tok")
    return place


@pytest.fixture(scope="module")
def good(folder: Path) -> Tokenizer:
    return from_asset(foreign_asset((folder / "good.model").read_bytes()))


def test_a_sound_model_exits_with_0(call: Call, folder: Path) -> None:
    code, out, err = call(folder / "good.model", "--corpus", folder / "text.jsonl")
    assert (code, err) == (0, "")
    assert "warning: text-normalised" in out and out.endswith("verdict: sound with warnings\n")
    code, out, _ = call(folder / "ours.tok", "--corpus", folder / "text.jsonl")
    assert code == 0 and out.endswith("verdict: sound\n") and "warning" not in out


def test_a_model_that_counts_too_much_exits_with_1(call: Call, folder: Path) -> None:
    code, out, err = call(folder / "suffix.model", "--corpus", folder / "text.jsonl", "--json")
    values = json.loads(out)
    assert (code, err, values.keys()) == (1, "", KEYS)
    assert values["verdict"] == "wrong" and values["errors"] == ["space-at-piece-end"]
    assert {*values["findings"][0]} == {
        "name", "severity", "evidence", "factor", "advice", "means",
    }  # fmt: skip
    facts = values["tokenizers"]["suffix.model"]
    assert facts["factor"] == pytest.approx(facts["counted_bytes"] / facts["text_bytes"])
    assert values["findings"][0]["factor"] == pytest.approx(facts["factor"])


def test_several_tokenizers_are_told_apart(call: Call, folder: Path) -> None:
    paths = [folder / "good.model", folder / "suffix.model", folder / "ours.tok"]
    code, out, _ = call(*paths, "--corpus", folder / "text.jsonl", "--json")
    values = json.loads(out)
    assert code == 1 and [*values["tokenizers"]] == [path.name for path in paths]
    assert values["errors"] == ["space-at-piece-end"]


def test_a_table_is_held_against_its_tokenizer(
    call: Call, folder: Path, good: Tokenizer, tmp_path: Path
) -> None:
    table = byte_table(good)
    columns: dict[str, Any] = {"has_leading_space": table.lead, "is_boundary_token": table.boundary}
    path = tmp_path / "meta.npz"
    np.savez(path, base_bytes=table.base + table.lead, **columns)
    given = path, "--tokenizer", folder / "good.model", "--corpus", folder / "text.jsonl"
    code, out, _ = call(*given)
    assert code == 1 and "error: space-counted-twice" in out
    np.savez(path, base_bytes=table.base, **columns)
    assert call(*given)[0] == 0


def test_shards_and_their_claim_are_audited_together(
    call: Call, folder: Path, good: Tokenizer, tmp_path: Path
) -> None:
    texts = [text.encode() for text in TEXTS]
    stream = token_stream(good, texts)
    nothing: dict[str, Any] = {
        "fingerprint": good.fingerprint, "corpus_sha256": "", "byte_count": 0, "documents": 0,
    }  # fmt: skip
    write_shard(tmp_path / "fineweb_val_000000.bin", stream.tokens, **nothing)
    sizes = np.append([0], stream.target_bytes)
    write_shard(tmp_path / "fineweb_val_bytes_000000.bin", sizes, **nothing)
    per_token = stream.target_bytes.sum() / len(stream.target_bytes)
    bpb = f"{2.0 / np.log(2) / per_token:.6f}"
    given = tmp_path, "--tokenizer", folder / "good.model", "--corpus", folder / "text.jsonl"
    code, out, _ = call(*given, "--val-loss", "2.000000", "--val-bpb", bpb, "--json")
    values = json.loads(out)
    assert code == 0 and values["errors"] == []
    assert values["claim"]["held_against"] == "the val shards"
    assert values["claim"]["corrected_bpb"] == pytest.approx(float(bpb), abs=1e-5)
    write_shard(tmp_path / "fineweb_train_000000.bin", stream.tokens, **nothing)
    code, out, _ = call(*given)
    assert code == 1 and "val-documents-in-train" in out


def test_a_claim_alone_is_held_against_itself_and_the_challenge(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "submission.json"
    path.write_text(json.dumps({"val_loss": 2.07269931, "val_bpb": 1.2276, "val_tokens": 62021632}))
    code, out, _ = call("--claim", path)
    assert code == 0 and "held_against     itself alone" in out
    code, out, _ = call("--claim", path, "--challenge", "--json")
    assert code == 0 and json.loads(out)["claim"]["factor"] == pytest.approx(1, abs=1e-3)
    path.write_text(json.dumps({"val_loss": 2.07269931, "val_bpb": 1.0519, "val_tokens": 62021632}))
    code, out, _ = call("--claim", path, "--challenge")
    assert code == 1 and "error: bytes-inflated" in out and "1.2276 bpb" in out


def test_a_claim_is_held_against_a_corpus_only_if_one_is_given(call: Call, folder: Path) -> None:
    claim = Claim(pairs=[pair("final", "2.0", "4.0")])
    paths, corpus = [folder / "ours.tok"], open_corpus(str(folder / "text.jsonl"))
    assert not run_audit(paths, corpus=corpus, own_corpus=False, claim=claim).findings
    given = "--val-loss", "2.0", "--val-bpb", "4.0", "--corpus", folder / "text.jsonl"
    code, out, _ = call(folder / "ours.tok", *given)
    assert code == 1 and "bytes counted / true bytes" in out


def test_a_right_claim_shows_that_a_wrong_table_was_not_used(call: Call, folder: Path) -> None:
    given = folder / "suffix.model", "--corpus", folder / "text.jsonl"
    _, out, _ = call(*given, "--json")
    facts = json.loads(out)["tokenizers"]["suffix.model"]
    true = 2.0 / np.log(2) / facts["bytes_per_token"]
    for bpb, right in ((true, True), (true / facts["factor"], False)):
        claim = "--val-loss", "2.000000", "--val-bpb", f"{bpb:.6f}"
        code, out, _ = call(*given, *claim, "--json")
        assert (code == 0) is right
        assert json.loads(out)["errors"] == (
            [] if right else ["space-at-piece-end", "bytes-inflated"]
        )
    assert "as the table counts" in out


def test_a_claim_without_a_count_of_tokens_is_held_loosely_and_that_is_said(
    call: Call, folder: Path
) -> None:
    given = folder / "suffix.model", "--corpus", folder / "text.jsonl"
    facts = json.loads(call(*given, "--json")[1])["tokenizers"]["suffix.model"]
    bpb = 2.0 / np.log(2) / facts["bytes_per_token"] / 1.02
    claim = "--val-loss", "2.000000", "--val-bpb", f"{bpb:.6f}"
    code, out, _ = call(*given, *claim)
    assert code == 0 and "warning: claim-held-loosely" in out and "give --tokens" in out
    assert "warning: space-at-piece-end" in out  # its table would count far more
    targets = facts["tokens"] + len(TEXTS) - 1
    code, out, _ = call(*given, *claim, "--tokens", targets)
    assert code == 1 and "error: bytes-inflated" in out


@pytest.mark.parametrize(
    ("targets", "names"),
    [(5_999, []), (6_001, ["scored-twice"]), (600, ["scored-in-part"]), (60_000, [])],
)
def test_a_count_of_targets_is_held_against_the_corpus(
    targets: int, names: list[str], folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"x" * 5_999)
    save_tokenizer(build_tokenizer("byte", [], None), tmp_path / "byte.tok")
    bpb = 2.0 / np.log(2)
    claim = Claim(pairs=[pair("final", "2.0000000", f"{bpb:.7f}")], targets=targets)
    report = run_audit([tmp_path / "byte.tok"], corpus=open_corpus(str(path)), claim=claim)
    assert [finding.name for finding in report.findings] == names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is nothing to audit"),
        (["--val-loss", "2"], "give both"),
        (["--val-loss", "2", "--val-bpb", "x"], "both are numbers above 0"),
        (["--val-loss", "2", "--val-bpb", "1", "--challenge"], "add --tokens"),
        (["ours.tok", "--challenge"], "--challenge is about a claim"),
        (["ours.tok", "--tokens", "9"], "--tokens is about a claim"),
        (["--val-loss", "2", "--val-bpb", "1", "--corpus", "text.jsonl"], "add the tokenizer"),
        (["val.bin", "--corpus", "text.jsonl"], "add the tokenizer"),
        (["good.model", "ours.tok", "--val-loss", "2", "--val-bpb", "1"], "give its own alone"),
        (["missing.model"], "No such file"),
        (["empty.d"], "holds no token shards"),
        (["text.jsonl"], "text.jsonl: no"),
    ],
)
def test_what_cannot_be_audited_is_one_line(
    call: Call, folder: Path, arguments: list[str], message: str
) -> None:
    code, out, err = call(*(folder / a if "." in a and a[0].isalpha() else a for a in arguments))
    assert code == 1 and out == "" and err.count("\n") == 1 and message in err


@pytest.mark.parametrize("tokens", ["0", "-5", "1" + "0" * 400])
def test_a_count_of_tokens_out_of_range_is_refused(call: Call, tokens: str) -> None:
    given = "--val-loss", "2", "--val-bpb", "1", "--challenge", "--tokens", tokens
    code, out, err = call(*given)
    assert code != 0 and out == "" and "is not in the range 1<=x<=1073741824" in err


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.npz", b"PK\x03\x04"),
        ("x.yaml", b"charset: none\ntokens:\n"),
        ("x.bin", b"123"),
        ("x.vocab", b"\x02\x01\x01"),
        ("x.model", b"\x0a\x03abc"),
        ("x.golf", b"GOLF"),
        ("x.tok", b""),
    ],
)
def test_damaged_files_are_one_line_with_their_name(
    call: Call, folder: Path, tmp_path: Path, name: str, data: bytes
) -> None:
    path = tmp_path / ("val_" + name)
    path.write_bytes(data)
    corpus = [] if name == "x.bin" else ["--corpus", folder / "text.jsonl"]
    code, out, err = call(path, *corpus)
    assert code == 1 and out == "" and err.count("\n") == 1
    assert path.name in err
