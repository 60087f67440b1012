"""The law against planted truth, what it says when it cannot know, and `tokgolf predict`."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokgolf import cli
from tokgolf.errors import ConfigError
from tokgolf.sweep.cells import Cell, Sweep, read_sweep, write_sweep
from tokgolf.sweep.law import Data, Law
from tokgolf.sweep.points import distinct, gather, read_cells
from tokgolf.sweep.predict import bytes_per_weight, forecast, save_predictions

NOISE = 0.004
HEADS = {"tied": 1.0, "untied": 0.97}


def truth(size: Any, tokens: Any, floor: float = 0.8, a: float = 0.3, b: float = 0.35) -> Any:
    x, y = np.asarray(size, dtype=float), np.asarray(tokens, dtype=float)
    return floor + 0.4 * (x / 5e5) ** -a + 0.4 * (y / 8e6) ** -b


def planted(seed: int, **law: float) -> Data:
    """Nine settings of three sizes and three amounts, with noise."""
    sizes, tokens = (each.ravel() for each in np.meshgrid([1e5, 5e5, 2.5e6], [1e6, 8e6, 6.4e7]))
    random = np.random.default_rng(seed)
    bpb = np.asarray(truth(sizes, tokens, **law)) * np.exp(NOISE * random.standard_normal(9))
    return Data(bpb=bpb, sizes=sizes, tokens=tokens, effects=np.zeros((9, 0)), variance=np.zeros(9))


def cells(heads: dict[str, float] = HEADS, *, amounts: tuple[int, ...] = (1, 8, 64)) -> list[Cell]:
    """Cells of two heads that follow the law without noise, 20 kB and half a byte a weight."""
    return [
        Cell(
            id=f"{head}-{layers}-{amount}",
            settings={"head": head, "trunk.layers": layers, "steps": amount, "seed": 1},
            status="done",
            bpb=float(truth(100_000 * layers, 1_000_000 * amount)) * factor,
            params=100_000 * layers,
            tokens=1_000_000 * amount,
            artifact_bytes=20_000 + 50_000 * layers,
            seconds=float(layers * amount),
        )
        for head, factor in heads.items()
        for layers in (1, 5, 25)
        for amount in amounts
    ]


def test_planted_laws_are_within_their_intervals() -> None:
    sizes, tokens, none = np.array([2.5e6, 2.5e7]), np.array([6.4e7, 6.4e8]), np.zeros((2, 0))
    held = []
    for seed in range(200):
        random = np.random.default_rng(1000 + seed)
        law = {
            "floor": random.uniform(0.3, 1.2),
            "a": float(np.exp(random.normal(np.log(0.35), 0.4))),
            "b": float(np.exp(random.normal(np.log(0.35), 0.4))),
        }
        found = Law(planted(seed, **law), draws=120).predict(
            sizes, tokens, none, seed_variance=np.zeros(2)
        )
        new = np.asarray(truth(sizes, tokens, **law)) * np.exp(NOISE * random.standard_normal(2))
        held.append((found[0] <= new) & (new <= found[2]))
    share = np.mean(held, axis=0)
    assert np.all((share >= 0.88) & (share <= 0.99)), share


def test_planted_exponents_are_recovered_and_repeat() -> None:
    law = Law(planted(0), draws=500)
    for name, planted_value in (("E", 0.8), ("a", 0.3), ("b", 0.35)):
        low, high = np.quantile(law.terms()[name], (0.005, 0.995))
        assert low < planted_value < high, name
    np.testing.assert_array_equal(law.draws, Law(planted(0), draws=500).draws)


def test_intervals_widen_with_the_distance() -> None:
    law = Law(planted(1), draws=500)
    far = np.array([1e6, 1e7, 1e8])
    low, _, high = law.predict(far, far * 10, np.zeros((3, 0)), seed_variance=np.zeros(3))
    width = high / low
    assert width[0] < width[1] < width[2]


def test_leaving_one_out_by_weights_agrees_with_fitting_again() -> None:
    data = planted(2)
    quick = Law(data, draws=2000).left_out()[:, 4]
    out = np.arange(9) == 4
    slow = Law(data.without(out), draws=2000).predict(
        data.sizes[out], data.tokens[out], np.zeros((1, 0)), seed_variance=np.zeros(1)
    )[:, 0]
    np.testing.assert_allclose(quick, slow, rtol=0.01)


def test_a_forecast_finds_the_better_head_and_what_fills_the_cap() -> None:
    found = forecast(cells(), cap=1_020_000)
    best = found.at_cap[0]
    assert best.settings["head"] == "untied"
    assert best.params == pytest.approx(2_000_000, rel=1e-6)
    assert best.low < 0.97 * float(truth(2e6, 6.4e7)) < best.high
    assert found.held_out and all(each.holds for each in found.held_out)
    assert not any(note.startswith(("one count", "two counts")) for note in found.notes)


def test_the_next_cell_is_not_a_measured_one_and_costs_at_most_twice() -> None:
    some = [cell for cell in cells() if cell.id != "untied-25-8"]
    found = forecast(some)
    assert found.next_cell is not None and found.next_cell.what == "next"
    assert found.next_cell.params * found.next_cell.tokens <= 2.01 * 2_500_000 * 64_000_000
    ours = {key: v for key, v in found.next_cell.settings.items() if key != "seed"}
    assert all(ours != {k: v for k, v in c.settings.items() if k != "seed"} for c in some)


def test_a_next_cell_of_other_weights_comes_with_the_cap_that_gives_them() -> None:
    heads = {"tied": 1.0, "untied": 0.97, "factorized": 1.01, "adaptive": 1.02}
    alike = [cell for cell in cells(heads, amounts=(8,)) if cell.params == 500_000]
    found = forecast([replace(cell, settings={"head": cell.settings["head"]}) for cell in alike])
    assert found.next_cell is not None and found.next_cell.settings["params"] == 1_000_000
    assert found.reason.endswith("with equal bytes, a cap of about 540,000")  # 270,000 have half


def test_what_cells_cannot_tell_is_said() -> None:
    notes = " ".join(forecast(cells(amounts=(8,))).notes)
    assert "one count of training tokens" in notes and "no setting has two seeds" in notes
    assert distinct([100, 105, 300]) == 2


def test_options_of_other_heads_are_no_part_of_a_label() -> None:
    ranked = [
        replace(c, settings={**c.settings, "head.rank": 8}) if c.settings["head"] == "untied" else c
        for c in cells()
    ]
    labels = {each.label for each in forecast(ranked).at_cap}
    assert labels == {"head=tied", "head=untied, head.rank=8"}


def test_too_few_settings_are_refused_with_both_numbers() -> None:
    with pytest.raises(ConfigError, match="3 settings are measured, a prediction needs 4"):
        forecast(cells({"tied": 1.0}, amounts=(8,)))


def test_seeds_of_a_setting_are_one_point_and_failed_cells_none() -> None:
    twice = [
        *cells(),
        Cell(
            id="again", settings={**cells()[0].settings, "seed": 2}, status="done", bpb=2.0,
            params=100_000, tokens=1_000_000,
        ),
        Cell(id="failed", settings={"head": "tied"}, status="failed", reason="lost"),
    ]  # fmt: skip
    points = gather(twice)
    assert len(points) == 18 and len(points[0].cells) == 2 and points[0].artifact_bytes is None


def test_fixed_bytes_are_not_put_down_to_the_weights() -> None:
    fixed, rate = bytes_per_weight(gather(cells()))
    assert fixed == pytest.approx(20_000) and rate == pytest.approx(0.5)


# --- files and the command


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    folder = tmp_path / "sweeps" / "heads"
    folder.mkdir(parents=True)
    placed = tuple(replace(cell, run=tmp_path / cell.id) for cell in cells())
    write_sweep(
        Sweep(
            name="heads", equal="steps", cap=None, corpus="c", scored="c:val",
            axes={"head": list(HEADS)}, cells=placed,
        ),
        folder,
    )  # fmt: skip
    return folder


def test_saved_predictions_get_what_was_measured_later(sweep: Path) -> None:
    before = read_sweep(sweep)
    found = forecast(before.cells)
    assert found.next_cell is not None
    save_predictions([found.next_cell], sweep)
    saved = read_sweep(sweep)
    made = replace(
        saved.cells[0], id="made", bpb=1.5, settings={**found.next_cell.settings, "seed": 3}
    )
    write_sweep(replace(saved, cells=(*saved.cells, made)), sweep)
    (first, *_) = save_predictions([], sweep).predictions
    assert (first["what"], first["cell"], first["measured"]) == ("next", "made", 1.5)


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*arguments: object) -> tuple[int, str, str]:
        code = cli.run(["predict", *map(str, arguments)])
        return (code, *capsys.readouterr())

    return run


def test_the_command_prints_saves_and_draws(sweep: Path, call: Call, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need the extra report")
    plot = tmp_path / "p.svg"
    code, out, err = call(sweep, "--at", "1MB", "--plot", plot, "--save")
    assert code == 0, err
    assert "held out" in out and "at 1,000,000 bytes" in out and "next: of " in out
    assert b"<svg" in plot.read_bytes()
    entries = read_sweep(sweep).predictions
    assert {"next", "at 1 MB", "held out"} == {entry["what"] for entry in entries}


def test_json_keeps_its_keys(sweep: Path, call: Call) -> None:
    code, out, _ = call(sweep, "--json", "--tokens", "10e9")
    values = json.loads(out)
    assert code == 0 and set(values) == {
        "settings", "runs", "law", "notes", "cap", "predictions", "next", "reason", "left_out",
        "held_out",
    }  # fmt: skip
    assert values["predictions"][0]["beyond"]["tokens"] == pytest.approx(156.25)


def test_bad_input_is_one_line(tmp_path: Path, call: Call) -> None:
    lines = tmp_path / "x.jsonl"
    lines.write_text('{"bpb": 1}\n')
    for arguments in ([tmp_path], [lines], [lines, "--save"], [lines, "--plot", "p.gif"]):
        code, out, err = call(*arguments)
        assert (code, out, err.count("\n")) == (1, "", 1) and err.startswith("error: ")


@pytest.mark.parametrize("line", [b'{"vocab_size": "big"}', b'{"vocab_size": 0}', b"\xff"])
def test_lines_that_no_law_can_take_are_named(line: bytes, tmp_path: Path, call: Call) -> None:
    lines = tmp_path / "x.jsonl"
    row = b'{"case": "tied", "bpb": 2.0, "params": 9, "train_tokens": 5, "seed": 1, '
    lines.write_bytes(line.replace(b"{", row) + b"\n")
    code, out, err = call(lines)
    assert (code, out, err.count("\n")) == (1, "", 1) and err.startswith(f"error: {lines}")


@pytest.mark.parametrize("tokens", ["inf", "nan"])
def test_tokens_are_a_number(tokens: str, sweep: Path, call: Call) -> None:
    code, out, err = call(sweep, "--tokens", tokens)
    assert (code, out) == (2, "") and "--tokens" in err and "Traceback" not in err


def test_lines_of_a_comparison_are_read(tmp_path: Path) -> None:
    lines = tmp_path / "x.jsonl"
    row = {"case": "tied", "vocab_size": 512, "seed": 1, "bpb": 2.0, "bytes": 7, "params": 9}
    lines.write_text(json.dumps({**row, "train_tokens": 5, "code": 3}) + '\n{"error": "lost"}\n')
    (cell,) = read_cells([lines])
    assert (cell.artifact_bytes, cell.tokens, cell.settings["case"]) == (7, 5, "tied")
