"""What goes wrong: one line that starts with "error: ", exit code 1, and no half-written file."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tokgolf import build_tokenizer, cli, load_artifact, load_tokenizer, open_corpus
from tokgolf.artifact.checkpoint import read_checkpoint
from tokgolf.cli import options
from tokgolf.errors import TokgolfError
from tokgolf.model import LanguageModel
from tokgolf.tokenizers import save_tokenizer

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "trunk.layers": 1,
    "trunk.d_model": 16,
    "trunk.heads": 2,
    "trunk.kv_heads": 1,
    "trunk.mlp_hidden": 24,
    "trunk.sequence_length": 16,
    "batch_tokens": 64,
    "micro_batch_tokens": 64,
    "precision": "fp32",
    "compile": "off",
    "steps": 4,
}
TINY = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]


Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run the command line, which must fail with 1 and one line; returns that line."""

    def run(*arguments: object) -> str:
        code = cli.run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return one_error_line(code, out, err)

    return run


def one_error_line(code: int, out: str, err: str) -> str:
    """The error, once it is proved to be all that was said, but for the progress before it."""
    progress = (
        "training: step ",
        "scoring: ",
        "measuring the damage of ",
        "pass ",
        "tuning ",
        "tuned: ",
    )
    lines = [line for line in err.splitlines() if not line.startswith(progress)]
    assert code == 1, (out, err)
    assert out == ""
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    assert "Traceback" not in err
    return lines[0].removeprefix("error: ")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus, a tokenizer, a run and an artifact."""
    folder = tmp_path_factory.mktemp("made")
    texts = [f"Document {i} says that tiny models learn tiny things, {i}." for i in range(60)]
    (folder / "c.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    (folder / "val.txt").write_text("A held-out document.")
    corpus, tokenizer = str(folder / "c.jsonl"), str(folder / "t.tok")
    train = ["train", "--corpus", corpus, "--tokenizer", tokenizer, "-o", str(folder / "run")]
    for arguments in (
        ["build-tokenizer", "--vocab-size", "270", "--corpus", corpus, "-o", tokenizer],
        [*train, *TINY],
        [
            *("export", str(folder / "run"), "--cap", "1MB", "--tune", "0"),
            *("-o", str(folder / "m.golf")),
        ],
    ):
        assert cli.run(arguments) == 0
    return folder


def train_command(made: Path, run: Path, *more: object) -> list[object]:
    usual = ["--corpus", made / "c.jsonl"], ["--tokenizer", made / "t.tok"]
    options = [part for option in usual if option[0] not in more for part in option]
    return ["train", *options, "-o", run, *TINY, *more]


# --- corpora


@pytest.mark.parametrize("command", ["info", "build", "train", "score", "golf"])
def test_a_missing_corpus(command: str, refused: Refused, made: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    corpus, tokenizer = ["--corpus", tmp_path / "none.txt"], ["--tokenizer", made / "t.tok"]
    arguments = {
        "info": ["corpus", "info", tmp_path / "none.txt"],
        "build": ["build-tokenizer", "--vocab-size", 300, *corpus, "-o", output],
        "train": ["train", *corpus, *tokenizer, "-o", output],
        "score": ["score", made / "m.golf", *corpus, "--save", output],
        "golf": ["golf", *corpus, "-o", output],
    }[command]
    assert "no corpus or path" in refused(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_corpus_name_gets_a_hint(refused: Refused) -> None:
    assert "did you mean 'stdlib'?" in refused("corpus", "info", "stdlb")


@pytest.mark.parametrize("name", ["empty.txt", "empty.jsonl"])
@pytest.mark.parametrize("command", ["info", "build", "train", "score", "export"])
def test_an_empty_corpus(
    command: str, name: str, refused: Refused, made: Path, tmp_path: Path
) -> None:
    empty = tmp_path / name
    empty.touch()
    output = tmp_path / "out.jsonl"
    arguments = {
        "info": ["corpus", "info", empty],
        "build": ["build-tokenizer", "--vocab-size", 300, "--corpus", empty, "-o", output],
        "train": ["train", "--corpus", empty, "--tokenizer", made / "t.tok", "-o", output],
        "score": ["score", made / "m.golf", "--corpus", empty, "--save", output],
        "export": ["corpus", "export", empty, "-o", output],
    }[command]
    assert re.search("has no documents|has 0 bytes|no documents|empty", refused(*arguments))
    assert list(tmp_path.iterdir()) == [empty]


def test_one_huge_line_works(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "huge.jsonl"
    text = "one word after another " * 40_000
    path.write_text(json.dumps({"text": text}))
    tokenizer = tmp_path / "t.tok"
    build = ["build-tokenizer", "--vocab-size", "270", "--corpus", str(path), "-o", str(tokenizer)]
    assert cli.run(build) == 0
    loaded = load_tokenizer(tokenizer)
    assert loaded.decode(loaded.encode(text.encode())) == text.encode()
    run = train_command(made, tmp_path / "run", "--corpus", path, "--tokenizer", tokenizer)
    assert cli.run([str(argument) for argument in run]) == 0


def test_invalid_utf8_in_a_text_file_is_kept_byte_for_byte(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bytes.txt"
    path.write_bytes(b"valid text, then \xff\xfe\x00\xc3\x28 and \xed\xa0\x80 bytes " * 8)
    tokenizer = tmp_path / "t.tok"
    build = ["build-tokenizer", "--vocab-size", "262", "--corpus", str(path), "-o", str(tokenizer)]
    assert cli.run(build) == 0
    loaded = load_tokenizer(tokenizer)
    assert loaded.decode(loaded.encode(path.read_bytes())) == path.read_bytes()
    capsys.readouterr()
    assert cli.run(["score", str(made / "m.golf"), "--corpus", str(path), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["bytes"] == path.stat().st_size
    assert values["invariants"]["documents_decode_exactly"] is True


def test_invalid_utf8_in_json_lines_is_refused_with_the_line(
    refused: Refused, tmp_path: Path
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"text": "good"}\n{"text": "\xff"}\n')
    output = tmp_path / "t.tok"
    message = refused("build-tokenizer", "--vocab-size", 300, "--corpus", path, "-o", output)
    assert f"{path} line 2 is not UTF-8 at byte 10" in message
    assert not output.exists()


def test_bytes_that_json_cannot_hold_are_not_half_exported(
    refused: Refused, tmp_path: Path
) -> None:
    (tmp_path / "bytes.txt").write_bytes(b"\xff")
    message = refused("corpus", "export", tmp_path / "bytes.txt", "-o", tmp_path / "out.jsonl")
    assert "document bytes.txt is not UTF-8 at byte 0 of 1" in message
    assert [path.name for path in tmp_path.iterdir()] == ["bytes.txt"]


def test_a_held_out_document_that_was_trained_on(
    refused: Refused, made: Path, tmp_path: Path
) -> None:
    message = refused(*train_command(made, tmp_path / "run", "--val", made / "c.jsonl"))
    assert "60 of 60 documents" in message
    assert not (tmp_path / "run").exists()
    score = refused(
        "score", made / "run", "--corpus", made / "c.jsonl", "--save", tmp_path / "s.json"
    )
    assert "60 of 60 documents" in score
    assert not (tmp_path / "s.json").exists()


# --- tokenizers


def test_a_vocabulary_larger_than_the_text_supports(
    refused: Refused, made: Path, tmp_path: Path
) -> None:
    for kind in ("bpe", "unigram"):
        output = tmp_path / "t.tok"
        build = ["build-tokenizer", "--kind", kind, "--corpus", made / "c.jsonl", "-o", output]
        assert re.search(r"60,?000", refused(*build, "--vocab-size", 60_000))
        assert "100000 is outside 257" in refused(*build, "--vocab-size", 100_000)
        assert not output.exists()


def test_an_unknown_kind_of_tokenizer(refused: Refused, made: Path, tmp_path: Path) -> None:
    build = ["build-tokenizer", "--corpus", made / "c.jsonl", "-o", tmp_path / "t.tok"]
    assert "did you mean 'unigram'?" in refused(*build, "--kind", "unigrams", "--vocab-size", 300)
    assert "a bpe tokenizer needs a size" in refused(*build)


@pytest.mark.parametrize("content", [b"", b"not a tokenizer", bytes(100)])
def test_a_file_that_is_no_tokenizer(
    content: bytes, refused: Refused, made: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.tok"
    bad.write_bytes(content)
    assert str(bad) in refused(*train_command(made, tmp_path / "run", "--tokenizer", bad))
    assert str(bad) in refused("inspect", bad)
    assert not (tmp_path / "run").exists()


def test_a_missing_tokenizer(refused: Refused, made: Path, tmp_path: Path) -> None:
    missing = tmp_path / "none.tok"
    message = refused(*train_command(made, tmp_path / "run", "--tokenizer", missing))
    assert message == f"{missing}: No such file or directory; check the path"


def copy_of(folder: Path, to: Path) -> Path:
    for path in folder.rglob("*"):
        if path.is_file():
            target = to / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return to


def test_a_tokenizer_that_is_not_the_checkpoints(
    refused: Refused, made: Path, tmp_path: Path
) -> None:
    run = copy_of(made / "run", tmp_path / "run")
    other = run / "tokenizer.tok"
    save_tokenizer(build_tokenizer("byte", [], None), other)
    for command in (["export", run], ["score", run, "--corpus", made / "val.txt"]):
        assert "the checkpoint was trained with" in refused(*command)
    assert not (run / "model.golf").exists()
    own = load_tokenizer(made / "t.tok").fingerprint[:16]
    resume = train_command(made, made / "run", "--tokenizer", other, "--resume")
    assert f"was trained with tokenizer {own}" in refused(*resume, "--set", "steps=9")


# --- artifacts and runs


def test_a_cap_that_is_too_small(refused: Refused, made: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.golf"
    message = refused("export", made / "run", "--cap", 1000, "-o", path)
    model = load_artifact(made / "m.golf").model
    count = sum(s.tensor.numel() for s in model.stored() if s.kind != "codes")
    assert "under the cap of 1,000 bytes: code, tokenizer and frame take" in message
    assert f"its {count:,} weights at least {count // 8:,} (at 1.0 bits)" in message
    message = refused("export", made / "run", "--cap", 1000, "--bits", 4, "-o", path)
    assert f"its {count:,} weights at least {count // 2:,} (at 4.0 bits); leave out" in message
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"an older artifact")
    refused("export", made / "run", "--cap", 1000, "-o", path)
    assert path.read_bytes() == b"an older artifact"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bits", 0], "bits is 0.0; it must be greater than 0"),
        (["--bits", -2], "bits is -2.0; it must be greater than 0"),
        (["--bits", "nan"], "bits is nan; it must be"),
        (["--bits", 9], "bits is 9.0; at most 8.0 bits a weight"),
        (["--rate-weight", 3], "rate_weight is 3.0; it must be 0 to 2"),
    ],
)
def test_a_setting_of_the_export_that_cannot_be(
    options: list[object], message: str, refused: Refused, made: Path, tmp_path: Path
) -> None:
    assert message in refused("export", made / "run", "-o", tmp_path / "m.golf", *options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bits", "four"], "'four' is not a valid float"),
        (["--method", "nearst"], "'nearst' is not one of 'trellis', 'gptq', 'nearest'"),
        (["--cap", "16 miles"], "Invalid value for '--cap'"),
        (["--plan", "p.json", "--bits", "4"], "--plan says it all; leave out --bits"),
        (["--plan", "p.json", "--rate-weight", "1"], "leave out --rate-weight"),
        (["--clip", "3"], "No such option '--clip'"),
    ],
)
def test_an_option_of_the_export_that_cannot_be(
    options: list[str], message: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(made / "run"), "-o", str(tmp_path / "m.golf"), *options]
    assert cli.run(command) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_plan_that_cannot_be_followed(refused: Refused, made: Path, tmp_path: Path) -> None:
    plan, output = tmp_path / "p.json", tmp_path / "out"
    output.mkdir()
    command = ["export", made / "run", "-o", output / "m.golf", "--plan", plan]
    assert str(plan) in refused(*command)
    good = json.loads((made / "m.golf.plan.json").read_text())
    for text in ("", "{}", "\0", json.dumps(good)[:-1], json.dumps({**good, "steps": 3})):
        plan.write_text(text)
        assert refused(*command).startswith(f"{plan} is not a plan written by tokgolf export: ")
    other = {name: {f"{key}s": value for key, value in good[name].items()} for name in good}
    plan.write_text(json.dumps({**good, "steps": other["steps"], "damage": other["damage"]}))
    assert "the plan is not of this run: only one of them has " in refused(*command)
    assert list(output.iterdir()) == []


@pytest.mark.parametrize("keep", [0, 3, 16, 100, -1])
def test_a_truncated_artifact(keep: int, refused: Refused, made: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.golf"
    path.write_bytes((made / "m.golf").read_bytes()[:keep])
    for command in (["inspect", path], ["score", path, "--corpus", made / "val.txt"]):
        assert refused(*command).startswith(f"{path}: ")


@pytest.mark.parametrize("place", [5, 20, 200, -40, -1])
def test_an_edited_artifact(place: int, refused: Refused, made: Path, tmp_path: Path) -> None:
    data = bytearray((made / "m.golf").read_bytes())
    data[place] ^= 1
    path = tmp_path / "edited.golf"
    path.write_bytes(data)
    message = refused("score", path, "--corpus", made / "val.txt", "--save", tmp_path / "s.json")
    assert message.startswith(f"{path}: ")
    assert not (tmp_path / "s.json").exists()


def test_a_directory_that_is_no_run(refused: Refused, made: Path, tmp_path: Path) -> None:
    for command in (["export", tmp_path], ["inspect", tmp_path], ["score", tmp_path]):
        assert "holds no checkpoint" in refused(*command)
    (tmp_path / "precious").touch()
    (tmp_path / "config.toml").touch()  # of some other program
    golf = ["golf", "--corpus", made / "c.jsonl", "-o", tmp_path]
    assert "is not a tokgolf run; choose another -o" in refused(*golf)
    assert (tmp_path / "precious").exists()


def test_a_damaged_checkpoint(refused: Refused, made: Path, tmp_path: Path) -> None:
    run = copy_of(made / "run", tmp_path / "run")
    (weights,) = (run / "checkpoints").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    assert "was damaged or edited" in refused("export", run)
    weights.unlink()
    assert "is damaged" in refused("export", run)
    assert not (run / "model.golf").exists()


def test_a_run_that_is_already_there(refused: Refused, made: Path) -> None:
    assert "already holds a run; use --resume" in refused(*train_command(made, made / "run"))


# --- training


def test_a_loss_that_is_not_a_number(
    refused: Refused, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = LanguageModel.loss
    monkeypatch.setattr(LanguageModel, "loss", lambda *batch: loss(*batch) * float("nan"))
    message = refused(*train_command(made, tmp_path / "run"))
    assert message.startswith("the loss is nan at step 1;")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_terminated_run_has_a_checkpoint(
    refused: Refused, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, calls = LanguageModel.loss, 0

    def terminated(*batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(*batch)

    monkeypatch.setattr(LanguageModel, "loss", terminated)
    handler = signal.getsignal(signal.SIGTERM)
    message = refused(*train_command(made, tmp_path / "run"))
    assert message.startswith("interrupted after step 3; the checkpoint in ")
    assert read_checkpoint(tmp_path / "run")[1]["step"] == 3
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_rate_that_is_too_high_to_learn_is_said(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = train_command(made, tmp_path / "run", "--set", "optimizer.lr_tied=100")
    assert cli.run([str(part) for part in command]) == 0
    assert re.search(r"diverged  the loss is \d+\.\d+ nats at the end", capsys.readouterr().err)


def test_an_absurd_learning_rate_is_stopped_within_a_few_steps(
    refused: Refused, made: Path, tmp_path: Path
) -> None:
    settings = ["--set", "optimizer.lr_vector=1e38", "--set", "optimizer.lr_matrix=1e38"]
    message = refused(*train_command(made, tmp_path / "run", *settings, "--set", "steps=50"))
    assert re.match(r"the loss is (nan|inf) at step [2-9]; \S.* (in|of) (trunk|head)\.", message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--head", "teid"], "there is no head 'teid'; did you mean 'tied'?"),
        (["--recipe", "cqu"], "there is no recipe or file 'cqu'; did you mean 'cpu'?"),
        (["--set", "trunk.layer=2"], "unknown key 'layer'; did you mean 'layers'?"),
        (["--head", "tied", "--set", "head=vq"], "--set head=vq: head is a table; set its keys"),
        (["--set", "stepz=2"], "unknown key 'stepz'; did you mean 'steps'?"),
        (["--set", "head.rnk=2"], "unknown key 'rnk'"),
        (["--head", "factorized", "--set", "head.rnk=2"], "did you mean 'rank'?"),
        (
            ["--head", "tied", "--set", "head.name=vq"],
            "head.name=vq and --head tied are two values",
        ),
        (["--set", "steps"], "write it as key=value"),
        (["--set", "steps=many"], "steps is 'many'; it must be of type int"),
        (["--set", "steps=0"], "steps is 0; it must be greater than 0"),
        (["--steps", "9"], "--set steps=4 and --steps 9 are two values; give one of them"),
        (["--set", "trunk_from=a", "--from", "b"], "trunk_from=a and --from b are two values"),
        (["--set", "freeze_trunk=false", "--freeze-trunk"], "=False and --freeze-trunk True are"),
        (["--set", "minutes=2", "--minutes", "3"], "minutes=2 and --minutes 3.0 are two values"),
        (["--set", "trunk.heads=5"], "d_model 16 does not split into 5 heads"),
        (["--device", "warp"], "there is no device 'warp'"),
        (["--from", "nowhere"], "nowhere holds no checkpoint; make one with tokgolf train"),
        (["--freeze-trunk"], "freeze_trunk is on and trunk_from names no run"),
    ],
)
def test_a_setting_that_cannot_be(
    arguments: list[str], message: str, refused: Refused, made: Path, tmp_path: Path
) -> None:
    assert message in refused(*train_command(made, tmp_path / "run", *arguments))
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("stride", [-1, 17])
def test_a_stride_that_cannot_be(stride: int, refused: Refused, made: Path) -> None:
    command = ["score", made / "m.golf", "--corpus", made / "val.txt", "--stride", stride]
    assert f"stride is {stride}" in refused(*command)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--window", "0"], "window is 0; it must be greater than 0"),
        (["--window", "9999999"], "as their product; use at most"),
        (["--mode", "official", "--context", "document"], "it has no context 'document'"),
        (["--adapt", "lora", "--context", "stream"], "adaptation is of documents"),
        (["--adapt", "lora", "--adapt-set", "chunks=3"], "adapt: unknown key 'chunks'"),
        (
            ["--adapt", "online", "--adapt-set", "targets=['tables']"],
            "this model has matrix, table",
        ),
        (["--adapt-set", "chunk=3"], "chunk is set, but there is no adaptation"),
        (["--mode", "official", "--window", "4096"], "official mode scores whole windows of 4,096"),
        (["--time-budget", "1e-6"], "its time budget is 1e-06 s"),
        (["--time-budget", "0"], "time_budget is 0.0; it must be greater than 0"),
    ],
)
def test_a_protocol_that_cannot_be(
    arguments: list[str], message: str, refused: Refused, made: Path, tmp_path: Path
) -> None:
    command = ["score", made / "m.golf", "--corpus", made / "val.txt", "--save", tmp_path / "s"]
    assert message in refused(*command, *arguments)
    assert not (tmp_path / "s").exists()


# --- usage


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["train"],
        ["train", "--nonsense"],
        ["build-tokenizer", "--vocab-size", "many", "-o", "x.tok"],
        ["export", "run", "--cap", "sixteen"],
        ["export", "run", "--cap", "0"],
        ["export"],
        ["score"],
        ["score", "m.golf", "--stride", "sideways"],
        ["corpus", "info"],
        ["corpus"],
        [],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2_and_shows_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Usage: tokgolf")
    assert "Traceback" not in err


def test_a_second_corpus_is_refused_in_one_line(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twice = ["--corpus", made / "c.jsonl", "--corpus", made / "val.txt"]
    command = train_command(made, tmp_path / "run", *twice)
    assert cli.run([str(word) for word in command]) == 2
    assert capsys.readouterr().err == (
        "Error: --corpus is given 2 times and takes one value; "
        "give one folder or file of all documents\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_any_error_is_one_line(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*rows: object) -> None:
        raise TokgolfError("two\n  lines")

    monkeypatch.setattr("tokgolf.cli.corpus.print_rows", fail)
    assert refused("corpus", "list") == "two lines"


@contextmanager
def unread_stderr(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A stderr whose reader has gone, as after `2>&1 | head -1`."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as stderr, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        yield


def test_work_whose_progress_nobody_reads_is_done(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with unread_stderr(monkeypatch):
        assert cli.run([str(word) for word in train_command(made, run)]) == 0
    assert read_checkpoint(run)[1]["step"] == SETTINGS["steps"]


@pytest.mark.parametrize(("path", "code"), [("nowhere.tok", 1), ("--nonsense", 2)])
def test_an_error_that_nobody_reads_has_its_exit_code(
    path: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with unread_stderr(monkeypatch):
        assert cli.run(["inspect", path]) == code


def test_ctrl_c_is_one_line_below_the_terminals_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*rows: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tokgolf.cli.corpus.print_rows", interrupt)
    assert cli.run(["corpus", "list"]) == 1
    assert capsys.readouterr() == ("", "\nerror: interrupted\n")  # click ends the line of "^C"


# --- the operating system's own errors


def test_an_output_folder_that_is_not_there(refused: Refused, made: Path, tmp_path: Path) -> None:
    output = tmp_path / "none" / "x.tok"
    build = ["build-tokenizer", "--vocab-size", 270, "--corpus", made / "c.jsonl", "-o", output]
    assert f"{output.parent} is no folder; make it" in refused(*build)
    export = ["export", made / "run", "-o", tmp_path / "none" / "m.golf"]
    assert f"{output.parent} is no folder; make it" in refused(*export)
    for command in (build, export):
        command[command.index("-o") + 1] = tmp_path
        assert f"{tmp_path} is a folder; name a file in it" in refused(*command)


def test_an_output_folder_that_is_a_file(refused: Refused, made: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    message = refused(*train_command(made, tmp_path / "a.jsonl"))
    assert message.endswith("File exists; a folder is to be made there; choose another -o")
    message = refused(*train_command(made, tmp_path / "a.jsonl" / "x"))
    assert message.endswith("Not a directory; a part of this path is a file; choose another")
    for folder in (tmp_path, made / "run"):
        assert f"{folder} is a folder, no recipe; " in refused(
            *train_command(made, tmp_path / "run", "--recipe", folder)
        )
    assert list(tmp_path.iterdir()) == [tmp_path / "a.jsonl"]


def on_a_full_disk(limit: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command in a process that may write no file beyond `limit` bytes."""
    script = (
        "import resource, signal\n"
        "from tokgolf.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "main()\n"
    )
    return subprocess.run(
        [sys.executable, "-B", "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=False,
    )


def is_full(result: subprocess.CompletedProcess[str]) -> bool:
    message = one_error_line(result.returncode, result.stdout, result.stderr)
    return "the disk is full" in message


def test_a_full_disk_leaves_no_tokenizer(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.tok"
    build = ["build-tokenizer", "--vocab-size", 270, "--corpus", made / "c.jsonl", "-o", path]
    assert is_full(on_a_full_disk(16, *build))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_artifact_and_keeps_the_older_one(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.golf"
    export = ["export", made / "run", "--tune", 0, "-o", path]
    assert is_full(on_a_full_disk(1000, *export))
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"older")
    assert is_full(on_a_full_disk(1000, *export))
    assert [each.name for each in tmp_path.iterdir()] == ["m.golf"]
    assert path.read_bytes() == b"older"


# The digests (608 bytes), the token shards (1 kB of header and more), and the checkpoint.
@pytest.mark.parametrize("limit", [100, 700, 8000])
def test_a_full_disk_leaves_no_checkpoint(limit: int, made: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert is_full(on_a_full_disk(limit, *train_command(made, run)))
    assert not (run / "checkpoints" / "latest.json").exists()
    assert not list(run.rglob("*.tmp")) and not list(run.rglob("*.safetensors"))
    assert all(path.stat().st_size <= limit for path in run.rglob("*") if path.is_file())
    again = [str(word) for word in train_command(made, run)]
    assert cli.run(again) == 0  # once there is room, the same command does it


def test_a_corpus_by_name_has_its_split_and_a_path_is_all_of_itself(made: Path) -> None:
    assert options.open_corpus("stdlib", "train").name == "stdlib:train"
    assert options.open_corpus("stdlib:val", "train").name == "stdlib:val"
    whole = options.open_corpus(str(made / "c.jsonl"), "train")
    assert whole.summary().documents == open_corpus(str(made / "c.jsonl")).summary().documents
