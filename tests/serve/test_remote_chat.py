"""`gemmule chat --url`: against a server that answers from a script."""

import contextlib
import io
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from served import LiveServer
from typer.testing import CliRunner

from gemmule import cli
from gemmule.errors import ConfigError, UserError
from gemmule.infer.conversation import TooLongError
from gemmule.infer.language_model import LanguageModel
from gemmule.infer.terminal_chat import TerminalChat
from gemmule.serve.remote_chat import RemoteModel, RemoteSampling, read_key

MODELS = {
    "object": "list",
    "data": [
        {"id": "student", "aliases": ["small"], "meta": {"n_params": 1_500_000},
         "gemmule": {"context_length": 512}},
        {"id": "teacher"},
    ],
}  # fmt: skip
Reply = tuple[int, dict[str, str], str]
HI = [{"role": "user", "content": "hi"}]
SAIL = [{"role": "user", "content": "sail"}]


def chunk(text: str | None, finish: str | None = None) -> str:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return f"data: {json.dumps({'choices': [choice]})}\n\n"


def streamed(*parts: str) -> Reply:
    return 200, {"Content-Type": "text/event-stream; charset=utf-8"}, "".join(parts)


def error(status: int, message: str, headers: dict[str, str] | None = None, **more: str) -> Reply:
    body = json.dumps({"error": {"message": message, **more}})
    return status, {"Content-Type": "application/json", **(headers or {})}, body


DONE = "data: [DONE]\n\n"
HELLO = streamed(
    ": keep-alive\n\n",
    chunk(None),
    chunk("Hel"),
    chunk("lo 🤗"),
    chunk("", "stop"),
    'data: {"choices": [], "usage": {}}\n\n',
    DONE,
)


class Script:
    """A server: what it answers to chats, one after the other, and what it was asked."""

    def __init__(self) -> None:
        self.models: Reply = (200, {"Content-Type": "application/json"}, json.dumps(MODELS))
        self.replies: list[Reply] = []
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.url = ""


@pytest.fixture
def script() -> Iterator[Script]:
    script = Script()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(script.models if self.path == "/v1/models" else error(404, "no such path"))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            script.asked.append(json.loads(body))
            self._answer(script.replies.pop(0))

        def _answer(self, reply: Reply) -> None:
            script.keys.append(self.headers["Authorization"])
            status, headers, text = reply
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    script.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield script
    server.shutdown()
    thread.join()
    server.server_close()


Connect = Callable[..., RemoteModel]


@pytest.fixture
def connect(script: Script) -> Iterator[Connect]:
    models = []

    def open_model(*args: Any, **kwargs: Any) -> RemoteModel:
        models.append(RemoteModel(script.url, *args, **kwargs))
        return models[-1]

    yield open_model
    for model in models:
        model.close()


def talk(model: RemoteModel, *lines: str) -> tuple[TerminalChat, str]:
    script = iter(lines)

    def read() -> str:
        try:
            return next(script)
        except StopIteration:
            raise EOFError from None

    out = Console(file=io.StringIO(), width=200, highlight=False)
    chat = TerminalChat(model, read_line=read, out=out)
    chat.run()
    assert isinstance(out.file, io.StringIO)
    return chat, out.file.getvalue()


def test_an_answer_comes_in_parts(script: Script, connect: Connect) -> None:
    script.replies = [HELLO]
    model = connect(sampling=RemoteSampling(max_tokens=5, seed=3), key="abc")
    assert list(model.stream(HI)) == ["", "Hel", "lo 🤗", "", ""]
    assert script.asked == [
        {"model": "student", "messages": HI, "stream": True, "max_tokens": 5, "seed": 3}
    ]
    assert script.keys == ["Bearer abc"] * 2
    assert model.describe() == f"1.5M parameters · context 512 tokens · {script.url}/v1"


def test_a_conversation(script: Script, connect: Connect) -> None:
    script.replies = [HELLO, HELLO]
    chat, out = talk(connect("small"), "hi", "again")
    assert out == "Hello 🤗\nHello 🤗\n"
    assert script.asked[1]["model"] == "small"  # an alias
    assert [m["content"] for m in script.asked[1]["messages"]] == ["hi", "Hello 🤗", "again"]
    assert len(chat.conversation.messages) == 4


@pytest.mark.parametrize(
    "refusal",
    [
        error(400, "too many", code="context_length_exceeded"),
        error(400, "too many", type="exceed_context_size_error"),
        error(400, "This model's maximum context length is 512 tokens"),
    ],
)
def test_the_oldest_turns_give_way(script: Script, connect: Connect, refusal: Reply) -> None:
    script.replies = [HELLO, refusal, HELLO]
    _, out = talk(connect(), "hi", "again")
    assert "(the oldest 2 messages no longer fit into the context)" in out
    assert [len(body["messages"]) for body in script.asked] == [1, 3, 1]
    script.replies = [refusal]
    with pytest.raises(TooLongError, match="HTTP 400"):
        connect().stream(HI)


def test_a_failure_in_a_stream_is_said_and_the_chat_goes_on(
    script: Script, connect: Connect
) -> None:
    failed = streamed(chunk("Hel"), 'data: {"error": {"message": "out of\\nmemory"}}\n\n', DONE)
    script.replies = [failed, HELLO]
    chat, out = talk(connect(), "hi", "again")
    assert "the server failed: out of memory" in out
    assert [m["content"] for m in chat.conversation.messages] == ["again", "Hello 🤗"]


def test_a_stream_that_breaks_off_is_not_an_answer(script: Script, connect: Connect) -> None:
    script.replies = [streamed(chunk("Hel"))]
    with pytest.raises(UserError, match="broke off in an answer"):
        list(connect().stream(HI))
    script.replies = [streamed(chunk("Hel"), chunk("", "stop"))]  # [DONE] may be missing
    assert "".join(connect().stream(HI)) == "Hel"


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (error(429, "full", {"Retry-After": "7"}), "is busy .HTTP 429: full.: try again in 7 sec"),
        (error(503, "loading"), "is busy .HTTP 503: loading.: try again later"),
        (error(401, "no key"), "requires an API key.*GEMMULE_API_KEY.*--key-file"),
        (error(404, "no model"), "does not exist .HTTP 404: no model.: give the base address"),
        (error(400, "top_k is unknown"), "refuses the request .HTTP 400: top_k is unknown"),
        ((500, {"Content-Type": "text/html"}, "<h1>no"), "HTTP 500 and text/html, not as an"),
        ((200, {"Content-Type": "text/html"}, "<h1>hi"), "HTTP 200 and text/html, not as an"),
    ],
)
def test_refusals(script: Script, connect: Connect, reply: Reply, message: str) -> None:
    script.replies = [reply]
    with pytest.raises(UserError, match=message):
        list(connect().stream(HI))


def test_the_model_must_be_there(script: Script, connect: Connect) -> None:
    with pytest.raises(ConfigError, match="has no model 'nobody': it lists student, teacher"):
        connect("nobody")
    script.models = (200, {}, '{"data": []}')
    with pytest.raises(ConfigError, match="lists no model"):
        connect()
    script.models = (200, {}, "<html>")
    with pytest.raises(ConfigError, match="lists no model"):
        connect()
    script.models = error(404, "none")
    assert connect("any").name == "any"  # some servers do not list their models
    with pytest.raises(ConfigError, match="HTTP 404"):
        connect()


def test_a_server_that_is_away() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # taken, and nobody listens
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ConfigError, match=r"cannot connect to .*is the server running"):
            RemoteModel(url)


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://x", "http://", "http://[::"])
def test_what_is_not_an_address(url: str) -> None:
    with pytest.raises(ConfigError, match="is not an address"):
        RemoteModel(url)


def test_the_key_comes_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GEMMULE_API_KEY", raising=False)
    assert read_key(None) is None
    monkeypatch.setenv("GEMMULE_API_KEY", "from the environment")
    assert read_key(None) == "from the environment"
    file = tmp_path / "key"
    file.write_text("secret\n")
    assert read_key(file) == "secret"
    file.write_text("\n")
    with pytest.raises(ConfigError, match="holds no API key"):
        read_key(file)


def run(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
    done = CliRunner().invoke(cli.app, ["chat", *arguments], input=stdin)
    if isinstance(done.exception, UserError):
        return 2, done.stdout, str(done.exception)
    return done.exit_code, done.stdout, done.stderr


def test_on_the_command_line(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMULE_API_KEY", "abc")
    script.replies = [HELLO]
    code, out, _ = run("--url", f"{script.url}/v1", "--system", "Be brief.", stdin="hi\n")
    assert (code, out) == (0, "Hello 🤗\n")
    (body,) = script.asked
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert body["temperature"] == 0.8
    assert not {"top_k", "seed", "repetition_penalty"} & set(body)
    assert script.keys == ["Bearer abc"] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a model"),
        (["m", "--url", "http://x"], "give either a model, m, or the address"),
        (["m", "--model", "x"], "are for servers"),
        (["--url", "http://x", "--quantize", "int8"], "--quantize is for models in this process"),
    ],
)
def test_options_that_do_not_fit_together(arguments: list[str], message: str) -> None:
    code, _, err = run(*arguments)
    assert code == 2
    assert message in err


def test_with_gemmules_own_server(
    start_server: Callable[..., LiveServer], lm: LanguageModel
) -> None:
    server = start_server(keys=("secret",))
    with pytest.raises(ConfigError, match="requires an API key"):
        RemoteModel(server.url)
    sampling = RemoteSampling(max_tokens=6, temperature=50.0, top_p=1.0, seed=1)
    model = RemoteModel(server.url, sampling=sampling, key="secret")
    with contextlib.closing(model):
        assert "context 256 tokens" in model.describe()
        chat, out = talk(model, "sail", "sea " * 60, "sail " * 60, "x" * 5000)
        messages = chat.conversation.messages
        answer = lm.chat(SAIL, temperature=50.0, top_p=1.0, seed=1, max_new_tokens=6)
        assert out.startswith(answer + "\n")
        assert answer.strip()
        assert "no longer fit into the context" in out
        assert "That message was left out" in out
        assert messages[0]["content"] != "sail"
