"""Pieces of work that ranks take; what ranks make of it together is in test_record_ranks.py."""

from typing import Any

import pytest

from gemmule.errors import RankError
from gemmule.runtime.shared_work import SharedWork
from gemmule.runtime.signals import Stop
from gemmule.runtime.world import SOLO, World


def test_one_process_counts_by_itself() -> None:
    stop = Stop()
    work = SharedWork(SOLO, stop)
    assert [work.next() for _ in range(3)] == [0, 1, 2]
    assert not work.stopping
    stop.requested = True
    assert work.stopping
    work.finish()


def test_a_store_that_is_gone_is_told_as_a_lost_rank() -> None:
    class Gone:
        def add(self, *_: object) -> int:
            raise RuntimeError("Connection reset by peer")

    class Lost(World):
        def notes(self) -> Any:
            return Gone()

        def check(self, seconds: float = 0.0) -> None:
            raise RankError("lost contact with the first rank")

    for ask in (SharedWork.next, SharedWork.finish):
        with pytest.raises(RankError, match="lost contact"):
            ask(SharedWork(Lost(), Stop()))
