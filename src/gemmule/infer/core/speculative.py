"""Speculative decoding: draft tokens are proposed, and the model runs over several at once.

The output is the same as without, token for token: at each position the request's own sampler
samples from the model's own logits, and a draft token is accepted if it equals the sampled token.
So a draft token is accepted exactly as often as the model gives it (for a proposer that does not
sample this is the acceptance of arXiv 2211.17192), and a seed means the same with and without draft
tokens. A draft model samples with a copy of the request's sampler: the same random numbers over
nearly the same distribution nearly always choose the same token.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from gemmule.errors import TokenizerError
from gemmule.infer.core.cache_size import pages_for
from gemmule.infer.core.constraint import Mask, resized
from gemmule.infer.core.pages import PagePool, PageTable
from gemmule.infer.core.request_state import GenerationState
from gemmule.infer.core.sampler import Sampler
from gemmule.infer.core.step_outputs import logits_request_for, sample
from gemmule.infer.runners.protocol import LogitsRequest, Runner, ScheduledChunk, StepOutput
from gemmule.model.tokenizer import Tokenizer

_FIRST_DRAFT, _MAX_DRAFT = 4, 16  # tokens at a time
_TRIAL_STEPS, _VERDICT_STEPS = 12, 400  # steps that a measurement takes, and that it holds for
_MIN_SPEEDUP = 1.03


def check_same_tokenizer(tokenizer: Tokenizer | None, draft: Tokenizer) -> None:
    """Raises TokenizerError if the ids of a draft model mean something else."""
    if tokenizer is None or tokenizer.fingerprint != draft.fingerprint:
        raise TokenizerError(
            "the draft model has another tokenizer: its ids mean something else. Take a model that "
            "was trained with the same one"
        )


class DraftModel(Protocol):
    """Proposes how sequences go on."""

    def check(self, tokenizer: Tokenizer | None) -> None:
        """Raises TokenizerError if its ids are not those of `tokenizer`."""

    def propose(
        self, requests: Sequence[GenerationState], counts: Sequence[int]
    ) -> list[list[int]]:
        """Returns draft tokens for each request, at most `counts[i]` for the i-th."""

    def forget(self, sequence_id: int) -> None:
        """Drops what is kept for a request that has ended."""

    def reset(self) -> None:
        """Drops everything computed."""

    def weights_changed(self) -> None:
        """Drops everything that depends on the draft model's weights, which have changed."""


class NgramDrafter:
    """Proposes what followed the last occurrence of the latest few tokens, in prompt or output."""

    _SIZES = (3, 2)  # lengths of n-grams, the most specific first

    def __init__(self) -> None:
        # For each request: how many tokens were indexed, and where each n-gram ended last.
        self._index: dict[int, tuple[int, dict[tuple[int, ...], int]]] = {}

    def check(self, tokenizer: Tokenizer | None) -> None:
        """Accepts every tokenizer."""

    def propose(
        self, requests: Sequence[GenerationState], counts: Sequence[int]
    ) -> list[list[int]]:
        """Returns draft tokens for each request, none where no n-gram matches."""
        return [self._look_up(request, n) for request, n in zip(requests, counts, strict=True)]

    def forget(self, sequence_id: int) -> None:
        """Drops the index of a request that has ended."""
        self._index.pop(sequence_id, None)

    def reset(self) -> None:
        """Drops all indexes."""
        self._index.clear()

    def weights_changed(self) -> None:
        """Keeps everything: nothing depends on weights."""

    def _look_up(self, request: GenerationState, count: int) -> list[int]:
        tokens, sequence_id = request.sequence.tokens, request.sequence.sequence_id
        indexed, ends = self._index.get(sequence_id, (1, {}))
        for end in range(indexed, len(tokens)):
            for size in self._SIZES:
                if end >= size:
                    ends[tuple(tokens[end - size : end])] = end
        self._index[sequence_id] = (len(tokens), ends)
        for size in self._SIZES:
            match = ends.get(tuple(tokens[-size:]))
            if match is not None:
                draft: list[int] = []
                for at in range(match, match + count):  # past the end, the draft itself repeats
                    draft.append(tokens[at] if at < len(tokens) else draft[at - len(tokens)])
                return draft
        return []


class ModelDrafter:
    """Proposes what a smaller model with the same tokenizer generates, on pages of its own."""

    def __init__(
        self, runner: Runner, tokenizer: Tokenizer, *, cache_bytes: int | None = None
    ) -> None:
        """Allocates its pool of pages.

        Args:
            runner: runs the draft model.
            tokenizer: tokenizer of the draft model.
            cache_bytes: maximum memory for its keys and values; None: as `pages_for` chooses.
        """
        self._runner, self._tokenizer = runner, tokenizer
        self._size = pages_for(runner, cache_bytes)
        runner.allocate(self._size)
        self.reset()

    @property
    def allocated_pages(self) -> int:
        """Number of pages that a request uses."""
        return self._pool.allocated

    @property
    def num_requests(self) -> int:
        """Number of requests for which something is kept."""
        return len(self._tables.keys() | self._computed.keys())

    def check(self, tokenizer: Tokenizer | None) -> None:
        """Raises TokenizerError if its ids are not those of `tokenizer`."""
        check_same_tokenizer(tokenizer, self._tokenizer)

    def propose(
        self, requests: Sequence[GenerationState], counts: Sequence[int]
    ) -> list[list[int]]:
        """Generates draft tokens for all requests together."""
        num_logits = self._runner.config.vocab_size
        drafts = [
            _Draft(request, self._table(request), request.sampler.fork(), num_logits, count)
            for request, count in zip(requests, counts, strict=True)
        ]
        while active := [draft for draft in drafts if draft.wants_more]:
            self._step(active)
        for draft in drafts:
            if draft.sequence_id in self._tables:
                self._computed[draft.sequence_id] = draft.tokens[: draft.computed]
        return [draft.draft_tokens for draft in drafts]

    def forget(self, sequence_id: int) -> None:
        """Frees the pages of a request that has ended."""
        if sequence_id in self._tables:
            self._tables.pop(sequence_id).clear()
        self._computed.pop(sequence_id, None)

    def reset(self) -> None:
        """Drops everything computed; the pool's memory stays."""
        self._pool = PagePool(self._size)
        self._tables: dict[int, PageTable] = {}
        self._computed: dict[int, list[int]] = {}  # tokens in the pages, draft tokens included

    def weights_changed(self) -> None:
        """Drops everything computed with the old weights."""
        self._runner.weights_changed()
        self.reset()

    def _forget_all_but(self, drafts: "Sequence[_Draft]") -> None:
        """Frees the pages of requests that wait; they are computed again if those go on."""
        active = {draft.sequence_id for draft in drafts}
        for sequence_id in self._tables.keys() - active:
            self.forget(sequence_id)

    def _table(self, request: GenerationState) -> PageTable:
        """The pages of a request, as far as they hold tokens that were accepted."""
        sequence_id, tokens = request.sequence.sequence_id, request.sequence.tokens
        last = len(tokens) - 1  # runs in any case: its logits give the first draft token
        if sequence_id not in self._tables:
            table = PageTable(self._pool, self._runner.config.sliding_window)
            self._tables[sequence_id] = table
            table.match_prefix(tokens, last)
            return table
        table, computed = self._tables[sequence_id], self._computed[sequence_id]
        valid = table.computed
        while valid < min(last, len(computed)) and computed[valid] == tokens[valid]:
            valid += 1
        table.advance(tokens, valid)
        return table

    def _step(self, drafts: "Sequence[_Draft]") -> None:
        """Runs the tokens that each draft still has to run, as many as fit into a step."""
        budget = self._runner.max_step_tokens
        chosen: list[tuple[_Draft, ScheduledChunk]] = []
        for draft in drafts:
            end = min(len(draft.tokens), draft.computed + budget)
            if draft.table.needed(end) > self._pool.available:
                self._forget_all_but(drafts)
            fits = draft.table.needed(end) <= self._pool.available
            if not fits or end > self._runner.config.max_position_embeddings:
                draft.give_up()  # a draft is never needed
            elif end > draft.computed:
                draft.table.grow(end)
                chosen.append((draft, draft.chunk(end)))
                budget -= end - draft.computed
        if not chosen:
            return
        outputs = self._runner.step([chunk for _, chunk in chosen])
        for (draft, chunk), chunk_outputs in zip(chosen, outputs, strict=True):
            draft.apply(chunk_outputs, len(chunk.tokens))


@dataclass
class _Draft:
    """Draft tokens of one request in the making."""

    request: GenerationState
    table: PageTable
    sampler: Sampler
    num_logits: int
    count: int
    draft_tokens: list[int] = field(default_factory=list)
    tokens: list[int] = field(init=False)
    computed: int = field(init=False)
    mask: Mask | None = field(init=False)
    template: LogitsRequest = field(init=False)
    masked: LogitsRequest = field(init=False)

    def __post_init__(self) -> None:
        params = replace(self.request.params, logprobs=None)
        self.template, self.masked = (
            logits_request_for(params, self.request.vocab_size, self.num_logits, masked)
            for masked in (False, True)
        )
        self.tokens = self.request.sequence.tokens[:]
        self.computed = self.table.computed
        self.mask = self._mask()

    @property
    def sequence_id(self) -> int:
        return self.request.sequence.sequence_id

    @property
    def wants_more(self) -> bool:
        return len(self.draft_tokens) < self.count

    def chunk(self, end: int) -> ScheduledChunk:
        logits = []
        if end == len(self.tokens):
            template = self.template if self.mask is None else self.masked
            logits.append(replace(template, index=end - 1 - self.computed, mask=self.mask))
        return ScheduledChunk(
            self.tokens[self.computed : end],
            self.computed,
            self.table.global_pages,
            self.table.local_pages,
            logits,
            self.sequence_id,
        )

    def apply(self, outputs: Sequence[StepOutput], count: int) -> None:
        self.computed += count
        committed = min(self.computed, len(self.request.sequence.tokens) - 1)
        if committed > self.table.computed:  # pages that leave the window are freed meanwhile
            self.table.advance(self.request.sequence.tokens, committed)
        for output in outputs:
            token = sample(self.sampler, output, self.request.vocab_size, self.mask)
            self.tokens.append(token)
            self.draft_tokens.append(token)
            if len(self.request.allowed_draft(self.draft_tokens)) < len(self.draft_tokens):
                self.give_up()
            else:
                self.mask = self._mask()

    def give_up(self) -> None:
        self.count = len(self.draft_tokens)

    def _mask(self) -> Mask | None:
        token_filter = self.request.filter
        mask = None if token_filter is None else token_filter.mask(self.draft_tokens)
        return None if mask is None else resized(mask, self.num_logits)


class Speculation:
    """Decides how many draft tokens to propose, and whether they save time.

    Attributes:
        draft_model: proposes draft tokens.
        drafted: draft tokens that the model was run over.
        accepted: draft tokens that were accepted.
    """

    def __init__(
        self,
        draft_model: DraftModel,
        always: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Starts without a verdict.

        Args:
            draft_model: proposes draft tokens.
            always: propose without measuring whether it helps.
            clock: current time in seconds.
        """
        self.draft_model = draft_model
        self.drafted = self.accepted = 0
        self._clock = clock
        self._counts: dict[int, int] = {}
        self._active = self._always = always
        self._speeds: dict[bool, float] = {}  # tokens per second, with and without draft tokens
        self._rows = self._steps = self._tokens = 0
        self._seconds = self._began = 0.0

    @property
    def active(self) -> bool:
        """Whether draft tokens are proposed at present."""
        return self._active

    @property
    def decided(self) -> bool:
        """Whether steps with and without draft tokens have both been timed."""
        return len(self._speeds) == 2

    @property
    def num_requests(self) -> int:
        """Number of requests for which something is kept."""
        return len(self._counts)

    def propose(self, requests: Sequence[GenerationState]) -> None:
        """Sets the draft tokens of requests that decode in this step."""
        self._began = self._clock()
        if not self._active or not requests:
            return
        counts = [
            min(self._counts.get(s.sequence_id, _FIRST_DRAFT), s.max_len - len(s.tokens))
            for s in (request.sequence for request in requests)
        ]
        drafts = self.draft_model.propose(requests, counts)
        for request, draft in zip(requests, drafts, strict=True):
            request.sequence.draft_tokens = request.allowed_draft(draft)

    def observe(self, sequence_id: int, drafted: int, accepted: int) -> None:
        """Counts a request's draft tokens; it gets more if all were accepted, else fewer."""
        if drafted:
            self.drafted += drafted
            self.accepted += accepted
            count = self._counts.get(sequence_id, _FIRST_DRAFT)
            count = count + 2 if accepted == drafted else count - 1
            self._counts[sequence_id] = max(1, min(count, _MAX_DRAFT))

    def measure(self, rows: int, tokens: int) -> None:
        """Times a step in which `rows` requests decoded `tokens` tokens and nothing else ran.

        Only steps with about the same number of rows are compared.
        """
        if self._always:
            return
        if rows != self._rows and not (self.decided and self._rows / 2 < rows < self._rows * 2):
            self._speeds, self._rows = {}, rows
            self._steps = self._tokens = 0
            self._seconds = 0.0
            return
        self._steps += 1
        self._tokens += tokens
        self._seconds += self._clock() - self._began
        if self._steps < (_VERDICT_STEPS if self.decided else _TRIAL_STEPS):
            return
        if self.decided:  # the verdict has expired
            self._speeds = {}
        self._speeds[self._active] = self._tokens / max(self._seconds, 1e-9)
        if self.decided:
            self._active = self._speeds[True] > _MIN_SPEEDUP * self._speeds[False]
        else:
            self._active = not self._active
        self._steps = self._tokens = 0
        self._seconds = 0.0

    def forget(self, sequence_id: int) -> None:
        """Drops what is kept for a request that has ended."""
        self._counts.pop(sequence_id, None)
        self.draft_model.forget(sequence_id)
