"""Runs the application with uvicorn, in the main thread."""

import socket

import uvicorn

from gemmule.errors import ConfigError
from gemmule.serve.access_log import log_to
from gemmule.serve.app import make_app
from gemmule.serve.served_models import ServedModels
from gemmule.serve.settings import ServeSettings


def bind(settings: ServeSettings) -> socket.socket:
    """Opens the port.

    Raises:
        ConfigError: if it is in use, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((settings.host, settings.port))
    except OSError as e:
        sock.close()
        raise ConfigError(
            f"cannot listen on {settings.host} port {settings.port} ({e.strerror}): choose "
            "another with --port, or --port 0 for a free one"
        ) from None
    return sock


def make_server(models: ServedModels, settings: ServeSettings) -> uvicorn.Server:
    """The server, not yet running."""
    config = uvicorn.Config(
        make_app(models, settings),
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
    )
    return uvicorn.Server(config)


def serve(models: ServedModels, settings: ServeSettings) -> None:
    """Serves until a signal stops it.

    Raises:
        ConfigError: if the port cannot be opened.
    """
    log_to()
    sock = bind(settings)
    host, port = sock.getsockname()[:2]
    print(f"http://{host}:{port}", flush=True)
    make_server(models, settings).run([sock])
