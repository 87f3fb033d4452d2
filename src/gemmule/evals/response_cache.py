"""A response cache: a model's responses are kept as they arrive, so a stopped evaluation resumes.

A file of JSON lines. The first says what the responses depend on besides the request; every other
line holds one response under a key made from its request. A last line that was cut off is ignored.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gemmule import files
from gemmule.errors import ConfigError, DataError


class ResponseCache:
    """Responses by the key of their request.

    Attributes:
        path: the file.
        responses: every response in the file.
    """

    def __init__(self, path: Path, depends_on: Mapping[str, Any]) -> None:
        """Opens a cache file, or creates it.

        Args:
            path: the file.
            depends_on: what the responses depend on: the model, and how it is prompted.

        Raises:
            ConfigError: if the file's responses depend on something else.
            DataError: if the file is damaged before its last line.
        """
        self.path = path
        self.responses: dict[str, Any] = {}
        head = json.dumps({"format": 1, "depends_on": depends_on}, sort_keys=True)
        lines = path.read_bytes().split(b"\n") if path.is_file() else [b""]
        whole, cut = lines[:-1], lines[-1]
        if not whole:
            files.write_text(path, head + "\n")
            return
        if whole[0] != head.encode():
            raise ConfigError(
                f"{path} has the responses of another model, or to other settings: choose another "
                "--out, or delete the file"
            )
        for number, line in enumerate(whole[1:], 2):
            try:
                entry = json.loads(line)
                self.responses[entry["key"]] = entry["answer"]
            except (ValueError, KeyError, TypeError):
                raise DataError(f"{path}:{number}: not a response: delete the file") from None
        if cut:
            files.write_text(path, b"\n".join(whole).decode() + "\n")

    def add(self, responses: Iterable[tuple[str, Any]]) -> None:
        """Adds responses in one write; they are on disk when this returns.

        Args:
            responses: pairs of a request's key and its response.
        """
        lines = []
        for key, response in responses:
            self.responses[key] = response
            lines.append(json.dumps({"key": key, "answer": response}) + "\n")
        with files.writing_to(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))
            file.flush()
            files.fsync(file.fileno())


def request_key(*request: Any) -> str:
    """A key for a request; two requests have the same key only if they are equal."""
    text = json.dumps(request, ensure_ascii=True, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
