"""Tokenizers as files: a `*.tok` file is an asset, byte for byte."""

import os

from tokgolf.errors import TokenizerError
from tokgolf.files import write_bytes
from tokgolf.tokenizers import Tokenizer, from_asset

MAX_ASSET_BYTES = 1 << 25  # above any that can be built; a wrong path must not fill the memory


def save_tokenizer(tokenizer: Tokenizer, path: str | os.PathLike[str]) -> None:
    """Write the asset of `tokenizer` to `path`, atomically."""
    write_bytes(path, tokenizer.asset())


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Restore the tokenizer saved at `path`.

    Raises `TokenizerError`, with the path, if the file is not a sound tokenizer asset, and
    `OSError` if it cannot be read.
    """
    with open(path, "rb") as file:
        data = file.read(MAX_ASSET_BYTES + 1)
    try:
        if len(data) > MAX_ASSET_BYTES:
            raise TokenizerError(
                f"over {MAX_ASSET_BYTES} bytes is no tokenizer asset; "
                "make one with tokgolf build-tokenizer"
            )
        return from_asset(data)
    except TokenizerError as error:
        raise TokenizerError(f"{os.fspath(path)}: {error}") from error
