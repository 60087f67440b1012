"""The moving parts of a run, one step at a time; `tokgolf.training.loop` decides how many.

On a GPU the loop never waits for a step that it has just started: a step's loss and gradient norms
are read when the next one is under way, and what they say names the step that they belong to.
"""

import contextlib
import math
import operator
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokgolf.artifact.checkpoint import MODEL_PREFIX, write_checkpoint
from tokgolf.device import resolve_device
from tokgolf.errors import TrainingError
from tokgolf.heads import head_config, head_to_dict
from tokgolf.heads.base import Unties
from tokgolf.model import build_model, head_shape
from tokgolf.tokenizers import Tokenizer
from tokgolf.training.attention import speed_up
from tokgolf.training.averages import Averages
from tokgolf.training.config import RunConfig
from tokgolf.training.distributed import ALONE, Ranks
from tokgolf.training.guards import (
    STEPS_TO_MOVE,
    check_finite,
    check_first_loss,
    check_gradients,
    check_moved,
    check_pairs,
    forbidden_pair,
    initial_loss,
    loss_error,
    tied_self_logit,
)
from tokgolf.training.optimizers import Optimizers
from tokgolf.training.pace import Clock, Pace, spent
from tokgolf.training.qat import Quantizer, RoundingErrors, shifted

LIVE_PREFIX = "live."
"""Weights that training goes on from, where an average of them is the model."""
ERROR_PREFIX = "error."
"""What quantizing adds to the weights in the forward pass."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step that was started: what it read, and what it found, which may be under way yet."""

    number: int
    remaining: float  # steps of the budget, this one included
    scale: float
    tokens: Tensor
    targets: Tensor
    names: list[str]  # of the tensors that are trained
    loss: Tensor  # (); as the next two fp64 on the CPU, and to be read after `ready`
    gradient_norms: Tensor  # (names,)
    largest_weights: Tensor | None  # (names,); of a step that is read late
    ready: torch.cuda.Event | None  # None on a CPU


class Session:
    """Model, optimizers, step counter and clock."""

    def __init__(
        self,
        config: RunConfig,
        tokenizer: Tokenizer,
        counts: NDArray[np.int64],
        device: str,
        say: Callable[[str], None] = lambda line: None,
        trunk: dict[str, Tensor] | None = None,
        ranks: Ranks = ALONE,
        afresh: Collection[str] = (),
    ) -> None:
        """`trunk` are weights that the trunk starts from, by name within it; the lead's count.

        Those `afresh` are not among them, and are trained where the trunk is frozen.
        """
        self.ranks = ranks
        self.config = config
        self.tokenizer = tokenizer
        self.say = say
        self.device = torch.device(resolve_device(device))
        self.bf16 = uses_bf16(config.precision, self.device)
        torch.manual_seed(config.seed)
        shape = head_shape(tokenizer, config.trunk)
        head = head_config(config.head)
        self.model = build_model(config.trunk, head, shape, torch.from_numpy(counts))
        if trunk is not None:
            self.model.trunk.load_state_dict({**self.model.trunk.state_dict(), **trunk})
        self.model.to(self.device)
        ranks.broadcast_(self.model.state_dict().values())
        speed_up(self.model.trunk, self.device)
        frozen: set[str] = set()
        if config.freeze_trunk:
            for name, parameter in self.model.trunk.named_parameters():
                if name not in afresh:
                    parameter.requires_grad_(False)
                    frozen.add(f"trunk.{name}")
        self.waiting: list[Tensor] = []  # for blocks to be repeated
        if config.loops_from:
            self.model.trunk.config = replace(config.trunk, loops=1, loop_rank=0)
            self.waiting = [
                parameter.requires_grad_(False)
                for name, parameter in self.model.named_parameters()
                if ".loops." in name and name not in frozen
            ]
        self.optimizers = Optimizers(self.model, config.optimizer, frozen, ranks)
        self.averages = Averages(self.model, config.average)
        self.loss_of: Callable[[Tensor, Tensor], Tensor] = self.model.loss
        self.length = config.short_length or config.trunk.sequence_length
        self.step = self.saved = 0  # steps done, and those of the latest checkpoint
        self.untied = False
        self.looped_from = None if config.loops_from else 0  # the step before which they began
        self.rounding = RoundingErrors(config.qat)
        self.initial: dict[str, Tensor] = {}
        self.check_at = STEPS_TO_MOVE
        self.clock = Clock()
        self.loss = math.nan

    def load(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        if state.get("untied"):
            self.untie()
        looped_from = state.get("looped_from")  # of an old checkpoint: found from the budget
        if looped_from is not None:
            self.begin_loops(operator.index(looped_from))
        self.length = operator.index(state.get("length", self.length))
        own = self.model.state_dict()
        live = {name.removeprefix(LIVE_PREFIX) for name in tensors if name.startswith(LIVE_PREFIX)}
        for name in own:
            own[name] = tensors[(LIVE_PREFIX if name in live else MODEL_PREFIX) + name]
        self.model.load_state_dict(own)
        self.optimizers.load(tensors)
        for name, average in self.averages.weights.items():
            average.copy_(tensors[MODEL_PREFIX + name])
        errors = {
            name.removeprefix(ERROR_PREFIX): tensor.to(self.device)
            for name, tensor in tensors.items()
            if name.startswith(ERROR_PREFIX)
        }
        self.rounding.load(errors, state)
        self.averages.count = operator.index(state.get("averaged", 0))
        self.step = self.saved = operator.index(state["step"])
        self.check_at = operator.index(state.get("check_at", STEPS_TO_MOVE))
        self.loss = float(state["loss"])
        self.clock.load(state)

    def save(self, run: Path, state: dict[str, Any], *, finished: bool = False) -> None:
        """Write a checkpoint, all of it from the lead; it is there when any rank goes on.

        Raises `TrainingError`, and leaves the one before, if a number in it is not finite.
        """
        optimizer = {name: t.cpu() for name, t in self.optimizers.state().items()}
        with self.ranks.lead_first():
            if self.ranks.leads:
                tensors = {**self._weights(), **optimizer}
                check_finite(tensors, self.step, self.saved, self.optimizers.rates)
                progress = {
                    "step": self.step,
                    "loss": self.loss,
                    "untied": self.untied,
                    "length": self.length,
                    "check_at": self.check_at,
                    "looped_from": self.looped_from,
                    "averaged": self.averages.count,
                    "finished": finished,
                    **self.clock.state(),
                    **self.rounding.state(),
                }
                write_checkpoint(run, tensors, {**state, **progress})
        self.saved = self.step

    def _weights(self) -> dict[str, Tensor]:
        """What a checkpoint holds beside the optimizers' state."""
        own, averages = self.model.state_dict(), self.averages.exported()
        weights = {MODEL_PREFIX + n: averages.get(n, t).cpu() for n, t in own.items()}
        weights.update({LIVE_PREFIX + n: own[n].cpu() for n in averages})
        errors = self.rounding.errors
        weights.update({ERROR_PREFIX + n: error.cpu() for n, error in errors.items()})
        return weights

    def untie(self) -> None:
        """Let the head become two tables where it was one."""
        assert isinstance(self.model.head, Unties)
        copies = self.model.head.untie()
        full = {f"head.{new}": f"head.{old}" for new, old in copies.items()}
        self.optimizers.adopt(full)
        self.averages.adopt(full)
        self.untied = True

    def begin_loops(self, step: int) -> None:
        """Let blocks be repeated, from that step on."""
        self.looped_from = step
        self.model.trunk.config = self.config.trunk
        for parameter in self.waiting:
            parameter.requires_grad_(True)
        self.waiting = []

    def remember(self) -> None:
        """All weights, to see after step `check_at` that every tensor has moved."""
        self.initial = {n: p.detach().clone() for n, p in self.model.named_parameters()}

    def watch(self) -> None:
        """See in a few steps from here that every tensor has moved."""
        self.remember()
        self.check_at = self.step + STEPS_TO_MOVE

    def untie_if_due(self, remaining: float) -> bool:
        """Once, at the fraction of the budget that the head's options name; whether it was now."""
        head = self.model.head
        due = isinstance(head, Unties) and 0 < head.untie_at <= spent(self.step, remaining)
        if due:
            self.untie()
            self.watch()
        return due

    def lengthen_if_due(self, remaining: float) -> bool:
        """Once, at the fraction of the budget until which sequences are short."""
        whole, until = self.config.trunk.sequence_length, self.config.short_until
        due = self.length < whole and spent(self.step, remaining) >= until
        if due:
            self.length = whole
        return due

    def begin_loops_if_due(self, remaining: float) -> bool:
        """Once, at the fraction of the budget until which no block is repeated."""
        due = self.looped_from is None and spent(self.step, remaining) >= self.config.loops_from
        if due:
            if self.waiting:
                self.watch()
            self.begin_loops(self.step)
        return due

    def rounding_errors_due(self, remaining: float) -> bool:
        """Whether to find what an export would do to the weights, for the steps from here on."""
        may_begin = bool(self.rounding.errors) or self._passes_trained()
        return may_begin and self.rounding.due(self.step, remaining)

    def find_rounding_errors(self, run: Path) -> None:
        """Find what an export would do to the weights; `run` has the tokens to calibrate on."""
        config, rounding, clock = self.config.qat, self.rounding, self.clock
        began = time.perf_counter()
        first = not rounding.errors
        if first:
            rounding.since = self.step
            self.say(
                f"qat       from step {self.step + 1:,} on, weights have the errors of an export "
                f"at {config.bits} bits, found anew after every {config.every} steps"
            )
        found: dict[str, Tensor] = {}
        with self.ranks.lead_first():
            if self.ranks.leads:
                quantizer = self._quantizer(run)
                made = time.perf_counter()  # takes time once, and once more after a resume
                clock.compile_seconds += made - began
                began = made
                found = quantizer.errors(self.model.state_dict())
                rounding.steps = quantizer.steps
        rounding.errors = self.ranks.broadcast_named(found)
        seconds = time.perf_counter() - began
        if first:  # it measures damages, in many times the time of those that follow
            clock.compile_seconds += seconds
        else:
            clock.quantize_seconds += seconds
            clock.quantizings += 1

    def never_begun(self) -> list[str]:
        """A line for each option that was asked for and has not begun, though the run has ended."""
        head, config = self.model.head, self.config
        loops_from, short_until = config.loops_from, config.short_until
        untie_at = head.untie_at if isinstance(head, Unties) else 0.0
        average, qat = config.average, config.qat
        waiting = {
            f"untying (head.untie_at {untie_at:g})": untie_at > 0,
            f"repeating blocks (loops_from {loops_from:g})": self.looped_from is None,
            f"whole sequences (short_until {short_until:g})": short_until < 1
            and self.length < config.trunk.sequence_length,
            f"the mean of weights (average.swa_from {average.swa_from:g}, average.swa_every "
            f"{average.swa_every})": average.swa_from < 1 and not self.averages.count,
            f"quantization-aware training (qat.start {qat.start:g}, qat.every {qat.every})": (
                qat.start < 1 and not self.rounding.errors
            ),
        }
        return [
            f"late      {what} never began in {self.step:,} steps; start it earlier, or train "
            "longer"
            for what, waits in waiting.items()
            if waits
        ]

    def _passes_trained(self) -> bool:
        """Whether what later passes add is no longer zero. Before, any step would seem fine enough
        for it, and from a coarse one it would not come back."""
        looped_from = self.looped_from
        if not self.config.trunk.loop_rank or looped_from is None:  # a trained trunk's may wait
            return True
        return self.step >= looped_from + STEPS_TO_MOVE

    def _quantizer(self, run: Path) -> Quantizer:
        if self.rounding.quantizer is None:
            options = head_to_dict(head_config(self.config.head))
            if self.untied:
                options["untie_at"] = 0.0
            self.rounding.quantizer = Quantizer(
                self.config.trunk,
                head_config(options),
                self.tokenizer,
                run,
                self.config.qat,
                self.device,
                self.rounding.steps,
            )
        return self.rounding.quantizer

    def compile(self, tokens: Tensor, targets: Tensor) -> None:
        """Compile the loss for micro-batches of this shape; "auto" stays eager where that fails,
        and says why.

        What was compiled before, for other runs of this process too, is forgotten: of one function
        torch keeps a few graphs, and calls it as it is when there are more.
        """
        if self.config.compile == "off":
            return
        began = time.perf_counter()
        self.say(
            f"compile   a step with sequences of {self.length:,}; it can take a minute or two "
            "where that was not compiled before"
        )
        torch.compiler.reset()
        self.loss_of = torch.compile(self.model.loss, dynamic=False)
        rows = self.config.micro_batch_tokens // self.config.trunk.sequence_length
        try:
            with graphs_or_an_error():
                self.accumulate(tokens[:rows], targets[:rows])
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the compiler's own errors have no common base
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            if self.config.compile == "on":
                raise TrainingError(f"the model does not compile here: {reason}") from error
            self.say(f"compile   the model does not compile here and runs slower: {reason}")
            self.loss_of = self.model.loss
        self.model.zero_grad(set_to_none=True)
        # Or waiting for the slowest rank would be the first step's time.
        self.ranks.all_gather_object(None)
        self.clock.compile_seconds += time.perf_counter() - began

    def remaining_steps(self) -> float:
        """Steps that are left of the budget, by count or by the clock, whichever is less."""
        left = float(self.config.steps - self.step)
        if self.config.minutes is not None and self.step:
            seconds = self.config.minutes * 60 - self.clock.seconds
            left = min(left, self.pace().steps_in(seconds))
        return left

    def pace(self) -> Pace:
        """What the steps so far say of those to come."""
        until_next = self.rounding.until_next(self.step)
        return self.clock.pace(self.step, self.config.qat.every, until_next)

    def rate_scale(self, remaining: float) -> float:
        """The factor on every learning rate: 1, then linearly down to `warmdown_to` at the end."""
        warmdown = self.config.warmdown_steps or (
            self.config.warmdown_fraction * (self.step + remaining)
        )
        left = min(1.0, remaining / warmdown) if warmdown else 1.0
        return self.config.warmdown_to + (1 - self.config.warmdown_to) * left

    def gradients(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The gradients of the mean loss of a batch, of which this rank has these rows.

        Returns that loss in nats, and the norm of each tensor's gradient.  # (1 + tensors,) fp64
        """
        loss = self.accumulate(tokens, targets)
        for parameter in self.waiting:
            parameter.grad = torch.zeros_like(parameter)
        self.optimizers.shares.reduce()
        squares = self.optimizers.gradient_norms().double().square()  # exact, as is the root
        found = self.ranks.all_reduce_sum(torch.cat([loss[None], squares]))
        found[1:].sqrt_()
        return found

    def accumulate(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Accumulate the gradients of what these rows add to the mean loss, and return that.

        In nats, fp64.  # (rows, length), same -> ()
        """
        rows = self.config.micro_batch_tokens // self.length
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        tokens, targets = (
            t.reshape(-1, self.length).to(self.device, non_blocking=True) for t in (tokens, targets)
        )
        with shifted(self.model, self.rounding.errors):
            for start in range(0, len(tokens), rows):
                x, y = tokens[start : start + rows], targets[start : start + rows]
                with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
                    summed = self.loss_of(x, y)
                loss = summed / (targets.numel() * self.ranks.size)
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
        return total

    def start(self, remaining: float, tokens: Tensor, targets: Tensor) -> Step:
        """The gradients of the next step; `judge`, then `update` it, or on a GPU the other way."""
        found = self.gradients(tokens, targets)
        names, late = self.optimizers.names, self.reads_late()
        if late:  # when an update may have spoiled them all
            found = torch.cat([found, self.optimizers.largest_weights().double()])
        on_cpu = found.to("cpu", non_blocking=True)
        on_gpu = self.device.type == "cuda"
        return Step(
            number=self.step,
            remaining=remaining,
            scale=self.rate_scale(remaining),
            tokens=tokens,
            targets=targets,
            names=names,
            loss=on_cpu[0],
            gradient_norms=on_cpu[1 : len(names) + 1],
            largest_weights=on_cpu[len(names) + 1 :] if late else None,
            ready=torch.cuda.current_stream(self.device).record_event() if on_gpu else None,
        )

    def update(self, step: Step) -> None:
        """Change the weights by a step's gradients."""
        self.optimizers.step(step.number, step.scale)
        self.step += 1
        self.averages.update(self.step, self.step / (step.number + step.remaining))
        if self.initial and self.step == self.check_at:
            check_moved(self.initial, self.model)
            self.initial = {}

    def judge(self, step: Step) -> None:
        """Read what a step found. Raises `TrainingError` if the run must not go on from it."""
        if step.ready is not None:  # waits for this step; reading it from the GPU would, for all
            step.ready.synchronize()
        loss = float(step.loss)
        head, rates, at = self.model.head, self.optimizers.rates, step.number + 1
        if not math.isfinite(loss):
            tokens, targets = step.tokens.to(self.device), step.targets.to(self.device)
            pairs = self.ranks.all_gather_object(forbidden_pair(head, tokens, targets))
            check_pairs(pairs, self.tokenizer, at)
            weights = step.largest_weights
            if weights is None:
                weights = self.optimizers.largest_weights()
            largest = dict(zip(step.names, weights.tolist(), strict=True))
            raise loss_error(loss, at, self.saved, largest, rates)
        named = dict(zip(step.names, step.gradient_norms.tolist(), strict=True))
        check_gradients(named, at, self.config.max_gradient, self.saved, rates)
        if step.number == 0:
            targets, tokens = (t.flatten().to(self.device) for t in (step.targets, step.tokens))
            repeats = float((targets == tokens).double().mean())
            parts = self.ranks.all_gather_object([initial_loss(head, targets, tokens), repeats])
            declared, repeats = (sum(part) / len(parts) for part in zip(*parts, strict=True))
            check_first_loss(loss, declared, tied_self_logit(head), repeats)
        self.loss = loss

    def reads_late(self) -> bool:
        """Whether the next step may be under way before this one's loss is read."""
        return self.device.type == "cuda" and self.step > STEPS_TO_MOVE


def graphs_or_an_error() -> contextlib.AbstractContextManager[Any]:
    """Here a function that torch has no room for another graph of is an error, not slow."""
    config, option = torch._dynamo.config, "fail_on_recompile_limit_hit"
    known = hasattr(config, option)  # not by every torch that training works with
    return config.patch(option, True) if known else contextlib.nullcontext()


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether matrix products run in bf16; "auto" does so where the hardware has it."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    mkldnn = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    return mkldnn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
