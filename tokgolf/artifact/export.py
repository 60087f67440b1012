"""Export: a run's float model, quantized and entropy-coded, into one file that was read back.

The file should be as large as the cap allows and no larger. Steps are allocated to tensors by
what their error costs (`tokgolf.quantize.allocate`), one factor scales them all, and what counts is
the measured file: a few passes of quantizing and encoding bring it near, one tensor's step takes up
the rest.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokgolf.artifact import container
from tokgolf.artifact.checkpoint import FloatModel, load_run, record_export
from tokgolf.artifact.encode import encode, header_of
from tokgolf.artifact.load import SECTIONS, Artifact, decode_artifact
from tokgolf.codesize import code_bytes
from tokgolf.config import from_dict, to_dict
from tokgolf.corpora import read_shard, shard_files
from tokgolf.errors import ArtifactError, CapError
from tokgolf.files import write_bytes, write_text
from tokgolf.ledger import Ledger, scoring_modules
from tokgolf.quantize import Quantized
from tokgolf.quantize.allocate import (
    COARSEST,
    divergence,
    gaussian_bits,
    log_probs_of,
    probe_tokens,
    sensitivities,
)
from tokgolf.quantize.rows import MOST_BITS, QuantConfig, Rounder, lead_length, quant_config
from tokgolf.quantize.tuning import ROWS_TOKENS, parts_of, round_in_parts

CALIBRATION_TOKENS = 1 << 16
CALIBRATION_ROWS = 16
LANDING = 2048
"""A file this many bytes under its target, or fewer, has landed."""
PASSES = 4
"""Most times that all tensors are quantized."""
TOUCHES = 8
DEFAULT_BITS, LEAST_BITS = 4.0, 1.0
PRIOR = {"matrix": 1.0, "table": 0.5, "vector": 1 / 16}
"""Steps beside the spread where no damage is measured."""
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The step of every stored tensor, and what its error was measured to cost.

    `damage` is nats a token for a step of 1, empty where nothing was measured. `touched` are the
    steps of tensors that were rounded once more after tuning, to fit the file. A plan can be
    written, read and used again: it pins the steps.
    """

    config: QuantConfig
    steps: Mapping[str, float]
    damage: Mapping[str, float]
    touched: Mapping[str, float] = field(default_factory=dict)

    def shares(self) -> dict[str, float]:
        """Each tensor's expected part of the damage."""
        parts = {name: c * self.steps[name] ** 2 for name, c in self.damage.items()}
        return {name: part / sum(parts.values()) for name, part in parts.items()}

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON."""
        return {
            "config": to_dict(self.config),
            "steps": dict(self.steps),
            "damage": dict(self.damage),
            "touched": dict(self.touched),
        }


def read_plan(path: str | os.PathLike[str]) -> Plan:
    """The plan that was written to `path`. Raises `ArtifactError` if it is none."""
    try:
        values = json.loads(Path(path).read_text("utf-8"))
        steps, damage, touched = (
            {str(name): float(value) for name, value in part.items()}
            for part in (values["steps"], values["damage"], values.get("touched", {}))
        )
        config = from_dict(QuantConfig, values["config"], str(path))
        plan = Plan(config=config, steps=steps, damage=damage, touched=touched)
        numbers = [*steps.values(), *damage.values(), *touched.values()]
        if not all(0 < value < math.inf for value in numbers):
            raise ValueError("a step or a damage is not a positive number")
        if not touched.keys() <= steps.keys():
            raise ValueError("a touched tensor has no step")
        if damage and damage.keys() != steps.keys():
            raise ValueError("steps and damage are not of the same tensors")
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise ArtifactError(f"{path} is not a plan written by tokgolf export: {error}") from error
    return plan


class Exported(NamedTuple):
    """An artifact, and the plan that made it."""

    artifact: Artifact
    plan: Plan


def encode_artifact(
    source: FloatModel, config: QuantConfig | None = None, calibration: Iterable[Tensor] = ()
) -> Artifact:
    """The artifact of `export_model`, at `config.bits`."""
    return export_model(source, config, calibration).artifact


def export_model(
    source: FloatModel,
    config: QuantConfig | None = None,
    calibration: Iterable[Tensor] = (),
    *,
    cap: int | None = None,
    plan: Plan | None = None,
    tuning: Iterable[Tensor] = (),
    say: Say = lambda line: None,
) -> Exported:
    """Quantize and encode a model, decode the bytes again, and return what came back.

    With a `cap` and no `config.bits`, the full accounting lands under the cap by `LANDING` bytes at
    the most, unless `MOST_BITS` a weight do not fill it. A `plan` is followed as it is.
    `calibration` are batches of training tokens (rows, time), and so is `tuning`, one an update; by
    default it is the calibration. Raises `ArtifactError` for weights that are not finite,
    `CapError` if the full accounting is over the cap.
    """
    config = plan.config if plan else config or QuantConfig()
    if cap is not None and plan is None:  # at once: what follows takes minutes
        check_room(source, config, cap)
    rounder = Rounder(source.model, config, calibration)
    fit = Fit(source, rounder, say, list(tuning))
    if plan is None:
        fit.settle(cap)
        plan = fit.plan()
    else:
        fit.follow(plan)
    artifact = decode_artifact(fit.data)
    if cap is not None:
        artifact.ledger.check_cap(cap)
    return Exported(artifact, plan)


class Fit:
    """Steps, the integers at these steps, and the file that they make."""

    def __init__(
        self,
        source: FloatModel,
        rounder: Rounder,
        say: Say = lambda line: None,
        tuning: list[Tensor] | None = None,
    ) -> None:
        self.source, self.rounder, self.say = source, rounder, say
        self.tuning = tuning or rounder.batches
        self.header = header_of(
            source.trunk, source.head, trellis=rounder.trellis, lead=rounder.lead
        )
        self.asset = source.tokenizer.asset()
        self.sizes = {name: s.tensor.numel() for name, s in rounder.stored.items()}
        self.frame = frame_bytes(self.header, self.asset)
        self.spreads = {name: max(rounder.spread(name), 2.0**-80) for name in self.sizes}
        self.finest = {name: rounder.finest(name) for name in self.sizes}
        self.damage: dict[str, float] = {}
        self.relative: dict[str, float] = {}
        self.steps: dict[str, float] = {}
        self.tuned: dict[str, float] = {}  # steps at which parts were rounded in turn, if they were
        self.factor = 0.0  # base-2 logarithm of what all steps are scaled by
        self.seen: list[tuple[float, int]] = []  # expected and measured bytes, of every pass
        self.quantized: dict[str, Quantized] = {}
        self.data = b""

    def settle(self, cap: int | None) -> None:
        """Find the steps at which the file has the bits that were asked for, or fills the cap."""
        bits, weights = self.rounder.config.bits, sum(self.sizes.values())
        size, room = (bits or DEFAULT_BITS) * weights / 8, math.inf
        if cap is not None:
            room = cap - fixed_bytes(self.source, self.frame)
        fill = cap is not None and bits is None
        if fill:
            size = min(room, MOST_BITS * weights / 8)
        if self.rounder.config.method == "nearest":
            self.follow_spreads()
        else:
            self.measure()
        self.scale_to(size)
        self.round_all()
        self.approach(size, within=fill)
        least = self.weight_bytes() - landing(size, within=fill)
        # At once, as tuning takes minutes and lands no lower.
        if cap is not None and not fill and least > room:
            decode_artifact(self.data).ledger.check_cap(cap)
        if self.rounder.config.tune:
            self.tune_if_better(size, within=fill)

    def tune_if_better(self, size: float, *, within: bool) -> None:
        """Round in parts, and keep the result if it is nearer to the float model on training
        tokens and as small."""
        before = self.rounder, dict(self.steps), self.quantized, self.data, self.finest
        reached, distance = self.weight_bytes(), self.distance()
        self.tune()
        self.land(size, within=within)
        tuned = self.distance()
        self.say(f"tuned: {tuned:.4f} nats a token from the float model, {distance:.4f} without")
        if tuned >= distance or (within and self.weight_bytes() > max(size, reached)):
            self.say("tuned: it does not pay here, and is left out")
            self.rounder, self.steps, self.quantized, self.data, self.finest = before
            self.tuned = {}

    def distance(self) -> float:
        """KL divergence of the file from the float model on training tokens, in nats a token."""
        model = self.source.model
        tokens = probe_tokens(self.rounder.batches, model.head.shape.vocab_size)
        decoded = decode_artifact(self.data).model.to(next(model.parameters()).device)
        return divergence(decoded, tokens, log_probs_of(model, tokens))

    def plan(self) -> Plan:
        """What was found."""
        steps, config = self.tuned or self.steps, self.rounder.config
        return Plan(
            config=config if self.tuned else replace(config, tune=0),
            steps={name: steps[name] for name in sorted(steps)},
            damage=self.damage,
            touched={n: step for n, step in sorted(self.steps.items()) if step != steps[n]},
        )

    def measure(self) -> None:
        """Find how fine each tensor should be beside the others."""
        self.say(f"measuring the damage of {len(self.sizes)} tensors on training tokens")
        self.damage = sensitivities(self.source.model, self.rounder)
        self.relative = {
            name: math.sqrt(self.sizes[name] / self.damage[name]) for name in self.sizes
        }

    def follow_spreads(self) -> None:
        """Do without measuring: steps in proportion to each tensor's spread."""
        self.relative = {
            name: self.spreads[name] * PRIOR[s.kind] for name, s in self.rounder.stored.items()
        }

    def follow(self, plan: Plan) -> None:
        """Take the steps from a plan."""
        if sorted(plan.steps) != sorted(self.sizes):
            odd = sorted({*plan.steps} ^ {*self.sizes})[0]
            raise ArtifactError(f"the plan is not of this run: only one of them has {odd}")
        self.steps = dict(plan.steps)
        if not plan.config.tune:
            self.round_all()
            return
        self.tune()
        for name, step in plan.touched.items():
            self.change(name, step)
        self.pack()

    def tune(self) -> None:
        """Quantize in parts, tuning what is left, at the steps that were found."""
        self.tuned = dict(self.steps)
        self.rounder, self.quantized = round_in_parts(
            self.source.model, self.rounder, self.steps, self.tuning, say=self.say
        )
        self.finest = {name: self.rounder.finest(name) for name in self.sizes}
        self.pack()

    def steps_at(self, factor: float) -> dict[str, float]:
        """Steps at a common factor, each within what its tensor can use."""
        return {name: self.bounded(name, self.relative[name] * 2**factor) for name in self.sizes}

    def bounded(self, name: str, step: float) -> float:
        """The nearest step that a tensor can use."""
        coarsest = COARSEST[self.rounder.stored[name].kind] * self.spreads[name]
        return max(min(step, coarsest), self.finest[name])

    def expected(self, factor: float) -> float:
        """About the bytes of the weights at a factor, as if they were Gaussian."""
        steps = self.steps_at(factor)
        bits = (
            size * gaussian_bits(steps[name] / self.spreads[name])
            for name, size in self.sizes.items()
        )
        return sum(bits) / 8

    def scale_to(self, size: float) -> None:
        """Choose the factor at which the expected size is `size`."""
        low, high = -128.0, 128.0  # log2: a larger factor is a smaller file
        for _ in range(50):
            self.factor = (low + high) / 2
            low, high = (
                (self.factor, high) if self.expected(self.factor) > size else (low, self.factor)
            )
        self.steps = self.steps_at(self.factor)

    def round_all(self) -> None:
        """Quantize every tensor and make the file."""
        self.quantized = {n: self.rounder.quantize(n, step) for n, step in self.steps.items()}
        self.pack()

    def pack(self) -> None:
        """Make the file."""
        stored = self.source.model.stored()
        sections = encode(stored, lambda s: self.quantized[s.name], self.rounder.trellis)
        self.data = container.pack(self.header, {"tokenizer": self.asset, **sections})

    def weight_bytes(self) -> int:
        """Bytes of the file that depend on the steps."""
        return len(self.data) - self.frame

    def approach(self, size: float, *, within: bool) -> None:
        """Bring the bytes of the weights to `size`: not over it and nearly there if `within`,
        else as near as a few passes come."""
        slack = landing(size, within)
        least = math.inf
        best = self.steps, self.quantized, self.data
        passes = 1
        for _ in range(PASSES + TOUCHES):
            off = self.weight_bytes() - size
            miss = math.inf if within and off > 0 else abs(off)
            if miss < least:
                least, best = miss, (dict(self.steps), dict(self.quantized), self.data)
            if miss <= slack:
                break
            if passes < PASSES and not (within and abs(off) < 0.002 * size):
                self.say(f"pass {passes}: {self.weight_bytes():,} of {size:,.0f} bytes for weights")
                passes += 1
                before = self.steps
                self.seen.append((self.expected(self.factor), self.weight_bytes()))
                self.scale_to(self.aim(size - slack / 2 if within else size))
                if before == self.steps:  # every tensor is at the end of its range
                    break
                self.round_all()
            elif not within or not self.touch(off + slack / 2):
                break
        if math.isfinite(least):
            self.steps, self.quantized, self.data = best
        self.say(f"pass {passes}: {self.weight_bytes():,} of {size:,.0f} bytes for weights")

    def aim(self, size: float) -> float:
        """The expected size at which the measured one should be `size`: between those of the
        nearest passes on both sides, else in proportion to the nearest pass."""
        sides = [p for p in self.seen if p[1] <= size], [p for p in self.seen if p[1] > size]
        below, above = max(sides[0], default=None), min(sides[1], default=None)
        if below is None or above is None:
            expected, measured = below or above or (size, size)
            return expected * size / measured
        share = (size - below[1]) / (above[1] - below[1])
        return below[0] + share * (above[0] - below[0])

    def touch(self, off: float) -> bool:
        """Change the step of one tensor to lose `off` bytes (or to use as many, if below 0).

        The smallest one that can, else the largest; False if all are at the end of their range.
        """
        steps = {
            name: self.steps[name] * 2 ** max(min(8 * off / self.sizes[name], 0.5), -0.5)
            for name, stored in self.rounder.stored.items()
            if stored.kind != "vector"
        }
        able = [name for name, step in steps.items() if step == self.bounded(name, step)]
        if not able:
            return False
        enough = [name for name in able if self.sizes[name] >= 16 * abs(off)]
        name = min(enough, key=self.sizes.__getitem__, default="")
        name = name or max(able, key=self.sizes.__getitem__)
        self.change(name, steps[name])
        self.pack()
        return True

    def change(self, name: str, step: float) -> None:
        """Round one tensor at another step."""
        self.steps[name] = step
        self.quantized[name] = self.rounder.quantize(name, step)

    def land(self, size: float, *, within: bool) -> None:
        """After tuning: bring the bytes of the weights to `size` by single tensors, not over it if
        `within`."""
        slack = landing(size, within)
        for _ in range(TOUCHES):
            off = self.weight_bytes() - size
            near = -slack <= off <= (0 if within else slack)
            if near or not self.touch(off + slack / 2 if within else off):
                break
        self.say(f"tuned: {self.weight_bytes():,} of {size:,.0f} bytes for weights")


def frame_bytes(header: dict[str, Any], asset: bytes) -> int:
    """Bytes of a file with empty weight sections."""
    return len(container.pack(header, {**dict.fromkeys(SECTIONS, b""), "tokenizer": asset}))


def fixed_bytes(source: FloatModel, frame: int) -> int:
    """Bytes of the full accounting that no step changes."""
    return code_bytes(scoring_modules(source.model, source.tokenizer)).packed + frame


def check_room(source: FloatModel, config: QuantConfig, cap: int) -> None:
    """Raise `CapError` if the weights cannot be under the cap, at `config.bits` or at all."""
    width = source.trunk.d_model
    lead = list(range(width))[-lead_length(width) :]
    header = header_of(source.trunk, source.head, trellis=config.method == "trellis", lead=lead)
    fixed = fixed_bytes(source, frame_bytes(header, source.tokenizer.asset()))
    weights = sum(s.tensor.numel() for s in source.model.stored() if s.kind != "codes")
    bits = config.bits or LEAST_BITS
    least = int(bits * weights / 8)
    # An asked-for size is met within a part of a percent.
    if cap < fixed + (least if config.bits is None else 0.98 * least):
        way = "raise the cap, or train a smaller trunk, vocabulary or head"
        raise CapError(
            f"no artifact of this run is under the cap of {cap:,} bytes: code, tokenizer and "
            f"frame take {fixed:,}, its {weights:,} weights at least {least:,} (at {bits} bits); "
            + (way if config.bits is None else "leave out --bits to fill the cap, or " + way)
        )


def landing(size: float, within: bool) -> float:
    """How many bytes are near enough: under a size that must not be exceeded, or beside one."""
    return min(LANDING, max(int(size) >> 10, 256)) if within else 0.002 * size


def calibration_tokens(run: Path, source: FloatModel) -> Iterator[Tensor]:
    """Batches of windows spread evenly over the first shard of a run's training tokens."""
    shard, length = _first_shard(run, source), source.trunk.sequence_length
    count = max(1, min(CALIBRATION_TOKENS, len(shard)) // length)
    starts = np.linspace(0, len(shard) - length, count).astype(np.int64)
    yield from _windows(shard, starts, length, CALIBRATION_ROWS)


def tuning_tokens(run: Path, source: FloatModel, updates: int) -> Iterator[Tensor]:
    """As many batches as `updates` after each part need, from all over that shard."""
    shard, length = _first_shard(run, source), source.trunk.sequence_length
    rows = max(1, ROWS_TOKENS // length)
    parts = len(parts_of(s for s in source.model.stored() if s.kind != "codes"))
    starts = np.linspace(0, len(shard) - length, rows * updates * (parts - 1)).astype(np.int64)
    yield from _windows(shard, np.random.default_rng(0).permutation(starts), length, rows)


def _first_shard(run: Path, source: FloatModel) -> NDArray[np.uint16]:
    folder = run / "tokens"
    paths = shard_files(folder, "train") if folder.is_dir() else []
    if not paths:
        raise ArtifactError(
            f"{folder} holds no training tokens to calibrate on; use --method nearest"
        )
    return read_shard(paths[0], fingerprint=source.tokenizer.fingerprint)


def _windows(
    shard: NDArray[np.uint16], starts: NDArray[np.int64], length: int, rows: int
) -> Iterator[Tensor]:
    for first in range(0, len(starts), rows):
        block = [shard[start : start + length] for start in starts[first : first + rows]]
        yield torch.from_numpy(np.stack(block).astype(np.int64))


def export_run(
    run: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    cap: int,
    config: QuantConfig | None = None,
    plan: Plan | None = None,
    device: str = "cpu",
    say: Say = lambda line: None,
) -> tuple[Ledger, Plan]:
    """Write the latest checkpoint of `run` as an artifact to `path`, and its plan beside it.

    Without a `config` or a `plan` it is exported as the commands do it, tuning too.
    Raises `CapError`, and writes nothing, when the full accounting is over `cap` bytes.
    """
    source = load_run(run)
    source.model.to(device)
    config = plan.config if plan else config or quant_config()
    # Rounding to the nearest does without, but not without the tokens' frequencies if it can.
    wanted = config.method != "nearest" or (Path(run) / "tokens").is_dir()
    calibration = calibration_tokens(Path(run), source) if wanted else ()
    tuning = tuning_tokens(Path(run), source, config.tune) if config.tune else ()
    artifact, plan = export_model(
        source, config, calibration, cap=cap, plan=plan, tuning=tuning, say=say
    )
    # First the run's note that ties the file to its training documents: a note without a file
    # says nothing wrong.
    record_export(Path(run), artifact.sha256)
    write_bytes(path, artifact.data)
    write_text(f"{os.fspath(path)}.plan.json", json.dumps(plan.as_dict(), indent=1) + "\n")
    return artifact.ledger, plan
