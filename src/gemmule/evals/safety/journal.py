"""Samples on the disk while they come, so that a stopped measurement goes on where it was."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gemmule import files
from gemmule.errors import DataError

SAMPLES = "safety.samples.jsonl"
_JOURNAL = "safety.journal.jsonl"
Sample = dict[str, Any]


class Journal:
    """What has been asked of one model, by key.

    Args:
        folder: of the results.
        subject: what answers depend on besides the question: the model and its precision. What
            was kept of another is not looked at, and overwritten.
    """

    def __init__(self, folder: Path, subject: Mapping[str, Any]) -> None:
        self._path, self._samples = folder / _JOURNAL, folder / SAMPLES
        self._head = {"subject": dict(subject)}
        self.kept: dict[str, Sample] = {}
        for path in (self._samples, self._path):
            self.kept |= self._read(path)
        self._begun = False

    def _read(self, path: Path) -> dict[str, Sample]:
        try:
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        except FileNotFoundError:
            return {}
        found = {}
        for number, line in enumerate(lines):
            try:
                row = json.loads(line)
            except ValueError:
                break  # a line that was being written
            if number == 0:
                if row != self._head:
                    return {}
                continue
            if not line.endswith("\n"):
                break
            found[row["key"]] = row
        return found

    def add(self, samples: Iterable[Sample]) -> None:
        """Keeps samples."""
        new = list(samples)
        self.kept |= {sample["key"]: sample for sample in new}
        with files.writing_to(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if not self._begun:
                # Whatever was there has been read: begin a file whose every line is whole.
                files.write_text(self._path, _lines([self._head, *self.kept.values()]))
                self._begun = True
                return
            with self._path.open("a", encoding="utf-8") as f:
                f.write(_lines(new))

    def finish(self, keys: Sequence[str]) -> None:
        """Writes the samples that belong to the result, and drops the journal."""
        chosen = [self.kept[key] for key in keys]
        files.write_text(self._samples, _lines([self._head, *chosen]))
        self._path.unlink(missing_ok=True)


def read_samples(folder: Path) -> list[Sample]:
    """The samples of a finished result.

    Raises:
        DataError: when they are missing or broken, naming file and line.
    """
    path = folder / SAMPLES
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"no samples at {path} ({e}): measure it again") from None
    samples = []
    for number, line in enumerate(lines[1:], 2):
        try:
            sample = json.loads(line)
            sample["key"], sample["benchmark"]
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path}:{number}: no sample: measure it again") from None
        samples.append(sample)
    return samples


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
