"""Work that would hold up the event loop: long texts, large bodies and large answers."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.responses import Response

from gemmule.serve.sse import json_bytes

T = TypeVar("T")

_IN_PLACE = 4096  # characters; so few take less time than waking a thread
_pool = ThreadPoolExecutor(2, "gemmule-off-loop")


async def off_loop(size: int, work: Callable[[], T]) -> T:
    """Runs work on a text or a body of `size` characters, in a thread if it is long."""
    if size <= _IN_PLACE:
        return work()
    return await asyncio.get_running_loop().run_in_executor(_pool, work)


async def json_response(size: int, build: Callable[[], dict[str, Any]]) -> Response:
    """A response in JSON; built and written in a thread if it is long.

    Args:
        size: about how many characters it has.
        build: makes its object.
    """
    content = await off_loop(size, lambda: json_bytes(build()))
    return Response(content, media_type="application/json")
