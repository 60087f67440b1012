"""The challenge's metric: its text, its token stream, its bytes, its windows, its two numbers.

Unlike raw mode (`scorer.py`) the text is normalised first, the documents are one stream, and the
bytes of an imported SentencePiece model come from a table of its pieces. Numbers of the two modes
belong in no table together. Rules as read in openai/parameter-golf; nothing here knows a model.

    text      SentencePiece's nmt_nfkc, extra spaces removed, no space put before it
    stream    BOS and the tokens of each document, nothing after the last
    target    token t + 1, given tokens 0 to t; a BOS is paid for and stands for no byte
    cut       the first floor((N - 1) / L) L + 1 of N tokens, for windows of L inputs

A SentencePiece model that normalises by nmt_nfkc gets the document as it is and does that itself,
with its own table; every other tokenizer gets text that the installed sentencepiece normalised.
Normalised text nearly always stays as it is, but not always (a ligature before a combining
accent), so no document is normalised twice. A lossless tokenizer's bytes are its tokens' own.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokgolf.corpora import Corpus, Document
from tokgolf.errors import ScoreError
from tokgolf.tokenizers import Tokenizer
from tokgolf.tokenizers.pack_sentencepiece import read_model
from tokgolf.tokenizers.sentencepiece_bpe import SPACE, SentencePieceBpeTokenizer

RULE = "nmt_nfkc"
_BATCH = 256  # documents that are encoded in one call


def normalise(data: bytes) -> bytes:
    """The text of a document as the challenge scores it: b" a\\n\\n\\tb " -> b"a b".

    Raises `ScoreError` for bytes that are no UTF-8: the challenge has text only.
    """
    normal: str = _normaliser().normalize(_text(data))
    return normal.encode()


def normalised(corpus: Corpus) -> Corpus:
    """A corpus with the text of each document as the challenge scores it."""
    return replace(
        corpus,
        source=lambda: (Document(each.id, normalise(each.data)) for each in corpus.source()),
    )


@cache
def _normaliser() -> Any:
    import sentencepiece

    return sentencepiece.SentencePieceNormalizer(
        rule_name=RULE,
        add_dummy_prefix=False,
        remove_extra_whitespaces=True,
        escape_whitespaces=False,
    )


def _own_normaliser(tokenizer: Tokenizer) -> Callable[[bytes], bytes] | None:
    """How a tokenizer normalises by nmt_nfkc itself, without the space it puts first; or None."""
    if not isinstance(tokenizer, SentencePieceBpeTokenizer):
        return None
    if read_model(tokenizer.original_file()).normalizer != RULE:
        return None
    import sentencepiece

    engine = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.original_file())
    return lambda data: (
        engine.normalize(_text(data)).encode().replace(SPACE, b" ").removeprefix(b" ")
    )


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ScoreError(
            f"byte {error.start} of a document of {len(data)} is no UTF-8, and official mode "
            "normalises text; score it in raw mode"
        ) from error


@dataclass(frozen=True, eq=False, kw_only=True)
class ByteTable:
    """The challenge's table: three arrays of one entry a token.

    `base` are bytes, without one space at the start of a piece; `lead` says whether there is
    such a space; after a token of `boundary` (BOS and other special ones) it is not counted.
    """

    base: NDArray[np.int64]
    lead: NDArray[np.bool_]
    boundary: NDArray[np.bool_]

    def target_bytes(self, stream: NDArray[Any]) -> NDArray[np.int64]:
        """The bytes of each token but the first, given the one before it: (N,) -> (N - 1,)."""
        before, target = stream[:-1], stream[1:]
        size: NDArray[np.int64] = self.base[target] + (self.lead[target] & ~self.boundary[before])
        return size


def byte_table(tokenizer: Tokenizer) -> ByteTable:
    """The table of a tokenizer: by the challenge's rule for SentencePiece, else its tokens' bytes.

    The rule: control, unknown and unused pieces have 0 bytes and are boundaries; a byte piece
    has 1; of any other, one U+2581 at its start is the space, the rest counts as UTF-8. What a
    transform does to bytes depends on the text, so those of its tokens are in no table.
    """
    if isinstance(tokenizer, SentencePieceBpeTokenizer):
        return sentencepiece_table(tokenizer.original_file())
    lengths = np.fromiter(map(len, tokenizer.token_bytes), np.int64, tokenizer.vocab_size)
    return ByteTable(base=lengths, lead=np.zeros(len(lengths), bool), boundary=lengths == 0)


def sentencepiece_table(model: bytes) -> ByteTable:
    """The table of a SentencePiece `.model` that its library can be trusted with."""
    import sentencepiece

    engine = sentencepiece.SentencePieceProcessor(model_proto=model)
    size = engine.get_piece_size()
    base, lead, boundary = np.zeros(size, np.int64), np.zeros(size, bool), np.zeros(size, bool)
    for token in range(size):
        if engine.is_control(token) or engine.is_unknown(token) or engine.is_unused(token):
            boundary[token] = True
        elif engine.is_byte(token):
            base[token] = 1
        else:
            piece = engine.id_to_piece(token).encode()
            lead[token] = piece.startswith(SPACE)
            base[token] = len(piece.removeprefix(SPACE))
    return ByteTable(base=base, lead=lead, boundary=boundary)


@dataclass(frozen=True, eq=False, kw_only=True)
class Stream:
    """The tokens of a corpus, and what their bytes are by the tokenizer and by the text.

    `starts` are the places of the documents' BOS; `target_bytes[t]` belong to token t + 1, for
    all but the first token. `text_bytes` are those of each document's normalised text, counted
    on the text; `raw_bytes` of the document as it was. `decoded` says of each document whether
    its tokens decode to the normalised text; a space put before the whole does not matter, and
    as it follows BOS, the table does not count it.
    """

    tokens: NDArray[np.uint16 | np.uint32]
    starts: NDArray[np.int64]
    target_bytes: NDArray[np.uint16]
    text_bytes: NDArray[np.int64]
    raw_bytes: NDArray[np.int64]
    decoded: NDArray[np.bool_]

    @cached_property
    def document_bytes(self) -> NDArray[np.int64]:
        """The bytes of each document by its tokens: `text_bytes`, if they are counted right."""
        before = np.concatenate([[0], np.cumsum(self.target_bytes, dtype=np.int64)])
        ends = np.append(self.starts[1:], len(self.tokens)) - 1
        sizes: NDArray[np.int64] = before[ends] - before[self.starts]
        return sizes

    def document_of(self, targets: NDArray[np.int64]) -> NDArray[np.int64]:
        """The document that pays for each target; a BOS is paid for by the document it ends.

        starts=[0, 3], targets=[0, 1, 2, 3] -> [0, 0, 0, 1]
        """
        return np.searchsorted(self.starts, targets, side="right") - 1


def token_stream(tokenizer: Tokenizer, documents: Iterable[bytes]) -> Stream:
    """Normalise and encode documents into one stream. Raises `ScoreError` if there are none.

    The bytes of a lossless tokenizer are its tokens' own (`byte_lengths`); of a lossy one, the
    table's.
    """
    table = None if tokenizer.lossless else byte_table(tokenizer)
    own_text = _own_normaliser(tokenizer)
    bos = np.array([tokenizer.bos_id], tokenizer.dtype)
    parts: list[NDArray[Any]] = []
    sizes: list[NDArray[np.uint16]] = []
    starts, text_bytes, raw_bytes, decoded, place = [], [], [], [], 0
    source = iter(documents)
    while batch := list(islice(source, _BATCH)):
        texts = [*map(own_text or normalise, batch)]
        encoded = tokenizer.encode_batch(batch if own_text else texts)
        for data, text, ids in zip(batch, texts, encoded, strict=True):
            document = np.concatenate([bos, ids])
            size = table.target_bytes(document) if table else tokenizer.byte_lengths(ids)
            parts.append(document)
            sizes.append(np.append(0, size).astype(np.uint16))  # a token has 256 bytes at most
            starts.append(place)
            text_bytes.append(len(text))
            raw_bytes.append(len(data))
            decoded.append(tokenizer.decode(ids).removeprefix(b" ") == text)
            place += len(document)
    if not parts:
        raise ScoreError("there are 0 documents; official mode needs one at least")
    return Stream(
        tokens=np.concatenate(parts),
        starts=np.array(starts),
        target_bytes=np.concatenate(sizes)[1:],
        text_bytes=np.array(text_bytes),
        raw_bytes=np.array(raw_bytes),
        decoded=np.array(decoded),
    )


def scored_targets(tokens: int, length: int) -> int:
    """How many targets the challenge scores: floor((N - 1) / L) L. tokens=10, length=4 -> 8."""
    if length < 1:
        raise ScoreError(f"the window is {length} tokens; it must be 1 at least")
    return (tokens - 1) // length * length


def official_windows(targets: int, length: int, stride: int = 0) -> Iterator[tuple[int, int, int]]:
    """(start, first, end): a window of inputs [start, end) that pays for targets [first, end).

    `stride` 0 means disjoint windows. Sliding ones start at every multiple of the stride, and
    after the first pay for their last `stride` targets. One that starts at ws is there only if
    ws + length - stride < targets: without that rule the tail would be scored again.

    targets=8, length=4, stride=2 -> (0, 0, 4), (2, 4, 6), (4, 6, 8)
    """
    stride = stride or length
    if not 1 <= stride <= length:
        raise ScoreError(f"stride is {stride}; it must be 1 to the window of {length}, or 0")
    for start in range(0, targets, stride):
        first = start + length - stride if start else 0
        if first < targets:
            yield start, first, min(start + length, targets)


@dataclass(frozen=True, eq=False, kw_only=True)
class OfficialTotals:
    """The challenge's two numbers, and each document's part in them.

    `nats` and `bytes` have one entry a document, of its scored targets alone.
    """

    val_loss: float
    """Nats a target."""
    val_bpb: float
    """Bits a byte of normalised text."""
    targets: int
    nats: list[float]
    bytes: NDArray[np.int64]


def official_totals(stream: Stream, nats: NDArray[np.float64]) -> OfficialTotals:
    """val_loss and val_bpb from the nats of the stream's first `len(nats)` targets.

    val_bpb = val_loss / ln 2 * targets / bytes. Raises `ScoreError` for no or too many targets,
    for nats that are no number, and for targets without a byte.
    """
    count, most = len(nats), len(stream.target_bytes)
    if not 0 < count <= most:
        raise ScoreError(
            f"{count} targets were scored of a stream that has {most}; with fewer than one window "
            "of text, take a shorter window"
        )
    if not np.isfinite(nats).all():
        raise ScoreError(
            f"{int((~np.isfinite(nats)).sum())} of {count} targets have no finite nats"
        )
    size = int(stream.target_bytes[:count].sum())
    if not size:
        raise ScoreError(f"the {count} scored targets stand for 0 bytes of text")
    document = stream.document_of(np.arange(count))
    cuts = np.searchsorted(document, np.arange(1, len(stream.starts)))
    total = math.fsum(nats.tolist())
    return OfficialTotals(
        val_loss=total / count,
        val_bpb=total / math.log(2) / size,
        targets=count,
        nats=[math.fsum(part.tolist()) for part in np.split(nats, cuts)],
        bytes=np.bincount(
            document, weights=stream.target_bytes[:count], minlength=len(stream.starts)
        ).astype(np.int64),
    )
