"""The sources of passages: documents grouped by file or by folder."""

import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

UNKNOWN = "not recorded"
TOP = "(top level)"
_MAX_FILES = 24
_NUMBER = re.compile(r"#\d+$")
_MAGIC = re.compile(r"[*?\[]")


def sources(names: Iterable[str | None], location: str) -> list[str]:
    """The source under which each document is counted.

    It is the document's file if the corpus has at most 24 files (records of a .jsonl, topics of a
    manual), otherwise the first folder of its path, and `UNKNOWN` without a name.

    Args:
        names: names of the documents, as the data folder keeps them.
        location: path or pattern of the corpus; its folder is removed from the names.
    """
    root = _root(location)
    files = [None if name is None else _file(name, root) for name in names]
    if len({file for file in files if file is not None}) <= _MAX_FILES:
        return [file or UNKNOWN for file in files]
    return [UNKNOWN if file is None else _folder(file) for file in files]


def shown_names(names: Iterable[str | None], location: str) -> Iterator[str | None]:
    """Names of documents, without the folder that the corpus's pattern begins with."""
    root = _root(location)
    for name in names:
        yield None if name is None else _without(name, root)


def _root(location: str) -> str:
    """The folders of a pattern before its first wildcard."""
    match = _MAGIC.search(location)
    return location[: location.rfind("/", 0, match.start()) + 1] if match else ""


def _without(name: str, root: str) -> str:
    return name.removeprefix(root) if root else name


def _file(name: str, root: str) -> str:
    name = _NUMBER.sub("", _without(name, root))
    return name.partition(":")[0] if name.startswith("pydoc_data/") else name


def _folder(file: str) -> str:
    parts = PurePosixPath(file).parts
    return f"{parts[0]}/" if len(parts) > 1 else TOP
