"""The asynchronous engine: one thread runs steps while others submit and cancel, as a server needs.

A request's outputs arrive by a callback, in the engine's thread, after the step that made them. An
idle engine sleeps. The number of waiting requests is bounded.
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from types import TracebackType
from typing import Literal, Self, TypeVar

from gemmule.errors import (
    ConfigError,
    EngineClosedError,
    EngineDeadError,
    GemmuleError,
    QueueFullError,
    first_line,
)
from gemmule.infer.core.constraint import ConstraintError, TokenConstraint
from gemmule.infer.core.engine_core import EngineStats
from gemmule.infer.core.prompt_budget import PromptBudget
from gemmule.infer.core.request import Request, RequestOutput
from gemmule.infer.core.request_state import GenerationState, RequestState
from gemmule.infer.core.speculative import Speculation
from gemmule.infer.runners.protocol import Runner
from gemmule.infer.step_loop import MAX_FAILED_STEPS, StepLoop, StepReport, make_core
from gemmule.model.tokenizer import Tokenizer
from gemmule.runtime.forks import in_child

MAX_WAITING = 256
MAX_RUNNING = 32
MAX_PROMPT_DELAY = 0.1  # seconds

OnOutput = Callable[[RequestOutput], None]
State = TypeVar("State", bound=RequestState)

_log = logging.getLogger(__name__)


class AsyncEngine:
    """Runs requests in a thread of its own; all methods may be called from any thread.

    A request's output does not depend on the rest of the batch. Every request that was accepted
    gets a last output, for which `finished` is true: when it is complete or cancelled, when the
    engine is shut down (finish reason "cancelled"), or when the engine gives up (finish reason
    "error", with `error` set).
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer | None = None,
        *,
        cache_bytes: int | None = None,
        cache_tokens: int | None = None,
        speculation: Speculation | None = None,
        max_waiting: int = MAX_WAITING,
        max_running: int = MAX_RUNNING,
        max_prompt_delay: float | None = MAX_PROMPT_DELAY,
        max_failed_steps: int = MAX_FAILED_STEPS,
        after_step: Callable[[StepReport], None] | None = None,
    ) -> None:
        """Allocates the pool of pages and starts the thread.

        Args:
            runner: runs the model; it is used by the engine's thread only.
            tokenizer: tokenizer of the model; None: outputs are ids, and only a limit ends them.
            cache_bytes: maximum memory for keys and values; None: as `pages_for` chooses.
            cache_tokens: the same in tokens, instead.
            speculation: proposes draft tokens; None: none are proposed.
            max_waiting: number of samples that may wait, besides those that can start in the next
                step; preempted ones count, and those that wait for a constraint. With 0 a sample is
                only taken if it can start at once.
            max_running: number of samples that run at once. More would make all of them slower
                without generating more tokens a second.
            max_prompt_delay: seconds by which prompts may lengthen a step, and so delay each token
                of the requests that decode meanwhile; None: a step is filled with prompts. Times of
                earlier steps are used to keep it, and at least 8 tokens of prompts run in a step.
                It changes no result.
            max_failed_steps: number of failed steps in a row after which the engine gives up.
            after_step: called in the engine's thread after all callbacks of a step, failed or not,
                and of outputs that came without one: for a consumer that hands on the outputs of a
                step together, or measures steps.

        Raises:
            ConfigError: for an impossible size.
            TokenizerError: if the draft model has another tokenizer.
        """
        limits = ("max_waiting", max_waiting, 0), ("max_running", max_running, 1)
        for name, value, least in limits:
            if value < least:
                raise ConfigError(f"{name} is {value}; it must be {least} or more")
        self._core = make_core(
            runner,
            tokenizer,
            speculation,
            cache_bytes,
            cache_tokens,
            max_running=max_running,
            prompt_budget=None if max_prompt_delay is None else PromptBudget(max_prompt_delay),
        )
        self._loop = StepLoop(self._core, runner, max_failed_steps)
        self._max_waiting, self._max_running = max_waiting, max_running
        self._after_step = after_step
        self._condition = threading.Condition()
        # All below is guarded by the condition's lock.
        self._arrived: dict[int, Sequence[RequestState]] = {}  # the samples of each request
        self._unconstrained: dict[int, Sequence[GenerationState]] = {}  # wait for a future
        # Ended before the thread took them up: with the finish reason, and the error.
        self._withdrawn: list[tuple[Sequence[RequestState], str, GemmuleError | None]] = []
        self._cancelled: list[int] = []
        self._callbacks: dict[int, OnOutput] = {}
        self._weights_changed = False
        self._closing: Literal["drain", "now"] | None = None
        self._stopped = False
        in_child(self, AsyncEngine._after_fork)
        self._thread = threading.Thread(target=self._run, name="gemmule-engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Shuts down; requests are finished unless an exception has been raised."""
        self.shutdown(drain=error is None)

    @property
    def dead(self) -> bool:
        """Whether the engine has given up because its steps kept failing."""
        return self._loop.dead is not None

    @property
    def closing(self) -> bool:
        """Whether the engine takes no new requests because of `shutdown`."""
        return self._closing is not None

    @property
    def num_waiting(self) -> int:
        """Number of samples that wait, with those that can start in the next step."""
        with self._condition:
            return self._num_waiting()

    def fits(self, positions: int) -> bool:
        """Whether a request of `positions` tokens, output included, fits in the pool."""
        return self._core.fits(positions)

    def stats(self) -> EngineStats:
        """Returns the engine's counters and gauges, between steps or within one."""
        return replace(self._core.stats(), waiting=self.num_waiting)

    def submit(self, request: Request, on_output: OnOutput) -> int:
        """Adds a request.

        Args:
            request: prompt, settings and constraint. If the constraint is a future, the request
                waits for it, and ends with "error" if it fails.
            on_output: called in the engine's thread with each output of the request's samples, the
                last one being `finished`. It must return soon, as all requests wait for it. If it
                raises, the request is cancelled and the error logged.

        Returns:
            The request's id, which may be cancelled, and which its outputs carry.

        Raises:
            ConfigError: if the request can never run, or has more samples than are ever taken.
            QueueFullError: if more than `max_waiting` samples would wait.
            EngineClosedError: after `shutdown`.
            EngineDeadError: if the engine has given up.
        """
        states = self._core.generation(request, wait=False)
        if not isinstance(request.constraint, Future):
            return self._submit(states, on_output, self._arrived)
        request_id = self._submit(states, on_output, self._unconstrained)
        request.constraint.add_done_callback(
            lambda constraint: self._constrain(request_id, constraint)
        )
        return request_id

    def submit_score(
        self, context: Sequence[int], continuation: Sequence[int], on_output: OnOutput
    ) -> int:
        """Adds a continuation to be scored; the score comes with its only output.

        Args:
            context: ids, at least one.
            continuation: ids to be scored, at least one.
            on_output: as for `submit`.

        Raises:
            ConfigError: for ids that the model does not have, or a text longer than the context.
            EngineError: as for `submit`.
        """
        if not continuation:
            raise ConfigError("the continuation is empty; it needs one token at least")
        state = self._core.scoring(context, continuation)
        return self._submit([state], on_output, self._arrived)

    async def iterate(self, request: Request) -> AsyncIterator[RequestOutput]:
        """Yields the outputs of one request; leaving the iteration cancels it.

        Raises:
            ConfigError: as for `submit`.
            EngineError: as for `submit`, or because the engine has given up meanwhile.
        """
        loop = asyncio.get_running_loop()
        inbox: asyncio.Queue[RequestOutput] = asyncio.Queue()

        def on_output(output: RequestOutput) -> None:
            loop.call_soon_threadsafe(inbox.put_nowait, output)

        request_id = self.submit(request, on_output)
        try:
            while True:
                output = await inbox.get()
                if output.error is not None:
                    raise output.error
                yield output
                if output.finished:
                    return
        finally:
            self.cancel(request_id)

    def cancel(self, request_id: int) -> None:
        """Ends a request, whatever state it is in; its pages are free before the next step.

        Its last output says "cancelled". One that is unknown or has ended stays as it is.
        """
        with self._condition:
            states = self._arrived.pop(request_id, None)
            states = self._unconstrained.pop(request_id, states)
            if states is not None:
                self._withdrawn.append((states, "cancelled", None))
            elif request_id in self._callbacks:
                self._cancelled.append(request_id)
            self._condition.notify()

    def weights_changed(self) -> None:
        """Drops what was computed with the old weights before the next step.

        Requests that run keep their tokens and are computed again with the new weights.
        """
        with self._condition:
            self._weights_changed = True
            self._condition.notify()

    def shutdown(self, *, drain: bool = True, timeout: float | None = None) -> None:
        """Refuses new requests and stops the thread.

        Args:
            drain: finish all requests first; otherwise they are cancelled. A second call may
                cancel what the first one is waiting for.
            timeout: seconds to wait for requests to finish, after which they are cancelled; None:
                as long as they take.
        """
        with self._condition:
            self._closing = "drain" if drain and self._closing != "now" else "now"
            self._condition.notify()
        if threading.current_thread() is self._thread:
            return
        self._thread.join(timeout)
        if self._thread.is_alive():
            with self._condition:
                self._closing = "now"
                self._condition.notify()
            self._thread.join()

    def _after_fork(self) -> None:
        """In a fork of the process, where the engine's thread does not exist: gives up."""
        self._condition = threading.Condition()  # the other one may be locked for good
        self._arrived, self._unconstrained, self._callbacks = {}, {}, {}
        self._withdrawn, self._cancelled = [], []
        self._stopped = True
        self._loop.dead = EngineDeadError(
            "the engine's thread is in the process that this one was forked from: make an engine "
            "in each process, after the fork"
        )

    def _submit(
        self, states: Sequence[State], on_output: OnOutput, line: dict[int, Sequence[State]]
    ) -> int:
        """Puts the samples of a request into one of the lines."""
        with self._condition:
            if self._loop.dead is not None:
                raise EngineDeadError(str(self._loop.dead)) from self._loop.dead.__cause__
            if self._closing or self._stopped:
                raise EngineClosedError("the engine is shutting down: it takes no new requests")
            most = self._max_running + self._max_waiting
            if len(states) > most:
                raise ConfigError(
                    f"n is {len(states)}; at most {most} samples are taken at a time: ask for "
                    "fewer, or make the engine with a larger max_waiting"
                )
            waiting = self._num_waiting()
            if waiting + len(states) > self._core.free_places + self._max_waiting:
                raise QueueFullError(
                    f"{waiting} requests are waiting, and at most {self._max_waiting} may wait for "
                    "others to end: try again later"
                )
            request_id = states[0].request_id
            line[request_id] = states
            self._callbacks[request_id] = on_output
            self._condition.notify()
        return request_id

    def _num_waiting(self) -> int:
        lines = (*self._arrived.values(), *self._unconstrained.values())
        return sum(map(len, lines)) + self._core.num_waiting

    def _constrain(self, request_id: int, constraint: "Future[TokenConstraint]") -> None:
        """Lets a request go on whose constraint is there, or ends it if it has failed."""
        with self._condition:
            states = self._unconstrained.get(request_id)
        if states is None:  # cancelled
            return
        error: GemmuleError | None = None
        try:
            self._core.constrain(states, constraint.result())
        except GemmuleError as e:
            error = e
        except BaseException as e:  # whatever it is, the request must end
            error = ConstraintError(
                f"the constraint could not be made: {type(e).__name__}: {first_line(e)}"
            )
            error.__cause__ = e
        with self._condition:
            if self._unconstrained.pop(request_id, None) is None:  # cancelled meanwhile
                return
            if error is None:
                self._arrived[request_id] = states
            else:
                self._withdrawn.append((states, "error", error))
            self._condition.notify()

    def _run(self) -> None:
        """Runs steps until the engine is shut down or dead."""
        try:
            while self._take_up():
                if not self._core.num_requests:
                    continue
                try:
                    outputs = self._loop.step()
                except EngineDeadError:
                    _log.exception("the engine has stopped")
                    return
                except Exception:
                    _log.warning("a step of the engine failed; it is tried again", exc_info=True)
                    outputs = self._core.take_outputs()
                self._deliver(outputs)
                self._report(self._loop.report)
        except BaseException as error:
            self._loop.give_up(error)
            raise
        finally:
            self._end_all()

    def _take_up(self) -> bool:
        """Waits for work and takes it up; returns whether to run a step."""
        core = self._core
        with self._condition:
            self._condition.wait_for(
                lambda: (
                    core.num_requests
                    or self._arrived
                    or self._withdrawn
                    or self._cancelled
                    or self._weights_changed
                    or (self._closing and not self._unconstrained)
                    or self._closing == "now"
                )
            )
            arrived, self._arrived = self._arrived, {}
            withdrawn, self._withdrawn = self._withdrawn, []
            cancelled, self._cancelled = self._cancelled, []
            changed, self._weights_changed = self._weights_changed, False
            for states in arrived.values():
                core.add(states)
            for states, reason, error in withdrawn:
                core.add(states)
                core.end(states[0].request_id, reason, error)
            for request_id in cancelled:
                core.cancel(request_id)
            closing = self._closing
            more = bool(core.num_requests or self._unconstrained) or closing is None
        if changed:
            self._loop.weights_changed()
        self._deliver_alone(core.take_outputs())
        if closing == "now":
            return False
        return more

    def _deliver(self, outputs: Sequence[RequestOutput]) -> None:
        """Calls the callbacks of outputs, outside the lock."""
        for output in outputs:
            with self._condition:
                take = self._callbacks.pop if output.finished else self._callbacks.get
                on_output = take(output.request_id, None)
            if on_output is None:
                continue
            try:
                on_output(output)
            except Exception:
                _log.exception("a callback raised; its request %d is cancelled", output.request_id)
                with self._condition:
                    if self._callbacks.pop(output.request_id, None) is not None:
                        self._cancelled.append(output.request_id)

    def _deliver_alone(self, outputs: Sequence[RequestOutput]) -> None:
        """Does the same for outputs that came without a step."""
        self._deliver(outputs)
        if outputs:
            self._report(StepReport(time.monotonic()))

    def _report(self, report: StepReport) -> None:
        if self._after_step is None:
            return
        try:
            self._after_step(report)
        except Exception:
            _log.exception("after_step raised")

    def _end_all(self) -> None:
        """Gives every request that is left its last output."""
        with self._condition:
            self._stopped = True
            left = [*self._arrived.values(), *self._unconstrained.values()]
            left += [states for states, _, _ in self._withdrawn]
            self._arrived, self._unconstrained, self._withdrawn = {}, {}, []
        for states in left:
            self._core.add(states)
        dead = self._loop.dead
        self._core.abort("cancelled" if dead is None else "error", dead)
        self._deliver_alone(self._core.take_outputs())
