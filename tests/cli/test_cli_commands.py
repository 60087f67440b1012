"""The command line on a small folder of documents: help, each command's result, its JSON keys."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import torch

from tokgolf import __version__, cli, load_artifact, load_tokenizer, open_corpus, score
from tokgolf.artifact.checkpoint import load_run
from tokgolf.cli import options
from tokgolf.cli import run as cli_run
from tokgolf.config import read_toml

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "trunk.layers": 1,
    "trunk.parallel": 0,
    "trunk.d_model": 16,
    "trunk.heads": 2,
    "trunk.kv_heads": 1,
    "trunk.mlp_hidden": 24,
    "trunk.sequence_length": 32,
    "batch_tokens": 128,
    "micro_batch_tokens": 128,
    "precision": "fp32",
    "compile": "off",
}
SIZES = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
TINY = [*SIZES, "--set", "steps=12"]
SCORE_KEYS = {
    "bpb",
    "nats_per_token",
    "tokens",
    "bytes",
    "documents",
    "artifact_bytes",
    "asset_bytes",
    "cap",
    "seconds",
    "invariants",
}


Call = Callable[..., tuple[str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command line in this process; it must succeed. Returns stdout and stderr."""

    def run(*arguments: object) -> tuple[str, str]:
        code = cli.run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert code == 0, err
        return out, err

    return run


def in_subprocess(*arguments: object, code: str = "") -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as its entry point starts it."""
    script = code or "from tokgolf.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=False,
    )


def write_jsonl(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a train and a val split."""
    folder = tmp_path_factory.mktemp("data")
    train = [f"Document {i} says that tiny models learn tiny things, é {i}." for i in range(60)]
    write_jsonl(folder / "train.jsonl", train)
    write_jsonl(folder / "val.jsonl", [f"A held-out document says tiny {i}." for i in range(5)])
    return folder


@pytest.fixture(scope="module")
def made(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer, a run and an artifact, made once by the commands."""
    folder = tmp_path_factory.mktemp("made")
    for arguments in (
        ["build-tokenizer", "--vocab-size", "270", "--corpus", f"{data}:train"]
        + ["-o", str(folder / "t.tok")],
        ["train", "--corpus", f"{data}:train", "--val", f"{data}:val"]
        + ["--tokenizer", str(folder / "t.tok"), "-o", str(folder / "run"), *TINY],
        ["export", str(folder / "run"), "--cap", "1MB", "--tune", "0"],
    ):
        assert cli.run(arguments) == 0
    return folder


# --- help


def groups(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The names of every command and group: (), ("corpus",), ("corpus", "list"), ..."""
    yield path
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from groups(below, (*path, name))


every_command = pytest.mark.parametrize("path", list(groups(cli.cli)), ids=" ".join)


@every_command
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_shows_an_example(path: tuple[str, ...], flag: str, call: Call) -> None:
    out, err = call(*path, flag)
    assert out.startswith(f"Usage: {' '.join(('tokgolf', *path))} ")
    assert f"Example: tokgolf {path[0] if path else ''}" in out
    assert err == ""


@every_command
def test_the_example_in_the_help_is_a_command_with_known_options(path: tuple[str, ...]) -> None:
    command: click.Command = cli.cli
    for name in path:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    example = shlex.split(str(command.help).rpartition("Example: ")[2])
    assert example[0] in ("tokgolf", "torchrun")
    target: click.Command = cli.cli
    words = example[example.index("tokgolf") + 1 :]
    while isinstance(target, click.Group):
        target = target.commands[words.pop(0)]
    target.make_context("example", words)  # raises UsageError for a wrong option


@every_command
def test_a_second_value_of_an_option_is_refused(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    command: click.Command = cli.cli
    for name in path:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    options = [each for each in command.params if isinstance(each, click.Option)]
    for option in options:
        if option.multiple or option.is_flag:
            continue
        for name in option.opts:  # -o and --output are one option
            assert cli.run([*path, name, "1", option.opts[-1], "2"]) == 2
            assert "is given 2 times and takes one value; " in capsys.readouterr().err


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from tokgolf.cli import run\n"
        "assert run(['--help']) == 0 and run(['train', '--help']) == 0\n"
        "heavy = {'torch', 'datasets', 'tokenizers', 'sentencepiece', 'numpy', 'rich'}\n"
        "print('loaded:', sorted(heavy & set(sys.modules)))\n"
    )
    result = in_subprocess(code=code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "loaded: []"


def test_the_entry_point_prints_its_version_and_exits_0() -> None:
    result = in_subprocess("--version")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"tokgolf, version {__version__}\n"


# --- step by step


def test_corpus_list_names_the_corpora(call: Call) -> None:
    assert "stdlib" in json.loads(call("corpus", "list", "--json")[0])
    assert call("corpus", "list")[0].startswith("stdlib")


def test_corpus_info_counts_what_is_there(call: Call, data: Path) -> None:
    values = json.loads(call("corpus", "info", f"{data}:val", "--json")[0])
    summary = open_corpus(str(data), "val").summary()
    assert values["corpus"] == f"{data}:val"
    assert (values["documents"], values["bytes"]) == (5, summary.bytes)
    assert values["sha256"] == summary.sha256
    assert f"{summary.bytes:,}" in call("corpus", "info", f"{data}:val")[0]


def test_corpus_export_writes_the_same_documents(call: Call, data: Path, tmp_path: Path) -> None:
    for name in ("val.jsonl", "val.jsonl.zst"):
        call("corpus", "export", f"{data}:val", "-o", tmp_path / name)
        exported = open_corpus(str(tmp_path / name))
        assert exported.summary().sha256 == open_corpus(str(data), "val").summary().sha256


def test_corpus_export_writes_token_shards(
    call: Call, data: Path, made: Path, tmp_path: Path
) -> None:
    call("corpus", "export", f"{data}:val", "--tokenizer", made / "t.tok", "-o", tmp_path)
    sidecar = json.loads((tmp_path / "val_000000.json").read_text())
    tokenizer = load_tokenizer(made / "t.tok")
    corpus = open_corpus(str(data), "val")
    assert sidecar["tokenizer"] == tokenizer.fingerprint
    assert sidecar["tokens"] == sum(1 + len(tokenizer.encode(d.data)) for d in corpus)


def test_build_tokenizer_reports_what_it_built(call: Call, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.tok"
    command = ["build-tokenizer", "--vocab-size", 265, "--corpus", f"{data}:train", "-o", path]
    values = json.loads(call(*command, "--json")[0])
    tokenizer = load_tokenizer(path)
    assert values["asset_bytes"] == path.stat().st_size
    assert values["fingerprint"] == tokenizer.fingerprint
    assert values["vocab_size"] == tokenizer.vocab_size == 265
    corpus = open_corpus(str(data), "train")
    assert values["tokens"] == sum(len(tokenizer.encode(d.data)) for d in corpus)
    assert values["bytes"] == corpus.summary().bytes
    assert values["bytes_per_token"] == values["bytes"] / values["tokens"] > 1
    first = path.read_bytes()
    assert "bytes_per_token" in call(*command)[0]
    assert path.read_bytes() == first


def test_train_reports_its_run(call: Call, data: Path, made: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    out, err = call(
        "train", "--corpus", f"{data}:train", "--tokenizer", made / "t.tok", "--head", "untied",
        "-o", run, *SIZES, "--steps", 4, "--seed", 5, "--json",
    )  # fmt: skip
    values = json.loads(out)
    assert (values["run"], values["steps"], values["tokens"]) == (str(run), 4, 4 * 128)
    assert {"seconds", "loss", "params"} <= set(values)
    config = read_toml(run / "config.toml")
    assert (config["steps"], config["seed"], config["head"]["name"]) == (4, 5, "untied")
    assert config["trunk"]["d_model"] == 16
    assert err.startswith("training: step 1  loss 5.")
    again = ["--tokenizer", made / "t.tok", "--head", "untied", "-o", run, *SIZES, "--seed", 5]
    out, _ = call("train", "--corpus", f"{data}:train", *again, "--steps", 6, "--resume", "--json")
    assert json.loads(out)["steps"] == 6


def test_export_reports_the_ledger(call: Call, made: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.golf"
    command = ["export", made / "run", "--cap", "1MB", "--tune", 0, "-o", path]
    values = json.loads(call(*command, "--json")[0])
    assert values["file_bytes"] == path.stat().st_size
    assert values["asset_bytes"] == (made / "t.tok").stat().st_size
    assert values["cap"] == 1_000_000
    assert values["headroom"] == values["cap"] - values["artifact_bytes"] > 0
    assert sum(values["ledger"].values()) == values["artifact_bytes"]
    assert path.read_bytes() == (made / "run" / "model.golf").read_bytes()
    assert "headroom" in call(*command)[0]


def test_export_prints_its_plan_and_writes_it_beside_the_file(
    call: Call, made: Path, tmp_path: Path
) -> None:
    path = tmp_path / "m.golf"
    command = ["export", made / "run", "--bits", 4, "--rate-weight", 1, "-o", path]
    out, err = call(*command, "--json")
    values = json.loads(out)
    assert set(values) == {
        "artifact", "file_bytes", "official_bytes", "artifact_bytes", "raw_bytes", "asset_bytes",
        "cap", "headroom", "ledger", "plan",
    }  # fmt: skip
    plan = values["plan"]
    assert plan == json.loads((tmp_path / "m.golf.plan.json").read_text())
    tune = plan["config"].pop("tune")
    assert tune in (0, 40)  # 0 where tuning did not pay
    assert plan["config"] == {"method": "trellis", "bits": 4.0, "rate_weight": 1.0}
    assert plan["steps"].keys() == plan["damage"].keys() >= {"head.table"}
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "m.golf.plan.json"]
    assert "measuring the damage of" in err and "pass 1: " in err
    out, _ = call(*command)
    lines = out.splitlines()
    assert lines[0].split() == ["tensor", "step", "damage"]
    rows = [line.split() for line in lines[1 : 1 + len(plan["steps"])]]
    assert [row[0] for row in rows] == list(plan["steps"])
    for name, step, share in rows:
        assert float(step) == pytest.approx(plan["steps"][name], abs=1e-6)
        assert 0 <= float(share.removesuffix("%")) <= 100


def test_a_plan_pins_an_export_to_the_byte(call: Call, made: Path, tmp_path: Path) -> None:
    first, again = tmp_path / "1.golf", tmp_path / "2.golf"
    call("export", made / "run", "--bits", 3, "-o", first)
    plan = tmp_path / "1.golf.plan.json"
    _, err = call("export", made / "run", "--plan", plan, "-o", again)
    assert again.read_bytes() == first.read_bytes()
    assert (tmp_path / "2.golf.plan.json").read_bytes() == plan.read_bytes()
    assert "measuring" not in err


@pytest.mark.parametrize("method", ["gptq", "nearest"])
def test_other_methods_export_and_say_so(
    method: str, call: Call, made: Path, tmp_path: Path
) -> None:
    path = tmp_path / "m.golf"
    command = ["export", made / "run", "--method", method, "--bits", 4, "--tune", 0, "-o", path]
    out, err = call(*command, "--json")
    plan = json.loads(out)["plan"]
    assert plan["config"]["method"] == method
    assert load_artifact(path).ledger.bits == pytest.approx(4, rel=0.05)
    if method == "nearest":  # nothing is measured
        assert plan["damage"] == {} and "measuring" not in err
        assert call(*command)[0].splitlines()[1].split()[2] == "-"


def test_fewer_bits_make_a_smaller_file(call: Call, made: Path, tmp_path: Path) -> None:
    sizes = []
    for bits in (6, 4, 2.5):
        command = ["export", made / "run", "-o", tmp_path / "m.golf", "--bits", bits, "--tune", 0]
        sizes.append(json.loads(call(*command, "--json")[0])["file_bytes"])
    assert sizes[0] > sizes[1] > sizes[2]


def test_score_prints_the_published_keys(
    call: Call, data: Path, made: Path, tmp_path: Path
) -> None:
    path, saved = made / "run" / "model.golf", tmp_path / "score.json"
    out, _ = call("score", path, "--corpus", f"{data}:val", "--save", saved, "--json")
    values = json.loads(out)
    assert SCORE_KEYS <= set(values)
    oracle = score(load_artifact(path), open_corpus(str(data), "val"))
    assert values["bpb"] == oracle.bpb
    assert values["invariants"]["train_disjoint"] is True
    assert all(values["invariants"].values())
    details = json.loads(saved.read_text())
    assert len(details["document_bits"]) == values["documents"] == 5
    assert sum(details["document_bits"]) / values["bytes"] == pytest.approx(values["bpb"])
    assert len(details["document_tokens"]) == 5
    assert {"protocol", "estimate", "lossless", "evidence"} <= set(values)


def test_score_prints_its_protocol_and_the_evidence_by_letter(
    call: Call, data: Path, made: Path
) -> None:
    command = ["score", made / "run" / "model.golf", "--corpus", f"{data}:val"]
    lines = call(*command)[0].splitlines()
    assert (
        "protocol         mode raw, context document, window 32, stride 32, precision fp32" in lines
    )
    letters = [line[:3] for line in lines if line.startswith("(")]
    assert letters == ["(a)", "(b)", "(c)", "(d)", "(e)", "(f)"]
    checks = json.loads(call(*command, "--json")[0])["invariants"]
    assert len(checks) > 12
    for name in checks:
        assert any(line.split() == [name, "yes"] for line in lines), name


def test_score_has_modes_contexts_windows_and_estimates(call: Call, data: Path, made: Path) -> None:
    command = ["score", made / "run" / "model.golf", "--corpus", f"{data}:val"]

    def of(*more: object) -> dict[str, Any]:
        return dict(json.loads(call(*command, "--json", *more)[0]))

    stream = of("--context", "stream", "--window", 48, "--stride", 16, "--time-budget", 600)
    assert stream["protocol"] == {
        "mode": "raw", "context": "stream", "window": 48, "stride": 16, "precision": "fp32",
        "loops": None, "time_budget": 600, "adapt": None,
    }  # fmt: skip
    official = of("--mode", "official", "--window", 16)
    assert official["val_bpb"] == official["bpb"] and "val_bpb" not in stream
    assert official["protocol"]["context"] == "stream"
    assert of("--precision", "bf16")["estimate"] is True
    printed = call(*command, "--precision", "bf16")[0]
    assert "an estimate" in printed and "bpb (estimate)" in printed
    assert "estimate" not in call(*command)[0]


def test_score_adapts_stands_beside_baselines_and_is_compared(
    call: Call, data: Path, made: Path, tmp_path: Path
) -> None:
    command = ["score", made / "run" / "model.golf", "--corpus", f"{data}:val", "--json"]
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    plain = json.loads(call(*command, "--save", a)[0])
    lora = ["--adapt", "lora", "--adapt-set", "chunk=4", "--adapt-set", "rank=2"]
    adapted = json.loads(call(*command, *lora, "--save", b)[0])
    compared = call("compare", a, b, "--across-protocols", "--json")[0]
    (found,) = json.loads(compared)["comparisons"]
    assert found["bpb"] == pytest.approx(adapted["bpb"] - plain["bpb"], abs=1e-12)
    assert found["bytes_difference"] == adapted["artifact_bytes"] - plain["artifact_bytes"]
    assert plain["protocol"]["adapt"] is None
    assert (adapted["protocol"]["adapt"]["kind"], adapted["protocol"]["adapt"]["rank"]) == (
        "lora",
        2,
    )
    assert adapted["bpb"] != plain["bpb"] and adapted["tokens"] == plain["tokens"]
    assert adapted["artifact_bytes"] > plain["artifact_bytes"]
    assert adapted["baselines"] == plain["baselines"] and plain["baselines"]["xz_bpb"] > 0
    assert json.loads(call(*command, "--baselines", "none")[0])["baselines"] is None
    table = call(*command[:-1], "--adapt", "online")[0]
    assert "adapt.kind online" in table and "brotli -q 11" in table


def test_a_long_score_says_how_far_it_is(
    call: Call, data: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokgolf.cli.progress.LINE_SECONDS", 0.0)
    _, err = call("score", made / "run" / "model.golf", "--corpus", f"{data}:val")
    lines = err.splitlines()
    assert len(lines) == 5 and lines[-1] == "scoring: 160 of 160 bytes  0:00 left"


def test_a_run_is_scored_before_export(call: Call, data: Path, made: Path) -> None:
    values = json.loads(call("score", made / "run", "--corpus", f"{data}:val", "--json")[0])
    assert values["artifact_bytes"] is None
    assert SCORE_KEYS <= set(values)
    assert values["bpb"] > 0


def test_a_stride_gives_more_context_to_the_same_tokens(call: Call, data: Path, made: Path) -> None:
    command = ["score", made / "run" / "model.golf", "--corpus", f"{data}:val", "--json"]
    plain = json.loads(call(*command)[0])
    strided = json.loads(call(*command, "--stride", 4)[0])
    assert strided["stride"] == 4
    assert (strided["tokens"], strided["bytes"]) == (plain["tokens"], plain["bytes"])


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("t.tok", {"tokenizer", "kind", "vocab_size", "asset_bytes", "fingerprint"}),
        ("run", {"run", "head", "steps", "finished", "corpus", "params", "asset_bytes"}),
        ("run/model.golf", {"artifact", "sha256", "head", "vocab_size", "full", "official"}),
    ],
)
def test_inspect_tells_about_each_kind_of_file(
    name: str, keys: set[str], call: Call, made: Path
) -> None:
    out, _ = call("inspect", made / name, "--json")
    values = json.loads(out)
    assert keys <= set(values)
    lines = call("inspect", made / name)[0].splitlines()
    names = [line.partition("  ")[0].strip() for line in lines]
    if name.endswith(".golf"):
        assert {*values["ledger"], "full", "official", "raw", "packed", "script"} <= set(names)
    else:
        assert names == list(values)


def test_inspecting_an_artifact_adds_up(call: Call, made: Path) -> None:
    path = made / "run" / "model.golf"
    values = json.loads(call("inspect", path, "--json")[0])
    rows = values["ledger"]
    assert sum(rows.values()) == values["full"] == values["artifact_bytes"]
    assert values["full"] - rows["code"] == values["file_bytes"] == path.stat().st_size
    coded = sum(tensor["bytes"] for tensor in values["tensors"])
    others = ("code", "tokenizer", "frequency tables", "lanes", "header", "checksum")
    assert coded == values["full"] - sum(rows[name] for name in others)


def test_inspecting_an_artifact_tensor_by_tensor(call: Call, made: Path) -> None:
    path = made / "run" / "model.golf"
    values = json.loads(call("inspect", path, "--json")[0])
    out, _ = call("inspect", path, "--tensors")
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    for tensor in values["tensors"]:
        assert f" {tensor['bytes']:,} " in lines[tensor["name"]]
        assert f" {tensor['bits']:.3f} " in lines[tensor["name"]]
    assert len(lines["trunk.blocks.0.mlp.up.weight"]) == max(
        len(lines[t["name"]]) for t in values["tensors"]
    )
    short, _ = call("inspect", path)
    assert out.startswith(short) and "trunk.blocks.0" not in short


def test_an_artifact_is_drawn_as_a_treemap(
    call: Call, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))
    plot = tmp_path / "ledger.svg"
    _, err = call("inspect", made / "run" / "model.golf", "--plot", plot)
    assert err == f"wrote {plot}\n" and plot.read_bytes().startswith(b"<?xml")


@pytest.mark.parametrize("name", ["t.tok", "run"])
def test_what_is_about_an_artifact_is_refused_for_others(
    name: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in (["--tensors"], ["--plot", str(tmp_path / "x.png")]):
        assert cli.run(["inspect", str(made / name), *option]) == 1
        assert f"error: {option[0]} " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_head_is_tried_on_the_trunk_of_an_earlier_run(
    call: Call, data: Path, made: Path, tmp_path: Path
) -> None:
    retok = ["train", "--corpus", f"{data}:train", "--tokenizer", str(made / "t.tok")]
    retok += ["--from", str(made / "run"), "--freeze-trunk", "--head", "factorized", *TINY]
    call(*retok, "--set", "head.rank=4", "-o", str(tmp_path / "run"))
    old, new = (load_run(run).model.trunk.state_dict() for run in (made / "run", tmp_path / "run"))
    assert all(torch.equal(old[name], new[name]) for name in old)


# --- the whole pipeline


def golf(data: Path, output: Path, *more: str) -> list[str]:
    return [
        "golf", "--corpus", str(data), "--vocab-size", "270", "-o", str(output),
        "--split", "val", "--set", "warmdown_fraction=0.5", *TINY, *more,
    ]  # fmt: skip


def test_golf_ends_with_one_json_line(call: Call, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "golf"
    out, err = call(*golf(data, run))
    assert out.count("\n") == 1 and out.endswith("\n")
    values: dict[str, Any] = json.loads(out)
    assert SCORE_KEYS <= set(values)
    assert (values["cap"], values["head"], values["vocab_size"]) == (250_000, "tied", 270)
    assert 0 < values["artifact_bytes"] <= values["cap"]
    for key in ("bpb", "bpb_before_export", "xz_bpb", "ppmd_bpb", "seconds"):
        assert values[key] > 0
    assert (
        values["baselines"]["xz_bpb"] == values["xz_bpb"] and min(values["baselines"].values()) > 0
    )
    assert values["bpb"] == pytest.approx(values["bpb_before_export"], rel=0.1)
    assert all(values["invariants"].values())
    # So few steps have no room for the recipe's errors of an export.
    stages = ["corpus", "tokenizer", "late", "training", "export", "score", "compare", "report"]
    within = ("training:", "measuring the damage", "pass ", "tuning ", "tuned: ")
    lines = [line for line in err.splitlines() if not line.startswith(within)]
    assert [line.split()[0] for line in lines] == stages
    expected = {"config.toml", "metrics.jsonl", "checkpoints", "model.golf", "score.json"}
    assert expected <= {path.name for path in run.iterdir()}


def test_golf_replaces_an_earlier_run_and_repeats_its_score(
    call: Call, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "golf"
    scores = []
    for _ in range(2):
        scores.append(json.loads(call(*golf(data, run, "--head", "untied", "--cap", "26KB"))[0]))
        (run / "left-over").touch()
    assert scores[0]["head"] == "untied"
    assert scores[0]["bpb"] == scores[1]["bpb"]
    assert scores[0]["artifact_sha256"] == scores[1]["artifact_sha256"]


def test_golf_with_bad_options_keeps_the_earlier_run(
    call: Call, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "golf"
    call(*golf(data, run))
    before = (run / "model.golf").read_bytes()
    for more in (["--head", "tiied"], ["--head", "vq", "--set", "head.codes=999"]):
        assert cli_run(golf(data, run, *more)) == 1
    assert "greater than the vocabulary" in capsys.readouterr().err
    assert (run / "model.golf").read_bytes() == before


# --- printing


def test_rows_are_aligned_and_read_easily(capsys: pytest.CaptureFixture[str]) -> None:
    options.print_rows(
        [("n", 1234567), ("share", 0.5), ("name", "x"), ("ok", True), ("bad", False), ("cap", None)]
    )
    assert capsys.readouterr().out.splitlines() == [
        "n      1,234,567",
        "share  0.5000",
        "name   x",
        "ok     yes",
        "bad    no",
        "cap    -",
    ]
