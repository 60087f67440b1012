"""Slow twins of the two encoders: a few obvious lines each, to compare with on random input."""

from tokgolf.tokenizers.bpe import BpeTokenizer, byte_names, splitter
from tokgolf.tokenizers.unigram import SCORE_STEP, UnigramTokenizer


def slow_bpe(tokenizer: BpeTokenizer, text: str) -> list[int]:
    """Cut as the library cuts, then join the pair of the lowest merge until none is left."""
    byte_of = {name: byte for byte, name in enumerate(byte_names())}
    rank = {pair: 257 + i for i, pair in enumerate(tokenizer.merges)}
    result = []
    for word, _ in splitter(tokenizer.pattern).pre_tokenize_str(text):
        ids = [byte_of[name] for name in word]
        while True:
            found = [
                (rank[p], i) for i, p in enumerate(zip(ids, ids[1:], strict=False)) if p in rank
            ]
            if not found:
                break
            new, place = min(found)
            ids[place : place + 2] = [new]
        result += ids
    return result


def unknown_cost(tokenizer: UnigramTokenizer) -> float:
    """What sentencepiece charges for a character without a piece: 10 nats over the dearest."""
    return max(tokenizer.costs.values()) + 10 / SCORE_STEP


def slow_unigram(tokenizer: UnigramTokenizer, text: str) -> float:
    """The least cost of any split of `text` into pieces and unknown characters (Viterbi)."""
    best = [0.0]
    for end in range(1, len(text) + 1):
        options = [best[end - 1] + unknown_cost(tokenizer)]
        for start in range(max(0, end - 40), end):
            piece = text[start:end].encode()
            if piece in tokenizer.costs:
                options.append(best[start] + tokenizer.costs[piece])
        best.append(min(options))
    return best[-1]


def cost_of_ids(tokenizer: UnigramTokenizer, ids: list[int]) -> float:
    """The cost of a split; the bytes of an unknown character count once, at the first."""
    total = 0.0
    for token in ids:
        piece = tokenizer.token_bytes[token]
        if piece in tokenizer.costs:
            total += tokenizer.costs[piece]
        elif not 0x80 <= token < 0xC0:
            total += unknown_cost(tokenizer)
    return total
