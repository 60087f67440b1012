"""Scores read back from the JSON that `save_score` wrote, checked as any foreign file is.

A `SavedScore` holds what a comparison needs: every document's bits and bytes, and the facts that
say whether two scores are of the same thing.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokgolf.config import read_toml
from tokgolf.errors import ConfigError, ScoreError

MAX_FILE = 1 << 30
MAX_COUNT = 1 << 62
SUM_TOLERANCE = 1e-9  # relative: the sums were made in another order

NO_PART = {"time_budget"}  # of a protocol: a score that was in time is the same without it

Doubles = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SavedScore:
    """One score of one model. `seed` is known for run directories alone.

    bits, sizes (documents,): bits and bytes of each document, in corpus order.
    """

    name: str
    corpus: str
    corpus_sha256: str
    mode: str
    protocol: dict[str, Any]
    tokenizer: str
    tokens: int
    bits: Doubles
    sizes: Doubles
    artifact_sha256: str | None
    artifact_bytes: int | None
    seed: int | None

    @property
    def bpb(self) -> float:
        """Bits per byte, pooled over documents."""
        return math.fsum(self.bits) / math.fsum(self.sizes)


def protocol_differences(a: SavedScore, b: SavedScore) -> Iterator[str]:
    """What differs between two scores' protocols: "stride 64 and 128", "adapt.lr 0.1 and 0.2"."""
    yield from _differences(a.protocol, b.protocol, "")


def taken_differences(a: SavedScore, b: SavedScore) -> Iterator[str]:
    """What differs in all that a score is of but the model: corpus, mode and protocol."""
    if a.corpus_sha256 != b.corpus_sha256:
        yield f"corpus {a.corpus} {a.corpus_sha256[:12]} and {b.corpus} {b.corpus_sha256[:12]}"
    yield from _differences({**a.protocol, "mode": a.mode}, {**b.protocol, "mode": b.mode}, "")


def _differences(a: Mapping[str, Any], b: Mapping[str, Any], where: str) -> Iterator[str]:
    for key in sorted((a.keys() | b.keys()) - NO_PART):
        one, other = a.get(key), b.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from _differences(one, other, f"{where}{key}.")
        elif one != other:
            names = (x.get("kind", x) if isinstance(x, Mapping) else x for x in (one, other))
            yield where + key + " " + " and ".join(map(str, names))


def read_score(path: str | os.PathLike[str]) -> SavedScore:
    """The score in a file, or in `score.json` of a run directory.

    Raises `ScoreError` for anything that is not a whole, consistent score with its documents.
    """
    place = Path(path)
    run = place if place.is_dir() else None
    if run is not None:
        place = run / "score.json"
        if not place.is_file():
            artifact = run / "model.golf"
            first = "" if artifact.is_file() else f"tokgolf export {run}, then "
            raise ScoreError(
                f"{run} holds no score.json; make one of its artifact: {first}tokgolf score "
                f"{artifact} --save {place}"
            )
    values = read_json_object(place)
    try:
        return _parsed(values, os.fspath(path), None if run is None else _seed(run))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ScoreError(
            f"{place} is no score with its documents, as tokgolf score --save writes it: {error!r}"
        ) from error


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file's object. Raises `ScoreError` for a file that holds no such thing."""
    with open(path, "rb") as file:
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise ScoreError(f"{path} has over {MAX_FILE:,} bytes; no score is so long")
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ScoreError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ScoreError(f"{path} holds a JSON {type(values).__name__}, not an object")
    return values


def _seed(run: Path) -> int | None:
    try:
        seed = read_toml(run / "config.toml").get("seed")
    except (OSError, ConfigError):
        return None  # a seed is a help, not a need
    return seed if type(seed) is int else None


def _parsed(values: dict[str, Any], name: str, seed: int | None) -> SavedScore:
    bits = _numbers(values, "document_bits")
    sizes = _numbers(values, "document_bytes")
    tokens, size = _count(values, "tokens"), _count(values, "bytes")
    if len(bits) != len(sizes) or len(bits) != _count(values, "documents"):
        raise ValueError(
            f"{len(bits):,} document_bits, {len(sizes):,} document_bytes, "
            f"{values['documents']:,} documents"
        )
    if not size or not tokens:
        raise ValueError(f"{size:,} bytes and {tokens:,} tokens")
    if math.fsum(sizes) != size:
        raise ValueError(f"document_bytes sum to {math.fsum(sizes):,.0f}, bytes is {size:,}")
    found = math.fsum(bits) / size
    if not math.isclose(found, float(values["bpb"]), rel_tol=SUM_TOLERANCE):
        raise ValueError(f"document_bits give {found:.9f} bpb, bpb is {values['bpb']}")
    artifact_bytes = values["artifact_bytes"]
    return SavedScore(
        name=name,
        corpus=_text(values, "corpus"),
        corpus_sha256=_text(values, "corpus_sha256"),
        mode=_text(values, "mode"),
        protocol=_protocol(values),
        tokenizer=_text(values, "tokenizer"),
        tokens=tokens,
        bits=bits,
        sizes=sizes,
        artifact_sha256=None
        if values["artifact_sha256"] is None
        else str(values["artifact_sha256"]),
        artifact_bytes=None if artifact_bytes is None else _count(values, "artifact_bytes"),
        seed=seed,
    )


def _protocol(values: dict[str, Any]) -> dict[str, Any]:
    """How the score was taken; older files say no more than the stride."""
    found = values.get("protocol", {"stride": values.get("stride")})
    if not isinstance(found, dict):
        raise ValueError(f"protocol is {found!r:.80}, not an object")
    return dict(found)


def _numbers(values: dict[str, Any], key: str) -> Doubles:
    found = np.array(values[key], np.float64)
    if found.ndim != 1 or not (np.isfinite(found) & (found >= 0)).all():
        raise ValueError(f"{key} is no list of finite numbers from 0 on")
    return found


def _count(values: dict[str, Any], key: str) -> int:
    if type(values[key]) is not int or not 0 <= values[key] < MAX_COUNT:
        raise ValueError(f"{key} is {values[key]!r}, not a count")
    return int(values[key])


def _text(values: dict[str, Any], key: str) -> str:
    if not isinstance(values[key], str):
        raise ValueError(f"{key} is {values[key]!r}, not text")
    return str(values[key])
