"""`tokgolf doctor`: each check on machines that lack what it looks for; nothing leaves this one."""

import http.server
import json
import os
import threading
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tokgolf import cli, doctor

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


class Refuses(http.server.BaseHTTPRequestHandler):
    """A hub that answers every request with 403."""

    def do_HEAD(self) -> None:
        self.send_response(403)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Keep quiet."""


@pytest.fixture
def hub() -> Iterator[str]:
    """A server on this machine."""
    with http.server.HTTPServer(("127.0.0.1", 0), Refuses) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_this_machine_is_examined_and_nothing_essential_fails(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    names = [check["name"] for check in found["checks"]]
    assert found["ok"] is True
    assert {"python", "libraries", "cpu", "threads", "compiler", "folder", "hub"} <= set(names)
    assert {"temporary", "[fast]", "[report]"} <= set(names)
    for check in found["checks"]:
        assert check["status"] in ("ok", "warn")
        assert (check["advice"] == "") == (check["status"] == "ok"), check
    assert [*tmp_path.iterdir()] == []  # nothing is left behind


def test_a_failed_check_ends_with_1_and_says_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "ENOUGH_BYTES", 10**18)
    monkeypatch.setattr(doctor, "FEW_BYTES", 10**18)
    assert cli.run(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    bad = next(number for number, line in enumerate(lines) if line.startswith("fail"))
    assert "folder" in lines[bad] and "-> free some space" in "".join(lines[bad : bad + 3])
    assert max(map(len, lines)) <= 100


def test_the_bounds_are_pyproject_s_here_and_the_package_s_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    here = doctor.needs()
    assert [str(line) for line in here.libraries] == [
        str(Requirement(line)) for line in project["dependencies"]
    ]
    assert list(here.extras) == list(project["optional-dependencies"])
    monkeypatch.setattr("tokgolf.__file__", str(tmp_path / "tokgolf" / "__init__.py"))
    installed = ["torch>=2.9", 'fastokens>=0.3; extra == "fast"', 'ruff; extra == "dev"']
    monkeypatch.setattr("importlib.metadata.requires", lambda name: installed)
    there = doctor.needs()
    assert [line.name for line in there.libraries] == ["torch"]
    assert [line.name for line in there.extras["fast"]] == ["fastokens"]


def test_a_library_that_is_old_or_missing_fails_by_name() -> None:
    wanted = (Requirement("numpy>=99"), Requirement("no-such-thing>=2"), Requirement("click>=8"))
    old, missing, good = doctor.check_libraries(wanted)
    assert (old.status, missing.status, good.status) == ("fail", "fail", "ok")
    assert old.found.startswith("numpy is ") and old.found.endswith(", not >=99")
    assert old.advice == "pip install 'numpy>=99'"
    assert missing.found == "no-such-thing is missing, not >=2"
    assert good.found.startswith("click ")


def test_another_python_than_asked_for_fails() -> None:
    assert doctor.check_python(">=3.11").status == "ok"
    assert doctor.check_python(">=4").status == "fail"


def test_more_threads_than_cores_is_a_warning() -> None:
    assert doctor.check_threads(2, 2).status == "ok"
    many = doctor.check_threads(8, 2)
    assert (many.status, many.advice) == ("warn", "set OMP_NUM_THREADS=2")


def test_a_compiler_is_looked_for_as_torch_does(tmp_path: Path) -> None:
    assert "no /nowhere/c++" in doctor.check_compiler({"CXX": "/nowhere/c++"}, try_it=False).found
    own = tmp_path / "mine"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    found = doctor.check_compiler({"CXX": str(own)}, try_it=False)
    assert found.status == "ok" and found.found.startswith(str(own))


def test_a_folder_where_nothing_can_be_written_fails(tmp_path: Path) -> None:
    check = doctor.check_folder("folder", tmp_path / "missing")
    assert check.status == "fail" and "No such file" in check.found and check.advice


def test_the_hub_is_asked_unless_the_environment_says_offline(hub: str) -> None:
    assert doctor.check_hub({"HF_ENDPOINT": hub}).found == f"{hub} answers"
    assert doctor.check_hub({"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0"}).status == "ok"
    offline = doctor.check_hub({"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"})
    assert offline.status == "ok" and "HF_HUB_OFFLINE" in offline.found
    gone = doctor.check_hub({"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert gone.status == "warn" and "refused" in gone.found
    assert doctor.check_hub({"HF_ENDPOINT": "nonsense"}).status == "warn"


def test_a_hub_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "HUB_SECONDS", 0.05)
    stop = threading.Event()

    def hangs() -> doctor.Check:
        stop.wait(30)
        return doctor.Check(name="hub", status="ok", found="late")

    began = time.perf_counter()
    check = doctor.Later(hangs).result()
    assert check.status == "warn" and time.perf_counter() - began < 10
    stop.set()


def test_extras_are_told_apart_there_missing_and_old() -> None:
    there, missing, old = doctor.check_extras(
        {
            "a": (Requirement("click>=8"), Requirement("tokgolf[b]")),
            "b": (Requirement("click>=8"), Requirement("no-such-thing")),
            "c": (Requirement("click<2"),),
        }
    )
    assert there.status == missing.status == "ok" and old.status == "warn"
    assert missing.found == "without no-such-thing (optional: pip install 'tokgolf[b]')"
    assert old.advice == "pip install 'click<2'"


@pytest.mark.slow
def test_the_compiler_is_tried_when_asked() -> None:
    check = doctor.check_compiler(os.environ, try_it=True)
    assert check.status in ("ok", "warn") and ("works" in check.found or check.advice)
