"""The meaning of a limit: the first documents of a task, of every group in proportion."""

import pytest

from gemmule.evals.benchmarks.lm_eval_tasks import first_documents


@pytest.mark.parametrize(("limit", "count"), [(None, 7), (7, 7), (100, 7), (3, 3), (1, 1)])
def test_the_first_documents_are_taken(limit: int | None, count: int) -> None:
    assert first_documents(7, limit) == list(range(count))


def test_groups_contribute_in_proportion_to_their_sizes() -> None:
    groups = ["a"] * 60 + ["b"] * 30 + ["c"] * 10
    chosen = first_documents(100, 20, groups=groups)
    assert chosen == [*range(12), *range(60, 66), *range(90, 92)]
    # Each limit adds documents to those of a smaller one.
    previous: set[int] = set()
    for limit in range(1, 101):
        numbers = first_documents(100, limit, groups=groups)
        assert len(numbers) == limit
        assert previous < set(numbers)
        assert numbers == sorted(numbers)
        previous = set(numbers)


def test_documents_in_turn_stay_the_first() -> None:
    """Groups that are interleaved already lead to the plain first documents."""
    assert first_documents(12, 6, groups=["a", "b", "c"] * 4) == list(range(6))


def test_blocks_are_not_split() -> None:
    assert first_documents(10, 3, together=2) == [0, 1, 2, 3]
    assert first_documents(10, 4, together=2) == [0, 1, 2, 3]
    groups = ["a", "a", "a", "a", "b", "b", "b", "b"]
    assert first_documents(8, 3, groups=groups, together=2) == [0, 1, 4, 5]
    # A last block that is not whole is not compared with anything.
    assert first_documents(5, 4, together=2) == [0, 1, 2, 3]
