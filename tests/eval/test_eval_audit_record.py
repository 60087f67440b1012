"""Record folders: a sound one has no finding, and one digit changed anywhere has its name."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tokgolf.errors import ConfigError
from tokgolf.eval.audit.findings import NAMES, WARNING
from tokgolf.eval.audit.record import record_findings

SCORES = {1: (2.10001234, 1.25000735), 2: (2.10201234, 1.25119782), 42: (2.09901234, 1.24941211)}
SCRIPT, ARTIFACT = b"print(1)\n" * 5, b"weights" * 20
TOTAL = len(SCRIPT) + len(ARTIFACT)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A record folder whose parts agree."""
    results = {}
    (tmp_path / "train_gpt.py").write_bytes(SCRIPT)
    for seed, (loss, bpb) in SCORES.items():
        (tmp_path / f"m{seed}.golf").write_bytes(ARTIFACT)
        results[str(seed)] = {
            "val_loss": loss, "val_bpb": bpb, "artifact_bytes": TOTAL,
            "artifact": f"m{seed}.golf", "artifact_sha256": hashlib.sha256(ARTIFACT).hexdigest(),
        }  # fmt: skip
        (tmp_path / f"train_seed{seed}.log").write_text(
            f"step:9/9 val_loss:2.2000 val_bpb:1.3095\nCode size: {len(SCRIPT)} bytes\n"
            f"Total submission size int8+zlib: {TOTAL} bytes\n"
            f"final_roundtrip_exact val_loss:{loss} val_bpb:{bpb}\n"
        )
    bpb = sum(each[1] for each in SCORES.values()) / 3
    claim = {
        "val_loss": sum(each[0] for each in SCORES.values()) / 3, "val_bpb": bpb,
        "seed_results": results, "bytes_total": TOTAL, "bytes_code": len(SCRIPT),
        "comparison_baseline_bpb": 1.260001, "delta_vs_baseline_bpb": bpb - 1.260001,
    }  # fmt: skip
    (tmp_path / "submission.json").write_text(json.dumps(claim))
    return tmp_path


def changed(folder: Path, *keys: str, **values: Any) -> None:
    """Put values into submission.json, below `keys`."""
    path = folder / "submission.json"
    whole = json.loads(path.read_text())
    part = whole
    for key in keys:
        part = part[key]
    part.update(values)
    path.write_text(json.dumps(whole))


def names(folder: Path) -> list[str]:
    found = record_findings(folder)
    assert all(each.name in NAMES for each in found)
    return [each.name for each in found]


def test_a_sound_folder_has_no_finding(folder: Path) -> None:
    assert record_findings(folder) == []


def test_a_mean_may_be_rounded_but_not_be_another(folder: Path) -> None:
    changed(folder, val_bpb=1.250, delta_vs_baseline_bpb=-0.01)
    assert names(folder) == []
    changed(folder, val_bpb=1.2481, delta_vs_baseline_bpb=-0.0119)
    assert names(folder) == ["mean-is-not-the-seeds'"]


def test_a_seed_s_number_is_one_of_its_log(folder: Path) -> None:
    changed(folder, "seed_results", "42", val_bpb=1.24941221)
    # The mean moves by a third of that, which is over the rounding of eight places.
    assert set(names(folder)) >= {"log-says-otherwise"}
    log = folder / "train_seed42.log"
    log.write_text(log.read_text().replace("1.24941211", "1.24941221"))
    changed(folder, val_bpb=(1.25000735 + 1.25119782 + 1.24941221) / 3)
    assert "log-says-otherwise" not in names(folder)


@pytest.mark.parametrize(
    ("old", "new"), [("1.24941211", "1.24951211"), (f": {TOTAL} b", f": {TOTAL + 1} b")]
)
def test_a_digit_changed_in_a_log_is_noticed(folder: Path, old: str, new: str) -> None:
    log = folder / "train_seed42.log"
    log.write_text(log.read_text().replace(old, new))
    (finding,) = record_findings(folder)
    assert finding.name == "log-says-otherwise" and "seed 42" in finding.evidence


def test_another_seed_s_log_is_not_taken_for_it(folder: Path) -> None:
    (folder / "train_seed2.log").unlink()
    assert names(folder) == []  # 42 has a 2 in it, and is not it


def test_bytes_are_those_of_the_files(folder: Path) -> None:
    changed(folder, bytes_code=len(SCRIPT) + 1)
    assert names(folder) == ["bytes-are-not-the-files'"]
    changed(folder, bytes_code=len(SCRIPT))
    changed(folder, "seed_results", "1", artifact_bytes=TOTAL - 1)
    found = names(folder)
    assert sorted(set(found)) == ["bytes-are-not-the-files'", "log-says-otherwise"]


def test_code_counted_as_the_logs_count_it_is_a_warning(folder: Path) -> None:
    (folder / "train_gpt.py").write_bytes(SCRIPT * 3)
    for path in (folder / "submission.json", *folder.glob("m*.golf")):
        text = path.read_text()
        path.write_text(text.replace('"artifact":', '"file":'))
    (finding,) = record_findings(folder)
    assert (finding.name, finding.severity) == ("bytes-are-not-the-files'", WARNING)


def test_the_largest_seed_is_what_a_cap_holds(folder: Path) -> None:
    changed(folder, bytes_total=TOTAL + 10)
    assert names(folder) == ["claim-contradicts-itself"]
    changed(folder, bytes_total=16_000_001)
    assert names(folder) == ["claim-contradicts-itself", "over-the-cap"]
    changed(folder, cap=20_000_000)
    assert [each.severity for each in record_findings(folder)] == ["error", WARNING]


def test_a_difference_follows_from_what_it_is_of(folder: Path) -> None:
    changed(folder, delta_vs_baseline_bpb=-0.0108)
    assert names(folder) == ["claim-contradicts-itself"]


def test_an_artifact_put_in_after_is_noticed(folder: Path) -> None:
    (folder / "m2.golf").write_bytes(b"w" + ARTIFACT[1:-1] + b"x")
    assert names(folder) == ["artifact-is-another"]
    (folder / "m2.golf").unlink()
    assert "not there" in record_findings(folder)[0].evidence


def test_what_is_no_record_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no submission\.json"):
        record_findings(tmp_path)
    for text, message in (("{", "no sound JSON"), ("[1]", "a JSON list")):
        (tmp_path / "submission.json").write_text(text)
        with pytest.raises(ConfigError, match=message):
            record_findings(tmp_path)
    (tmp_path / "submission.json").write_text('{"seed_results": {"1": 3}, "val_bpb": "x"}')
    assert record_findings(tmp_path) == []
