"""A process that dies in the middle of a call, without a process."""

from collections.abc import Callable
from typing import Any


class Killed(BaseException):
    """Nothing in gemmule may catch it."""


def after(count: int, plain: Callable[..., Any]) -> Callable[..., Any]:
    """`plain`, except that its call number `count` raises Killed in its place."""
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            raise Killed
        return plain(*args, **kwargs)

    return wrapped
