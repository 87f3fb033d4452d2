"""The texts of benchmarks that a corpus is decontaminated against.

They are files of the user's: what `gemmule decontamination` collected, with the questions and
answers exactly as `gemmule eval` checks them afterwards, or any file of records or of text. A
record is an item, with all of its texts; a file of text is one item.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gemmule import files
from gemmule.data import file_kinds, text_blocks
from gemmule.data.file_kinds import TEXT
from gemmule.data.read_log import ReadLog
from gemmule.data.records import read_rows
from gemmule.errors import DataError

FORMAT = "gemmule benchmark texts 1"


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: its name on a card.
        sha256: SHA-256 of the file that was given or, of collected ones, of their texts.
        texts: question and answers of each item, in one piece.
    """

    name: str
    sha256: str
    texts: tuple[str, ...]

    def json(self) -> dict[str, Any]:
        """The form that a file of collected benchmarks keeps."""
        return {"name": self.name, "sha256": self.sha256, "texts": self.texts}


def digest(texts: Sequence[str]) -> str:
    """SHA-256, hexadecimal, of texts in their order."""
    whole = hashlib.sha256()
    for text in texts:
        data = text.encode(errors="surrogatepass")
        whole.update(len(data).to_bytes(8) + data)
    return whole.hexdigest()


def write(path: Path, benchmarks: Sequence[Benchmark]) -> None:
    """Writes collected benchmarks to one file."""
    files.write_json(path, {"format": FORMAT, "benchmarks": [b.json() for b in benchmarks]})


def read(path: Path) -> list[Benchmark]:
    """The benchmarks of a file.

    Raises:
        DataError: when there is none, or it cannot be read or holds no text.
    """
    path = files.expand(path)
    if path.is_dir():
        raise DataError(
            f"{path} is a folder: name files of benchmarks, or collect those of the folder with "
            "gemmule decontamination --data-dir and name the file that it writes"
        )
    try:
        collected = _collected(path)
        if collected is not None:
            return collected
        texts = tuple(text for text in _texts(path) if text.strip())
        if not texts:
            raise DataError(f"{path} holds no text of a benchmark")
        return [Benchmark(path.name, files.sha256_file(path), texts)]
    except (OSError, ValueError) as e:
        reason = getattr(e, "strerror", None) or e
        raise DataError(f"the benchmark {path} cannot be read: {reason}") from None


def leaves(value: Any) -> Iterator[str]:
    """All texts in a record, however deep, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from leaves(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from leaves(part)


def _collected(path: Path) -> list[Benchmark] | None:
    """Benchmarks that `write` wrote; None for any other file."""
    with path.open("rb") as file:
        head = file.read(200)
    if FORMAT.encode() not in head:
        return None
    benchmarks = [
        Benchmark(entry["name"], entry["sha256"], tuple(entry["texts"]))
        for entry in files.read_json(path)["benchmarks"]
    ]
    for benchmark in benchmarks:
        if digest(benchmark.texts) != benchmark.sha256:
            raise DataError(
                f"{path}: the texts of {benchmark.name} are not those whose checksum it has: "
                "collect them again with gemmule decontamination"
            )
    return benchmarks


def _texts(path: Path) -> Iterator[str]:
    log = ReadLog()
    file = file_kinds.as_it_is(file_kinds.by_hand(path))
    if isinstance(file, str):
        raise DataError(f"{path} cannot be read as a benchmark: {file}")
    if file.kind == TEXT:
        yield "".join(text_blocks.decoded_stream(file, log))
        return
    for row in read_rows(file, log):
        yield " ".join(leaves(row))
    if log.left_out:
        raise DataError(f"{path} is not read completely as a benchmark: {log.summary()}")
