"""Sorting more than memory holds: sorted runs on disk, merged a block at a time.

An entry is a key, a second number, and the number of a document, all of 8 bytes.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmule import files
from gemmule.errors import DataError

ENTRY = np.dtype([("key", "<u8"), ("second", "<u8"), ("document", "<i8")])
Entries = npt.NDArray[Any]

RUN_BYTES = 64 * 1024 * 1024


class SortedRuns:
    """Takes entries in any order and streams them by ascending key.

    Args:
        folder: where runs are written; they are removed by `close`.
        run_bytes: bytes of a run: what is in memory while entries are added, and again while runs
            are merged.
    """

    def __init__(self, folder: Path, run_bytes: int = RUN_BYTES) -> None:
        self._folder = folder
        self._capacity = max(1, run_bytes // ENTRY.itemsize)
        self._waiting: list[Entries] = []
        self._count = 0
        self._paths: list[Path] = []

    def add(
        self,
        keys: npt.NDArray[np.uint64],
        seconds: npt.NDArray[np.uint64],
        documents: npt.NDArray[np.int64],
    ) -> None:
        """Takes entries."""
        entries = np.empty(len(keys), ENTRY)
        entries["key"], entries["second"], entries["document"] = keys, seconds, documents
        for start in range(0, len(entries), self._capacity):
            self._waiting.append(entries[start : start + self._capacity])
            self._count += len(self._waiting[-1])
            if self._count >= self._capacity:
                self._write()

    def _write(self) -> None:
        entries = np.concatenate([np.empty(0, ENTRY), *self._waiting])
        self._waiting, self._count = [], 0
        path = self._folder / f"run-{len(self._paths):05d}"
        with files.atomic_path(path) as tmp:
            entries[np.argsort(entries["key"], kind="stable")].tofile(tmp)
        self._paths.append(path)

    def blocks(self) -> Iterator[Entries]:
        """Blocks of entries; keys ascend within a block and from one to the next.

        Raises:
            DataError: when a run is not sorted, as on a failing disk.
        """
        if self._count:
            self._write()
        runs = [np.memmap(path, ENTRY, mode="r") for path in self._paths]
        places = [0] * len(runs)
        size = max(1024, self._capacity // max(1, len(runs)))
        last = 0
        while any(place < len(run) for place, run in zip(places, runs, strict=True)):
            heads = [
                np.array(run[place : place + size]) for run, place in zip(runs, places, strict=True)
            ]
            # Up to here nothing smaller can follow; an equal key may, in the next block.
            limit = min(head["key"][-1] for head in heads if len(head))
            parts = []
            for number, head in enumerate(heads):
                taken = int(np.searchsorted(head["key"], limit, side="right"))
                parts.append(head[:taken])
                places[number] += taken
            block = np.concatenate(parts)
            block = block[np.argsort(block["key"], kind="stable")]
            if int(block["key"][0]) < last or any(
                (part["key"][1:] < part["key"][:-1]).any() for part in parts
            ):
                raise DataError(
                    f"a sorted file in {self._folder} is not sorted: check the disk, delete "
                    f"{self._folder} and run the same again"
                )
            last = int(block["key"][-1])
            yield block

    def close(self) -> None:
        """Removes the runs."""
        for path in self._paths:
            path.unlink(missing_ok=True)
        self._paths = []
