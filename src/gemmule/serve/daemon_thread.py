"""Work in a thread that does not keep the process from ending, unlike asyncio's own threads."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")


async def in_daemon_thread(work: Callable[[], Result]) -> Result:
    """Runs `work` in a daemon thread; what it raises is raised here."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Result] = loop.create_future()

    def settle(take: Callable[[Any], None], outcome: Any) -> None:
        if not done.done():  # it has been cancelled otherwise
            take(outcome)

    def run() -> None:
        try:
            outcome: tuple[Callable[[Any], None], Any] = (done.set_result, work())
        except BaseException as e:
            outcome = (done.set_exception, e)
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=run, name="gemmule-load", daemon=True).start()
    return await done
