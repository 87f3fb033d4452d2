"""Errors as the API's clients see them, and which of ours become which.

Messages are for the client: they have no paths, no tracebacks and nothing of the server's inside.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

from starlette.responses import JSONResponse

from gemmule.errors import (
    ConfigError,
    EngineClosedError,
    EngineDeadError,
    GemmuleError,
    QueueFullError,
    TokenizerError,
)
from gemmule.infer.core.constraint import ConstraintError

ErrorForm = Literal["openai", "anthropic"]

# OpenAI's type of an error, by status.
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error",
          429: "rate_limit_error", 503: "service_unavailable"}  # fmt: skip

# What is told of errors that are not the client's; the first that fits.
_TOLD: dict[type[Exception], tuple[int, str, str]] = {
    EngineClosedError: (503, "the server is shutting down", "shutting_down"),
    EngineDeadError: (503, "the engine has failed: restart the server", "engine_dead"),
    GemmuleError: (500, "the request could not be finished", "engine_error"),
}


class ApiError(Exception):
    """An error that a client is told of.

    Attributes:
        status: HTTP status.
        message: what we got, what is allowed, and what to do.
        type: kind of error, in OpenAI's terms.
        code: a short name for programs, such as "model_not_found".
        param: name of the request's field that is wrong.
        retry_after: seconds after which the client may try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str | None = None,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.type = type or _TYPES.get(
            status, "server_error" if status >= 500 else "invalid_request_error"
        )
        self.retry_after = retry_after
        self.headers = dict(headers or {})

    @classmethod
    def of(cls, error: Exception) -> "ApiError":
        """What a client is told of any error: nothing but its kind if it is not the client's."""
        if isinstance(error, ApiError):
            return error
        if isinstance(error, ConfigError | TokenizerError | ConstraintError):
            return cls(400, str(error))
        if isinstance(error, QueueFullError):
            return cls(429, str(error), code="queue_full", retry_after=1.0)
        status, message, code = next(
            (told for kind, told in _TOLD.items() if isinstance(error, kind)),
            (500, "internal error: the server's log has it", "internal_error"),
        )
        return cls(status, message, code=code)

    def body(self, form: ErrorForm = "openai") -> dict[str, Any]:
        """The error as a JSON object, as it is also sent in the middle of a stream."""
        return _BODIES[form](self)

    def response(self, form: ErrorForm = "openai") -> JSONResponse:
        """The answer of a request that failed."""
        headers = dict(self.headers)
        if self.retry_after is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after)))
        return JSONResponse(self.body(form), self.status, headers)


def _openai_body(error: ApiError) -> dict[str, Any]:
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


_ANTHROPIC_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
    404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error",
    503: "overloaded_error", 529: "overloaded_error",
}  # fmt: skip


def _anthropic_body(error: ApiError) -> dict[str, Any]:
    fallback = "api_error" if error.status >= 500 else "invalid_request_error"
    kind = _ANTHROPIC_TYPES.get(error.status, fallback)
    return {"type": "error", "error": {"type": kind, "message": error.message}}


_BODIES = {"openai": _openai_body, "anthropic": _anthropic_body}
