"""What a user types finds the model, or the message says what to type instead."""

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import tqdm
from huggingface_hub import errors as hub

from gemmule.checkpoints.load import open_checkpoint
from gemmule.checkpoints.locate import Located, locate
from gemmule.errors import CheckpointError, Interrupted

REAL_DOWNLOAD = huggingface_hub.snapshot_download


def model_at(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(repo: str, **_: Any) -> str:
        raise AssertionError(f"tried to download {repo}")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)


def message(path: str | Path) -> str:
    with pytest.raises(CheckpointError) as e:
        locate(path)
    return str(e.value)


def test_finds_layout_folders_and_runs(tmp_path: Path) -> None:
    flat, run = model_at(tmp_path / "flat"), tmp_path / "run"
    model_at(run / "model")
    assert locate(flat) == Located("hf", flat)
    assert locate(str(run)) == Located("hf", run / "model")


def test_other_tensors_of_a_run_are_not_its_model(tmp_path: Path) -> None:
    """Preference tuning keeps the log-probabilities of its reference next to the model."""
    (run := tmp_path / "dpo").mkdir()
    for name in ("config.toml", "metrics.jsonl", "reference.safetensors"):
        (run / name).write_text("")
    assert "a run that has not finished" in message(run)
    model_at(run / "model")
    assert locate(run) == Located("hf", run / "model")


def test_a_quickstart_suggests_its_student(tmp_path: Path) -> None:
    (tmp_path / "quick" / "student").mkdir(parents=True)
    assert "has not finished a model yet" in message(tmp_path / "quick")
    model_at(tmp_path / "quick" / "teacher" / "model")
    assert f"such as {tmp_path}/quick/teacher" in message(tmp_path / "quick")
    model_at(tmp_path / "quick" / "student" / "model")
    text = message(tmp_path / "quick")
    assert f"such as {tmp_path}/quick/student (also {tmp_path}/quick/teacher)" in text
    path = locate(tmp_path / "quick/student").path
    assert path == tmp_path / "quick/student/model"


def test_says_what_is_there_instead(tmp_path: Path) -> None:
    assert "it holds nothing); expected a run directory" in message(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "data").mkdir()
    assert "it holds data/, notes.txt" in message(tmp_path)
    assert f"nothing at {tmp_path}/dta ({tmp_path} holds data)" in message(tmp_path / "dta")
    (tmp_path / "checkpoints").mkdir()
    assert "is a run that has not finished" in message(tmp_path)
    assert "is not a kind of file that can be loaded" in message(tmp_path / "notes.txt")


@pytest.mark.parametrize(
    ("name", "format"),
    [("m.gguf", "gguf"), ("model.ckpt", "torch"), ("params.npz", "npz")],
)
def test_finds_other_formats(tmp_path: Path, name: str, format: str) -> None:
    file = tmp_path / "x" / name
    file.parent.mkdir()
    file.write_bytes(b"")
    assert locate(file) == locate(file.parent) == Located(format, file)
    (file.parent / "config.json").write_text(
        "{}"
    )  # next to weights of another format: not a folder in HF's layout
    assert locate(file.parent) == Located(format, file)
    (file.parent / "other.ckpt").write_bytes(b"")
    assert "holds several models: name one, such as " in message(file.parent)


def test_finds_folders_of_other_formats(tmp_path: Path) -> None:
    for name, format in (
        ("pytorch_model.bin.index.json", "torch"),
        ("_METADATA", "orbax"),
        ("manifest.ocdbt", "orbax"),
    ):
        folder = tmp_path / format / name.strip("_.")
        folder.mkdir(parents=True)
        (folder / name).write_text("{}")
        assert locate(folder) == Located(format, folder)


@pytest.mark.parametrize("weights", ["adapter_model.safetensors", "adapter_model.bin"])
@pytest.mark.parametrize("others", [(), ("config.json",), ("config.json", "model.safetensors")])
def test_finds_adapters(tmp_path: Path, weights: str, others: tuple[str, ...]) -> None:
    """An adapter with a config, or with its whole base, in its folder is still an adapter."""
    for name in ("adapter_config.json", weights, *others):
        (tmp_path / name).write_text("{}")
    assert locate(tmp_path) == Located("adapter", tmp_path)


def test_odd_paths() -> None:
    assert "expected a run directory" in message("a\0b")
    assert "expected a run directory" in message("x" * 5000)
    assert "nothing at" in message("./no/such")


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "model.safetensors.index.json"]
)
def test_a_file_of_a_model_names_its_folder(tmp_path: Path, name: str) -> None:
    flat = model_at(tmp_path / "flat")
    (flat / name).write_text("{}")
    assert locate(flat / name) == Located("hf", flat)


def test_an_existing_parent_is_no_hub_organisation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model_at(tmp_path / "runs/one")
    assert "nothing at runs/onee (runs holds one)" in message("runs/onee")


def response_error(kind: type[hub.HfHubHTTPError], text: str) -> hub.HfHubHTTPError:
    error = kind.__new__(kind)
    Exception.__init__(error, text)
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (response_error(hub.GatedRepoError, "403"), "gated: accept its license at https://hugg"),
        (response_error(hub.RepositoryNotFoundError, "401"), "no model org/name on the hub"),
        (hub.LocalEntryNotFoundError("x"), "the hub cannot be reached"),
        (hub.LocalEntryNotFoundError("set 'HF_HUB_OFFLINE=0'"), "HF_HUB_OFFLINE is set"),
        (hub.HFValidationError("too long"), "'org/name' is not a hub id: too long"),
        (ConnectionResetError("peer"), "failed (peer); run the same command again"),
        (RuntimeError("peer closed\nmore"), "failed (peer closed); run"),
    ],
)
def test_failed_downloads(monkeypatch: pytest.MonkeyPatch, error: Exception, expected: str) -> None:
    def fail(repo: str, **_: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    assert expected in message("org/name")
    assert expected in message("hf://org/name")


def test_a_download_stopped_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(repo: str, **_: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(huggingface_hub, "snapshot_download", stop)
    with pytest.raises(Interrupted, match="complete files are kept"):
        locate("org/name")


# --- against a hub on this machine --------------------------------------------------------------

SHA = "a" * 40


class Silent(tqdm.tqdm):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "disable": True})


WEIGHTS = bytes(range(256)) * 4000


class FakeHub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's API as a download needs; it breaks off the weights when told to."""

    protocol_version = "HTTP/1.1"
    files = {"config.json": b"{}", "model.safetensors": WEIGHTS}  # noqa: RUF012
    break_off_after: int | None = None
    status = 200
    error_code = ""
    sent: list[str] = []  # noqa: RUF012

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.status != 200:
            self.reply(b"{}", self.status, {"X-Error-Code": self.error_code})
        elif "/tree/" in self.path:
            entries = [
                {"type": "file", "path": n, "size": len(b), "oid": "b" * 40}
                for n, b in self.files.items()
            ]
            self.reply(json.dumps(entries).encode())
        elif self.path.startswith("/api/models/"):
            self.reply(json.dumps({"id": "org/name", "sha": SHA, "siblings": []}).encode())
        else:
            self.send_file(self.path.rsplit("/", 1)[1])

    do_HEAD = do_GET

    def send_file(self, name: str) -> None:
        body, start = next(b for n, b in self.files.items() if n.endswith(name)), 0
        headers = {"ETag": f'"{name}-etag"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range")
        if self.command == "GET":
            self.sent.append(name)
        if asked:
            start = int(asked.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        cut = self.break_off_after
        self.reply(body[start:], 206 if asked else 200, headers, cut if len(body) > 999 else None)

    def reply(
        self,
        body: bytes,
        status: int = 200,
        headers: dict[str, str] | None = None,
        cut: int | None = None,
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
            if cut is not None:
                self.close_connection = True


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeHub]]:
    handler = type("Handler", (FakeHub,), {"sent": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    download = functools.partial(
        REAL_DOWNLOAD, endpoint=url, cache_dir=tmp_path / "cache", tqdm_class=Silent
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    huggingface_hub.close_session()  # a session reads the proxies when it is made
    yield handler
    huggingface_hub.close_session()
    server.shutdown()
    server.server_close()
    thread.join()


def test_downloads_once(fake_hub: type[FakeHub]) -> None:
    folder = locate("org/name").path
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    fake_hub.status = 500  # the hub goes down: the cache serves
    assert locate("org/name").path == folder


def test_one_file_of_a_repository(fake_hub: type[FakeHub]) -> None:
    fake_hub.files = {"q/m-Q8_0.gguf": b"GGUF", "q/m-Q4_0.gguf": b"x" * 9, "README.md": b"hello"}
    text = message("org/name")
    assert "if it has GGUF files, name one: hf://org/name/FILE.gguf" in text
    located = locate("hf://org/name/q/m-Q8_0.gguf")
    assert located.format == "gguf"
    assert located.path.read_bytes() == b"GGUF"
    assert fake_hub.sent == ["m-Q8_0.gguf"]
    assert "org/name on the hub has no file q/other.gguf" in message("hf://org/name/q/other.gguf")


def test_a_repository_of_torch_s_files(fake_hub: type[FakeHub]) -> None:
    fake_hub.files = {"config.json": b"{}", "pytorch_model.bin": WEIGHTS, "optimizer.bin": b"x"}
    located = locate("org/name")
    assert located.format == "torch"
    assert (located.path / "pytorch_model.bin").read_bytes() == WEIGHTS
    assert "optimizer.bin" not in fake_hub.sent


def test_torch_s_files_are_left_where_there_are_safetensors(fake_hub: type[FakeHub]) -> None:
    fake_hub.files = {**fake_hub.files, "pytorch_model.bin": WEIGHTS}
    assert locate("org/name").format == "hf"
    assert "pytorch_model.bin" not in fake_hub.sent


def test_another_model_is_refused_before_its_weights_come(fake_hub: type[FakeHub]) -> None:
    config = b'{"model_type": "gemma3_text"}'
    fake_hub.files = {"config.json": config, "model.safetensors": WEIGHTS}
    with pytest.raises(CheckpointError, match=r"org/name on the hub describes Gemma 3 "):
        open_checkpoint("org/name")
    assert fake_hub.sent == ["config.json"]
    assert locate("org/name").format == "hf"  # as a teacher that transformers runs


def test_all_parts_of_a_split_gguf_come(fake_hub: type[FakeHub]) -> None:
    names = [f"m-{i:05}-of-00002.gguf" for i in (1, 2)]
    fake_hub.files = dict.fromkeys(names, b"GGUF") | {"n-00001-of-00002.gguf": b"GGUF"}
    located = locate(f"hf://org/name/{names[1]}")
    assert located.path.name == names[1]
    assert sorted(fake_hub.sent) == names


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (403, "GatedRepo", "org/name is gated: accept its license"),
        (404, "RepoNotFound", "no model org/name on the hub"),
        (401, "", "no model org/name on the hub"),
        (500, "", "the hub cannot be reached"),
    ],
)
def test_refusals(fake_hub: type[FakeHub], status: int, code: str, expected: str) -> None:
    fake_hub.status, fake_hub.error_code = status, code
    assert expected in message("org/name")


def test_a_broken_off_download_continues(
    fake_hub: type[FakeHub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the hub client's own attempts
    fake_hub.break_off_after = 100_000
    text = message("org/name")
    assert "the download of org/name failed" in text
    assert "run the same command again: complete files are kept" in text
    assert fake_hub.sent.count("config.json") == 1
    assert fake_hub.sent.count("model.safetensors") > 1  # the client tried again by itself
    fake_hub.break_off_after = None
    folder = locate("org/name").path
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert (folder / "config.json").read_bytes() == b"{}"
    assert fake_hub.sent.count("config.json") == 1
