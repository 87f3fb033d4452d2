"""Guessing tokens ahead, and running the model over several guesses at once.

What comes out is what would have come out without, token for token: at each position the request's
own sampler draws from the model's own logits, and a guess counts where it is what was drawn. So a
guess is accepted exactly as often as the model gives its token (for a guesser that does not draw
this is the acceptance of arXiv 2211.17192), and the seed means the same with and without guesses.
A draft model draws its guesses with a copy of the request's generator: the same random numbers over
nearly the same distribution nearly always choose the same token.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from gemmule.errors import TokenizerError
from gemmule.infer.core.cache_size import pages_for
from gemmule.infer.core.pages import PagePool, PageTable
from gemmule.infer.core.request_state import Generation, draw, output_for
from gemmule.infer.core.sampling import Sampler
from gemmule.infer.runners.protocol import Output, Prediction, Runner, Span
from gemmule.model.tokenizer import Tokenizer

_FIRST_GUESS, _MOST_GUESSES = 4, 16  # tokens at a time
_TRIAL, _TRUST = 12, 400  # steps that a measurement takes, and that its verdict holds for
_FASTER = 1.03  # by less than this is no gain


def check_same_tokenizer(tokenizer: Tokenizer | None, draft: Tokenizer) -> None:
    """Raises TokenizerError when a draft's ids mean something else."""
    if tokenizer is None or tokenizer.fingerprint != draft.fingerprint:
        raise TokenizerError(
            "the draft model has another tokenizer: its ids mean something else. Take a model that "
            "was trained with the same one"
        )


class Drafter(Protocol):
    """Guesses how sequences go on."""

    def check(self, tokenizer: Tokenizer | None) -> None:
        """Raises TokenizerError when its ids are not those of `tokenizer`."""

    def propose(self, jobs: Sequence[Generation], counts: Sequence[int]) -> list[list[int]]:
        """At most so many tokens for each."""

    def forget(self, number: int) -> None:
        """A request has ended."""

    def restart(self) -> None:
        """Forgets all that it has computed."""


class PromptLookup:
    """What followed the last time that the same few tokens stood there, in prompt or answer."""

    _SIZES = (3, 2)  # tokens that must be the same, the most telling first

    def __init__(self) -> None:
        # For each request: how many tokens were looked at, and where each few tokens ended last.
        self._seen: dict[int, tuple[int, dict[tuple[int, ...], int]]] = {}

    def check(self, tokenizer: Tokenizer | None) -> None:
        """See `Drafter`."""

    def propose(self, jobs: Sequence[Generation], counts: Sequence[int]) -> list[list[int]]:
        """See `Drafter`."""
        return [self._look_up(job, count) for job, count in zip(jobs, counts, strict=True)]

    def forget(self, number: int) -> None:
        """See `Drafter`."""
        self._seen.pop(number, None)

    def restart(self) -> None:
        """See `Drafter`."""
        self._seen.clear()

    def _look_up(self, job: Generation, count: int) -> list[int]:
        tokens = job.sequence.tokens
        looked_at, ends = self._seen.get(job.sequence.number, (1, {}))
        for end in range(looked_at, len(tokens)):
            for size in self._SIZES:
                if end >= size:
                    ends[tuple(tokens[end - size : end])] = end
        self._seen[job.sequence.number] = (len(tokens), ends)
        for size in self._SIZES:
            place = ends.get(tuple(tokens[-size:]))
            if place is not None:
                guesses: list[int] = []
                for at in range(
                    place, place + count
                ):  # past the end it goes on with its own guesses
                    guesses.append(tokens[at] if at < len(tokens) else guesses[at - len(tokens)])
                return guesses
        return []


class DraftModel:
    """A smaller model with the same tokenizer, and pages of its own."""

    def __init__(
        self, runner: Runner, tokenizer: Tokenizer, *, cache_bytes: int | None = None
    ) -> None:
        """Makes its pool of pages.

        Args:
            runner: who computes it.
            tokenizer: its partner.
            cache_bytes: most memory for its keys and values; None: see `pages_for`.
        """
        self._runner, self._tokenizer = runner, tokenizer
        self._size = pages_for(runner, cache_bytes)
        runner.allocate(self._size)
        self.restart()

    def check(self, tokenizer: Tokenizer | None) -> None:
        """See `Drafter`."""
        check_same_tokenizer(tokenizer, self._tokenizer)

    def propose(self, jobs: Sequence[Generation], counts: Sequence[int]) -> list[list[int]]:
        """See `Drafter`."""
        drafts = [
            _Draft(job, self._table(job), job.sampler.fork(), self._output(job), count)
            for job, count in zip(jobs, counts, strict=True)
        ]
        while active := [draft for draft in drafts if draft.wants_more]:
            self._step(active)
        for draft in drafts:
            if draft.job.sequence.number in self._tables:
                self._ran[draft.job.sequence.number] = draft.tokens[: draft.ran]
        return [draft.guesses for draft in drafts]

    def forget(self, number: int) -> None:
        """See `Drafter`."""
        if number in self._tables:
            self._tables.pop(number).clear()
        self._ran.pop(number, None)

    def _forget_all_but(self, drafts: "Sequence[_Draft]") -> None:
        """Takes pages from requests that wait; theirs are computed again if they go on."""
        busy = {id(draft.table) for draft in drafts}
        for number in [n for n, table in self._tables.items() if id(table) not in busy]:
            self.forget(number)

    def restart(self) -> None:
        """See `Drafter`."""
        self._pool = PagePool(self._size)
        self._tables: dict[int, PageTable] = {}
        self._ran: dict[int, list[int]] = {}  # what stands in the pages, guesses included

    def _output(self, job: Generation) -> Output:
        return output_for(job.params, job.words, self._runner.config.vocab_size)

    def _table(self, job: Generation) -> PageTable:
        """The pages of a request, as far as what stands in them has come true."""
        number, tokens = job.sequence.number, job.sequence.tokens
        last = len(tokens) - 1  # to be run in any case: its prediction is the first guess
        if number not in self._tables:
            table = self._tables[number] = PageTable(self._pool, self._runner.config.sliding_window)
            table.reuse(tokens, last)
            return table
        table, ran = self._tables[number], self._ran[number]
        true = table.computed
        while true < min(last, len(ran)) and ran[true] == tokens[true]:
            true += 1
        table.advance(tokens, true)
        return table

    def _step(self, drafts: "Sequence[_Draft]") -> None:
        """Runs what each still has to run, as much as fits into a step."""
        budget = self._runner.max_step_tokens
        chosen: list[tuple[_Draft, Span]] = []
        for draft in drafts:
            end = min(len(draft.tokens), draft.ran + budget)
            if draft.table.needed(end) > self._pool.available:
                self._forget_all_but(drafts)
            fits = draft.table.needed(end) <= self._pool.available
            if not fits or end > self._runner.config.max_position_embeddings:
                draft.give_up()  # guesses are no more than that
            elif end > draft.ran:
                draft.table.grow(end)
                chosen.append((draft, draft.span(end)))
                budget -= end - draft.ran
        if not chosen:
            return
        found = self._runner.step([span for _, span in chosen])
        for (draft, span), predictions in zip(chosen, found, strict=True):
            draft.take(predictions, len(span.tokens))


@dataclass
class _Draft:
    """Guesses for one request in the making."""

    job: Generation
    table: PageTable
    sampler: Sampler
    output: Output
    count: int
    guesses: list[int] = field(default_factory=list)
    tokens: list[int] = field(init=False)
    ran: int = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = self.job.sequence.tokens[:]
        self.ran = self.table.computed

    @property
    def wants_more(self) -> bool:
        return len(self.guesses) < self.count

    def span(self, end: int) -> Span:
        outputs = []
        if end == len(self.tokens):
            outputs.append(replace(self.output, index=end - 1 - self.ran))
        pages = (self.table.global_pages, self.table.local_pages)
        return Span(self.tokens[self.ran : end], self.ran, *pages, outputs)

    def take(self, predictions: Sequence[Prediction], count: int) -> None:
        self.ran += count
        settled = min(self.ran, len(self.job.sequence.tokens) - 1)
        if settled > self.table.computed:  # pages of a long prompt go back as it goes on
            self.table.advance(self.job.sequence.tokens, settled)
        for prediction in predictions:
            guess = draw(self.sampler, prediction, self.job.words)
            self.tokens.append(guess)
            self.guesses.append(guess)

    def give_up(self) -> None:
        self.count = len(self.guesses)


class Speculation:
    """How many guesses to make, and whether they are worth their time.

    Attributes:
        drafted: guesses that the model was run over.
        accepted: those that were right.
    """

    def __init__(
        self,
        drafter: Drafter,
        always: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Starts without a verdict.

        Args:
            drafter: who guesses.
            always: guess without measuring whether it helps.
            clock: seconds.
        """
        self.drafter = drafter
        self.drafted = self.accepted = 0
        self._clock = clock
        self._counts: dict[int, int] = {}
        self._guesses = self._always = always
        self._measured: dict[bool, float] = {}  # tokens a second with and without
        self._rows = self._steps = self._tokens = 0
        self._seconds = self._began = 0.0

    def prepare(self, jobs: Sequence[Generation]) -> None:
        """Sets the drafts of requests that draw their next token in this step."""
        self._began = self._clock()
        if not self._guesses or not jobs:
            return
        counts = [
            min(self._counts.get(s.number, _FIRST_GUESS), s.most - len(s.tokens))
            for s in (job.sequence for job in jobs)
        ]
        drafts = self.drafter.propose(jobs, counts)
        for job, draft in zip(jobs, drafts, strict=True):
            job.sequence.draft = draft

    def observe(self, number: int, drafted: int, accepted: int) -> None:
        """What became of a request's guesses: it gets more where all were right, else fewer."""
        if drafted:
            self.drafted += drafted
            self.accepted += accepted
            count = self._counts.get(number, _FIRST_GUESS)
            count = count + 2 if accepted == drafted else count - 1
            self._counts[number] = max(1, min(count, _MOST_GUESSES))

    def measure(self, rows: int, tokens: int) -> None:
        """A step is over in which `rows` requests got `tokens` next tokens, and nothing else ran.

        Times are compared between steps of equally many rows only.
        """
        if self._always:
            return
        decided = len(self._measured) == 2
        if rows != self._rows and not (decided and self._rows / 2 < rows < self._rows * 2):
            self._measured, self._rows = {}, rows
            self._steps = self._tokens = 0
            self._seconds = 0.0
            return
        self._steps += 1
        self._tokens += tokens
        self._seconds += self._clock() - self._began
        if self._steps < (_TRUST if decided else _TRIAL):
            return
        if decided:  # the verdict has served its time
            self._measured = {}
        self._measured[self._guesses] = self._tokens / max(self._seconds, 1e-9)
        if len(self._measured) == 2:
            self._guesses = self._measured[True] > _FASTER * self._measured[False]
        else:
            self._guesses = not self._guesses
        self._steps = self._tokens = 0
        self._seconds = 0.0

    def forget(self, number: int) -> None:
        """A request has ended."""
        self._counts.pop(number, None)
        self.drafter.forget(number)
