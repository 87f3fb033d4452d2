"""Which tokens of which sequences run in the next step. Free of torch.

Tokens of sequences that are being continued come first, then prompts in parts, so that a long
prompt delays nobody by more than a step. When pages run out, the youngest sequence gives its own
back and is computed again later: what was settled of it stays settled.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

from gemmule.infer.core.pages import PagePool, PageTable, most_pages
from gemmule.infer.runners.protocol import PAGE

_LOOK_AHEAD = 256  # waiting sequences that are looked at in one step


class TokenSequence:
    """Tokens whose keys and values are to be computed, and what is wanted of them.

    Attributes:
        number: its place in the order of arrival.
        tokens: settled ones: a prompt, and what was drawn after it.
        wanted: the first position whose prediction is still wanted; all later ones are, too.
        most: positions that it can ever have.
        draft: what may follow the tokens; run with the last of them, settled only if accepted.
        table: its pages.
    """

    def __init__(self, number: int, tokens: Sequence[int], wanted: int, most: int) -> None:
        self.number = number
        self.tokens = list(tokens)
        self.wanted = wanted
        self.most = most
        self.draft: Sequence[int] = ()
        self.table: PageTable

    @property
    def pending(self) -> int:
        """Settled tokens still to be run."""
        return len(self.tokens) - self.table.computed


@dataclass(frozen=True)
class Part:
    """What runs of a sequence in one step: tokens from position `start` on."""

    sequence: TokenSequence
    tokens: Sequence[int]
    start: int

    @property
    def positions(self) -> range:
        """Those whose predictions are wanted."""
        return range(max(self.start, self.sequence.wanted), self.start + len(self.tokens))


class Scheduler:
    """Sequences that run and wait, and the pages they share.

    Attributes:
        pool: the pages.
        running: by arrival.
        waiting: by arrival; new ones, and those that gave their pages back.
        preemptions: how often one had to.
    """

    def __init__(self, pages: int, window: int, max_step_tokens: int) -> None:
        self._window, self._max_step_tokens = window, max_step_tokens
        self.pool = PagePool(pages)
        self.running: list[TokenSequence] = []
        self.waiting: list[TokenSequence] = []
        self.preemptions = 0

    def can_ever_run(self, positions: int) -> bool:
        """Whether a sequence of so many positions fits when it is alone."""
        return most_pages(positions, self._window) <= self.pool.size

    def add(self, sequence: TokenSequence) -> None:
        """Lines a sequence up; it must fit when alone."""
        sequence.table = PageTable(self.pool, self._window)
        bisect.insort(self.waiting, sequence, key=_by_arrival)

    def remove(self, sequence: TokenSequence) -> None:
        """Forgets one that has ended or is not wanted any more; its pages go back."""
        for line in (self.running, self.waiting):
            if sequence in line:
                line.remove(sequence)
        sequence.table.clear()

    def restart(self) -> None:
        """Computes everything anew, on pages of which nothing is assumed."""
        self.pool = PagePool(self.pool.size)
        sequences, self.running, self.waiting = [*self.running, *self.waiting], [], []
        for sequence in sequences:
            self.add(sequence)

    def plan(self) -> list[Part]:
        """The next step: at most `max_step_tokens` tokens, whose pages are at hand."""
        parts: dict[int, Part] = {}
        budget = self._max_step_tokens
        before = self.preemptions
        for sequence in sorted(self.running, key=lambda s: s.pending > 1):  # stable
            if self.preemptions > before and sequence not in self.running:  # it gave way
                continue
            budget = self._max_step_tokens - sum(len(part.tokens) for part in parts.values())
            if budget < 1:
                break
            if self._make_room(sequence, parts):
                parts[sequence.number] = self._part(sequence, budget)
        budget = self._max_step_tokens - sum(len(part.tokens) for part in parts.values())
        if self.preemptions == before:
            self._admit(parts, budget)
        return list(parts.values())

    def advance(self, part: Part, settled: int) -> None:
        """A part has run, and its first `settled` tokens are the sequence's own."""
        sequence = part.sequence
        sequence.draft = ()
        sequence.table.advance(sequence.tokens, part.start + settled)

    def _make_room(self, sequence: TokenSequence, parts: dict[int, Part]) -> bool:
        """Sees to it that at least one token can run; False when it is itself the youngest."""
        table = sequence.table
        while table.needed(table.computed + 1) > self.pool.available:
            youngest = self.running[-1]
            self._preempt(youngest)
            parts.pop(youngest.number, None)
            if youngest is sequence:
                return False
        return True

    def _part(self, sequence: TokenSequence, budget: int) -> Part:
        """As many tokens as the budget and the pages allow, at least one."""
        table, start = sequence.table, sequence.table.computed
        tokens = sequence.tokens[start : start + budget]
        if len(tokens) == sequence.pending:
            tokens += sequence.draft[: min(budget, sequence.most - start) - len(tokens)]
        tokens = tokens[: table.room(self.pool.available) - start]
        table.grow(start + len(tokens))
        return Part(sequence, tokens, start)

    def _preempt(self, sequence: TokenSequence) -> None:
        self.preemptions += 1
        self.running.remove(sequence)
        sequence.table.clear()
        sequence.draft = ()
        bisect.insort(self.waiting, sequence, key=_by_arrival)

    def _admit(self, parts: dict[int, Part], budget: int) -> None:
        """Lets waiting sequences run, in order of arrival, while there is room for all of each.

        One whose next page another is just computing waits for it instead.
        """
        if not self.waiting or budget < 1:
            return
        coming = {digest for s in self.running for digest in _coming(s)}
        for sequence in self.waiting[:_LOOK_AHEAD]:
            if budget < 1:
                return
            table, limit = sequence.table, sequence.wanted
            page = table.reuse(sequence.tokens, limit) // PAGE
            if page < limit // PAGE and table.digests(sequence.tokens, page + 1)[page] in coming:
                table.clear()
                continue
            if self.running and self._pages_for(sequence) > self.pool.available:
                table.clear()
                return
            self.waiting.remove(sequence)
            bisect.insort(self.running, sequence, key=_by_arrival)
            part = parts[sequence.number] = self._part(sequence, budget)
            budget -= len(part.tokens)
            coming.update(_coming(sequence))

    def _pages_for(self, sequence: TokenSequence) -> int:
        """Pages that a sequence will take until it is through its settled tokens."""
        positions = min(len(sequence.tokens) + 1, sequence.most)
        missing = sequence.table.needed(positions) // 2
        return missing + min(missing, most_pages(self._window, self._window))


def _coming(sequence: TokenSequence) -> list[bytes]:
    """Digests of the pages that a sequence is about to fill with tokens it has."""
    if sequence.pending < 2:
        return []
    digests = sequence.table.digests(sequence.tokens, len(sequence.tokens) // PAGE)
    return digests[sequence.table.computed // PAGE :]


def _by_arrival(sequence: TokenSequence) -> int:
    return sequence.number
