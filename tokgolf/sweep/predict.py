"""What cells that nobody trained would give, from those that somebody did.

Unlike the sweep, it trains nothing: it asks the law (`law.py`) for bpb at a byte cap, for the cell
that would tell most about it for its cost, and how the law does on cells that it was not shown.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tokgolf.errors import ConfigError
from tokgolf.sweep.cells import RESULTS_FILE, Cell, Sweep, read_sweep, write_sweep
from tokgolf.sweep.law import LEVELS, Doubles, Law
from tokgolf.sweep.points import (
    BUDGET_AXES,
    SIZE_AXES,
    Effects,
    Point,
    Settings,
    data_of,
    distinct,
    gather,
    seed_variance,
)

FEWEST = 4  # settings: fewer say less than the priors
HELD_OUT = 0.2  # of the settings, the largest
CAP = 16_000_000  # the challenge's
THIN = 8  # every eighth draw is enough to rank candidates by
NEXT, HELD = "next", "held out"


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """bpb at a setting, with the interval that holds a single run there with 95 %.

    `cell` and `measured` are of the run that was made, if any. `beyond` says how many times
    beyond the largest measured the weights and the tokens are, at least 1 each.
    """

    what: str
    settings: Settings
    label: str
    params: int
    tokens: int
    bpb: float
    low: float
    high: float
    beyond: tuple[float, float]
    cell: str | None = None
    measured: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the measured bpb is within the interval."""
        return self.measured is not None and self.low <= self.measured <= self.high

    def entry(self) -> dict[str, Any]:
        """As in a sweep's `results.json`; settings that no cell has yet may hold params, tokens."""
        names = ("settings", "cell", "bpb", "low", "high", "measured", "what")
        return {name: getattr(self, name) for name in names}

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        beyond = {"params": self.beyond[0], "tokens": self.beyond[1]}
        more = {"params": self.params, "tokens": self.tokens, "beyond": beyond}
        return {**self.entry(), "label": self.label, **more}


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """All that the cells say: the law's terms as (low, middle, high), `notes` on what they do not
    say, each setting predicted from all others and the largest from the smaller, best first what
    the cap would give, and the cell to run next with the reason."""

    points: tuple[Point, ...]
    effects: Effects
    law: Law
    terms: Mapping[str, tuple[float, float, float]]
    notes: tuple[str, ...]
    left_out: tuple[Prediction, ...]
    held_out: tuple[Prediction, ...]
    at_cap: tuple[Prediction, ...]
    cap: int
    next_cell: Prediction | None
    reason: str

    @property
    def predictions(self) -> list[Prediction]:
        """Those that a sweep's `results.json` keeps."""
        return [*self.at_cap, *([self.next_cell] if self.next_cell else []), *self.held_out]

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "settings": len(self.points),
            "runs": sum(len(point.cells) for point in self.points),
            "law": {name: list(values) for name, values in self.terms.items()},
            "notes": list(self.notes),
            "cap": self.cap,
            "predictions": [each.as_dict() for each in self.at_cap],
            "next": None if self.next_cell is None else self.next_cell.as_dict(),
            "reason": self.reason,
            "left_out": [each.as_dict() for each in self.left_out],
            "held_out": [each.as_dict() for each in self.held_out],
        }


def forecast(
    cells: Iterable[Cell],
    *,
    cap: int = CAP,
    tokens: float | None = None,
    vocab_size: int | None = None,
    float_model: bool = False,
) -> Forecast:
    """Fit the law to finished cells and ask it.

    `cap` is in bytes of the artifact, `tokens` what training at the cap sees (default: the most
    that was measured), `vocab_size` one for all that is predicted there; `float_model` takes bpb
    before export. Raises `ConfigError` for fewer than `FEWEST` settings.
    """
    points = gather(cells, float_model=float_model)
    if len(points) < FEWEST:
        raise ConfigError(
            f"{len(points)} settings are measured, a prediction needs {FEWEST}; run more cells "
            "that differ in size or training tokens"
        )
    effects = Effects(points)
    law = Law(data_of(points, effects))
    asker = _Asker(points, effects, law)
    targets, bytes_note = _at_cap(asker, cap, tokens, vocab_size)
    following, reason = _next(asker, targets[0], cap)
    return Forecast(
        points=tuple(points),
        effects=effects,
        law=law,
        terms={name: _ends(values) for name, values in law.terms().items()},
        notes=(*_notes(points, effects), bytes_note),
        left_out=tuple(asker.measured("left out", points, law.left_out())),
        held_out=tuple(_held_out(asker)),
        at_cap=tuple(targets),
        cap=cap,
        next_cell=following,
        reason=reason,
    )


def _ends(values: Doubles) -> tuple[float, float, float]:
    low, middle, high = np.quantile(values, LEVELS)
    return float(low), float(middle), float(high)


@dataclass(frozen=True)
class _Asker:
    """A fitted law and what it was fitted to."""

    points: Sequence[Point]
    effects: Effects
    law: Law

    def ask(
        self,
        what: str,
        settings: Sequence[Settings],
        sizes: Sequence[float],
        tokens: Sequence[float],
    ) -> list[Prediction]:
        """Predictions of single runs that were not measured."""
        x, y = np.array(sizes, dtype=np.float64), np.array(tokens, dtype=np.float64)
        noise = np.full(len(x), seed_variance(self.points))
        found = self.law.predict(x, y, self.effects.columns(settings), seed_variance=noise)
        return [
            self._prediction(what, each, round(n), round(d), quantiles)
            for each, n, d, quantiles in zip(settings, x, y, found.T, strict=True)
        ]

    def measured(self, what: str, points: Sequence[Point], found: Any) -> list[Prediction]:
        """Predictions of points, from quantiles (3, points), beside what was measured."""
        return [
            replace(
                self._prediction(what, point.settings, point.params, point.tokens, quantiles),
                cell=point.cells[0].id,
                measured=point.bpb,
            )
            for point, quantiles in zip(points, found.T, strict=True)
        ]

    def _prediction(
        self, what: str, settings: Settings, params: int, tokens: int, quantiles: Any
    ) -> Prediction:
        low, middle, high = map(float, quantiles)
        data = self.law.data
        return Prediction(
            what=what,
            settings=settings,
            label=self.effects.label(settings),
            params=params,
            tokens=tokens,
            bpb=middle,
            low=low,
            high=high,
            beyond=(
                max(1.0, params / float(data.sizes.max())),
                max(1.0, tokens / float(data.tokens.max())),
            ),
        )


def bytes_per_weight(points: Sequence[Point]) -> tuple[float, float]:
    """Bytes that do not grow with the weights, and bytes a weight, of measured artifacts.

    A line through the artifacts if they have two sizes that differ by half and it makes sense;
    else all bytes of the largest are put down to its weights, which is too many for a larger one.
    Raises `ConfigError` if no artifact was measured.
    """
    some = [(point.params, point.artifact_bytes) for point in points if point.artifact_bytes]
    if not some:
        raise ConfigError("no cell has artifact_bytes, so nobody knows how many weights fill a cap")
    sizes, artifacts = np.array(some, dtype=np.float64).T
    if sizes.max() >= 1.5 * sizes.min():
        slope, fixed = np.polyfit(sizes, artifacts, 1)
        if slope > 0 and 0 <= fixed <= artifacts.min():
            return float(fixed), float(slope)
    largest = int(np.argmax(sizes))
    return 0.0, float(artifacts[largest] / sizes[largest])


def _at_cap(
    asker: _Asker, cap: int, tokens: float | None, vocab_size: int | None
) -> tuple[list[Prediction], str]:
    """What every kind that was measured would give if it filled the cap, best first."""
    kinds: dict[tuple[str, ...], list[Point]] = {}
    for point in asker.points:
        kinds.setdefault(asker.effects.kind(point.settings), []).append(point)
    seen = tokens or max(point.tokens for point in asker.points)
    settings, sizes = [], []
    for own in kinds.values():
        same = [point for point in own if point.artifact_bytes] or asker.points
        if not any(point.artifact_bytes for point in asker.points):
            rate, fixed = 0.5, 0.0  # four bits a weight, and nothing else
        else:
            fixed, rate = bytes_per_weight(same)
        if fixed >= cap:
            raise ConfigError(
                f"{fixed:,.0f} bytes do not grow with the weights, the cap is {cap:,}; raise --at"
            )
        sizes.append((cap - fixed) / rate)
        kept = {k: v for k, v in own[0].settings.items() if k not in SIZE_AXES | BUDGET_AXES}
        changed = {} if vocab_size is None else {"vocab_size": vocab_size}
        settings.append({**kept, **changed, "params": round(sizes[-1]), "tokens": round(seen)})
    found = asker.ask(f"at {cap / 1e6:g} MB", settings, sizes, [seen] * len(sizes))
    known = any(point.artifact_bytes for point in asker.points)
    note = (
        f"{cap:,} bytes hold {min(sizes):,.0f} to {max(sizes):,.0f} weights, by what was measured"
        if known
        else f"no artifact was measured: {cap:,} bytes taken for {sizes[0]:,.0f} weights of 4 bits"
    )
    return sorted(found, key=lambda each: each.bpb), note


def _next(asker: _Asker, target: Prediction, cap: int) -> tuple[Prediction | None, str]:
    """The cell that narrows the interval at the target most for its cost."""
    points, effects, law = asker.points, asker.effects, asker.law
    candidates = list(_candidates(points, effects))
    if not candidates:
        return None, "every cell of at most twice the largest one's cost is measured"
    rate = [point.seconds / point.work for point in points if point.seconds]
    least = min((point.seconds for point in points if point.seconds), default=0.0)
    work = np.array([float(size) * amount for _, size, amount in candidates])
    cost = np.maximum(work * float(np.median(rate)), least) if rate else work
    gain = law.worth(
        (target.params, target.tokens, effects.columns([target.settings])),
        (
            np.array([size for _, size, _ in candidates], dtype=np.float64),
            np.array([amount for _, _, amount in candidates], dtype=np.float64),
            effects.columns([settings for settings, _, _ in candidates]),
        ),
        seed_variance=seed_variance(points),
        thin=THIN,
    )
    best = int(np.argmax(gain / cost))
    settings, size, amount = candidates[best]
    (found,) = asker.ask(NEXT, [settings], [size], [amount])
    price = f"about {cost[best]:,.0f} s" if rate else f"{work[best]:.2g} weights times tokens"
    reason = (
        f"of {len(candidates):,} cells it narrows the interval at {cap / 1e6:g} MB most for its "
        f"cost: {100 * gain[best]:.1f} % of the variance for {price}"
    )
    kind = effects.kind(found.settings)
    same = [p for p in points if p.artifact_bytes and effects.kind(p.settings) == kind]
    if "params" in settings and same:  # no axis of a sweep: the cap is what decides the weights
        fixed, each = bytes_per_weight(same)
        reason += f"; with equal bytes, a cap of about {round(fixed + each * size, -3):,.0f}"
    return found, reason


def _candidates(
    points: Sequence[Point], effects: Effects
) -> Iterator[tuple[dict[str, Any], int, int]]:
    """Settings, weights and tokens of cells nobody ran: every kind at every size and amount that
    was measured and at twice the largest, if it costs at most twice what the costliest did."""
    shapes: dict[str, tuple[dict[str, Any], int]] = {}
    largest = 0
    for point in sorted(points, key=lambda point: point.params):
        if point.params >= 1.1 * largest:  # the law hardly tells closer ones apart
            largest = point.params
            shapes[_shape(point)] = _only(point, SIZE_AXES), largest
    amounts = {point.tokens: _only(point, BUDGET_AXES) for point in points}
    kinds = {effects.kind(point.settings): point for point in points}
    own = {(effects.kind(point.settings), _shape(point)): point.params for point in points}
    measured = {(effects.kind(p.settings), _shape(p), p.tokens) for p in points}
    least = {kind: min(size for (other, _), size in own.items() if other == kind) for kind in kinds}
    limit = 2.01 * max(point.work for point in points)
    twice, most = 2 * max(point.params for point in points), 2 * max(amounts)
    shapes[f"{twice}"] = {"params": twice}, twice
    amounts[most] = {"tokens": most}
    for (kind, kept), (shape, (trunk, size)), (amount, budget) in itertools.product(
        kinds.items(), shapes.items(), amounts.items()
    ):
        known = own.get((kind, shape))
        if (kind, shape, amount) in measured or (known or size) * amount > limit:
            continue
        if not trunk and size < least[kind]:  # its vocabulary alone may weigh more
            continue
        settings = {k: v for k, v in kept.settings.items() if k not in SIZE_AXES | BUDGET_AXES}
        named = trunk or ({} if known else {"params": size})
        yield {**settings, **named, **budget}, known or size, amount


def _only(point: Point, axes: frozenset[str]) -> dict[str, Any]:
    return {axis: value for axis, value in point.settings.items() if axis in axes}


def _shape(point: Point) -> str:
    """The trunk's size, or the weights where a sweep did not choose it."""
    trunk = _only(point, SIZE_AXES)
    return json.dumps(trunk, sort_keys=True) if trunk else str(point.params)


def _held_out(asker: _Asker) -> list[Prediction]:
    """The largest settings, by weights times tokens, predicted from all smaller ones."""
    points = asker.points
    count = max(1, int(HELD_OUT * len(points)))
    if len(points) - count < FEWEST:
        return []
    limit = sorted(point.work for point in points)[-count]
    out = np.array([point.work >= limit for point in points])
    if (~out).sum() < FEWEST:
        return []
    law = Law(asker.law.data.without(out))
    some = [point for point, held in zip(points, out, strict=True) if held]
    data = data_of(points, asker.effects)
    found = law.predict(
        data.sizes[out], data.tokens[out], data.effects[out], seed_variance=data.variance[out]
    )
    return replace(asker, law=law).measured(HELD, some, found)


def _notes(points: Sequence[Point], effects: Effects) -> list[str]:
    """What the cells cannot tell, so that the interval has only the prior for it."""
    notes = []
    for name, values in (
        ("weights", [point.params for point in points]),
        ("training tokens", [point.tokens for point in points]),
    ):
        count = distinct(values)
        if count == 1:
            notes.append(f"one count of {name}: what more give is the prior's, not these cells'")
        elif count == 2:
            notes.append(f"two counts of {name}: how fast their gain fades is the prior's")
    if effects.vocabularies == 1:
        notes.append("one vocabulary: another's effect is the prior's")
    elif effects.vocabularies == 2:
        notes.append("two vocabularies: whether one between or beyond is best is the prior's")
    if seed_variance(points) == 0:
        notes.append("no setting has two seeds: their noise is part of the misfit")
    return notes


def calibration(found: Sequence[Prediction]) -> dict[str, float]:
    """How predictions did: how many `held`, and the mean and largest relative error."""
    errors = [abs(each.bpb / each.measured - 1) for each in found if each.measured]
    return {
        "held": sum(each.holds for each in found),
        "mean_error": float(np.mean(errors)),
        "largest_error": max(errors),
    }


def sweep_among(paths: Sequence[Path]) -> Path:
    """The one sweep among paths, whose `results.json` predictions go to.

    Raises `ConfigError` for none or several.
    """
    found = [path for path in paths if path.name == RESULTS_FILE or (path / RESULTS_FILE).exists()]
    if len(found) != 1:
        raise ConfigError(
            f"{len(found)} of {len(paths)} results are sweeps, --save needs one; give its folder"
        )
    return found[0]


def save_predictions(found: Sequence[Prediction], path: Path) -> Sweep:
    """Write predictions into a sweep's `results.json`, and return it as it now is.

    Older ones get the cell and bpb that were measured meanwhile, and stay, to be held against
    them. Those that are still unmeasured make room for the new ones, which know more.
    """
    sweep = read_sweep(path)
    results = {_key(cell.settings): cell for cell in sweep.cells if cell.status == "done"}
    kept = [dict(entry) for entry in sweep.predictions]
    for entry in kept:
        cell = results.get(_key(entry["settings"]))
        if entry["measured"] is None and cell is not None:
            entry.update(cell=cell.id, measured=cell.bpb)
    fresh = [each.entry() for each in found]
    old = [entry for entry in kept if entry["measured"] is not None and entry["what"] != HELD]
    sweep = replace(sweep, predictions=(*old, *fresh))
    write_sweep(sweep, path if path.is_dir() else path.parent)
    return sweep


def _key(settings: Settings) -> str:
    """Settings but for the seed, as text."""
    return json.dumps({k: v for k, v in settings.items() if k != "seed"}, sort_keys=True)
