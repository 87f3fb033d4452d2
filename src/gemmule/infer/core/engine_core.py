"""The engine without a runner, threads or I/O: it plans steps, and applies their outputs.

A driver owns the runner and calls `plan`, `runner.step` and `apply` in turn. See driver.py for the
synchronous one and async_driver.py for the one with a thread.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cached_property

from gemmule.errors import ConfigError, GemmuleError
from gemmule.infer.core.constraint import TokenConstraint, TokenFilter, VocabularyMasks
from gemmule.infer.core.pages import PoolStats, max_pages
from gemmule.infer.core.prompt_budget import PromptBudget
from gemmule.infer.core.request import (
    Request,
    RequestOutput,
    check_prompt,
    check_text,
    checked_ids,
    length_of,
)
from gemmule.infer.core.request_state import GenerationState, RequestState
from gemmule.infer.core.scheduler import Scheduler
from gemmule.infer.core.scoring_state import ScoringState
from gemmule.infer.core.speculative import Speculation
from gemmule.infer.runners.protocol import PAGE, Runner, ScheduledChunk, StepOutput
from gemmule.model.tokenizer import Tokenizer


@dataclass(frozen=True)
class EngineStats:
    """Counters and gauges of an engine.

    Attributes:
        running: requests that run.
        waiting: requests that wait: new ones, and preempted ones.
        pool: use of the pages.
        page_bytes: memory of a page.
        preemptions: how often a request had to give up its pages.
        prompt_tokens: tokens of the prompts of all samples that have started.
        cached_tokens: those of them that were found in the prefix cache.
        generated_tokens: tokens sampled.
        steps: steps applied.
        draft_tokens: draft tokens that the model was run over.
        accepted_tokens: those of them that were accepted.
    """

    running: int
    waiting: int
    pool: PoolStats
    page_bytes: int
    preemptions: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    steps: int
    draft_tokens: int
    accepted_tokens: int


class EngineCore:
    """Requests, scheduler and speculation, without anything that computes.

    Not safe for threads; `generation` and `scoring` alone may be called from any.
    """

    def __init__(
        self,
        runner: Runner,
        pages: int,
        tokenizer: Tokenizer | None = None,
        speculation: Speculation | None = None,
        *,
        max_running: int | None = None,
        prompt_budget: PromptBudget | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts without requests.

        Args:
            runner: only its limits and shapes are read.
            pages: size of the pool.
            tokenizer: decodes outputs; None: outputs are ids, and only a limit ends them.
            speculation: proposes draft tokens; None: none are proposed.
            max_running: maximum number of running requests; None: as many as the pages hold.
            prompt_budget: bounds what prompts add to steps in which others decode; None: nothing.
            clock: current time in seconds.

        Raises:
            TokenizerError: if the draft model has another tokenizer.
        """
        if speculation is not None:
            speculation.draft_model.check(tokenizer)
        self._config = runner.config
        self._max_step_tokens, self._page_bytes = runner.max_step_tokens, runner.page_bytes
        self._tokenizer, self._speculation, self._clock = tokenizer, speculation, clock
        self._num_logits = runner.config.vocab_size
        self._vocab_size = self._num_logits if tokenizer is None else tokenizer.vocab_size
        self._scheduler = Scheduler(
            pages, self._config.sliding_window, runner.max_step_tokens, max_running
        )
        self._prompt_budget = prompt_budget
        self._decoded = self._prompt = 0  # tokens of the step that was planned last
        self._planned = 0.0
        self._states: dict[int, RequestState] = {}  # by the ids of their sequences
        # Of requests with several samples: the ids of those that have not ended.
        self._unfinished: dict[int, list[int]] = {}
        self._ids = itertools.count()
        self._outputs: list[RequestOutput] = []
        self._prompt_tokens = self._cached_tokens = self._generated_tokens = self._steps = 0

    @property
    def num_requests(self) -> int:
        """Number of requests that have been added and have not ended; each sample counts."""
        return len(self._states)

    @property
    def num_waiting(self) -> int:
        """Number of requests that wait to run."""
        return len(self._scheduler.waiting)

    @property
    def free_places(self) -> int:
        """Number of requests that may start in the next step, if they are short."""
        return self._scheduler.free_places

    def stats(self) -> EngineStats:
        """Returns the current counters and gauges."""
        scheduler, speculation = self._scheduler, self._speculation
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            pool=scheduler.pool.stats(),
            page_bytes=self._page_bytes,
            preemptions=scheduler.preemptions,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            generated_tokens=self._generated_tokens,
            steps=self._steps,
            draft_tokens=0 if speculation is None else speculation.drafted,
            accepted_tokens=0 if speculation is None else speculation.accepted,
        )

    def fits(self, positions: int) -> bool:
        """Whether a sequence of `positions` fits in the pool if nothing else runs."""
        return self._scheduler.can_ever_run(positions)

    def generation(self, request: Request, *, wait: bool = True) -> list[GenerationState]:
        """Checks a request and returns the states of its samples, to be added.

        Args:
            request: prompt, settings and constraint.
            wait: wait for a constraint that is a future; otherwise it is left to `constrain`.

        Raises:
            ConfigError: if it can never run: an id that the model does not have, a prompt longer
                than the context, more than the pool of pages can hold, a constraint that is for
                another vocabulary or allows no first token.
        """
        context = self._config.max_position_embeddings
        length = length_of(request.prompt, "the prompt")
        remaining = check_prompt(context, length, request.params.max_new_tokens)
        prompt = checked_ids(request.prompt, self._num_logits, "the prompt")
        params = request.params
        if params.stop and self._tokenizer is None:
            raise ConfigError(f"stop is {params.stop!r}; without a tokenizer there is no text")
        if params.biases:
            checked_ids([token for token, _ in params.biases], self._vocab_size, "logit_bias")
        request = replace(request, prompt=prompt)
        ids = [next(self._ids) for _ in range(params.n)]
        states = [
            GenerationState(
                sequence_id,
                request,
                self._tokenizer,
                remaining=remaining,
                vocab_size=self._vocab_size,
                num_logits=self._num_logits,
                request_id=ids[0],
                sample=sample,
                now=self._clock(),
            )
            for sample, sequence_id in enumerate(ids)
        ]
        self._check_fits(states[0].sequence.max_len, "a shorter max_new_tokens")
        constraint = request.constraint
        if not isinstance(constraint, Future):
            self.constrain(states, constraint)
        elif wait:
            self.constrain(states, constraint.result())
        return states

    def constrain(
        self, states: Sequence[GenerationState], constraint: TokenConstraint | None
    ) -> None:
        """Gives each sample of a request a copy of its constraint, before they are added.

        Raises:
            ConfigError: if the constraint is for another vocabulary, or allows no first token.
        """
        params = states[0].params
        if constraint is None and not params.min_tokens and not params.ignore_eos:
            return
        for state in states:
            state.filter = TokenFilter(params, self._masks, constraint)

    def scoring(self, context: Sequence[int], continuation: Sequence[int]) -> ScoringState:
        """Checks a continuation to be scored and returns its state, to be added unless done.

        Raises:
            ConfigError: for ids that the model does not have, or a text longer than the context.
        """
        length = length_of(context, "the context")
        if continuation:
            length += length_of(continuation, "the continuation")
        check_text(self._config.max_position_embeddings, length - 1)
        ids = checked_ids(context, self._num_logits, "the context")
        if continuation:
            ids += checked_ids(continuation, self._num_logits, "the continuation")
        state = ScoringState(next(self._ids), ids, len(context))
        self._check_fits(length - 1, "a shorter text")
        return state

    def add(self, states: Sequence[RequestState]) -> None:
        """Makes the samples of a request wait for their first step.

        Those that were added before stay as they are.
        """
        if len(states) > 1:
            ids = [state.sequence.sequence_id for state in states]
            self._unfinished.setdefault(states[0].request_id, ids)
        for state in states:
            if state.sequence.sequence_id not in self._states:
                self._scheduler.add(state.sequence)
                self._states[state.sequence.sequence_id] = state

    def cancel(self, request_id: int) -> None:
        """Ends all samples of a request and frees their pages; `apply` returns their last outputs.

        A request that is unknown, or has ended already, is left as it is. May be called between
        `plan` and `apply`: the step's outputs for the request are then dropped.
        """
        self.end(request_id, "cancelled")

    def end(self, request_id: int, reason: str, error: GemmuleError | None = None) -> None:
        """Does the same with another finish reason."""
        for sequence_id in [*self._unfinished.get(request_id, (request_id,))]:
            state = self._states.get(sequence_id)
            if state is not None:
                self._note(state, state.end(reason, self._clock(), error))

    def abort(self, reason: str, error: GemmuleError | None = None) -> None:
        """Ends all requests with a finish reason; `take_outputs` returns their last outputs."""
        now = self._clock()
        for state in [*self._states.values()]:
            self._note(state, state.end(reason, now, error))

    def plan(self) -> list[ScheduledChunk]:
        """Returns the chunks of the next step; empty if there is nothing to do."""
        now = self._planned = self._clock()
        self._propose()
        budget = self._prompt_budget
        chunks = self._scheduler.plan(None if budget is None else budget.tokens())
        assert chunks or not self._states, "there is work, and none of it can run"
        self._decoded = self._prompt = 0
        for chunk in chunks:
            state = self._states[chunk.sequence_id]
            if state.sequence.num_uncomputed == 1:
                self._decoded += len(chunk.tokens)
            else:
                self._prompt += len(chunk.tokens)
            if state.scheduled is None:
                state.scheduled = now
                if isinstance(state, GenerationState):
                    self._prompt_tokens += len(state.sequence.tokens)
                    self._cached_tokens += state.sequence.num_cached or 0
        return chunks

    def tokens_of_requests(self, chunks: Sequence[ScheduledChunk]) -> dict[int, int]:
        """Returns the number of tokens of planned chunks, by the ids of their requests."""
        tokens: dict[int, int] = {}
        for chunk in chunks:
            request_id = self._states[chunk.sequence_id].request_id
            tokens[request_id] = tokens.get(request_id, 0) + len(chunk.tokens)
        return tokens

    def apply(
        self, chunks: Sequence[ScheduledChunk], outputs: Sequence[Sequence[StepOutput]]
    ) -> list[RequestOutput]:
        """Takes the outputs of a planned step; returns what is new of all requests."""
        now = self._clock()
        if self._prompt_budget is not None:
            self._prompt_budget.measure(self._decoded, self._prompt, now - self._planned)
        generated = rows = 0
        decode_only = True
        for chunk, chunk_outputs in zip(chunks, outputs, strict=True):
            state = self._states.get(chunk.sequence_id)
            if state is None:  # cancelled while the step ran
                continue
            num_uncomputed = state.sequence.num_uncomputed
            decode_only &= num_uncomputed == 1
            committed, output = state.apply(chunk, chunk_outputs, now)
            self._scheduler.advance(state.sequence, chunk.start + committed)
            if self._speculation is not None:
                drafted = max(0, len(chunk.tokens) - num_uncomputed)
                accepted = max(0, committed - num_uncomputed)
                self._speculation.observe(chunk.sequence_id, drafted, accepted)
            rows += 1
            generated += 0 if output is None else len(output.ids)
            self._note(state, output)
        self._steps += bool(chunks)
        self._generated_tokens += generated
        if self._speculation is not None and rows and decode_only:
            self._speculation.measure(rows, generated)
        return self.take_outputs()

    def take_outputs(self) -> list[RequestOutput]:
        """Returns, once, what is new of all requests since the last call or `apply`."""
        outputs, self._outputs = self._outputs, []
        return outputs

    def reset(self) -> None:
        """Drops everything computed, and keeps all requests and what they have generated.

        For a step that failed, and for one that Ctrl-C interrupted anywhere: the pages may hold
        anything, and the scheduler as well.
        """
        self._scheduler.reset([s.sequence for s in self._states.values() if not s.done])
        for state in [s for s in self._states.values() if s.done]:
            self._note(state, None)
        if self._speculation is not None:
            self._speculation.draft_model.reset()

    def weights_changed(self) -> None:
        """Drops everything computed with old weights; requests, counters and verdicts stay."""
        self._scheduler.reset([state.sequence for state in self._states.values()])
        if self._speculation is not None:
            self._speculation.draft_model.weights_changed()

    @cached_property
    def _masks(self) -> VocabularyMasks:
        return VocabularyMasks(self._tokenizer, self._vocab_size, self._num_logits)

    def _propose(self) -> None:
        if self._speculation is None:
            return
        decoding = [
            self._states[s.sequence_id] for s in self._scheduler.running if s.num_uncomputed == 1
        ]
        # Draft tokens share what the running sequences leave of a step.
        free = max(0, self._max_step_tokens - len(self._scheduler.running))
        generations = [state for state in decoding if isinstance(state, GenerationState)]
        self._speculation.propose(generations[:free])

    def _check_fits(self, positions: int, instead: str) -> None:
        if self.fits(positions):
            return
        needed = max_pages(positions, self._config.sliding_window) * self._page_bytes
        raise ConfigError(
            f"{positions} tokens need {needed} bytes of cache ({PAGE} tokens a page); it has "
            f"{self._scheduler.pool.size * self._page_bytes}: give it more (cache_bytes), or ask "
            f"for {instead}"
        )

    def _note(self, state: RequestState, output: RequestOutput | None) -> None:
        """Keeps an output, and forgets a sample that has ended."""
        if state.done:
            sequence_id = state.sequence.sequence_id
            del self._states[sequence_id]
            self._scheduler.remove(state.sequence)
            if self._speculation is not None:
                self._speculation.forget(sequence_id)
            others = self._unfinished.get(state.request_id)
            if others is not None:
                others.remove(sequence_id)
                if not others:
                    del self._unfinished[state.request_id]
                elif output is not None:
                    output = replace(output, unfinished=len(others))
        if output is not None:
            self._outputs.append(output)
