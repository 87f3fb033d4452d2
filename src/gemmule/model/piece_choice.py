"""Chooses the pieces of a BPE vocabulary that are kept, with those that they are merged from.

Shapes: V tokens of the full vocabulary, K kept ones.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from gemmule.errors import ConfigError

_MOST_BYTES = 0.5  # of a text's tokens; above, the tokenizer has no pieces for its script


class PieceGraph(ABC):
    """How the pieces of a vocabulary are built.

    Attributes:
        always: ids that are kept in any case.
        bytes: ids of tokens that spell a part of a character.
    """

    always: list[int]
    bytes: Sequence[int]

    @abstractmethod
    def parts(self, i: int) -> list[int]:
        """Ids of the two pieces that piece i is merged from; none for what is not merged."""

    @abstractmethod
    def first(self) -> list[int]:
        """All ordinary pieces, the ones that merge first at the front."""

    def closure(self, ids: Iterable[int]) -> list[int]:
        """The ids, and those of all pieces that they are merged from, the parts first."""
        order: dict[int, None] = {}
        stack = list(ids)[::-1]
        while stack:
            i = stack[-1]
            missing = [part for part in self.parts(i) if part not in order]
            if missing:
                stack += missing
            else:
                order[stack.pop()] = None
        return list(order)

    def filled(self, kept: set[int], candidates: Iterable[int], size: int) -> set[int]:
        """The kept ids and as many candidates, in order, as fit with their parts into `size`."""
        kept = set(kept)
        for i in candidates:
            if len(kept) == size:
                break
            new = set(self.closure([i])) - kept
            if len(kept) + len(new) <= size:
                kept |= new
        return kept


def choose(
    graph: PieceGraph,
    counts_V: npt.NDArray[np.int64],
    *,
    size: int | None = None,
    coverage: float = 1.0,
) -> tuple[npt.NDArray[np.int64], float]:
    """Keeps the most frequent pieces of a text, and what they are merged from.

    Room that the text leaves in `size` is filled with the pieces that the full vocabulary merges
    first.

    Args:
        graph: the full vocabulary.
        counts_V: number of times that the text has each token.
        size: number of tokens to keep; None: as many as `coverage` takes.
        coverage: fraction of the text's tokens whose pieces have to be kept, in (0, 1].

    Returns:
        The kept ids, ascending, and the fraction of the text's tokens that are among them.

    Raises:
        ConfigError: when size or coverage is impossible, or they contradict each other, or most
            tokens of the text are bytes.
    """
    _check(graph, counts_V, size, coverage)
    fixed = set(graph.closure(graph.always))
    by_count = np.argsort(-counts_V, kind="stable")
    by_count = by_count[counts_V[by_count] > 0].tolist()
    kept, covered = set(fixed), int(counts_V[list(fixed)].sum())
    for i in by_count:
        if covered >= coverage * counts_V.sum():
            break
        new = set(graph.closure([i])) - kept
        kept |= new
        covered += int(counts_V[list(new)].sum())
    if size is not None:
        if len(kept) > size:
            _check_size(size, len(fixed), len(kept), coverage)
            kept = graph.filled(fixed, by_count, size)
        kept = graph.filled(kept, graph.first(), size)
    kept_K = np.array(sorted(kept), np.int64)
    return kept_K, float(counts_V[kept_K].sum() / counts_V.sum())


def _check(
    graph: PieceGraph, counts_V: npt.NDArray[np.int64], size: int | None, coverage: float
) -> None:
    if not 0.0 < coverage <= 1.0:
        raise ConfigError(f"coverage {coverage:g} is not a fraction above 0 and at most 1")
    if size is not None and size > len(counts_V):
        raise ConfigError(f"size {size:,} is more than the tokenizer has: {len(counts_V):,} tokens")
    total = int(counts_V.sum())
    if not total:
        raise ConfigError("the text has no tokens: give the text that the model is to be used for")
    share = counts_V[list(graph.bytes)].sum() / total
    if share > _MOST_BYTES:
        raise ConfigError(
            f"{share:.0%} of the text's tokens are single bytes: the tokenizer has no pieces for "
            "its script, and a trimmed one would have none either; train one on the text instead "
            "(gemmule tokenizer train)"
        )


def _check_size(size: int, fixed: int, needed: int, coverage: float) -> None:
    if coverage < 1.0:
        raise ConfigError(
            f"coverage {coverage:g} of this text takes {needed:,} tokens, more than the size of "
            f"{size:,}: leave out one of the two, raise size or lower coverage"
        )
    if fixed > size:
        raise ConfigError(
            f"size {size:,} is too small: the fixed tokens, added tokens and ASCII characters "
            f"alone are {fixed:,}"
        )
