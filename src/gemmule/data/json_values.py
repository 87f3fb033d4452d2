"""Streams the values of a JSON file: lines, arrays, or values one after another.

An array at the top is streamed element by element, so neither its size nor that of the file
matters. One value may have `MAX_RECORD_BYTES`; larger ones are skipped without being held.
"""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from gemmule.data.unusable import MAX_RECORD_BYTES, MalformedError, Unusable

_SPACE = re.compile(r"[ \t\n\r]*")
_STRUCTURE = re.compile(r'\\.|["\[\]{}]', re.DOTALL)
_LONGEST_LITERAL = 16  # an error this near to the end of a buffer may be due to its end
_LONGEST_EXPONENT = 2  # characters after a number that may turn out to continue it: "e+"
_decoder = json.JSONDecoder()


def lines(blocks: Iterable[bytes]) -> Iterator[bytes | Unusable]:
    """Splits blocks into lines; one that is too large is skipped."""
    parts: list[bytes] = []
    size = 0
    for block in blocks:
        first, *rest = block.split(b"\n")
        parts.append(first)
        size += len(first)
        if size > MAX_RECORD_BYTES:
            parts = []
        if not rest:
            continue
        yield b"".join(parts) if size <= MAX_RECORD_BYTES else Unusable.TOO_LARGE
        last = rest.pop()
        yield from rest
        parts, size = [last], len(last)
    if size:
        yield b"".join(parts) if size <= MAX_RECORD_BYTES else Unusable.TOO_LARGE


def parsed_line(line: bytes | str) -> Any:
    """The value of a line, or `Unusable.MALFORMED`."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return Unusable.MALFORMED


def begins_whole(text: str) -> bool:
    """Whether a text begins with a whole JSON object or array, which may span lines."""
    try:
        value, _ = _decoder.raw_decode(text, _skip_space(text, 0))
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict | list)


def values(blocks: Iterable[str]) -> Iterator[Any]:
    """Streams values that follow one another, and the elements of arrays among them.

    Args:
        blocks: the text, in blocks of any size.

    Yields:
        Values, or `Unusable.TOO_LARGE`.

    Raises:
        MalformedError: where the text is not JSON.
    """
    stream = _Stream(blocks)
    while stream.next_character():
        if not stream.take("["):
            yield stream.value()
        elif not stream.take("]"):
            yield stream.value()
            while stream.take(","):
                yield stream.value()
            if not stream.take("]"):
                raise stream.error("an array goes on without ',' or ']'")


class _Stream:
    """A text that is read as needed."""

    def __init__(self, blocks: Iterable[str]) -> None:
        self._blocks = iter(blocks)
        self._text = ""
        self._at = 0
        self._before = 0  # characters of text that is no longer held
        self._ended = False

    def next_character(self) -> str:
        """The next character that is not a space; empty at the end."""
        while True:
            self._at = _skip_space(self._text, self._at)
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def take(self, character: str) -> bool:
        """Whether this character comes next; if so, it is passed."""
        if self.next_character() != character:
            return False
        self._at += 1
        return True

    def value(self) -> Any:
        """The next value, or `Unusable.TOO_LARGE`."""
        if not self.next_character():
            raise self.error("it ends too early")
        while True:
            try:
                value, end = _decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as e:
                if self._is_final(e):
                    raise self.error(e.msg) from None
            except (ValueError, RecursionError) as e:  # digits or levels without end
                raise self.error(str(e) or "nested too deeply") from None
            else:
                number_ends = len(self._text) - end > _LONGEST_EXPONENT
                if number_ends or self._ended or isinstance(value, dict | list | str):
                    self._at = end
                    return value
            if len(self._text) - self._at > MAX_RECORD_BYTES:
                self._skip_value()
                return Unusable.TOO_LARGE
            self._more(len(self._text) - self._at)  # doubling: each character is read twice or so

    def error(self, what: str) -> MalformedError:
        place = self._before + self._at
        return MalformedError(f"{what}, near character {place:,}")

    def _is_final(self, e: json.JSONDecodeError) -> bool:
        """Whether more text cannot mend an error."""
        if self._ended:
            return True
        open_string = e.msg.startswith("Unterminated string")
        return not open_string and e.pos < len(self._text) - _LONGEST_LITERAL

    def _more(self, count: int = 1) -> bool:
        """Reads at least `count` characters more, unless the text ends."""
        parts = [self._text[self._at :]]
        self._before += self._at
        self._at = 0
        while count > 0:
            block = next(self._blocks, None)
            if block is None:
                self._ended = True
                break
            parts.append(block)
            count -= len(block)
        self._text = "".join(parts)
        return len(parts) > 1

    def _skip_value(self) -> None:
        """Passes a value by its brackets and quotes, without holding it."""
        depth, in_string = 0, False
        while True:
            for match in _STRUCTURE.finditer(self._text, self._at):
                mark, self._at = match[0], match.end()
                if mark == '"':
                    in_string = not in_string
                elif in_string or mark[0] == "\\":
                    continue
                else:
                    depth += 1 if mark in "[{" else -1
                if depth == 0 and not in_string:
                    return
            # A backslash that is left over at the end belongs to the next character.
            left_over = self._at < len(self._text) and self._text.endswith("\\")
            self._at = len(self._text) - left_over
            if not self._more():
                raise self.error("it ends too early")


def _skip_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at
