"""Refusing a request before it has reached a route."""

from starlette.types import Receive, Scope, Send

from gemmule.serve.access_log import note_error
from gemmule.serve.api_errors import ApiError, ErrorForm


def route_path(scope: Scope) -> str:
    """The request's path within this application, which may be mounted in another."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")) or "/"


def error_form(scope: Scope) -> ErrorForm:
    """The form of errors of the protocol that a path belongs to."""
    path = route_path(scope).removeprefix("/v1")
    return "anthropic" if path == "/messages" or path.startswith("/messages/") else "openai"


def header(scope: Scope, name: bytes) -> str | None:
    """The value of a header, given in lower case; None if there is none."""
    value = next((value for key, value in scope["headers"] if key == name), None)
    return None if value is None else value.decode("latin-1")


async def refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers a request with an error."""
    note_error(error.code or error.type)
    await error.response(error_form(scope))(scope, receive, send)
