"""Stopping on request: after the current work is saved, not in the middle of it."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop:
    """A request to stop.

    Attributes:
        requested: whether a signal has asked for it.
    """

    requested = False


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP outside `stop_signals`: it ends what Ctrl-C stops, and all else."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Raises Terminated at SIGTERM and SIGHUP, as Python raises KeyboardInterrupt at Ctrl-C.

    They come in pairs (systemd, closed terminals), so that the next one does not interrupt what
    cleans up after the first. What a process was started to ignore stays ignored.
    """
    interrupted = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if not interrupted:
            interrupted = True
            raise Terminated

    with _handling(interrupt, signal.SIGTERM, signal.SIGHUP):
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

    with _handling(request, *_STOP):
        yield stop


@contextmanager
def on_stop_signals(handler: Callable[[], None]) -> Iterator[None]:
    """Calls `handler` at each Ctrl-C, SIGTERM and SIGHUP, in the main thread."""
    with _handling(lambda number, frame: handler(), *_STOP):
        yield


@contextmanager
def _handling(
    handler: Callable[[int, FrameType | None], None], *numbers: signal.Signals
) -> Iterator[None]:
    heeded = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
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
