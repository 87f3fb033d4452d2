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
def stop_signals(*, patient: bool = False) -> Iterator[Stop]:
    """Turns Ctrl-C, SIGTERM and SIGHUP into a request to stop; a second Ctrl-C does not wait.

    A signal that this process was started to ignore, as nohup does with SIGHUP, stays ignored.

    Args:
        patient: whether a second Ctrl-C waits too: torchrun passes on the one that its processes
            have already had from the terminal.
    """
    stop = Stop()

    def request(number: int, frame: FrameType | None) -> None:
        if stop.requested and number == signal.SIGINT and not patient:
            raise KeyboardInterrupt
        stop.requested = True

    with _handling(request, *_STOP):
        yield stop


class Interrupts:
    """Places in which Ctrl-C raises KeyboardInterrupt: inside `with interrupts:`.

    Elsewhere it is kept for the next such place, so that what belongs together is not torn apart.
    It raises once in each: a second Ctrl-C does not interrupt what tidies up after the first.

    Attributes:
        requested: whether Ctrl-C came since `forget`, even if what it raised was lost on the way,
            as in a finalizer.
    """

    def __init__(self) -> None:
        """Starts outside of such places."""
        self.requested = False
        self._open = self._kept = False

    def __enter__(self) -> None:
        """Raises KeyboardInterrupt if Ctrl-C came before."""
        self._open = True
        if self._kept:
            self._interrupt()

    def __exit__(self, *_: object) -> None:
        """From here on Ctrl-C is kept."""
        self._open = False

    def forget(self) -> None:
        """Drops a Ctrl-C that was kept: what it was meant for is over."""
        self.requested = self._kept = False

    def arrived(self) -> None:
        """Takes a Ctrl-C."""
        self.requested = self._kept = True
        if self._open:
            self._interrupt()

    def _interrupt(self) -> None:
        self._open = self._kept = False
        raise KeyboardInterrupt


@contextmanager
def chosen_interrupts() -> Iterator[Interrupts]:
    """Leaves it to the caller where Ctrl-C raises; in the main thread only, elsewhere as before."""
    interrupts = Interrupts()
    with _handling(lambda number, frame: interrupts.arrived(), signal.SIGINT):
        yield interrupts


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
