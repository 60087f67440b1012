"""The script of a submission: the modules that a run needs, packed into one file that runs alone.

It packs as `codesize` counts; what is decided here is which modules go in. Lazy imports are not
followed blindly (the corpora can open a hub, the head's registry has every head): the modules that
are reached only so are named here, and a test reads all lazy imports off what is packed.
"""

import ast
import json
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tokgolf import __version__
from tokgolf.artifact.load import Artifact
from tokgolf.codesize import closure, code_script, source
from tokgolf.files import write_bytes
from tokgolf.ledger import scoring_modules

RERUN = "tokgolf.rerun"
OFFICIAL = "tokgolf.eval.official"
# Training, exporting, and the ledger that an export under a cap asks; the last four are lazy.
TRAINING = (
    "tokgolf.training",
    "tokgolf.artifact.export",
    "tokgolf.artifact.sizes",
    "tokgolf.heads.loss",
    "tokgolf.ledger",
    "tokgolf.tokenizers.store",
)
# Asked for by `open_corpus` only, or where tokgolf says that it does without.
_OPTIONAL = {"datasets", "pyarrow", "fastokens"}

_HEAD = """# {name}: packed by tokgolf {version} from the files in source/, which is easier to read.
# Docstrings, comments and annotations are stripped; nothing else is changed.
# python train_gpt.py --help
"""
_TAIL = """if __name__=="__main__":
 import json
 from tokgolf.rerun import main
 sys.exit(main(json.loads(r'''{settings}'''),__file__,sys.argv[1:]))
"""


def script_modules(
    artifacts: Iterable[Artifact], beside: Iterable[str], *, official: bool, training: bool
) -> tuple[str, ...]:
    """Names of the tokgolf modules that scoring these artifacts, and training such ones, imports.

    `beside` are what the protocol needs more than the plain scorer (`eval.score.modules_beside`).
    """
    modules = {RERUN, *beside}
    if official:
        modules.add(OFFICIAL)
    if training:
        modules.update(TRAINING)
    for artifact in artifacts:
        modules.update(scoring_modules(artifact.model, artifact.tokenizer))
    return closure(modules)


def train_gpt(name: str, modules: tuple[str, ...], settings: Mapping[str, Any]) -> str:
    """The script: what it is, the modules, and the call of `rerun.main` with these settings."""
    text = json_in_script(settings)
    head = _HEAD.format(name=name, version=__version__)
    return head + code_script(modules) + _TAIL.format(settings=text)


def json_in_script(settings: Mapping[str, Any]) -> str:
    """JSON that can stand between triple quotes: ASCII, with every ' written as \\u0027."""
    return json.dumps(settings, separators=(",", ":")).replace("'", "\\u0027")


def write_source(folder: Path, modules: Iterable[str]) -> int:
    """Write the modules as they were written, in packages; returns the bytes of all of them."""
    modules, total = tuple(modules), 0
    for name in modules:
        package = any(other.startswith(f"{name}.") for other in modules)
        file = folder.joinpath(*name.split("."), "__init__.py")
        file = file if package else file.parent.with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        data = (source(name) or "").encode()
        write_bytes(file, data)
        total += len(data)
    return total


def requirements(modules: Iterable[str]) -> list[str]:
    """Lines of a requirements.txt: the libraries these modules import, in the versions here.

    What is only imported to read some kind of text is left out.
    """
    names = {name for module in modules for name in _libraries(source(module) or "")}
    lines = []
    for name in sorted(names - _OPTIONAL):
        distribution = name.replace("_", "-")
        try:
            # Without "+cpu" and the like, which say how it was built.
            lines.append(f"{distribution}=={version(distribution).partition('+')[0]}")
        except PackageNotFoundError:
            lines.append(distribution)
    return lines


def _libraries(text: str) -> set[str]:
    """Top-level names of the libraries that a source imports, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found - {"tokgolf", "__future__"} - set(sys.stdlib_module_names)
