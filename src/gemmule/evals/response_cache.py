"""Answers kept as they come, so that a stopped evaluation goes on where it was.

A file of JSON lines: first what the answers depend on beside their questions, then one answer a
line, by a key that is made of the question. A last line that was cut off is no answer.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gemmule import files
from gemmule.errors import ConfigError, DataError


class Journal:
    """Answers by the key of their question.

    Attributes:
        kept: all there are.
    """

    def __init__(self, path: Path, depends_on: Mapping[str, Any]) -> None:
        """Opens a file, or begins one.

        Args:
            path: the file.
            depends_on: what the answers depend on: the model, and how it is asked.

        Raises:
            ConfigError: when the file's answers depend on something else.
            DataError: when it is broken before its last line.
        """
        self.path = path
        self.kept: dict[str, Any] = {}
        head = json.dumps({"format": 1, "depends_on": depends_on}, sort_keys=True)
        lines = path.read_bytes().split(b"\n") if path.is_file() else [b""]
        whole, cut = lines[:-1], lines[-1]
        if not whole:
            files.write_text(path, head + "\n")
            return
        if whole[0] != head.encode():
            raise ConfigError(
                f"{path} has answers of another model, or to other settings: name another --out, "
                "or delete it"
            )
        for number, line in enumerate(whole[1:], 2):
            try:
                entry = json.loads(line)
                self.kept[entry["key"]] = entry["answer"]
            except (ValueError, KeyError, TypeError):
                raise DataError(f"{path}:{number}: no answer: delete the file") from None
        if cut:
            files.write_text(path, b"\n".join(whole).decode() + "\n")

    def add(self, answers: Iterable[tuple[str, Any]]) -> None:
        """Keeps answers, in one write, on disk when this returns."""
        lines = []
        for key, answer in answers:
            self.kept[key] = answer
            lines.append(json.dumps({"key": key, "answer": answer}) + "\n")
        with files.writing_to(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))
            file.flush()
            os.fsync(file.fileno())


def key_of(*question: Any) -> str:
    """A key for a question: alike only for the same one."""
    text = json.dumps(question, ensure_ascii=True, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
