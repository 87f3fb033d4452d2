"""A run directory: config, manifest, metrics.

Every file of a run is written whole or not at all; metrics.jsonl grows line by line and is cut
back to the checkpoint a run resumes from, so that a resumed run's log equals an unbroken one's.
"""

import datetime
import json
import math
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from gemmule import files
from gemmule.config import Config
from gemmule.errors import OutputError
from gemmule.runtime import host

METRICS = "metrics.jsonl"


class RunDir:
    """The folder of one run.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, config: Config) -> Self:
        """Claims `path` for a new run and saves its config there.

        Raises:
            OutputError: when the folder is not empty or cannot be written.
        """
        claim(path, "add --resume to go on with the run there, or ")
        config.save(path / "config.toml")
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> Self:
        """An existing run.

        Raises:
            OutputError: when there is none at `path`.
        """
        if not (path / "config.toml").is_file():
            raise OutputError(f"{path} holds no run to resume (it has no config.toml)")
        return cls(path)

    def log(self, values: Mapping[str, Any]) -> None:
        """Appends one line to metrics.jsonl; NaN and Inf become null."""
        clean = {
            k: None if isinstance(v, float) and not math.isfinite(v) else v
            for k, v in values.items()
        }
        with (
            files.writing_to(self.path / METRICS),
            (self.path / METRICS).open("a", encoding="utf-8") as f,
        ):
            f.write(json.dumps(clean) + "\n")

    def cut_metrics(self, step: int) -> None:
        """Drops metrics after `step`, and a line that was only half written."""
        path = self.path / METRICS
        if path.exists():
            kept = [m for m in read_metrics(self.path) if m["step"] <= step]
            files.write_text(path, "".join(json.dumps(m) + "\n" for m in kept))

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Writes manifest.json: what a reader needs to trace and repeat the run."""
        files.write_json(
            self.path / "manifest.json",
            {
                "gemmule": metadata.version("gemmule"),
                "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "versions": host.versions(),
                "machine": host.machine(),
                **manifest,
            },
        )


def claim(path: Path, otherwise: str = "") -> None:
    """Makes the folder `path`, which must not hold anything yet.

    Raises:
        OutputError: when it does, or cannot be made.
    """
    with files.writing_to(path):
        if path.is_dir() and not files.holds_only_leftovers(path):
            raise OutputError(f"{path} is already in use: {otherwise}choose another folder")
        path.mkdir(parents=True, exist_ok=True)
        files.remove_leftovers(path)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's metrics.jsonl, in order."""
    lines = []
    for line in (run / METRICS).read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            lines.append(json.loads(line))
    return lines
