"""Ctrl-C at any line of an answer: it is stopped, the chat goes on, and nothing is left behind."""

import io
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from rich.console import Console

import gemmule
from gemmule.infer import language_model
from gemmule.infer.language_model import LanguageModel
from gemmule.infer.local_chat import LocalModel
from gemmule.infer.runners.torch_runner import TorchRunner
from gemmule.infer.terminal_chat import TerminalChat
from gemmule.runtime.signals import Interrupts, chosen_interrupts

PACKAGE = str(Path(gemmule.__file__).parent)
SHORT: Any = {"temperature": 0.0, "max_new_tokens": 4}
Line = tuple[str, int]


class Tracer:
    """Notes the lines of gemmule that run, and presses Ctrl-C when one of them is first reached."""

    def __init__(self, press_at: Line | None = None) -> None:
        self.lines: dict[Line, None] = {}
        self._press_at, self._begun = press_at, False

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        # Not the end of the prompt before the answer, nor the beginning of the one after it.
        self._begun |= frame.f_code.co_name == "_reply"
        if frame.f_code.co_name == "forget":
            sys.settrace(None)
            return None
        if not self._begun or not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        line = (frame.f_code.co_filename, frame.f_lineno)
        if event == "line" and line not in self.lines:
            self.lines[line] = None
            if line == self._press_at:
                sys.settrace(None)
                signal.raise_signal(signal.SIGINT)
        return self


def chat(lm: LanguageModel, tracer: Tracer, where: str = "") -> tuple[TerminalChat, str]:
    """A chat of two questions; the tracer sees the first answer, up to the next prompt."""

    def read() -> str:
        sys.settrace(None)
        line = next(script)
        if line == "hello":
            sys.settrace(tracer)
        return line

    script: Iterator[str] = iter(["hello", "again", "/exit", "never"])
    out = Console(file=io.StringIO(), width=200, highlight=False)
    talk = TerminalChat(LocalModel(lm, SHORT), read_line=read, out=out)
    try:
        talk.run()
    finally:
        sys.settrace(None)
    assert list(script) == ["never"], where
    assert isinstance(out.file, io.StringIO)
    return talk, out.file.getvalue()


@pytest.fixture(params=["torch", "fastest"])
def fresh(
    lm: LanguageModel, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> LanguageModel:
    if request.param == "torch":
        monkeypatch.setattr(language_model, "make_runner", lambda model, *_: TorchRunner(model))
    return LanguageModel(lm.model, lm.tokenizer)


@pytest.mark.skipif(sys.gettrace() is not None, reason="a debugger or coverage traces already")
@pytest.mark.parametrize(
    "every", [29, pytest.param(1, marks=pytest.mark.slow)], ids=["some lines", "all lines"]
)
def test_ctrl_c_at_any_line_of_an_answer(fresh: LanguageModel, every: int) -> None:
    seen = Tracer()
    chat(fresh, seen)
    assert len(seen.lines) > 150
    fresh.engine()
    for line in [*seen.lines][::every]:
        where = f"{line[0].removeprefix(PACKAGE)}:{line[1]}"
        talk, out = chat(fresh, Tracer(line), where)
        messages = talk.conversation.messages
        roles = [message["role"] for message in messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2), where
        assert messages[-2]["content"] == "again", where
        assert messages[-1]["content"] == fresh.chat(messages[:-1], **SHORT), where
        assert out.count("(stopped)") <= 1, where
        assert len(messages) == 4 or "(stopped)" in out, where
        stats = fresh.engine().stats()
        assert (stats.running, stats.waiting, stats.pool.allocated) == (0, 0, 0), where


def test_ctrl_c_raises_in_chosen_places_only() -> None:
    with chosen_interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
        assert interrupts.requested
        with pytest.raises(KeyboardInterrupt), interrupts:
            pytest.fail("it came before")
        with interrupts:
            pass  # it was raised, and is over
        with pytest.raises(KeyboardInterrupt), interrupts:
            try:
                signal.raise_signal(signal.SIGINT)
            finally:
                signal.raise_signal(signal.SIGINT)  # does not interrupt what tidies up
        interrupts.forget()
        assert not interrupts.requested
        with interrupts:
            pass
    with pytest.raises(KeyboardInterrupt):  # as before
        signal.default_int_handler(signal.SIGINT, None)


def test_two_keys_in_a_row_stop_one_answer(lm: LanguageModel) -> None:
    """The second comes while the first is handled; at the prompt it would leave."""
    interrupts = Interrupts()
    with pytest.raises(KeyboardInterrupt), interrupts:
        interrupts.arrived()
    interrupts.arrived()
    interrupts.forget()
    with interrupts:
        pass
