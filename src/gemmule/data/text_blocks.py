"""Files as decoded text: whole documents, and streams for the readers of records."""

import codecs
import itertools
import os
from collections.abc import Generator, Iterator

from gemmule import text_encoding
from gemmule.data.compression import read_blocks
from gemmule.data.file_kinds import CorpusFile
from gemmule.data.read_log import ReadLog
from gemmule.data.sections import cut
from gemmule.text_encoding import UTF8, NotTextError

# Larger text files are cut into sections while they are read, so that memory stays bounded.
MAX_DOCUMENT_BYTES = 16 * 1024 * 1024


def blocks(file: CorpusFile) -> Generator[bytes]:
    """Streams a file's bytes, decompressed."""
    return read_blocks(file.path, file.compression)


def documents(file: CorpusFile, log: ReadLog, in_sections: bool = False) -> Iterator[str]:
    """Yields a text file whole or in sections; yields nothing if it is not text.

    Raises:
        OSError: when the file cannot be read.
        DataError: when its compressed data are damaged.
    """
    head = _head(file)
    try:
        if head is not None:
            text, codec = text_encoding.decode(head)
            texts = iter([text])
        else:
            codec = text_encoding.encoding_of(lambda: blocks(file))
            texts = text_encoding.decoded(blocks(file), codec)
            in_sections = True
    except NotTextError as e:
        log.leave_out(str(e), file.key)
        return
    if codec != UTF8:
        log.decode(text_encoding.SHOWN[codec], file.key)
    yield from cut(texts) if in_sections else texts


def _head(file: CorpusFile) -> bytes | None:
    """The whole content, or None if it is larger than a document may be."""
    if file.compression is None:
        with file.path.open("rb") as f:
            large = os.fstat(f.fileno()).st_size > MAX_DOCUMENT_BYTES
            return None if large else f.read()
    parts = []
    size = 0
    for block in blocks(file):
        parts.append(block)
        size += len(block)
        if size > MAX_DOCUMENT_BYTES:
            return None
    return b"".join(parts)


def decoded_stream(file: CorpusFile, log: ReadLog) -> Iterator[str]:
    """Decodes a file of records, which may be damaged in places.

    The encoding is UTF-8 unless the file begins otherwise. From the first byte that is not UTF-8
    it is Windows-1252 if the whole file reads as such; else these bytes become lone surrogates,
    so that the records that hold them can be told.

    Raises:
        NotTextError: when the file begins as UTF-16 or UTF-32 and does not go on so.
    """
    stream: Iterator[bytes] = blocks(file)
    head = next(stream, b"")
    codec = text_encoding.marked(head) or UTF8
    if codec == UTF8 and b"\0" in head:
        codec = _codec(file)
    stream = itertools.chain([head], stream)
    if codec != UTF8:
        log.decode(text_encoding.SHOWN[codec], file.key)
        try:
            yield from text_encoding.decoded(stream, codec)
        except UnicodeDecodeError:
            raise NotTextError(f"damaged {text_encoding.SHOWN[codec]}") from None
        return
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    for block in itertools.chain(stream, [b""]):
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError:
            rest = decoder.getstate()[0] + block
            yield from _other(file, itertools.chain([rest], stream), log)
            return
        if text:
            yield text


def fallback(file: CorpusFile, log: ReadLog) -> str:
    """The codec of a file that is not UTF-8 throughout: Windows-1252, or UTF-8 with damage."""
    codec = _codec(file)
    if codec != UTF8:
        log.decode(text_encoding.SHOWN[codec], file.key)
    return codec


def _codec(file: CorpusFile) -> str:
    try:
        return text_encoding.encoding_of(lambda: blocks(file))
    except NotTextError:
        return UTF8


def _other(file: CorpusFile, stream: Iterator[bytes], log: ReadLog) -> Iterator[str]:
    return text_encoding.decoded(stream, fallback(file, log), "surrogateescape")
