"""One wake-up of the event loop for each step, whatever the number of requests."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from gemmule.infer.core.request import RequestOutput
from gemmule.infer.step_loop import StepReport
from gemmule.serve.dispatcher import StepDispatcher

REPORT = StepReport(0.0)


class CountingLoop:
    """Stands for an event loop; runs what it is given at once."""

    def __init__(self) -> None:
        self.wake_ups, self.closed = 0, False

    def is_closed(self) -> bool:
        return self.closed

    def call_soon_threadsafe(self, call: Callable[..., Any], *args: Any) -> None:
        assert not self.closed
        self.wake_ups += 1
        call(*args)


@pytest.fixture
def loop() -> Any:
    return CountingLoop()


def test_one_wake_up_for_all_requests_of_a_step(loop: Any) -> None:
    dispatcher = StepDispatcher(loop)
    taken: list[tuple[int, str]] = []
    callbacks = [
        dispatcher.receiver(lambda output, i=i: taken.append((i, output.text)), lambda _: True)
        for i in range(5)
    ]
    for step in range(3):
        for i, on_output in enumerate(callbacks):
            on_output(RequestOutput(i, f"{step}", ()))
        assert loop.wake_ups == step
        dispatcher.after_step(REPORT)
    assert taken == [(i, f"{step}") for step in range(3) for i in range(5)]


def test_no_wake_up_for_what_nobody_wants(loop: Any) -> None:
    dispatcher = StepDispatcher(loop)
    on_output = dispatcher.receiver(lambda _: None, lambda output: output.text == "last")
    for text in ("a", "b"):
        on_output(RequestOutput(0, text, ()))
        dispatcher.after_step(REPORT)
    assert loop.wake_ups == 0
    on_output(RequestOutput(0, "last", ()))
    dispatcher.after_step(REPORT)
    assert loop.wake_ups == 1


def test_an_engine_may_outlive_the_loop(loop: Any) -> None:
    dispatcher = StepDispatcher(loop)
    on_output = dispatcher.receiver(lambda _: None, lambda _: True)
    on_output(RequestOutput(0, "a", ()))
    loop.closed = True
    dispatcher.after_step(REPORT)


def test_it_works_in_a_real_loop() -> None:
    async def run() -> str:
        loop = asyncio.get_running_loop()
        dispatcher, done = StepDispatcher(loop), loop.create_future()
        on_output = dispatcher.receiver(lambda o: done.set_result(o.text), lambda _: True)

        def engine_thread() -> None:
            on_output(RequestOutput(0, "a", ()))
            dispatcher.after_step(REPORT)

        await asyncio.to_thread(engine_thread)
        return await asyncio.wait_for(done, 5)

    assert asyncio.run(run()) == "a"
