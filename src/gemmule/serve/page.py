"""Serves the chat page: files made by web/ that are part of the package.

All of them are held in memory under their fixed paths, so no request names a file. The policy lets
the page run only its own script, load only from this server, and write HTML only through DOMPurify.
"""

import functools
import gzip
import hashlib
import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePosixPath

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types dompurify",
    )
)
SECURITY_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
# Names with a hash of the content never get another one. The others are asked for each time.
FOREVER = "public, max-age=31536000, immutable"
ASK_AGAIN = "no-cache"


@dataclass(frozen=True)
class PageFile:
    """A file of the page, ready to be sent.

    Attributes:
        path: path of the request, such as "/assets/main-0123456789ab.js".
        bodies: content for each content encoding: "identity" and "gzip".
        media_type: value of Content-Type.
        digest: start of the SHA-256 of the content, for the ETag.
        cache_control: value of Cache-Control.
    """

    path: str
    bodies: dict[str, bytes]
    media_type: str
    digest: str
    cache_control: str

    def response(self, request: Request) -> Response:
        """Returns the file, or 304 when the browser already has it."""
        encoding = (
            "gzip" if accepts_gzip(request.headers.getlist("accept-encoding")) else "identity"
        )
        # A strong ETag stands for bytes, which differ with the encoding.
        etag = f'"{self.digest}-{encoding}"'
        headers = {
            **SECURITY_HEADERS,
            "Cache-Control": self.cache_control,
            "ETag": etag,
            "Vary": "Accept-Encoding",
        }
        if matches(request.headers.getlist("if-none-match"), etag):
            return Response(status_code=304, headers=headers)
        if encoding == "gzip":
            headers["Content-Encoding"] = "gzip"
        return Response(self.bodies[encoding], headers=headers, media_type=self.media_type)


@functools.cache
def page_files() -> tuple[PageFile, ...]:
    """Reads and compresses the files that the manifest of the build lists."""
    folder = resources.files("gemmule.serve") / "page"
    names: list[str] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    files = []
    for name in names:
        data = folder.joinpath(*name.split("/")).read_bytes()
        digest = hashlib.sha256(data).hexdigest()[:12]
        hashed = PurePosixPath(name).stem.endswith(f"-{digest}")
        file = PageFile(
            path="/" if name == "index.html" else f"/{name}",
            bodies={"identity": data, "gzip": gzip.compress(data, mtime=0)},
            media_type=MEDIA_TYPES[PurePosixPath(name).suffix],
            digest=digest,
            cache_control=FOREVER if hashed else ASK_AGAIN,
        )
        files.append(file)
    return tuple(files)


def routes() -> list[Route]:
    """A route for each file; they need no key."""
    return [Route(file.path, _endpoint(file), methods=["GET"]) for file in page_files()]


def accepts_gzip(headers: Iterable[str]) -> bool:
    """Whether the lines of Accept-Encoding name gzip, with any weight but 0."""
    for part in ",".join(headers).split(","):
        name, _, weight = part.partition(";")
        if name.strip().lower() in {"gzip", "x-gzip"}:
            return weight.replace(" ", "").lower() not in {"q=0", "q=0.0", "q=0.00", "q=0.000"}
    return False


def matches(headers: Iterable[str], etag: str) -> bool:
    """Whether the lines of If-None-Match name the ETag; a proxy may have made it weak (W/)."""
    tags = {tag.strip().removeprefix("W/") for tag in ",".join(headers).split(",")}
    return etag in tags or "*" in tags


def _endpoint(file: PageFile) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return file.response(request)

    return endpoint
