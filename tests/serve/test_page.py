"""The page over HTTP: bytes, caching, headers. What runs in the browser is in browser/."""

import gzip
import re
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("starlette")
from starlette.applications import Starlette
from starlette.testclient import TestClient

from gemmule.serve import page


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(Starlette(routes=page.routes()))


def hashed_names(client: TestClient) -> list[str]:
    return re.findall(r'(?:src|href)="([^"]+)"', client.get("/").text)


def test_the_page_and_all_that_it_names_are_served(client: TestClient) -> None:
    assert client.get("/").headers["content-type"] == "text/html; charset=utf-8"
    types = {path.rpartition(".")[2]: client.get(f"/{path}") for path in hashed_names(client)}
    assert {name: got.headers["content-type"] for name, got in types.items()} == {
        "js": "text/javascript; charset=utf-8",
        "css": "text/css; charset=utf-8",
        "svg": "image/svg+xml",
    }
    assert all(got.status_code == 200 for got in types.values())


def test_license_texts_of_the_bundled_packages_are_served(client: TestClient) -> None:
    text = client.get("/assets/licenses.txt").text
    for package in ("markdown-it", "dompurify", "highlight.js", "temml", "linkify-it", "entities"):
        assert re.search(rf"^{re.escape(package)} \d", text, re.MULTILINE), package
    assert text.count("Permission is hereby granted") >= 4


def test_hashed_files_are_kept_and_the_page_is_asked_for_again(client: TestClient) -> None:
    assert client.get("/").headers["cache-control"] == "no-cache"
    assert client.get("/assets/licenses.txt").headers["cache-control"] == "no-cache"
    for path in hashed_names(client):
        assert client.get(f"/{path}").headers["cache-control"].endswith("immutable"), path


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_a_file_that_the_browser_has_is_not_sent_again(client: TestClient, encoding: str) -> None:
    headers = {"accept-encoding": encoding}
    first = client.get("/", headers=headers)
    assert first.headers.get("content-encoding", "identity") == encoding
    for known in (first.headers["etag"], f'"other", W/{first.headers["etag"]}', "*"):
        again = client.get("/", headers={**headers, "if-none-match": known})
        assert (again.status_code, again.content) == (304, b""), known
        assert again.headers["etag"] == first.headers["etag"]
        assert again.headers["content-security-policy"] == page.POLICY
    assert client.get("/", headers={**headers, "if-none-match": '"other"'}).status_code == 200


def test_both_encodings_are_the_same_file_under_two_etags(client: TestClient) -> None:
    plain = client.get("/", headers={"accept-encoding": "identity"})
    packed = client.get("/", headers={"accept-encoding": "br, gzip;q=0.5"})
    assert plain.content == packed.content  # the client decompresses
    assert plain.headers["etag"] != packed.headers["etag"]
    assert plain.headers["vary"] == packed.headers["vary"] == "Accept-Encoding"
    for file in page.page_files():
        assert gzip.decompress(file.bodies["gzip"]) == file.bodies["identity"]


@pytest.mark.parametrize(
    ("header", "expected"),
    [("gzip", True), ("br, GZIP", True), ("gzip; q=0", False), ("gzip;q=0.000", False),
     ("br", False), ("", False), ("gzipped", False), ("identity, gzip;q=0.1", True)],
)  # fmt: skip
def test_accept_encoding(header: str, expected: bool) -> None:
    assert page.accepts_gzip([header]) is expected


def test_the_page_is_small() -> None:
    """docs/serving.md gives the figure."""
    assert sum(len(file.bodies["gzip"]) for file in page.page_files()) < 200_000


def test_every_file_has_the_security_headers(client: TestClient) -> None:
    for file in page.page_files():
        headers = client.get(file.path).headers
        for name, value in page.SECURITY_HEADERS.items():
            assert headers[name] == value
    for directive in ("default-src 'none'", "script-src 'self'", "frame-ancestors 'none'",
                      "require-trusted-types-for 'script'", "trusted-types dompurify"):  # fmt: skip
        assert directive in page.POLICY.split("; ")
    assert "unsafe" not in page.POLICY
    assert "http" not in page.POLICY


@pytest.mark.parametrize(
    "path",
    ["/assets/", "/assets/../page.py", "/assets/..%2f..%2fpage.py", "/assets/%2e%2e/page.py",
     "/assets//etc/passwd", "/index.html", "/manifest.json", "/assets/main.js", "/..\\page.py",
     "/assets/licenses.txt%00.js"],
)  # fmt: skip
def test_no_other_path_reads_a_file(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


@pytest.mark.parametrize(("settings", "status"), [({}, 200), ({"page": False}, 404)])
def test_the_server_has_the_page_unless_it_is_left_out(
    make_client: Callable[..., TestClient], settings: dict[str, Any], status: int
) -> None:
    client = make_client(**settings)
    assert client.get("/").status_code == status
    assert client.get("/assets/licenses.txt").status_code == status


def test_the_page_needs_no_key_and_all_it_asks_for_does(
    make_client: Callable[..., TestClient],
) -> None:
    client = make_client(keys=("secret-key-of-the-test",))
    for file in page.page_files():
        assert client.get(file.path).status_code == 200, file.path
    assert client.get("/v1/models").status_code == 401
    assert client.get("/metrics").status_code == 401


def test_only_reading(client: TestClient) -> None:
    head: Any = client.head("/")
    assert (head.status_code, head.content) == (200, b"")
    for method in ("POST", "PUT", "DELETE"):
        assert client.request(method, "/").status_code == 405
