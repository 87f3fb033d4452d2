"""Requests to stop."""

import signal
from collections.abc import Iterator

import pytest

from gemmule.runtime.signals import Terminated, interruptible, stop_signals

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_asks_to_stop(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_signals() as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_does_not_wait() -> None:
    with pytest.raises(KeyboardInterrupt), stop_signals():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)


def test_what_nohup_ignores_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_signals() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert not stop.requested


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_outside_of_training_a_signal_interrupts_once(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Terminated), interruptible():
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(signal.SIGTERM)  # while something is cleaned up
            signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(number) is before


def test_training_inside_of_a_command_saves_first() -> None:
    with interruptible():
        with stop_signals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.requested
        with pytest.raises(Terminated):  # what follows, such as the card
            signal.raise_signal(signal.SIGTERM)


def test_under_nohup_a_command_goes_on() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with interruptible():
        signal.raise_signal(signal.SIGHUP)
