"""Hands the outputs of the engine's thread to the event loop, once for each step."""

import asyncio
from collections.abc import Callable, Sequence

from gemmule.infer.async_driver import OnOutput
from gemmule.infer.core.request import RequestOutput
from gemmule.infer.step_loop import StepReport

Take = Callable[[RequestOutput], None]


class StepDispatcher:
    """Collects the outputs of all requests of a step, and wakes the event loop once for them.

    Waking the loop for each request of each step would cost more than everything else that is done
    for a token.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        observers: Sequence[Callable[[StepReport], None]] = (),
    ) -> None:
        """Starts without outputs.

        Args:
            loop: the loop that takes the outputs.
            observers: called with the report of each step, in the engine's thread, before the
                outputs are handed over.
        """
        self._loop, self._observers = loop, tuple(observers)
        self._outputs: list[tuple[Take, RequestOutput]] = []  # used by the engine's thread only

    def receiver(self, take: Take, wanted: Callable[[RequestOutput], bool]) -> OnOutput:
        """Returns a request's callback.

        Args:
            take: takes the outputs, in the event loop.
            wanted: whether it takes an output; called in the engine's thread.
        """

        def on_output(output: RequestOutput) -> None:
            if wanted(output):
                self._outputs.append((take, output))

        return on_output

    def after_step(self, report: StepReport) -> None:
        """Hands over the outputs of a step; called in the engine's thread."""
        for observe in self._observers:
            observe(report)
        if not self._outputs:
            return
        outputs, self._outputs = self._outputs, []
        if not self._loop.is_closed():  # an engine may end after the server
            self._loop.call_soon_threadsafe(_deliver, outputs)


def _deliver(outputs: Sequence[tuple[Take, RequestOutput]]) -> None:
    for take, output in outputs:
        take(output)
