"""The synchronous engine: steps run in the thread that asks for their results."""

import threading
from collections import deque
from collections.abc import Iterator, Sequence

from gemmule.errors import EngineDeadError
from gemmule.infer.core.engine_core import EngineStats
from gemmule.infer.core.request import Completion, Request, RequestOutput, Score
from gemmule.infer.core.request_state import GenerationState, RequestState
from gemmule.infer.core.scoring_state import ScoringState
from gemmule.infer.core.speculative import Speculation
from gemmule.infer.runners.protocol import Runner
from gemmule.infer.step_loop import MAX_FAILED_STEPS, StepLoop, make_core
from gemmule.model.tokenizer import Tokenizer
from gemmule.runtime.forks import in_child


class Engine:
    """Takes requests at any time and runs them together.

    A request's output does not depend on the rest of the batch. One thread steps at a time; others
    may submit, cancel and iterate meanwhile.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer | None = None,
        *,
        cache_bytes: int | None = None,
        cache_tokens: int | None = None,
        speculation: Speculation | None = None,
        max_failed_steps: int = MAX_FAILED_STEPS,
    ) -> None:
        """Allocates the pool of pages.

        Args:
            runner: runs the model.
            tokenizer: tokenizer of the model; None: outputs are ids, and only a limit ends them.
            cache_bytes: maximum memory for keys and values; None: as `pages_for` chooses.
            cache_tokens: the same in tokens, instead.
            speculation: proposes draft tokens; None: none are proposed.
            max_failed_steps: number of failed steps in a row after which the engine gives up.

        Raises:
            ConfigError: for an impossible size.
            TokenizerError: if the draft model has another tokenizer.
        """
        self._core = make_core(runner, tokenizer, speculation, cache_bytes, cache_tokens)
        self._loop = StepLoop(self._core, runner, max_failed_steps)
        # Other threads put their wishes here, to be taken up between steps.
        self._arrived: deque[Sequence[RequestState]] = deque()  # the samples of each request
        self._cancelled: deque[int] = deque()
        self._stepping = threading.Lock()
        self._outputs: deque[RequestOutput] = deque()  # of submitted requests
        # Where the outputs of other requests go; None: nowhere, their state is all that is read.
        self._inboxes: dict[int, deque[RequestOutput] | None] = {}
        in_child(self, Engine._after_fork)

    @property
    def busy(self) -> bool:
        """Whether a step has something to do."""
        return bool(self._core.num_requests or self._arrived)

    @property
    def dead(self) -> bool:
        """Whether the engine has given up; every call then raises EngineDeadError."""
        return self._loop.dead is not None

    def stats(self) -> EngineStats:
        """Returns the current counters and gauges."""
        return self._core.stats()

    def fits(self, positions: int) -> bool:
        """Whether a request of `positions` tokens, output included, fits in the pool."""
        return self._core.fits(positions)

    def submit(self, request: Request) -> int:
        """Adds a request; returns its id, which the outputs of all its samples carry.

        Raises:
            ConfigError: if it can never run: an id that the model does not have, a prompt longer
                than the context, more than the pool of pages can hold, a constraint that is for
                another vocabulary or allows no first token.
        """
        states = self._core.generation(request)
        self._arrived.append(states)
        return states[0].request_id

    def cancel(self, request_id: int) -> None:
        """Ends all samples of a request; their last outputs say so.

        A request that has ended already stays as it is.
        """
        self._cancelled.append(request_id)
        if self._stepping.acquire(blocking=False):
            try:
                self._take_up()
                self._route(self._core.take_outputs())
            finally:
                self._stepping.release()

    def step(self) -> list[RequestOutput]:
        """Runs a step; returns what is new of the requests that were submitted.

        Raises:
            EngineDeadError: if steps keep failing; see `StepLoop.step`.
        """
        self._step()
        return [self._outputs.popleft() for _ in range(len(self._outputs))]

    def iterate(self, request: Request) -> Iterator[RequestOutput]:
        """Yields the outputs of one request, which starts with the first `next`.

        Closing the iterator cancels the request. Several may be used at once, from one thread or
        from several.

        Raises:
            ConfigError: at once; as for `submit`.
            EngineDeadError: if steps keep failing.
        """
        return self._follow(self._core.generation(request))

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Runs requests until they end.

        Returns:
            Their completions in the same order: as many for each request as it has samples.

        Raises:
            ConfigError: as for `submit`, before anything has run.
            EngineDeadError: if steps keep failing.
        """
        requested = [self._core.generation(request) for request in requests]
        self._finish(requested)
        return [state.completion() for states in requested for state in states]

    def score(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Score]:
        """Computes log-probabilities of continuations; common prefixes are computed once.

        Args:
            pairs: ids of a context, at least one (for a whole text, its first token), and of what
                follows it.

        Raises:
            ConfigError: for ids that the model does not have, or a pair longer than the context.
            EngineDeadError: if steps keep failing.
        """
        states: list[ScoringState] = [
            self._core.scoring(context, continuation) for context, continuation in pairs
        ]
        self._finish([[state] for state in states if not state.done])
        return [state.score() for state in states]

    def weights_changed(self) -> None:
        """Drops what was computed with the old weights; the pool and everything else stay.

        To be called after the weights of the model, or of the draft model, were changed in place.
        Requests that run keep their tokens and are computed again with the new weights.
        """
        with self._stepping:
            self._loop.weights_changed()

    def _follow(self, states: Sequence[GenerationState]) -> Iterator[RequestOutput]:
        inbox: deque[RequestOutput] = deque()
        try:
            self._inboxes[states[0].request_id] = inbox
            self._arrived.append(states)
            while True:
                while inbox:
                    output = inbox.popleft()
                    if output.error is not None:
                        raise output.error
                    yield output
                    if output.finished:
                        return
                self._step()
        finally:
            if not all(state.done for state in states):
                self.cancel(states[0].request_id)

    def _finish(self, requested: Sequence[Sequence[RequestState]]) -> None:
        states = [state for samples in requested for state in samples]
        try:
            self._inboxes.update((samples[0].request_id, None) for samples in requested)
            self._arrived.extend(requested)
            while not all(state.done for state in states):
                self._step()
        finally:
            for samples in requested:
                if not all(state.done for state in samples):
                    self.cancel(samples[0].request_id)
        for state in states:
            if state.error is not None:  # another thread's step was the last to fail
                raise state.error

    def _after_fork(self) -> None:
        """In a fork of the process: gives up if another thread was in the middle of a step."""
        if self._stepping.locked():
            self._stepping = threading.Lock()
            self._loop.dead = EngineDeadError(
                "this process was forked while another thread ran a step of the engine: make "
                "another engine here, or fork before threads use one"
            )

    def _take_up(self) -> None:
        """Takes up what has arrived and what was cancelled since the last step."""
        # What Ctrl-C interrupts is taken up again: adding and cancelling twice is as once.
        while self._arrived:
            self._core.add(self._arrived[0])
            self._arrived.popleft()
        while self._cancelled:
            self._core.cancel(self._cancelled[0])
            self._cancelled.popleft()

    def _route(self, outputs: Sequence[RequestOutput]) -> None:
        """Passes outputs to those who follow their requests."""
        for output in outputs:
            inbox = self._inboxes.get(output.request_id, self._outputs)
            if inbox is not None:
                inbox.append(output)
            if output.finished:
                self._inboxes.pop(output.request_id, None)

    def _step(self) -> None:
        with self._stepping:  # around a call and nothing else, so that no interrupt keeps the lock
            self._take_up_and_step()

    def _take_up_and_step(self) -> None:
        try:
            self._take_up()
            self._route(self._loop.step())
        except EngineDeadError:
            self._route(self._core.take_outputs())
            raise
        except KeyboardInterrupt:
            self._core.reset()
            raise
