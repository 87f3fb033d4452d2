"""Splits generated text into text and tool calls while it is generated."""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from gemmule.serve.grammar.tool_format import (
    BETWEEN_CALLS,
    CALL_BEGIN,
    CALL_END,
    HEADER,
    LONGEST_HEADER,
)

_AFTER_ARGUMENTS = "}" + CALL_END


@dataclass(frozen=True, slots=True)
class CallPart:
    """A part of a tool call.

    Attributes:
        index: number of the call in its answer.
        id: the call's id, with its first part only.
        name: the tool's name, with the first part only.
        arguments: further text of the arguments.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass
class ToolCallParser:
    """Reads one answer, in pieces of any size; it holds back what may become a marker.

    All text that is not a call's frame comes out again, in order: as text, or as arguments.

    Attributes:
        anywhere: whether a call can follow text; otherwise only the very beginning can be a call.
        calls: number of calls that have begun.
        complete: whether the last of them has ended.
    """

    anywhere: bool = True
    calls: int = 0
    complete: bool = False
    _held: str = ""
    _state: Callable[[], Iterator[str | CallPart]] = field(init=False)

    def __post_init__(self) -> None:
        self._state = self._text
        self._depth, self._in_string, self._escaped = 0, False, False

    def feed(self, text: str) -> list[str | CallPart]:
        """Takes further text; returns what is known to be text or part of a call."""
        self._held += text
        parts: list[str | CallPart] = []
        while True:
            state, size = self._state, len(self._held)
            parts += state()
            if state == self._state and size == len(self._held):
                return parts

    def finish(self) -> list[str | CallPart]:
        """Returns what was held back: the beginning of a marker that did not become one.

        So is the frame of a first call that was cut before its arguments; other frames are left
        out.
        """
        held, self._held = self._held, ""
        if self._state == self._header and not self.calls:
            return [CALL_BEGIN + held]
        return [held] if held and self._state == self._text else []

    def _text(self) -> Iterator[str | CallPart]:
        begin = self._held.find(CALL_BEGIN)
        if begin == 0 or (begin > 0 and self.anywhere):
            text, self._held = self._held[:begin], self._held[begin + len(CALL_BEGIN) :]
            self._state = self._header
        elif self.anywhere or CALL_BEGIN.startswith(self._held):
            text, self._held = _split_off(self._held, CALL_BEGIN)
        else:
            text, self._held, self._state = self._held, "", self._only_text
        if text:
            yield text

    def _only_text(self) -> Iterator[str | CallPart]:
        text, self._held = self._held, ""
        if text:
            yield text

    def _header(self) -> Iterator[str | CallPart]:
        match = HEADER.match(self._held)
        if match:
            self._held = self._held[match.end() :]
            call = CallPart(self.calls, f"call_{secrets.token_hex(12)}", match[1])
            self.calls, self.complete = self.calls + 1, False
            self._depth, self._in_string, self._escaped = 0, False, False
            self._state = self._arguments
            yield call
        elif len(self._held) >= LONGEST_HEADER:  # no grammar has led here
            text, self._held, self._state = CALL_BEGIN + self._held, "", self._text
            yield text

    def _arguments(self) -> Iterator[str | CallPart]:
        size = self._scan(self._held)
        arguments, self._held = self._held[:size], self._held[size:]
        if arguments:
            yield CallPart(self.calls - 1, arguments=arguments)

    def _scan(self, text: str) -> int:
        """The number of characters of `text` that belong to the arguments, an object."""
        for n, c in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif c == "\\":
                    self._escaped = True
                elif c == '"':
                    self._in_string = False
            elif c == '"':
                self._in_string = True
            elif c in "{[":
                self._depth += 1
            elif c in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self._state = self._end
                    return n + 1
        return len(text)

    def _end(self) -> Iterator[str | CallPart]:
        if self._held.startswith(_AFTER_ARGUMENTS):
            self._held = self._held.removeprefix(_AFTER_ARGUMENTS)
            self.complete, self._state = True, self._after_call
        yield from ()

    def _after_call(self) -> Iterator[str | CallPart]:
        next_call = BETWEEN_CALLS + CALL_BEGIN
        if self._held.startswith(next_call):
            self._held = self._held.removeprefix(next_call)
            self._state = self._header
        yield from ()


def _split_off(text: str, marker: str) -> tuple[str, str]:
    """Text without an end that may be the beginning of `marker`, and that end."""
    for size in range(min(len(marker) - 1, len(text)), 0, -1):
        if marker.startswith(text[-size:]):
            return text[:-size], text[-size:]
    return text, ""
