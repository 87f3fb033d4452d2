"""Making and opening the folder of a run.

Every file of a run is written whole or not at all, but for metrics.jsonl, which grows.
"""

import datetime
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from gemmule import files
from gemmule.config import Config
from gemmule.errors import OutputError
from gemmule.runs.layout import LEDGER, MANIFEST, RunLayout
from gemmule.runs.lock import is_lock
from gemmule.runs.schema import Manifest
from gemmule.runtime import host


class RunDir:
    """The folder of one run.

    Attributes:
        path: the folder.
        layout: paths of the files in it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.layout = path, RunLayout(path)

    @classmethod
    def create(cls, path: Path, config: Config, *, besides: Sequence[Path] = ()) -> Self:
        """Claims `path` for a new run and saves its config there.

        Args:
            path: the folder.
            config: settings of the run.
            besides: what may be in the folder already: data that was made for this run.

        Raises:
            OutputError: when the folder is not empty or cannot be written.
        """
        claim(path, "add --resume to continue the run there, or ", besides)
        config.save(RunLayout(path).config)
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> Self:
        """An existing run.

        Raises:
            OutputError: when there is none at `path`.
        """
        if not RunLayout(path).config.is_file():
            raise OutputError(f"{path} holds no run to resume (it has no config.toml)")
        return cls(path)

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Writes manifest.json, with versions and a description of the machine added."""
        about = {
            "gemmule": metadata.version("gemmule"),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": host.versions(),
            "machine": host.machine(),
        }
        Manifest.parse({**about, **manifest}, MANIFEST).write(self.layout.manifest)


def claim(path: Path, otherwise: str = "", besides: Sequence[Path] = ()) -> None:
    """Makes the folder `path`, which must not hold anything yet.

    What a killed process left there is removed; a lock file does not count.

    Args:
        path: the folder.
        otherwise: what else a user can do when it is in use, as in "add --resume, or ".
        besides: entries of the folder that may be there.

    Raises:
        OutputError: when it holds something, or cannot be made.
    """
    with files.writing_to(path):
        if path.is_dir() and not is_free(path, besides):
            raise OutputError(f"{path} is already in use: {otherwise}choose another folder")
        path.mkdir(parents=True, exist_ok=True)
        files.remove_leftovers(path)


def is_free(path: Path, besides: Sequence[Path] = ()) -> bool:
    """Whether a folder holds nothing but its ledger, a lock, what was left half, and `besides`."""
    allowed = {other.absolute() for other in besides}
    return all(
        files.is_leftover(entry)
        or is_lock(entry)
        or entry.name == LEDGER
        or entry.absolute() in allowed
        for entry in path.iterdir()
    )


def free_folder(path: Path) -> Path:
    """The path of a folder that can be made: it is not there, or nothing is in it.

    Raises:
        OutputError: when it is in use.
    """
    path = files.expand(path).resolve()
    if path.exists() and (not path.is_dir() or not is_free(path)):
        raise OutputError(f"{path} is already in use: choose another folder with --out")
    return path
