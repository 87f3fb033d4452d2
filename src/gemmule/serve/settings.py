"""Settings of the server: where it listens, who may use it, and its limits."""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from gemmule.errors import ConfigError

_COUNTS = (
    "max_waiting", "max_running", "max_body_bytes", "max_total_body_bytes", "max_connections",
    "max_header_bytes", "max_headers", "max_n", "max_stop", "default_max_tokens",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Settings of one server; the defaults are safe on a laptop.

    Attributes:
        host: address to listen on; other than loopback it needs a key, or `insecure`.
        port: port to listen on; 0: the system chooses one.
        keys: API keys, one of which a request must have; empty: none is needed.
        insecure: listen on any address without a key.
        allowed_hosts: further names in the Host header that are this server; "*" allows all.
        allowed_origins: web pages of other origins that may use the server, such as
            "https://chat.example"; matched exactly.
        max_waiting: number of samples that may wait for each model, besides those that can start at
            once. 0: what cannot start is refused.
        max_running: number of samples of each model that run at once.
        max_prompt_delay: seconds by which prompts may delay a token of another request.
        max_body_bytes: largest body of a request.
        max_total_body_bytes: largest sum of the bodies of all requests at one time.
        max_connections: number of connections; one more is closed at once.
        max_header_bytes: largest sum of a request's address and header lines.
        max_headers: largest number of a request's headers.
        max_n: largest `n`.
        max_stop: largest number of stop strings.
        default_max_tokens: tokens of an answer whose request sets no limit; None: as many as fit
            into the context.
        queue_timeout: seconds that a request may wait for its first step.
        idle_timeout: seconds that a client may take nothing of an answer, or send nothing of a
            request.
        request_timeout: seconds that a request may take in all.
        drain_seconds: seconds that running requests have to finish at SIGTERM.
        keepalive_seconds: seconds of silence in a stream before a comment is sent.
        tls_cert: file of the certificate chain, in PEM; None: plain HTTP.
        tls_key: file of its private key, in PEM.
        country: ISO 3166 code for the carbon intensity of requests; None: the world's average.
        log_prompts: write prompts and answers into the log.
        page: serve the chat page at "/".
    """

    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[str, ...] = ()
    insecure: bool = False
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    max_waiting: int = 256
    max_running: int = 32
    max_prompt_delay: float = 0.1
    max_body_bytes: int = 8 << 20
    max_total_body_bytes: int = 64 << 20
    max_connections: int = 512
    max_header_bytes: int = 16 << 10
    max_headers: int = 100
    max_n: int = 8
    max_stop: int = 4
    default_max_tokens: int | None = None
    queue_timeout: float = 300.0
    idle_timeout: float = 60.0
    request_timeout: float = 3600.0
    drain_seconds: float = 30.0
    keepalive_seconds: float = 10.0
    tls_cert: Path | None = None
    tls_key: Path | None = None
    country: str | None = None
    log_prompts: bool = False
    page: bool = True

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value, least = getattr(self, name), int(name != "max_waiting")
            if value is not None and value < least:
                raise ConfigError(f"{name} is {value}; it must be {least} or more")
        for name in ("max_prompt_delay", "queue_timeout", "idle_timeout", "request_timeout",
                     "keepalive_seconds"):  # fmt: skip
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above 0")
        if not self.drain_seconds >= 0:
            raise ConfigError(f"drain_seconds is {self.drain_seconds}; it must be 0 or more")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}; it must be between 0 and 65535")
        for origin in self.allowed_origins:
            if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#@*\sA-Z]+", origin):
                raise ConfigError(
                    f"allowed origin {origin!r} can never match: give scheme, name and port as "
                    "browsers send them, in lower case and without a path, as in "
                    "https://chat.example"
                )
        for name in self.allowed_hosts:
            if not re.fullmatch(r"[^/:@*\s]+|\*", name):
                raise ConfigError(
                    f"allowed host {name!r} can never match: give the name alone, without "
                    "scheme, port or path, as in chat.example"
                )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("TLS needs both a certificate and its key: give both, or none")
        if not is_loopback(self.host) and not (self.keys or self.insecure):
            raise ConfigError(
                f"{self.host} can be reached by other machines, and there is no API key: set one "
                "with --key-file or GEMMULE_API_KEY, or allow everyone with --insecure"
            )

    @property
    def max_samples(self) -> int:
        """Number of samples of each model that are taken at a time: running and waiting ones."""
        return self.max_running + self.max_waiting


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
