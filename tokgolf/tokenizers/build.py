"""Building tokenizers: training with `tokenizers` or `sentencepiece`, then making the asset.

A built tokenizer is restored from its own asset, so it cannot differ from what will be read
back. Documents are consumed once, in order, and every one is used: each is cut into what the
trainer takes, at the bytes that no learned token may hold, and only those bytes are left out
(they always have their byte tokens). The same documents give the same asset, on any number of
threads.
"""

import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain

from tokgolf.config import nearest
from tokgolf.errors import TokenizerError
from tokgolf.tokenizers import Tokenizer, from_asset
from tokgolf.tokenizers.asset import KINDS, wrap
from tokgolf.tokenizers.base import MAX_TOKEN_BYTES, MIN_VOCAB_SIZE, is_text, text_runs
from tokgolf.tokenizers.bpe import PATTERNS, byte_names, import_library, splitter
from tokgolf.tokenizers.pack import pack_merges, pack_pieces
from tokgolf.tokenizers.unigram import SCORE_STEP

MAX_VOCAB_SIZE = 65536  # ids stay uint16

# SentencePiece skips a whole sentence with one of its reserved characters (NUL, tab, U+2047,
# U+2581, U+2585), and a token for the replacement character would serve damaged text only.
_UNLEARNABLE = re.compile("[\0\t\u2047\u2581\u2585\ufffd]+")

# Both trainers are quadratic in the length of a word: a megabyte of one letter took eight minutes.
# So text is cut where a word ends, and within a word only if it is longer than this.
_CHUNK = re.compile(r"(?s).{1,10000}(?:(?<=\S)(?=\s)|\Z)|.{1,10000}")

_COVERAGE = 0.9995  # SentencePiece's default: the rarest characters are left to byte tokens


def build_tokenizer(
    kind: str, documents: Iterable[bytes], vocab_size: int | None, *, pattern: str = "gpt4"
) -> Tokenizer:
    """Learn a tokenizer of exactly `vocab_size` ids from `documents`.

    `kind` is "byte" (nothing is learned; `vocab_size` may be None), "bpe" or "unigram";
    `pattern` is where BPE cuts text before merging. SentencePiece, unlike the BPE trainer,
    holds all documents in memory. Raises `TokenizerError` for a size out of range, or one that
    the documents are too few for.
    """
    if kind not in KINDS:
        raise TokenizerError(f"unknown tokenizer kind {kind!r}; {nearest(kind, KINDS)}")
    if kind == "byte":
        if vocab_size not in (None, MIN_VOCAB_SIZE):
            raise TokenizerError(
                f"a byte tokenizer has {MIN_VOCAB_SIZE} tokens, not {vocab_size}; "
                "leave --vocab-size out, or use --kind bpe"
            )
        return from_asset(wrap("byte", b""))
    if vocab_size is None:
        raise TokenizerError(f"a {kind} tokenizer needs a size; add --vocab-size, e.g. 4096")
    if not MIN_VOCAB_SIZE <= vocab_size <= MAX_VOCAB_SIZE:
        raise TokenizerError(
            f"vocabulary size {vocab_size} is outside {MIN_VOCAB_SIZE} (the bytes and BOS) "
            f"to {MAX_VOCAB_SIZE}; use --vocab-size within that"
        )
    if pattern not in PATTERNS:
        raise TokenizerError(f"unknown split pattern {pattern!r}; {nearest(pattern, PATTERNS)}")
    documents = _some(documents)
    if kind == "bpe":
        body = pack_merges(_train_bpe(documents, vocab_size, pattern), pattern)
    else:
        body = pack_pieces(_train_unigram(documents, vocab_size))
    return from_asset(wrap(kind, body))


def _some(documents: Iterable[bytes]) -> Iterator[bytes]:
    """The documents without empty ones. Raises `TokenizerError` if that leaves none."""
    filled = (document for document in documents if document)
    first = next(filled, None)
    if first is None:
        raise TokenizerError(
            "the corpus has 0 bytes, and a tokenizer learns from 1 at least; "
            "check the path and the split"
        )
    return chain([first], filled)


def _train_bpe(documents: Iterator[bytes], vocab_size: int, pattern: str) -> list[tuple[int, int]]:
    """Merges as id pairs. Should two make the same string, only the first is kept."""
    library = import_library()
    trained = library.Tokenizer(library.models.BPE())
    trained.pre_tokenizer = splitter(pattern)
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size - 1,  # its own count has no BOS
        min_frequency=2,  # a pair seen once is noise
        show_progress=False,
        special_tokens=[],
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=MAX_TOKEN_BYTES,
    )
    texts = (run for document in documents for run in text_runs(document) if is_text(run))
    trained.train_from_iterator((c for text in texts for c in _CHUNK.findall(text)), trainer)
    ids = {name: byte for byte, name in enumerate(byte_names())}
    merges: list[tuple[int, int]] = []
    for left, right in json.loads(trained.to_str())["model"]["merges"]:
        if left + right not in ids:
            ids[left + right] = MIN_VOCAB_SIZE + len(merges)
            merges.append((ids[left], ids[right]))
    _check_supported(vocab_size, MIN_VOCAB_SIZE + len(merges))
    return merges


def _train_unigram(documents: Iterator[bytes], vocab_size: int) -> dict[bytes, int]:
    """Pieces with their costs: single bytes, and exactly `vocab_size - 257` longer ones.

    SentencePiece counts single ASCII characters as pieces beside its byte pieces, and here they
    are the byte tokens; so it is asked for more pieces than needed, and the worst are dropped,
    as its own last step does.
    """
    sentences = [sentence for document in documents for sentence in _sentences(document)]
    characters: Counter[str] = Counter()
    for sentence in sentences:
        characters.update(sentence)
    wanted = vocab_size + 128 + _covered_beyond_ascii(characters)
    scores = _sentencepiece_scores(sentences, wanted) if sentences else {}
    learned = sorted((p for p in scores if len(p) > 1), key=lambda piece: (-scores[piece], piece))
    _check_supported(vocab_size, MIN_VOCAB_SIZE + len(learned))
    kept = [piece for piece in scores if len(piece) == 1] + learned[: vocab_size - MIN_VOCAB_SIZE]
    costs = {piece: min(255, max(0, round(-scores[piece] / SCORE_STEP))) for piece in kept}
    return costs or {b" ": 0}  # sentencepiece loads no model without a piece


def _sentences(document: bytes) -> list[str]:
    """All of a document that pieces may hold, in parts that SentencePiece takes.

    They are chunks rather than lines because it strips a newline that ends a sentence. With
    lines it learns no piece with a newline, and documentation has 6% more tokens at 4096.
    """
    parts = _UNLEARNABLE.split(document.decode("utf-8", "replace"))
    return [chunk for part in parts for chunk in _CHUNK.findall(part)]


def _covered_beyond_ascii(characters: Counter[str]) -> int:
    """How many characters beyond ASCII make up the coverage, and so must become pieces."""
    missing = characters.total() * _COVERAGE
    beyond = 0
    for character, count in characters.most_common():
        if missing <= 0:
            break
        missing -= count
        beyond += character >= "\x80"
    return beyond


def _sentencepiece_scores(sentences: list[str], size: int) -> dict[bytes, float]:
    """Train on all sentences for about `size` pieces; their log-probabilities."""
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="unigram",
            vocab_size=size,
            hard_vocab_limit=False,  # fewer pieces are an error below, with better words
            character_coverage=_COVERAGE,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            max_sentence_length=1 << 30,  # the default drops every sentence over 4,192 bytes
            num_threads=1,  # scores depend on the number of threads
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise TokenizerError(
            f"sentencepiece cannot learn {size} pieces from {len(sentences)} texts ({error}); "
            "use more text or another --vocab-size"
        ) from error
    trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    scores = {}
    for index in range(trained.get_piece_size()):
        if not trained.is_byte(index) and not trained.is_unknown(index):
            piece = trained.id_to_piece(index).replace("\u2581", " ").encode("utf-8")
            scores[piece] = trained.get_score(index)
    return scores


def _check_supported(asked: int, supported: int) -> None:
    if supported < asked:
        raise TokenizerError(
            f"asked for {asked} tokens, but the corpus supports only {supported}; "
            f"use --vocab-size {supported} or more text"
        )
