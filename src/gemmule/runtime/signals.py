"""Stopping on request: after the current work is saved, not in the middle of it."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """A request to stop.

    Attributes:
        requested: whether a signal has asked for it.
    """

    requested = False


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Turns Ctrl-C, SIGTERM and SIGHUP into a request to stop; a second Ctrl-C does not wait.

    A signal that this process was started to ignore, as nohup does with SIGHUP, stays ignored.
    """
    stop = Stop()

    def request(number: int, frame: FrameType | None) -> None:
        if stop.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.requested = True

    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    heeded = [number for number in wanted if signal.getsignal(number) is not signal.SIG_IGN]
    try:
        before = {number: signal.signal(number, request) for number in heeded}
    except ValueError:  # only the main thread can set handlers
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
