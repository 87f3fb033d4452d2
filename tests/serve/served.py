"""A server in a thread, on a port of loopback that the system chooses."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2 as httpx
import pytest

from gemmule.serve.served_models import ServedModels
from gemmule.serve.server import Server, bind, make_server
from gemmule.serve.settings import ServeSettings

NAME = "tiny"  # of the model that the fixtures serve
PATIENCE = 60  # seconds that anything may take on a machine that is busy with something else


@dataclass(frozen=True)
class LiveServer:
    """A server on a port of loopback, with the models it serves."""

    port: int
    models: ServedModels
    server: Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **settings: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, **settings)


@contextmanager
def running(models: ServedModels, settings: ServeSettings) -> Iterator[LiveServer]:
    """Serves in a thread until the block ends."""
    sock = bind(settings)
    server = make_server(models, settings)
    thread = threading.Thread(target=server.run, args=([sock],), name="test-server")
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not server.started or server.state.phase == "loading":
            assert thread.is_alive() and time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)
        yield LiveServer(sock.getsockname()[1], models, server)
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server did not stop"


def until(condition: Callable[[], bool]) -> None:
    """Waits for something that happens soon."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@contextmanager
def held_up(server: LiveServer) -> Iterator[None]:
    """The engine is in the middle of a step until the block ends."""
    loop = server.models.loaded[0].engine._loop
    step, go = loop.step, threading.Event()

    def wait() -> object:
        assert go.wait(PATIENCE)
        return step()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "step", wait)
        try:
            yield
        finally:
            go.set()
