"""Comparisons of saved scores: sums that hold, the rule, the exchange rate, and every refusal."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokgolf.errors import ConfigError, ScoreError
from tokgolf.eval.compare import Comparison, compare
from tokgolf.eval.exchange import Exchange, falling_hull, read_exchange
from tokgolf.eval.saved import SavedScore, protocol_differences, read_score

SIZES = np.array([100.0, 0.0, 900.0, 40.0, 3000.0])
TOKENS = 1620  # 4,040 bytes and 5 closing BOS


def scored(name: str, bpb: float, wobble: int = 0, **changes: Any) -> SavedScore:
    """A score near `bpb`; `wobble` moves single documents and keeps the sum."""
    shift = np.random.default_rng(wobble).normal(size=5) * 0.01 if wobble else np.zeros(5)
    bits = SIZES * (bpb + shift - (SIZES * shift).sum() / SIZES.sum())
    plain = SavedScore(
        name=name, corpus="web:val", corpus_sha256="c" * 64, mode="raw", protocol={"stride": 64},
        tokenizer="t" * 64, tokens=TOKENS, bits=bits, sizes=SIZES, artifact_sha256=None,
        artifact_bytes=None, seed=None,
    )  # fmt: skip
    return replace(plain, **changes)


A = [scored("a1", 1.200, 1), scored("a2", 1.202, 2), scored("a3", 1.198, 3)]
B = [scored("b1", 1.190, 4), scored("b2", 1.191, 5), scored("b3", 1.189, 6)]


def one(*sides: list[SavedScore], **options: Any) -> Comparison:
    (found,) = compare(sides, **options)
    return found


# --- what a comparison says


def test_a_difference_is_candidate_less_reference_in_three_units() -> None:
    found = one(A[:1], B[:1])
    values = found.as_dict()
    assert values["bpb"] == pytest.approx(-0.010)
    assert values["nats_per_byte"] == pytest.approx(-0.010 * math.log(2))
    assert values["nats_per_token"] == pytest.approx(-0.010 * math.log(2) * 4040 / TOKENS)
    for unit in ("bpb", "nats_per_byte", "nats_per_token"):
        difference = values["candidate"][unit] - values["reference"][unit]
        assert values[unit] == pytest.approx(difference)
    low, high = found.documents or (0.0, 0.0)
    assert low <= -0.010 <= high and low < high
    assert values["seeds"] is None and values["clears_rule"] is None
    json.dumps(values, allow_nan=False)


def test_a_score_against_itself_does_not_differ() -> None:
    found = one(A, A)
    assert (found.difference, found.documents) == (0.0, (0.0, 0.0))
    assert found.seeds is not None and found.seeds.p_equal == 1.0 and found.clears is False


def test_swapping_the_sides_changes_the_sign_alone() -> None:
    there, back = one(A, B), one(B, A)
    assert there.difference == -back.difference
    assert there.documents is not None and back.documents is not None
    assert there.documents == pytest.approx([-x for x in reversed(back.documents)])
    assert there.seeds is not None and back.seeds is not None
    assert there.seeds.p_equal == back.seeds.p_equal


def test_every_side_is_compared_with_the_first() -> None:
    found = compare([A, B[:2], B[2:]])
    assert [each.reference.name for each in found] == ["a1 and 2 more"] * 2
    assert [each.candidate.name for each in found] == ["b1 and 1 more", "b3"]


def test_documents_are_those_of_the_sides_means() -> None:
    pair = one(A[:2], B[:1])
    mean = replace(A[0], bits=(A[0].bits + A[1].bits) / 2)
    assert pair.documents == one([mean], B[:1]).documents


def test_a_float_model_beside_an_artifact_is_told_apart() -> None:
    files = [replace(score, artifact_sha256=score.name * 32) for score in B]
    for sides, same in (((A, B), True), ((files[:1], files[1:]), True), ((A, files), False)):
        assert one(*sides).same_model is one(*sides[::-1]).same_model is same
    values = one(A, files).as_dict()
    assert (values["reference"]["model"], values["candidate"]["model"]) == ("float", "artifact")
    mixed = one([A[0], files[0]], [A[1], files[1]])
    assert mixed.reference.model == "mixed" and mixed.as_dict()["same_model"] is False


# --- the rule


# Bytes a token (val_loss / (ln 2 val_bpb)) of the challenge's records, and what 0.005 nats are.
@pytest.mark.parametrize(
    ("per_token", "bpb"), [(2.4359, 0.00296), (3.3197, 0.00217), (3.7266, 0.00194), (1.0, 0.0072)]
)
def test_the_rule_in_bits_per_byte_is_the_challenges(per_token: float, bpb: float) -> None:
    tokens = round(4_040_000 / per_token)
    big = replace(A[0], tokens=tokens, sizes=SIZES * 1000, bits=A[0].bits * 1000)
    assert one([big], [big]).rule_bpb == pytest.approx(bpb, abs=1.5e-5)


def test_the_rule_is_cleared_by_what_is_better_by_more_than_it_over_seeds() -> None:
    found = one(A, B)  # 0.0100 better, the rule is 0.0029, the error 0.0013
    assert found.seeds is not None and found.p_rule is not None
    assert found.seeds.p_below(0) < found.p_rule < 0.05
    assert found.clears is (found.p_rule < 0.01)
    far = [replace(score, bits=score.bits * 0.98) for score in B]
    assert one(A, far).clears is True
    near = [
        replace(score, bits=score.bits * 0.9975 * A[i].bpb / score.bpb) for i, score in enumerate(B)
    ]
    assert one(A, near).clears is False  # all better, but by about the rule itself
    assert one(far, A).clears is False


def test_one_seed_on_a_side_cannot_clear_the_rule() -> None:
    far = [replace(score, bits=score.bits * 0.5) for score in B]
    assert one(A[:1], far).clears is None


def test_with_two_tokenizers_the_greater_demand_holds_and_tokens_are_not_compared() -> None:
    coarse = [replace(score, tokenizer="u" * 64, tokens=TOKENS // 2) for score in B]
    found = one(A, coarse)
    assert found.rule_bpb == one(coarse, A).rule_bpb == one(A, B).rule_bpb
    assert found.as_dict()["nats_per_token"] is None
    assert found.candidate.rule_bpb == pytest.approx(found.reference.rule_bpb / 2)


def test_runs_with_the_same_seeds_are_paired_in_whatever_order() -> None:
    a = [replace(score, seed=seed) for score, seed in zip(A, (1, 2, 3), strict=True)]
    b = [replace(score, seed=seed) for score, seed in zip(B, (3, 1, 2), strict=True)]
    found = one(a, b).seeds
    assert found is not None and found.kind == "paired"
    assert (
        found == one(a, [b[1], b[2], b[0]]).seeds == one(A, [B[1], B[2], B[0]], test="paired").seeds
    )
    other = [replace(score, seed=seed) for score, seed in zip(B, (3, 1, 7), strict=True)]
    for sides in ((a, other), (a, B), (A, B), (a, b[:2])):
        welch = one(*sides).seeds
        assert welch is not None and welch.kind == "Welch"
    welch = one(a, b, test="welch").seeds
    assert welch is not None and welch.kind == "Welch"


# --- refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "official"}, "a1 and odd are of different modes, raw and official"),
        ({"corpus_sha256": "d" * 64}, "different documents: web:val cccccccccccc and web:val ddd"),
        ({"sizes": SIZES[::-1]}, "different document_bytes"),
        ({"tokens": TOKENS + 1}, "one tokenizer but 1,620 and 1,621 tokens"),
        ({"protocol": {"stride": 128}}, "different protocols: stride 64 and 128; .*--across-prot"),
        (
            {"protocol": {"stride": 64, "adapt": {"kind": "lora", "lr": 0.1}}},
            "protocols: adapt None and lora;",
        ),
        ({"protocol": {}}, "different protocols: stride 64 and None"),
    ],
)
def test_scores_that_are_not_of_the_same_thing_are_refused(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ScoreError, match=message):
        compare([A, [scored("odd", 1.19, 4, **change)]])


def test_what_differs_within_a_part_of_the_protocol_is_named() -> None:
    one, other = (
        scored("x", 1.2, 1, protocol={"adapt": {"kind": "lora", "lr": lr}, "time_budget": lr})
        for lr in (0.1, 0.2)
    )
    assert list(protocol_differences(one, other)) == ["adapt.lr 0.1 and 0.2"]


def test_protocols_may_differ_where_that_is_asked_for() -> None:
    odd = scored("odd", 1.19, 4, protocol={"stride": 128})
    assert one(A[:1], [odd], across_protocols=True).difference == pytest.approx(-0.01)


def test_a_side_is_of_one_tokenizer_and_of_different_runs() -> None:
    with pytest.raises(ScoreError, match="a1 and odd are on one side .* put vs between"):
        compare([[A[0], scored("odd", 1.2, 4, tokenizer="u" * 64)], B])
    with pytest.raises(ScoreError, match="a1 and again are one result twice"):
        compare([[*A, replace(A[0], name="again")], B])


def test_one_artifact_scored_twice_is_no_second_seed() -> None:
    one_file = [replace(score, artifact_sha256="a" * 64) for score in A]
    for sides in ([one_file, B], [B, one_file[:2]]):
        with pytest.raises(ScoreError, match="a1 and a2 are on one side but of one artifact, aaa"):
            compare(sides)
    other = replace(A[1], artifact_sha256="b" * 64)
    assert one([one_file[0], other], [one_file[2]]).reference.name == "a1 and 1 more"


@pytest.mark.parametrize("across", [False, True])
def test_a_side_is_of_one_protocol_even_across_protocols(across: bool) -> None:
    odd = scored("odd", 1.19, 4, protocol={"stride": 128})
    message = "a1 and odd are on one side but of different protocols: stride 64 and 128; .* put vs"
    with pytest.raises(ScoreError, match=message):
        compare([[A[0], odd], B], across_protocols=across)
    timed = scored("timed", 1.19, 4, protocol={"stride": 64, "time_budget": 600.0})
    assert one([A[0], timed], B).reference.name == "a1 and 1 more"


@pytest.mark.parametrize(
    ("sides", "options", "message"),
    [
        ([A], {}, "1 side to compare"),
        ([A, []], {}, "1 side to compare"),
        ([A, B[:2]], {"test": "paired"}, "equal sides; these have 3 and 2"),
        ([A, B], {"test": "wlech"}, "did you mean 'welch'"),
        ([A, B], {"level": 95.0}, "level is 95.0; it must be from 0.5 to below 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    sides: list[list[SavedScore]], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        compare(sides, **options)


# --- bytes


POINTS = ((1000.0, 1.5), (2000.0, 1.3), (4000.0, 1.2))


def test_a_difference_is_worth_bytes_at_the_rate_about_the_references_size() -> None:
    a = [replace(score, artifact_bytes=1900 + i) for i, score in enumerate(A)]
    b = [replace(score, artifact_bytes=1952) for score in B]
    found = one(a, b, exchange=Exchange(curves={"ex": POINTS}))
    assert found.reference.artifact_bytes == 1902  # the largest
    assert found.rate == pytest.approx(0.2 / 1000)
    assert found.worth_bytes == pytest.approx(0.010 / 2e-4)
    assert found.difference_at_equal_bytes == pytest.approx(-0.010 + 50 * 2e-4)
    assert found.bytes_paid == pytest.approx(50 / 0.010)
    values = found.as_dict()["exchange"]
    assert (values["source"], values["small_bytes"], values["large_bpb"]) == ("ex", 1000.0, 1.3)


def test_nothing_was_paid_where_the_smaller_one_is_better() -> None:
    a, b = replace(A[0], artifact_bytes=2000), replace(B[0], artifact_bytes=1999)
    assert one([a], [b]).bytes_paid is None and one([a], [b]).bytes_difference == -1
    assert one([b], [a]).bytes_paid is None
    assert one([a], [replace(b, artifact_bytes=2000)]).bytes_paid is None
    assert one(A, B).bytes_difference is None


def test_a_rate_is_never_read_off_beyond_the_points() -> None:
    exchange = Exchange(curves={"ex": POINTS})
    for size in (999, 4001):
        with pytest.raises(ScoreError, match=f"from 1,000 to 4,000 bytes, .* has {size:,};"):
            one([replace(A[0], artifact_bytes=size)], B, exchange=exchange)
    with pytest.raises(ScoreError, match="a1 is of a float model, which has no size"):
        one(A[:1], B, exchange=exchange)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": {"stride": 16}}, "protocol: stride 64 and 16; score the points as"),
        ({"mode": "official"}, "protocol: mode raw and official;"),
        ({"corpus_sha256": "d" * 64}, "protocol: corpus web:val cccccccccccc and web:val ddd"),
    ],
)
def test_a_rate_of_other_text_or_options_is_refused(change: dict[str, Any], message: str) -> None:
    exchange = Exchange(curves={"ex": POINTS}, taken=scored("p", 1.5, **change))
    a = [replace(A[0], artifact_bytes=1500)]
    with pytest.raises(ScoreError, match=f"^a1 and the scores of --exchange are not .*{message}"):
        one(a, B, exchange=exchange)
    timed = scored("p", 1.5, protocol={"stride": 64, "time_budget": 600.0})
    assert one(a, B, exchange=Exchange(curves={"ex": POINTS}, taken=timed)).rate is not None


def test_each_scheme_is_a_curve_and_the_best_about_a_size_is_read(tmp_path: Path) -> None:
    file = tmp_path / "points.json"
    rows = [("good", 10, 2.0), ("good", 20, 1.0), ("bad", 5, 9.0), ("bad", 30, 4.0), ("one", 9, 1)]
    points = [{"scheme": scheme, "bytes": size, "bpb": bpb} for scheme, size, bpb in rows]
    file.write_text(json.dumps({"points": points}))
    exchange = read_exchange([file])
    assert exchange.segment(15).source == f"{file}, good"
    assert exchange.segment(15).rate == pytest.approx(0.1)
    assert not exchange.segment(15).text_known
    assert exchange.segment(25).source == exchange.segment(7).source == f"{file}, bad"
    with pytest.raises(ScoreError, match="from 5 to 30 bytes, the reference has 31"):
        exchange.segment(31)


def test_the_worked_example_of_the_hull() -> None:
    assert falling_hull([(1, 9), (2, 8), (3, 4), (4, 5)]) == [(1, 9), (3, 4)]


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=20))
def test_the_hull_falls_ever_less_and_no_point_is_below_it(points: list[tuple[int, int]]) -> None:
    hull = falling_hull([(float(x), float(y)) for x, y in points])
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in zip(hull, hull[1:], strict=False)]
    assert slopes == sorted(slopes) and all(slope < 0 for slope in slopes)
    assert set(hull) <= set(points) and min(y for _, y in points) == hull[-1][1]
    xs, ys = zip(*hull, strict=True)
    assert all(y >= np.interp(x, xs, ys) - 1e-9 for x, y in points)


def test_an_exchange_is_read_from_points_or_from_scores(tmp_path: Path, saved: Path) -> None:
    file = tmp_path / "points.json"
    rows: list[Any] = [{"bytes": 9, "bpb": 2.0}, {"bytes": 5, "bpb": 3}, {"bytes": 7, "kl": 0.1}]
    file.write_text(json.dumps({"points": rows}))
    assert read_exchange([file]).curves == {str(file): [(5.0, 3.0), (9.0, 2.0)]}
    other = tmp_path / "other.json"
    values = json.loads(saved.read_text())
    bits = [bits / 2 for bits in values["document_bits"]]
    other.write_text(
        json.dumps(
            {**values, "document_bits": bits, "bpb": values["bpb"] / 2, "artifact_bytes": 2000}
        )
    )
    exchange = read_exchange([other, saved])
    assert exchange.curves == {"the scores given": [(1000.0, 1.25), (2000.0, 0.625)]}
    assert exchange.taken is not None and exchange.taken.name == str(other)
    assert exchange.segment(1500).text_known
    for few in ([], [{"bytes": 1, "bpb": 1.0}], [{"bytes": 1, "bpb": 1}, {"bytes": 2, "bpb": 2}]):
        file.write_text(json.dumps({"points": few}))
        with pytest.raises(ScoreError, match="an exchange rate needs 2"):
            read_exchange([file])
    for points in (
        3,
        [3],
        [{"bytes": "9", "bpb": 2}],
        [{"bytes": 9, "bpb": float("nan")}],
        [{"bytes": 10**400, "bpb": 1}],
    ):
        file.write_text(json.dumps({"points": points}))
        with pytest.raises(ScoreError, match="points.json: (a point|points)"):
            read_exchange([file])
    for change, message in (
        ({"corpus_sha256": "d" * 64}, "corpus web:val dddddddddddd and web:val cccccccccccc"),
        ({"mode": "official"}, "mode official and raw"),
        ({"protocol": {"stride": 16}}, "stride 16 and 64"),
    ):
        other.write_text(json.dumps({**values, "artifact_bytes": 2000, **change}))
        with pytest.raises(ScoreError, match=f"not scores of one corpus, mode and .*: {message};"):
            read_exchange([other, saved])
    other.write_text(json.dumps({**values, "artifact_bytes": None}))
    with pytest.raises(ScoreError, match="which has no size"):
        read_exchange([other, saved])


# --- files


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "score.json"
    path.parent.mkdir()
    values = {
        "bpb": 1.25, "tokens": 7, "bytes": 16, "documents": 2, "corpus": "web:val", "mode": "raw",
        "stride": 64, "corpus_sha256": "c" * 64, "tokenizer": "t" * 64, "artifact_sha256": "a" * 64,
        "artifact_bytes": 1000, "document_bits": [20.0, 0.0], "document_bytes": [16, 0],
    }  # fmt: skip
    path.write_text(json.dumps(values))
    return path


def test_a_score_is_read_from_its_file_or_its_run(saved: Path) -> None:
    found = read_score(saved)
    assert (found.bpb, found.tokens, found.artifact_bytes, found.seed) == (1.25, 7, 1000, None)
    assert found.protocol == {"stride": 64}
    (saved.parent / "config.toml").write_text("seed = 7\n")
    assert read_score(saved.parent).seed == 7 and read_score(saved).seed is None
    assert read_score(saved.parent).name == str(saved.parent)
    values = json.loads(saved.read_text())
    saved.write_text(json.dumps({**values, "protocol": {"stride": 64, "context": "document"}}))
    assert read_score(saved).protocol == {"stride": 64, "context": "document"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("document_bits"), "KeyError.*document_bits"),
        (lambda v: v.update(document_bits=[20.0]), "1 document_bits, 2 document_bytes, 2 doc"),
        (lambda v: v.update(document_bits=[21.0, 0.0]), "document_bits give 1.3125.* bpb is 1.25"),
        (lambda v: v.update(document_bits=[20.0, math.nan]), "no list of finite numbers"),
        (lambda v: v.update(document_bits=[24.0, -4.0]), "no list of finite numbers"),
        (lambda v: v.update(document_bits="20"), "no list of finite numbers|could not convert"),
        (lambda v: v.update(document_bytes=[15, 0]), "sum to 15, bytes is 16"),
        (lambda v: v.update(tokens=0), "16 bytes and 0 tokens"),
        (lambda v: v.update(tokens=7.0), "tokens is 7.0, not a count"),
        (lambda v: v.update(bpb="high"), "could not convert"),
        (lambda v: v.update(corpus=3), "corpus is 3, not text"),
        (lambda v: v.update(artifact_bytes=-1), "artifact_bytes is -1"),
        (lambda v: v.update(protocol=[["a", 1]]), "protocol is .* not an object"),
        (lambda v: v.update(artifact_bytes=1 << 62), "artifact_bytes is 46"),
    ],
)
def test_what_is_no_whole_score_is_refused(
    saved: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    values = json.loads(saved.read_text())
    change(values)
    saved.write_text(json.dumps(values))
    with pytest.raises(ScoreError, match=f"score.json is no score with its documents.*{message}"):
        read_score(saved)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\xff"])
def test_what_is_not_json_is_refused(saved: Path, text: str) -> None:
    saved.write_text(text, "latin-1")
    with pytest.raises(ScoreError, match="score.json is not valid JSON"):
        read_score(saved)
    saved.write_text("[1]")
    with pytest.raises(ScoreError, match="holds a JSON list"):
        read_score(saved)


def test_a_run_without_a_score_says_how_to_make_one(tmp_path: Path) -> None:
    command = f"tokgolf score {tmp_path}/model.golf --save {tmp_path}/score.json$"
    with pytest.raises(ScoreError, match=f"artifact: tokgolf export {tmp_path}, then {command}"):
        read_score(tmp_path)
    (tmp_path / "model.golf").write_bytes(b"")
    with pytest.raises(ScoreError, match=f"artifact: {command}"):
        read_score(tmp_path)
