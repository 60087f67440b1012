"""A claimed score: do its own numbers fit each other, and the bytes that its text has?

val_loss / (ln 2 val_bpb) is the bytes a token that the claim counted. It is one value for a
tokenizer and a text, whatever the model; so two pairs of one claim must agree, and both must agree
with what the tokenizer makes of the text.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from tokgolf.errors import ConfigError
from tokgolf.eval.audit.findings import ERROR, WARNING, Finding

# Bytes of the challenge's 50,000 validation documents, normalised (openai/parameter-golf
# #1314, #1804, #2086 agree).
CHALLENGE_BYTES = 151_080_891
SAME_TEXT = 1e-3  # windows cut at the end differ by less
MAX_BYTES_A_TOKEN = 16
PART = 0.9  # with fewer bytes than that of the whole text, it is rather not all there
WINDOW = 4096  # up to so many targets may be cut off at the end
OTHER_TEXT = 0.025  # 2.5 MB of the validation text differ from all of it by 1.0 to 1.9 %
MAX_BYTES = 1 << 26
SUBMISSION, SCRIPT = "submission.json", "train_gpt.py"
CAP = 16_000_000  # the challenge's, of script and artifact together
MAX_TARGETS = 1 << 30
_PAIR = re.compile(r"val_loss:\s*([0-9.]{1,40})\s+val_bpb:\s*([0-9.]{1,40})")
_TOKENS = re.compile(r"(?:val_tokens:\s*|val_loader\b.{0,400}?\btokens:)(\d+)")
_TOKEN_KEYS = ("scored_tokens", "targets", "val_tokens", "tokens")
_BYTE_KEYS = ("scored_bytes", "val_bytes", "bytes")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A loss in nats a token and bits a byte that belong together; `slack` is from rounding."""

    label: str
    loss: float
    bpb: float
    slack: float

    @property
    def bytes_per_token(self) -> float:
        """What the pair says the bytes a token are."""
        return self.loss / (math.log(2) * self.bpb)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What somebody says: pairs, how many targets were scored, of how many bytes, in which
    windows (first target, end)."""

    pairs: list[Pair]
    targets: int | None = None
    bytes: int | None = None
    windows: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What the text has: bytes a target; and how many targets, if it is the very text scored."""

    name: str
    bytes_per_token: float
    targets: int | None
    tolerance: float
    counted: float = 1.0
    """The factor of the tokenizer's table on that text."""
    whole: bool = False
    """Whether its bytes a token are those of the whole text over the claim's own targets."""


def pair(label: str, loss: float | str, bpb: float | str) -> Pair:
    """A pair of numbers as they are written. Raises `ConfigError` if they can be no scores."""
    try:
        values = float(loss), float(bpb)
    except (ValueError, OverflowError):
        values = math.nan, math.nan
    if not all(math.isfinite(value) and value > 0 for value in values):
        raise ConfigError(
            f"{label} is val_loss {loss!s:.40}, val_bpb {bpb!s:.40}; both are numbers above 0"
        )
    slack = sum(rounding(text) / value for text, value in zip((loss, bpb), values, strict=True))
    return Pair(label=label, loss=values[0], bpb=values[1], slack=slack)


def read_claim(path: Path) -> Claim:
    """The claim in a submission.json (or a folder with one), a score of tokgolf's, or a log.

    Raises `ConfigError` if there is no pair of a loss and bits a byte in it.
    """
    if path.is_dir():
        path = path / SUBMISSION
    text = short_text(path)
    claim = _from_json(path, text) if text.lstrip()[:1] == "{" else _from_log(text)
    if not claim.pairs and not claim.windows:
        raise ConfigError(f"{path} has no val_loss with a val_bpb; give --val-loss and --val-bpb")
    return claim


def short_text(path: Path) -> str:
    """A claim's file, or one that it is held against. Raises `ConfigError` for a long one."""
    with open(path, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path} has over {MAX_BYTES:,} bytes; a claim is a short JSON or a log")
    return data.decode("utf-8", "replace")


def json_object(path: Path, text: str) -> dict[str, Any]:
    """The JSON object that is the text of the file at `path`. Raises `ConfigError` for others."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no sound JSON ({error})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a JSON {type(values).__name__}, not an object")
    return values


def _from_json(path: Path, text: str) -> Claim:
    values = json_object(path, text)
    windows = values.get("windows") or []
    try:
        spans = [(int(first), int(end)) for first, end in windows]
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{path}: windows are pairs of a first target and an end") from error
    return Claim(
        pairs=[*_pairs(values, "")],
        targets=_count(values, _TOKEN_KEYS),
        bytes=_count(values, _BYTE_KEYS),
        windows=spans,
    )


def _pairs(values: dict[str, Any], label: str) -> Iterator[Pair]:
    """Every loss whose bits a byte stand beside it, at any depth; the outermost val_loss last."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _pairs(value, f"{label}{key}.")
    names = {key: f"{key[:-4]}bpb" for key in values if key.endswith("loss")}
    names["nats_per_token"] = "bpb"
    for loss, bpb in sorted(names.items(), key=lambda each: each[0] == "val_loss"):
        if _is_number(values.get(loss)) and _is_number(values.get(bpb)):
            yield pair(f"{label}{bpb}", values[loss], values[bpb])


def _from_log(text: str) -> Claim:
    counts = _TOKENS.findall(text)
    return Claim(pairs=log_pairs(text), targets=int(counts[-1]) if counts else None)


def log_pairs(text: str) -> list[Pair]:
    """Every loss with its bits a byte in a training log, in order."""
    pairs = []
    for line in text.splitlines():
        if match := _PAIR.search(line):
            label = line[: match.start()].split("train_time")[0].strip(" :")[:40] or "val"
            pairs.append(pair(label, match[1], match[2]))
    return pairs


def claim_findings(claim: Claim, reference: Reference | None) -> list[Finding]:
    """What does not hold of a claim; without a reference, only what shows in itself."""
    found = _schedule(claim) + _contradictions(claim)
    if reference is None or not claim.pairs:
        return found
    if reference.targets is not None and claim.targets is not None and not claim.windows:
        found += _how_many(claim.targets, reference)
    # The last is the score: training logs count down to it. All pairs were compared above.
    final = claim.pairs[-1]
    ratio = final.bytes_per_token / reference.bytes_per_token
    if abs(ratio - 1) > reference.tolerance + final.slack:
        found.append(_explained(final, ratio, reference))
    elif reference.tolerance >= OTHER_TEXT and abs(ratio - 1) > SAME_TEXT + final.slack:
        found.append(_loose(claim, ratio, reference))
    return found


def _loose(claim: Claim, ratio: float, reference: Reference) -> Finding:
    """A ratio that is an error if the reference is the very text, and none if it is a sample."""
    return Finding(
        name="claim-held-loosely",
        severity=WARNING,
        evidence=f"{claim.pairs[-1].label} counts {100 * (ratio - 1):+.2f} % bytes a token against "
        f"{reference.name}; up to {100 * reference.tolerance:g} % pass, as it may be of other text",
        factor=None,
        advice="give --tokens, so that it shows whether this is the text that was scored"
        if claim.targets is None
        else "give the very text that was scored, or --challenge if it is the challenge's",
    )


def _explained(final: Pair, ratio: float, reference: Reference) -> Finding:
    """The known mistake whose ratio this is, or else more or fewer bytes."""
    per_token = reference.bytes_per_token
    known = {
        "ln2-twice": math.log(2),
        "nats-called-bits": 1 / math.log(2),
        "tokens-and-bytes-swapped": per_token**-2,
        "bits-a-token": 1 / per_token,
    }
    name = min(known, key=lambda each: abs(math.log(ratio / known[each])))
    small = reference.whole and per_token > MAX_BYTES_A_TOKEN  # so is any ratio
    if small or abs(ratio / known[name] - 1) > reference.tolerance + final.slack:
        name = "bytes-inflated" if ratio > 1 else "bytes-deflated"
    evidence = (
        f"{final.label}: {final.loss:g} nats a token and {final.bpb:g} bpb make "
        f"{final.bytes_per_token:.4f} bytes a token; {reference.name} has {per_token:.4f}"
    )
    if reference.whole and name == "bytes-deflated" and ratio < PART:
        return Finding(
            name="scored-in-part",
            severity=ERROR,
            evidence=f"{evidence}: the targets make {100 * ratio:.3g} % of it",
            factor=None,
            advice="score the whole text",
        )
    if reference.counted != 1 and abs(ratio / reference.counted - 1) <= reference.tolerance:
        evidence += f", times {reference.counted:.4f} as the table counts"
    return Finding(
        name=name,
        severity=ERROR,
        evidence=evidence,
        factor=ratio,
        advice=f"the loss and the text's bytes make {corrected(final, reference):.4f} bpb",
    )


def corrected(final: Pair, reference: Reference) -> float:
    """Bits a byte by the loss and the reference's bytes a token."""
    return final.loss / (math.log(2) * reference.bytes_per_token)


def _contradictions(claim: Claim) -> list[Finding]:
    if not claim.pairs:
        return []
    low = min(claim.pairs, key=lambda each: each.bytes_per_token)
    high = max(claim.pairs, key=lambda each: each.bytes_per_token)
    final = claim.pairs[-1]
    evidence = ""
    if high.bytes_per_token / low.bytes_per_token > 1 + SAME_TEXT + low.slack + high.slack:
        evidence = (
            f"{low.label} ({low.loss:g} nats, {low.bpb:g} bpb) makes {low.bytes_per_token:.4f} "
            f"bytes a token, {high.label} ({high.loss:g}, {high.bpb:g}) {high.bytes_per_token:.4f}"
        )
    elif claim.targets and claim.bytes:
        stated = claim.bytes / claim.targets
        if abs(stated / final.bytes_per_token - 1) > SAME_TEXT + final.slack:
            evidence = (
                f"{claim.bytes:,} bytes of {claim.targets:,} tokens are {stated:.4f} a token, "
                f"{final.label} makes {final.bytes_per_token:.4f}"
            )
    if not evidence:
        return []
    return [
        Finding(
            name="claim-contradicts-itself",
            severity=ERROR,
            evidence=evidence,
            factor=None,
            advice="score all of the text once, and take both numbers from that one run",
        )
    ]


def _how_many(targets: int, reference: Reference) -> list[Finding]:
    """Whether as many targets are scored as there are; the end may be cut to whole windows."""
    there = reference.targets or 0
    if there - max(WINDOW, SAME_TEXT * there) <= targets <= there + 1:
        return []
    more = targets > there
    return [
        Finding(
            name="scored-twice" if more else "scored-in-part",
            severity=ERROR,
            evidence=f"{targets:,} targets are scored, {reference.name} has {there:,}",
            factor=None,
            advice="take a window only if ws + length - stride < targets"
            if more
            else "score the whole text",
        )
    ]


def _schedule(claim: Claim) -> list[Finding]:
    """Which targets the windows pay for twice or never; they must be paid for once."""
    if not claim.windows:
        return []
    if min(min(span) for span in claim.windows) < 0:
        raise ConfigError("a window starts before the first target; targets count from 0")
    if backwards := [span for span in claim.windows if span[0] > span[1]]:
        first, stop = backwards[0]
        raise ConfigError(f"a window starts at target {first} and ends at {stop}; swap the two")
    end = max(max(stop for _, stop in claim.windows), claim.targets or 0)
    if end > MAX_TARGETS:
        raise ConfigError(f"a window ends at target {end}; up to {MAX_TARGETS} can be checked")
    steps = np.zeros(end + 1, np.int64)
    np.add.at(steps, [first for first, _ in claim.windows], 1)
    np.add.at(steps, [stop for _, stop in claim.windows], -1)
    paid = np.cumsum(steps)[:-1]
    found = []
    for name, wrong, how in (
        ("scored-twice", paid > 1, "more than once"),
        ("scored-in-part", paid < 1, "never"),
    ):
        if count := int(wrong.sum()):
            place = int(np.flatnonzero(wrong)[0])
            found.append(
                Finding(
                    name=name,
                    severity=ERROR,
                    evidence=f"{count:,} of {end:,} targets are paid for {how}, the first is "
                    f"target {place:,}",
                    factor=None,
                    advice="let each window pay for what the one before did not reach",
                )
            )
    return found


def _count(values: dict[str, Any], keys: tuple[str, ...]) -> int | None:
    found = (values[key] for key in keys if _is_number(values.get(key)))
    return next((int(value) for value in found if 1 <= value <= MAX_TARGETS), None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def rounding(number: float | str) -> float:
    """Half of the last place that a finite number is written with: "1.2244" -> 0.00005."""
    exponent = Decimal(str(number)).as_tuple().exponent
    return 0.5 * 10.0 ** int(exponent)
