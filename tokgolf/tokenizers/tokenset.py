"""What the kinds without an order share: a body that is a set of tokens, and the engine's names.

The asset body is the split pattern as `split.py` packs it, then the set of learned tokens as
`setcodec.py` packs it: strings of 2 to MAX_TOKEN_BYTES bytes. No order is stored, so ids go by
length, then by bytes. What the set means is up to the kind: `greedy.py`, `shortest.py`.
"""

from typing import Any

from tokgolf.errors import TokenizerError
from tokgolf.tokenizers.asset import unwrap
from tokgolf.tokenizers.base import BYTE_TOKENS, MAX_TOKEN_BYTES
from tokgolf.tokenizers.bpe import byte_names, import_library
from tokgolf.tokenizers.setcodec import unpack_set
from tokgolf.tokenizers.split import compiled, expression, read_pattern

BOS_NAME = "\u25b6"  # a character that no byte is mapped to, so no text is cut into BOS

# Blanks without a newline never match the first expression, but the library learns so by going
# back one by one, and panics at ten million of them. The second matches the same and looks first.
_LINES = r"\s*[\r\n]+"
_LINES_GUARDED = r"(?![^\S\r\n]++(?![\r\n]))" + _LINES


def read_tokens(kind: str, asset: bytes) -> tuple[str, list[bytes]]:
    """The split pattern and the bytes of every id of an asset that must be of this kind.

    Raises `TokenizerError` for any other asset, and for a token of an unfit length.
    """
    pattern, code = read_pattern(unwrap(kind, asset))
    learned = sorted(unpack_set(code), key=lambda token: (len(token), token))
    if learned and not 2 <= len(learned[0]) <= len(learned[-1]) <= MAX_TOKEN_BYTES:
        raise TokenizerError(
            f"{kind} tokenizer asset holds tokens of {len(learned[0])} to {len(learned[-1])} "
            f"bytes, 2 to {MAX_TOKEN_BYTES} expected; build it again"
        )
    return pattern, BYTE_TOKENS + learned


def token_names(tokens: list[bytes]) -> list[str]:
    """Each token as the library's byte-level splitter writes it, one character a byte.

    [b" a", b""] -> ["\\u0120a", BOS_NAME]
    """
    table = byte_names()
    return ["".join([table[byte] for byte in token]) or BOS_NAME for token in tokens]


def make_engine(model: Any, pattern: str) -> Any:
    """A tokenizer of the `tokenizers` library that cuts by a pattern, then uses `model`."""
    library = import_library()
    cut = compiled(pattern)
    if not pattern.startswith("regex:"):
        cut = library.Regex(expression(pattern).replace(_LINES, _LINES_GUARDED))
    engine = library.Tokenizer(model)
    engine.pre_tokenizer = library.pre_tokenizers.Sequence(
        [
            library.pre_tokenizers.Split(cut, "isolated"),
            library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    engine.decoder = library.decoders.ByteLevel()  # unused here; makes original_file() complete
    return engine
