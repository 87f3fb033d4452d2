"""Checked access to the keys of a GGUF file that describe its model."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gemmule.checkpoints.gguf.header import Value
from gemmule.errors import CheckpointError


class Metadata:
    """Checked access to the metadata that describes a model.

    Args:
        metadata: metadata of the file.
        architecture: its general.architecture, which the keys begin with.
        source: the file, for messages.
    """

    def __init__(self, metadata: Mapping[str, Value], architecture: str, source: str) -> None:
        self._metadata, self._architecture, self._source = metadata, architecture, source

    def number(self, key: str, default: float | None = None) -> float:
        """A number; raises if the key is missing and there is no default."""
        return self._get(key, default, int | float, "one number")

    def integer(self, key: str, default: int | None = None) -> int:
        """An integer; raises if the key is missing and there is no default."""
        return self._get(key, default, int, "one integer")

    def _get(self, key: str, default: Any, kind: Any, expected: str) -> Any:
        name = f"{self._architecture}.{key}"
        value = self._metadata.get(name, default)
        if value is None:
            raise CheckpointError(f"{self._source} lacks the key {name}")
        if isinstance(value, bool) or not isinstance(value, kind):
            raise CheckpointError(f"{self._source}: {name} is {shown(value)}; expected {expected}")
        return value

    def refuse_other_than(self, key: str, *allowed: object) -> None:
        """Checks that a key is missing or has one of the `allowed` values."""
        name = f"{self._architecture}.{key}"
        value = self._metadata.get(name)
        if value is None:
            return
        if isinstance(value, list | np.ndarray) or value not in allowed:
            raise CheckpointError(
                f"{self._source}: {name} is {shown(value)}, which is not supported; only "
                f"{' or '.join(map(repr, allowed))} can be loaded"
            )


def shown(value: Value) -> str:
    """A value as messages show it."""
    return "an array" if isinstance(value, list | np.ndarray) else repr(value)[:80]
