"""Somebody's table of bytes a token: an `.npz` with the three arrays that the challenge's code has.

    base_bytes           bytes of each token, without a space at its start
    has_leading_space    whether there is such a space
    is_boundary_token    whether it is not counted after this token; also called is_boundary

The file is a zip, so it is opened in a process of its own.
"""

import io
from dataclasses import replace

import numpy as np

from tokgolf.errors import TokenizerError
from tokgolf.eval.audit.subject import Subject
from tokgolf.eval.official import ByteTable
from tokgolf.tokenizers.isolated import call_isolated

MAX_TOKENS = 1 << 18
_ARRAYS = (
    ("base_bytes", "base_bytes_lut"),
    ("has_leading_space", "has_leading_space_lut"),
    ("is_boundary_token", "is_boundary", "is_boundary_token_lut"),
)


def read_table(data: bytes) -> ByteTable:
    """The table in the bytes of an `.npz` file. Raises `TokenizerError` for anything else."""
    columns = np.frombuffer(call_isolated(f"{__name__}:pack_table", data), "<i4").reshape(3, -1)
    return ByteTable(
        base=columns[0].astype(np.int64), lead=columns[1] != 0, boundary=columns[2] != 0
    )


def pack_table(data: bytes) -> bytes:
    """The three arrays one after the other as int32; what the child process does."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            names = [next((n for n in each if n in file.files), each[0]) for each in _ARRAYS]
            arrays = [np.asarray(file[name]) for name in names]
    except Exception as error:  # zipfile, zlib and numpy each raise their own
        reason = " ".join(str(error).split())[:200]
        raise TokenizerError(
            f"no table of bytes ({reason}); an .npz with {', '.join(n for n, *_ in _ARRAYS)} is one"
        ) from error
    shapes = {array.shape for array in arrays}
    kinds = "".join(array.dtype.kind for array in arrays)
    size = len(arrays[0]) if arrays[0].ndim == 1 else 0
    if len(shapes) > 1 or not 0 < size <= MAX_TOKENS or kinds.strip("iub"):
        raise TokenizerError(
            f"the arrays of the table have shapes {sorted(shapes)} and kinds {kinds!r}; three rows "
            f"of 1 to {MAX_TOKENS} integers or booleans make one"
        )
    low, high = int(arrays[0].min()), int(arrays[0].max())
    if low < 0 or high >= 1 << 15:
        raise TokenizerError(f"base_bytes run from {low} to {high}; 0 to {(1 << 15) - 1} can be")
    return np.stack(arrays).astype("<i4").tobytes()


def with_table(subject: Subject, table: ByteTable) -> Subject:
    """The tokenizer with this table in place of the rule's.

    A table may be longer, as the challenge fills it up to the model's vocabulary. Raises
    `TokenizerError` if it is shorter.
    """
    known, given = len(subject.pieces), len(table.base)
    if subject.kind == "tokenmonster" and given == known - 1:  # what has no token is in no table
        table = ByteTable(
            base=np.append(table.base, 0),
            lead=np.append(table.lead, False),
            boundary=np.append(table.boundary, True),
        )
    elif given < known:
        raise TokenizerError(
            f"the table has {given} tokens, the tokenizer {known}; give the table's own tokenizer"
        )
    short = ByteTable(
        base=table.base[:known], lead=table.lead[:known], boundary=table.boundary[:known]
    )
    return replace(subject, table=short, counted=None)
