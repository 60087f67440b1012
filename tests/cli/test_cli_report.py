"""`tokgolf report`: a page, plots that repeat to the byte, and what is refused before any work."""

import json
from pathlib import Path

import pytest

from tokgolf import cli
from tokgolf.sweep.cells import Cell, write_cell


@pytest.fixture(autouse=True)
def own_matplotlib_folder(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Matplotlib keeps a list of fonts; not in the home directory."""
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path_factory.getbasetemp()))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two cells with numbers and a log, without documents."""
    for number in range(2):
        run = tmp_path / "runs" / f"cell-{number}"
        run.mkdir(parents=True)
        settings = {"head": "$tied$", "vocab_size": 512 << number}
        write_cell(
            Cell(
                id=run.name, settings=settings, status="done", bpb=2.0 - number / 10,
                artifact_bytes=1000 + number, tokens=100, train_bytes=250,
            ),
            run,
        )  # fmt: skip
        rows = [{"step": n, "loss": 6 / n, "tokens": n, "seconds": n} for n in range(1, 30)]
        (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "runs"


def test_a_page_and_plots_are_written_and_repeat(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    page, plots = tmp_path / "report.html", tmp_path / "plots"
    command = ["report", str(store), "-o", str(page), "--plots", str(plots)]
    assert cli.run(command) == 0
    out, err = capsys.readouterr()
    assert out == "" and f"wrote {page}" in err and f"wrote {plots / 'front-1.svg'}" in err
    first = {path: path.read_bytes() for path in [page, *sorted(plots.iterdir())]}
    names = {path.name for path in first}
    assert {"front-1.png", "front-1.svg", "curves-tokens.png", "curves-tokens.svg"} < names
    assert cli.run(command) == 0
    assert {path: path.read_bytes() for path in first} == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["empty"], "empty holds 0 runs"),
        (["missing"], "missing: No such file"),
        (["runs", "-o", "no/report.html"], "no is no folder"),
        (["runs", "--text", "x.txt"], "needs an artifact that was scored"),
        (["runs", "--plots", "file"], "file is a file"),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_is_written(
    arguments: list[str],
    message: str,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(store.parent)
    Path("empty").mkdir()
    Path("file").touch()
    assert cli.run(["report", *arguments]) == 1
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not list(Path().glob("*.html"))
