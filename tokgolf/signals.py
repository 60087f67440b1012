"""A SIGTERM or a hang-up ends a run, a sweep or a cell as Ctrl-C does: with what it has saved."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

ENDING = ("SIGTERM", "SIGHUP")  # Windows has no SIGHUP


def heard() -> list[int]:
    """The signals that ask this process to end, but for those that it was started to ignore.

    A process that nohup started goes on when its terminal is gone.
    """
    numbers = [getattr(signal, name) for name in ENDING if name in signal.Signals.__members__]
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


@contextlib.contextmanager
def ended_as_by_ctrl_c() -> Iterator[None]:
    """Inside, the first signal that asks this process to end does what Ctrl-C would, in whatever
    has a handler for that; more of them are ignored, as the work is being saved.

    Elsewhere than in the main thread, where Python handles no signals, it does nothing.
    """
    came = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if came:
            return
        came = True
        on_ctrl_c = signal.getsignal(signal.SIGINT)
        if not callable(on_ctrl_c):  # ignored: started in the background by a shell
            raise KeyboardInterrupt
        on_ctrl_c(number, frame)

    before = {}
    try:
        for number in heard():
            before[number] = signal.signal(number, handle)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
