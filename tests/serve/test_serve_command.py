"""What `gemmule serve` says, the keys it reads, and the code it prints."""

import ast
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from served import LiveServer

from gemmule.cli import main
from gemmule.errors import ConfigError
from gemmule.infer.language_model import LanguageModel
from gemmule.serve.announcement import announcement, python_lines, readiness
from gemmule.serve.key_file import read_keys
from gemmule.serve.served_models import ServedModels
from gemmule.serve.settings import ServeSettings


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GEMMULE_API_KEY", raising=False)


# Keys.


def test_keys_come_from_a_file_and_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys"
    path.write_text("first\n\n  second \r\nfirst\n")
    path.chmod(0o600)
    assert read_keys(None) == ((), None)
    assert read_keys(path) == (("first", "second"), None)
    monkeypatch.setenv("GEMMULE_API_KEY", "third")
    assert read_keys(path) == (("first", "second", "third"), None)
    assert read_keys(None) == (("third",), None)


def test_a_key_file_that_others_may_read_is_warned_about(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("secret")
    for mode in (0o640, 0o604, 0o644):
        path.chmod(mode)
        _, warning = read_keys(path)
        assert warning is not None
        assert f"chmod 600 {path}" in warning
        assert "secret" not in warning


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"two words", "number 1 cannot be used: it has a blank"),
        (b"a\nsch\xc3\xbcssel", "number 2 cannot be used"),
        (b"\xff", "it is not text"),
    ],
)
def test_key_files_that_cannot_be_used(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_keys(path)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_keys(tmp_path / "none")


def test_an_empty_key_in_the_environment_is_not_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMULE_API_KEY", "")
    with pytest.raises(ConfigError, match="it is empty"):
        read_keys(None)


# What is printed.


def lines_for(lm: LanguageModel, name: str, key_file: Path | None, **settings: Any) -> list[str]:
    chosen = ServeSettings(**settings)
    return python_lines("http://h:1", ServedModels.of({name: lm}, chosen), chosen, key_file)


def test_the_code_is_three_lines_without_a_key_in_them(lm: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / 'a "key" file'
    for key_file, keys in ((None, ()), (None, ("secret",)), (path, ("secret",))):
        for name in ("student", "gemma-2-2b-it", 'it\'s "quoted"'):
            lines = lines_for(lm, name, key_file, keys=keys)
            assert len(lines) == 3
            ast.parse("\n".join(lines))
            assert "secret" not in "".join(lines)
    assert "chat.completions" in lines_for(lm, "gemma-2-2b-it", None)[2]


def test_the_code_works_as_printed(
    live_server: LiveServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With OpenAI's library, or with as much of one as the lines use."""
    try:
        import openai
    except ModuleNotFoundError:
        openai = types.ModuleType("openai")
        openai.OpenAI = MiniClient  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "openai", openai)
    code = "\n".join(python_lines(live_server.url, live_server.models, ServeSettings(), None))
    exec(code, {})
    assert capsys.readouterr().out.endswith("\n")  # the text is noise, which may be white space


class MiniClient:
    """`OpenAI(…).completions.create(…).choices[0].text`."""

    def __init__(self, base_url: str, api_key: str) -> None:
        self._url, self._key = base_url, api_key
        self.completions = self

    def create(self, **body: Any) -> Any:
        import httpx2 as httpx

        headers = {"authorization": f"Bearer {self._key}"}
        answer = httpx.post(f"{self._url}/completions", json=body, headers=headers)
        answer.raise_for_status()
        choices = [types.SimpleNamespace(**choice) for choice in answer.json()["choices"]]
        return types.SimpleNamespace(choices=choices)


def test_the_announcement(lm: LanguageModel) -> None:
    settings = ServeSettings()
    models = ServedModels.of({"a": lm, "b": lm}, settings)
    text = announcement("http://127.0.0.1:1", models, settings)
    assert text.startswith("gemmule serves a, b: open http://127.0.0.1:1 to chat, or in Python:\n")
    assert readiness("http://h:1", models) == {"url": "http://h:1", "models": ["a", "b"]}
    without = announcement("http://127.0.0.1:1", models, ServeSettings(page=False))
    assert "chat" not in without


# Errors of the command: one line, exit code 2.


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as e:
        main(["serve", *arguments])
    assert e.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_mistakes_are_one_clear_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, pieces_folder: Path
) -> None:
    model = str(pieces_folder)
    assert "no API key: set one with --key-file" in refused(capsys, model, "--host", "0.0.0.0")
    assert str(tmp_path / "none") in refused(capsys, str(tmp_path / "none"))
    assert "two models are named 'model'" in refused(capsys, model, model)
    assert "port is 70000" in refused(capsys, model, "--port", "70000")
    assert "max_waiting is -1" in refused(capsys, model, "--max-queue", "-1")
    assert "both a certificate and its key" in refused(capsys, model, "--tls-cert", "x.pem")
    assert "give PATH or NAME=PATH" in refused(capsys, f"={model}")


def test_a_missing_extra_is_named() -> None:
    code = """
import sys
sys.modules["uvicorn"] = None
from gemmule.cli import main
main(["serve", "x"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert done.stderr == 'gemmule: gemmule serve needs uvicorn: pip install "gemmule[serve]"\n'
