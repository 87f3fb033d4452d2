"""Checks the Host header: a web page must not reach this server under its own name.

By DNS rebinding a page of evil.example lets that name point to 127.0.0.1 and then is of the same
origin as this server, as CVE-2024-28224 did with ollama. Numbers cannot be rebound: an address in
the header is let through. So is a request of HTTP/1.0 without the header, which that version does
not know (RFC 1945): no browser sends one.
"""

import ipaddress
import socket
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from gemmule.serve.api_errors import ApiError
from gemmule.serve.middleware.refusal import refuse


class Hosts:
    """Refuses requests to names that are not this machine's."""

    def __init__(self, app: ASGIApp, host: str, allowed: Iterable[str]) -> None:
        """Wraps an application.

        Args:
            app: the application.
            host: name or address that the server listens on.
            allowed: further names; "*" allows all.
        """
        names = {name.lower().rstrip(".") for name in allowed}
        self._app, self._all = app, "*" in names
        machine = socket.gethostname().lower()
        self._names = names | {"localhost", host.lower(), machine, f"{machine}.local"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http" or self._all:
            await self._app(scope, receive, send)
            return
        values = [value for name, value in scope["headers"] if name == b"host"]
        if not values and scope["http_version"] == "1.0":
            await self._app(scope, receive, send)
            return
        if len(values) != 1:
            error = ApiError(400, "the request needs one Host header", code="host_missing")
            await refuse(error, scope, receive, send)
            return
        host = values[0].decode("latin-1")
        if self._is_ours(host):
            await self._app(scope, receive, send)
            return
        message = f"this server is not {host[:100]!r}: start it with --allow-host if it is"
        await refuse(ApiError(421, message, code="host_not_allowed"), scope, receive, send)

    def _is_ours(self, host: str) -> bool:
        name = hostname(host)
        return name in self._names or name.endswith(".localhost") or _is_address(name)


def hostname(host: str) -> str:
    """The name in a Host header, without the port: "[::1]:80" is "::1"."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
