"""Byte-level BPE of others, its ids kept: bytes, merges and special tokens in any layout.

Unlike `bpe` it does not say where the bytes and BOS are, and a token may be there that no merge
makes ("whole": it stands for a whole piece of the split text, as in tiktoken). Special tokens
are never emitted: text that looks like one is text. Without merges, as in the byte260 layout of
the parameter-golf challenge, nothing is split and no library is needed.

    content
    bytes        1 byte, the order of the byte tokens among ids: an index into ORDERS; "stored" is
                 followed by 256 bytes
    bos          varint, the id that starts a document
    pattern      as in `split.py`
    layout       varint count, then a varint for each run of ids: number << 2 | sort
    text         varint length, then the special names and whole tokens in id order: each a varint
                 length and bytes
    merges       the pairs, as `mergecodec` packs them over the 256 bytes; the i-th makes the
                 i-th id of sort MERGE
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, final

import numpy as np

from tokgolf.errors import TokenizerError
from tokgolf.tokenizers.asset import read_varint, unwrap
from tokgolf.tokenizers.base import MAX_TOKEN_BYTES, Ids, Tokenizer, is_text, text_runs
from tokgolf.tokenizers.bpe import byte_names, import_library, splitter
from tokgolf.tokenizers.mergecodec import unpack_pairs
from tokgolf.tokenizers.split import read_pattern

ORDERS = ("natural", "gpt2", "stored")
MERGE, BYTE, SPECIAL, WHOLE = range(4)
MAX_TOKENS = 1 << 18
MERGES_PER_BYTE = 8  # of code at most; half of one is usual, and a forged code could go on for ever
SPECIAL_MARK = "\u25b6"  # begins the name of a special token: no byte is mapped to it


@final
@dataclass(frozen=True, eq=False, repr=False)
class ForeignBpeTokenizer(Tokenizer):
    """Merges with their engine; `specials` are the ids of special tokens with their names."""

    kind: ClassVar[str] = "foreign"
    pattern: str
    merges: list[tuple[int, int]]
    specials: dict[int, str]
    _byte_ids: Any
    _engine: Any

    @classmethod
    def from_asset(cls, data: bytes) -> Self:
        """Restore from an asset, checking layout and merges."""
        body = unwrap("foreign", data)
        order, place = _read_order(body)
        bos_id, place = read_varint(body, place)
        pattern, body = read_pattern(body[place:])
        sorts, place = _read_sorts(body)
        literals, place = _read_literals(body, place, sum(sort >= SPECIAL for sort in sorts))
        count = sorts.count(MERGE)
        if count > MERGES_PER_BYTE * (len(body) - place + 1):
            raise unfit(f"{count} merges in {len(body) - place} bytes of code")
        pairs = unpack_pairs(body[place:], count, 256) if count else []
        if sorts.count(BYTE) != 256 or bos_id >= len(sorts) or sorts[bos_id] != SPECIAL:
            raise unfit(
                f"{sorts.count(BYTE)} byte tokens and BOS {bos_id}, where 256 and a special "
                f"token below {len(sorts)} belong"
            )
        if not pairs and (place != len(body) or WHOLE in sorts):
            raise unfit(f"{len(body) - place} bytes after its end, or whole tokens but no merges")
        symbols = [bytes([byte]) for byte in range(256)]
        for left, right in pairs:
            symbols.append(symbols[left] + symbols[right])
            if len(symbols[-1]) > MAX_TOKEN_BYTES:
                raise unfit(f"a token of {len(symbols[-1])} bytes, over {MAX_TOKEN_BYTES}")
        ids = {sort: [i for i, found in enumerate(sorts) if found == sort] for sort in range(4)}
        byte_ids = np.empty(256, np.uint32)
        byte_ids[order] = ids[BYTE]
        of_symbol = byte_ids.tolist() + ids[MERGE]
        tokens = [b""] * len(sorts)
        for token, symbol in zip(of_symbol, symbols, strict=True):
            tokens[token] = symbol
        specials = {}
        for token, literal in zip(sorted(ids[SPECIAL] + ids[WHOLE]), literals, strict=True):
            if sorts[token] == SPECIAL:
                specials[token] = literal.decode("utf-8", "replace")
            else:
                tokens[token] = literal
        if len({*tokens}) != len(tokens) - len(specials) + 1:
            raise unfit("two tokens of the same bytes")
        merges = [(of_symbol[left], of_symbol[right]) for left, right in pairs]
        names = {token: name or str(token) * (token != bos_id) for token, name in specials.items()}
        engine = _make_engine(tokens, names, merges, ids[WHOLE], pattern) if merges else None
        return cls(data, tokens, pattern, merges, specials, byte_ids, engine, bos_id=bos_id)

    def _encode_batch(self, batch: Sequence[bytes]) -> list[Ids]:
        """Merge the text of each byte string; bytes that are no text are byte tokens."""
        if self._engine is None:
            return [
                self._byte_ids[np.frombuffer(data, np.uint8)].astype(self.dtype) for data in batch
            ]
        documents = [text_runs(data) for data in batch]
        texts = [run for runs in documents for run in runs if is_text(run)]
        encoded = iter(self._engine.encode_batch_fast(texts))
        result: list[Ids] = []
        for runs in documents:
            ids: list[int] = []
            for run in runs:
                if is_text(run):
                    ids += next(encoded).ids
                else:
                    raw = np.frombuffer(run.encode("utf-8", "surrogateescape"), np.uint8)
                    ids += self._byte_ids[raw].tolist()
            result.append(np.array(ids, dtype=self.dtype))
        return result

    def original_file(self) -> bytes:
        """The same tokenizer as `tokenizer.json`; the asset if there are no merges."""
        if self._engine is None:
            return self.asset()
        text: str = self._engine.to_str()
        return text.encode("utf-8")


def byte_order(name: str) -> list[int]:
    """The bytes in the order of their ids: as they are, or in the order of GPT-2's names."""
    if name == "natural":
        return [*range(256)]
    names = byte_names()
    return sorted(range(256), key=lambda byte: names[byte])


def _read_order(body: bytes) -> tuple[list[int], int]:
    if not body or body[0] >= len(ORDERS):
        raise unfit(f"a byte order {body[:1]!r}, not one of 0 to {len(ORDERS) - 1}")
    if ORDERS[body[0]] != "stored":
        return byte_order(ORDERS[body[0]]), 1
    order = [*body[1:257]]
    if sorted(order) != [*range(256)]:
        raise unfit(f"a byte order with {len(set(order))} of 256 bytes")
    return order, 257


def _read_sorts(body: bytes) -> tuple[list[int], int]:
    """The sort of every id, and the place after the layout."""
    runs, place = read_varint(body, 0)
    sorts: list[int] = []
    for _ in range(min(runs, len(body))):
        run, place = read_varint(body, place)
        if len(sorts) + (run >> 2) > MAX_TOKENS:
            raise unfit(f"{len(sorts) + (run >> 2)} tokens, over {MAX_TOKENS}")
        sorts += [run & 3] * (run >> 2)
    return sorts, place


def _read_literals(body: bytes, place: int, count: int) -> tuple[list[bytes], int]:
    """`count` byte strings after their lengths, and the place after them."""
    size, place = read_varint(body, place)
    end = place + size
    literals: list[bytes] = []
    while place < end and len(literals) < count:
        length, place = read_varint(body, place)
        literals.append(body[place : place + length])
        place += length
    if place != end or end > len(body) or len(literals) != count:
        raise unfit(f"{len(literals)} names in {size} bytes, {count} expected")
    return literals, place


def _make_engine(
    tokens: list[bytes],
    special_names: dict[int, str],
    merges: list[tuple[int, int]],
    whole: list[int],
    pattern: str,
) -> Any:
    library, table = import_library(), byte_names()
    names = ["".join([table[byte] for byte in token]) for token in tokens]
    for token, name in special_names.items():
        names[token] = SPECIAL_MARK + name
    if len({*names}) < len(names):
        raise unfit("two special tokens of the same name")
    engine = library.Tokenizer(
        library.models.BPE(
            vocab={name: token for token, name in enumerate(names)},
            merges=[(names[left], names[right]) for left, right in merges],
            ignore_merges=bool(whole),
        )
    )
    engine.pre_tokenizer = splitter(pattern)
    engine.decoder = library.decoders.ByteLevel()  # unused here; makes original_file() complete
    return engine


def unfit(what: str) -> TokenizerError:
    """The error for an asset that holds `what`."""
    return TokenizerError(f"foreign tokenizer asset holds {what}; import it again")
