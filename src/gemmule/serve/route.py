"""One route of the API, with all that /openapi.json says of it.

A module of routes has a function `routes() -> list[ApiRoute]` and is listed in app.py. A handler
takes Starlette's Request and returns a Response; it raises ApiError, or one of gemmule's errors,
which becomes the client's error in the route's form.
"""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import Literal, TypeVar

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from gemmule.serve.api_errors import ErrorForm

Handler = Callable[[Request], Awaitable[Response]]
T = TypeVar("T")

STACK = "gemmule.stack"  # in the scope: what is held for a request


@dataclass(frozen=True, kw_only=True)
class ApiRoute:
    """A path, its handler, and its description.

    Attributes:
        method: HTTP method.
        path: path such as "/v1/models/{name}"; one that begins with /v1 is served without too.
        handler: makes the answer.
        summary: one line for /openapi.json.
        body: schema of the request's body, if it has one.
        answer: schema of the answer; None: text of `media_type`.
        event: schema of a stream's events, where the answer can be a stream.
        media_type: media type of the answer.
        errors: form of its errors.
        open: served without a key.
    """

    method: Literal["GET", "POST", "DELETE"]
    path: str
    handler: Handler
    summary: str
    body: type[BaseModel] | None = None
    answer: type[BaseModel] | None = None
    event: type[BaseModel] | None = None
    media_type: str = "application/json"
    errors: ErrorForm = "openai"
    open: bool = False

    @property
    def paths(self) -> list[str]:
        """All paths it is served at."""
        return [self.path, *([self.path[3:]] if self.path.startswith("/v1/") else [])]


async def hold(request: Request, resource: AbstractAsyncContextManager[T]) -> T:
    """Enters a context that is left when the whole answer has been sent, or the client is gone."""
    stack: AsyncExitStack = request.scope[STACK]
    return await stack.enter_async_context(resource)
