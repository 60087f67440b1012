"""`tokgolf sweep`: what it prints, its JSON, what it refuses. Cells are dummies' or tiny."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tokgolf import cli
from tokgolf.cli.progress import sweep_progress
from tokgolf.sweep.cells import Cell, Sweep, read_sweep
from tokgolf.sweep.driver import Progress

TINY = """
cap = "60KB"
[run]
steps = 4
batch_tokens = 64
micro_batch_tokens = 64
precision = "fp32"
compile = "off"
trunk = {layers = 1, d_model = 16, heads = 2, kv_heads = 1, mlp_hidden = 24, sequence_length = 16}
[axes]
"tokenizer.kind" = "byte"
tune = 0
head = ["tied", "factorized"]
"head.rank" = [4, 99]
[engine]
threads = 1
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """A spec with one cell that cannot be built, beside its texts."""
    for name in ("train", "val"):
        texts = [f"The {name} text {i} is small, and the model too." for i in range(30)]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    path = tmp_path / "tiny.toml"
    corpora = f'corpus = "{tmp_path}/train.jsonl"\nscored = "{tmp_path}/val.jsonl"\n'
    path.write_text(corpora + TINY)
    return path


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run `tokgolf sweep` into a store of ours; returns exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        store = ["--store", str(tmp_path / "runs")]
        code = cli.run(["sweep", *map(str, arguments), *store, "--device", "cpu"])
        return code, *capsys.readouterr()

    return call


def test_a_dry_run_shows_sizes_and_what_cannot_be_built_and_runs_nothing(
    run: Run, spec: Path, tmp_path: Path
) -> None:
    code, out, err = run(spec, "--dry-run")
    assert code == 0 and err == ""
    assert re.search(r"head=tied +16 +24 +[\d,]+ +\d", out)
    assert "head.rank=99" in out and "will fail: " in out
    assert "3 cells, 0 done, 1 that cannot be built" in out
    assert not [*(tmp_path / "runs").glob("*/cell.json")]
    cells = json.loads(run(spec, "--dry-run", "--json")[1])["cells"]
    assert [cell["problem"] is None for cell in cells] == [True, True, False]
    assert {"params", "bits", "artifact_bytes", "d_model", "mlp_hidden", "cell"} <= cells[0].keys()


def test_a_sweep_prints_its_cells_best_first_and_names_what_failed(
    run: Run, spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def fake(chosen: object, store: Path, **options: object) -> Sweep:
        seen.update(options)
        cells = [
            Cell(id="aa11", settings={"head": "tied"}, status="done", bpb=1.5, run=store / "aa11"),
            Cell(id="bb22", settings={"head": "vq"}, status="done", bpb=1.25, run=store / "bb22"),
            Cell(id="cc33", settings={"head": "x"}, status="failed", reason="no", run=store / "c"),
        ]
        return Sweep(
            name="tiny", equal="steps", cap=9, corpus="a", scored="b", axes={}, cells=tuple(cells)
        )

    monkeypatch.setattr("tokgolf.sweep.run.run_sweep", fake)
    code, out, err = run(spec, "--only", "head=tied", "--retry-failed")
    assert code == 1 and seen["only"] == ("head=tied",) and seen["retry_failed"] is True
    assert [line.split()[0] for line in out.splitlines()] == ["cell", "bb22", "aa11", "cc33"]
    assert "failed: no" in out
    assert err.splitlines()[-1] == "error: 1 of 3 cells failed, first cc33: no"
    values = json.loads(run(spec, "--json")[1])
    assert values["format"] == "tokgolf.sweep" and values["cells"][0]["run"] == "../../aa11"


def test_a_real_sweep_and_the_same_command_again(run: Run, spec: Path, tmp_path: Path) -> None:
    code, out, err = run(spec, "--only", "head=tied")
    assert code == 0, err
    assert "1 of 3 cells done, 0 failed, 0 running, 2 left, best " in err
    [cell] = [c for c in read_sweep(tmp_path / "runs/sweeps/tiny").cells if c.status == "done"]
    assert f"{cell.bpb:.4f}" in out
    code, again, err = run(spec, "--only", "head=tied")
    assert (code, again) == (0, out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("[axes]\nvocab_sizes = 4", "there is no axis 'vocab_sizes'; did you mean 'vocab_size'?"),
        ("axis = 4", "unknown key 'axis'; did you mean 'axes'?"),
        ("[axes]\nseed = 1\n[engine]\njobs = 0", "jobs is 0; it must be greater than 0"),
        ("[axes", "is not valid TOML"),
        ('[axes]\nseed = 1\n[engine]\nname = "lsf"', "engine.name is 'lsf'"),
        ("[axes]\nseed = 1", "needs a cap to fill"),
    ],
)
def test_a_spec_that_is_wrong_is_one_line(
    run: Run, spec: Path, tmp_path: Path, change: str, message: str
) -> None:
    spec.write_text(spec.read_text().partition("cap =")[0] + change)
    code, out, err = run(spec)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("error: ") and message in err


def test_a_store_that_cannot_be_written_is_one_line(run: Run, spec: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    code, out, err = run(spec)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert str(tmp_path / "runs") in err


def test_another_spec_under_the_name_is_refused(run: Run, spec: Path) -> None:
    assert run(spec, "--only", "head.rank=99")[0] == 1
    spec.write_text(spec.read_text().replace("60KB", "70KB"))
    code, out, err = run(spec)
    assert code == 1 and 'another cap: "60KB" there, "70KB" here' in err
    assert run(spec, "--name", "second", "--only", "head.rank=99")[0] == 1


def test_lines_say_at_which_step_running_cells_are(capsys: pytest.CaptureFixture[str]) -> None:
    cells = tuple(
        Cell(id=f"{seed}abcdefgh", settings={"seed": seed}, status="running", steps=1000 * seed)
        for seed in (1, 2)
    )
    with sweep_progress() as watch:
        watch(Progress(cells=cells, running=cells[1:], seconds_left=None))
    assert capsys.readouterr().err.endswith("1 running, 1 left; 2abcdefg  step 2,000\n")
