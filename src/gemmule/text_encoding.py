"""Which encoding a text file is in, where that can be told without guessing.

UTF-8; UTF-16 and UTF-32 with a byte order mark; UTF-16 without one if NUL bytes are every second
byte; and Windows-1252 (the superset of Latin-1 that programs write under both names) if the whole
file reads as a Western European language would be written in it. The last rule is strict: files
in other 8-bit encodings (Cyrillic, Central European, Turkish, Chinese, …) must not pass it, so
that they are reported rather than read as nonsense.
"""

import codecs
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator

UTF8, WINDOWS = "utf-8", "cp1252"
SHOWN = {
    **{"utf-16-le": "UTF-16", "utf-16-be": "UTF-16", "utf-32-le": "UTF-32", "utf-32-be": "UTF-32"},
    **{UTF8: "UTF-8", WINDOWS: "Windows-1252"},
}
BINARY, NOT_UTF8 = "binary (NUL bytes)", "not UTF-8"

# UTF-32's little-endian mark begins with UTF-16's, so it comes first.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: UTF8,
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_HEAD_BYTES = 64 * 1024
_FEWEST_NULS = 0.05  # of the characters of UTF-16 without a mark: line ends, digits, Latin letters

# Bytes of Windows-1252, as classes of a regular expression. Letters that only occur in other
# languages' encodings as often as in Western European text are left out: eth, thorn and
# y-acute are Turkish, Baltic or Czech letters there, s- and z-caron are Central European.
_ACCENTED = rb"\xc0-\xcf\xd1-\xd6\xd8-\xdc\xdf-\xef\xf1-\xf6\xf8-\xfc\xff\x8c\x9c"
_LETTER = rb"A-Za-z" + _ACCENTED
_IMPLAUSIBLE = re.compile(
    # Undefined bytes, control characters, and letters that were left out.
    rb"[\x00-\x08\x0b\x0e-\x1f\x7f\x81\x83\x88\x8a\x8d-\x90\x98\x9a\x9d-\x9f\xa4\xd0\xdd\xde"
    rb"\xf0\xfd\xfe]"
    # Words of accented letters, and long runs of bytes that are not ASCII.
    rb"|[" + _ACCENTED + rb"]{4}|[\x80-\xff]{6}"
    rb"|(?<![" + _LETTER + rb"])[" + _ACCENTED + rb"]{2,3}(?![" + _LETTER + rb"])"
    # Signs within words, except apostrophes, dashes, dots and spaces.
    rb"|[" + _LETTER + rb"][\x80-\x84\x86-\x89\x8b\x93-\x95\x99\x9b\xa1-\xac\xae-\xb3\xb5\xb6"
    rb"\xb8-\xbf\xd7\xf7][" + _LETTER + rb"]"
    # Superscripts and ordinals before letters.
    rb"|[\xaa\xb2\xb3\xb9\xba][" + _LETTER + rb"]"
)
_EVIDENCE = re.compile(
    rb"[A-Za-z][" + _ACCENTED + rb"]|[" + _ACCENTED + rb"][A-Za-z]"  # a word with an accent
    rb"|[A-Za-z]\x92[A-Za-z]|(?<![\x80-\xff])\x93[A-Za-z]|[A-Za-z.,!?]\x94(?![\x80-\xff])"
)
_MOST_ACCENTED = 0.3  # of all letters
_LONGEST_WORD = 1024 * 1024  # bytes


class NotTextError(ValueError):
    """Bytes whose encoding cannot be told; the message is the reason, in two or three words."""


def decode(data: bytes) -> tuple[str, str]:
    """Decodes a whole text; a byte order mark is not part of it.

    Returns:
        The text, and the codec: one of `SHOWN`.

    Raises:
        NotTextError: when the encoding cannot be told.
    """
    if b"\0" not in data:  # the usual case: nothing to choose between
        try:
            return data.removeprefix(codecs.BOM_UTF8).decode(), UTF8
        except UnicodeDecodeError:
            pass
    codec = encoding_of(lambda: [data])
    return "".join(decoded([data], codec)), codec


def encoding_of(read: Callable[[], Iterable[bytes]]) -> str:
    """The codec of a text, read once or twice.

    Args:
        read: returns the text's bytes from its start, in blocks of any size.

    Returns:
        One of `SHOWN`.

    Raises:
        NotTextError: when the encoding cannot be told.
    """
    codec = marked(_head(read()))
    if codec and codec != UTF8:
        if not _decodes(read(), codec):
            raise NotTextError(f"damaged {SHOWN[codec]}")
        return codec
    try:
        if _is_utf8(read()):
            return UTF8
    except _NulError:
        codec = _unmarked_utf16(_head(read()))
        if codec and _decodes(read(), codec):
            return codec
        raise NotTextError(BINARY) from None
    if _is_windows(read()):
        return WINDOWS
    raise NotTextError(NOT_UTF8)


def marked(head: bytes) -> str | None:
    """The codec that a byte order mark at the start of a file names."""
    return next((codec for mark, codec in _MARKS.items() if head.startswith(mark)), None)


def decoded(blocks: Iterable[bytes], codec: str, errors: str = "strict") -> Iterator[str]:
    """Decodes blocks of bytes, without the byte order mark.

    Raises:
        UnicodeDecodeError: when `errors` is "strict" and they are not of this encoding.
    """
    decoder = codecs.getincrementaldecoder(codec)(errors)
    first = True
    for block in blocks:
        text = decoder.decode(block)
        if first and text:
            first, text = False, text.removeprefix("\ufeff")
        if text:
            yield text
    if text := decoder.decode(b"", final=True):
        yield text


def _head(blocks: Iterable[bytes]) -> bytes:
    head = b""
    for block in blocks:
        head += block[:_HEAD_BYTES]
        if len(head) >= _HEAD_BYTES:
            break
    return head[:_HEAD_BYTES]


class _NulError(ValueError):
    """There is a NUL byte before the first that is not UTF-8."""


def _is_utf8(blocks: Iterable[bytes]) -> bool:
    decoder = codecs.getincrementaldecoder(UTF8)()
    try:
        for block in blocks:
            if b"\0" in block:
                raise _NulError
            decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _unmarked_utf16(head: bytes) -> str | None:
    """UTF-16's codec if NUL bytes lie only where it has the upper halves of characters."""
    units = len(head) // 2
    even, odd = head[0 : 2 * units : 2].count(0), head[1 : 2 * units : 2].count(0)
    if min(even, odd) or max(even, odd) < _FEWEST_NULS * units:
        return None
    return "utf-16-le" if odd else "utf-16-be"


def _decodes(blocks: Iterable[bytes], codec: str) -> bool:
    """Whether all bytes are characters of this encoding that text can hold."""
    try:
        return all(
            _is_text(character) for text in decoded(blocks, codec) for character in set(text)
        )
    except UnicodeDecodeError:
        return False


def _is_text(character: str) -> bool:
    return character in "\t\n\v\f\r\x1a\x85" or unicodedata.category(character) not in {"Cc", "Cn"}


def _is_windows(blocks: Iterable[bytes]) -> bool:
    letters = accented = tilde_o = tilde_a = 0
    evidence = False
    for text in _at_spaces(blocks):
        if _IMPLAUSIBLE.search(text):
            return False
        evidence = evidence or _EVIDENCE.search(text) is not None
        accented += len(re.findall(rb"[" + _ACCENTED + rb"]", text))
        letters += len(re.findall(rb"[" + _LETTER + rb"]", text))
        tilde_o += text.count(b"\xf5") + text.count(b"\xd5")
        tilde_a += text.count(b"\xe3") + text.count(b"\xc3")
    # Without a-tilde, o-tilde is not Portuguese but the double acute of Hungarian.
    return evidence and accented <= _MOST_ACCENTED * letters and (not tilde_o or tilde_a > 0)


def _at_spaces(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in blocks that end after a space or line, so that no word is cut."""
    rest = b""
    for block in blocks:
        stop = max(block.rfind(b" "), block.rfind(b"\n")) + 1
        if not stop and len(rest) > _LONGEST_WORD:
            stop = len(block)
        if stop:
            yield rest + block[:stop]
            rest = b""
        rest += block[stop:]
    yield rest
