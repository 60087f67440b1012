"""The report: what it reads, what it computes, and a page that stays a page whatever is in it."""

import json
import math
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_support import NASTY, add_cell, fake_score, make_golf, make_store, nasty_bytes

from tokgolf.artifact.load import load_artifact
from tokgolf.errors import ConfigError
from tokgolf.eval.saved import read_score
from tokgolf.report import charts
from tokgolf.report.build import Report, build, write
from tokgolf.report.curves import read_metrics, thinned
from tokgolf.report.entries import gather
from tokgolf.report.heat import heat, pieces, plain, protocol_of, unlike_score
from tokgolf.report.page import render, token_text
from tokgolf.report.palette import (
    DARK,
    HEAT_DARK,
    HEAT_FROM,
    HEAT_LIGHT,
    LIGHT,
    SERIES,
    contrast,
    heat_class,
)
from tokgolf.report.scales import labels, linear_ticks, scale, short


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_golf(tmp_path_factory.mktemp("golf"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("store") / "runs")


@pytest.fixture(scope="module")
def full(run: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    text = tmp_path_factory.mktemp("text") / "nasty.txt"
    text.write_bytes(nasty_bytes())
    return build([store, run], cap=200_000, text=str(text))


@pytest.fixture(scope="module")
def page(full: Report) -> str:
    return render(full)


class Page(HTMLParser):
    """Every element with its attributes, and the text outside of style and script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self._within: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._within = [tag] if tag in ("style", "script") else self._within

    def handle_endtag(self, tag: str) -> None:
        self._within = []

    def handle_data(self, data: str) -> None:
        self.words += "" if self._within else data


# --- what is read


def test_a_store_gives_each_run_once_and_names_what_is_wrong(store: Path) -> None:
    found = gather([store, store / "tied-0", store / "sweeps" / "s"])
    assert len(found.entries) == len({entry.run for entry in found.entries}) == 8
    assert {entry.name for entry in found.failed} == {"failing", "damaged"}
    assert "cell.json" in str(next(e.reason for e in found.failed if e.name == "damaged"))
    assert found.sweeps == ("s",) and len(found.predictions) == 4


def test_a_folder_without_runs_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds 0 runs; name a run directory"):
        gather([tmp_path])


def test_a_run_made_by_hand_has_the_settings_of_its_config(run: Path) -> None:
    (entry,) = gather([run], cap=200_000).entries
    assert (entry.head, entry.vocab_size, entry.seed, entry.cap) == ("tied", 270, 1337, 200_000)
    assert entry.settings["trunk.d_model"] == 16 and entry.own_score


def test_a_score_of_another_artifact_is_told(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    (other / "exports.txt").write_text("0" * 64 + "\n")
    (entry,) = gather([other]).entries
    assert not entry.own_score
    assert "score of another artifact" in render(build([other]))


# --- what is computed


def test_numbers_of_different_protocols_never_share_a_table(full: Report) -> None:
    for board in full.boards:
        kinds = {
            (row.entry.score.corpus_sha256, json.dumps(row.entry.score.protocol))
            for row in board.rows
            if row.entry.score is not None
        }
        assert len(kinds) == 1
    assert len(full.boards) == 3 and len(full.boards[0].rows) == 4


def test_the_headline_is_the_best_run_under_its_cap(full: Report) -> None:
    best = full.boards[0].best.entry
    sizes = {row.entry.name: row.entry.artifact_bytes for row in full.boards[0].rows}
    assert sizes["tied-0"] == 13_333 and best.name == "tied-0"


def test_a_run_over_its_cap_is_no_headline(tmp_path: Path) -> None:
    add_cell(tmp_path, "large", {"head": "tied"}, fake_score(1.0), cap=14_000)
    add_cell(tmp_path, "small", {"head": "tied"}, fake_score(2.0), cap=14_000)
    assert build([tmp_path]).boards[0].best.entry.name == "small"


def test_intervals_over_seeds_are_of_runs_that_differ_by_the_seed_alone(full: Report) -> None:
    rows = {row.entry.name: row for row in full.boards[0].rows}
    seeds = rows["tied-1"].seeds
    assert seeds is not None and seeds.count == 3 and rows["low-rank"].seeds is None
    values = [rows[f"tied-{n}"].bpb for n in range(3)]
    half = 4.302653 * float(np.std(values, ddof=1)) / math.sqrt(3)
    assert seeds.interval == pytest.approx((seeds.mean - half, seeds.mean + half), abs=1e-6)


def test_the_front_holds_the_runs_that_nothing_beats(full: Report) -> None:
    rows = full.boards[0].rows
    for row in rows:
        beaten = any(
            (other.entry.artifact_bytes or 0) <= (row.entry.artifact_bytes or 0)
            and other.bpb < row.bpb
            for other in rows
        )
        assert row.front is not beaten


def test_predictions_know_what_their_cell_measured(full: Report) -> None:
    held_out = next(row for row in full.predictions if row["what"] == "held out")
    assert held_out["measured"] == full.boards[0].best.bpb
    assert held_out["low"] < held_out["bpb"] < held_out["high"]


def test_the_bits_of_a_document_sum_to_its_part_of_the_score(run: Path) -> None:
    score, artifact = read_score(run), load_artifact(run / "model.golf")
    texts = (run.parent / "data" / "test.jsonl").read_text().splitlines()
    for line, bits in zip(texts, score.bits, strict=True):
        found = heat(artifact, json.loads(line)["text"].encode(), "", protocol_of(score))
        assert math.fsum(token.bits for token in found.tokens) == pytest.approx(bits, rel=1e-5)
        assert b"".join(t.data or b"" for t in found.tokens) == json.loads(line)["text"].encode()


def test_without_a_text_a_scored_document_is_shown_and_agrees(run: Path) -> None:
    shown = build([run]).heat
    assert shown is not None and shown.matches is True


def test_the_map_says_how_it_was_scored_and_where_the_score_was_not(run: Path) -> None:
    found = build([run])
    assert found.heat is not None and found.subject is not None
    assert found.heat.how.startswith("raw mode, window 32, stride ")
    page = render(found)
    assert found.heat.how in page and "do not compare" not in page
    score = found.subject.score
    assert score is not None and unlike_score(score) == ""
    official = replace(score, mode="official")
    adapted = replace(score, protocol={**score.protocol, "adapt": {"kind": "lora"}})
    assert unlike_score(adapted) == "adaptation (lora)"
    other = render(replace(found, subject=replace(found.subject, score=official)))
    assert "where the run's score has official mode: the two do not compare" in other.replace(
        "&#39;", "'"
    )


def test_a_ledger_that_is_not_the_score_s_says_so(run: Path) -> None:
    found = build([run])
    assert found.subject is not None and found.ledger is not None
    assert "another version" not in render(found)
    older = replace(found.subject, artifact_bytes=sum(found.ledger.values()) - 236)
    assert "with the code of another version" in render(replace(found, subject=older))


def test_alternatives_are_the_likeliest_and_the_rank_is_the_tokens_own(run: Path) -> None:
    artifact = load_artifact(run / "model.golf")
    for token in heat(artifact, b"tiny models", "").tokens:
        odds = [odd for _, odd in token.alternatives]
        assert odds == sorted(odds, reverse=True)
        if token.rank <= len(odds):
            assert token.alternatives[token.rank - 1][0] == token.data
            assert 2**-token.bits == pytest.approx(odds[token.rank - 1], rel=1e-4)
        else:
            assert 2**-token.bits <= odds[-1] * (1 + 1e-6)


def test_a_text_without_a_model_is_refused(store: Path) -> None:
    with pytest.raises(ConfigError, match="needs an artifact that was scored"):
        build([store], text="x.txt")


def test_curves_are_means_over_growing_stretches() -> None:
    values = np.arange(1.0, 5.0)
    assert thinned(values, np.array([8.0, 6, 5, 4]), 2).tolist() == [[1, 8], [3, 5]]
    many = np.arange(1.0, 10_000)
    found = thinned(many, 1 / many)
    assert len(found) <= 80 and (np.diff(found[:, 1]) < 0).all()


def test_a_line_that_was_cut_short_is_left_out(store: Path) -> None:
    assert len(read_metrics(store / "tied-0" / "metrics.jsonl")) == 50


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 9))
def test_ticks_are_few_and_within(low: float, size: float, most: int) -> None:
    found = linear_ticks(low, low + size, most)
    assert len(found) <= most + 1
    assert all(low - 1e-6 * size <= tick <= low + size * (1 + 1e-6) for tick in found)


@pytest.mark.parametrize("high", [1.2, 3.0, 40.0, 1e7])
def test_a_logarithmic_scale_has_ticks(high: float) -> None:
    found = scale([1.0, high], 0, 100, log=True).ticks(4)
    assert 2 <= len(found) <= 5
    assert short(250_000) == "250k" and short(1.5e6) == "1.5M"


# --- the page


def test_what_is_in_files_never_becomes_an_element(page: str, full: Report) -> None:
    parsed = Page(page)
    assert sum(tag == "script" for tag, _ in parsed.elements) == 2  # the data, and the page's own
    assert "alert(1)" in parsed.words and "49" not in re.findall(r"\{\{ (\S+)", parsed.words)
    assert plain(NASTY) in parsed.words
    for tag, attributes in parsed.elements:
        assert tag not in ("img", "iframe", "link", "object", "form", "base"), tag
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        assert not {"src", "srcset", "action"} & attributes.keys()
        assert str(attributes.get("href") or "#").startswith("#")


def test_nothing_that_hides_or_turns_text_is_on_the_page(page: str) -> None:
    assert not re.search("[\0-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]", page)
    assert "\\u202e" in page and "\\xff" in page


def test_the_policy_allows_the_pages_own_parts_alone(page: str) -> None:
    policy = next(a["content"] for tag, a in Page(page).elements if "http-equiv" in a)
    assert policy is not None and policy.startswith("default-src 'none'")
    assert "unsafe" not in policy and "http" not in policy and policy.count("sha256-") == 2


def test_the_data_of_the_tokens_is_what_was_computed(page: str, full: Report) -> None:
    found = re.search(r'id="tokens">(.*?)</script>', page, re.DOTALL)
    assert found is not None and full.heat is not None
    rows = json.loads(found[1])
    assert [row[1] for row in rows] == [round(token.bits, 4) for token in full.heat.tokens]
    assert [row[0] for row in rows] == [token_text(token.data) for token in full.heat.tokens]


def test_the_same_files_give_the_same_page(run: Path, store: Path, page: str, full: Report) -> None:
    assert render(full) == page
    assert render(build([store, run])) == render(build([store, run]))


def test_sections_that_are_linked_are_there_and_have_names(page: str) -> None:
    elements = Page(page).elements
    ids = [a["id"] for _, a in elements if "id" in a]
    assert len(ids) == len(set(ids))
    links = {str(a["href"])[1:] for tag, a in elements if tag == "a"}
    assert links <= set(ids) and {"leaderboard", "front", "curves", "ledger", "heads"} < links
    assert {"tokenizers", "predictions", "heat", "failed", "open"} < links
    assert {a["aria-labelledby"] for tag, a in elements if tag == "section"} <= set(ids)


def test_runs_without_any_score_still_make_a_page(tmp_path: Path) -> None:
    add_cell(tmp_path, "one", {}, None, status="failed", reason="out of memory")
    words = Page(render(build([tmp_path]))).words
    assert "No run has a score yet" in words and "out of memory" in words


@pytest.mark.parametrize("data", [b"\xff\xc3", b"a\0b", "\u202e\u2066".encode(), b"\r\n\t"])
def test_bytes_that_cannot_be_shown_are_spelt_out(data: bytes) -> None:
    assert plain("".join(words for _, words in pieces(data)).replace("\n", "")).isascii()
    assert "\\" in "".join(words for kind, words in pieces(data) if kind == "mark")


@given(st.binary(max_size=40))
def test_any_bytes_become_text_that_can_be_written(data: bytes) -> None:
    text = "".join(words for _, words in pieces(data))
    shown = text.replace("\n", "")
    assert plain(shown) == shown and text.encode().decode() == text
    assert "\n" not in token_text(data)


def test_a_label_covers_no_mark_and_no_other_label() -> None:
    found = charts.place_labels([(100, 50, "one"), (101, 51, "two")], 400, [(108, 35, 9, 9)])
    assert len(found) == 2 and len({str(label) for label in found}) == 2
    assert not charts.place_labels([(1, 1, "x" * 28)], 60, [])


# --- colours


@pytest.mark.parametrize(("colors", "heats"), [(LIGHT, HEAT_LIGHT), (DARK, HEAT_DARK)])
def test_colours_reach_wcag_aa(colors: dict[str, str], heats: tuple[tuple[str, str], ...]) -> None:
    for text in ("ink", "soft", "link", "good", "bad"):
        for back in ("page", "panel"):
            assert contrast(colors[text], colors[back]) >= 4.5, (text, back)
    for mark in (*SERIES, "rest"):
        assert contrast(colors[mark], colors["page"]) >= 3, mark
    for area in ("code", "tokenizer", "head", "trunk", "small"):
        assert contrast(colors["on-area"], colors[area]) >= 4.5, area
    for back, ink in heats:
        assert contrast(back, ink) >= 4.5, back


def test_the_contrast_formula_is_that_of_wcag() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.478, abs=1e-3)


def test_more_bits_are_never_a_weaker_colour() -> None:
    assert [heat_class(bits) for bits in (0, *HEAT_FROM)] == list(range(8))
    for heats, colors in ((HEAT_LIGHT, LIGHT), (HEAT_DARK, DARK)):
        steps = [contrast(back, colors["page"]) for back, _ in heats]
        assert steps == sorted(steps)


def test_a_thousand_cells_make_a_page_of_a_few_megabytes(full: Report) -> None:
    board = full.boards[0]
    rows = tuple(board.rows[number % len(board.rows)] for number in range(1_000))
    large = replace(full, boards=(replace(board, rows=rows),))
    assert len(render(large)) < 5_000_000


def test_a_golf_run_ends_with_a_page(run: Path, tmp_path: Path) -> None:
    text = (run / "report.html").read_text("utf-8")
    score = read_score(run)
    assert f"{score.bpb:.4f}" in text and "200,000 allowed" in text
    write(build([run], cap=200_000), tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text("utf-8") == text


def test_ticks_that_are_close_are_told_apart() -> None:
    assert labels([119_780.0, 119_820.0]) == [(119_780.0, "119.78k"), (119_820.0, "119.82k")]
    assert [words for _, words in labels([0.0, 0.5, 1e6])] == ["0", "0.5", "1M"]
