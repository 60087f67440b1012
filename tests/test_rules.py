"""The house rules, read off the source: who imports whom, what is packaged, what never occurs."""

import ast
import importlib
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from tokgolf.cli import cli
from tokgolf.heads import HEADS

ROOT = Path(__file__).resolve().parents[1]
SIBLINGS = ("heads", "training", "eval", "corpora")  # at the root, but packages of tokgolf

# The rule itself. A module belongs to the longest name that it starts with; it may import what
# lies in a lower layer, and within its own layer only what `TOGETHER` says.
LAYERS: list[set[str]] = [
    {"errors", "config", "hashing", "files", "locks", "sealed", "signals", "threads"},
    {"heads", "tokenizers", "corpora"},
    {"model", "lowrank", "quantize", "device", "heap"},
    {"artifact", "codesize", "ledger", "bundle"},
    {"training", "eval"},
    {
        "cli",
        "sweep",
        "report",
        "pipeline",
        "inspection",
        "treemap",
        "comparisonplot",
        "cost",
        "headtable",
        "rerun",
        "submit",
        "doctor",
        "__main__",
    },
]
TOGETHER = LAYERS[0], LAYERS[2], LAYERS[3], LAYERS[5]  # elsewhere each part keeps to itself
WITHOUT_TORCH = {"tokenizers", "corpora"} | LAYERS[0]


def sources() -> dict[str, Path]:
    """Every module of the package, by its dotted name."""
    found = {}
    for folder in ("tokgolf", *SIBLINGS):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = [*path.relative_to(ROOT).with_suffix("").parts]
            if parts[-1] == "__init__":
                parts.pop()
            if parts[0] != "tokgolf":
                parts.insert(0, "tokgolf")
            found[".".join(parts)] = path
    return found


SOURCES = sources()
every_module = pytest.mark.parametrize("module", SOURCES)


def tree_of(module: str) -> ast.Module:
    return ast.parse(SOURCES[module].read_text("utf-8"))


def imports_of(module: str) -> Iterator[str]:
    """What a module imports anywhere, in functions and under TYPE_CHECKING too."""
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{module} has a relative import"
            for alias in node.names:
                # `from tokgolf import config` imports a module, `from x import name` a name.
                full = f"{node.module}.{alias.name}"
                yield full if full in SOURCES else node.module


def part_of(module: str) -> str:
    """The part of the house a module is in; "" is the package itself.

    "tokgolf.heads.tied" -> "heads"
    """
    return module.split(".")[1] if "." in module else ""


def layer_of(part: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if part in layer)


def allowed(importer: str, imported: str) -> bool:
    if importer == imported:
        return True
    below = layer_of(imported) < layer_of(importer)
    together = any({importer, imported} <= layer for layer in TOGETHER)
    if layer_of(importer) == 1:
        return layer_of(imported) == 0
    return below or together


# --- imports


def test_the_source_is_found() -> None:
    assert {"tokgolf", "tokgolf.config", "tokgolf.heads.tied", "tokgolf.eval.score"} <= set(SOURCES)
    assert {"tokgolf.training", "tokgolf.corpora.shards", "tokgolf.cli.train"} <= set(SOURCES)


@pytest.mark.parametrize(
    ("importer", "imported", "verdict"),
    [
        ("heads", "config", True),
        ("heads", "heads", True),
        ("heads", "corpora", False),
        ("corpora", "tokenizers", False),
        ("tokenizers", "model", False),
        ("config", "heads", False),
        ("model", "heads", True),
        ("quantize", "artifact", False),
        ("ledger", "artifact", True),
        ("artifact", "training", False),
        ("training", "eval", False),
        ("eval", "training", False),
        ("eval", "ledger", True),
        ("training", "cli", False),
        ("cli", "pipeline", True),
    ],
)
def test_the_rule_allows_and_forbids(importer: str, imported: str, verdict: bool) -> None:
    assert allowed(importer, imported) is verdict


@every_module
def test_every_module_has_a_layer(module: str) -> None:
    part = part_of(module)
    assert part == "" or any(part in layer for layer in LAYERS), f"give {part} a layer"


@every_module
def test_imports_run_downward_only(module: str) -> None:
    if module == "tokgolf":
        return  # its public names are the whole house's, and lazy: see below
    wrong = [
        name
        for name in imports_of(module)
        if name.startswith("tokgolf.") and not allowed(part_of(module), part_of(name))
    ]
    assert not wrong, f"{module} is in layer {layer_of(part_of(module))}, it imports {wrong}"


@every_module
def test_the_lowest_layer_needs_the_standard_library_only(module: str) -> None:
    if part_of(module) not in LAYERS[0]:
        return
    known = sys.stdlib_module_names | {"tokgolf"}
    assert {name.partition(".")[0] for name in imports_of(module)} <= known


@every_module
def test_tokenizers_and_corpora_do_not_know_torch(module: str) -> None:
    if part_of(module) in WITHOUT_TORCH:
        assert "torch" not in {name.partition(".")[0] for name in imports_of(module)}


def test_the_package_itself_imports_no_part_at_run_time() -> None:
    body = tree_of("tokgolf").body
    run = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {alias.name for node in run if isinstance(node, ast.Import) for alias in node.names}
    modules |= {str(node.module) for node in run if isinstance(node, ast.ImportFrom)}
    assert modules and all(name.partition(".")[0] in sys.stdlib_module_names for name in modules)


def test_public_names_are_all_there() -> None:
    tokgolf = importlib.import_module("tokgolf")
    assert all(callable(getattr(tokgolf, name)) for name in tokgolf.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tokgolf.nothing


def test_heads_named_in_the_registry_are_heads() -> None:
    for name, place in HEADS.items():
        module, _, cls = place.partition(":")
        assert part_of(module) == "heads"
        assert getattr(importlib.import_module(module), cls).name == name


# --- what never occurs


BUILTINS = {"eval", "exec", "compile", "__import__"}
MODULES = {"pickle", "cPickle", "dill", "marshal", "shelve", "joblib", "cloudpickle"}
LOKY = "joblib.externals.loky"  # starts processes, and reads no file


def forbidden(tree: ast.AST) -> list[str]:
    """Ways of running what a file holds: `eval`, `pickle`, `torch.load`, `allow_pickle=True`."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found += [node.func.id] if node.func.id in BUILTINS else []
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.partition(".")[0] in MODULES]
        if isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            module = str(node.module)
            runs = module.partition(".")[0] in MODULES and not module.startswith(LOKY)
            found += [module] if runs else []
            found += ["torch.load"] if node.module == "torch" and "load" in names else []
        if isinstance(node, ast.Attribute) and node.attr == "load":
            found += ["torch.load"] if ast.unparse(node.value) == "torch" else []
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found += [] if ast.unparse(node.value) == "False" else ["allow_pickle"]
    return found


@pytest.mark.parametrize(
    "text",
    [
        "eval('1')",
        "exec(code)",
        "import pickle",
        "def f():\n    from pickle import loads",
        "torch.load(path)",
        "from torch import load",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_running_what_a_file_holds_is_recognised(text: str) -> None:
    assert forbidden(ast.parse(text))
    assert not forbidden(ast.parse("safetensors.torch.load(data); model.eval(); re.compile('x')"))


@every_module
def test_nothing_read_from_a_file_is_ever_run(module: str) -> None:
    assert not forbidden(tree_of(module))


# --- packaging and documents


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_every_package_is_listed() -> None:
    packages = {name for name, path in SOURCES.items() if path.name == "__init__.py"}
    listed = pyproject()["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(packages)


def test_every_folder_with_modules_is_a_package() -> None:
    assert {path.parent / "__init__.py" for path in SOURCES.values()} <= set(SOURCES.values())


def test_sibling_folders_are_mapped_into_the_package() -> None:
    mapping = pyproject()["tool"]["setuptools"]["package-dir"]
    assert mapping == {"tokgolf": "tokgolf", **{f"tokgolf.{name}": name for name in SIBLINGS}}


def test_the_command_points_at_the_command_line() -> None:
    module, _, name = pyproject()["project"]["scripts"]["tokgolf"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_every_library_that_is_imported_is_a_dependency() -> None:
    listed = {
        "".join(c if c.isalnum() or c in "-_" else " " for c in entry).split()[0].replace("-", "_")
        for entry in pyproject()["project"]["dependencies"]
    }
    used = {name.partition(".")[0] for module in SOURCES for name in imports_of(module)}
    brought = {"pyarrow"}  # by datasets
    assert used - set(sys.stdlib_module_names) - {"tokgolf"} - brought <= listed


def commands(command: click.Command, path: str) -> Iterator[str]:
    """Every command that does something, by its full name."""
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from commands(below, f"{path} {name}")
    else:
        yield path


@pytest.mark.parametrize("command", list(commands(cli, "tokgolf")))
def test_every_command_is_in_the_readme(command: str) -> None:
    assert command in (ROOT / "README.md").read_text("utf-8"), f"README.md lacks {command}"


def test_no_test_folder_is_a_package() -> None:
    tests = ROOT / "tests"
    assert not list(tests.rglob("__init__.py"))
    names = [path.name for path in tests.rglob("*.py") if path.name != "conftest.py"]
    assert len(names) == len(set(names))
