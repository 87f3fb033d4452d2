"""Cuts long texts at blank lines, so that a few books become many documents."""

from collections.abc import Iterable, Iterator

SECTION_CHARS = 64 * 1024


def cut(blocks: Iterable[str], size: int = SECTION_CHARS) -> Iterator[str]:
    """Cuts a text, given in blocks of any length, into sections of size/2 to 5/4 size characters.

    It cuts after the last blank line that fits, or else after a line end, after a space, or
    anywhere. Joined, the sections give the text; only a whole text can be shorter than size/4.
    """
    text = ""
    for block in blocks:
        text += block
        start = 0
        # A quarter is held back so that the last section is never tiny.
        while len(text) - start > size + size // 4:
            stop = _cut_before(text, start + size // 2, start + size)
            yield text[start:stop]
            start = stop
        text = text[start:]
    if text:
        yield text


def _cut_before(text: str, low: int, high: int) -> int:
    for mark in ("\n\n", "\n\r\n", "\n", " "):
        at = text.rfind(mark, low, high)
        if at >= 0:
            return at + len(mark)
    return high
