"""What can be said about a tokenizer: from its asset alone, and from the tokens of some text.

Text is fed in batches of documents and only counts are kept, so memory does not grow with the
corpus (with a bucket function it grows with the number of distinct pairs). Nothing here is
needed to score a model.

Shannon and Renyi efficiency, unigram bits per byte and tokens per word are here because people
ask for them. They are poor predictors of a trained model's bits per byte: marks before capital
words lowered it by 0.004 (openai/parameter-golf PR #1729), and by all of these they do harm.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from tokgolf.hashing import BigramBuckets
from tokgolf.tokenizers.asset import MAGIC, extras_of, unwrap
from tokgolf.tokenizers.base import Tokenizer

RARE = 100  # a type with fewer uses is rare
RENYI_ORDER = 2.5  # where Zouhar et al. 2023 found the best correlation, with BLEU
BATCH_BYTES = 1 << 20
SANITY_NOTE = "poor predictors of bits per byte; rank tokenizers by models trained with them"

Counts = np.ndarray[tuple[int], np.dtype[np.int64]]


def describe(tokenizer: Tokenizer) -> dict[str, Any]:
    """The facts that need no text; `asset_parts` (bytes) sum to `asset_bytes`.

    `token_lengths` counts the tokens of each length in bytes; tokens without bytes, such as
    BOS, are left out of it. `longest_tokens` are Python literals, ten at most.
    """
    asset = tokenizer.asset()
    extras = extras_of(asset)
    longest = [repr(token) for token in sorted(tokenizer.token_bytes, key=len, reverse=True)[:10]]
    lengths = np.bincount([len(token) for token in tokenizer.token_bytes])
    pieces = [token for token in tokenizer.token_bytes if token]
    return {
        "kind": tokenizer.kind,
        "transform": extras.transform,
        "order": _order(tokenizer.kind, asset),
        "bigram_buckets": extras.bigram.count if extras.bigram else None,
        "lossless": tokenizer.lossless,
        "vocab_size": tokenizer.vocab_size,
        "duplicate_tokens": len(pieces) - len(set(pieces)),
        "asset_bytes": len(asset),
        "asset_parts": _asset_parts(tokenizer.kind, asset),
        "original_file_bytes": len(tokenizer.original_file()),
        "longest_token": longest[0],
        "longest_tokens": longest,
        "token_lengths": {str(n): int(lengths[n]) for n in range(1, len(lengths)) if lengths[n]},
    }


def _order(kind: str, asset: bytes) -> str | None:
    """How the order of BPE merges is stored, exact or max; None where there is none."""
    return ("exact", "max")[unwrap(kind, asset)[0]] if kind == "bpe" else None


def _asset_parts(kind: str, asset: bytes) -> dict[str, int]:
    """The bytes of an asset by part, as `asset.py` lays them out."""
    body = len(unwrap(kind, asset))
    before = {"header": len(MAGIC) + 2, "transform": 1}
    checksum = 4
    bigram = len(asset) - sum(before.values()) - body - checksum
    return {**before, "bigram": bigram, "body": body, "checksum": checksum}


def batches(
    documents: Iterable[bytes], *, limit: int | None = None, size: int = BATCH_BYTES
) -> Iterator[list[bytes]]:
    """Lists of documents of at least `size` bytes each but the last, `limit` bytes in all.

    The document in which the limit falls is cut there, or up to 3 bytes before if that is inside
    a character.

        [b"ab", b"c", b"defg"], limit=5, size=3 -> [b"ab", b"c"], [b"de"]
    """
    batch: list[bytes] = []
    filled = total = 0
    for document in documents:
        last = limit is not None and total + len(document) >= limit
        if limit is not None and last:
            document = _cut(document, limit - total)
        batch.append(document)
        filled += len(document)
        total += len(document)
        if last:
            break
        if filled >= size:
            yield batch
            batch, filled = [], 0
    if batch:
        yield batch


def _cut(data: bytes, length: int) -> bytes:
    """The first `length` bytes, without the up to 3 that begin a character cut in two."""
    for end in range(length, max(length - 4, -1), -1):
        if data[end : end + 1] < b"\x80" or data[end] >= 0xC0:  # a character starts or data ends
            return data[:end]
    return data[:length]


class Usage:
    """The tokens that one tokenizer makes of one domain, counted."""

    def __init__(self, tokenizer: Tokenizer, name: str, *, pairs: "PairCounts | None" = None):
        """`pairs`, which several domains may share, also counts pairs of neighbours."""
        self.tokenizer = tokenizer
        self.name = name
        self.documents = self.bytes = self.words = self.fallback = self.marks = 0
        self.counts: Counts = np.zeros(tokenizer.vocab_size, np.int64)
        self._pairs = pairs
        self._high = np.array(
            [len(token) == 1 and token[0] >= 0x80 for token in tokenizer.token_bytes]
        )

    def add(self, batch: Sequence[bytes]) -> None:
        """Count a batch of documents."""
        encoded = self.tokenizer.encode_batch(batch)
        ids = np.concatenate([np.zeros(0, np.int64), *encoded])
        self.documents += len(batch)
        self.bytes += sum(map(len, batch))
        self.words += sum(len(data.split()) for data in batch)
        self.counts += np.bincount(ids, minlength=len(self.counts))
        high = self._high[ids]
        if self.tokenizer.transform:  # a document's own case state decides which bytes are marks
            lengths = [self.tokenizer.byte_lengths(tokens) for tokens in encoded]
            marks = np.concatenate([np.zeros(0, np.int64), *lengths]) == 0
            self.marks += int(marks.sum())
            high &= ~marks
        self.fallback += int(high.sum())
        if self._pairs is not None:
            self._pairs.add(ids, [len(tokens) for tokens in encoded])

    @property
    def tokens(self) -> int:
        """All tokens so far."""
        return int(self.counts.sum())


def summarize(
    tokenizer: Tokenizer, usages: Sequence[Usage], pairs: "PairCounts | None" = None
) -> dict[str, Any]:
    """What text tells about a tokenizer: by domain, over all domains, types, sanity, buckets.

    `pairs` are the pairs of all domains; without them or a bucket function, "bigram" is None.
    """
    counts = sum((usage.counts for usage in usages), np.zeros(tokenizer.vocab_size, np.int64))
    everything = row("all", usages)
    types = type_usage(tokenizer, counts)
    function, bigram = tokenizer.bigram, None
    if function and pairs:
        bigram = bucket_load(*pairs.totals(), tokenizer.vocab_size, function)
    return {
        "domains": [row(usage.name, [usage]) for usage in usages],
        "all_domains": everything,
        "types": types,
        "sanity": sanity(counts, types["types"], everything["bytes"]),
        "bigram": bigram,
    }


def row(name: str, usages: Sequence[Usage]) -> dict[str, Any]:
    """Sums and ratios over domains of one tokenizer; a ratio to nothing is None.

    `tokens_per_word` is fertility, a word being a maximal run of bytes that are not ASCII white
    space. `byte_fallback` is the share of tokens that are one byte of 0x80 or more and no mark:
    characters (or damaged text) that no learned token holds; single ASCII bytes are ordinary
    tokens. `marks` is the share that stands for no byte of the text, None without a transform.
    """
    size, words = sum(usage.bytes for usage in usages), sum(usage.words for usage in usages)
    tokens = sum(usage.tokens for usage in usages)
    transform = any(usage.tokenizer.transform for usage in usages)
    return {
        "corpus": name,
        "documents": sum(usage.documents for usage in usages),
        "bytes": size,
        "tokens": tokens,
        "bytes_per_token": _ratio(size, tokens),
        "tokens_per_word": _ratio(tokens, words),
        "byte_fallback": _ratio(sum(usage.fallback for usage in usages), tokens),
        "marks": _ratio(sum(usage.marks for usage in usages), tokens) if transform else None,
    }


def type_usage(tokenizer: Tokenizer, counts: Counts) -> dict[str, int]:
    """How the vocabulary is used; `counts` is (vocab,), the uses of each id.

    `types` are the ids that stand for bytes (BOS does not); `dead` of them have no use,
    `dead_bytes` of those are single bytes (UTF-8 never uses 13), and `rare` have fewer than
    `RARE` uses, dead ones among them.
    """
    length = np.array([len(token) for token in tokenizer.token_bytes])
    return {
        "types": int((length > 0).sum()),
        "dead": int(((counts == 0) & (length > 0)).sum()),
        "dead_bytes": int(((counts == 0) & (length == 1)).sum()),
        "rare": int(((counts < RARE) & (length > 0)).sum()),
    }


def sanity(counts: Counts, types: int, size: int) -> dict[str, Any]:
    """The intrinsic columns, with what to think of them; `size` is the bytes of the text.

    `unigram_bits_per_byte` is the text coded by its own token frequencies, which are not paid for.
    """
    tokens = int(counts.sum())
    if not (tokens and size):
        shannon = renyi = bits = None
    else:
        nats = renyi_entropy(counts, 1.0)
        shannon, bits = nats / math.log(types), nats / math.log(2) * tokens / size
        renyi = renyi_entropy(counts, RENYI_ORDER) / math.log(types)
    return {
        "shannon_efficiency": shannon,
        "renyi_efficiency": renyi,
        "unigram_bits_per_byte": bits,
        "note": SANITY_NOTE,
    }


def renyi_entropy(counts: Counts, order: float) -> float:
    """Entropy, in nats, of the distribution of these counts, of which one must not be 0.

    Order 1 is Shannon's. Over log(types) it is the efficiency of Zouhar et al. 2023,
    "Tokenization and the Noiseless Channel", 1 for a uniform distribution.

        counts=[1, 1, 0, 2], order=2 -> -log(1/16 + 1/16 + 1/4) = 0.981
    """
    shares = counts[counts > 0] / counts.sum()
    if order == 1:
        return float(-(shares * np.log(shares)).sum())
    return float(np.log((shares**order).sum()) / (1 - order))


class PairCounts:
    """Distinct pairs (previous id, id) with their uses; the first of a document follows BOS."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._vocab_size, self._bos = tokenizer.vocab_size, tokenizer.bos_id
        self._keys = self._uses = np.zeros(0, np.int64)
        self._pending: list[tuple[Counts, Counts]] = []
        self._waiting = 0

    def add(self, ids: Counts, lengths: Sequence[int]) -> None:
        """Count documents of these lengths, whose ids lie one after the other in `ids`."""
        starts = np.cumsum([0, *lengths])[:-1][np.array(lengths, bool)]
        previous = np.roll(ids, 1).astype(np.int64)
        previous[starts] = self._bos
        keys, uses = np.unique(previous * self._vocab_size + ids, return_counts=True)
        self._pending.append((keys, uses))
        self._waiting += len(keys)
        if self._waiting > len(self._keys) + BATCH_BYTES:  # so merging costs O(log) a pair
            self._merge()

    def totals(self) -> tuple[Counts, Counts]:
        """previous * vocab_size + id of every pair seen, sorted, and the uses of each."""
        self._merge()
        return self._keys, self._uses

    def _merge(self) -> None:
        parts = [(self._keys, self._uses), *self._pending]
        keys = np.concatenate([keys for keys, _ in parts])
        self._keys, place = np.unique(keys, return_inverse=True)
        self._uses = np.zeros(len(self._keys), np.int64)
        np.add.at(self._uses, place, np.concatenate([uses for _, uses in parts]))
        self._pending, self._waiting = [], 0


def bucket_load(
    keys: Counts, uses: Counts, vocab_size: int, function: BigramBuckets
) -> dict[str, Any]:
    """How a bucket function spreads the pairs of `PairCounts.totals`, beside a random one.

    `buckets` is one less than the function's count, whose last is for "no pair". `sharing` is
    the share of distinct pairs that share a bucket with another, `sharing_uses` the same with
    each pair weighted by its uses. `outranked_uses` is the share of uses that are not of the
    most used pair of their bucket, which still tells functions apart where every bucket is
    shared. `random_...` is the mean over all functions:

        n pairs, m buckets, k[i] pairs used more than pair i, missed = 1 - 1/m
        used = m (1 - missed^n), sharing = 1 - missed^(n - 1), outranked[i] = 1 - missed^k[i]
    """
    pairs, buckets = len(keys), function.count - 1
    if not pairs:
        return {"pairs": 0, "buckets": buckets}
    order = np.argsort(-uses, kind="stable")
    uses = uses[order]
    place = function.bucket(keys[order] // vocab_size, keys[order] % vocab_size)
    _, top, inverse, load = np.unique(
        place, return_index=True, return_inverse=True, return_counts=True
    )
    shared = load[inverse] > 1
    missed = 1 - 1 / buckets
    outranked = 1 - missed ** np.arange(pairs)
    return {
        "pairs": pairs,
        "buckets": buckets,
        "pairs_per_bucket": pairs / buckets,
        "largest_load": int(load.max()),
        "used": len(load),
        "random_used": buckets * (1 - missed**pairs),
        "sharing": float(shared.mean()),
        "sharing_uses": float(uses[shared].sum() / uses.sum()),
        "random_sharing": 1 - missed ** (pairs - 1),
        "outranked_uses": 1 - float(uses[top].sum() / uses.sum()),
        "random_outranked_uses": float((outranked * uses).sum() / uses.sum()),
    }


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
