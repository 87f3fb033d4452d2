"""A server's life: the port, TLS, connections that misbehave, and its end."""

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path

import httpx2 as httpx
import pytest
from served import NAME, LiveServer, until
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from gemmule.errors import CheckpointError, ConfigError
from gemmule.infer.language_model import LanguageModel
from gemmule.serve import health
from gemmule.serve.model_source import ModelSource
from gemmule.serve.served_models import ServedModels
from gemmule.serve.server import address, bind, make_server, serve
from gemmule.serve.settings import ServeSettings

Start = Callable[..., LiveServer]
LONG = {"model": NAME, "prompt": "a", "max_tokens": 200, "ignore_eos": True, "stream": True}


# The port.


def test_a_port_in_use_is_one_clear_error() -> None:
    with bind(ServeSettings(port=0)) as sock:
        sock.listen()
        port = sock.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} \(Address already in use\).*--port"):
            bind(ServeSettings(port=port))
    with pytest.raises(ConfigError, match="cannot listen on 'no such host'"):
        bind(ServeSettings(host="no such host", keys=("secret",)))


def test_addresses_as_a_client_types_them() -> None:
    def shown(**settings: object) -> str:
        return address(ServeSettings(keys=("k",), **settings), 80)  # type: ignore[arg-type]

    assert shown() == "http://127.0.0.1:80"
    assert shown(host="0.0.0.0") == "http://127.0.0.1:80"
    assert shown(host="::") == shown(host="::1") == "http://[::1]:80"
    assert shown(host="box.lan", tls_cert=Path("c"), tls_key=Path("k")) == "https://box.lan:80"


def test_a_certificate_that_cannot_be_used_is_one_clear_error(
    lm: LanguageModel, tmp_path: Path
) -> None:
    (tmp_path / "bad.pem").write_text("not PEM")
    for name in ("bad.pem", "missing.pem"):
        settings = ServeSettings(tls_cert=tmp_path / name, tls_key=tmp_path / name)
        with pytest.raises(ConfigError, match=f"{name}.*cannot be used"):
            make_server(ServedModels.of({NAME: lm}, settings), settings)
    with pytest.raises(ConfigError, match="both a certificate and its key"):
        ServeSettings(tls_cert=Path("cert.pem"))


def test_tls(start_server: Start, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    server = start_server(tls_cert=cert, tls_key=key)
    context = ssl.create_default_context(cafile=str(cert))
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection,
        context.wrap_socket(connection, server_hostname="127.0.0.1") as secure,
    ):
        secure.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert read_all(secure).startswith(b"HTTP/1.1 200")


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1, signed by itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    try:
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
             "-nodes", "-days", "2", "-subj", "/CN=gemmule test", "-addext",
             "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
            check=True, capture_output=True,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("needs openssl to make a certificate")
    return cert, key


# Connections.


def connect(server: LiveServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def read_all(connection: socket.socket) -> bytes:
    """Everything up to the connection's end."""
    answer = b""
    try:
        while part := connection.recv(65536):
            answer += part
    except ConnectionResetError:
        pass
    return answer


def test_an_endless_head_is_refused(start_server: Start) -> None:
    server = start_server(max_header_bytes=4000)
    for line in (b"A: " + b"b" * 100_000, b"A: b\r\n" * 20_000):
        with connect(server) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
            time.sleep(0.05)
            answer = b""
            try:
                for _ in range(20):
                    connection.sendall(line)
                    time.sleep(0.01)
            except OSError:  # closed
                pass
            else:
                answer = read_all(connection)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 431")
    with server.client() as client:
        assert client.get("/health").status_code == 200


def chunked(body: Iterable[bytes], trailers: bytes = b"") -> bytes:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in body)
    return head + chunks + b"0\r\n" + trailers


@pytest.mark.parametrize("line", [b"A: " + b"b" * 60_000, b"A: b\r\n" * 10_000])
def test_endless_trailers_are_refused(start_server: Start, line: bytes) -> None:
    with connect(start_server(max_header_bytes=4000)) as connection:
        connection.sendall(chunked([b"{"]))
        with pytest.raises(OSError):
            for _ in range(200):
                connection.sendall(line)


def test_a_body_may_come_in_single_bytes_with_trailers_after_it(start_server: Start) -> None:
    body = json.dumps({"prompt": "a", "max_tokens": 1, "user": "u" * 3000}).encode()
    request = chunked((bytes([byte]) for byte in body), b"A: b\r\nConnection: close\r\n\r\n")
    with connect(start_server(max_header_bytes=2000)) as connection:
        connection.sendall(request)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "part",
    [
        b"GET /health HT",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{",
    ],
)
def test_half_a_request_ends_after_the_idle_time(start_server: Start, part: bytes) -> None:
    with connect(start_server(idle_timeout=0.3)) as connection:
        connection.sendall(part)
        started = time.monotonic()
        assert read_all(connection).startswith(b"HTTP/1.1 408")
        assert time.monotonic() - started > 0.2  # a client has that time


def test_a_connection_without_a_request_ends_after_the_idle_time(start_server: Start) -> None:
    with connect(start_server(idle_timeout=0.3)) as connection:
        assert read_all(connection) == b""


def test_a_request_that_trickles_in_ends_too(start_server: Start) -> None:
    server = start_server(request_timeout=0.5)
    with connect(server) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        deadline = time.monotonic() + 30  # the idle time of 60 s begins again with each line
        with pytest.raises(OSError):
            while time.monotonic() < deadline:
                connection.sendall(b"A: b\r\n")
                time.sleep(0.02)


def test_too_many_connections_are_turned_away(start_server: Start) -> None:
    server = start_server(max_connections=3)
    held = [connect(server) for _ in range(3)]
    try:
        for connection in held:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        with connect(server) as more:
            answer = read_all(more)
            assert answer.startswith(b"HTTP/1.1 503")
            assert b"retry-after: 1" in answer
    finally:
        for connection in held:
            connection.close()
    until(lambda: not server.server.server_state.connections)
    with server.client() as client:
        assert client.get("/health").status_code == 200


def test_what_is_not_http_gets_an_error_in_the_usual_form(live_server: LiveServer) -> None:
    with connect(live_server) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 400")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_http"


def test_an_old_client_gets_a_stream_without_chunks(live_server: LiveServer) -> None:
    body = json.dumps({"prompt": "a", "max_tokens": 3, "stream": True}).encode()
    head = b"POST /v1/completions HTTP/1.0\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n"
    with connect(live_server) as connection:
        connection.sendall(head % len(body) + body)
        headers, _, stream = read_all(connection).partition(b"\r\n\r\n")
    assert headers.startswith(b"HTTP/1.1 200")
    assert b"transfer-encoding" not in headers
    assert stream.startswith(b"data: {")
    assert stream.endswith(b"data: [DONE]\n\n")
    with connect(live_server) as connection:
        connection.sendall(b"GET /health HTTP/1.0\r\nhost: localhost\r\n\r\n")
        headers, _, answer = read_all(connection).partition(b"\r\n\r\n")
    assert b"content-length: %d" % len(answer) in headers


def test_a_client_that_does_not_read_is_cut_off(
    start_server: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection is closed after the idle time, and its request leaves the engine."""

    async def endless(request: Request) -> Response:
        async def parts() -> AsyncIterator[bytes]:
            while True:
                yield b"x" * 65536
                await asyncio.sleep(0)

        return StreamingResponse(parts())

    monkeypatch.setattr(health, "health", endless)
    server = start_server(idle_timeout=0.3)
    with connect(server) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        deadline = time.monotonic() + 10
        while not server.server.server_state.tasks and time.monotonic() < deadline:
            time.sleep(0.01)
        while server.server.server_state.connections and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not server.server.server_state.connections


# The end.


def streaming(server: LiveServer, body: dict[str, object]) -> "tuple[threading.Thread, list[str]]":
    """Sends a request in a thread; returns it with the lines of the stream so far."""
    lines: list[str] = []

    def read() -> None:
        with server.client() as client, client.stream("POST", "/v1/completions", json=body) as r:
            for line in r.iter_lines():
                if line:
                    lines.append(line)

    thread = threading.Thread(target=read)
    thread.start()
    deadline = time.monotonic() + 20
    while not lines and time.monotonic() < deadline:
        time.sleep(0.005)
    assert lines
    return thread, lines


def wait_until_stopped(server: LiveServer) -> None:
    deadline = time.monotonic() + 20
    while not server.server.should_exit and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.server.should_exit


def test_stopping_finishes_what_runs_and_takes_nothing_new(start_server: Start) -> None:
    server = start_server()
    thread, lines = streaming(server, LONG)
    server.server.stop()
    with server.client() as client:
        if thread.is_alive():  # the server ends as soon as this stream does
            try:
                health = client.get("/health")
                new = client.post("/v1/completions", json=LONG)
            except OSError:
                pass
            else:
                assert health.status_code == new.status_code == 503
                assert new.json()["error"]["code"] == "shutting_down"
                assert new.headers["connection"] == "close"
    thread.join(20)
    wait_until_stopped(server)
    assert lines[-1] == "data: [DONE]"
    assert '"finish_reason":"length"' in lines[-2]
    assert server.server.cut_off == 0


def test_streams_that_take_too_long_end_with_an_error(start_server: Start) -> None:
    server = start_server(drain_seconds=0.0)
    thread, lines = streaming(server, {**LONG, "n": 8})
    server.server.stop()
    thread.join(20)
    wait_until_stopped(server)
    assert lines[-1] == "data: [DONE]"
    if server.server.cut_off:
        assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == "shutting_down"


def test_stopping_does_not_wait_for_a_model_to_be_loaded(lm: LanguageModel) -> None:
    go, settings = threading.Event(), ServeSettings(port=0)

    def load() -> LanguageModel:
        go.wait(30)
        return lm

    models = ServedModels([ModelSource((NAME,), load, lm.config, 1)], settings)
    server = make_server(models, settings)
    thread = threading.Thread(target=server.run, args=([bind(settings)],))
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.state.phase == "loading"
    server.stop()
    thread.join(15)
    assert not thread.is_alive()
    go.set()
    assert models.loaded == []


def test_a_model_that_cannot_be_loaded_ends_the_server(lm: LanguageModel) -> None:
    def load() -> LanguageModel:
        raise CheckpointError("it is damaged")

    settings = ServeSettings(port=0)
    models = ServedModels([ModelSource((NAME,), load, lm.config, 1)], settings)
    with pytest.raises(CheckpointError, match="it is damaged"):
        serve(models, settings, print)


@pytest.fixture
def command(pieces_folder: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """command(*options): `gemmule serve` of a tiny model in a process of its own."""
    started: list[subprocess.Popen[str]] = []

    def start(*options: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "gemmule", "serve", f"{NAME}={pieces_folder}", "--port", "0",
             *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **environment},
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_the_command_from_start_to_end(command: Callable[..., subprocess.Popen[str]]) -> None:
    process = command("--json", GEMMULE_API_KEY="secret")
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    assert ready["models"] == [NAME]
    assert httpx.get(f"{ready['url']}/health").status_code == 200
    body = {"prompt": "the ship", "max_tokens": 2}
    answer = httpx.post(f"{ready['url']}/v1/completions", json=body)
    assert answer.status_code == 401
    headers = {"x-api-key": "secret"}
    answer = httpx.post(f"{ready['url']}/v1/completions", json=body, headers=headers)
    assert answer.json()["model"] == NAME
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "gemmule: stopped; all requests were finished"
    assert "Traceback" not in errors
    assert "secret" not in errors


def test_a_second_signal_stops_at_once(command: Callable[..., subprocess.Popen[str]]) -> None:
    process = command("--json", "--drain", "600")
    assert process.stdout is not None
    url = json.loads(process.stdout.readline())["url"]
    body = {"prompt": "a", "max_tokens": 240, "n": 8, "stream": True, "ignore_eos": True}
    with (
        httpx.Client() as client,
        pytest.raises(httpx.HTTPError),
        client.stream("POST", f"{url}/v1/completions", json=body) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        os.kill(process.pid, signal.SIGSTOP)  # so that both signals come before it ends by itself
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        os.kill(process.pid, signal.SIGCONT)
        for _ in lines:
            pass
        raise httpx.ReadError("the stream ended by itself")
    _, errors = process.communicate(timeout=60)  # much less than --drain
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "gemmule: stopped; 1 requests were cut off"
