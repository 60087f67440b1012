"""`tokgolf inspect x.tok`: published keys, tables of aligned lines, the plot, refusals."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import tokgolf
from tokgolf import build_tokenizer, cli, inspection
from tokgolf.corpora import Corpus
from tokgolf.hashing import BigramBuckets
from tokgolf.tokenizers import from_asset, save_tokenizer
from tokgolf.tokenizers.asset import Extras, wrap

PUBLISHED = {
    "tokenizer",
    "kind",
    "vocab_size",
    "asset_bytes",
    "original_file_bytes",
    "longest_token",
    "fingerprint",
}
SINCE = {
    "transform",
    "order",
    "bigram_buckets",
    "lossless",
    "duplicate_tokens",
    "asset_parts",
    "decoder_code_bytes",
    "longest_tokens",
    "token_lengths",
}
OF_TEXT = {"domains", "all_domains", "types", "sanity", "bigram"}

Call = Callable[..., tuple[str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run `tokgolf inspect` in this process; it must succeed. Returns stdout and stderr."""

    def run(*arguments: object) -> tuple[str, str]:
        code = cli.run(["inspect", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert code == 0, err
        return out, err

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `tokgolf inspect`, which must fail with one line; returns that line."""

    def run(*arguments: object) -> str:
        assert cli.run(["inspect", *map(str, arguments)]) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1, err
        return err.removeprefix("error: ").rstrip()

    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two texts and three tokenizers, one of them with bigram buckets."""
    folder = tmp_path_factory.mktemp("made")
    english = b"The cat sat on the mat, and the dog sat on the log. " * 40
    (folder / "english.txt").write_bytes(english)
    (folder / "greek.txt").write_bytes("Αθήνα\n".encode() * 50)
    save_tokenizer(build_tokenizer("byte", [], None), folder / "byte.tok")
    bpe = build_tokenizer("bpe", [english], 270)
    save_tokenizer(bpe, folder / "small.tok")
    hashed = wrap("byte", b"", Extras(bigram=BigramBuckets(count=32)))
    save_tokenizer(from_asset(hashed), folder / "hashed.tok")
    return folder


@pytest.fixture(scope="module", autouse=True)
def own_matplotlib_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Matplotlib keeps a list of fonts; not in the home directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLCONFIGDIR", str(tmp_path_factory.mktemp("matplotlib")))
        yield


def corpora(made: Path) -> list[object]:
    return ["--corpus", made / "english.txt", "--corpus", made / "greek.txt"]


# --- JSON


def test_facts_without_text(call: Call, made: Path) -> None:
    values = json.loads(call(made / "small.tok", "--json")[0])
    assert set(values) == PUBLISHED | SINCE
    assert values["asset_bytes"] == (made / "small.tok").stat().st_size
    assert sum(values["asset_parts"].values()) == values["asset_bytes"]
    assert values["decoder_code_bytes"] > values["asset_bytes"]


def test_facts_with_text(call: Call, made: Path) -> None:
    values = json.loads(call(made / "small.tok", *corpora(made), "--json")[0])
    assert set(values) == PUBLISHED | SINCE | OF_TEXT
    english, greek = values["domains"]
    assert english["corpus"] == str(made / "english.txt")
    assert (english["documents"], english["bytes"]) == (1, 40 * 52)
    assert english["bytes_per_token"] > 1.5 and english["byte_fallback"] == 0
    assert greek["bytes"] == 50 * 11
    assert greek["byte_fallback"] == 500 / 550  # no Greek letter was learned, "\n" is ASCII
    assert values["all_domains"]["tokens"] == english["tokens"] + greek["tokens"]
    assert values["bigram"] is None


def test_several_tokenizers_are_a_list(call: Call, made: Path) -> None:
    names = ("byte.tok", "small.tok", "hashed.tok")
    paths = [made / name for name in names]
    values = json.loads(call(*paths, "--corpus", made / "greek.txt", "--json")[0])
    assert set(values) == {"tokenizers"}
    assert [facts["tokenizer"] for facts in values["tokenizers"]] == [str(path) for path in paths]
    alone = [json.loads(call(path, "--corpus", made / "greek.txt", "--json")[0]) for path in paths]
    assert values["tokenizers"] == alone
    hashed = alone[2]["bigram"]
    assert (hashed["buckets"], hashed["pairs"]) == (31, 12)  # from BOS, 5 into letters, 6 on


def test_a_limit_cuts_every_corpus(call: Call, made: Path) -> None:
    command = [made / "byte.tok", *corpora(made), "--json"]
    values = json.loads(call(*command, "--limit", "102")[0])
    assert [domain["bytes"] for domain in values["domains"]] == [102, 101]
    assert values["all_domains"]["tokens"] == 203


def test_a_bare_name_is_its_val_split(
    call: Call, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def open_corpus(spec: str, split: str) -> Corpus:
        asked.append((spec, split))
        return tokgolf.open_corpus(str(made / "greek.txt"))

    monkeypatch.setattr("tokgolf.cli.inspect.open_corpus", open_corpus)
    call(made / "byte.tok", "--corpus", "stdlib")
    assert asked == [("stdlib", "val")]


# --- tables


def tables(out: str) -> list[list[str]]:
    return [part.splitlines() for part in out.split("\n\n")]


def test_one_tokenizer_is_told_line_by_line(call: Call, made: Path) -> None:
    (lines,) = tables(call(made / "small.tok")[0])
    facts = dict(line.split("  ", 1) for line in lines)
    assert {name.strip() for name in facts} == PUBLISHED | SINCE
    assert "header: 5, transform: 1, bigram: 1, body: " in "".join(lines)


def test_one_tokenizer_has_a_row_for_each_corpus(call: Call, made: Path) -> None:
    _, by_corpus, use, sanity = tables(call(made / "small.tok", *corpora(made))[0])
    assert by_corpus[0] == "tokens by corpus"
    assert [line.split("  ")[0] for line in by_corpus[2:]] == ["english.txt", "greek.txt", "all"]
    assert len({len(line) for line in by_corpus[1:]}) == 1
    assert use[2].startswith("small.tok ")
    assert "poor predictors of bits per byte" in sanity[0]
    assert "Renyi-2.5 efficiency" in sanity[1] and "tokens/word" in sanity[1]


def test_several_tokenizers_have_a_row_each(call: Call, made: Path) -> None:
    names = ["byte.tok", "small.tok", "hashed.tok"]
    out, _ = call(*(made / name for name in names), *corpora(made))
    files, per_token, use, sanity, buckets = tables(out)
    for table in (files[1:], per_token[2:], use[2:], sanity[2:]):
        assert [line.split()[0] for line in table] == names
    assert per_token[1].split() == ["all", "english.txt", "greek.txt"]
    assert per_token[2].split() == ["byte.tok", "1.0000", "1.0000", "1.0000"]
    assert [line.split()[0] for line in buckets[3:]] == ["hashed.tok"]
    assert all(len(line) <= 120 for line in out.splitlines())


def test_files_of_the_same_name_are_told_apart(call: Call, made: Path, tmp_path: Path) -> None:
    save_tokenizer(build_tokenizer("byte", [], None), tmp_path / "small.tok")
    out, _ = call(made / "small.tok", tmp_path / "small.tok")
    assert [line.split()[0] for line in out.splitlines()[1:]] == [
        str(made / "small.tok"), str(tmp_path / "small.tok"),
    ]  # fmt: skip


# --- the plot


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG\r\n"), (".svg", b"<?xml")])
def test_a_plot_is_written(
    suffix: str, start: bytes, call: Call, made: Path, tmp_path: Path
) -> None:
    plot = tmp_path / f"plot{suffix}"
    paths = [made / name for name in ("byte.tok", "small.tok")]
    out, err = call(*paths, *corpora(made), "--plot", plot, "--json")
    assert len(json.loads(out)["tokenizers"]) == 2
    assert err == f"wrote {plot}\n"
    assert plot.read_bytes().startswith(start) and plot.stat().st_size > 5000
    assert [path.name for path in tmp_path.iterdir()] == [plot.name]
    assert "matplotlib.pyplot" not in sys.modules  # so no window and no display


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that have been saved."""
    from matplotlib.figure import Figure

    figures: list[Any] = []
    savefig = Figure.savefig

    def record(figure: Figure, *arguments: Any, **options: Any) -> None:
        figures.append(figure)
        savefig(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", record)
    return figures


def plotted(kind: str, order: str | None, transform: str, size: int) -> dict[str, Any]:
    """The facts that a plot needs, of a tokenizer with `size` / 256 bytes per token."""
    return {
        "kind": kind,
        "order": order,
        "transform": transform,
        "vocab_size": size,
        "asset_bytes": 2 * size,
        "domains": [{"corpus": "/text/web.txt"}],
        "all_domains": {"bytes_per_token": size / 256},
    }


def test_a_plot_has_a_line_for_each_kind_order_and_transform(
    drawn: list[Any], tmp_path: Path
) -> None:
    facts = [
        plotted("bpe", "exact", "none", 1024),
        plotted("bpe", "exact", "none", 512),
        plotted("bpe", "exact", "caps", 512),
        plotted("bpe", "max", "none", 512),
        plotted("greedy", None, "none", 512),
    ]
    inspection.plot_tokenizers(facts, tmp_path / "plot.png")
    left, right = drawn[0].axes
    lines, assets = (
        {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
        for axes in (left, right)
    )
    alone = ("bpe, caps", "bpe, max", "greedy")
    assert lines == {"bpe": [[512, 2.0], [1024, 4.0]]} | {name: [[512, 2.0]] for name in alone}
    assert assets == {"bpe": [[512, 1024], [1024, 2048]]} | {n: [[512, 1024]] for n in alone}
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == list(lines)


def test_the_sizes_under_a_plot_do_not_overlap(drawn: list[Any], tmp_path: Path) -> None:
    facts = [plotted("bpe", "exact", "none", 1 << power) for power in range(8, 17)]
    inspection.plot_tokenizers(facts, tmp_path / "plot.png")
    for axes in drawn[0].axes:
        boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
        assert all(a.x1 < b.x0 for a, b in pairwise(boxes))


# --- refusals


def test_what_cannot_be_plotted_is_refused_before_any_work(
    refused: Callable[..., str], made: Path, tmp_path: Path
) -> None:
    command = [made / "small.tok", *corpora(made), "--plot"]
    assert "end it in one of .png, .svg, .pdf" in refused(*command, tmp_path / "plot.txt")
    assert "is no folder" in refused(*command, tmp_path / "none" / "plot.png")
    assert "add --corpus" in refused(made / "small.tok", "--plot", tmp_path / "plot.png")
    assert "add --corpus" in refused(made / "small.tok", "--limit", "1kB")
    assert list(tmp_path.iterdir()) == []


def test_a_plot_without_matplotlib_says_what_to_install(
    refused: Callable[..., str], made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    command = [made / "small.tok", *corpora(made), "--plot", tmp_path / "plot.png"]
    assert refused(*command).endswith("pip install 'tokgolf[report]'")


def test_only_tokenizers_go_with_text_or_with_others(
    refused: Callable[..., str], made: Path, tmp_path: Path
) -> None:
    assert "is no tokenizer (.tok)" in refused(tmp_path, *corpora(made))
    assert "is no tokenizer (.tok)" in refused(made / "small.tok", made / "english.txt")
    assert "no corpus or path" in refused(made / "small.tok", "--corpus", tmp_path / "none.txt")


def test_an_empty_corpus_is_refused(
    refused: Callable[..., str], made: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.txt").touch()
    assert "0 bytes" in refused(made / "small.tok", "--corpus", tmp_path / "empty.txt")


def test_a_tokenizer_is_told_about_without_torch(made: Path) -> None:
    code = (
        "import sys\n"
        "from tokgolf.cli import run\n"
        f"assert run(['inspect', {str(made / 'small.tok')!r}]) == 0\n"
        "print('loaded:', sorted({'torch', 'matplotlib', 'datasets'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(Path(tokgolf.__file__).parent.parent)},
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "loaded: []"
