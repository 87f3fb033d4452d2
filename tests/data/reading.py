"""Reads a corpus for tests: its texts, and what was left out."""

from gemmule.data.read_log import ReadLog
from gemmule.data.sources import find_source


def read_log(path, **options):
    """The texts, and the log of the search and of the reading."""
    source = find_source(path, **options)
    log = ReadLog()
    log.update(source.log)
    return [document.text for document in source.documents(log)], log


def read(path, **options):
    """The texts, and counts of what was left out."""
    texts, log = read_log(path, **options)
    return texts, dict(log.left_out)
