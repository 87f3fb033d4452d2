"""Which tokens of which sequences run in the next step. Free of torch.

Sequences that are decoding come first, then chunks of prompts, which may be kept small meanwhile:
a long prompt delays the others by little. When pages run out, the youngest sequence is preempted:
it frees its pages and is computed again later. The tokens it has generated stay.
"""

import bisect
import sys
from collections.abc import Callable, Iterable, Sequence

from gemmule.infer.core.pages import PagePool, PageTable, max_pages
from gemmule.infer.runners.protocol import PAGE, LogitsRequest, ScheduledChunk

_LOOK_AHEAD = 256  # waiting sequences that are considered in one step

# Called with a token's place within its chunk and its position.
LogitsRequests = Callable[[int, int], LogitsRequest]


class TokenSequence:
    """Tokens whose keys and values are to be computed, and where logits are needed.

    Attributes:
        sequence_id: its id, unlike any other's; ids are given in order of arrival.
        tokens: committed tokens: a prompt, and what was generated after it.
        first_output_pos: first position whose logits are still needed, as are all later ones.
        max_len: number of positions that it can ever have.
        draft_tokens: proposed next tokens, run with the last committed one.
        num_cached: positions found in the prefix cache when it first ran; None before that.
        table: its pages.
    """

    def __init__(
        self,
        sequence_id: int,
        tokens: Sequence[int],
        *,
        first_output_pos: int,
        max_len: int,
        logits_request: LogitsRequests,
    ) -> None:
        self.sequence_id = sequence_id
        self.tokens = list(tokens)
        self.first_output_pos = first_output_pos
        self.max_len = max_len
        self.logits_request = logits_request
        self.draft_tokens: Sequence[int] = ()
        self.num_cached: int | None = None
        self.table: PageTable

    @property
    def num_uncomputed(self) -> int:
        """Number of committed tokens that have not run yet."""
        return len(self.tokens) - self.table.computed

    def chunk(self, tokens: Sequence[int]) -> ScheduledChunk:
        """The next tokens as a chunk; their pages must be there."""
        table, start = self.table, self.table.computed
        outputs = range(max(start, self.first_output_pos), start + len(tokens))
        return ScheduledChunk(
            tokens,
            start,
            table.global_pages,
            table.local_pages,
            [self.logits_request(position - start, position) for position in outputs],
            self.sequence_id,
        )


class Scheduler:
    """Running and waiting sequences, and the pages they share.

    Attributes:
        pool: the pages.
        running: running sequences, in order of arrival.
        waiting: new and preempted sequences, in order of arrival.
        preemptions: number of preemptions so far.
        held_up: whether the last plan left a sequence waiting: for a place, for pages, or because
            other prompts fill the steps.
    """

    def __init__(
        self, pages: int, window: int, max_step_tokens: int, max_running: int | None = None
    ) -> None:
        """Starts without sequences.

        Args:
            pages: size of the pool.
            window: positions that local layers attend to.
            max_step_tokens: maximum number of tokens in a step.
            max_running: maximum number of running sequences; None: as many as the pages hold.
        """
        self._window, self._max_step_tokens = window, max_step_tokens
        self._max_running = sys.maxsize if max_running is None else max_running
        self.pool = PagePool(pages)
        self.running: list[TokenSequence] = []
        self.waiting: list[TokenSequence] = []
        self.preemptions = 0
        self.held_up = False

    def can_ever_run(self, positions: int) -> bool:
        """Whether a sequence of `positions` fits if nothing else runs."""
        return max_pages(positions, self._window) <= self.pool.size

    @property
    def free_places(self) -> int:
        """Number of sequences that may start in the next step, if they are short."""
        if self.held_up and self.waiting:
            return 0
        return self._max_running - len(self.running)

    def add(self, sequence: TokenSequence) -> None:
        """Adds a waiting sequence; it must fit if nothing else runs."""
        sequence.table = PageTable(self.pool, self._window)
        bisect.insort(self.waiting, sequence, key=_by_arrival)

    def remove(self, sequence: TokenSequence) -> None:
        """Removes a sequence, finished or not, and frees its pages."""
        for line in (self.running, self.waiting):
            if sequence in line:
                line.remove(sequence)
        sequence.table.clear()

    def reset(self, sequences: Iterable[TokenSequence]) -> None:
        """Makes exactly these sequences wait, and forgets what is in all pages."""
        self.pool = PagePool(self.pool.size)
        self.running, self.waiting = [], []
        for sequence in sequences:
            sequence.draft_tokens = ()
            self.add(sequence)

    def plan(self, max_prompt_tokens: int | None = None) -> list[ScheduledChunk]:
        """Fills the next step: at most `max_step_tokens` tokens, whose pages are allocated.

        Args:
            max_prompt_tokens: maximum number of tokens of prompts, if another sequence decodes in
                the step; None: as many as are left.
        """
        chunks: dict[int, ScheduledChunk] = {}
        before = self.preemptions
        decoding = [s for s in self.running if s.num_uncomputed == 1]
        budget = self._fill(decoding, chunks, self._max_step_tokens)
        if chunks and max_prompt_tokens is not None:
            budget = min(budget, max_prompt_tokens)
        prompts = [s for s in self.running if s.num_uncomputed > 1]  # without preempted ones
        budget = self._fill(prompts, chunks, budget)
        if self.preemptions == before:
            self._admit(chunks, budget)
        self.held_up = bool(self.waiting)
        return list(chunks.values())

    def advance(self, sequence: TokenSequence, computed: int) -> None:
        """Commits the positions of a sequence below `computed` after they have run."""
        sequence.draft_tokens = ()
        sequence.table.advance(sequence.tokens, computed)

    def _fill(
        self, sequences: Sequence[TokenSequence], chunks: dict[int, ScheduledChunk], budget: int
    ) -> int:
        """Adds chunks of running sequences; returns what is left of the budget."""
        before = self.preemptions
        for sequence in sequences:
            if budget < 1:
                break
            if self.preemptions > before and sequence not in self.running:  # it was preempted
                continue
            if self._ensure_page(sequence, chunks):
                chunk = chunks[sequence.sequence_id] = self._chunk(sequence, budget)
                budget -= len(chunk.tokens)
        return budget

    def _ensure_page(self, sequence: TokenSequence, chunks: dict[int, ScheduledChunk]) -> bool:
        """Preempts until one more token can run; False if the sequence itself was preempted."""
        table = sequence.table
        while table.needed(table.computed + 1) > self.pool.available:
            youngest = self.running[-1]
            self._preempt(youngest)
            chunks.pop(youngest.sequence_id, None)
            if youngest is sequence:
                return False
        return True

    def _chunk(self, sequence: TokenSequence, budget: int) -> ScheduledChunk:
        """As many tokens as the budget and the pages allow, at least one."""
        table, start = sequence.table, sequence.table.computed
        tokens = sequence.tokens[start : start + budget]
        if len(tokens) == sequence.num_uncomputed:
            limit = min(budget, sequence.max_len - start)
            tokens += sequence.draft_tokens[: limit - len(tokens)]
        tokens = tokens[: table.max_end(self.pool.available) - start]
        table.grow(start + len(tokens))
        return sequence.chunk(tokens)

    def _preempt(self, sequence: TokenSequence) -> None:
        self.preemptions += 1
        self.running.remove(sequence)
        sequence.table.clear()
        sequence.draft_tokens = ()
        bisect.insort(self.waiting, sequence, key=_by_arrival)

    def _admit(self, chunks: dict[int, ScheduledChunk], budget: int) -> None:
        """Starts waiting sequences in order of arrival while all of each fits.

        A sequence whose next page is being computed for another one waits for it instead.
        """
        if not self.waiting or budget < 1:
            return
        in_flight = {page_hash for s in self.running for page_hash in _in_flight(s)}
        for sequence in self.waiting[:_LOOK_AHEAD]:
            if budget < 1 or len(self.running) == self._max_running:
                return
            table, limit = sequence.table, sequence.first_output_pos
            cached = table.match_prefix(sequence.tokens, limit)
            page = cached // PAGE
            if page < limit // PAGE:
                next_hash = table.page_hashes(sequence.tokens, page + 1)[page]
                if next_hash in in_flight:
                    table.clear()
                    continue
            if self.running and self._pages_for(sequence) > self.pool.available:
                table.clear()
                return
            if sequence.num_cached is None:
                sequence.num_cached = cached
            self.waiting.remove(sequence)
            bisect.insort(self.running, sequence, key=_by_arrival)
            chunk = chunks[sequence.sequence_id] = self._chunk(sequence, budget)
            budget -= len(chunk.tokens)
            in_flight.update(_in_flight(sequence))

    def _pages_for(self, sequence: TokenSequence) -> int:
        """Pages that a sequence needs until all its committed tokens have run."""
        positions = min(len(sequence.tokens) + 1, sequence.max_len)
        missing = sequence.table.needed(positions) // 2
        return missing + min(missing, max_pages(self._window, self._window))


def _in_flight(sequence: TokenSequence) -> list[bytes]:
    """Hashes of the pages that a sequence is about to fill with tokens it has."""
    if sequence.num_uncomputed < 2:
        return []
    hashes = sequence.table.page_hashes(sequence.tokens, len(sequence.tokens) // PAGE)
    return hashes[sequence.table.computed // PAGE :]


def _by_arrival(sequence: TokenSequence) -> int:
    return sequence.sequence_id
