"""Sums of the files that the published benchmarks are known by."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemmule.errors import DataError
from gemmule.evals.benchmarks import local_files

# git's sum of a file's content, by its place in a data folder. A few files have the same content.
KNOWN: Mapping[str, str] = json.loads(
    Path(__file__).with_name("checksums.json").read_text(encoding="utf-8")
)


def examine(
    data_dir: Path, paths: Sequence[Path]
) -> tuple[list[Mapping[str, Any]], tuple[str, ...]]:
    """What each file is, and notes on those that are not the published ones.

    Raises:
        DataError: for a file that is known as another one: a split in another's place.
    """
    by_sum = {value: name for name, value in KNOWN.items()}
    found: list[Mapping[str, Any]] = []
    others = []
    for path in paths:
        name, value = path.relative_to(data_dir).as_posix(), local_files.blob(path)
        known = KNOWN.get(name) == value
        if not known and value in by_sum:
            raise DataError(f"{path} is the file known as {by_sum[value]}: put it there")
        found.append({"file": name, "git_blob": value, "known": known})
        if not known:
            others.append(name)
    return found, _notes(others)


def _notes(others: Sequence[str]) -> tuple[str, ...]:
    if not others:
        return ()
    if len(others) == 1:
        return (f"{others[0]} is not the published file",)
    return (f"{len(others)} files are not the published ones: {others[0]}, …, {others[-1]}",)
