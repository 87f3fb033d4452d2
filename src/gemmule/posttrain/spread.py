"""A part of a split to evaluate on, spread evenly over all of it."""

from collections.abc import Sequence


def spread(lengths: Sequence[int], tokens: int | None, size: int = 1) -> list[int]:
    """Indices of items with about `tokens` tokens in all, spread evenly.

    Args:
        lengths: number of tokens of each item.
        tokens: tokens wanted; None: all.
        size: number of consecutive items that stay together, such as the two of a pair.
    """
    count = len(lengths) // size
    fewer = count
    if tokens is not None:
        mean = sum(lengths) / count
        fewer = min(count, max(1, int(tokens / mean)))
    groups = [i * count // fewer for i in range(fewer)]
    return [size * group + place for group in groups for place in range(size)]
