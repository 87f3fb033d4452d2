"""What counting alone predicts: an interpolated Kneser-Ney model of three tokens.

A bar for models: it is made in a second from the training text, and whatever knows less about a
text than this has nothing to teach on it. Kneser and Ney 1995, interpolated as in Chen and Goodman
1999 (section 4.1.6), with the discount n1 / (n1 + 2 n2) of each order; below the unigrams it is
uniform, so no token has probability zero.

Shapes: N tokens.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class _Order(NamedTuple):
    """Counts of one order, in ascending order of their keys.

    Attributes:
        grams: key of each gram, its context's times V plus its last token.
        counts: count of each gram.
        contexts: key of each context.
        totals: sum of the counts of each context's grams.
        followers: number of different last tokens of each context.
        discount: what is taken from each count.
    """

    grams: Ids
    counts: Ids
    contexts: Ids
    totals: Ids
    followers: Ids
    discount: float


class Trigrams:
    """Probabilities of a token given the two before it.

    Args:
        tokens_N: the training text, at least three tokens.
        vocab_size: number of tokens of the vocabulary, V; at most 2^20.
    """

    def __init__(self, tokens_N: Ids, vocab_size: int) -> None:
        assert vocab_size <= 2**20  # V^3 has to fit into 63 bits
        self._size = vocab_size
        grams = (tokens_N[:-2] * vocab_size + tokens_N[1:-1]) * vocab_size + tokens_N[2:]
        self._orders = []
        for order in (3, 2, 1):
            # Below the highest order, a gram counts the different tokens before it.
            grams, counts = np.unique(grams, return_counts=True)
            self._orders.append(_order(grams, counts, vocab_size))
            grams = grams % vocab_size ** (order - 1)

    def log_probabilities(self, before_N: Ids, last_N: Ids, next_N: Ids) -> Floats:
        """Log-probability of each token `next_N` after `before_N` and `last_N`, nats [N]."""
        contexts = (before_N * self._size + last_N, last_N, np.zeros_like(last_N))
        p_N = np.full(len(next_N), 1.0 / self._size)
        for counted, context_N in zip(self._orders[::-1], contexts[::-1], strict=True):
            total_N, followers_N = (
                _looked_up(counted.contexts, values, context_N)
                for values in (counted.totals, counted.followers)
            )
            count_N = _looked_up(counted.grams, counted.counts, context_N * self._size + next_N)
            kept_N = np.maximum(count_N - counted.discount, 0.0)
            mixed_N = (kept_N + counted.discount * followers_N * p_N) / np.maximum(total_N, 1)
            p_N = np.where(total_N > 0, mixed_N, p_N)
        return np.log(p_N)


def _order(grams: Ids, counts: Ids, vocab_size: int) -> _Order:
    contexts, first = np.unique(grams // vocab_size, return_index=True)
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    discount = once / (once + 2 * twice) if once else 0.5
    followers = np.diff(np.append(first, len(grams)))
    totals = np.add.reduceat(counts, first)
    return _Order(grams, counts, contexts, totals, followers, discount)


def _looked_up(keys: Ids, values: Ids, wanted_N: Ids) -> Ids:
    """The value of each wanted key, 0 where there is none."""
    at_N = np.searchsorted(keys, wanted_N).clip(max=len(keys) - 1)
    return np.where(keys[at_N] == wanted_N, values[at_N], 0)
