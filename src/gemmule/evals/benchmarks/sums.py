"""Sums of the files that the published benchmarks are known by."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemmule.errors import DataError
from gemmule.evals.benchmarks import local_files

# git's sum of a file's content, by its place in a data folder.
KNOWN: Mapping[str, str] = {
    "arc/arc_easy.jsonl": "b5fd1bf87a24246a6be67230b721541688f5c349",
    "arc/arc_challenge.jsonl": "ce66b8dcfb4bac892a404a0dda8b4e8ed0f84b89",
    "arc/ARC-Easy/train.json": "488a8e5e5bbbd7a630ebbfe07a1fd91b7d9d8c9b",
    "arc/ARC-Challenge/train.json": "d7e080b04bff9fd16dd85455fb04481807a088d8",
}


def examine(
    data_dir: Path, paths: Sequence[Path]
) -> tuple[list[Mapping[str, Any]], tuple[str, ...]]:
    """What each file is, and notes on those that are not the published ones.

    Raises:
        DataError: for a file that is known as another one: a split in another's place.
    """
    by_sum = {value: name for name, value in KNOWN.items()}
    found: list[Mapping[str, Any]] = []
    notes = []
    for path in paths:
        name, value = path.relative_to(data_dir).as_posix(), local_files.blob(path)
        known = by_sum.get(value)
        if known not in (None, name):
            raise DataError(f"{path} is the file known as {known}: put it there")
        found.append({"file": name, "git_blob": value, "known": known is not None})
        if known is None:
            notes.append(f"{name} is not the published file")
    return found, tuple(notes)
