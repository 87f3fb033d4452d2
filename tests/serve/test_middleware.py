"""Who may use the server, and how large a request may be."""

import hmac
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from served import NAME, LiveServer
from starlette.testclient import TestClient

from gemmule.errors import ConfigError
from gemmule.serve.middleware import keys as keys_module
from gemmule.serve.middleware.hosts import hostname
from gemmule.serve.settings import ServeSettings

Clients = Callable[..., TestClient]
CHAT = {"model": NAME, "messages": [{"role": "user", "content": "a ship"}], "max_tokens": 2}


# Hosts: DNS rebinding.


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:8000", "localhost:1", "LOCALHOST", "[::1]:80", "192.168.1.4:8000",
     "chat.localhost", "localhost."],
)  # fmt: skip
def test_names_of_this_machine_and_addresses_are_served(client: TestClient, host: str) -> None:
    assert client.get("/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example"],
)
def test_a_page_cannot_reach_the_server_by_dns_rebinding(client: TestClient, host: str) -> None:
    for path in ("/health", "/v1/models", "/", "/nothing"):
        answer = client.get(path, headers={"host": host})
        assert answer.status_code == 421
        assert "--allow-host" in answer.json()["error"]["message"]


def test_further_hosts_are_served_when_listed(make_client: Clients) -> None:
    listed = make_client(allowed_hosts=("chat.example",))
    assert listed.get("/health", headers={"host": "chat.example:443"}).status_code == 200
    assert listed.get("/health", headers={"host": "other.example"}).status_code == 421
    every = make_client(allowed_hosts=("*",))
    assert every.get("/health", headers={"host": "other.example"}).status_code == 200


def test_a_host_header_is_needed_once(live_server: LiveServer) -> None:
    for hosts in (b"", b"Host: localhost\r\nHost: evil.example\r\n"):
        request = b"GET /health HTTP/1.1\r\nConnection: close\r\n" + hosts + b"\r\n"
        with socket.create_connection(("127.0.0.1", live_server.port), timeout=30) as connection:
            connection.sendall(request)
            assert connection.recv(65536).startswith(b"HTTP/1.1 400")


def test_http_1_0_needs_no_host(live_server: LiveServer) -> None:
    """That version does not know the header (RFC 1945), and no browser speaks it."""
    for hosts, status in (
        (b"", 200),
        (b"Host: localhost\r\n", 200),
        (b"Host: evil.example\r\n", 421),
    ):
        with socket.create_connection(("127.0.0.1", live_server.port), timeout=30) as connection:
            connection.sendall(b"GET /health HTTP/1.0\r\n" + hosts + b"\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 %d" % status)


def test_hostnames_are_read_without_their_port() -> None:
    assert [hostname(h) for h in ("a:1", "[::1]:1", "[::1]", "A.", "")] == [
        "a",
        "::1",
        "::1",
        "a",
        "",
    ]


# Origins: CORS.


def test_no_other_origin_may_use_the_server(client: TestClient) -> None:
    for origin in ("https://evil.example", "null", "http://127.0.0.1:81", "file://"):
        answer = client.post("/v1/chat/completions", json=CHAT, headers={"origin": origin})
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers
        asked = {"origin": origin, "access-control-request-method": "POST"}
        assert client.options("/v1/chat/completions", headers=asked).status_code == 403


def test_the_own_page_may_use_the_server(client: TestClient) -> None:
    for origin in ("http://127.0.0.1", "https://127.0.0.1"):  # the latter behind a proxy with TLS
        answer = client.post("/v1/chat/completions", json=CHAT, headers={"origin": origin})
        assert answer.status_code == 200
        assert "access-control-allow-origin" not in answer.headers


def test_another_page_cannot_send_gets_in_the_background(client: TestClient) -> None:
    background = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
    assert client.get("/v1/models", headers=background).status_code == 403
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert client.get("/", headers=link).status_code == 200
    own = {"sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"}
    assert client.get("/v1/models", headers=own).status_code == 200


def test_listed_origins_are_matched_exactly(make_client: Clients) -> None:
    client = make_client(allowed_origins=("https://chat.example", "https://b.example"))
    for origin in ("https://chat.example", "https://b.example"):
        answer = client.post("/v1/chat/completions", json=CHAT, headers={"origin": origin})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == origin
        assert answer.headers["vary"] == "Origin"
        assert "access-control-allow-credentials" not in answer.headers
        error = client.get("/nothing", headers={"origin": origin})
        assert error.headers["access-control-allow-origin"] == origin
    for origin in (
        "https://chat.example.evil.example",
        "http://chat.example",
        "https://CHAT.example",
    ):
        assert client.get("/health", headers={"origin": origin}).status_code == 403


@pytest.mark.parametrize(
    "origin",
    [
        "chat.example",
        "https://chat.example/",
        "https://Chat.example",
        "*",
        "null",
        "https://*.example",
        "",
    ],
)
def test_an_origin_that_can_never_match_is_refused(origin: str) -> None:
    with pytest.raises(ConfigError, match=r"can never match.*https://chat\.example"):
        ServeSettings(allowed_origins=(origin,))
    ServeSettings(allowed_origins=("http://[::1]:8000", "chrome-extension://abc"))


@pytest.mark.parametrize("host", ["http://chat.example", "chat.example:80", "a/b", "*.example", ""])
def test_a_host_that_can_never_match_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match=r"can never match.*chat\.example"):
        ServeSettings(allowed_hosts=(host,))
    ServeSettings(allowed_hosts=("*", "chat.example."))


def test_preflights_of_listed_origins_need_no_key(make_client: Clients) -> None:
    client = make_client(allowed_origins=("https://chat.example",), keys=("secret",))
    answer = client.options(
        "/v1/chat/completions",
        headers={
            "origin": "https://chat.example",
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type,x-stainless-os",
        },
    )
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == "https://chat.example"
    assert "x-stainless-os" in answer.headers["access-control-allow-headers"]


# Keys.


def test_every_route_but_the_page_and_health_needs_a_key(make_client: Clients) -> None:
    client = make_client(keys=("secret", "another"))
    app = client.app
    open_paths = set()
    for route in app.routes:  # type: ignore[attr-defined]
        path = re.sub(r"\{.*?\}", NAME, route.path)
        method = "POST" if "POST" in route.methods else "GET"
        status = client.request(method, path, headers={"accept": "*/*"}).status_code
        if status != 401:
            open_paths.add(route.path)
        with_key = client.request(method, path, headers={"authorization": "Bearer another"})
        assert with_key.status_code != 401
    pages = {path for path in open_paths if path == "/" or path.startswith("/assets/")}
    assert "/" in pages
    assert open_paths - pages == {"/health", "/v1/health"}
    assert client.get("/nothing").status_code == 401
    assert client.options("/v1/models").status_code == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer secret"}, 200),
        ({"authorization": "bearer  secret "}, 200),
        ({"x-api-key": "secret"}, 200),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Bearer secre"}, 401),
        ({"authorization": "Bearer secrets"}, 401),
        ({"authorization": "secret"}, 401),
        ({"authorization": "Basic secret"}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"x-api-key": ""}, 401),
        ({"x-api-key": "Bearer secret"}, 401),
        ({"authorization": b"Bearer secr\xe9t"}, 401),
    ],
)
def test_a_key_is_given_in_either_header(
    make_client: Clients, headers: dict[str, str], status: int
) -> None:
    answer = make_client(keys=("other", "secret")).get("/v1/models", headers=headers)
    assert answer.status_code == status
    if status == 401:
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "secret" not in answer.text


def test_keys_are_compared_in_constant_time(
    make_client: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All keys are compared, by digests of one length, whichever of them fits."""
    compared: list[tuple[int, int]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return a == b

    monkeypatch.setattr(keys_module.hmac, "compare_digest", compare)
    client = make_client(keys=("first", "second", "a much longer one"))
    for key in ("first", "a much longer one", "none of them"):
        compared.clear()
        client.get("/v1/models", headers={"x-api-key": key})
        assert compared == [(32, 32)] * 3
    assert keys_module.hmac is hmac


def test_errors_before_a_route_have_the_form_of_its_protocol(make_client: Clients) -> None:
    client = make_client(keys=("secret",))
    answer = client.post("/v1/messages", json={})
    assert answer.status_code == 401
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == "authentication_error"


# Limits.


def test_bodies_are_counted_as_they_arrive(live_server_1k: LiveServer) -> None:
    with live_server_1k.client() as client:
        small = client.post("/v1/chat/completions", json=CHAT)
        assert small.status_code == 200
        declared = client.post("/v1/chat/completions", content=b" " * 2000)
        chunked = client.post("/v1/chat/completions", content=iter([b" " * 600] * 3))
        for answer in (declared, chunked):
            assert answer.status_code == 413
            assert answer.json()["error"]["code"] == "body_too_large"


@pytest.fixture
def live_server_1k(start_server: Callable[..., LiveServer]) -> LiveServer:
    return start_server(max_body_bytes=1000)


def test_all_bodies_together_are_bounded(make_client: Clients) -> None:
    client = make_client(max_total_body_bytes=1000)
    for _ in range(3):  # what has ended is not counted
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
    answer = client.post("/v1/chat/completions", content=b" " * 1001)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"


def test_headers_are_bounded(make_client: Clients) -> None:
    client = make_client(max_headers=20, max_header_bytes=2000)
    assert client.get("/health", headers={"a": "b" * 500}).status_code == 200
    assert client.get("/health", headers={"a": "b" * 2000}).status_code == 431
    assert client.get("/health?" + "q" * 2000).status_code == 431
    assert client.get("/health", headers={f"a{i}": "b" for i in range(21)}).status_code == 431


def test_nested_json_is_bounded(client: TestClient) -> None:
    for depth in (201, 100_000, 1_000_000):
        body = b'{"messages":' + b"[" * depth + b"]" * depth + b"}"
        answer = client.post("/v1/chat/completions", content=body)
        assert answer.status_code == 400
        assert "recursion limit" in answer.json()["error"]["message"]


def test_compressed_bodies_are_refused(client: TestClient) -> None:
    headers = {"content-encoding": "gzip"}
    assert client.post("/v1/chat/completions", content=b"x", headers=headers).status_code == 415


def test_no_file_is_read_by_a_path_of_a_request(client: TestClient, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("the sea")
    for path in (
        f"/assets/../../../..{secret}", f"/assets/%2e%2e/%2e%2e{secret}", f"/{secret}",
        "/assets/..%2f..%2f..%2fetc%2fpasswd", f"/v1/models/{secret}/card",
        f"/v1/models/..%2f..%2f{secret}/card", "/assets/....//....//etc/passwd",
    ):  # fmt: skip
        answer = client.get(path)
        assert answer.status_code == 404
        assert "the sea" not in answer.text
