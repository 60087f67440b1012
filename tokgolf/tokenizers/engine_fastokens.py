"""The `fastokens` package as an engine, where its ids are sure to be the library's.

It is by far the fastest encoder of ordinary text. What keeps its ids those of the `tokenizers`
library (as those of 0.3.5 were on 2,141 random merge tables, and beside every code point but
one):

- only the named split patterns go to it, whose syntax means the same to both regular expression
  engines; `regex:` patterns and those by script stay with the library;
- text with U+180E (of which its PCRE2 says that it is a space) is encoded by the library, and so
  is text at which its PCRE2 gives up: 100 kB of words without punctuation, where the pattern keeps
  words together;
- before its first use it encodes a probe (tokens of this very table, a sample of Unicode), and any
  id unlike the library's leaves the tokenizer with the library.

The library works here without its cache of words. `tokenizers` 0.23 keeps that for as long as the
thread lives, whatever becomes of the model, and a probe's words take 1.5 MB: a process that
restores many tokenizers would grow by that much for each.

It starts no threads, as tokenizing processes fork; forking after use is safe too.
"""

import json
import os
from importlib import import_module
from typing import Any, final

import numpy as np

from tokgolf.tokenizers.windows import EngineIds

_PROBE_TOKENS, _PROBE_STEP = 512, 509

_DISPUTED = "\u180e"  # the Mongolian vowel separator: a space before Unicode 6.3


def safe_fastokens(library: Any, tokens: list[bytes], pattern: str) -> "Fastokens | None":
    """fastokens for a model of the `tokenizers` library, if it encodes a probe alike.

    Arguments are those of `Engine`. None for patterns whose syntax or tables may differ.
    """
    if pattern.startswith("regex:") or "+scripts" in pattern:
        return None
    file = library.to_str()
    uncached = _uncached(library, json.loads(file)["model"])
    fast = Fastokens(file, uncached)
    probe = _probe(tokens)
    expected = [encoding.ids for encoding in uncached.encode_batch_fast(probe)]
    return fast if [ids.tolist() for ids in fast.encode(probe)] == expected else None


def _uncached(library: Any, model: dict[str, Any]) -> Any:
    """The library's tokenizer again, its `model` as in `tokenizer.json`, without a word cache."""
    import tokenizers

    merges = [tuple(merge) for merge in model["merges"]]
    copy = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab=model["vocab"], merges=merges, cache_capacity=0)
    )
    copy.pre_tokenizer = library.pre_tokenizer
    return copy


def _probe(tokens: list[bytes]) -> list[str]:
    """Texts that exercise the merges and the split: some tokens, and a sample of Unicode."""
    step = max(1, len(tokens) // _PROBE_TOKENS)
    text = b" ".join(tokens[-1:256:-step]).decode("utf-8", "ignore")
    surrogates = range(0xD800, 0xE000)
    points = [chr(c) for c in range(0, 0x110000, _PROBE_STEP) if c not in surrogates]
    return [
        text,
        "a ".join(points),
        "1'".join(points[:1000]),
        "I'LL don'\u017f \t\n x\r\n\n  12345",
    ]


@final
class Fastokens:
    """The fastokens package on a `tokenizer.json`, and the library for what it cannot encode."""

    def __init__(self, file: str, library: Any) -> None:
        # Read when its pool starts: by default that starts a thread at the first longer text.
        os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")
        self._engine = import_module("fastokens").Tokenizer.from_json_str(file)
        self._library = library

    def encode(self, texts: list[str]) -> list[EngineIds]:
        """The ids of each text."""
        plain = iter(self._encode([text for text in texts if _DISPUTED not in text]))
        return [
            self._encode_by_library(text) if _DISPUTED in text else next(plain) for text in texts
        ]

    def _encode(self, texts: list[str]) -> list[EngineIds]:
        try:
            return self._encode_batch(texts)
        except ValueError:  # of one text, but it does not say of which
            if len(texts) == 1:
                return [self._encode_by_library(texts[0])]
            return [self._encode([text])[0] for text in texts]

    def _encode_by_library(self, text: str) -> EngineIds:
        return np.array(self._library.encode(text).ids, np.uint32)

    def _encode_batch(self, texts: list[str]) -> list[EngineIds]:
        flat, offsets = self._engine.encode_batch_flat(texts)
        ids = np.frombuffer(flat, np.uint32)
        ends = np.frombuffer(offsets, np.uint64).tolist()
        return [ids[start:end] for start, end in zip(ends, ends[1:], strict=False)]
