"""The byte ledger: every byte that a scored model needs, by component.

Three accountings (facts: openai/parameter-golf counts code and compressed weights, but not the
tokenizer):

    official   code + weights: what the challenge counts
    full       official + tokenizer asset: the default, and the one held against a cap
    raw        unpacked source + weights + the tokenizer as its library's own file

"Code" is the source of exactly the modules that reading an artifact and scoring with it
imports, found by walking their import statements: docstrings, comments and annotations
stripped, one archive, xz. Torch, NumPy and other libraries are free, as in the challenge.
"""

import ast
import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import tokgolf
from tokgolf.artifact import container
from tokgolf.errors import CapError
from tokgolf.tokenizers import Tokenizer

if TYPE_CHECKING:  # it brings torch, which the code bytes of a tokenizer do without
    from tokgolf.artifact.load import Artifact

ENTRY_MODULES = ("tokgolf.artifact.load", "tokgolf.eval.scorer")


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """Rows (component, bytes) of the full accounting, and the totals of all three."""

    rows: tuple[tuple[str, int], ...]
    official: int
    full: int
    raw: int
    modules: tuple[str, ...]

    def check_cap(self, cap: int) -> None:
        """Raise `CapError`, naming the largest component and a way out, if `full` is over."""
        if self.full > cap:
            name, size = max(self.rows, key=lambda row: row[1])
            raise CapError(
                f"artifact is {self.full:,} bytes in the full accounting, {self.full - cap:,} "
                f"over the cap of {cap:,}; largest: {name} {size:,}. Try a larger --clip or fewer "
                "--bits, a smaller trunk or vocabulary, or a head that stores less"
            )


def ledger_of(artifact: "Artifact") -> Ledger:
    """The ledger of an artifact; the rows but for the code sum to the file's length."""
    _, sections = container.unpack(artifact.data)
    modules = scoring_modules(artifact)
    code, raw_code = code_bytes(modules)
    file_bytes = len(artifact.data)
    frame = file_bytes - sum(len(data) for data in sections.values())
    rows = (
        ("code", code),
        ("header and checksum", frame),
        *((name, len(data)) for name, data in sections.items()),
    )
    asset = len(sections["tokenizer"])
    full = code + file_bytes
    assert sum(size for _, size in rows) == full
    return Ledger(
        rows=rows,
        official=full - asset,
        full=full,
        raw=raw_code + file_bytes - asset + len(artifact.tokenizer.original_file()),
        modules=modules,
    )


def scoring_modules(artifact: "Artifact") -> tuple[str, ...]:
    """Names of the tokgolf modules that scoring this artifact imports."""
    model = {type(part).__module__ for part in artifact.model.modules()}
    needed = artifact.model.head.modules_needed()
    return _closure([*ENTRY_MODULES, *model, *needed, *_own_modules(artifact.tokenizer)])


def tokenizer_modules(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Names of the tokgolf modules that restoring and using this tokenizer alone imports."""
    return _closure(["tokgolf.tokenizers", *_own_modules(tokenizer)])


def _own_modules(tokenizer: Tokenizer) -> list[str]:
    """The modules of a tokenizer's kind, of its transform if it has one, of a codec of its own."""
    parts = [tokenizer, tokenizer.transform] if tokenizer.transform else [tokenizer]
    return [*(type(part).__module__ for part in parts), *tokenizer.extra_modules]


def _closure(queue: list[str]) -> tuple[str, ...]:
    """The modules named, their packages, and all that these import, sorted."""
    found: set[str] = set()
    while queue:
        names = queue.pop().split(".")
        for module in (".".join(names[:length]) for length in range(1, len(names) + 1)):
            if module not in found and names[0] == "tokgolf" and _source(module) is not None:
                found.add(module)
                queue += _imports(module)
    return tuple(sorted(found))


def code_bytes(modules: tuple[str, ...]) -> tuple[int, int]:
    """Packed and plain size of the source of these modules."""
    sources = {name: _source(name) or "" for name in modules}
    archive = "".join(f"#{name}\n{_stripped(text)}\n" for name, text in sources.items())
    packed = lzma.compress(archive.encode(), format=lzma.FORMAT_XZ, preset=9 | lzma.PRESET_EXTREME)
    return len(packed), sum(len(text.encode()) for text in sources.values())


@cache
def _source(module: str) -> str | None:
    """Source of a tokgolf module or package, or None if there is no such module."""
    parts = module.split(".")[1:]
    for root in tokgolf.__path__:
        path = Path(root, *parts)
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if parts and file.is_file():
                return file.read_text("utf-8")
    return None if parts else Path(tokgolf.__file__).read_text("utf-8")


def _imports(module: str) -> Iterator[str]:
    """Names that a module's import statements may load, but for those under TYPE_CHECKING and
    inside functions (the lazy ones are what scoring does not use)."""
    for node in ast.parse(_source(module) or "").body:
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


def _stripped(text: str) -> str:
    return ast.unparse(ast.fix_missing_locations(_Strip().visit(ast.parse(text))))
