"""The engine's work for one HTTP request, cancelled when the client leaves.

A `Generation` is a context that is left when the answer has been sent; whatever still runs then is
cancelled, and its pages are free before the engine's next step.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Protocol, Self

from starlette.types import Receive

from gemmule.infer.async_driver import AsyncEngine
from gemmule.infer.core.request import Completion, Request, RequestOutput, RequestTimes
from gemmule.serve.access_log import RequestRecord, current_record
from gemmule.serve.api_errors import ApiError
from gemmule.serve.dispatcher import StepDispatcher
from gemmule.serve.energy import RequestEnergy
from gemmule.serve.events import (
    Event,
    PromptProgress,
    SampleFinished,
    TextDelta,
    Usage,
    finish_reason,
    merged,
)
from gemmule.serve.settings import ServeSettings

# Tokens that may wait for a client that does not read; the sockets' buffers hold thousands more.
MAX_BEHIND = 8192


class RunsRequests(Protocol):
    """A model as a generation uses it.

    Attributes:
        engine: runs the requests.
        dispatcher: hands over the outputs; its `after_step` is the engine's.
    """

    engine: AsyncEngine
    dispatcher: StepDispatcher


class ClientGoneError(ApiError):
    """The client has closed the connection; the status is only seen in logs."""

    def __init__(self) -> None:
        super().__init__(499, "the client has closed the connection", code="client_gone")


class Generation:
    """Requests to the engine that belong to one HTTP request.

    Samples are numbered over all requests: those of the first, then those of the second.

    Attributes:
        num_samples: number of samples of all requests.
        completions: results of the samples that have ended, by their numbers.
        first_tokens: when samples were scheduled and had their first tokens, by their numbers; only
            if text is wanted as it comes.
    """

    def __init__(
        self,
        served: RunsRequests,
        requests: Sequence[Request],
        settings: ServeSettings,
        *,
        stream: bool,
        report_progress: bool = False,
        max_behind: int = MAX_BEHIND,
    ) -> None:
        """Keeps what is to be run; entering the context submits it.

        Args:
            served: the model.
            requests: one request for each prompt.
            settings: time-outs.
            stream: whether text is wanted as it comes; otherwise only completions are kept.
            report_progress: whether `PromptProgress` is wanted.
            max_behind: number of tokens that may wait for a client that does not read.
        """
        self._served, self._settings = served, settings
        self._requests = [replace(request, report_progress=True) for request in requests]
        self._stream, self._report_progress = stream, report_progress
        self._max_behind = max_behind
        self._loop = asyncio.get_running_loop()
        self._first_samples: dict[int, int] = {}  # of each request, by the engine's id
        self._cached: dict[int, int] = {}  # tokens, by the engine's id
        self.num_samples = sum(request.params.n for request in requests)
        self._num_ids = [0] * self.num_samples
        self.completions: dict[int, Completion] = {}
        self.first_tokens: dict[int, RequestTimes] = {}
        self._energy: RequestEnergy | None = None
        self._inbox: list[RequestOutput] = []
        self._behind = 0
        self._running = False
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._silence: asyncio.TimerHandle | None = None
        self._submitted = self._last_events = self._loop.time()
        self._silent = False

    async def __aenter__(self) -> Self:
        """Submits the requests.

        Raises:
            ConfigError: if one can never run.
            EngineError: if the queue is full, or the engine has stopped.
        """
        engine, on_output = (
            self._served.engine,
            self._served.dispatcher.receiver(self._take, self._wanted),
        )
        observer = self._served.dispatcher.observer
        if observer is not None:
            observer.begin()
        first_sample = 0
        try:
            for request in self._requests:
                # Outputs are taken in this loop, so none comes before its id is known.
                self._first_samples[engine.submit(request, on_output)] = first_sample
                first_sample += request.params.n
                if observer is not None:
                    observer.submitted(request.params)
        except BaseException:
            self._cancel()
            raise
        settings, later = self._settings, self._loop.call_later
        self._timers = [
            later(settings.queue_timeout, self._queue_timeout),
            later(settings.request_timeout, self._request_timeout),
        ]
        if self._stream:
            self._silence = later(settings.keepalive_seconds, self._check_silence)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Cancels what still runs."""
        self._cancel()
        for timer in self._timers:
            timer.cancel()
        if self._silence is not None:
            self._silence.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        self._fill(current_record())

    async def batches(self, receive: Receive) -> AsyncIterator[list[Event]]:
        """Yields what is new, until all samples have ended.

        What came while the consumer was busy comes together, one `TextDelta` for each sample. An
        empty list says that nothing has happened for `keepalive_seconds`.

        Args:
            receive: ASGI's; the request's body has been read from it.

        Raises:
            ClientGoneError: once the client has left.
            ApiError: for a time-out, a reader that is too slow, or an engine that shuts down.
            GemmuleError: if the engine failed, or could not finish the request.
        """
        self._watcher = asyncio.create_task(self._watch(receive))
        while len(self.completions) < self.num_samples:
            yield await self._next()

    async def result(self, receive: Receive) -> list[Completion]:
        """Waits for all samples and returns their completions, in order.

        The arguments and errors are those of `batches`.
        """
        async for _ in self.batches(receive):
            pass
        return [self.completions[sample] for sample in range(self.num_samples)]

    def usage(self) -> Usage:
        """Numbers of tokens so far."""
        for request_id, sample in self._first_samples.items():
            if sample in self.completions:
                self._cached[request_id] = self.completions[sample].counts.cached
        done = self.completions
        return Usage(
            prompt=sum(len(request.prompt) for request in self._requests),
            cached=sum(self._cached.values()),
            generated=sum(
                done[sample].counts.generated if sample in done else count
                for sample, count in enumerate(self._num_ids)
            ),
        )

    def energy(self) -> RequestEnergy | None:
        """Energy of all samples together; None before all have ended, or without an observer."""
        observer = self._served.dispatcher.observer
        ended = len(self.completions) == self.num_samples
        if ended and self._energy is None and observer is not None:
            self._energy = observer.take_energy(self._first_samples)
        return self._energy

    def _fill(self, record: RequestRecord | None) -> None:
        """Tells the log what has happened."""
        observer = self._served.dispatcher.observer
        if record is None or observer is None:
            return
        record.model, record.stream, record.usage = observer.name, self._stream, self.usage()
        record.completions = [self.completions[sample] for sample in sorted(self.completions)]
        record.energy = self.energy()
        if self._settings.log_prompts:
            record.prompts = [observer.tokenizer.decode(r.prompt) for r in self._requests]

    async def _next(self) -> list[Event]:
        while True:
            if self._failure is not None:
                raise self._failure
            if self._inbox:
                outputs, self._inbox, self._behind = self._inbox, [], 0
                events = self._events(outputs)
                self._last_events = self._loop.time()
                if events:
                    return events
                continue
            if self._silent:
                self._silent = False
                return []
            self._waiter = self._loop.create_future()
            await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _wanted(self, output: RequestOutput) -> bool:
        """Whether an output is to be taken; called in the engine's thread."""
        ended = output.completion is not None or output.error is not None
        return self._stream or ended or not self._running

    def _take(self, output: RequestOutput) -> None:
        """Takes an output, in the loop."""
        self._running = True
        ended = output.completion is not None or output.error is not None
        if output.prompt_progress is not None and not output.sample:  # others share its prompt
            self._cached[output.request_id] = output.prompt_progress.cached
        tokens = output.ids or output.prompt_logprobs
        progress = output.prompt_progress is not None and self._report_progress
        news = ended or (self._stream and (tokens or output.text or progress))
        if not news or self._failure is not None:
            return
        self._inbox.append(output)
        self._behind += len(output.ids) + len(output.prompt_logprobs)
        if self._behind > self._max_behind:
            self._fail(ApiError(408, "the answer was read too slowly", code="slow_reader"))
        self._wake()

    def _events(self, outputs: Sequence[RequestOutput]) -> list[Event]:
        events: list[Event] = []
        deltas: dict[int, list[TextDelta]] = {}
        for output in outputs:
            completion = output.completion
            error: Exception | None = output.error
            if completion is not None:
                error = error or completion.error
                if completion.finish_reason == "cancelled":
                    error = ApiError(503, "the server is shutting down", code="shutting_down")
            if error:
                self._fail(error)  # after what came before it
                break
            sample = self._first_samples[output.request_id] + output.sample
            if output.times is not None:
                self.first_tokens[sample] = output.times
            if output.prompt_progress is not None and self._report_progress:
                progress = output.prompt_progress
                seconds = self._loop.time() - self._submitted
                events.append(
                    PromptProgress(
                        sample, progress.total, progress.cached, progress.processed, seconds
                    )
                )
            if self._stream and (output.ids or output.text or output.prompt_logprobs):
                deltas.setdefault(sample, []).append(self._delta(sample, output))
            if completion is not None:
                if sample in deltas:
                    events.append(merged(deltas.pop(sample)))
                events.append(SampleFinished(sample, finish_reason(completion), completion))
                self.completions[sample] = completion
        events += map(merged, deltas.values())
        return events

    def _delta(self, sample: int, output: RequestOutput) -> TextDelta:
        ids, logprobs = output.ids, output.logprobs
        self._num_ids[sample] += len(ids)
        if output.completion is not None:
            keep = len(ids) - (self._num_ids[sample] - len(output.completion.ids))
            ids, logprobs = ids[:keep], logprobs[:keep]  # without a stop token
        return TextDelta(sample, output.text, ids, logprobs, output.prompt_logprobs)

    async def _watch(self, receive: Receive) -> None:
        """Waits for the client to leave."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._fail(ClientGoneError())

    def _check_silence(self) -> None:
        now, seconds = self._loop.time(), self._settings.keepalive_seconds
        if now >= self._last_events + seconds:
            self._silent, self._last_events = True, now
            self._wake()
        self._silence = self._loop.call_at(self._last_events + seconds, self._check_silence)

    def _queue_timeout(self) -> None:
        if not self._running:
            seconds = self._settings.queue_timeout
            message = f"the request has waited for {seconds:g} s without being started"
            self._fail(ApiError(503, message, code="queue_timeout", retry_after=seconds))

    def _request_timeout(self) -> None:
        seconds = self._settings.request_timeout
        message = f"the request has taken {seconds:g} s, as long as this server allows"
        self._fail(ApiError(504, message, code="request_timeout"))

    def _fail(self, error: Exception) -> None:
        """Ends everything with an error, unless there is one already."""
        if self._failure is None:
            self._failure, self._inbox = error, []
            self._cancel()
            self._wake()

    def _cancel(self) -> None:
        if len(self.completions) < self.num_samples:
            for request_id in self._first_samples:
                self._served.engine.cancel(request_id)
