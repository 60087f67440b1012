"""A submission: its folder, its script on its own, and every claim that it refuses."""

import ast
import json
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import submit_support as support

from tokgolf import bundle, cli
from tokgolf.artifact.checkpoint import read_checkpoint
from tokgolf.artifact.load import load_artifact
from tokgolf.codesize import closure, code_script, source
from tokgolf.errors import (
    ArtifactError,
    CapError,
    ConfigError,
    CorpusError,
    ScoreError,
    TokgolfError,
)
from tokgolf.eval.audit.claims import read_claim
from tokgolf.eval.audit.record import record_findings
from tokgolf.eval.compare import compare
from tokgolf.eval.protocol import Protocol
from tokgolf.eval.saved import read_score
from tokgolf.eval.score import modules_beside
from tokgolf.submit import Labels, seeds, submit

NAME = "2026-05-01_Tiny"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with texts and three runs."""
    folder = tmp_path_factory.mktemp("made")
    support.write_texts(folder)
    for seed in (1, 2, 3):
        support.make_run(folder, seed)
    return folder


@pytest.fixture(scope="module")
def record(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the three runs, scored again by its script."""
    folder = tmp_path_factory.mktemp("records") / NAME
    submit([made / f"run{seed}" for seed in (3, 1, 2)], folder, labels=Labels(author="A. Name"))
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of the first run, to spoil."""
    return Path(shutil.copytree(made / "run1", tmp_path / "spoilt"))


def facts_of(record: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((record / "submission.json").read_text())
    return values


# The folder.


def test_the_folder_has_what_a_record_needs_and_nothing_else(record: Path) -> None:
    seeds = [name for n in (1, 2, 3) for name in (f"train_seed{n}.log", f"model_seed{n}.golf")]
    others = ["README.md", "submission.json", "requirements.txt", "train_gpt.py"]
    found = {path.name for path in record.iterdir()}
    assert found == {*seeds, *others, "source", "tokenizer.tok"}
    assert [path.name for path in record.parent.iterdir()] == [NAME]


def test_its_numbers_are_the_runs_and_its_bytes_those_of_the_files(
    record: Path, made: Path
) -> None:
    facts = facts_of(record)
    scores = [json.loads((made / f"run{n}" / "score.json").read_text()) for n in (1, 2, 3)]
    assert facts["seeds"] == [1, 2, 3]
    assert facts["val_bpb"] == pytest.approx(sum(s["bpb"] for s in scores) / 3, rel=1e-12)
    for seed, score in zip(facts["seed_results"].values(), scores, strict=True):
        assert (seed["val_loss"], seed["val_bpb"]) == (score["nats_per_token"], score["bpb"])
    code, sizes = (record / "train_gpt.py").stat().st_size, []
    for n in (1, 2, 3):
        assert (record / f"model_seed{n}.golf").read_bytes() == (
            made / f"run{n}" / "model.golf"
        ).read_bytes()
        sizes.append((record / f"model_seed{n}.golf").stat().st_size)
    assert (facts["bytes_code"], facts["bytes_total"]) == (code, code + max(sizes))
    readable = sum(path.stat().st_size for path in (record / "source").rglob("*.py"))
    assert facts["bytes_code_readable"] == readable > code


def test_it_says_what_is_missing_and_claims_no_significance(
    record: Path, made: Path, tmp_path: Path
) -> None:
    facts = facts_of(record)
    assert facts["compliance"]["three_seeds"] is True and facts["significance"] is None
    assert not [line for line in facts["missing"] if "seeds" in line]
    assert any(line.startswith("raw mode") for line in facts["missing"])
    alone = submit([made / "run1"], tmp_path / NAME, rerun=False, training=False)
    assert any(line.startswith("1 of 3 seeds") for line in alone["missing"])
    assert alone["compliance"]["three_seeds"] is False and alone["val_bpb_std"] is None
    readme = (tmp_path / NAME / "README.md").read_text()
    assert "1 of 3 seeds" in readme and "not run (--no-rerun)" in readme
    assert "It does not train" in readme and alone["bytes_code"] < facts["bytes_code"]


def test_one_digit_changed_in_it_is_named_by_the_audit(record: Path, tmp_path: Path) -> None:
    assert record_findings(record) == []
    for file, pattern, name in (
        ("submission.json", r'"bytes_code": \d', "bytes-are-not-the-files'"),
        ("submission.json", r'"bytes_total": \d', "claim-contradicts-itself"),
        ("submission.json", r'^ "val_bpb": \d\.\d\d', "mean-is-not-the-seeds'"),
        ("train_seed2.log", r"final_.* val_bpb:\d\.\d\d\d", "log-says-otherwise"),
        ("train_seed2.log", r"Total submission size: \d", "log-says-otherwise"),
    ):
        copy = Path(shutil.copytree(record, tmp_path / "copy"))
        text = (copy / file).read_text()
        match = re.search(pattern, text, re.M)
        assert match is not None
        digit = str(int(text[match.end() - 1]) % 9 + 1)  # not 0: no number in JSON begins so
        (copy / file).write_text(text[: match.end() - 1] + digit + text[match.end() :])
        assert name in {each.name for each in record_findings(copy)}, (file, pattern)
        assert cli.run(["audit", "--claim", str(copy)]) == 1
        shutil.rmtree(copy)
    assert cli.run(["audit", "--claim", str(record)]) == 0


def test_the_record_to_beat_is_compared_as_compare_does(made: Path, tmp_path: Path) -> None:
    runs, before = [made / "run1", made / "run2", made / "run3"], []
    for seed, run in enumerate(runs, 1):
        worse = json.loads((run / "score.json").read_text())
        factor = 1.1 + 0.001 * seed
        worse["bpb"] *= factor
        worse["document_bits"] = [factor * bits for bits in worse["document_bits"]]
        before.append(tmp_path / f"old{seed}.json")
        before[-1].write_text(json.dumps(worse | {"artifact_sha256": str(seed)}))
    facts = submit(runs, tmp_path / NAME, baseline=before, rerun=False, training=False)
    (wanted,) = compare([[read_score(path) for path in side] for side in (before, runs)])
    assert wanted.seeds is not None and wanted.p_rule is not None
    assert facts["comparison_baseline"] == ["old1.json", "old2.json", "old3.json"]
    assert facts["delta_vs_baseline_bpb"] == wanted.difference < 0
    assert facts["delta_vs_baseline_nats"] == wanted.as_dict()["nats_per_token"]
    assert facts["t_statistic"] == wanted.seeds.difference / wanted.seeds.error
    assert (facts["p_value"], facts["p_value_rule"]) == (wanted.seeds.p_below(0), wanted.p_rule)
    assert facts["significance"] is True
    readme = (tmp_path / NAME / "README.md").read_text()
    assert "Cleared, p = " in readme and "No significance" not in readme
    assert read_claim(tmp_path / NAME).pairs[-1].bpb == facts["val_bpb"]


def test_too_few_seeds_of_the_record_to_beat_tell_nothing(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(made / f"run{seed}") for seed in (1, 2, 3)]
    command = ["submit", *runs, "--baseline", runs[0], "--baseline", runs[1], "--no-rerun"]
    assert cli.run([*command, "-o", str(tmp_path / NAME), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["significance"] is None and facts["p_value"] is not None
    assert facts["missing"][0].startswith("2 of 3 seeds of the record to beat")
    assert "Not to be told" in (tmp_path / NAME / "README.md").read_text()


def test_its_texts_name_no_folder_of_this_machine(record: Path, made: Path) -> None:
    for path in record.rglob("*"):
        if path.is_file() and path.suffix != ".golf":
            assert str(made.parent) not in path.read_text("utf-8", errors="replace"), path


def test_logs_are_in_the_challenges_lines_and_read_as_claims(record: Path) -> None:
    facts = facts_of(record)
    for n in (1, 2, 3):
        log = (record / f"train_seed{n}.log").read_text()
        claim, own = read_claim(record / f"train_seed{n}.log"), facts["seed_results"][str(n)]
        assert (claim.pairs[-1].loss, claim.pairs[-1].bpb) == (own["val_loss"], own["val_bpb"])
        assert claim.targets == facts["scored_tokens"]
        assert re.search(r"^step:3/4 train_loss:\d\.\d{4} train_time:\d+ms step_avg:", log, re.M)
        assert f"Total submission size: {own['artifact_bytes']} bytes" in log


def test_the_script_is_the_source_beside_it(record: Path) -> None:
    files = (record / "source").rglob("*.py")
    parts = (path.relative_to(record / "source").with_suffix("").parts for path in files)
    names = sorted(".".join(p[:-1] if p[-1] == "__init__" else p) for p in parts)
    assert code_script(tuple(names)) in (record / "train_gpt.py").read_text()
    lines = (record / "requirements.txt").read_text().split()
    assert {line.partition("==")[0] for line in lines} >= {"torch", "numpy", "tokenizers"}


# The script on its own.


ALONE = """
import json, runpy, sys
script, *calls = sys.argv[1:]
for call in calls:
    sys.argv = [script, *call.split()]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        assert end.code == 0, end.code
ours = {n: m.__file__ for n, m in sys.modules.items() if n.partition(".")[0] == "tokgolf"}
print(json.dumps(ours))
"""


def test_the_script_scores_and_trains_where_there_is_no_tokgolf(
    record: Path, made: Path, tmp_path: Path
) -> None:
    place, elsewhere = tmp_path / "place", tmp_path / "elsewhere"
    place.mkdir()
    elsewhere.mkdir()
    for name in ("train_gpt.py", "model_seed2.golf", "tokenizer.tok"):
        shutil.copy(record / name, place)
    texts = f"--text {made / 'val.jsonl'} --device cpu --json"
    calls = [texts, f"{texts} --train {made / 'train.jsonl'} --seed 2 -o again"]
    done = subprocess.run(
        # -S: no .pth file brings a checkout in; the libraries are found, tokgolf is not.
        [sys.executable, "-S", "-P", "-c", ALONE, place / "train_gpt.py", *calls],
        env={"PYTHONPATH": sysconfig.get_path("purelib"), "OMP_NUM_THREADS": "1"},
        cwd=elsewhere, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    scored, ours = json.loads(lines[0]), json.loads(lines[-1])
    claimed = json.loads((made / "run2" / "score.json").read_text())
    assert scored["val_bpb"] == claimed["bpb"]
    assert scored["val_loss"] == claimed["nats_per_token"]
    assert scored["sha256"] == claimed["corpus_sha256"]
    assert all(file == name for name, file in ours.items()) and "tokgolf.training.loop" in ours
    assert [line for line in lines if line.startswith("step:3 train_loss:")]
    again = json.loads(lines[-2])
    assert again["artifact"] == "model.golf" and again["val_bpb"] > 0
    before = load_artifact(made / "run2" / "model.golf")
    assert load_artifact(elsewhere / "again" / "model.golf").trunk == before.trunk


def test_an_official_adapted_or_wider_score_packs_what_it_needs(made: Path) -> None:
    artifact = load_artifact(made / "run1" / "model.golf")
    wide = modules_beside(Protocol(window=32).of(artifact.trunk), artifact.trunk)
    plain = bundle.script_modules([artifact], [], official=False, training=False)
    both = bundle.script_modules([artifact], wide, official=True, training=False)
    assert "tokgolf.eval.contexts" in both and "tokgolf.eval.official" in both
    assert not {"tokgolf.eval.contexts", "tokgolf.eval.official"} & {*plain}
    assert not [name for name in (*plain, *both) if ".cli" in name or ".training" in name]


LEFT_OUT = {
    "tokgolf.artifact.load": {"tokgolf.ledger"},  # asked for by an export alone
    "tokgolf.heads.base": {"tokgolf.heads.loss"},
    "tokgolf.tokenizers": {"tokgolf.tokenizers.store", "tokgolf.tokenizers.build"},
    "tokgolf": {"tokgolf.eval.score", "tokgolf.tokenizers.build"},
}


def lazy_imports(module: str) -> set[str]:
    """What the functions of a module import of tokgolf."""
    found = set()
    for function in ast.walk(ast.parse(source(module) or "")):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tokgolf"):
                    found |= {str(node.module), *(f"{node.module}.{a.name}" for a in node.names)}
    return {name for name in found if source(name) is not None}


def test_every_lazy_import_of_packed_training_is_packed_or_of_another_tokenizer(
    made: Path,
) -> None:
    artifact = load_artifact(made / "run1" / "model.golf")
    packed = bundle.script_modules([artifact], [], official=True, training=True)
    missing = {name for module in packed for name in lazy_imports(module)} - {*packed}
    # Of this tokenizer none is asked for: it has no transform; nothing here is wider or repeated.
    kinds = {"tokgolf.tokenizers.transforms", "tokgolf.tokenizers.canonical"}
    kinds |= {"tokgolf.tokenizers.split", "tokgolf.tokenizers.build"}
    unasked = {"tokgolf.eval.contexts", "tokgolf.eval.adapt", "tokgolf.lowrank"}
    assert missing <= kinds | unasked
    assert closure(packed) == packed


# What is refused, with nothing written.


Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path) -> Refused:
    """Submitting must fail with this error, and leave nothing; returns what it says."""

    def attempt(error: type[TokgolfError], *runs: Path, **options: Any) -> str:
        before = sorted(tmp_path.iterdir())
        with pytest.raises(error) as caught:
            submit(runs, tmp_path / "records" / NAME, **{"rerun": False, **options})
        assert sorted(tmp_path.iterdir()) == before
        return str(caught.value)

    return attempt


def test_a_folder_that_is_there_stays_as_it_is(made: Path, tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    with pytest.raises(ConfigError, match="is there already"):
        submit([made / "run1"], tmp_path / NAME)
    assert list((tmp_path / NAME).iterdir()) == []


def test_over_the_cap_both_numbers_are_said(refused: Refused, made: Path) -> None:
    said = refused(CapError, made / "run1", cap=60_000)
    numbers = [int(text.replace(",", "")) for text in re.findall(r"[\d,]*\d", said)]
    code, model, total, over, cap = numbers[:5]
    assert (code + model, total - cap, cap) == (total, over, 60_000)
    assert model == (made / "run1" / "model.golf").stat().st_size


def test_runs_that_are_no_seeds_of_one_configuration(
    refused: Refused, made: Path, run: Path
) -> None:
    assert "both have the seed 1" in refused(ConfigError, made / "run1", run)
    other = support.make_run(made, 9, steps=5)
    assert "steps 4 and 5" in refused(ConfigError, made / "run1", other)


def test_a_score_that_is_not_the_artifacts(refused: Refused, made: Path, run: Path) -> None:
    shutil.copy(made / "run2" / "score.json", run)
    assert "score it again: tokgolf score" in refused(ScoreError, run)
    shutil.copy(made / "run2" / "model.golf", run)
    assert "was not exported from" in refused(ArtifactError, run)
    (run / "model.golf").unlink()
    assert "holds no model.golf" in refused(ArtifactError, run)


def test_a_trunk_from_elsewhere_or_another_export_is_no_seed(
    refused: Refused, made: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = run / "model.golf.plan.json"
    values = json.loads(plan.read_text())
    plan.write_text(json.dumps({**values, "config": {**values["config"], "rate_weight": 1.0}}))
    assert "export's rate_weight" in refused(ConfigError, run, made / "run2")
    tensors, state = read_checkpoint(run)
    started = {**state, "config": {**state["config"], "trunk_from": "runs/x"}}
    monkeypatch.setattr(seeds, "read_checkpoint", lambda run: (tensors, started))
    assert "started from the trunk of runs/x" in refused(ConfigError, run)


def test_an_estimate_or_a_broken_invariant_is_no_claim(
    refused: Refused, made: Path, run: Path
) -> None:
    support.rescored(run, made, Protocol(precision="bf16"))
    assert "bf16, which is an estimate" in refused(ScoreError, run)
    support.rescored(run, made)
    invariants = json.loads((run / "score.json").read_text())["invariants"]
    support.edited(run, invariants={**invariants, "causal": False})
    assert "causal failed" in refused(ScoreError, run)
    support.edited(run, invariants=invariants, artifact_bytes=7)
    assert "says 7 bytes in the full accounting" in refused(ScoreError, run)


def test_bytes_that_the_text_does_not_have_are_found_by_the_audit(
    refused: Refused, run: Path
) -> None:
    values = json.loads((run / "score.json").read_text())
    twice = {"document_bytes": [2 * size for size in values["document_bytes"]]}
    support.edited(run, **twice, bytes=2 * values["bytes"], bpb=values["bpb"] / 2)
    said = refused(ScoreError, run)
    assert "the audit does not support submission.json: bytes-inflated" in said


def test_a_score_that_the_artifact_does_not_give_is_found_by_its_script(
    refused: Refused, made: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = json.loads((made / "run1" / "score.json").read_text())
    bits = [0.9 * each for each in true["document_bits"]]
    better = {"bpb": 0.9 * true["bpb"], "nats_per_token": 0.9 * true["nats_per_token"]}
    support.edited(run, document_bits=bits, **better)
    found = {"artifact": "model_seed1.golf", "tokens": true["tokens"], "val_bpb": true["bpb"]}
    printed = json.dumps({**found, "val_loss": true["nats_per_token"]})
    done = SimpleNamespace(returncode=0, stdout=printed, stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *a, **b: done)
    assert f"claims {better['bpb']:.8f} bits" in refused(ScoreError, run, rerun=True)
    done.returncode, done.stderr = 1, "error: no such thing"
    assert "failed on its own: error: no such thing" in refused(ScoreError, run, rerun=True)


def test_a_record_to_beat_of_other_text_is_no_comparison(
    refused: Refused, made: Path, tmp_path: Path
) -> None:
    values = json.loads((made / "run1" / "score.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps(values | {"corpus_sha256": "0" * 64}))
    said = refused(ScoreError, made / "run1", baseline=[tmp_path / "other.json"])
    assert "are of different documents" in said


def test_text_that_is_not_what_was_scored(refused: Refused, made: Path) -> None:
    other = str(made / "train.jsonl")
    assert "give it with --corpus" in refused(CorpusError, made / "run1", corpus=other)
    assert "give --corpus" in refused(CorpusError, made / "run1", corpus="none.jsonl")


def test_a_record_track_wants_what_the_challenge_wants(refused: Refused, made: Path) -> None:
    said = refused(ConfigError, made / "run1", track="10min_16mb")
    assert "no record for the track 10min_16mb: 1 of 3 seeds" in said


# The command.


def test_the_command_prints_the_facts_and_what_is_missing(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    support.rescored(made / "run3", made, Protocol(mode="official", context="stream"))
    command = ["submit", str(made / "run3"), "-o", str(tmp_path / "Tiny"), "--json"]
    assert cli.run([*command, "--github-id", "a"]) == 0
    out, err = capsys.readouterr()
    values = json.loads(out)
    assert values["bpb"] == values["val_bpb"] and values["mode"] == "official"
    assert values["checks"]["the script's own score of each artifact"] == "the same, bit for bit"
    assert "YYYY-MM-DD_Name" in err and any("the challenge's split" in m for m in values["missing"])
    assert cli.run(command) == 1
    assert capsys.readouterr().err.startswith("error: ")
