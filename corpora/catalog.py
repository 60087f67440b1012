"""From what a user writes (`stdlib`, `fineweb:val`, `data/web.jsonl.zst`) to a corpus.

The one place that knows all names. A new named corpus is one line in `_NAMES`.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tokgolf.config import nearest
from tokgolf.corpora.corpus import SPLITS, Corpus
from tokgolf.corpora.files import open_path
from tokgolf.corpora.hub import PREFIX, SHORT_NAMES, open_hub, parse_hub_spec
from tokgolf.corpora.stdlib import open_stdlib
from tokgolf.errors import CorpusError

_Opener = Callable[[str | None, str, str], Corpus]  # split, name in messages, text field
_NAMES: dict[str, tuple[str, _Opener]] = {
    "stdlib": (
        "documentation inside this Python, always there (3 MB)",
        lambda split, name, field: open_stdlib(split, name),
    ),
    "fineweb": (
        "HuggingFaceFW/fineweb, sample of 10 billion tokens, streamed from the hub",
        partial(open_hub, SHORT_NAMES["fineweb"]),
    ),
    "fineweb-challenge": (
        "the challenge's own documents (48 GB, val: the first 50,000), streamed from the hub",
        partial(open_hub, SHORT_NAMES["fineweb-challenge"]),
    ),
}


def corpus_names() -> dict[str, str]:
    """The named corpora, each with a one-line description."""
    return {name: description for name, (description, _) in _NAMES.items()}


def open_corpus(spec: str, split: str | None = None, *, field: str = "text") -> Corpus:
    """Open a corpus by name, path or `name_or_path:split`; without a split, all its documents.

    A spec that exists as a file or folder is a path, even with a colon in it; otherwise an
    ending `:train`, `:val` or `:test` is the split. A name wins over a file of that name (write
    `./stdlib` for the file). `field` is the JSON field or table column read as text.

    Raises `CorpusError` for anything that cannot be a corpus, before any document is read; a
    hub data set is looked up with its first document.

        open_corpus("stdlib:val"), open_corpus("stdlib", "val")  -> the same documents
    """
    target, suffix = _parse(spec)
    if suffix is not None and split is not None and suffix != split:
        raise CorpusError(f"{spec!r} asks for split {suffix}, the argument for {split}; give one")
    split = split if suffix is None else suffix
    if split is not None and split not in SPLITS:
        raise CorpusError(f"there is no split {split!r}; {nearest(split, SPLITS)}")
    name = f"{target}:{split}" if split else target
    if target in _NAMES:
        return _NAMES[target][1](split, name, field)
    if target.startswith(PREFIX):
        return open_hub(parse_hub_spec(target), split, name, field)
    if target and os.path.exists(target):
        return open_path(Path(target), split, name, field)
    raise CorpusError(f"no corpus or path {target!r}; {nearest(target, _NAMES)}")


def _parse(spec: str) -> tuple[str, str | None]:
    """Name or path, and the split that the spec ends in.

    "stdlib:val" -> ("stdlib", "val"); "stdlib" -> ("stdlib", None); an existing "a:val" stays
    """
    if os.path.exists(spec):
        return spec, None
    target, colon, suffix = spec.rpartition(":")
    known = target in _NAMES or target.startswith(PREFIX) or (target and os.path.exists(target))
    if colon and (suffix in SPLITS or known):
        return target, suffix
    return spec, None
