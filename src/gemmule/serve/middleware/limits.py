"""Limits of headers and bodies.

Bodies are counted as they arrive, whatever Content-Length says, and all that are held at one time
together: many clients with large bodies cannot take more memory than one setting allows.
"""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gemmule.serve.api_errors import ApiError
from gemmule.serve.middleware.refusal import header, refuse
from gemmule.serve.settings import ServeSettings


class Limits:
    """Refuses requests whose headers or body are too large."""

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self._app, self._settings = app, settings
        self._held = 0  # bytes of all bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        error = self._header_error(scope)
        if error is not None:
            await refuse(error, scope, receive, send)
            return
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            if message["type"] == "http.request":
                more = len(message.get("body", b""))
                size += more
                self._held += more
                self._check_body(size)
            return message

        try:
            await self._app(scope, counted, send)
        finally:
            self._held -= size

    def _header_error(self, scope: Scope) -> ApiError | None:
        settings, headers = self._settings, scope["headers"]
        if len(headers) > settings.max_headers:
            message = f"the request has {len(headers)} headers; at most {settings.max_headers}"
            return ApiError(431, f"{message} are allowed", code="headers_too_large")
        # Each line has a colon, a space and two characters at its end.
        size = sum(len(name) + len(value) + 4 for name, value in headers)
        size += len(scope.get("raw_path") or b"") + len(scope["query_string"])
        if size > settings.max_header_bytes:
            return ApiError(
                431,
                f"address and headers have {size} bytes; at most {settings.max_header_bytes} are "
                "allowed",
                code="headers_too_large",
            )
        if (header(scope, b"content-encoding") or "identity").lower() != "identity":
            return ApiError(
                415, "compressed bodies are not read: send it as it is", code="content_encoding"
            )
        declared = header(scope, b"content-length") or ""
        if declared.isdecimal() and int(declared[:20]) > settings.max_body_bytes:
            return self._too_large()
        return None

    def _check_body(self, size: int) -> None:
        if size > self._settings.max_body_bytes:
            raise self._too_large()
        if self._held > self._settings.max_total_body_bytes:
            raise ApiError(
                503,
                "the bodies of all requests together are too large now: try again later",
                code="overloaded",
                retry_after=1,
            )

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            f"the body is larger than {self._settings.max_body_bytes} bytes",
            code="body_too_large",
        )
