"""Progress on stderr: a bar on a terminal, a plain line every few seconds elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tokgolf.cli.options import say

if TYPE_CHECKING:
    from tokgolf.sweep.cells import Cell
    from tokgolf.sweep.driver import Progress
    from tokgolf.training import StepReport

LINE_SECONDS = 15.0
MOST_NAMED = 4
"""Running cells that a plain line names."""


@contextmanager
def training_progress(*, shown: bool = True) -> Iterator[Callable[["StepReport"], None]]:
    """Show loss, tokens per second and the time left, as `train(on_step=...)` reports them."""
    if not shown or not sys.stderr.isatty():
        yield _plain_lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("training"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%  {task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=1.0)

        def show(report: "StepReport") -> None:
            done = report.seconds / (report.seconds + report.seconds_left)
            bar.update(task, completed=done, description=_line(report))

        yield show


def token_lines(what: str) -> Callable[[int], None]:
    """Say every few seconds how many tokens are done, and how many a second."""
    began = last = time.monotonic()
    done = 0

    def show(tokens: int) -> None:
        nonlocal done, last
        done += tokens
        if (now := time.monotonic()) - last >= LINE_SECONDS:
            last = now
            say(f"{what}: {done:,} tokens, {done / (now - began):,.0f} tokens/s")

    return show


def _plain_lines() -> Callable[["StepReport"], None]:
    last = time.monotonic()

    def show(report: "StepReport") -> None:
        nonlocal last
        if report.step == 1 or time.monotonic() - last >= LINE_SECONDS:
            last = time.monotonic()
            say(f"training: {_line(report)}")

    return show


def _line(report: "StepReport") -> str:
    minutes, seconds = divmod(round(report.seconds_left), 60)
    return (
        f"step {report.step:,}  loss {report.loss:.4f} nats  "
        f"{report.tokens_per_second:,.0f} tokens/s  {minutes}:{seconds:02d} left"
    )


@contextmanager
def scoring_progress() -> Iterator[Callable[[int, int], None]]:
    """Show how much of the corpus is scored, as `score(on_progress=...)` reports it."""
    began = last = time.monotonic()
    done = 0

    def line(total: int) -> str:
        left = (time.monotonic() - began) * max(0, total - done) / max(1, done)
        minutes, seconds = divmod(round(left), 60)
        return f"{done:,} of {total:,} bytes  {minutes}:{seconds:02d} left"

    def plain(size: int, total: int) -> None:
        nonlocal done, last
        done += size
        if time.monotonic() - last >= LINE_SECONDS:
            last = time.monotonic()
            say(f"scoring: {line(total)}")

    if not sys.stderr.isatty():
        yield plain
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("scoring"), BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=1.0)

        def show(size: int, total: int) -> None:
            nonlocal done
            done += size
            bar.update(task, completed=done / max(1, total), description=line(total))

        yield show


@contextmanager
def sweep_progress() -> Iterator[Callable[["Progress"], None]]:
    """Show how many cells are done, failed, running and left, and the best of them."""
    if not sys.stderr.isatty():
        yield _plain_cells()
        return
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(stderr=True), transient=True, refresh_per_second=2) as live:

        def show(progress: "Progress") -> None:
            running = [
                Text(f"  {_running(cell)}  {varying(cell, progress.cells)}")
                for cell in progress.running
            ]
            live.update(Group(Text(f"sweep  {_cells_line(progress)}"), *running))

        yield show


def _plain_cells() -> Callable[["Progress"], None]:
    """A line when a cell ends, and every few seconds."""
    last, ended = time.monotonic(), -1

    def show(progress: "Progress") -> None:
        nonlocal last, ended
        now = len(progress.cells) - progress.left
        if now != ended or time.monotonic() - last >= LINE_SECONDS:
            last, ended = time.monotonic(), now
            running = [_running(cell) for cell in progress.running[:MOST_NAMED]]
            say("; ".join([f"sweep: {_cells_line(progress)}", *running]))

    return show


def _running(cell: "Cell") -> str:
    return f"{cell.id[:8]}  step {cell.steps or 0:,}"


def _cells_line(progress: "Progress") -> str:
    running = len(progress.running)
    parts = [
        f"{progress.count('done'):,} of {len(progress.cells):,} cells done",
        f"{progress.count('failed'):,} failed",
        f"{running:,} running",
        f"{progress.left - running:,} left",
    ]
    if progress.best is not None:
        best = progress.best
        parts.append(f"best {best.bpb:.4f} bpb ({best.id[:8]})")
    if progress.seconds_left is not None and progress.left:
        minutes, seconds = divmod(round(progress.seconds_left), 60)
        parts.append(f"{minutes}:{seconds:02d} left")
    return ", ".join(parts)


def varying(cell: "Cell", cells: "Sequence[Cell]") -> str:
    """The settings that are not alike in all cells: "vocab_size=512 head=tied"."""
    parts = []
    for axis, value in cell.settings.items():
        if any(other.settings.get(axis, ...) != value for other in cells):
            parts.append(f"{axis.removeprefix('tokenizer.')}={'fill' if value is None else value}")
    return " ".join(parts) or "-"
