"""Which ranks are gone: a call that the watching thread of each rank answers.

A rank that loses a connection knows that another has vanished, and not which one. Ranks that live
answer within half a second, whatever they compute; one that was killed does not.
"""

from typing import Any

_CALL, _HERE, LEFT = "gemmule/call", "gemmule/here", "gemmule/left"


class Answering:
    """What a rank's watching thread does.

    Args:
        store: connection of this thread to the store that the processes met at.
        rank: this rank.
    """

    def __init__(self, store: Any, rank: int) -> None:
        self._store, self._rank, self._answered = store, rank, b""

    def answer(self) -> None:
        """Answers the last call, if it is new.

        Raises:
            RuntimeError: when the store is gone.
        """
        call = self._store.get(_CALL) if self._store.check([_CALL]) else b""
        if call != self._answered:
            self._store.set(f"{_HERE}/{self._rank}", call.decode())
            self._answered = call


class RollCall:
    """A call for all ranks, made when this object is.

    Args:
        store: connection of the calling thread.
        rank: this rank.
        size: number of ranks.

    Raises:
        RuntimeError: when the store is gone; the method as well.
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self._store, self._number = store, store.add(_CALL, 1)
        self._missing = [other for other in range(size) if other != rank]

    def missing(self) -> list[int]:
        """Ranks that have not answered yet, and have not left after their work was done."""
        self._missing = [rank for rank in self._missing if not self._is_here(rank)]
        return self._missing

    def _is_here(self, rank: int) -> bool:
        if self._store.check([f"{LEFT}/{rank}"]):
            return True
        key = f"{_HERE}/{rank}"
        return self._store.check([key]) and int(self._store.get(key)) >= self._number
