"""Hands the outputs of the engine's thread to the event loop, once for each step."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from gemmule.infer.async_driver import OnOutput
from gemmule.infer.core.request import RequestOutput
from gemmule.infer.step_loop import StepReport
from gemmule.serve.observation import ModelObserver
from gemmule.serve.queue_rate import QueueRate

_log = logging.getLogger(__name__)
Take = Callable[[RequestOutput], None]


class StepDispatcher:
    """Collects the outputs of all requests of a step, and wakes the event loop once for them.

    Waking the loop for each request of each step would cost more than everything else that is done
    for a token.

    Attributes:
        observer: observer of the model; None: there is none.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        observer: ModelObserver | None = None,
        rate: QueueRate | None = None,
    ) -> None:
        """Starts without outputs.

        Args:
            loop: the loop that takes the outputs.
            observer: sees each step and all its outputs before they are handed over.
            rate: sees the outputs too.
        """
        self._loop, self.observer, self._rate = loop, observer, rate
        self._all: list[RequestOutput] = []
        self._outputs: list[tuple[Take, RequestOutput]] = []  # used by the engine's thread only

    def receiver(self, take: Take, wanted: Callable[[RequestOutput], bool]) -> OnOutput:
        """Returns a request's callback.

        Args:
            take: takes the outputs, in the event loop.
            wanted: whether it takes an output; called in the engine's thread.
        """

        def on_output(output: RequestOutput) -> None:
            self._all.append(output)
            if wanted(output):
                self._outputs.append((take, output))

        return on_output

    def after_step(self, report: StepReport) -> None:
        """Hands over the outputs of a step; called in the engine's thread."""
        everything, self._all = self._all, []
        if self._rate is not None:
            self._rate.observe(everything)
        if self.observer is not None:
            try:
                self.observer.observe_step(report, everything)
            except Exception:
                _log.exception("a step could not be observed")
        if not self._outputs:
            return
        outputs, self._outputs = self._outputs, []
        if not self._loop.is_closed():  # an engine may end after the server
            self._loop.call_soon_threadsafe(_deliver, outputs)


def _deliver(outputs: Sequence[tuple[Take, RequestOutput]]) -> None:
    for take, output in outputs:
        take(output)
