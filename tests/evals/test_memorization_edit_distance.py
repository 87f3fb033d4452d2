"""Edit distances as tokens arrive, against the table written out."""

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

from gemmule.evals.memorization.edit_distance import EditDistances


def levenshtein(a: list[int], b: list[int]) -> int:
    before = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        line = [i]
        for j, y in enumerate(b, 1):
            line.append(min(before[j] + 1, line[-1] + 1, before[j - 1] + (x != y)))
        before = line
    return before[-1]


few_words = st.integers(0, 3)


@settings(deadline=None)
@given(
    st.integers(1, 12).flatmap(
        lambda n: st.lists(
            st.tuples(
                st.lists(few_words, min_size=n, max_size=n), st.lists(few_words, max_size=14)
            ),
            min_size=1,
            max_size=5,
        )
    )
)
def test_distances_and_bounds(pairs: list[tuple[list[int], list[int]]]) -> None:
    distances = EditDistances(np.array([gold for gold, _ in pairs]))
    final = [levenshtein(output, gold) for gold, output in pairs]
    for step in range(max(len(output) for _, output in pairs)):
        rows = np.array([i for i, (_, output) in enumerate(pairs) if step < len(output)])
        distances.push(rows, np.array([pairs[i][1][step] for i in rows]))
        # What a row can no longer undo never exceeds what it ends with.
        assert all(distances.lower_bound(rows) <= np.array(final)[rows])
    assert distances.distances.tolist() == final


def test_nothing_given_is_everything_missing() -> None:
    assert EditDistances(np.arange(8).reshape(2, 4)).distances.tolist() == [4, 4]
