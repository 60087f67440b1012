"""Building tokenizers: training with `tokenizers` or `sentencepiece`, then making the asset.

A built tokenizer is restored from its own asset, so it cannot differ from what will be read
back. Documents are consumed once, in order. Up to `sample_bytes` every one is used, beyond that
a sample of whole documents; each is cut into what the trainer takes, at the bytes that no
learned token may hold, and only those bytes are left out (they always have their byte tokens).
The same documents, options and seed give the same asset, on any number of threads.
"""

import heapq
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tokgolf.config import nearest
from tokgolf.errors import TokenizerError
from tokgolf.hashing import BigramBuckets, splitmix64
from tokgolf.tokenizers import Tokenizer, from_asset
from tokgolf.tokenizers.asset import KINDS, TRANSFORMS, Extras, wrap
from tokgolf.tokenizers.base import MAX_TOKEN_BYTES, MIN_VOCAB_SIZE, Ids, is_text, text_runs
from tokgolf.tokenizers.bpe import (
    BpeTokenizer,
    byte_names,
    import_library,
    join_tokens,
    splitter,
)
from tokgolf.tokenizers.pack import check_score_step, pack_merges, pack_pieces
from tokgolf.tokenizers.split import compiled, pack_pattern
from tokgolf.tokenizers.statistics import batches
from tokgolf.tokenizers.unigram import SCORE_STEP, UnigramTokenizer, load_engine, model_file

MAX_VOCAB_SIZE = 65536  # ids stay uint16
SAMPLE_BYTES = 64_000_000
BUILT_KINDS = tuple(kind for kind in KINDS if kind != "foreign")
NESTED_KINDS = ("bpe", "greedy", "shortest")  # smaller ones are prefixes of the larger

# SentencePiece skips a whole sentence with one of its reserved characters (NUL, tab, U+2047,
# U+2581, U+2585), and a token for the replacement character would serve damaged text only.
_UNLEARNABLE = re.compile("[\0\t\u2047\u2581\u2585\ufffd]+")

# Both trainers are quadratic in the length of a word: a megabyte of one letter took eight minutes.
# So text is cut where a word ends, and within a word only if it is longer than this.
_CHUNK = re.compile(r"(?s).{1,10000}(?:(?<=\S)(?=\s)|\Z)|.{1,10000}")

_COVERAGE = 0.9995  # SentencePiece's default: the rarest characters are left to byte tokens

# With "+words", the share of the merges that is learned across words. The rest is learned first,
# within words, as in SuperBPE (Liu et al. 2025); theirs is 10% at 200k tokens.
_WORDS_SHARE = 0.2


def build_tokenizer(
    kind: str, documents: Iterable[bytes], vocab_size: int | None, **options: Any
) -> Tokenizer:
    """Learn a tokenizer of exactly `vocab_size` ids from `documents`.

    `kind` is a name in `BUILT_KINDS`; a "byte" tokenizer learns nothing, and its `vocab_size` may
    be None. The options are those of `build_ladder`. Raises `TokenizerError` for a size or
    option out of range, or a size that the documents are too few for.
    """
    return build_ladder(kind, documents, [vocab_size], **options)[0].tokenizer


@dataclass(frozen=True, kw_only=True)
class Built:
    """A tokenizer, and what was rounded to make its asset small: named counts and rates."""

    tokenizer: Tokenizer
    notes: dict[str, Any] = field(default_factory=dict)


def build_ladder(
    kind: str,
    documents: Iterable[bytes],
    vocab_sizes: Sequence[int | None],
    *,
    pattern: str = "gpt4",
    transform: str = "none",
    bigram: BigramBuckets | None = None,
    order: str = "exact",
    score_step: float = SCORE_STEP,
    sample_bytes: int = SAMPLE_BYTES,
    seed: int = 1337,
) -> list[Built]:
    """Tokenizers of several sizes from one training run, the smaller ones nested in the larger.

    `pattern` is where text is cut before merging (`split.py`), `transform` a lossless rewriting
    of the text before that (`transforms.py`), `bigram` a bucket function to carry along. `order`
    is how BPE merges are stored: "exact", or "max" for the smallest asset, whose order is rounded
    (`maxasset.py`). `score_step`, in nats, is what the scores of unigram pieces are rounded to.
    `sample_bytes` and `seed` choose whole documents if there are more.
    """
    extras = Extras(transform=transform, bigram=bigram)
    _check_options(kind, vocab_sizes, pattern, transform, order)
    check_score_step(score_step)
    if kind == "byte":
        return [Built(tokenizer=from_asset(wrap("byte", b"", extras))) for _ in vocab_sizes]
    sizes = [size for size in vocab_sizes if size is not None]
    sample = _sample(documents, sample_bytes, seed)
    if transform != "none":
        from tokgolf.tokenizers.transforms import transform_named

        sample = [transform_named(transform).forward(document) for document in sample]
    if kind == "unigram":
        return [_build_unigram(sample, sizes[0], score_step, extras)]
    if kind == "sentencepiece":
        from tokgolf.tokenizers.build_sentencepiece import build_sentencepiece_bpe

        return [Built(tokenizer=from_asset(build_sentencepiece_bpe(sample, sizes[0], extras)))]
    merges = _train_bpe(sample, max(sizes), pattern)
    nested = [merges[: size - MIN_VOCAB_SIZE] for size in sizes]
    exact = [BpeTokenizer.from_asset(wrap("bpe", pack_merges(m, pattern), extras)) for m in nested]
    if kind != "bpe":
        from tokgolf.tokenizers.orderfree import order_free_asset

        return [Built(tokenizer=from_asset(order_free_asset(kind, bpe, extras))) for bpe in exact]
    if order == "max":
        from tokgolf.tokenizers.maxasset import to_max

        words = _count_words(sample, pattern)
        results = [to_max(bpe, words) for bpe in exact]
        return [
            Built(
                tokenizer=result.tokenizer,
                notes={
                    "exact_asset_bytes": len(bpe.asset()),
                    "repairs": result.repairs,
                    "changed_words": result.changed_words,
                    "words": result.words,
                },
            )
            for bpe, result in zip(exact, results, strict=True)
        ]
    return [Built(tokenizer=bpe) for bpe in exact]


def _check_options(
    kind: str, sizes: Sequence[int | None], pattern: str, transform: str, order: str
) -> None:
    for what, name, known in (
        ("tokenizer kind", kind, BUILT_KINDS),
        ("transform", transform, TRANSFORMS),
        ("asset order", order, ("exact", "max")),
    ):
        if name not in known:
            raise TokenizerError(f"unknown {what} {name!r}; {nearest(name, known)}")
    if order == "max" and kind != "bpe":
        raise TokenizerError(f"only bpe merges have an order to round, not {kind}; use exact")
    pack_pattern(pattern)
    compiled(pattern)
    if kind in ("unigram", "sentencepiece") and pattern != "gpt4":
        raise TokenizerError(f"{kind} cuts no text before learning; leave --pattern out")
    if len(sizes) > 1 and kind not in NESTED_KINDS:
        raise TokenizerError(
            f"{len(sizes)} sizes of {kind} would be {len(sizes)} training runs, not one; build "
            f"them one by one, or use {', '.join(NESTED_KINDS)}, whose sizes are nested"
        )
    for size in sizes:
        if kind == "byte" and size not in (None, MIN_VOCAB_SIZE):
            raise TokenizerError(
                f"a byte tokenizer has {MIN_VOCAB_SIZE} tokens, not {size}; "
                "leave --vocab-size out, or use --kind bpe"
            )
        if kind != "byte" and size is None:
            raise TokenizerError(f"a {kind} tokenizer needs a size; add --vocab-size, e.g. 4096")
        if size is not None and not MIN_VOCAB_SIZE <= size <= MAX_VOCAB_SIZE:
            raise TokenizerError(
                f"vocabulary size {size} is outside {MIN_VOCAB_SIZE} (the bytes and BOS) "
                f"to {MAX_VOCAB_SIZE}; use --vocab-size within that"
            )


def _sample(documents: Iterable[bytes], limit: int, seed: int) -> list[bytes]:
    """All documents that are not empty, or as many as `limit` bytes take, chosen by a hash.

    Kept are those with the smallest hashes of seed and place, in their order: never more than
    `limit` bytes and one document at a time are held. Raises `TokenizerError` if there are none.
    """
    kept: list[tuple[int, int, bytes]] = []  # a heap, the largest hash first
    total, bound = 0, 1 << 64  # no hash from `bound` on can be among the smallest
    for place, document in enumerate(documents):
        key = splitmix64(seed, place)
        if document and key < bound:
            heapq.heappush(kept, (-key, place, document))
            total += len(document)
        while total > limit and len(kept) > 1:
            key, _, dropped = heapq.heappop(kept)
            total, bound = total - len(dropped), -key
    if not kept:
        raise TokenizerError(
            "the corpus has 0 bytes, and a tokenizer learns from 1 at least; "
            "check the path and the split"
        )
    return [document for _, _, document in sorted(kept, key=lambda entry: entry[1])]


def _texts(documents: Iterable[bytes]) -> Iterator[str]:
    """All text of the documents, in parts that the trainer takes."""
    for document in documents:
        for run in text_runs(document):
            if is_text(run):
                yield from _CHUNK.findall(run)


def _train_bpe(documents: list[bytes], vocab_size: int, pattern: str) -> list[tuple[int, int]]:
    """Merges as id pairs. Should two make the same string, only the first is kept."""
    wanted = vocab_size - MIN_VOCAB_SIZE
    options = pattern.split("+")
    across = round(wanted * _WORDS_SHARE) if "words" in options[1:] else 0
    within = "+".join(option for option in options if option != "words") if across else pattern
    names = {name: byte for byte, name in enumerate(byte_names())}
    found = _library_merges(_texts(documents), 256 + wanted - across, splitter(within))
    merges = _as_ids(found, names, [], wanted - across)
    if across:
        symbols = _words_in_a_row(documents, merges, pattern)
        names = {symbol: ord(symbol) - _PLANE for text in symbols for symbol in text}
        # Some are too long, or strings that are there already: hence more than are needed.
        texts = symbols.elements()
        found = _library_merges(texts, len(names) + across + across // 8 + 16, None)
        merges = _as_ids(found, names, merges, wanted)
    _check_supported(vocab_size, MIN_VOCAB_SIZE + len(merges))
    return merges


def _library_merges(texts: Iterable[str], size: int, cut: Any) -> list[tuple[str, str]]:
    """Train for `size` strings, single symbols included; the merges as pairs of strings."""
    library = import_library()
    trained = library.Tokenizer(library.models.BPE())
    if cut is not None:
        trained.pre_tokenizer = cut
    trainer = library.trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,  # a pair seen once is noise
        show_progress=False,
        special_tokens=[],
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet() if cut is not None else [],
        max_token_length=MAX_TOKEN_BYTES,
    )
    trained.train_from_iterator(texts, trainer)
    return [(left, right) for left, right in json.loads(trained.to_str())["model"]["merges"]]


def _as_ids(
    found: list[tuple[str, str]],
    names: dict[str, int],
    merges: list[tuple[int, int]],
    wanted: int,
) -> list[tuple[int, int]]:
    """`merges` and the found ones, as id pairs, `wanted` at most; `names` has every symbol's id.

    Left out are strings that are there already and such as are longer than a token may be.
    """
    tokens, merges = join_tokens(merges), list(merges)
    ids = {token: place for place, token in enumerate(tokens)}
    names = dict(names)
    for left, right in found:
        if len(merges) == wanted:
            break
        if left not in names or right not in names:
            continue  # of one that was too long
        token = tokens[names[left]] + tokens[names[right]]
        if token not in ids and len(token) <= MAX_TOKEN_BYTES:
            ids[token] = len(tokens)
            tokens.append(token)
            merges.append((names[left], names[right]))
        if token in ids:
            names[left + right] = ids[token]
    return merges


_PLANE = 0x10000  # from here on no code point is a surrogate: a character for every id


def _words_in_a_row(
    documents: list[bytes], merges: list[tuple[int, int]], pattern: str
) -> Counter[str]:
    """What the pattern leaves together, merged so far, as strings of one character an id."""
    bpe = BpeTokenizer.from_asset(wrap("bpe", pack_merges(merges, pattern)))
    pieces = _count_words(documents, pattern)
    return Counter(
        {
            "".join(chr(_PLANE + token) for token in ids.tolist()): count
            for ids, count in zip(bpe.encode_batch(list(pieces)), pieces.values(), strict=True)
        }
    )


def _count_words(documents: list[bytes], pattern: str) -> Counter[bytes]:
    """How often each piece occurs that the pattern cuts text into, in order of appearance."""
    library = import_library()
    cut = library.pre_tokenizers.Split(compiled(pattern), "isolated")
    counts: Counter[str] = Counter()
    for text in _texts(documents):
        counts.update(word for word, _ in cut.pre_tokenize_str(text))
    return Counter({word.encode(): count for word, count in counts.items()})


def _build_unigram(
    documents: list[bytes], vocab_size: int, score_step: float, extras: Extras
) -> Built:
    """Train, round the scores, and count what the rounding changes on the first megabyte."""
    scores = _train_unigram(documents, vocab_size)
    costs = {piece: min(255, max(0, round(-score / score_step))) for piece, score in scores.items()}
    rounded = UnigramTokenizer.from_asset(wrap("unigram", pack_pieces(costs, score_step), extras))
    single = [piece for piece in scores if len(piece) == 1]
    learned = rounded.token_bytes[MIN_VOCAB_SIZE:]
    model = model_file([(piece, scores[piece]) for piece in learned + single])
    exact = replace(
        rounded,
        _model=model,
        _ids=np.array([*range(rounded.vocab_size), *(piece[0] for piece in single)]),
        _engine=load_engine(model),
    )
    changed = total = 0
    for batch in batches(documents, limit=1_000_000):
        before, after = (_spans(one._encode_batch(batch), one) for one in (exact, rounded))
        total += len(before)
        changed += len(before) - len(np.intersect1d(before, after, assume_unique=True))
    notes = {"score_step": score_step, "changed_tokens": changed / total if total else 0.0}
    return Built(tokenizer=rounded, notes=notes)


def _spans(encoded: list[Ids], tokenizer: Tokenizer) -> Any:
    """One number for each token, from where it starts and ends in all the text."""
    lengths = np.array([len(token) for token in tokenizer.token_bytes])
    lengths = lengths[np.concatenate(encoded)]
    return np.cumsum(lengths) * 2 * MAX_TOKEN_BYTES + lengths


def _train_unigram(documents: list[bytes], vocab_size: int) -> dict[bytes, float]:
    """Pieces with their scores: single bytes, and exactly `vocab_size - 257` longer ones.

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
    # sentencepiece loads no model without a piece
    return {piece: scores[piece] for piece in kept} or {b" ": 0.0}


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
            f"asked for {asked} tokens, but the corpus supports only {supported} "
            f"({supported - MIN_VOCAB_SIZE} beside the bytes and BOS); "
            f"use --vocab-size {supported} or more text"
        )
