"""Progress on stderr: a bar on a terminal, a plain line every few seconds elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tokgolf.cli.options import say

if TYPE_CHECKING:
    from tokgolf.training import StepReport

LINE_SECONDS = 15.0


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
