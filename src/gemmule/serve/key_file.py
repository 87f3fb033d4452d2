"""API keys from a file and the environment; never from the command line, which all may read."""

import os
import stat
from pathlib import Path

from gemmule.errors import ConfigError

VARIABLE = "GEMMULE_API_KEY"


def read_keys(path: Path | None) -> tuple[tuple[str, ...], str | None]:
    """Reads the keys of a file, one a line, and that of the environment.

    Args:
        path: the file; None: there is none.

    Returns:
        The keys, and a warning if others may read the file.

    Raises:
        ConfigError: for a file that cannot be read or holds no key, or a key that cannot be sent
            in a header.
    """
    keys: list[str] = []
    warning = None
    if path is not None:
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
            mode = path.stat().st_mode
        except (OSError, UnicodeDecodeError) as e:
            reason = e.strerror if isinstance(e, OSError) else "it is not text"
            raise ConfigError(f"the key file {path} cannot be read: {reason}") from None
        keys += [line.strip() for line in lines if line.strip()]
        if not keys:
            raise ConfigError(f"the key file {path} is empty: write one key a line into it")
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            warning = f"other users of this machine may read {path}: chmod 600 {path}"
    if VARIABLE in os.environ:
        keys.append(os.environ[VARIABLE].strip())
    for number, key in enumerate(keys, 1):
        if not (key.isascii() and key.isprintable() and key and " " not in key):
            where = "it is empty" if not key else "it has a blank, or a character outside ASCII"
            raise ConfigError(f"API key number {number} cannot be used: {where}")
    return tuple(dict.fromkeys(keys)), warning
