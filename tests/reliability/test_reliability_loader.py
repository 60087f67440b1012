"""What the loader can reach by its imports runs no code from a file and starts no process.

Import statements are followed through the modules of tokgolf, those inside functions too; heads
and kinds of tokenizers, which are imported by name, are all taken along.
"""

import ast
import functools
import importlib
import importlib.util
from pathlib import Path

import pytest

import tokgolf
from tokgolf.heads import ADDONS, HEADS
from tokgolf.tokenizers.asset import KINDS

FORBIDDEN = {
    "pickle", "cPickle", "dill", "marshal", "shelve", "joblib", "cloudpickle", "subprocess",
    "ctypes", "cffi", "multiprocessing", "socket", "urllib", "http", "ftplib", "code", "codeop",
    "runpy", "pty", "zipimport", "webbrowser", "xml", "tarfile", "zipfile", "tempfile", "shutil",
}  # fmt: skip
CALLS = {"eval", "exec", "compile", "__import__", "breakpoint", "input"}
METHODS = {"system", "popen", "spawnv", "execv", "execve", "fork", "startfile"}
ENTRIES = ["tokgolf.artifact.load", "tokgolf.eval.scorer"]
ON_REQUEST = {"tokgolf.ledger"}  # of an artifact that was decoded; it reads our own source


def by_name() -> list[str]:
    """Modules that are imported by the name in a registry."""
    from tokgolf.tokenizers import _KINDS

    assert set(_KINDS) == set(KINDS)
    heads = [place.partition(":")[0] for place in (*HEADS.values(), *ADDONS.values())]
    kinds = [f"tokgolf.tokenizers.{place.partition(':')[0]}" for place in _KINDS.values()]
    codecs = ["maxcodec", "engine_fastokens", "transforms", "canonical", "store"]
    return [*heads, *kinds, *(f"tokgolf.tokenizers.{name}" for name in codecs)]


@functools.cache
def tree_of(module: str) -> ast.Module:
    path = importlib.import_module(module).__file__
    assert path is not None
    return ast.parse(Path(path).read_text("utf-8"))


def closure(queue: list[str]) -> list[str]:
    """The modules named, their packages, and all that these may import while a file is decoded."""
    found: set[str] = set()
    while queue:
        module = queue.pop()
        if module in found | ON_REQUEST or not is_module(module):
            continue
        found.add(module)
        queue.append(module.rpartition(".")[0])
        for node in ast.walk(tree_of(module)):
            if isinstance(node, ast.ImportFrom):
                queue += [str(node.module), *(f"{node.module}.{a.name}" for a in node.names)]
            elif isinstance(node, ast.Import):
                queue += [alias.name for alias in node.names]
    return sorted(found)


def is_module(name: str) -> bool:
    """Whether there is such a module of tokgolf."""
    if name.partition(".")[0] != "tokgolf":
        return False
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def wrong_in(tree: ast.AST) -> list[str]:
    """What must not be there, as it stands."""
    found = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [str(node.module)]
        found += [name for name in names if name.partition(".")[0] in FORBIDDEN]
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name) and called.id in CALLS:
                found.append(called.id)
            if isinstance(called, ast.Attribute) and called.attr in METHODS:
                found.append(ast.unparse(called))
            if ast.unparse(called) in ("torch.load", "np.load", "numpy.load"):
                found.append(ast.unparse(called))
    return found


REACHED = closure([*ENTRIES, *by_name()])


@pytest.mark.parametrize("module", REACHED)
def test_no_module_that_the_loader_reaches_can_run_what_a_file_holds(module: str) -> None:
    assert not wrong_in(tree_of(module))


def test_the_loader_is_followed_to_its_parts() -> None:
    reached = set(REACHED)
    assert {
        "tokgolf.artifact.load",
        "tokgolf.artifact.container",
        "tokgolf.artifact.rans",
    } <= reached
    assert {"tokgolf.heads.vq", "tokgolf.tokenizers.foreign_bpe", "tokgolf.model"} <= reached
    assert not {"tokgolf.tokenizers.foreign", "tokgolf.tokenizers.isolated"} & reached


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from subprocess import run", "def f():\n  import ctypes.util",
        "eval('1')", "os.system('ls')", "torch.load(path)", "exec(x)", "import marshal as m",
        "np.load(path)",
    ],
)  # fmt: skip
def test_what_is_looked_for_is_found(text: str) -> None:
    assert wrong_in(ast.parse(text))
    assert not wrong_in(ast.parse("import json\nmodel.eval()\nre.compile('x')\nself.load(x)"))


def test_every_file_of_the_project_is_written_by_the_one_writer() -> None:
    """Opening for writing and the like occurs in files.py alone, but for the logs that grow."""
    allowed = {
        ("tokgolf.files", "open(temporary, 'wb')"),
        ("tokgolf.training.directory", "open(path, 'a', encoding='utf-8')"),  # metrics.jsonl
        ("tokgolf.sweep.ranks", "open(log, 'wb')"),  # what torchrun writes to stderr
        # into memory
        (
            "tokgolf.inspection",
            "figure.savefig(buffer, format=path.suffix[1:], metadata=dated)",
        ),
    }
    found = set()
    for root in tokgolf.__path__:
        for path in sorted(Path(root).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if parts[0] in ("tests", "benchmarks") or any(part.startswith(".") for part in parts):
                continue
            module = ".".join(part for part in ("tokgolf", *parts) if part != "__init__")
            module = module.replace("tokgolf.tokgolf", "tokgolf")
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Call) and writes(node):
                    found.add((module, ast.unparse(node)))
    assert found == allowed


def writes(call: ast.Call) -> bool:
    """Whether a call opens a file for writing or writes one, other than by tokgolf.files."""
    if isinstance(call.func, ast.Name) and call.func.id == "open":
        mode = ast.unparse(call.args[1]) if len(call.args) > 1 else "'r'"
        return any(letter in mode for letter in "wax+")
    if isinstance(call.func, ast.Attribute):
        writers = ("write_text", "write_bytes", "savefig", "save_file", "tofile")
        return call.func.attr in writers or (call.func.attr == "touch" and not call.args)
    return False
