"""What turns text into BPE ids: the `tokenizers` library, or `fastokens` where it is installed.

Both work from one `tokenizer.json` and give the same ids. Without the environment variable
TOKGOLF_ENGINE, which names one of `ENGINES`, the fastest one that is safe for the tokenizer is
taken; where fastokens is not (`engine_fastokens.py` says when), the library works in its place.
"""

import os
from importlib import import_module
from importlib.util import find_spec
from typing import Any, cast, final

import numpy as np

from tokgolf.config import nearest
from tokgolf.errors import TokenizerError
from tokgolf.tokenizers.windows import EngineIds, encode_in_windows

ENGINES = ("fastokens", "tokenizers")  # the fastest first; the last is always there
ENGINE_VARIABLE = "TOKGOLF_ENGINE"


def installed_engines() -> list[str]:
    """The engines whose package is there, the fastest first."""
    return [name for name in ENGINES if find_spec(name)]


@final
class Engine:
    """Encodes text by a `tokenizers` model of byte-level BPE; `name` says with which engine.

    `library` is the model, `tokens` the bytes of its ids, `pattern` what `split.py` calls its
    split. Raises `TokenizerError` if TOKGOLF_ENGINE names an engine that is unknown or missing.
    """

    def __init__(self, library: Any, tokens: list[bytes], pattern: str) -> None:
        self._library, self._tokens, self._pattern = library, tokens, pattern
        self._asked = _asked_for()
        self._fast: Any = None
        self._chosen = ""

    def __reduce__(self) -> tuple[Any, ...]:
        # The engine is chosen anew where the copy is used; fastokens' own object has no copy.
        return Engine, (self._library, self._tokens, self._pattern)

    @property
    def name(self) -> str:
        """The engine in use, chosen when it is first asked for or needed."""
        if not self._chosen:
            self._chosen = "tokenizers"
            if self._asked != "tokenizers" and "fastokens" in installed_engines():
                # By a string: its code is not charged to a model, which scores without it alike.
                module = import_module("tokgolf.tokenizers.engine_fastokens")
                self._fast = module.safe_fastokens(self._library, self._tokens, self._pattern)
                self._chosen = "fastokens" if self._fast else "tokenizers"
        return self._chosen

    def encode(self, texts: list[str]) -> list[EngineIds]:
        """The ids of each text, in time linear in its length whatever runs it has."""
        encode = self._fast.encode if self.name == "fastokens" else self._encode_by_library
        if self._pattern.startswith("regex:"):  # it may cut anywhere
            return cast(list[EngineIds], encode(texts))
        long_numbers = self._pattern.startswith("gpt2") and "+digits" not in self._pattern
        return encode_in_windows(texts, encode, self._tokens, long_numbers)

    def _encode_by_library(self, texts: list[str]) -> list[EngineIds]:
        encoded = self._library.encode_batch_fast(texts)
        return [np.array(encoding.ids, np.uint32) for encoding in encoded]

    def to_str(self) -> str:
        """The model as `tokenizer.json`."""
        return str(self._library.to_str())


def _asked_for() -> str | None:
    """What TOKGOLF_ENGINE asks for, if anything."""
    name = os.environ.get(ENGINE_VARIABLE)
    if not name:
        return None
    if name not in ENGINES:
        raise TokenizerError(f"{ENGINE_VARIABLE} is {name!r}; {nearest(name, ENGINES)}")
    if name not in installed_engines():
        raise TokenizerError(
            f"{ENGINE_VARIABLE} is {name!r}, but that package is not installed; "
            f"pip install 'tokgolf[fast]', or unset it"
        )
    return name
