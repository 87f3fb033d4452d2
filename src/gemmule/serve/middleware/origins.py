"""Which web pages may use the server: its own, and those of origins that are listed.

A browser sends Origin with each request that a page of another origin makes, except for plain GETs,
which it marks in Sec-Fetch-Site. Programs send neither.
"""

from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gemmule.serve.api_errors import ApiError
from gemmule.serve.middleware.refusal import header, refuse

Headers = list[tuple[bytes, bytes]]


class Origins:
    """Refuses web pages of other origins; those that are listed get the headers of CORS."""

    def __init__(self, app: ASGIApp, allowed: Iterable[str]) -> None:
        """Wraps an application.

        Args:
            app: the application.
            allowed: origins such as "https://chat.example", compared exactly.
        """
        self._app, self._allowed = app, frozenset(allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        origin = header(scope, b"origin")
        if origin in self._allowed:
            await self._cross_origin(origin, scope, receive, send)
        elif self._is_refused(scope, origin):
            shown = "another origin" if origin is None else repr(origin[:100])
            message = f"pages of {shown} may not use this server: start it with --allow-origin"
            error = ApiError(403, message, code="origin_not_allowed")
            await refuse(error, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _is_refused(self, scope: Scope, origin: str | None) -> bool:
        if origin is not None:
            # Only the name and port count: a proxy may have taken TLS away.
            host = header(scope, b"host") or ""
            return origin.partition("://")[2].lower() != host.lower()
        site, mode = header(scope, b"sec-fetch-site"), header(scope, b"sec-fetch-mode")
        return site in ("cross-site", "same-site") and mode != "navigate"

    async def _cross_origin(self, origin: str, scope: Scope, receive: Receive, send: Send) -> None:
        shared: Headers = [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"vary", b"Origin"),
        ]
        asked = header(scope, b"access-control-request-method")
        if scope["method"] == "OPTIONS" and asked is not None:
            wanted = header(scope, b"access-control-request-headers") or ""
            headers = [
                *shared,
                (b"access-control-allow-methods", b"GET, POST"),
                (b"access-control-allow-headers", wanted.encode("latin-1")),
                (b"access-control-max-age", b"600"),
            ]
            await send({"type": "http.response.start", "status": 204, "headers": headers})
            await send({"type": "http.response.body"})
            return
        shared.append((b"access-control-expose-headers", b"x-request-id, retry-after"))

        async def with_cors(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *shared]}
            await send(message)

        await self._app(scope, receive, with_cors)
