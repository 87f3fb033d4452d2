"""Files: written so that nothing is lost (temp file, fsync, rename), read as people save them."""

import errno
import hashlib
import json
import os
import re
import shutil
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gemmule.errors import ConfigError, GemmuleError, OutputError, decoded

# What an error says about a file for which is_lfs_pointer holds.
LFS_POINTER = "a Git LFS pointer, not the file itself: run git lfs pull where it was cloned"

_DEEPEST = 500  # folders of a path; those that are missing are made one within the other
_SURROGATE = re.compile("[\ud800-\udfff]")
# How file systems say that they have no fsync, of folders for most of them.
_NO_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_LEFTOVER = ".*.[0-9]*.tmp"


def expand(path: str | Path) -> Path:
    """`path` with a leading ~ or ~user replaced by that home folder, as a shell does unquoted.

    What the locale's encoding of file names lacks becomes its bytes in UTF-8.

    Raises:
        ConfigError: when there is no such user, or nothing says where the home folder is.
    """
    try:
        os.fsencode(path)
    except UnicodeEncodeError:  # from a file of settings, say; the locale's encoding lacks it
        path = os.fsdecode(decoded(str(path)).encode("utf-8", "surrogateescape"))
    path = Path(path)
    try:
        return path.expanduser()
    except RuntimeError:
        raise ConfigError(
            f"{path}: no home folder is known for {path.parts[0]}: write the path out, or "
            f"./{path} for a folder of that name"
        ) from None


def check_path(path: Path) -> Path:
    """`path`, if there could be a file at it.

    Raises:
        ConfigError: when it is too long or too deep, holds a NUL byte, or leads in a circle.
    """
    try:
        if len(path.parts) > _DEEPEST:
            raise ConfigError(f"{str(path)[:40]}… is more than {_DEEPEST} folders deep")
        path.stat()
    except ValueError:
        raise ConfigError(f"the path {str(path)!r} holds a NUL byte") from None
    except OSError as e:
        if e.errno == errno.ENAMETOOLONG:
            raise ConfigError(
                f"{str(path)[:40]}… is longer than a name or a path can be: {len(str(path))} "
                "characters"
            ) from None
        if e.errno == errno.ELOOP:
            raise ConfigError(f"{path} is a symbolic link that leads in a circle") from None
    return path


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Turns an operating system's refusal to write at `path` into one clear OutputError."""
    try:
        yield
    except OSError as e:
        reasons = {
            errno.ENOSPC: "the disk is full: free some space or choose another place",
            errno.EDQUOT: "the disk quota is used up: free some space or choose another place",
            errno.EACCES: "permission denied: choose a place you may write to",
            errno.EPERM: "permission denied: choose a place you may write to",
            errno.EROFS: "the file system is read-only: choose another place",
            errno.ENOENT: "its folder is not there and cannot be made: choose another place",
            errno.ENOTDIR: "a part of the path is a file, not a folder: choose another place",
            errno.EEXIST: "a file of that name, or of its folder's, is in the way: choose another",
            errno.ENAMETOOLONG: "the name is longer than the file system allows: choose another",
            errno.EISDIR: "a folder of that name is in the way: choose another",
            errno.ELOOP: "its symbolic links lead in a circle: choose another place",
            errno.EIO: "the disk reports an error: choose another place",
            errno.EFBIG: "the file would be larger than this file system or limit allows",
        }
        if e.errno not in reasons:
            raise
        if path.is_symlink() and not path.exists():
            raise OutputError(
                f"cannot write to {path}: it is a link to {path.readlink()}, which is not there: "
                "make that folder, or choose another place"
            ) from e
        raise OutputError(f"cannot write to {path}: {reasons[e.errno]}") from e


def fsync_dir(path: Path) -> None:
    """Makes renames inside the folder `path` durable, where the file system can."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fsync(fd)
    finally:
        os.close(fd)


def fsync(fd: int) -> None:
    """Makes what was written to a file durable, where the file system can.

    Raises:
        OSError: when it could not be written.
    """
    try:
        os.fsync(fd)
    except OSError as e:
        if e.errno not in _NO_FSYNC:
            raise


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path next to `path`; on success it is synced and renamed over `path`.

    On any failure the temporary file is removed and `path` stays as it was. A link stays a link.

    Raises:
        OutputError: when the disk refuses, or `path` is a device or a pipe, which root would lose.
    """
    if path.is_symlink() and path.exists():
        path = path.resolve()
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing_to(path):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise OutputError(f"{path} is a device or a pipe: name a file to write")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield tmp
            with tmp.open("rb+") as f:
                fsync(f.fileno())
            tmp.replace(path)
            fsync_dir(path.parent)
        finally:
            tmp.unlink(missing_ok=True)


@contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Yields a temporary folder (see `staging`); on success it is synced and put at `path`.

    An existing folder at `path` is replaced. On failure the temporary folder is removed.
    """
    with writing_to(path):
        path = path.resolve()  # where a link leads to may be another file system
        tmp = staging(path, f"{os.getpid()}.tmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(tmp, ignore_errors=True)
        tmp.mkdir()
        try:
            yield tmp
            for file in tmp.rglob("*"):
                if file.is_file():
                    with file.open("rb+") as f:
                        fsync(f.fileno())
                else:
                    fsync_dir(file)
            fsync_dir(tmp)
            put_in_place(tmp, path)
        finally:
            shutil.rmtree(tmp, ignore_errors=True)


def staging(path: Path, ending: str) -> Path:
    """Where to make a file or folder for `put_in_place`: hidden and next to `path`.

    Within `path` where that is a folder that must stay what it is: a mount point, and the current
    folder, which the user's shell is in as well.

    Args:
        path: an absolute path.
        ending: end of the name.
    """
    name = f".{path.name}.{ending}"
    return path / name if _must_stay(path) else path.with_name(name)


def put_in_place(tmp: Path, path: Path) -> None:
    """Gives the folder `tmp`, made where `staging` says, the name `path`; replaces what is there.

    Of a folder that must stay what it is the entries are replaced, one after the other.
    """
    if tmp.parent == path:
        new = {entry.name for entry in tmp.iterdir()}
        for entry in path.iterdir():
            if entry.name in new or not entry.name.startswith(f".{path.name}."):
                _remove(entry)
        for entry in tmp.iterdir():
            entry.rename(path / entry.name)
        tmp.rmdir()
        fsync_dir(path)
    elif path.exists():
        old = path.with_name(f".{path.name}.{os.getpid()}.old.tmp")
        path.rename(old)
        tmp.rename(path)
        shutil.rmtree(old)
        fsync_dir(path.parent)
    else:
        tmp.rename(path)
        fsync_dir(path.parent)


def _must_stay(path: Path) -> bool:
    if not path.is_dir():
        return False
    return path.is_mount() or Path.cwd().resolve().is_relative_to(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def is_leftover(path: Path) -> bool:
    """Whether a file or folder is what atomic_path or atomic_dir of a killed process left."""
    return path.match(_LEFTOVER)


def holds_only_leftovers(folder: Path) -> bool:
    """Whether `folder` is empty but for what a killed process was about to write."""
    return all(is_leftover(entry) for entry in folder.iterdir())


def remove_leftovers(folder: Path) -> None:
    """Removes what atomic_path and atomic_dir of a killed process left in `folder`.

    Only for a folder that no other process is writing to.
    """
    for left in folder.glob(_LEFTOVER):
        with writing_to(left):
            _remove(left)


def write_text(path: Path, text: str) -> None:
    """Writes `text` atomically."""
    with atomic_path(path) as tmp:
        tmp.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically. NaN and Inf are refused.

    Half a surrogate pair, which stands for a byte in a file name that is not UTF-8, is escaped.
    """
    text = decoded(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False))
    write_text(path, _SURROGATE.sub(lambda c: f"\\u{ord(c[0]):04x}", text) + "\n")


def read_bytes(path: Path) -> bytes:
    """The content of a file; a device such as /dev/zero, which may have no end, is an OSError."""
    if path.is_char_device() or path.is_block_device():
        raise OSError(errno.EINVAL, "it is a device, not a file", str(path))
    return path.read_bytes()


def read_text(path: Path) -> str:
    """The text of a file that people edit, in whichever Unicode encoding their editor saved it.

    UTF-8 is the rule. A byte order mark is dropped, and UTF-16 and UTF-32 are told by their mark,
    or by the NUL bytes around the ASCII characters that JSON and TOML begin with. Line ends come
    as single line feeds.

    Raises:
        OSError: when it cannot be read.
        ValueError: when it is in another encoding, or stands for a file that Git LFS keeps.
    """
    data = read_bytes(path)
    if begins_as_lfs_pointer(data):
        raise ValueError(LFS_POINTER)
    return decode(data)


def decode(data: bytes) -> str:
    """The text of bytes that an editor or a pipe wrote; see `read_text`.

    Raises:
        ValueError: when they are in another encoding.
    """
    encoding = json.detect_encoding(data)
    try:
        text = data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        name = encoding.removesuffix("-sig").upper()
        raise ValueError(f"line {line} is not {name} text: save it as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file; the encoding is told as by `read_text`.

    Raises:
        OSError: when it cannot be read.
        ValueError: when it is not JSON, or nested too deeply.
    """
    text = read_text(path)
    if not text.strip():
        raise ValueError("the file is empty")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None


def read_object(path: Path, error: type[GemmuleError]) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Args:
        path: the file.
        error: raised when it cannot be read or holds something else.

    Raises:
        FileNotFoundError: when it is not there.
    """
    try:
        value = read_json(path)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as e:
        raise error(f"{path} is not readable JSON: {e}") from None
    if not isinstance(value, dict):
        raise error(f"{path} holds a {type(value).__name__}; expected a JSON object")
    return value


def read_toml(path: Path) -> dict[str, Any]:
    """Reads a TOML file; the encoding is told as by `read_text`.

    Raises:
        OSError: when it cannot be read.
        ValueError: when it is not TOML, or nested too deeply.
    """
    text = read_text(path)
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is the note that Git LFS leaves in place of a file that was not downloaded."""
    with path.open("rb") as f:
        return begins_as_lfs_pointer(f.read(64))


def begins_as_lfs_pointer(data: bytes) -> bool:
    """Whether a file's content, or its first 64 bytes, are those of such a note."""
    return data.startswith((b"version https://git-lfs.github.com/", b"version https://hawser."))


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
