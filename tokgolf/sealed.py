"""JSON files that notice any damage: their last key is the hash of what comes before it.

Unlike a plain JSON file, one with a digit changed is refused. It is no protection against
somebody who makes the hash again, so readers still check what the values are. Standard
library only.
"""

import json
import os
from hashlib import sha256
from pathlib import Path
from typing import Any

from tokgolf.files import write_text

_SEAL = "seal"


def sealed(values: dict[str, Any]) -> str:
    """The text of a sealed file.

    {"a": 1} -> '{\\n "a": 1,\\n "seal": "f9d8..."\\n}\\n'
    """
    seal = sha256(json.dumps(values).encode()).hexdigest()
    return json.dumps({**values, _SEAL: seal}, indent=1) + "\n"


def write_sealed(path: str | os.PathLike[str], values: dict[str, Any]) -> None:
    """Write `values` to `path`, sealed, atomically."""
    write_text(path, sealed(values))


def read_sealed(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The values of a sealed file.

    Raises `ValueError` for one that is not, byte for byte, what `write_sealed` wrote, and
    `OSError` if it cannot be read.
    """
    data = Path(path).read_bytes()
    try:
        values = json.loads(data)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error
    if not isinstance(values, dict) or _SEAL not in values:
        raise ValueError(f"it has no {_SEAL!r}; an older tokgolf wrote it, or no tokgolf did")
    del values[_SEAL]
    if sealed(values).encode() != data:
        raise ValueError("it is not what its seal says; it was damaged or edited")
    return values
