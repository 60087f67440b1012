"""`tokgolf compare` on saved scores: sides, its JSON, its table, its picture, its refusals."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tokgolf import cli

ROOT = Path(__file__).resolve().parents[2]
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*arguments: object) -> tuple[int, str, str]:
        code = cli.run(["compare", *map(str, arguments)])
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    """A folder of saved scores a1 to a3, b1 to b3 and a run directory with c's."""
    sizes = [1000, 50, 4000]
    for side, bpb in (("a", 1.2), ("b", 1.18), ("c", 1.21)):
        for seed in (1, 2, 3):
            each = bpb + 0.001 * seed + (0.0005 if side == "b" and seed == 2 else 0)
            bits = [size * each for size in sizes]
            values = {
                "bpb": sum(bits) / 5050, "tokens": 2000, "bytes": 5050, "documents": 3,
                "corpus": "web:val", "mode": "raw", "stride": 64, "corpus_sha256": "c" * 64,
                "tokenizer": "t" * 64, "artifact_sha256": None,
                "artifact_bytes": 90_000 + 1000 * (side == "b"),
                "document_bits": bits, "document_bytes": sizes,
            }  # fmt: skip
            (tmp_path / f"{side}{seed}.json").write_text(json.dumps(values))
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "c1.json").rename(run / "score.json")
    return tmp_path


def sides(folder: Path, *names: str) -> list[object]:
    return [name if name == "vs" else folder / f"{name}.json" for name in names]


def test_sides_of_seeds_are_told_apart_by_vs(scores: Path, call: Call) -> None:
    code, out, err = call(*sides(scores, "a1", "a2", "a3", "vs", "b1", "b2", "b3"), "--json")
    assert (code, err) == (0, "")
    values = json.loads(out)
    (found,) = values["comparisons"]
    assert values["level"] == 0.95
    assert found["bpb"] == pytest.approx(-0.02 + 0.0005 / 3)
    assert (found["seeds"]["test"], found["clears_rule"]) == ("Welch", True)
    assert len(found["reference"]["scores"]) == len(found["candidate"]["bpb_of_each"]) == 3
    assert set(found) == {
        "reference", "candidate", "bpb", "nats_per_byte", "nats_per_token", "documents", "seeds",
        "rule_bpb", "clears_rule", "bytes_difference", "bytes_paid_per_bpb", "exchange",
        "worth_bytes", "difference_at_equal_bytes", "same_model",
    }  # fmt: skip


def test_without_vs_each_score_is_a_side(scores: Path, call: Call) -> None:
    code, out, _ = call(*sides(scores, "a1", "b1"), scores / "run", "--json")
    found = json.loads(out)["comparisons"]
    assert code == 0 and [each["seeds"] for each in found] == [None, None]
    assert found[1]["candidate"]["scores"] == [str(scores / "run")]


def test_the_table_says_all_of_it(scores: Path, call: Call) -> None:
    points = scores / "points.json"
    points.write_text(json.dumps({"points": [{"bytes": 1e5, "bpb": 1}, {"bytes": 8e4, "bpb": 2}]}))
    arguments = sides(scores, "a1", "a2", "a3", "vs", "b1", "b2", "b3")
    code, out, _ = call(*arguments, "--exchange", points, "--test", "paired")
    assert code == 0
    for part in (
        "3 of web:val, 5,050 bytes, raw",
        "a1.json and 2 more",
        "95 % over documents",
        "95 % over seeds",
        "bpb           1.20200    1.18217    -0.01983",
        "nats/token",
        "3: too few for an interval",
        "paired t-test, 3 and 3 runs, 2.0 degrees of freedom: p = 7.1e-05 (equal)",
        "0.005 nats a token = 0.00286 bpb: cleared, p < 0.01",
        "90,000 and 91,000, difference +1,000; the larger paid 50 bytes for 0.001 bpb",
        "0.05000 bpb for 1,000 bytes, measured between 80,000 and 100,000 bytes in",
        "as much as 397 bytes more would gain the reference; at equal bytes the difference would "
        "be +0.03017 bpb",
        "points' text  not known: the file names no corpus",
    ):
        assert part in out, out


def test_points_that_are_scores_are_of_the_references_text(scores: Path, call: Call) -> None:
    for name, size in (("c2", 80_000), ("c3", 99_000)):
        path = scores / f"{name}.json"
        values = json.loads(path.read_text())
        bits = [each * 9e4 / size for each in values["document_bits"]]
        change = {"artifact_bytes": size, "document_bits": bits, "bpb": sum(bits) / 5050}
        path.write_text(json.dumps({**values, **change}))
    points = ["--exchange", scores / "c2.json", "--exchange", scores / "c3.json"]
    code, out, _ = call(*sides(scores, "a1", "b1"), *points)
    assert code == 0 and "bytes in the scores given" in out and "not known" not in out
    values["stride"] = 16
    path.write_text(json.dumps({**values, **change}))
    code, out, err = call(*sides(scores, "a1", "b1"), *points)
    assert (code, out) == (1, "") and "stride 64 and 16; score all points" in err


def test_estimates_say_so(scores: Path, call: Call) -> None:
    for name in ("a1", "b1"):
        path = scores / f"{name}.json"
        values = json.loads(path.read_text())
        protocol = {"stride": 64, "precision": "bf16", "time_budget": len(name + name)}
        path.write_text(json.dumps({**values, "protocol": protocol}))
    assert "estimates  in mixed precision" in call(*sides(scores, "a1", "b1"))[1]
    code, _, err = call(*sides(scores, "a1", "b2"))
    assert code == 1 and "precision bf16 and None" in err


def test_a_float_model_beside_an_artifact_says_so(scores: Path, call: Call) -> None:
    assert "models" not in call(*sides(scores, "a1", "b1"))[1]
    path = scores / "b1.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "artifact_sha256": "a" * 64}))
    _, out, _ = call(*sides(scores, "a1", "b1"))
    assert "models     the reference is a float model, the candidate an artifact: what exp" in out
    _, out, _ = call(*sides(scores, "a1", "vs", "b1", "b2"))
    assert "the reference is a float model, the candidate some of each" in out


def test_a_picture_is_written(
    scores: Path,
    call: Call,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path_factory.getbasetemp()))  # its list of fonts
    arguments = sides(scores, "a1", "a2", "vs", "b1", "b2", "vs", "c2", "c3")
    code, _, err = call(*arguments, "--plot", scores / "p.svg")
    assert code == 0, err
    assert (scores / "p.svg").read_bytes().startswith(b"<?xml")


def test_refusals_are_one_line_and_leave_nothing(scores: Path, call: Call) -> None:
    before = sorted(scores.iterdir())
    both = sides(scores, "a1", "b1")
    for arguments, message in (
        (both[:1], "error: 1 side to compare"),
        ([*both, "vs"], "error: 1 side to compare"),
        ([*both, "--plot", scores / "p.txt"], "error: p.txt is no plot"),
        ([*both, "--plot", scores / "no" / "p.png"], "is no folder"),
        ([*both, "--exchange", scores / "a1.json"], "an exchange rate needs 2"),
        ([both[0], scores / "none.json"], "none.json: No such file"),
        ([both[0], scores], "holds no score.json"),
        ([both[0], ROOT / "README.md", "--plot", scores / "p.png"], "README.md is not valid JSON"),
    ):
        code, out, err = call(*arguments)
        assert (code, out) == (1, "") and err.startswith("error: ") and err.count("\n") == 1
        assert message in err
    assert sorted(scores.iterdir()) == before


def test_comparing_needs_no_torch(scores: Path) -> None:
    script = (
        "import sys\nfrom tokgolf import cli\nassert cli.run(sys.argv[1:]) == 0\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "compare", *map(str, sides(scores, "a1", "b1"))],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
