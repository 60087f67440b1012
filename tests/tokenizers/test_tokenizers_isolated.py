"""Foreign files are read in a process of their own: whatever it does, the caller gets one error."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from tokenizers_support import built

from tokgolf import cli
from tokgolf.errors import TokenizerError
from tokgolf.tokenizers import isolated
from tokgolf.tokenizers.foreign import export_tokenizer, foreign_asset, import_tokenizer
from tokgolf.tokenizers.isolated import foreign_asset_isolated

START = "import sys, os, signal; data = sys.stdin.buffer.read(); "


@pytest.mark.parametrize(
    ("kind", "suffix"), [("bpe", ".json"), ("bpe", ".tiktoken"), ("sentencepiece", ".model")]
)
def test_the_asset_is_the_one_made_in_this_process(kind: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    export_tokenizer(built(kind), path)
    assert import_tokenizer(path).asset() == foreign_asset(path.read_bytes())


def test_a_pattern_is_passed_on(tmp_path: Path) -> None:
    export_tokenizer(built("bpe"), tmp_path / "x.tiktoken")
    data = (tmp_path / "x.tiktoken").read_bytes()
    assert foreign_asset_isolated(data, "gpt2") == foreign_asset(data, "gpt2")
    with pytest.raises(TokenizerError, match="unknown split pattern 'gpt5'"):
        foreign_asset_isolated(data, "gpt5")


@pytest.mark.parametrize(
    ("does", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "was ended by SIGSEGV; it is damaged or hostile"),
        ("os.abort()", "was ended by SIGABRT"),
        ("raise BaseException('a panic\\nof two lines')", "failed in a library .*of two lines"),
        ("from tokgolf.tokenizers.isolated import limit; limit(); bytes(1 << 40)", "MemoryError"),
        ("sys.exit(7)", r"failed in a library \(no message\)"),
    ],
)
def test_whatever_ends_the_child_is_one_error(
    does: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path_of_child = "sys.path.insert(0, sys.argv[1]); "
    monkeypatch.setattr(isolated, "_CHILD", START + path_of_child + does)
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(TokenizerError, match=message) as caught:
        import_tokenizer(tmp_path / "x.json")
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(tmp_path))
    code = cli.run(["import-tokenizer", str(tmp_path / "x.json"), "-o", str(tmp_path / "y.tok")])
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (1, "", 1) and not (tmp_path / "y.tok").exists()


def test_a_child_that_takes_for_ever_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "_CHILD", START + "import time; time.sleep(60)")
    monkeypatch.setattr(isolated, "WALL_SECONDS", 0.3)
    with pytest.raises(TokenizerError, match="takes over 0.3 seconds"):
        foreign_asset_isolated(b"{}", None)


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limits")
def test_the_child_s_limits_bind() -> None:
    child = os.fork()
    if child == 0:
        try:
            isolated.CPU_SECONDS = 1
            isolated.limit()
            signal.signal(signal.SIGXCPU, signal.SIG_DFL)
            while True:
                pass
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)


def test_hostile_files_are_refused_in_one_line(tmp_path: Path) -> None:
    layout = {"type": "ByteLevel", "add_prefix_space": False}
    nested = {
        "type": "Split",
        "pattern": {"Regex": "(" * 3000 + ")" * 3000},
        "behavior": "Isolated",
    }
    files = {
        "deep.json": b'{"model":' + b"[" * 200_000,
        "regex.json": json.dumps(
            {
                "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
                "pre_tokenizer": {
                    "type": "Sequence", "pretokenizers": [nested, {**layout, "use_regex": False}]
                },
            }
        ).encode(),
        "piece.model": b"\x0a\xa0\x8d\x06\x0a\x9d\x8d\x06" + b"a" * 100_000,
        "cut.model": built("sentencepiece").original_file()[:-3],
    }  # fmt: skip
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(TokenizerError) as caught:
            import_tokenizer(tmp_path / name)
        assert "\n" not in str(caught.value)
