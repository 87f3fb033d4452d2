"""Searches folders and patterns for the files of a corpus.

Folders behind symbolic links are read too, each folder once: first everything that is reached
without links, then the links in the order of their names. So no cycle of links can be endless,
and files keep their names in the corpus when a link to their folder is added.
"""

import fnmatch
import glob
import heapq
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from gemmule.data import file_kinds
from gemmule.data.file_kinds import CorpusFile
from gemmule.data.read_log import ReadLog

BROKEN_LINK = "broken links"
LINK_UP = "links to a folder that they are in"
UNREADABLE_FOLDER = "unreadable folders"


def in_folder(root: Path, log: ReadLog) -> list[CorpusFile]:
    """The readable files below a folder, without hidden ones; others are counted in the log."""
    return _known(((key, str(root / key)) for key in _Walk(root, log).files()), log)


def matching(pattern: str, log: ReadLog) -> list[CorpusFile]:
    """The readable files that a glob pattern matches; others are counted in the log."""
    above, stars, below = f"/{pattern}/".partition("/**/")
    if not stars:
        # iglob orders by folder as the system lists it; the caller sorts.
        return _known(((match, match) for match in glob.iglob(pattern)), log)  # noqa: PTH207
    above = above[1:] or ("/" if pattern.startswith("/") else "")
    parts = ["**", *below.rstrip("/").split("/")] if below else ["**"]
    hidden = any(part.startswith(".") for part in parts)
    folders = sorted(filter(os.path.isdir, glob.iglob(above))) if above else [""]  # noqa: PTH207
    matches = []
    visited: set[tuple[int, int]] = set()
    for folder in folders:
        for key in _Walk(Path(folder), log, hidden, visited).files():
            if _matches(key.split("/"), parts):
                matches.append(os.path.join(folder, key))  # noqa: PTH118 (keeps "./")
    return _known(((match, match) for match in matches), log)


def _matches(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a path match those of a pattern; `**` is any number of folders."""
    if not pattern:
        return not names
    part, rest = pattern[0], pattern[1:]
    if part == "**":
        if not rest:
            return all(not name.startswith(".") for name in names)
        return _matches(names, rest) or (
            bool(names) and not names[0].startswith(".") and _matches(names[1:], pattern)
        )
    if not names or (names[0].startswith(".") and not part.startswith(".")):
        return False
    return fnmatch.fnmatchcase(names[0], part) and _matches(names[1:], rest)


def _known(matches: Iterator[tuple[str, str]], log: ReadLog) -> list[CorpusFile]:
    files = []
    for key, match in matches:
        path = Path(match)
        try:
            mode = path.stat().st_mode
        except OSError as e:
            reason = BROKEN_LINK if path.is_symlink() else f"unreadable ({e.strerror})"
            log.leave_out(reason, key)
            continue
        if stat.S_ISDIR(mode):
            log.leave_out("folders that the pattern matches", key)
        elif not stat.S_ISREG(mode):
            log.leave_out("pipes, sockets and devices", key)
        else:
            # As ever, "./a" and "a//b" in a pattern give the names "a" and "a/b".
            file = file_kinds.by_name(Path(key).as_posix(), path)
            if isinstance(file, CorpusFile):
                files.append(file)
            else:
                log.leave_out(file, key)
    return files


class _Walk:
    """One search below a folder.

    Args:
        root: the folder.
        log: receives folders and links that cannot be followed.
        hidden: whether to list names that begin with a dot.
        visited: device and inode of the folders that were listed already.
    """

    def __init__(
        self,
        root: Path,
        log: ReadLog,
        hidden: bool = False,
        visited: set[tuple[int, int]] | None = None,
    ) -> None:
        self._root, self._log, self._hidden = str(root), log, hidden
        self._visited = set() if visited is None else visited
        self._links: list[str] = []  # a heap of keys

    def files(self) -> Iterator[str]:
        """The path of everything but folders, relative to the root, with / between names."""
        yield from self._below("")
        while self._links:
            key = heapq.heappop(self._links)
            target = os.path.realpath(self._path(key))
            holder = os.path.realpath(os.path.dirname(self._path(key)))  # noqa: PTH120
            if os.path.commonpath([target, holder]) == target:
                if not self._is_visited(target):
                    self._log.leave_out(LINK_UP, key)
                continue
            yield from self._below(key)

    def _path(self, key: str) -> str:
        return os.path.join(self._root, key) if key else self._root  # noqa: PTH118

    def _is_visited(self, path: str) -> bool:
        status = os.stat(path)  # noqa: PTH116
        return (status.st_dev, status.st_ino) in self._visited

    def _below(self, first: str) -> Iterator[str]:
        waiting = [first]
        while waiting:
            key = waiting.pop()
            try:
                status = os.stat(self._path(key))  # noqa: PTH116
                if (status.st_dev, status.st_ino) in self._visited:
                    continue
                self._visited.add((status.st_dev, status.st_ino))
                with os.scandir(self._path(key)) as entries:
                    listed = sorted(entries, key=lambda entry: entry.name)
            except OSError as e:
                name = key or self._root
                self._log.leave_out(f"{UNREADABLE_FOLDER} ({(e.strerror or '').lower()})", name)
                continue
            for entry in listed:
                if entry.name.startswith(".") and not self._hidden:
                    continue
                inner = f"{key}/{entry.name}" if key else entry.name
                if not _is_folder(entry):
                    yield inner
                elif entry.is_symlink():
                    heapq.heappush(self._links, inner)
                else:
                    waiting.append(inner)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
