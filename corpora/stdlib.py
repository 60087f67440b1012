"""The embedded corpus `stdlib`: the English documentation that every CPython carries.

No file is shipped and nothing is downloaded: the text is read off the interpreter's own source
files, never by importing them. So it differs a little between Python versions; the version is
recorded as provenance, and the corpus hash tells two of them apart.
"""

import ast
import functools
import gc
import platform
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from tokgolf.corpora.corpus import Corpus, Document, select_by_hash

_SKIPPED = {"site-packages", "dist-packages", "__pycache__"}
_TOPICS = "pydoc_data.topics"


def open_stdlib(split: str | None, name: str) -> Corpus:
    """The corpus, or one split of it; `name` is what messages call it."""
    return Corpus(
        name=name,
        split=split,
        source=lambda: select_by_hash(iter(_documents()), split),
        provenance={"python": f"{platform.python_implementation()} {platform.python_version()}"},
    )


@functools.cache
def _documents() -> tuple[Document, ...]:
    """All documents by id; kept, because parsing takes seconds and the result is 3 MB.

    Syntax trees have no cycles, but their many nodes set off the cycle collector all the time,
    and it then searches everything else too: with torch loaded, 18 s with it and 7 s without.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        return tuple(read_documentation(Path(sysconfig.get_paths()["stdlib"])))
    finally:
        if collecting:
            gc.enable()


def read_documentation(root: Path) -> Iterator[Document]:
    """The documents of the standard library at `root`, sorted by id, without repetitions.

    A module's document is its docstrings in source order, joined by blank lines; its id is the
    dotted module name. Each help topic of pydoc is one more, id "pydoc_data.topics:NAME".
    Of documents with the same bytes the first is kept, so that no two splits share one.
    """
    found: dict[str, bytes] = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if _SKIPPED.intersection(parts) or not all(part.isidentifier() for part in parts):
            continue
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        tree = _parse(path)
        if tree is None:
            continue
        if texts := list(docstrings(tree)):
            found[module] = _bytes("\n\n".join(texts))
        if module == _TOPICS:
            found.update((f"{_TOPICS}:{name}", _bytes(text)) for name, text in _topics(tree))
    seen: set[bytes] = set()
    for document_id in sorted(found):
        if found[document_id] not in seen:
            seen.add(found[document_id])
            yield Document(document_id, found[document_id])


def docstrings(node: ast.AST) -> Iterator[str]:
    """The docstrings of a module and of every class and function in it, in source order.

    Descends into statements only: an expression can hold no docstring, and leaving out the
    expressions is four times as fast as `ast.walk`.
    """
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        if text := ast.get_docstring(node, clean=True):
            yield text
    for block in ("body", "handlers", "orelse", "finalbody", "cases"):
        inner = getattr(node, block, None)
        if isinstance(inner, list):  # a lambda's body, for one, is an expression
            for child in inner:
                yield from docstrings(child)


def _parse(path: Path) -> ast.Module | None:
    """The syntax tree, or None for the test suite's files that are broken on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SyntaxWarning: invalid escape sequences
        try:
            return ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # ValueError: null bytes, on some versions
            return None


def _topics(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Name and text of each topic in the dict literal assigned to `topics`."""
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            if [ast.unparse(target) for target in statement.targets] == ["topics"]:
                yield from ast.literal_eval(statement.value).items()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # some docstrings show lone surrogates
