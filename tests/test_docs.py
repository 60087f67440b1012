"""The documentation: every command in README and docs/ is parsed, and what a reader can run is run.

A fenced block tagged `sh` is run, line by line, in one folder a page; one tagged `text` needs
files or machines that the reader brings, and is parsed. Budgets are made small by `SMALLER`, and
another text, short, stands for the embedded corpus; that is all that differs from what is shown.
"""

import importlib
import itertools
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tokgolf import cli, corpora
from tokgolf.corpora import Corpus, Document
from tokgolf.heads import HEADS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = {
    str(path.relative_to(ROOT)): path.read_text("utf-8")
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
    if "_build" not in path.parts
}

# What is shown -> what is run: a model of 2 layers at most, a few steps, windows of 32 tokens.
TINY = (
    "trunk.layers=1 trunk.parallel=0 trunk.d_model=32 trunk.heads=2 trunk.kv_heads=1 "
    "trunk.mlp_hidden=32 trunk.sequence_length=32 batch_tokens=128 micro_batch_tokens=128 "
    "precision=fp32 compile=off"
)
SETTINGS = "".join(f" --set {setting}" for setting in TINY.split())
SMALLER = {
    "--minutes 3": f"--steps 6{SETTINGS}",
    "--steps 100 --minutes 20": f"--steps 6{SETTINGS}",
    "tokgolf golf": f"tokgolf golf --set steps=6{SETTINGS}",
    "make golf": f"tokgolf golf --set steps=6{SETTINGS}",
    "--vocab-size 1024,2048,4096": "--vocab-size 512,1024,2048",
    "web-1024.tok": "web-512.tok",
    "web-4096.tok": "web-2048.tok",
    "--vocab-size 4096": "--vocab-size 600",
    "--vocab-size 1024": "--vocab-size 400",
    "--stride 64": "--stride 24",
    "-o small.golf": "-o small.golf --method nearest",  # GPTQ has tests of its own
    "export runs/tied --cap 250KB": "export runs/tied --cap 150KB --method nearest",
    "--cap 200KB": "--cap 140KB",
}
NOT_RUN = {"make test": "this suite", "make check": "CI", "make docs": "the test of the site"}

# A page goes on in the folder of another, which it says.
GOES_ON = {"docs/guide/scores.md": "docs/tutorial.md"}


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Tag and content of each fenced block."""
    for match in re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, flags=re.M | re.S):
        yield match[1].strip(), match[2]


def lines_of(block: str) -> Iterator[str]:
    """Commands, with continued lines joined and comments left out."""
    for line in block.replace("\\\n", " ").splitlines():
        line = re.sub(r"\s+#.*", "", line).strip()
        if line and not line.startswith("#"):
            yield line


COMMAND = re.compile(r"(make|tokgolf|torchrun|python) ")


def commands(page: str, *tags: str) -> list[str]:
    """Every command of a page, in the blocks with these tags."""
    found = (lines_of(block) for tag, block in blocks(PAGES[page]) if tag in tags)
    return [line for line in itertools.chain(*found) if COMMAND.match(line)]


def shown() -> list[tuple[str, str]]:
    """Page and command of all there are."""
    return [(page, line) for page in PAGES for line in commands(page, "sh", "text", "")]


def arguments(line: str) -> list[str]:
    """What tokgolf is given.  torchrun --nproc-per-node 8 -m tokgolf train -> ["train"]"""
    words = shlex.split(line)
    return words[words.index("tokgolf") + 1 :] if "tokgolf" in words else words[2:]


def parse(words: list[str]) -> None:
    """Raises `click.UsageError` for a command, an option or a value that is not known."""
    command: click.Command = cli.cli
    while isinstance(command, click.Group):
        name = words[0]
        assert name in command.commands, f"there is no command {name}"
        command, words = command.commands[name], words[1:]
    command.make_context(command.name, list(words))


def test_commands_are_found_on_the_pages() -> None:
    assert len(shown()) > 60
    assert {"docs/tutorial.md", "README.md", "docs/howto/own-head.md"} <= {p for p, _ in shown()}
    assert arguments("torchrun --nproc-per-node 8 -m tokgolf train -o x") == ["train", "-o", "x"]
    joined = [*lines_of("tokgolf a \\\n  --b   # why\n# no\n")]
    assert [line.split() for line in joined] == [["tokgolf", "a", "--b"]]


@pytest.mark.parametrize(("page", "line"), shown())
def test_every_command_shown_is_one_that_exists(page: str, line: str) -> None:
    first, *rest = shlex.split(line)
    if first == "make":
        makefile = (ROOT / "Makefile").read_text("utf-8")
        assert all(f"\n{target}:" in makefile for target in rest)
    elif first == "python" and rest[0] != "my_head.py":
        assert (ROOT / rest[0]).is_file(), f"{page}: there is no {rest[0]}"
    else:
        parse(arguments(line))


@pytest.mark.parametrize("wrong", ["train --no-such", "score --stride x y", "nothing", "corpus x"])
def test_a_wrong_command_is_noticed(wrong: str) -> None:
    with pytest.raises((click.UsageError, AssertionError)):
        parse(shlex.split(wrong))


def test_pages_refer_to_files_that_exist() -> None:
    for page, text in PAGES.items():
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            here = (ROOT / page).parent / target
            assert here.exists(), f"{page} refers to {target}"


def paragraphs(split: str | None) -> list[Document]:
    """Text to stand for the embedded corpus, which takes seconds to read: these very pages'.

    Every 20th paragraph of a page is held out.
    """
    texts = dict.fromkeys(
        text for page in sorted(PAGES) for text in PAGES[page].split("\n\n") if len(text) > 200
    )
    kept = itertools.islice(texts, 200)
    return [
        Document(id=str(number), data=text.encode())
        for number, text in enumerate(kept)
        if (number % 20 == 7) == (split in ("val", "test"))
    ]


@pytest.fixture(scope="module", autouse=True)
def _short_corpus() -> Iterator[None]:
    """`stdlib` is short in this module."""

    def open_short(split: str | None, name: str, field: str) -> Corpus:
        return Corpus(name=name, split=split, source=lambda: iter(paragraphs(split)))

    with pytest.MonkeyPatch.context() as patch:
        names = corpora.catalog._NAMES
        patch.setitem(names, "stdlib", (names["stdlib"][0], open_short))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


def smaller(line: str) -> str:
    """The command that is run in the place of the one shown."""
    for known, instead in SMALLER.items():
        line = re.sub(rf"{re.escape(known)}(?=\s|$)", instead, line)
    return line


def run_page(page: str, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Run all `sh` blocks of a page, in order, in `folder`."""
    patch.chdir(folder)
    for line in commands(page, "sh"):
        if line in NOT_RUN:
            continue
        words = shlex.split(smaller(line))
        if words[0] == "python":  # a head that registers itself, then the same command line
            patch.syspath_prepend(str(folder))
            patch.setitem(HEADS, "gain", "my_head:GainConfig")  # and out again after the test
            shutil.copy(DOCS / "examples" / words[1], folder)
            runpy.run_path(words[1])
        code = cli.run(words[1:] if words[0] == "tokgolf" else words[2:])
        assert code == 0, f"{page}: {line}\nran as {shlex.join(words)}"


FAST = ["docs/tutorial.md", "docs/howto/own-head.md"]
RUN = [page for page in PAGES if set(commands(page, "sh")) - NOT_RUN.keys()]


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the tutorial leaves."""
    folder = tmp_path_factory.mktemp("tutorial")
    with pytest.MonkeyPatch.context() as patch:
        run_page("docs/tutorial.md", folder, patch)
    return folder


def test_the_tutorial_runs(tutorial: Path) -> None:
    assert (tutorial / "stdlib.jsonl").stat().st_size > 1000
    assert {"tied.json", "f32.json", "bpe1024.tok", "runs"} <= {p.name for p in tutorial.iterdir()}


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md", "docs/api.md"])
def test_the_python_shown_runs(
    page: str, tutorial: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tutorial)
    shutil.copytree(tutorial / "runs/f32", tutorial / "runs/golf", dirs_exist_ok=True)
    (code,) = [block for tag, block in blocks(PAGES[page]) if tag == "python"]
    exec(code.replace(", 1024)", ", 400)"), {})
    assert 1 < float(capsys.readouterr().out) < 9


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=() if page in FAST else pytest.mark.slow)
        for page in RUN
        if page not in {"docs/tutorial.md"}
    ],
)
def test_every_other_page_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    folder = tmp_path
    if page in GOES_ON:
        folder = request.getfixturevalue("tutorial")
    run_page(page, folder, monkeypatch)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="needs tokgolf[docs]")
    for name in ("myst_parser", "furo", "sphinx_click"):
        importlib.import_module(name)
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(DOCS), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "f32" in (tmp_path / "tutorial.html").read_text("utf-8")
