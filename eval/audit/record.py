"""A record folder: do its claim, its logs and its files say the same?

Unlike `claims.py` this needs no text: every number of submission.json that something else in the
folder also says, or that others of its numbers make, is held against that. What a file does not
say is passed over, as the challenge prescribes no schema.
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokgolf.errors import ConfigError
from tokgolf.eval.audit.claims import (
    CAP,
    SCRIPT,
    SUBMISSION,
    json_object,
    log_pairs,
    rounding,
    short_text,
)
from tokgolf.eval.audit.findings import ERROR, WARNING, Finding

_TOTALS = re.compile(r"Total submission size\b[^:\n]{0,40}:\s*(\d{1,18})")
_CODES = re.compile(r"Code size\b[^:\n]{0,40}:\s*(\d{1,18})")
_MEANS = ("val_loss", "val_bpb")
_DELTAS = {"delta_vs_baseline_bpb": "val_bpb", "delta_vs_baseline_nats": "val_loss"}


def record_findings(folder: Path) -> list[Finding]:
    """What of a record folder's claim its own logs, files and numbers do not bear out.

    Raises `ConfigError` for a folder without a submission.json that can be read.
    """
    values = _read(folder / SUBMISSION)
    results = values.get("seed_results")
    seeds = results if isinstance(results, dict) else {}
    seeds = {name: each for name, each in seeds.items() if isinstance(each, dict)}
    logs = {name: text for name in seeds if (text := _log(folder, name)) is not None}
    found = [*_means(values, seeds), *_differences(values)]
    for name, each in seeds.items():
        found += _seed(folder, name, each, logs.get(name))
    return [*found, *_bytes(folder, values, seeds, logs)]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(
            f"{path.parent} holds no {SUBMISSION}; give a record folder, or a claim's file"
        )
    return json_object(path, short_text(path))


def _log(folder: Path, seed: str) -> str | None:
    """All logs whose names have the seed's number, in folders below too.  "42" -> train_seed42.log

    Some records keep the log of the training and that of the score apart.
    """
    named = re.compile(rf"(?<!\d){re.escape(seed)}(?!\d)")
    paths = sorted(path for path in folder.rglob("*.log") if named.search(path.stem))
    return "\n".join(map(short_text, paths)) if paths else None


def _number(values: dict[str, Any], key: str) -> float | None:
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e18:
        return None
    return float(value)


def _means(values: dict[str, Any], seeds: dict[str, dict[str, Any]]) -> Iterator[Finding]:
    for key in _MEANS:
        claimed, each = _number(values, key), [_number(result, key) for result in seeds.values()]
        known = [value for value in each if value is not None]
        if claimed is None or not known or len(known) < len(each):
            continue
        mean = sum(known) / len(known)
        if abs(claimed - mean) > rounding(claimed) + max(map(rounding, known)) + 1e-12:
            yield _finding(
                "mean-is-not-the-seeds'",
                f"{key} is {claimed!r}, the {len(known)} seed_results have the mean {mean:.10g}",
                "claim the mean of all seeds",
            )


def _differences(values: dict[str, Any]) -> Iterator[Finding]:
    for key, ours in _DELTAS.items():
        before = _number(values, f"comparison_baseline_{key.rpartition('_')[2]}")
        delta, value = _number(values, key), _number(values, ours)
        if before is None or delta is None or value is None:
            continue
        if abs(value - before - delta) > sum(map(rounding, (value, before, delta))) + 1e-12:
            yield _finding(
                "claim-contradicts-itself",
                f"{key} is {delta!r}, {ours} {value!r} less the baseline's {before!r} is "
                f"{value - before:.10g}",
                "take the difference of the two claimed numbers",
            )


def _seed(folder: Path, name: str, result: dict[str, Any], log: str | None) -> Iterator[Finding]:
    loss, bpb = (_number(result, key) for key in _MEANS)
    pairs = [] if log is None else log_pairs(log)
    if pairs and bpb is not None:
        near = [pair for pair in pairs if abs(pair.bpb - bpb) <= rounding(bpb) + 1e-8]
        if loss is not None:
            near = [pair for pair in near if abs(pair.loss - loss) <= rounding(loss) + 1e-8]
        if not near:
            last = pairs[-1]
            yield _finding(
                "log-says-otherwise",
                f"seed {name} has val_loss {loss!r}, val_bpb {bpb!r}; no line of its logs has "
                f"these, the last says {last.loss!r}, {last.bpb!r}",
                "take both numbers from the log's last line",
            )
    file, hashed = result.get("artifact"), result.get("artifact_sha256")
    if not isinstance(file, str) or not isinstance(hashed, str):
        return
    place = folder / Path(file).name
    own = "not there"
    if place.is_file():
        with open(place, "rb") as opened:
            own = hashlib.file_digest(opened, "sha256").hexdigest()
    if own != hashed:
        yield _finding(
            "artifact-is-another",
            f"seed {name}'s artifact {file} is {own[:12]}, the claim has {hashed[:12]}",
            "submit the file that was scored",
        )


def _bytes(
    folder: Path,
    values: dict[str, Any],
    seeds: dict[str, dict[str, Any]],
    logs: dict[str, str],
) -> Iterator[Finding]:
    """Whether claimed bytes are those of the files, of the logs, and of each other."""
    total, code = _number(values, "bytes_total"), _number(values, "bytes_code")
    script = folder / SCRIPT
    told = {int(size) for log in logs.values() for size in _CODES.findall(log)}
    if code is not None and script.is_file() and code != (size := script.stat().st_size):
        same = int(code) in told  # packed as the challenge counts it, and the log says so
        yield _finding(
            "bytes-are-not-the-files'",
            f"bytes_code is {code:,.0f}, {SCRIPT} has {size:,}"
            + (", the logs count as the claim does" if same else ""),
            "count the bytes of the files as they are",
            severity=WARNING if same else ERROR,
        )
    sizes = []
    for name, result in seeds.items():
        claimed, file = _number(result, "artifact_bytes"), result.get("artifact")
        if claimed is None:
            continue
        sizes.append(claimed)
        place = folder / Path(file).name if isinstance(file, str) else None
        if place is not None and place.is_file() and script.is_file():
            size = place.stat().st_size + script.stat().st_size
            if claimed != size:
                yield _finding(
                    "bytes-are-not-the-files'",
                    f"seed {name} claims {claimed:,.0f} bytes, {SCRIPT} and {file} have {size:,}",
                    "count the bytes of the files as they are",
                )
        totals = [int(size) for size in _TOTALS.findall(logs.get(name, ""))]
        if totals and claimed not in totals:
            yield _finding(
                "log-says-otherwise",
                f"seed {name} claims {claimed:,.0f} bytes, its log says {totals[-1]:,}",
                "take the bytes from the log's last line",
            )
    if total is not None and sizes and total != max(sizes):
        mean = abs(total - sum(sizes) / len(sizes)) <= 1  # some claim that; a cap holds each
        yield _finding(
            "claim-contradicts-itself",
            f"bytes_total is {total:,.0f}, the largest seed has {max(sizes):,.0f}"
            + (", the mean is the former" if mean else ""),
            "claim the bytes of the largest",
            severity=WARNING if mean else ERROR,
        )
    most = max([*sizes, *([] if total is None else [total])], default=0)
    if most > CAP:
        own = most <= (_number(values, "cap") or 0)  # no record, and it does not say that it is one
        yield _finding(
            "over-the-cap",
            f"{most:,.0f} bytes are claimed, {most - CAP:,.0f} over the cap of {CAP:,}"
            + (", under a cap of its own" if own else ""),
            "export to fewer bytes",
            severity=WARNING if own else ERROR,
        )


def _finding(name: str, evidence: str, advice: str, severity: str = ERROR) -> Finding:
    return Finding(name=name, severity=severity, evidence=evidence, factor=None, advice=advice)
