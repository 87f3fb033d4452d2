"""A route as an ASGI application, and what belongs to one request while it is answered."""

import logging
from contextlib import AsyncExitStack

from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Scope, Send

from gemmule.errors import QueueFullError
from gemmule.serve.access_log import note_error
from gemmule.serve.api_errors import ApiError
from gemmule.serve.route import STACK, ApiRoute
from gemmule.serve.served_models import ServedModel
from gemmule.serve.state import SERVED, state_of

_log = logging.getLogger(__name__)


class Endpoint:
    """Runs a handler, sends its answer, then gives back everything that was held for it."""

    def __init__(self, route: ApiRoute) -> None:
        self._route = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        request = Request(scope, receive, watched)
        works = self._route.method == "POST"  # a GET only informs
        state = state_of(request)
        state.running += works
        try:
            async with AsyncExitStack() as stack:
                scope[STACK] = stack
                if works:
                    state.check_ready()
                response = await self._route.handler(request)
                await response(scope, receive, watched)
        except ClientDisconnect:
            return
        except Exception as e:
            error = self._told(e, scope)
            note_error(error.code or error.type)
            if started:  # too late for a status: the connection is closed
                raise
            await error.response(self._route.errors)(scope, receive, send)
        finally:
            state.running -= works

    def _told(self, error: Exception, scope: Scope) -> ApiError:
        """What the client is told; the log is told more of errors that are ours."""
        told = ApiError.of(error)
        served: ServedModel | None = scope.get(SERVED)
        if isinstance(error, QueueFullError) and served is not None:
            told.retry_after = served.retry_after()
        elif told.status >= 500 and not isinstance(error, ApiError):
            _log.error("%s %s failed", self._route.method, self._route.path, exc_info=error)
        return told
