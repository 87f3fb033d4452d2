"""What a chat template may spend while it runs: see template_sandbox.py.

Units are counted before the work is done, in proportion to what it makes. The budget belongs to the
rendering in progress, whichever thread it runs in.
"""

import re
import string
import time
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any

import jinja2

UNITS = 1_000_000  # a step of a loop, a call or an element of a list costs one
CHARS_PER_UNIT = 32
SECONDS = 3.0  # of the thread's processor time
MAX_SIZE, MAX_DEPTH = 200_000, 40  # of a value: in units, and lists within lists
MAX_BITS = 4096  # of a number
MAX_WIDTH = 999  # of a padded number or text

_TOO_WIDE = re.compile(r"\d{4,}|\*")
_PERCENT = re.compile(r"%[^a-zA-Z%]*")


class TooLargeError(jinja2.TemplateRuntimeError):
    """A template asked for more work or memory than a chat can need."""


class Rendering:
    """The budget of one rendering, and what it has produced.

    Attributes:
        parts: text so far, as the template yields it.
        generated: (start, end) of each generation block, in characters of the joined parts.
    """

    def __init__(self, extra: int) -> None:
        """Starts the clock; `extra` characters of messages raise the limit."""
        self.parts: list[str] = []
        self.generated: list[tuple[int, int]] = []
        self._left = UNITS + extra
        self._until = time.thread_time() + SECONDS

    def spend(self, units: int = 1, chars: int = 0) -> None:
        """Takes from the budget, before the work is done.

        Raises:
            TooLargeError: when it is used up.
        """
        self._left -= units + chars // CHARS_PER_UNIT
        if self._left < 0 or time.thread_time() > self._until:
            raise TooLargeError("it asks for more work or text than any chat needs")


current: ContextVar[Rendering] = ContextVar("rendering")


def spend(units: int = 1, chars: int = 0) -> None:
    """Takes from the budget of the rendering in progress; raises TooLargeError at its end."""
    current.get().spend(units, chars)


def measured(value: Any) -> Any:
    """Returns a value that was made, after spending its size.

    Raises:
        TooLargeError: for a value that is too large or too deep to be compared or printed.
    """
    if isinstance(value, str):
        spend(0, len(value))
    elif isinstance(value, int):
        if value.bit_length() > MAX_BITS:
            raise TooLargeError("it makes a number of thousands of digits")
    elif isinstance(value, list | tuple | dict):
        spend(size_of(value))
    elif isinstance(value, Iterator):
        return counted(value)
    return value


def weighed(value: Any) -> Any:
    """Returns a value that is about to be compared, or searched in or for."""
    if isinstance(value, str | list | tuple | dict):
        spend(1, len(value))
    return value


def size_of(value: Any) -> int:
    """The units that a value of lists, dictionaries and texts costs to print, copy or compare."""
    size, stack = 0, [(value, 0)]
    while stack:
        item, depth = stack.pop()
        size += 1 + (len(item) // CHARS_PER_UNIT if isinstance(item, str) else 0)
        if depth > MAX_DEPTH or size > MAX_SIZE:
            raise TooLargeError("it builds a list that is too large or too deep")
        if isinstance(item, list | tuple | dict):
            if len(item) > MAX_SIZE:
                raise TooLargeError("it builds a list that is too large")
            inner = (x for kv in item.items() for x in kv) if isinstance(item, dict) else item
            stack += [(x, depth + 1) for x in inner]
    return size


def counted(items: Iterable[Any]) -> Iterator[Any]:
    """The items, each of which costs a unit."""
    for item in items:
        spend()
        yield item


def text_of(value: Any) -> str:
    """The text that jinja2 shows for a value; every value was measured when it was made."""
    text = value if isinstance(value, str) else str(value)
    spend(1, len(text))
    return text


def check_width(width: Any) -> None:
    """Raises TooLargeError for padding to an absurd width."""
    if isinstance(width, int) and abs(width) > MAX_WIDTH:
        raise TooLargeError(f"it pads to {width} characters")


def check_percent(form: str, values: Any) -> None:
    """Spends what `form % values` is about to make; raises TooLargeError for absurd padding."""
    if any(_TOO_WIDE.search(spec) for spec in _PERCENT.findall(form)):
        raise TooLargeError("it pads a number or a text too far")
    if isinstance(values, dict):  # each may be shown many times
        times, parts = form.count("%"), list(values.values())
    else:
        times, parts = 1, list(values) if isinstance(values, tuple) else [values]
    spend(1, len(form) + times * sum(len(text_of(part)) for part in parts))


def check_format(form: str, arguments: Iterable[Any]) -> None:
    """Checks what str.format is about to do with sized arguments."""
    fields = 0
    for _, name, spec, _ in string.Formatter().parse(form):
        fields += name is not None
        if spec and (_TOO_WIDE.search(spec) or "{" in spec):
            raise TooLargeError("it pads a number or a text too far")
    spend(1, len(form) + fields * sum(len(text_of(argument)) for argument in arguments))


def spend_replacing(text: str, old: str, new: str, count: int = -1) -> None:
    """Spends the growth of text.replace(old, new)."""
    times = text.count(old) if count is None or count < 0 else min(count, text.count(old))
    spend(1, len(text) + times * len(new))
