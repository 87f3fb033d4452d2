"""Starts the engine's work for an HTTP request, once the grammar of its answers is compiled.

What can be refused is refused before anything is sent, so a handler waits for the grammar itself:
as long as its client does, and no longer than a request may wait for the engine.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace

from starlette.requests import Request
from starlette.types import Receive

from gemmule.infer.core.constraint import TokenConstraint
from gemmule.infer.core.request import Request as EngineRequest
from gemmule.serve.api_errors import ApiError
from gemmule.serve.generation import ClientGoneError, Generation
from gemmule.serve.route import hold
from gemmule.serve.served_models import ServedModel
from gemmule.serve.state import state_of


async def start(
    request: Request,
    served: ServedModel,
    requests: Sequence[EngineRequest],
    *,
    stream: bool | None,
    report_progress: bool | None = False,
) -> Generation:
    """Submits requests to the engine; what still runs when the answer has been sent is cancelled.

    Args:
        request: the HTTP request.
        served: the model.
        requests: one for each prompt; they share their constraint.
        stream: whether text is wanted as it comes.
        report_progress: whether it is wanted how far the prompts are.

    Raises:
        ClientGoneError: if the client leaves before the grammar is compiled.
        ApiError: 503 if the grammar is not compiled in time.
        ConfigError: if it does not compile, or a request can never run.
        EngineError: if the queue is full, or the engine has stopped.
    """
    settings = state_of(request).settings
    constraint = requests[0].constraint
    if isinstance(constraint, Future):
        compiled = await _compiled(constraint, request.receive, settings.queue_timeout)
        requests = [replace(one, constraint=compiled) for one in requests]
    generation = Generation(
        served, requests, settings, stream=bool(stream), report_progress=bool(report_progress)
    )
    return await hold(request, generation)


async def _compiled(
    grammar: "Future[TokenConstraint]", receive: Receive, seconds: float
) -> TokenConstraint:
    """Waits for a grammar."""
    work, leaves = asyncio.wrap_future(grammar), asyncio.ensure_future(_leave(receive))
    either = asyncio.FIRST_COMPLETED
    try:
        await asyncio.wait((work, leaves), timeout=seconds, return_when=either)
        if work.done():
            return work.result()
        if leaves.done():
            raise ClientGoneError
        message = f"the grammar has waited for {seconds:g} s to be compiled"
        raise ApiError(503, message, code="queue_timeout", retry_after=seconds)
    finally:
        work.cancel()
        leaves.cancel()


async def _leave(receive: Receive) -> None:
    """Ends when the client leaves; the request's body has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
