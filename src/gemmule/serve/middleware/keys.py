"""API keys: every route needs one except the page and /health, if there are keys."""

import hashlib
import hmac
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from gemmule.serve.api_errors import ApiError
from gemmule.serve.middleware.refusal import header, refuse, route_path


class Keys:
    """Refuses requests without a key, to any path that is not known to be open."""

    def __init__(self, app: ASGIApp, keys: Iterable[str], open_paths: Iterable[str]) -> None:
        """Wraps an application.

        Args:
            app: the application.
            keys: the keys; empty: none is needed.
            open_paths: paths that need none.
        """
        self._app = app
        # Of digests, which are of one length: the time to compare says nothing of the keys.
        self._digests = [_digest(key) for key in keys]
        self._open = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http" or not self._digests or route_path(scope) in self._open:
            await self._app(scope, receive, send)
            return
        given = _given(scope)
        if given is not None and self._is_valid(given):
            await self._app(scope, receive, send)
            return
        what = "there is no API key" if given is None else "the API key is not valid"
        error = ApiError(
            401,
            f"{what}: send it as 'Authorization: Bearer KEY' or as 'x-api-key: KEY'",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await refuse(error, scope, receive, send)

    def _is_valid(self, given: str) -> bool:
        digest, valid = _digest(given), False
        for known in self._digests:  # all of them, so that the time does not tell which one fits
            valid |= hmac.compare_digest(known, digest)
        return valid


def _given(scope: Scope) -> str | None:
    scheme, _, key = (header(scope, b"authorization") or "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return header(scope, b"x-api-key")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
