"""Stopping on request: after the current work is saved, not in the middle of it."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """A request to stop.

    Attributes:
        requested: whether a signal has asked for it.
    """

    requested = False


_HEEDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def interruptible() -> Iterator[None]:
    """Makes SIGTERM and SIGHUP what Ctrl-C is in Python, a KeyboardInterrupt, in the main thread.

    For everything outside `stop_signals`, which saves first. What a process was started to ignore
    stays ignored.
    """
    with _handling(signal.default_int_handler):
        yield


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

    with _handling(request):
        yield stop


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    heeded = [number for number in _HEEDED if signal.getsignal(number) is not signal.SIG_IGN]
    try:
        before = {number: signal.signal(number, handler) for number in heeded}
    except ValueError:  # only the main thread can set handlers
        yield
        return
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
