"""The scripts in benchmarks/ as a checkout has them, where nothing of tokgolf is installed."""

import json
import runpy
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(p for p in (ROOT / "benchmarks").glob("*.py") if p.name != "plain.py")
FOUND = """
import json, runpy, sys
path, found = sys.path, {}
for script in sys.argv[1:]:
    for name in [*sys.modules]:
        if name.partition(".")[0] in ("tokgolf", "trained_tokenizers", "plain"):
            del sys.modules[name]
    sys.path, sys.argv = [script.rpartition("/")[0], *path], [script, "--help"]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        assert end.code == 0, end.code
    found[script] = sys.modules["tokgolf"].__file__ if "tokgolf" in sys.modules else None
print(json.dumps(found))
"""
PEER = """
import sys
sys.path.append(sys.argv[1])
import train  # of the benchmarks
from tokgolf.tokenizers import build_tokenizer
trunk = train.TrunkConfig(layers=1, d_model=16, heads=2, kv_heads=1, mlp_hidden=16)
config = train.RunConfig(trunk=trunk, batch_tokens=1024)
peer = train.PeerProcess(config, build_tokenizer("byte", [], None), "cpu", False)
print(peer.step() > 0)
peer.end()
"""


def alone(code: str, *arguments: str, folder: Path) -> str:
    """What a process says that finds all libraries and, by itself, no tokgolf."""
    done = subprocess.run(
        # -S: no .pth file brings a checkout in.
        [sys.executable, "-S", "-P", "-c", code, *arguments],
        env={"PYTHONPATH": sysconfig.get_path("purelib"), "OMP_NUM_THREADS": "1"},
        cwd=folder, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_script_starts_from_a_checkout_and_measures_that(tmp_path: Path) -> None:
    said = alone(FOUND, *map(str, SCRIPTS), folder=tmp_path)
    found = json.loads(said.splitlines()[-1])
    late = str(ROOT / "benchmarks" / "scale.py")  # its help needs no tokgolf
    own = str(ROOT / "tokgolf" / "__init__.py")
    assert found == {str(path): None if str(path) == late else own for path in SCRIPTS}
    assert said.count("Usage: ") == len(SCRIPTS)


def test_a_peer_in_a_process_of_its_own_finds_the_checkout_too(tmp_path: Path) -> None:
    assert alone(PEER, str(ROOT / "benchmarks"), folder=tmp_path) == "True\n"


def test_what_torchrun_starts_finds_the_checkout_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, str] = {}

    def run(command: list[str], *, env: dict[str, str], **options: Any) -> None:
        assert command[:3] == [sys.executable, "-m", "torch.distributed.run"]
        given.update(env)
        raise KeyboardInterrupt

    places = [place for place in sys.path if Path(place).resolve() != ROOT]
    monkeypatch.setattr(sys, "path", places)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    scale = runpy.run_path(str(ROOT / "benchmarks" / "scale.py"))
    with pytest.raises(KeyboardInterrupt):
        scale["rate"](2, Path("a.tok"), Path("a.txt"), tmp_path, 20)
    monkeypatch.undo()
    code = "import tokgolf.training.shares as module; print(module.__file__)"
    found = subprocess.check_output([sys.executable, "-S", "-c", code], env=given, cwd=tmp_path)
    assert Path(found.decode().strip()) == ROOT / "training" / "shares.py"
