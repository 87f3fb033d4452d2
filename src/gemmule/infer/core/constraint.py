"""Which tokens may come next: bit masks of allowed ids, and what decides them. Free of torch.

A mask has one bit per id, packed as llguidance, xgrammar and the native kernels have it: bit i % 32
of word i / 32. Shapes: W words, one for 32 ids.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gemmule.errors import ConfigError, GemmuleError, first_line
from gemmule.infer.core.sampling import SamplingParams
from gemmule.model.tokenizer import Tokenizer

Mask = npt.NDArray[np.uint32]


class TokenConstraint(Protocol):
    """Decides which tokens may come next in one request, such as a grammar.

    It is used by one thread at a time, between the engine's steps: all requests wait while it
    works. Once `finished`, or after a token that ends the text, it is not called any more.
    """

    @property
    def vocab_size(self) -> int:
        """Number of ids that its masks cover: the tokenizer's."""

    @property
    def finished(self) -> bool:
        """Whether the accepted tokens are complete: the request ends, without a stop token."""

    def fork(self) -> "TokenConstraint":
        """Returns an independent copy in the same state: each sample of a request has its own."""

    def fill_mask(self, draft_tokens: Sequence[int], mask_W: Mask) -> None:
        """Writes the mask of the ids that may come next, and does not change the state.

        Args:
            draft_tokens: tokens assumed to follow the accepted ones: none, or draft tokens of
                speculative decoding, each of which the mask before it allows.
            mask_W: receives the mask, all words of it; [ceil(vocab_size / 32)], contiguous,
                zeros at first. Where the text may end, the bits of the stop ids are set. Other
                control ids never come, whatever their bits are.
        """

    def accept(self, token: int) -> None:
        """Takes the next token, which the mask allowed. Stop tokens are not passed on."""


class ConstraintError(GemmuleError):
    """A constraint failed, or it allows no token."""


def mask_of(ids: npt.ArrayLike, num_ids: int) -> Mask:
    """Returns a mask of `num_ids` bits, those of `ids` set."""
    allowed = np.zeros(-(-num_ids // 32) * 32, dtype=bool)
    allowed[np.asarray(ids, dtype=np.int64)] = True
    return np.packbits(allowed, bitorder="little").view("<u4").astype(np.uint32)


def allowed_ids(mask_W: Mask, num_ids: int) -> npt.NDArray[np.int64]:
    """Returns the ids below `num_ids` whose bits are set, in ascending order."""
    packed = mask_W.astype("<u4", copy=False).view(np.uint8)
    return np.flatnonzero(np.unpackbits(packed, count=num_ids, bitorder="little"))


def resized(mask_W: Mask, num_ids: int) -> Mask:
    """Returns a mask of the words for `num_ids` ids: cut, or with further bits that are zero."""
    words = -(-num_ids // 32)
    return np.pad(mask_W[:words], (0, max(0, words - len(mask_W))))


def allows(mask_W: Mask, token: int) -> bool:
    """Whether the bit of `token` is set."""
    return bool(mask_W[token >> 5] >> (token & 31) & 1)


class VocabularyMasks:
    """Masks of a tokenizer's ids, which all requests of an engine share.

    Attributes:
        vocab_size: number of ids that may be sampled.
        num_logits: number of logits, which all masks cover.
        stop_ids: ids that end an answer.
        text: ids that constrained text may consist of: stop ids, and all but control ids.
        no_stops: all ids that may be sampled but stop ids.
    """

    def __init__(self, tokenizer: Tokenizer | None, vocab_size: int, num_logits: int) -> None:
        self.vocab_size, self.num_logits = vocab_size, num_logits
        self.stop_ids = frozenset(() if tokenizer is None else tokenizer.stop_ids)
        ids = np.arange(vocab_size)
        text = ids if tokenizer is None else np.flatnonzero(tokenizer.token_bytes())
        stops = mask_of([*self.stop_ids], num_logits)
        self.text = mask_of(text, num_logits) | stops
        self.no_stops = mask_of(ids, num_logits) & ~stops


class TokenFilter:
    """The ids that may come next in one request: its constraint, `min_tokens` and `ignore_eos`."""

    def __init__(
        self, params: SamplingParams, masks: VocabularyMasks, constraint: TokenConstraint | None
    ) -> None:
        """Starts before the first token.

        Args:
            params: settings of the request.
            masks: masks of the engine's tokenizer.
            constraint: is copied first; None: every id is allowed.

        Raises:
            ConfigError: if the constraint is for another vocabulary, or allows no first token.
        """
        self._masks, self._constraint = masks, None
        self._min_tokens = params.max_new_tokens if params.ignore_eos else params.min_tokens
        self._accepted = 0
        self._filled: dict[tuple[int, ...], Mask] = {}  # by draft tokens, since the last `accept`
        if constraint is None:
            return
        if constraint.vocab_size != masks.vocab_size:
            raise ConfigError(
                f"the constraint's masks are for {constraint.vocab_size} ids; this model has "
                f"{masks.vocab_size}: make it with this model's tokenizer"
            )
        try:
            self._constraint = constraint.fork()
            if self._constraint.finished:
                raise ConstraintError("the constraint is finished before the first token")
            self.mask()
        except ConstraintError as error:
            raise ConfigError(f"{error}: give one that allows some text") from error
        except Exception as error:
            raise ConfigError(f"the constraint cannot be used: {_shown(error)}") from error

    def mask(self, draft_tokens: Sequence[int] = ()) -> Mask | None:
        """Returns the mask after the accepted tokens and draft tokens; None: all are allowed.

        Raises:
            ConstraintError: if the constraint fails, or allows no token.
        """
        early = self._accepted + len(draft_tokens) < self._min_tokens
        if self._constraint is None:
            return self._masks.no_stops if early else None
        key = tuple(draft_tokens)
        if key not in self._filled:
            self._filled[key] = self._fill(self._constraint, key, early)
        return self._filled[key]

    def accept(self, token: int) -> bool:
        """Takes a sampled token; returns whether the text is complete.

        Raises:
            ConstraintError: if the constraint fails.
        """
        self._accepted += 1
        self._filled.clear()
        if self._constraint is None or token in self._masks.stop_ids:
            return False
        try:
            self._constraint.accept(token)
            return self._constraint.finished
        except Exception as error:
            raise self._failed(error) from error

    def allowed_draft(self, draft_tokens: Sequence[int]) -> Sequence[int]:
        """Returns the longest beginning of draft tokens that may be sampled, and be followed."""
        for count, token in enumerate(draft_tokens):
            mask = self.mask(draft_tokens[:count])
            if token in self._masks.stop_ids or (mask is not None and not allows(mask, token)):
                return draft_tokens[:count]
            try:
                self.mask(draft_tokens[: count + 1])
            except ConstraintError:  # nothing may follow
                return draft_tokens[:count]
        return draft_tokens

    def _fill(
        self, constraint: TokenConstraint, draft_tokens: tuple[int, ...], early: bool
    ) -> Mask:
        masks = self._masks
        mask_W = np.zeros_like(masks.text)
        try:
            constraint.fill_mask(draft_tokens, mask_W[: -(-masks.vocab_size // 32)])
        except Exception as error:
            raise self._failed(error) from error
        mask_W &= masks.text
        if early and (without_stops := mask_W & masks.no_stops).any():
            return without_stops  # otherwise the text is complete, whatever its length
        if not mask_W.any():
            raise ConstraintError(f"the constraint allows no token after {self._accepted} tokens")
        return mask_W

    def _failed(self, error: Exception) -> ConstraintError:
        return ConstraintError(
            f"the constraint failed after {self._accepted} tokens: {_shown(error)}"
        )


def _shown(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
