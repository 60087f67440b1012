"""Token shards back to documents: what `corpora.shards` holds, as text that any command reads.

Official shards say neither which tokenizer wrote them nor where their text is; with the tokenizer
they are documents again, one for each BOS. Those whose tokens another encoding of the same text
would not have are counted: on them a score would differ.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tokgolf.corpora.corpus import Document
from tokgolf.corpora.shards import read_shard
from tokgolf.errors import CorpusError

Tokens = npt.NDArray[np.uint16]


def shard_documents(
    paths: Sequence[Path],
    *,
    bos_id: int,
    vocab_size: int,
    decode: Callable[[Any], bytes],
    encode: Callable[[bytes], npt.NDArray[Any]],
    on_changed: Callable[[int], None] = lambda number: None,
) -> Iterator[Document]:
    """The documents of shards that are one stream, in order; a document may reach over their ends.

    `on_changed` is told the number of each document whose text encodes to other tokens. Raises
    `CorpusError` for a stream that does not start with BOS, or has ids that the tokenizer lacks.
    """
    number, parts = 0, list[Tokens]()

    def document() -> Document:
        nonlocal number, parts
        ids = np.concatenate(parts)[1:]
        data = decode(ids)
        if not np.array_equal(encode(data), ids):
            on_changed(number)
        number, parts = number + 1, []
        return Document(f"{number - 1}", data)

    for path in paths:
        tokens = read_shard(path)
        if len(tokens) and int(tokens.max()) >= vocab_size:
            raise CorpusError(
                f"{path} holds id {tokens.max()}, the tokenizer has {vocab_size} ids; give the "
                "tokenizer that wrote it"
            )
        starts = np.flatnonzero(tokens == bos_id)
        for place, part in zip([-1, *starts.tolist()], np.split(tokens, starts), strict=True):
            if place >= 0 and parts:
                yield document()
            if len(part):
                parts.append(part)
            if parts and parts[0][0] != bos_id:
                raise CorpusError(
                    f"{path} starts with id {parts[0][0]}, the tokenizer's BOS is {bos_id}; give "
                    "the tokenizer that wrote it, and all shards from the first one on"
                )
    if parts:
        yield document()
