"""Many requests through one runner, a step at a time.

One thread steps at a time; others may submit and cancel meanwhile.
"""

import itertools
import threading
from collections import deque
from collections.abc import Iterator, Sequence

from gemmule.errors import ConfigError
from gemmule.infer.core.cache_size import pages_for
from gemmule.infer.core.pages import most_pages
from gemmule.infer.core.request import (
    Completion,
    Event,
    Request,
    Score,
    check_prompt,
    check_text,
    checked_ids,
    length_of,
)
from gemmule.infer.core.request_state import Generation, Job, Scoring
from gemmule.infer.core.scheduler import Part, Scheduler
from gemmule.infer.core.speculative import Speculation
from gemmule.infer.runners.protocol import PAGE, Runner, Span
from gemmule.model.tokenizer import Tokenizer


class Engine:
    """Takes requests at any time and runs them together.

    What a request gets does not depend on what else is there.

    Attributes:
        scheduler: what runs, what waits, and the pages.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer | None = None,
        *,
        cache_bytes: int | None = None,
        cache_tokens: int | None = None,
        speculation: Speculation | None = None,
    ) -> None:
        """Makes the pool of pages.

        Args:
            runner: who computes.
            tokenizer: its partner; None: ids only, and nothing but a limit ends an answer.
            cache_bytes: most memory for keys and values; None: see `pages_for`.
            cache_tokens: the same in tokens, instead.
            speculation: who guesses ahead; None: nobody.

        Raises:
            ConfigError: for an impossible size.
            TokenizerError: for a draft model with another tokenizer.
        """
        if speculation is not None:
            speculation.drafter.check(tokenizer)
        self._runner, self._tokenizer, self._speculation = runner, tokenizer, speculation
        rows = runner.config.vocab_size
        self._vocab_sizes = (rows if tokenizer is None else tokenizer.vocab_size, rows)
        pages = pages_for(runner, cache_bytes, cache_tokens)
        runner.allocate(pages)
        self.scheduler = Scheduler(pages, runner.config.sliding_window, runner.max_step_tokens)
        self._jobs: dict[int, Job] = {}
        self._numbers = itertools.count()
        # What other threads want is put here, and taken up between steps.
        self._arrived: deque[Job] = deque()
        self._cancelled: deque[int] = deque()
        self._stepping = threading.Lock()
        self._news: deque[Event] = deque()  # of requests that nobody iterates over

    @property
    def busy(self) -> bool:
        """Whether a step has something to do."""
        return bool(self._jobs or self._arrived)

    def submit(self, request: Request) -> int:
        """Lines a request up; its id, by which events name it.

        Raises:
            ConfigError: when it can never run: an id that the model does not have, a prompt longer
                than the context, more than the pool of pages can hold.
        """
        job = self._generation(request)
        job.inbox = self._news
        self._arrived.append(job)
        return job.sequence.number

    def cancel(self, number: int) -> None:
        """Ends a request; its last event says so. One that has ended already stays as it is."""
        self._cancelled.append(number)
        if self._stepping.acquire(blocking=False):
            try:
                self._take_up()
            finally:
                self._stepping.release()

    def step(self) -> list[Event]:
        """Runs some tokens of some requests; what is new of those that were submitted.

        Whatever is raised on the way, no request is lost: the next step computes anew.
        """
        self._step()
        return [self._news.popleft() for _ in range(len(self._news))]

    def iterate(self, request: Request) -> Iterator[Event]:
        """The events of one request, which begins with the first `next`; closing it cancels.

        Several may be iterated over at once, from one thread or from several.

        Raises:
            ConfigError: at once; as for `submit`.
        """
        return self._follow(self._generation(request))

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Runs requests to their ends; in the order given.

        Raises:
            ConfigError: as for `submit`, before anything has run.
        """
        jobs = [self._generation(request) for request in requests]
        self._finish(jobs)
        return [job.completion() for job in jobs]

    def score(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Score]:
        """How likely continuations are; contexts that begin alike are computed once.

        Args:
            pairs: ids of a context, at least one (a whole text's is its first token), and of what
                follows it.

        Raises:
            ConfigError: for ids that the model does not have, or a pair longer than the context.
        """
        jobs = [self._scoring(context, continuation) for context, continuation in pairs]
        self._finish([job for job in jobs if not job.done])
        return [job.score() for job in jobs]

    def _generation(self, request: Request) -> Generation:
        context = self._runner.config.max_position_embeddings
        room = check_prompt(context, length_of(request.prompt, "the prompt"))
        prompt = checked_ids(request.prompt, self._vocab_sizes[1], "the prompt")
        params = request.params
        if params.stop and self._tokenizer is None:
            raise ConfigError(f"stop is {params.stop!r}; without a tokenizer there is no text")
        request = Request(prompt, params, request.row)
        job = Generation(
            next(self._numbers), request, self._tokenizer, room, self._vocab_sizes
        )  # fmt: skip
        self._check_fits(job.sequence.most, "a shorter max_new_tokens")
        return job

    def _scoring(self, context: Sequence[int], continuation: Sequence[int]) -> Scoring:
        most = self._runner.config.max_position_embeddings
        length = length_of(context, "the context")
        if continuation:
            length += length_of(continuation, "the continuation")
        check_text(most, length - 1)
        ids = checked_ids(context, self._vocab_sizes[1], "the context")
        if continuation:
            ids += checked_ids(continuation, self._vocab_sizes[1], "the continuation")
        job = Scoring(next(self._numbers), ids, len(context))
        job.done = not continuation
        self._check_fits(length - 1, "a shorter text")
        return job

    def _check_fits(self, positions: int, instead: str) -> None:
        if self.scheduler.can_ever_run(positions):
            return
        size, window = self.scheduler.pool.size, self._runner.config.sliding_window
        needed = most_pages(positions, window) * self._runner.page_bytes
        raise ConfigError(
            f"{positions} tokens need {needed} bytes of cache ({PAGE} tokens a page); it has "
            f"{size * self._runner.page_bytes}: give it more (cache_bytes), or ask for {instead}"
        )

    def _follow(self, job: Generation) -> Iterator[Event]:
        job.inbox = deque()
        self._arrived.append(job)
        try:
            while True:
                while job.inbox:
                    yield job.inbox.popleft()
                if job.done:
                    return
                self._step()
        finally:
            if not job.done:
                self.cancel(job.sequence.number)

    def _finish(self, jobs: Sequence[Job]) -> None:
        self._arrived.extend(jobs)
        try:
            while not all(job.done for job in jobs):
                self._step()
        finally:
            for job in jobs:
                if not job.done:
                    self.cancel(job.sequence.number)

    def _take_up(self) -> None:
        """Takes up what has arrived and what was cancelled since the last step."""
        while self._arrived:
            job = self._arrived.popleft()
            self._jobs[job.sequence.number] = job
            self.scheduler.add(job.sequence)
        while self._cancelled:
            cancelled = self._jobs.get(self._cancelled.popleft())
            if cancelled is not None:
                self._note(cancelled, cancelled.cancel())

    def _step(self) -> None:
        with self._stepping:
            try:
                self._take_up()
                self._speculate()
                self._run(self.scheduler.plan())
            except BaseException:
                self.scheduler.restart()
                if self._speculation is not None:
                    self._speculation.drafter.restart()
                raise

    def _speculate(self) -> None:
        if self._speculation is None:
            return
        jobs = [self._jobs[s.number] for s in self.scheduler.running if s.pending == 1]
        # Guesses share what others leave of a step.
        free = self._runner.max_step_tokens - len(self.scheduler.running)
        some = [job for job in jobs if isinstance(job, Generation)][: max(0, free)]
        self._speculation.prepare(some)

    def _run(self, parts: Sequence[Part]) -> None:
        assert parts or not self._jobs, "there is work, and none of it can run"
        jobs = [self._jobs[part.sequence.number] for part in parts]
        spans = [_span(part, job) for part, job in zip(parts, jobs, strict=True)]
        pending = [part.sequence.pending for part in parts]
        found = self._runner.step(spans) if spans else []
        drawn = 0
        for part, job, predictions, tokens in zip(parts, jobs, found, pending, strict=True):
            settled, event = job.take(part, predictions)
            self.scheduler.advance(part, settled)
            if self._speculation is not None:
                drafted = max(0, len(part.tokens) - tokens)
                self._speculation.observe(job.sequence.number, drafted, max(0, settled - tokens))
            drawn += 0 if event is None else len(event.ids)
            self._note(job, event)
        if self._speculation is not None and set(pending) == {1}:
            self._speculation.measure(len(parts), drawn)

    def _note(self, job: Job, event: Event | None) -> None:
        """Passes an event on, and forgets a job that has ended."""
        if event is not None and job.inbox is not None:
            job.inbox.append(event)
        if job.done:
            del self._jobs[job.sequence.number]
            self.scheduler.remove(job.sequence)
            if self._speculation is not None:
                self._speculation.forget(job.sequence.number)


def _span(part: Part, job: Job) -> Span:
    outputs = [job.output(p - part.start, p) for p in part.positions]
    table = part.sequence.table
    return Span(part.tokens, part.start, table.global_pages, table.local_pages, outputs)
