"""What every token of a text costs in bits, and what the model would rather have seen.

The numbers are those of the scorer: over a whole document they sum to its part of the score.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unicodedata import category

import numpy as np
import torch
from numpy.typing import NDArray

from tokgolf.artifact.load import Artifact
from tokgolf.corpora import Document, open_corpus
from tokgolf.errors import ConfigError, TokgolfError
from tokgolf.eval.protocol import Protocol
from tokgolf.eval.saved import SavedScore
from tokgolf.eval.scorer import document_nats

MOST_TOKENS = 1_500
MOST_BYTES = 1 << 16
ALTERNATIVES = 5
EXCERPT = (600, 4_000)  # bytes of a document that is shown unasked
CORPORA = (".jsonl", ".jsonl.zst", ".parquet")
KEPT = ("window", "stride", "loops", "context")
LN2 = float(np.log(2))
HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\0": "\\0"}


@dataclass(frozen=True, kw_only=True)
class Token:
    """A token of the text. `rank` 1: the model thought it the likeliest. `data` None: the end."""

    data: bytes | None
    bits: float
    rank: int
    alternatives: tuple[tuple[bytes | None, float], ...]
    """The likeliest tokens with their probabilities."""


@dataclass(frozen=True, kw_only=True)
class Heat:
    """A text token by token. `bits` and `size` are those of all of it, `tokens` may be its start.

    `whole` says that the document was not cut before it was scored; `matches` that a saved score
    has the same bits for it, None if there is none.
    """

    title: str
    tokens: tuple[Token, ...]
    count: int
    bits: float
    size: int
    whole: bool
    how: str
    """The protocol, in words."""
    matches: bool | None = None


def heat(
    artifact: Artifact, data: bytes, title: str, protocol: Protocol | None = None, *,
    most: int = MOST_TOKENS, whole: bool = True,
) -> Heat:  # fmt: skip
    """Score one text; with `whole` its end is a token too, as in every score of documents.

    Only windows, stride, loops and context of the protocol count: it is scored in raw mode.
    """
    from tokgolf.eval.contexts import unrolled

    protocol = (protocol or Protocol()).of(artifact.trunk)
    tokenizer = artifact.tokenizer
    targets = np.append(tokenizer.encode(data).astype(np.int64), tokenizer.bos_id)
    count = len(targets) if whole else len(targets) - 1
    shown = min(count, most)
    top = np.zeros((shown, min(ALTERNATIVES, tokenizer.vocab_size)), np.int64)
    odds, ranks = np.zeros(top.shape), np.zeros(shown, np.int64)

    def observe(numbers: NDArray[np.int64], log_probs: torch.Tensor) -> None:
        keep = numbers < shown
        rows, places = log_probs[torch.from_numpy(keep)], numbers[keep]
        best = rows.topk(top.shape[1])
        top[places], odds[places] = best.indices.numpy(), best.values.double().exp().numpy()
        own = rows.gather(1, torch.from_numpy(targets[places])[:, None])
        ranks[places] = (rows > own).sum(1).numpy() + 1

    ((_, nats),) = document_nats(
        unrolled(artifact.model, protocol.loops),
        tokenizer,
        [data],
        window=protocol.window or 0,
        stride=protocol.stride,
        context=protocol.context,
        observe=observe,
    )
    bits = nats[:count] / LN2

    def piece(number: int) -> bytes | None:
        return None if number == tokenizer.bos_id else tokenizer.token_bytes[number]

    tokens = tuple(
        Token(
            data=piece(int(targets[place])),
            bits=float(bits[place]),
            rank=int(ranks[place]),
            alternatives=tuple(
                (piece(number), odd)
                for number, odd in zip(top[place].tolist(), odds[place].tolist(), strict=True)
            ),
        )
        for place in range(shown)
    )
    return Heat(
        title=title, tokens=tokens, count=count, bits=float(bits.sum()), size=len(data),
        whole=whole, how=how(protocol),
    )  # fmt: skip


def how(protocol: Protocol) -> str:
    """How a text is scored for the map.  -> "raw mode, window 256, stride 64" """
    stream = ", context stream" if protocol.context == "stream" else ""
    return f"raw mode{stream}, window {protocol.window}, stride {protocol.stride}"


def unlike_score(score: SavedScore) -> str:
    """What the run's score has that the map has not; "" if nothing.

    -> "official mode", "adaptation (lora)"
    """
    if score.mode != "raw":
        return f"{score.mode} mode"
    adapt = score.protocol.get("adapt")
    return f"adaptation ({adapt.get('kind')})" if isinstance(adapt, Mapping) else ""


def chosen_text(artifact: Artifact, spec: str, protocol: Protocol | None = None) -> Heat:
    """The heat of a file (its first bytes) or of a corpus' first document that is not empty.

    Raises `ConfigError` for a file without bytes, `CorpusError` for no corpus.
    """
    path = Path(spec)
    if path.is_file() and not spec.endswith(CORPORA):
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
        title = path.name
    else:
        document = next((d for d in open_corpus(spec) if d.data), Document("", b""))
        data, title = document.data, f"{spec}, {document.id}"
    if not data:
        raise ConfigError(f"{spec} has 0 bytes; --text needs some text")
    whole = len(data) <= MOST_BYTES
    return heat(artifact, data[:MOST_BYTES], title, protocol, whole=whole)


def scored_text(artifact: Artifact, score: SavedScore) -> Heat | None:
    """The heat of a document of the score itself: one of an ordinary length, and an ordinary bpb.

    None where the documents are not at hand, or are no longer those that were scored.
    """
    named = score.corpus.partition(":")[0] == "stdlib"
    if not named and not Path(score.corpus.rpartition(":")[0] or score.corpus).exists():
        return None  # nothing is fetched from anywhere for a picture
    try:
        corpus = open_corpus(score.corpus)
        if corpus.summary().sha256 != score.corpus_sha256:
            return None
    except (TokgolfError, OSError):
        return None
    sizes = score.sizes
    usual = np.flatnonzero((sizes >= EXCERPT[0]) & (sizes <= EXCERPT[1]))
    if not len(usual):
        usual = np.flatnonzero(sizes == sizes.max())
    number = int(usual[np.argmin(np.abs(score.bits[usual] / sizes[usual] - score.bpb))])
    data = next(d.data for place, d in enumerate(corpus) if place == number)
    whole = len(data) <= MOST_BYTES
    found = heat(
        artifact, data[:MOST_BYTES], f"document {number + 1} of {len(sizes)}, {score.corpus}",
        protocol_of(score), whole=whole,
    )  # fmt: skip
    same = not unlike_score(score) and whole
    close = np.isclose(found.bits, score.bits[number], rtol=1e-4)
    return replace(found, matches=bool(close) if same else None)


def protocol_of(score: SavedScore) -> Protocol:
    """The raw protocol with a saved score's windows; older scores say no more than a stride."""
    if score.mode != "raw":
        return Protocol()
    told: dict[str, Any] = {key: score.protocol[key] for key in KEPT if key in score.protocol}
    try:
        return Protocol(**told)
    except (TypeError, TokgolfError):
        return Protocol()


def pieces(data: bytes | None) -> Iterator[tuple[str, str]]:
    """A token's bytes as text: ("text", ...) to show as it is, ("mark", ...) for what would not
    show, or would change how the rest is shown.

    b"a\\0b\\xff" -> ("text", "a"), ("mark", "\\\\0"), ("text", "b"), ("mark", "\\\\xff")
    """
    if data is None:
        yield "mark", "end"
        return
    text = ""
    for char in data.decode("utf-8", "surrogateescape"):
        if category(char) not in HIDDEN:
            text += char
            continue
        if text:
            yield "text", text
        text = ""
        yield "mark", escaped(char)
        if char == "\n":
            yield "text", "\n"
    if text:
        yield "text", text


def escaped(char: str) -> str:
    """A character that cannot be shown, spelt out; a surrogate stands for a byte that is no text.

    "\\u202e" -> "\\\\u202e", "\\udcff" -> "\\\\xff"
    """
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if char in SHORT:
        return SHORT[char]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def plain(value: object) -> str:
    """A value as text for a page: what would not show, or would change what does, is spelt out."""
    return "".join(escaped(c) if category(c) in HIDDEN else c for c in str(value))
