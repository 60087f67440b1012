"""Code bytes: the source of exactly the modules that something imports, counted in two ways.

The modules are found by walking import statements, with nothing imported. The challenge has
counted code in two ways (facts: early entries are plain scripts; from April 2026 on, most are
compressed and unpack themselves), so both are told, and which one a ledger counts is said there.
Torch, NumPy and other libraries are free, as in the challenge.
"""

import ast
import base64
import inspect
import lzma
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from importlib.abc import InspectLoader
from pathlib import Path
from typing import NamedTuple, cast

import tokgolf
from tokgolf.tokenizers import Tokenizer

# Imports the modules of an archive from memory, each when it is asked for.
_SCRIPT = """import base64,lzma,sys
from importlib.util import spec_from_loader as f
class L:
 def find_spec(s,n,p=0,t=0):
  if n in M:return f(n,s,is_package=n in P)
 def create_module(s,m):0
 def get_source(s,n):return M.get(n)
 def exec_module(s,m):n=m.__file__=m.__name__;exec(M[n],m.__dict__)
M=dict(t.split("\\n",1)for t in lzma.decompress(base64.b85decode("%s")).decode().split("\\0"))
P={n.rpartition(".")[0]for n in M}
sys.meta_path.insert(0,L())
"""


class CodeBytes(NamedTuple):
    """The size of the same modules, by convention.

    `packed`: docstrings, comments and annotations stripped, one archive, xz. `plain`: the source
    files as they are, the challenge's early convention. `script`: its late one, the archive as
    base85 text in a script that imports from it; a file that may hold any byte needs no such text.
    """

    packed: int
    plain: int
    script: int


def tokenizer_modules(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Names of the tokgolf modules that restoring and using this tokenizer alone imports."""
    return closure(["tokgolf.tokenizers", *own_modules(tokenizer)])


def own_modules(tokenizer: Tokenizer) -> list[str]:
    """The modules of a tokenizer's kind, of its transform if it has one, of a codec of its own."""
    parts = [tokenizer, tokenizer.transform] if tokenizer.transform else [tokenizer]
    return [*(type(part).__module__ for part in parts), *tokenizer.extra_modules]


def closure(modules: Iterable[str], foreign: Iterable[str] = ()) -> tuple[str, ...]:
    """The tokgolf modules named, their packages, and all that these import, sorted.

    `foreign` are modules outside tokgolf that are loaded and count too, such as a user's head.
    """
    queue, found = list(modules), set(foreign)
    queue += [name for module in found for name in _imports(module)]
    while queue:
        names = queue.pop().split(".")
        for module in (".".join(names[:length]) for length in range(1, len(names) + 1)):
            if module not in found and names[0] == "tokgolf" and source(module) is not None:
                found.add(module)
                queue += _imports(module)
    return tuple(sorted(found))


@cache
def code_bytes(modules: tuple[str, ...]) -> CodeBytes:
    """The size of the source of these modules."""
    return CodeBytes(
        packed=len(_archive(modules)),
        plain=sum(len((source(name) or "").encode()) for name in modules),
        script=len(code_script(modules)),
    )


def code_script(modules: tuple[str, ...]) -> str:
    """A Python script after which these modules, stripped and unpacked from it, can be imported."""
    return _SCRIPT % base64.b85encode(_archive(modules)).decode("ascii")


@cache
def _archive(modules: tuple[str, ...]) -> bytes:
    text = "\0".join(f"{name}\n{stripped(source(name) or '')}" for name in modules)
    return lzma.compress(text.encode(), format=lzma.FORMAT_XZ, preset=9 | lzma.PRESET_EXTREME)


@cache
def source(module: str) -> str | None:
    """Source of a tokgolf module or package, or None if there is no such module.

    Of a module outside tokgolf that is loaded, too.
    """
    package, *parts = module.split(".")
    if package != "tokgolf":
        return inspect.getsource(sys.modules[module]) if module in sys.modules else None
    # Of files it reads its own alone; in a script it has the archive, as the script has no files.
    loader = cast(InspectLoader, tokgolf.__loader__)
    with suppress(ImportError):
        if (text := loader.get_source(module)) is not None:
            return text
    for root in tokgolf.__path__:
        path = Path(root, *parts)
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file.read_text("utf-8")
    return None


def _imports(module: str) -> Iterator[str]:
    """Names that a module's import statements may load, but for those under TYPE_CHECKING and
    inside functions (the lazy ones are what scoring does not use)."""
    for node in ast.parse(source(module) or "").body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("tokgolf"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tokgolf"):
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


class _Strip(ast.NodeTransformer):
    """Drop docstrings, annotations of arguments and results, and TYPE_CHECKING blocks."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return None
        return self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if text else node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        self.generic_visit(node)
        node.body = node.body or [ast.Pass()]
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.generic_visit(node)
        node.body = node.body or [ast.Pass()]
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node


def stripped(text: str) -> str:
    """The same program without what only readers need."""
    return ast.unparse(ast.fix_missing_locations(_Strip().visit(ast.parse(text))))
