"""Building the kinds that store no order, from the tokens that BPE has learned.

Their readers are `greedy.py` and `shortest.py`; this file is needed to build one, never to
restore it.
"""

from tokgolf.errors import TokenizerError
from tokgolf.tokenizers.asset import Extras, wrap
from tokgolf.tokenizers.base import MIN_VOCAB_SIZE
from tokgolf.tokenizers.bpe import BpeTokenizer
from tokgolf.tokenizers.pack import pack_set
from tokgolf.tokenizers.split import pack_pattern

ORDER_FREE = ("greedy", "shortest")


def order_free_asset(kind: str, bpe: BpeTokenizer, extras: Extras | None = None) -> bytes:
    """The asset of a kind in ORDER_FREE with the tokens and the split pattern of `bpe`.

    The tokens keep their bytes but not their ids. `extras` are those of the new asset; those of
    `bpe` are not taken over. Raises `TokenizerError` for another kind.
    """
    if kind not in ORDER_FREE:
        raise TokenizerError(
            f"a {kind} tokenizer is no set of tokens; use one of {', '.join(ORDER_FREE)}"
        )
    body = pack_pattern(bpe.pattern) + pack_set(bpe.token_bytes[MIN_VOCAB_SIZE:])
    return wrap(kind, body, extras)
