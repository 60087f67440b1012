"""The files of a sweep: what is written is read back, what is damaged is refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokgolf.errors import ConfigError
from tokgolf.sweep.cells import Cell, Sweep, read_cell, read_sweep, write_cell, write_sweep

COUNT = st.none() | st.integers(0, 1 << 60)
NUMBER = st.none() | st.floats(0, 1e9)
VALUE = st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False)
CELLS = st.builds(
    Cell,
    id=st.text("0123456789abcdef", min_size=1),
    settings=st.dictionaries(st.text(), VALUE, max_size=4),
    status=st.sampled_from(["pending", "running", "done", "failed"]),
    reason=st.none() | st.text(),
    started=NUMBER,
    seconds=st.floats(0, 1e9),
    attempts=st.integers(0, 100),
    bpb=NUMBER,
    bpb_before_export=NUMBER,
    artifact_bytes=COUNT,
    params=COUNT,
    steps=COUNT,
    tokens=COUNT,
    train_bytes=COUNT,
    cap=COUNT,
)


@settings(max_examples=25)
@given(cell=CELLS)
def test_a_cell_is_read_as_it_was_written(
    cell: Cell, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = tmp_path_factory.mktemp("run")
    write_cell(cell, run)
    assert read_cell(run).as_dict() == cell.as_dict()
    assert read_cell(run).run == run


def test_a_sweep_is_read_as_it_was_written_and_finds_its_runs(tmp_path: Path) -> None:
    folder = tmp_path / "sweeps" / "vocab"
    folder.mkdir(parents=True)
    cells = [Cell(id=i, settings={"vocab_size": 300}, run=tmp_path / i) for i in ("a1", "b2")]
    sweep = Sweep(
        name="vocab", equal="bytes", cap=9, corpus="c:train", scored="c:val",
        axes={"vocab_size": [300, None]}, cells=tuple(cells), predictions=({"bpb": 1.5},),
    )  # fmt: skip
    write_sweep(sweep, folder)
    again = read_sweep(folder)
    assert [cell.as_dict() for cell in again.cells] == [cell.as_dict() for cell in cells]
    assert [cell.run and cell.run.resolve() for cell in again.cells] == [c.run for c in cells]
    assert (again.axes, again.predictions) == (sweep.axes, sweep.predictions)
    assert json.loads((folder / "results.json").read_text())["cells"][0]["run"] == "../../a1"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", "tokgolf.sweep", "format is not 'tokgolf.cell'"),
        ("version", 2, "version is 2"),
        ("status", "ended", "status is 'ended'"),
        ("bpb", math.nan, "bpb is nan"),
        ("bpb", "1.5", "bpb is '1.5'"),
        ("steps", 1.5, "steps is 1.5"),
        ("attempts", None, "attempts is None"),
        ("settings", [], "settings are no table"),
        ("reason", 5, "reason is 5"),
    ],
)
def test_a_damaged_cell_is_refused(tmp_path: Path, key: str, value: Any, message: str) -> None:
    values = {**Cell(id="a", settings={}).as_dict(), key: value}
    (tmp_path / "cell.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=message):
        read_cell(tmp_path)
    del values[key]
    (tmp_path / "cell.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError):
        read_cell(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 10_000])
def test_what_is_no_file_of_a_sweep_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ConfigError, match="none of a sweep's files"):
        read_sweep(tmp_path)
