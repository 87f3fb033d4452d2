"""An answer's position in a grammar: llguidance's matcher as the engine's TokenConstraint."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from gemmule.infer.core.constraint import ConstraintError, Mask
from gemmule.serve.grammar.limits import GrammarLimits
from gemmule.serve.grammar.spec import short_reason

if TYPE_CHECKING:
    from llguidance import LLMatcher

_MOST_OF_ONE = 0.3  # of `mask_seconds` that one call can use up: four slow ones are too many


class GrammarConstraint:
    """Allows the ids with which a text can still match a grammar.

    An error of the matcher, or masks that take too long, end the request and nothing else.
    """

    def __init__(self, matcher: "LLMatcher", vocab_size: int, limits: GrammarLimits) -> None:
        """Starts at the matcher's position.

        Args:
            matcher: a matcher without an error; it belongs to the constraint from now on.
            vocab_size: number of ids of its tokenizer.
            limits: what its masks may cost.
        """
        self._matcher, self._limits = matcher, limits
        self.vocab_size = vocab_size
        self._seconds = limits.mask_seconds  # processor time that is left

    @property
    def finished(self) -> bool:
        """Whether nothing can follow."""
        stopped: bool = self._matcher.is_stopped()
        self._check()
        return stopped

    def fork(self) -> Self:
        """Returns an independent copy in the same position."""
        return type(self)(self._matcher.deep_copy(), self.vocab_size, self._limits)

    def fill_mask(self, draft_tokens: Sequence[int], mask_W: Mask) -> None:
        """Writes the mask of the ids that may follow the accepted tokens and `draft_tokens`.

        Raises:
            ConstraintError: if the matcher fails, or takes too long.
        """
        matcher, drafted = self._matcher, [*draft_tokens]
        address, size = mask_W.ctypes.data, mask_W.nbytes
        begin = time.thread_time()
        if drafted:
            matcher.consume_tokens(drafted)
        if not matcher.is_stopped():
            matcher.unsafe_compute_mask_ptr(address, size)
        self._spend(time.thread_time() - begin)
        if drafted:
            matcher.rollback(len(drafted))

    def accept(self, token: int) -> None:
        """Takes the next token.

        Raises:
            ConstraintError: if the matcher fails, or takes too long.
        """
        begin = time.thread_time()
        self._matcher.consume_token(token)
        self._spend(time.thread_time() - begin)

    def _spend(self, seconds: float) -> None:
        """Counts the time of one call of the matcher, which has ended."""
        self._check()
        limits = self._limits
        # A call that is slow once may be the machine's fault, not the grammar's: on a busy one the
        # thread's own time has the system's work in it, and Python's collection of garbage.
        counted = min(seconds, limits.mask_seconds * _MOST_OF_ONE)
        left = self._seconds + limits.seconds_per_mask - counted
        self._seconds = min(left, limits.mask_seconds)
        if left < 0:
            raise ConstraintError("the grammar is too slow to follow: make it simpler")

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ConstraintError(short_reason(self._matcher.get_error()))
