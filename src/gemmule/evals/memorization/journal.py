"""What is measured so far, so that a stopped measurement goes on and no passage is tried twice.

The first line says what is measured; every other is a whole batch, written in one go. A batch whose
line was cut short by a kill is no part of it and is done again.
"""

import json
import os
from pathlib import Path
from typing import Any

from gemmule import files
from gemmule.errors import ConfigError, DataError


class Journal:
    """A file of finished batches.

    Attributes:
        header: what is measured, and how it is cut into batches.
        batches: by number.
    """

    def __init__(self, path: Path, header: dict[str, Any], batches: dict[int, Any]) -> None:
        self.path, self.header, self.batches = path, header, batches

    @classmethod
    def open(cls, path: Path, header: dict[str, Any], *, fresh: bool) -> "Journal":
        """Goes on with the journal at `path`, or begins one.

        Args:
            path: the file.
            header: what is to be measured. What begins with "_" may differ from what an existing
                journal says, and is then taken from there.
            fresh: begin anew, whatever is there.

        Raises:
            ConfigError: when the one there is of another measurement.
            DataError: when it is damaged.
        """
        if not path.is_file() or fresh:
            with files.writing_to(path):
                path.unlink(missing_ok=True)
                path.parent.mkdir(parents=True, exist_ok=True)
            journal = cls(path, header, {})
            journal._append(header)
            return journal
        whole = [line for line in path.read_bytes().splitlines(keepends=True) if line[-1:] == b"\n"]
        try:
            found, *done = map(json.loads, whole) if whole else [header]
            batches = {int(entry["batch"]): entry for entry in done}
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path} is damaged: --fresh begins anew") from None
        differing = [k for k in header if k[0] != "_" and found.get(k) != header[k]]
        if differing:
            raise ConfigError(
                f"{path} holds an unfinished measurement with {_differences(found, header)}: finish"
                " it with the command that began it, or begin anew with --fresh"
            )
        with files.writing_to(path), path.open("rb+") as f:  # what was cut short goes
            f.truncate(sum(map(len, whole)))
        journal = cls(path, found, batches)
        if not whole:
            journal._append(header)
        return journal

    def add(self, batch: int, entry: dict[str, Any]) -> None:
        """Keeps a finished batch; it is on the disk when this returns."""
        entry = {"batch": batch, **entry}
        self._append(entry)
        self.batches[batch] = entry

    def _append(self, value: dict[str, Any]) -> None:
        line = json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"
        with files.writing_to(self.path), self.path.open("ab", buffering=0) as f:
            f.write(line.encode())
            os.fsync(f.fileno())


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """What differs, by name, and both values where they are short."""
    said = []
    for key, now in wanted.items():
        was = found.get(key)
        if key[0] == "_" or was == now:
            continue
        if isinstance(was, dict) and isinstance(now, dict):
            said += [f"{k} = {was.get(k)} (now {now[k]})" for k in now if was.get(k) != now[k]]
        else:
            said.append(f"other {key}")
    return ", ".join(said) or "other settings"
