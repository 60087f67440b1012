"""tokgolf: tokenizer and output-head co-design for language models under a byte cap."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokgolf.artifact.load import load_artifact
    from tokgolf.corpora import open_corpus
    from tokgolf.eval.score import score
    from tokgolf.tokenizers import build_tokenizer, load_tokenizer

__all__ = ["build_tokenizer", "load_artifact", "load_tokenizer", "open_corpus", "score"]

# An installed tokgolf has its parts inside it (tokgolf/heads, ...); in a checkout they
# are siblings of this folder. Looking there too lets a plain checkout run uninstalled.
_here = Path(__file__).resolve().parent
if not (_here / "heads").is_dir():
    __path__.append(str(_here.parent))

__version__ = "0.1.0"

_PUBLIC = {
    "build_tokenizer": "tokgolf.tokenizers",
    "load_artifact": "tokgolf.artifact.load",
    "load_tokenizer": "tokgolf.tokenizers",
    "open_corpus": "tokgolf.corpora",
    "score": "tokgolf.eval.score",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when first used: `import tokgolf` alone loads nothing heavy."""
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'tokgolf' has no attribute {name!r}")
