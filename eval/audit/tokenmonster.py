"""TokenMonster vocabularies in their public text form (YAML), as far as bytes are concerned.

Read: charset, normalization, capcode, and each token's bytes and id. Unlike TokenMonster, which
looks ahead along several branches, text is cut here by the longest match; so the tokens' bytes
are exact and the uses of each are near. With capcode text is in lower case, and the letters C, W
and D in a token are marks (capital, capitals, no space), which stand for no byte; such text is
not made here, so that only the table is looked at. The binary `.vocab` form is meant for
TokenMonster's own loader and is not read: export it as YAML. The parser knows the lines that
TokenMonster writes, not all of YAML.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from tokgolf.errors import TokenizerError
from tokgolf.eval.audit.findings import ERROR, WARNING, Finding
from tokgolf.eval.audit.subject import Subject
from tokgolf.eval.official import ByteTable
from tokgolf.tokenizers.base import MAX_TOKEN_BYTES
from tokgolf.tokenizers.isolated import call_isolated

MAX_TOKENS = 1 << 18
SETTINGS = ("charset", "normalization", "capcode")
NO_CAPCODE = ("", "0", "none")
_MARKS = re.compile(rb"[CDW]")
_SETTING = re.compile(r"([a-z][a-z-]*): *(.*)")
_ID = re.compile(r"id: *([0-9]{1,9})")
_HEX = re.compile(r"TokenMonsterHexEncode\{((?:[0-9a-f]{2})+)\}")


def is_vocabulary(data: bytes) -> bool:
    """Whether bytes look like such a file: a setting in the first line, tokens before long."""
    head = data[:512].decode("utf-8", "replace").splitlines()
    return bool(head) and head[0].partition(":")[0] in SETTINGS and "tokens:" in head


def read_vocabulary(data: bytes) -> Subject:
    """The vocabulary in the bytes of a YAML file, with each token's own bytes as its table."""
    values = json.loads(call_isolated(f"{__name__}:pack_vocabulary", data))
    tokens = values.pop("tokens")
    # A vocabulary may have the same bytes twice; then the later id is written, the other never.
    ids = {bytes.fromhex(token): number for token, number in tokens}
    size = max(number for _, number in tokens) + 1
    pieces = [b""] * (size + 1)  # the last stands for what has no token
    for token, number in ids.items():
        pieces[number] = token
    longest = max(map(len, ids))
    capcode = values["capcode"] not in NO_CAPCODE
    plain = (_MARKS.sub(b"", piece) if capcode else piece for piece in pieces)
    lengths = np.array([*map(len, plain)], np.int64)
    complete = all(bytes([byte]) in ids for byte in range(256))

    def encode(batch: Sequence[bytes]) -> list[Any]:
        return [_longest(data, ids, longest, size) for data in batch]

    return Subject(
        kind="tokenmonster",
        pieces=pieces,
        sizes=lengths,
        table=ByteTable(base=lengths, lead=lengths < 0, boundary=lengths == 0),
        bos_id=-1,
        unknown=-1 if complete or capcode else size,
        case_marks=capcode,
        exact=not capcode,
        same_ids=False,
        decodes=not capcode,
        encode=encode,
        decode=lambda ids: b"".join(pieces[token] for token in ids),
        text=lambda data: data,
        facts={"kind": "tokenmonster", "vocab_size": len(tokens), **values, "cut": "longest match"},
    )


def vocabulary_findings(subject: Subject) -> list[Finding]:
    """What the settings of a vocabulary say about its bytes."""
    found = []
    capcode, rules = subject.facts["capcode"], subject.facts["normalization"]
    if capcode not in NO_CAPCODE:
        found.append(
            Finding(
                name="case-marks-counted",
                severity=ERROR,
                evidence=f"capcode {capcode}: tokens hold marks for case and for dropped spaces, "
                "and what one stands for depends on the tokens before it",
                factor=None,
                advice="count bytes on the text; no table of token lengths can be right",
            )
        )
    if "lowercase" in rules.lower():
        found.append(
            Finding(
                name="lower-cased-text",
                severity=ERROR,
                evidence=f"normalization is {rules}",
                factor=None,
                advice="use a vocabulary that keeps capitals, or capcode",
            )
        )
    elif rules not in ("none", ""):
        found.append(
            Finding(
                name="text-normalised",
                severity=WARNING,
                evidence=f"normalization is {rules}",
                factor=None,
                advice="name the text that is scored: its bytes are of the normalised text",
            )
        )
    return found


def _longest(data: bytes, ids: dict[bytes, int], longest: int, missing: int) -> list[int]:
    """b"abc", {b"ab": 0, b"c": 1} -> [0, 1]; a byte without a token is `missing`."""
    found, place = [], 0
    while place < len(data):
        for size in range(min(longest, len(data) - place), 0, -1):
            if (token := ids.get(data[place : place + size])) is not None:
                break
        else:
            token, size = missing, 1
        found.append(token)
        place += size
    return found


def pack_vocabulary(data: bytes) -> bytes:
    """Settings and tokens as JSON, tokens in hex; what the child process does."""
    settings: dict[str, str] = dict.fromkeys(SETTINGS, "")
    tokens: list[tuple[str, int]] = []
    waiting = ""
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        content = line.strip()
        if match := _SETTING.fullmatch(line):
            settings[match[1]] = match[2].strip('" ')
        elif content.startswith("- token:"):
            waiting = _token(content[8:].strip(), number).hex()
        elif content.startswith("id:") and waiting:
            if not (match := _ID.fullmatch(content)):
                raise TokenizerError(f"line {number} is {content!r:.40}, no id of a token")
            tokens.append((waiting, int(match[1])))
            waiting = ""
    ids = {number for _, number in tokens}
    if not tokens or len(ids) < len(tokens) or max(ids) >= MAX_TOKENS:
        raise TokenizerError(
            f"{len(tokens)} tokens have {len(ids)} ids, the last {max(ids, default=0)}; different "
            f"ones below {MAX_TOKENS} make a vocabulary"
        )
    kept = {key: settings[key] for key in SETTINGS}
    return json.dumps({**kept, "tokens": tokens}).encode()


def _token(text: str, line: int) -> bytes:
    """ "\\"a\\\\n\\"" -> b"a\\n"; the hexadecimal form of what is no UTF-8; plain text."""
    try:
        name = str(json.loads(text)) if text.startswith('"') else text.strip("'")
    except ValueError as error:
        raise TokenizerError(f"line {line} is {text!r:.40}, no token in quotes") from error
    token = bytes.fromhex(match[1]) if (match := _HEX.fullmatch(name)) else name.encode()
    if not 0 < len(token) <= MAX_TOKEN_BYTES:
        raise TokenizerError(
            f"the token in line {line} has {len(token)} bytes; 1 to {MAX_TOKEN_BYTES} can be"
        )
    return token
