"""tokgolf: tokenizer and output-head co-design for language models under a byte cap."""

from pathlib import Path

# An installed tokgolf has its parts inside it (tokgolf/heads, ...); in a checkout they
# are siblings of this folder. Looking there too lets a plain checkout run uninstalled.
_here = Path(__file__).resolve().parent
if not (_here / "heads").is_dir():
    __path__.append(str(_here.parent))

__version__ = "0.1.0"
