"""Runs the application with uvicorn, and ends it: first the requests, then the server."""

import gc
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from gemmule.errors import ConfigError, Interrupted
from gemmule.runtime.signals import on_stop_signals
from gemmule.serve.access_log import log_to
from gemmule.serve.app import make_app
from gemmule.serve.connection import connection_class
from gemmule.serve.served_models import ServedModels
from gemmule.serve.settings import ServeSettings
from gemmule.serve.state import ServeState
from gemmule.serve.use import note_use

KEEP_ALIVE_SECONDS = 75  # of a connection without a request; longer than usual proxies keep theirs
LAST_SECONDS = 5  # for answers that were cut off to be sent


class Server(uvicorn.Server):
    """Serves until it is told to stop: once to finish what runs, twice to stop at once.

    Attributes:
        state: what the application says of itself.
        cut_off: number of requests that were not finished.
    """

    def __init__(
        self, config: uvicorn.Config, state: ServeState, on_ready: Callable[[], None] | None = None
    ) -> None:
        super().__init__(config)
        self.state, self.cut_off = state, 0
        self._on_ready = on_ready
        self._drain_until: float | None = None

    def stop(self) -> None:
        """Asks for an end; in a signal handler, or in any thread."""
        if self._drain_until is None:
            self._drain_until = time.monotonic() + self.state.settings.drain_seconds
            self.state.phase = "draining"
        elif not self.force_exit:
            self.cut_off = self.state.running
            self.should_exit = self.force_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stops at signals, in the main thread; uvicorn would stop at once and raise them again."""
        with on_stop_signals(self.stop):
            yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Closes the connections and ends the engines, in a hurry too."""
        await super().shutdown(sockets)
        if self.force_exit:
            await self.lifespan.shutdown()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether it is time to end."""
        state = self.state
        if state.failure is not None:
            return True
        if self._on_ready is not None and state.phase == "ready":
            on_ready, self._on_ready = self._on_ready, None
            gc.collect()
            gc.freeze()  # what a model consists of is not looked at again, at each collection
            on_ready()
        if self._drain_until is not None and not self.should_exit:
            if not state.running:
                self.should_exit = True
            elif time.monotonic() >= self._drain_until:
                self.cut_off = state.running
                await state.models.stop()
                self.should_exit = True
        return await super().on_tick(counter)


def bind(settings: ServeSettings) -> socket.socket:
    """Opens the port.

    Raises:
        ConfigError: if it is in use, or the address is not this machine's.
    """
    try:
        addresses = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as e:
        raise ConfigError(f"cannot listen on {settings.host!r} ({e.strerror})") from None
    family, kind, protocol, _, address = addresses[0]
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
    except OSError as e:
        sock.close()
        raise ConfigError(
            f"cannot listen on {settings.host} port {settings.port} ({e.strerror}): choose "
            "another with --port; --port 0 takes a free one"
        ) from None
    return sock


def make_server(
    models: ServedModels,
    settings: ServeSettings,
    on_ready: Callable[[], None] | None = None,
) -> Server:
    """The server, not yet running.

    Args:
        models: models to serve; they are loaded while /health says so already.
        settings: settings of the server.
        on_ready: called once the models are loaded.

    Raises:
        ConfigError: for a certificate that cannot be used.
    """
    app = make_app(models, settings, wait_for_models=False)
    config = uvicorn.Config(
        app,
        http=connection_class(settings, models.observation),
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="error",  # what clients send wrongly is in the access log
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=LAST_SECONDS,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )
    _check_certificate(settings)
    return Server(config, app.state.serve, on_ready)


def serve(models: ServedModels, settings: ServeSettings, announce: Callable[[str], None]) -> None:
    """Serves until a signal stops it; needs the main thread.

    Args:
        models: models to serve.
        settings: settings of the server.
        announce: called with the server's address once the models are loaded.

    Raises:
        ConfigError: if the port cannot be opened, or the certificate not be used.
        GemmuleError: if the first model cannot be loaded.
        Interrupted: after a signal.
    """
    log_to()
    sock = bind(settings)
    try:
        url = address(settings, sock.getsockname()[1])
        server = make_server(models, settings, lambda: announce(url))
        server.run([sock])
    finally:
        sock.close()
        models.abandon()
        note_use(models)
    if server.state.failure is not None:
        raise server.state.failure
    left = server.cut_off or server.state.running
    raise Interrupted(
        f"stopped; {left} requests were cut off" if left else "stopped; all requests were finished"
    )


def address(settings: ServeSettings, port: int) -> str:
    """The server's address as a client on this machine types it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(settings.host, settings.host)
    scheme = "http" if settings.tls_cert is None else "https"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _check_certificate(settings: ServeSettings) -> None:
    if settings.tls_cert is None:
        return
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    except (OSError, ssl.SSLError) as e:
        raise ConfigError(
            f"the certificate {settings.tls_cert} with the key {settings.tls_key} cannot be used "
            f"({e.strerror or e}): give files in PEM form that belong together"
        ) from None
