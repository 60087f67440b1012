"""Shell completion: the scripts, what options complete to, and a real bash that uses it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete

from tokgolf import cli
from tokgolf.cli import completion
from tokgolf.corpora import corpus_names
from tokgolf.heads import ADDONS, HEADS
from tokgolf.training.config import RunConfig, run_config

ROOT = Path(__file__).resolve().parents[2]


def completed(*words: str) -> list[str]:
    """What the last word completes to."""
    found = ShellComplete(cli.cli, {}, "tokgolf", "_TOKGOLF_COMPLETE").get_completions(
        list(words[:-1]), words[-1]
    )
    return [item.value for item in found if item.type == "plain"]


def test_names_are_those_of_the_registries() -> None:
    assert completion.registered("HEADS") == list(HEADS)
    assert completion.registered("ADDONS") == list(ADDONS)
    assert completion.corpora() == list(corpus_names())
    assert {"baseline", "cpu"} <= set(completion.recipes())
    for name in completion.recipes():
        assert isinstance(run_config(name, {}), RunConfig)


def test_commands_and_options_complete() -> None:
    assert completed("comp") == ["compare", "completion", "compress"]
    assert completed("corpus", "") == ["decode", "export", "info", "list"]
    assert completed("train", "--tok") == ["--tokenizer"]
    assert completed("completion", "") == ["bash", "zsh", "fish"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("train", "--head", "fac"), ["factorized"]),
        (("golf", "--head", "fac"), ["factorized"]),
        (("cost", "--add", "bigram-"), ["bigram-hash", "bigram-logits"]),
        (("train", "--recipe", "c"), ["cpu"]),
        (("corpus", "info", "std"), ["stdlib"]),
    ],
)
def test_values_complete_to_the_known_names(words: tuple[str, ...], expected: list[str]) -> None:
    assert completed(*words) == expected


def test_every_option_that_takes_a_corpus_completes_it() -> None:
    found = []
    for name, command in cli.cli.commands.items():
        for parameter in command.params:
            if isinstance(parameter, click.Option) and "--corpus" in parameter.opts:
                found.append(name)
                assert completed(name, "--corpus", "std") == ["stdlib"], name
    assert {"train", "score", "golf", "compress", "inspect"} <= set(found)


def test_completing_loads_no_torch() -> None:
    code = (
        "import sys\n"
        "from tokgolf.cli import completion\n"
        "assert completion.registered('HEADS') and completion.recipes() and completion.corpora()\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "_TOKGOLF_COMPLETE" in script and f"{shell}_complete" in script


def test_an_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["completion", "csh"]) == 2
    assert "'csh' is not one of" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
def test_a_real_bash_completes_commands_heads_and_files(tmp_path: Path) -> None:
    command = tmp_path / "tokgolf"
    command.write_text(f"#!/bin/sh\nexec '{sys.executable}' -m tokgolf \"$@\"\n")
    command.chmod(0o755)
    # What readline does when the tab key is pressed, without a terminal.
    script = """
set -u
eval "$(tokgolf completion bash)"
compopt() { echo compopt "$@"; }
press() {
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
    _tokgolf_completion tokgolf
    echo "${COMPREPLY[*]}"
}
complete -p tokgolf
press tokgolf deco
press tokgolf train --head fac
press tokgolf score --corpus std
"""
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    registered, *pressed = done.stdout.splitlines()
    assert "_tokgolf_completion" in registered
    assert pressed == ["decompress", "factorized", "compopt -o default", "stdlib"]
    assert done.stderr == ""
