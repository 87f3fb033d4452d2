"""Checksums of the published benchmark files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemmule.errors import DataError
from gemmule.evals.benchmarks import local_files

# SHA-1 of each file as a git blob, by its path in a data folder. A few files have equal content.
KNOWN: Mapping[str, str] = json.loads(
    Path(__file__).with_name("checksums.json").read_text(encoding="utf-8")
)


def examine(
    data_dir: Path, paths: Sequence[Path]
) -> tuple[list[Mapping[str, Any]], tuple[str, ...]]:
    """Compares files with the published ones.

    Args:
        data_dir: the data folder.
        paths: files in it.

    Returns:
        An entry for each file, and notes about those that are not the published ones.

    Raises:
        DataError: for a file whose content belongs to another path: one split in another's place.
    """
    by_checksum = {value: name for name, value in KNOWN.items()}
    entries: list[Mapping[str, Any]] = []
    others = []
    for path in paths:
        name, value = path.relative_to(data_dir).as_posix(), local_files.git_blob_sha1(path)
        known = KNOWN.get(name) == value
        if not known and value in by_checksum:
            raise DataError(f"{path} has the content of {by_checksum[value]}: move it there")
        entries.append({"file": name, "git_blob": value, "known": known})
        if not known:
            others.append(name)
    return entries, _notes(others)


def _notes(others: Sequence[str]) -> tuple[str, ...]:
    if not others:
        return ()
    if len(others) == 1:
        return (f"{others[0]} is not the published file",)
    return (f"{len(others)} files are not the published ones: {others[0]}, …, {others[-1]}",)
