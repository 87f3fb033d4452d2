"""The chat loop: commands, context overflow, Ctrl-C, pipes, and a real terminal."""

import io
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gemmule.checkpoints.hf.writer import save_model
from gemmule.errors import ConfigError, UserError
from gemmule.infer.conversation import Answer, Conversation
from gemmule.infer.language_model import LanguageModel
from gemmule.infer.local_chat import LocalModel
from gemmule.infer.terminal_chat import TerminalChat

SHORT: Any = {"temperature": 0.0, "max_new_tokens": 6}


def talk(
    lm: LanguageModel, lines: Sequence[str | type[BaseException]], **more: Any
) -> tuple[TerminalChat, str]:
    """Runs a chat over scripted lines; an exception type stands for the key that raises it."""
    script: Iterator[str | type[BaseException]] = iter([*lines, EOFError])

    def read() -> str:
        line = next(script)
        if isinstance(line, str):
            return line
        raise line

    out = Console(file=io.StringIO(), width=200, highlight=False)
    settings: Any = {**SHORT, **more}
    chat = TerminalChat(LocalModel(lm, settings), read_line=read, out=out)
    chat.run()
    assert isinstance(out.file, io.StringIO)
    return chat, out.file.getvalue()


def test_answers_keep_the_history(lm: LanguageModel) -> None:
    chat, out = talk(lm, ["hello", "", "  again "])
    messages = chat.conversation.messages
    assert [m["role"] for m in messages] == ["user", "assistant", "user", "assistant"]
    assert [m["content"] for m in messages[::2]] == ["hello", "again"]
    assert messages[1]["content"] == lm.chat(messages[:1], **SHORT)
    assert messages[3]["content"] == lm.chat(messages[:3], **SHORT)
    assert out == f"{messages[1]['content']}\n{messages[3]['content']}\n"


def test_commands(lm: LanguageModel, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    lines = ["/help", "hi", f"/save {file}", "/reset", "/sytem x", "/save", "/exit", "never"]
    chat, out = talk(lm, lines)
    assert "Ctrl-C stops an answer" in out
    saved = json.loads(file.read_text())
    assert saved[0] == {"role": "user", "content": "hi"}
    assert chat.conversation.messages == []
    assert "unknown command /sytem; did you mean '/system'?" in out
    assert "name a file, as in /save chat.json" in out
    assert "never" not in str(chat.conversation.messages)
    _, out = talk(lm, [f"/save {file}/x"])
    assert "cannot write to" in out  # and the chat goes on


def test_system_text(lm: LanguageModel) -> None:
    chat, _ = talk(lm, ["hi", "/system Be brief.", "hello"])
    assert chat.conversation.with_system()[0] == {"role": "system", "content": "Be brief."}
    assert [m["content"] for m in chat.conversation.messages[::2]] == ["hello"]
    chat, _ = talk(lm, ["/system Be brief.", "/system"])
    assert chat.conversation.with_system() == []


def test_a_path_is_no_command(lm: LanguageModel) -> None:
    chat, _ = talk(lm, ["/usr/bin?"])
    assert chat.conversation.messages[0]["content"] == "/usr/bin?"


@pytest.mark.parametrize("key", [KeyboardInterrupt, EOFError])
def test_keys_at_the_prompt_leave(lm: LanguageModel, key: type[BaseException]) -> None:
    chat, _ = talk(lm, [key, "never"])
    assert chat.conversation.messages == []


def test_ctrl_c_stops_the_answer_and_not_the_chat(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def interrupted(messages: list[dict[str, str]], **_: Any) -> Iterator[str]:
        asked.append([m["content"] for m in messages])
        if len(asked) == 1:
            raise KeyboardInterrupt  # before the first word
        yield "Well"
        if len(asked) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(lm, "stream_chat", interrupted)
    chat, out = talk(lm, ["a", "b", "c"])
    assert out.count("(stopped)") == 2
    # "a" has no answer and is forgotten; what "b" got stays.
    assert asked == [["a"], ["b"], ["b", "Well", "c"]]
    assert len(chat.conversation.messages) == 4


def test_the_oldest_turns_give_way(lm: LanguageModel) -> None:
    lines = [f"question number {i}" for i in range(6)]
    chat, out = talk(lm, lines)
    assert "(the oldest 2 messages no longer fit into the context)" in out
    messages = chat.conversation.messages
    assert messages[-2]["content"] == lines[-1]
    assert messages[0]["role"] == "user"
    assert len(messages) < 12
    used = len(lm.tokenizer.render_chat(messages[:-1]))
    assert used <= LocalModel(lm, SHORT).max_tokens == 96 - 6


def test_a_message_that_never_fits(lm: LanguageModel) -> None:
    chat, out = talk(lm, ["hi", "x" * 400])
    assert "that message has" in out
    assert "at most 90 fit" in out
    assert [m["content"] for m in chat.conversation.messages[::2]] == ["hi"]


def test_room_for_an_answer_is_at_most_a_quarter(lm: LanguageModel) -> None:
    assert LocalModel(lm, {"max_new_tokens": 10_000}).max_tokens == 72


def test_a_chat_template_of_its_own_is_what_must_fit(lm: LanguageModel) -> None:
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    tokenizer = lm.tokenizer.with_chat_format(template, (107,))
    model = LocalModel(LanguageModel(lm.model, tokenizer), {"max_new_tokens": 24})
    conversation = Conversation("Be brief.")
    for _ in range(3):
        conversation.ask("and then a few words more", model.stream)
        conversation.answer("a short answer")
    _, dropped = conversation.ask("and then a few words more", model.stream)
    assert dropped > 0
    text = tokenizer.decode(tokenizer.render_chat(conversation.with_system()))
    assert text.startswith("[system] Be brief.\n[user] and")
    assert len(tokenizer.encode(text)) <= model.max_tokens


def test_a_question_that_fails_leaves_no_trace() -> None:
    conversation = Conversation()

    def away(_: object) -> Answer:
        raise UserError("the server is away")

    with pytest.raises(UserError, match="away"):
        conversation.ask("hello", away)
    assert conversation.messages == []


def test_what_a_model_writes_cannot_command_the_terminal(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = "a\x1b[2J\x07\r[bold]b\x9b\tc\n"
    monkeypatch.setattr(lm, "stream_chat", lambda *a, **k: iter([hostile]))
    chat, out = talk(lm, ["hi"])
    assert out == "a[2J[bold]b\tc\n\n"
    assert chat.conversation.messages[1]["content"] == hostile


def test_an_empty_answer_is_said_and_forgotten(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lm, "stream_chat", lambda *a, **k: iter([]))
    chat, out = talk(lm, ["hi"])
    assert "(the model ended its turn without any text)" in out
    assert chat.conversation.messages == []


def test_bad_settings_come_before_the_chat(lm: LanguageModel) -> None:
    with pytest.raises(ConfigError, match="temperature is -1"):
        talk(lm, [], temperature=-1)


# --- as a program -------------------------------------------------------------------------------

PROGRAM = """
import sys, gemmule
from gemmule.infer.local_chat import LocalModel
from gemmule.infer.terminal_chat import TerminalChat
settings = {"max_new_tokens": int(sys.argv[2]), "temperature": 0.0}
TerminalChat(LocalModel(gemmule.load(sys.argv[1]), settings)).run()
"""
SLOW = """
import time
from gemmule.model.gemma import Gemma
fast = Gemma.logits
Gemma.logits = lambda *args: (time.sleep(0.1), fast(*args))[1]
"""


@pytest.fixture(scope="module")
def folder(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat") / "model"
    save_model(lm.model, lm.tokenizer, folder)
    return folder


def test_lines_from_a_pipe(lm: LanguageModel, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), "6"],
        input="hello\n/nonsense\nbad \udcff byte\n".encode(errors="surrogateescape"),
        capture_output=True,
        timeout=60,
        check=True,
    )
    hello = [{"role": "user", "content": "hello"}]
    answers = done.stdout.decode()
    assert answers.startswith(lm.chat(hello, **SHORT) + "\n")
    assert "unknown command" not in answers
    assert "unknown command /nonsense" in done.stderr.decode()  # stdout is for answers alone


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_ctrl_c_in_a_real_terminal(folder: Path) -> None:
    import pty

    parent, child = pty.openpty()
    # A new session with the terminal as its own, so that typed keys become signals; and a model
    # slow enough to be stopped.
    # A suite started in the background hands down an ignored SIGINT; a terminal's shell does not.
    program = (
        "import fcntl, signal, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        f"signal.signal(signal.SIGINT, signal.default_int_handler)\n{SLOW}{PROGRAM}"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(folder), "80"],
        stdin=child,
        stdout=child,
        stderr=child,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(child)
    screen = b""

    def wait_for(text: bytes, count: int = 1) -> None:
        nonlocal screen
        end = time.monotonic() + 60
        while screen.count(text) < count:
            assert time.monotonic() < end, screen
            if select.select([parent], [], [], 0.2)[0]:
                try:
                    screen += os.read(parent, 4096)
                except OSError:  # the program has ended
                    pytest.fail(screen.decode(errors="replace"))

    try:
        wait_for(b"you>")
        os.write(parent, b"hello\r")
        wait_for(b"model>")
        os.write(parent, b"\x03")
        wait_for(b"(stopped)")
        wait_for(b"you>", 2)  # still there
        os.write(parent, b"/exit\r")
        assert process.wait(30) == 0
        assert b"Traceback" not in screen
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
        os.close(parent)
