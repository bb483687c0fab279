"""How the program is told to stop: Ctrl-C (SIGINT), kill (SIGTERM), the end of its terminal (SIGHUP).

All three raise KeyboardInterrupt, so that whatever was started is stopped on the way out.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def heeded() -> list[signal.Signals]:
    """The signals that stop us. Without those that nohup, or a shell's background job, has us ignore on purpose."""
    return [number for number in _STOP if signal.getsignal(number) is not signal.SIG_IGN]


def interrupt() -> None:
    """Has each of them raise KeyboardInterrupt in the main thread, as Ctrl-C always does in Python."""
    for number in heeded():
        signal.signal(number, signal.default_int_handler)


@contextmanager
def kept() -> Iterator[None]:
    """Puts back the handlers that the block replaces."""
    # None is a handler that another language's code has set; it cannot be put back from here.
    before = {number: handler for number in _STOP if (handler := signal.getsignal(number)) is not None}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held() -> Iterator[None]:
    """Holds a stop back until the block is over: a start or a stop that is cut in half leaves processes behind.

    The block must have time limits of its own. Outside the main thread, where no signal arrives, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def hold(number: int, _: FrameType | None) -> None:
        came.append(number)

    try:
        with kept():
            for number in heeded():
                if callable(signal.getsignal(number)):
                    signal.signal(number, hold)
            yield
    finally:
        if came:
            signal.raise_signal(came[0])
