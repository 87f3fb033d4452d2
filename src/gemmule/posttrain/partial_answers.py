"""What is done of a synthesis, on disk while it runs."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gemmule import files
from gemmule.errors import DataError, OutputError


def json_line(value: Any) -> str:
    """A value as one line of JSON lines."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


class PartialAnswers:
    """A file of answered prompts: a line that says what the answers depend on, then one per prompt.

    Attributes:
        path: the file.
        done: number of prompts that are answered.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        """Opens a file, or creates it; a last line that was cut off is removed.

        Args:
            path: the file.
            about: what the answers depend on.

        Raises:
            OutputError: if the answers in it depend on something else.
            DataError: if it is damaged before its last line.
        """
        self.path = path
        head = json.dumps(about, sort_keys=True)
        whole, cut = [], b""
        if path.is_file():
            *whole, cut = path.read_bytes().split(b"\n")
        if whole and whole[0] != head.encode():
            raise OutputError(
                f"{path} has answers of another teacher, or to other prompts or settings: choose "
                "another --out, or delete it"
            )
        if cut or not whole:
            whole = whole or [head.encode()]
            files.write_text(path, b"\n".join(whole).decode() + "\n")
        self.done = len(whole) - 1
        self._lines = [_parsed(path, number, line) for number, line in enumerate(whole[1:], 2)]

    def add(self, lines: Sequence[dict[str, Any]]) -> None:
        """Adds the lines of the next prompts; they are on disk when this returns."""
        with files.writing_to(self.path), self.path.open("a", encoding="utf-8") as file:
            file.writelines(json_line(line) for line in lines)
            file.flush()
            files.fsync(file.fileno())
        self._lines += lines
        self.done += len(lines)

    def answers(self) -> Iterator[dict[str, Any]]:
        """The lines of the output."""
        for line in self._lines:
            yield from line["answers"]

    def summary(self) -> dict[str, Any]:
        """Counts: "answers", "tokens", "retokenized", and "left_out" by reason."""
        left_out: Counter[str] = Counter()
        for line in self._lines:
            left_out.update(line["left_out"])
        provenance = [answer["provenance"] for answer in self.answers()]
        return {
            "answers": len(provenance),
            "tokens": sum(p["tokens"] for p in provenance),
            "retokenized": sum(line["retokenized"] for line in self._lines),
            "left_out": dict(sorted(left_out.items())),
        }

    def remove(self) -> None:
        """Removes the file, once its content is in the output."""
        self.path.unlink()


def _parsed(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line)
        return {name: entry[name] for name in ("answers", "left_out", "retokenized")}
    except (ValueError, LookupError, TypeError):
        raise DataError(f"{path}:{number}: not a line of a synthesis: delete the file") from None
