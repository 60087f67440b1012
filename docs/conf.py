"""Sphinx settings. `make docs` builds the site, without network and with warnings as errors."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import tokgolf  # noqa: E402

project = "tokgolf"
author = "the tokgolf authors"
copyright = "2026, the tokgolf authors"  # noqa: A001
release = tokgolf.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_click"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"tokgolf {release}"
html_show_sourcelink = False
myst_heading_anchors = 3
myst_links_external_new_tab = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # torch's are in another markup
# A type such as `bytes` is looked for among our names too, and a dataclass may have such a field.
suppress_warnings = ["ref.python"]


def as_text(lines: list[str]) -> Iterator[str]:
    """A docstring, which is plain text with `code` and indented blocks, in reStructuredText."""
    indented = False
    for number, line in enumerate(lines):
        if line.startswith("    ") and (indented or number == 0 or not lines[number - 1].strip()):
            if not indented:
                yield from ("::", "")
            indented = True
            yield line
            continue
        if not line.strip():
            yield line
            continue
        if indented and lines[number - 1].strip():
            yield ""
        indented = False
        parts = re.split(r"(`[^`]+`)", line.strip())
        yield "".join(
            f"`{part}`" if part.startswith("`") else re.sub(r"([\\*_|<>`:\[\]])", r"\\\1", part)
            for part in parts
        )


def process(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """autodoc's hook: our docstrings are no markup, and are made so that they cannot break one."""
    lines[:] = as_text(lines)


def escape_stars(app: Any, ctx: Any, lines: list[str]) -> None:
    """sphinx-click's hook: a help text such as "an artifact, *.golf" is no emphasis."""
    lines[:] = [line.replace("*.", r"\*.") for line in lines]


def setup(app: Any) -> None:
    """Called by Sphinx."""
    for part in ("description", "options", "arguments"):
        app.connect(f"sphinx-click-process-{part}", escape_stars)
    app.connect("autodoc-process-docstring", process)
