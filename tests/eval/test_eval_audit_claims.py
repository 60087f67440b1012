"""Claims: every known slip of arithmetic by its name, and none where the numbers are right."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokgolf.errors import ConfigError
from tokgolf.eval.audit.claims import (
    OTHER_TEXT,
    SAME_TEXT,
    Claim,
    Reference,
    claim_findings,
    corrected,
    pair,
    read_claim,
)
from tokgolf.eval.audit.findings import WARNING
from tokgolf.eval.official import official_windows

LN2 = math.log(2)


def reference(per_token: float = 2.4359, **more: Any) -> Reference:
    values = {"name": "the text", "targets": None, "tolerance": OTHER_TEXT} | more
    return Reference(bytes_per_token=per_token, **values)


def claimed(loss: float, bpb: float, **more: Any) -> Claim:
    return Claim(pairs=[pair("final", f"{loss:.8f}", f"{bpb:.8f}")], **more)


def names(claim: Claim, reference: Reference | None = None) -> list[str]:
    return [finding.name for finding in claim_findings(claim, reference)]


# --- one pair against a text


@given(st.floats(0.5, 8), st.floats(1, 5))
def test_a_right_pair_gives_no_finding(loss: float, per_token: float) -> None:
    claim = claimed(loss, loss / LN2 / per_token)
    assert names(claim, reference(per_token, tolerance=SAME_TEXT)) == []


@given(st.floats(1.5, 4), st.floats(2.2, 4))
@settings(max_examples=40)
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("ln2-twice", lambda loss, per: loss / LN2 / LN2 / per),
        ("nats-called-bits", lambda loss, per: loss / per),
        ("tokens-and-bytes-swapped", lambda loss, per: loss / LN2 * per),
        ("bits-a-token", lambda loss, per: loss / LN2),
        ("bytes-inflated", lambda loss, per: loss / LN2 / per / 1.1671),
        ("bytes-deflated", lambda loss, per: loss / LN2 / per * 1.1),
    ],
)
def test_a_slip_is_named_and_corrected(name: str, wrong: Any, loss: float, per: float) -> None:
    claim = claimed(loss, wrong(loss, per))
    (finding,) = claim_findings(claim, reference(per))
    assert finding.name == name
    assert finding.factor is not None
    true = loss / LN2 / per
    assert claim.pairs[0].bpb * finding.factor == pytest.approx(true)
    assert corrected(claim.pairs[0], reference(per)) == pytest.approx(true)
    assert f"{true:.4f} bpb" in finding.advice


def test_a_claim_by_the_wrong_table_is_told_so() -> None:
    claim = claimed(2.0, 2.0 / LN2 / 2.4359 / 1.1671)
    (finding,) = claim_findings(claim, reference(counted=1.1671))
    assert "times 1.1671 as the table counts" in finding.evidence


def test_public_numbers_of_one_tokenizer_agree() -> None:
    """The challenge's SP1024 runs count 2.4359 bytes a token, its first export counted 2.4423."""
    late = Claim(pairs=[pair("final", "1.93978", "1.14885")])
    assert names(late, reference(tolerance=SAME_TEXT)) == []
    first = Claim(pairs=[pair("final", "2.07269931", "1.22436570")])
    assert names(first, reference(tolerance=SAME_TEXT)) == ["bytes-inflated"]
    # Other text may have as many; that is said.
    assert names(first, reference()) == ["claim-held-loosely"]


@pytest.mark.parametrize(
    ("targets", "advice"), [(None, "give --tokens"), (10**6, "give the very text")]
)
def test_what_only_other_text_excuses_is_a_warning(targets: int | None, advice: str) -> None:
    claim = claimed(2.0, 2.0 / LN2 / 2.5 / 1.02, targets=targets)
    (finding,) = claim_findings(claim, reference(2.5))
    assert (finding.name, finding.severity) == ("claim-held-loosely", WARNING)
    assert "+2.00 % bytes a token" in finding.evidence and "up to 2.5 % pass" in finding.evidence
    assert finding.advice.startswith(advice)
    assert names(claimed(2.0, 2.0 / LN2 / 2.5 / 1.0009), reference(2.5)) == []
    assert names(claim, reference(2.5, tolerance=0.024)) == []


def test_rounding_is_no_finding() -> None:
    short = Claim(pairs=[pair("a", "2.1", "1.2"), pair("b", "2.0727", "1.2244")])
    assert names(short, reference(tolerance=SAME_TEXT, per_token=2.4423)) == []


# --- the numbers of one claim against each other


def test_pairs_of_different_text_contradict_each_other() -> None:
    """As in a merged row of the challenge, of which one number was of a part of the text."""
    claim = Claim(pairs=[pair("pre_quant", 2.0322, 1.2079), pair("val", 2.0413, 1.2266)])
    (finding,) = claim_findings(claim, None)
    assert finding.name == "claim-contradicts-itself" and "2.4009" in finding.evidence


def test_bytes_that_are_not_the_pair_s_contradict_it() -> None:
    claim = claimed(2.0, 2.0 / LN2 / 2.5, targets=1000, bytes=2500)
    assert names(claim) == []
    claim = claimed(2.0, 2.0 / LN2 / 2.5, targets=1000, bytes=2917)
    assert names(claim) == ["claim-contradicts-itself"]


# --- how much was scored


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (100_000, []),
        (100_001, []),  # the tokens, of which the first is no target
        (96_256, []),  # cut to whole windows
        (95_000, ["scored-in-part"]),
        (102_000, ["scored-twice"]),
        (30_000, ["scored-in-part"]),
    ],
)
def test_a_count_of_targets_is_held_against_the_text(targets: int, expected: list[str]) -> None:
    claim = claimed(2.0, 2.0 / LN2 / 2.4359, targets=targets)
    assert names(claim, reference(targets=100_000)) == expected


def test_a_part_of_the_whole_text_is_no_slip_in_counting() -> None:
    claim = claimed(2.0, 2.0 / LN2 / 2.4359, targets=9_662_464)
    whole = reference(151_080_891 / 9_662_464, tolerance=SAME_TEXT, whole=True)
    (finding,) = claim_findings(claim, whole)
    assert finding.name == "scored-in-part" and "15.6 % of it" in finding.evidence
    of_bytes = claimed(1.0, 1.0 / LN2, targets=100_000)
    whole = reference(1510.8, tolerance=SAME_TEXT, whole=True)
    assert names(of_bytes, whole) == ["scored-in-part"]


def naive_windows(targets: int, length: int, stride: int) -> list[tuple[int, int]]:
    """Sliding windows without the rule for the tail: each pays for its last `stride` targets."""
    spans = []
    for start in range(0, targets, stride):
        end = min(start + length, targets)
        spans.append((max(start, end - stride) if start else 0, end))
    return spans


@given(st.integers(20, 200), st.integers(2, 16), st.integers(1, 8))
def test_the_challenge_s_windows_are_sound_and_naive_ones_pay_twice(
    targets: int, length: int, stride: int
) -> None:
    stride = min(stride, length)
    spans = [(first, end) for _, first, end in official_windows(targets, length, stride)]
    assert names(Claim(pairs=[], windows=spans, targets=targets)) == []
    if stride < length:
        naive = Claim(pairs=[], windows=naive_windows(targets, length, stride), targets=targets)
        assert names(naive) == ["scored-twice"]


def test_windows_that_leave_targets_out_are_named() -> None:
    claim = Claim(pairs=[], windows=[(0, 4), (6, 8)], targets=10)
    (finding,) = claim_findings(claim, None)
    assert finding.name == "scored-in-part" and "4 of 10 targets" in finding.evidence
    assert "target 4" in finding.evidence


# --- files


def test_a_submission_is_read_with_its_seeds(tmp_path: Path) -> None:
    values = {
        "val_loss": 2.32202732,
        "val_bpb": 1.06107587,
        "seed_results": {
            "42": {"val_loss": 2.31944212, "val_bpb": 1.05989454, "steps": 4945},
            "0": {"val_loss": 2.32239991, "val_bpb": 1.06124613},
        },
        "pre_quant_val_loss": 2.3,
        "pre_quant_val_bpb": 1.05101,
        "other_loss": "not a number",
        "name": "x",
    }
    path = tmp_path / "submission.json"
    path.write_text(json.dumps(values))
    claim = read_claim(path)
    assert [p.label for p in claim.pairs] == [
        "seed_results.42.val_bpb", "seed_results.0.val_bpb", "pre_quant_val_bpb", "val_bpb",
    ]  # fmt: skip
    assert claim.pairs[-1].bytes_per_token == pytest.approx(3.1572, abs=1e-4)
    assert names(claim) == []


def test_a_score_of_ours_is_a_claim(tmp_path: Path) -> None:
    path = tmp_path / "score.json"
    path.write_text(
        json.dumps({"bpb": 2 / LN2 / 2.5, "nats_per_token": 2.0, "tokens": 400, "bytes": 1000})
    )
    claim = read_claim(path)
    assert (claim.targets, claim.bytes, len(claim.pairs)) == (400, 1000, 1)
    assert names(claim) == []


def test_a_count_beyond_reason_is_none(tmp_path: Path) -> None:
    path = tmp_path / "claim.json"
    path.write_text('{"val_loss": 2.0, "val_bpb": 1.0, "tokens": 1e999, "val_bytes": true}')
    assert (read_claim(path).targets, read_claim(path).bytes) == (None, None)
    path.write_text('{"val_loss": 2.0, "val_bpb": 1.0, "tokens": 0.5}')
    assert read_claim(path).targets is None


def test_a_log_is_read_to_its_last_numbers(tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    path.write_text(
        "val_loader:shards pattern=x tokens:62021632\n"
        "step:0/20000 val_loss:6.9357 val_bpb:4.1077 train_time:0ms\n"
        "4945/20000 val_loss: 2.0727 val_bpb: 1.2276\n"
        "final_int8_zlib_roundtrip_exact val_loss:2.07000000 val_bpb:1.22600000\n"
    )
    claim = read_claim(path)
    assert claim.targets == 62_021_632 and len(claim.pairs) == 3
    assert claim.pairs[-1].label == "final_int8_zlib_roundtrip_exact"
    assert claim.pairs[-1].loss == 2.07


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no val_loss with a val_bpb"),
        ("{", "no sound JSON"),
        ('{"a":' * 100_000, "no sound JSON"),
        ('{"val_loss": 2.0}', "has no val_loss with a val_bpb"),
        ('{"val_loss": 2.0, "val_bpb": 0}', "has no val_loss"),
        ('{"val_loss": 2.0, "val_bpb": 1.0, "windows": [1]}', "windows are pairs"),
        ('{"val_loss": 1e999, "val_bpb": 1.0}', "both are numbers above 0"),
        ('{"val_loss": 2.0, "val_bpb": 1.0, "windows": [[0, 1e999]]}', "windows are pairs"),
        ('{"val_loss": 1' + "0" * 400 + ', "val_bpb": 1.0}', "both are numbers above 0"),
        ("val_loss:1.2.3 val_bpb:1", "both are numbers above 0"),
    ],
)
def test_what_is_no_claim_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "claim"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_claim(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ([(-1, 4)], "before the first target"),
        ([(0, 1 << 40)], "up to 1073741824"),
        ([(10, 5)], "starts at target 10 and ends at 5"),
        ([(0, 20), (10, 5)], "starts at target 10 and ends at 5"),
    ],
)
def test_windows_out_of_reach_are_refused(windows: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        claim_findings(Claim(pairs=[], windows=windows), None)
