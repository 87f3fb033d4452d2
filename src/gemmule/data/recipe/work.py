"""A recipe at work: its sources and units, and the folder in which its phases leave their results.

    artifacts/STAGE/        what stages were fitted to
    work/filter/00000/      chunks of unit 0, and unit.json when all of them are there
    work/links/             which documents share a key of a band
    work/documents/         split of each document, and the list of shards

Work is cut into phases, and a phase into units that do not depend on each other or on how many
processes there are: process r of n does units r, r + n, r + 2n, … Each unit leaves a record with a
digest of what it was made from, so a phase that is started again does only what is missing.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemmule import files
from gemmule.data.recipe.chunks import Chunk
from gemmule.data.recipe.settings import Recipe, SourceSettings
from gemmule.data.recipe.stage import Stage
from gemmule.data.sources import Source, find_source
from gemmule.errors import DataError

WORK, ARTIFACTS = "work", "artifacts"
EMBEDDED = Path("stdlib")
_UNIT_BYTES = 64 * 1024 * 1024  # of files, before the last one
_PROBE = 65536  # bytes at either end of a file


@dataclasses.dataclass(frozen=True)
class Unit:
    """Files of one source that are read one after the other.

    Attributes:
        number: its place among all units.
        settings: settings of the source.
        files: the source with these files alone.
        in_sections: whether its documents are cut into sections.
        size: bytes of the files.
    """

    number: int
    settings: SourceSettings
    files: Source
    in_sections: bool
    size: int

    @property
    def source(self) -> str:
        """Name of the source."""
        return self.settings.name

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the names, sizes, and ends of the files, which are read when it is asked."""
        settings = self.settings
        about = [settings.name, settings.field, settings.license_field, self.in_sections]
        probes = [[file.key, file.kind, *_probe(file.path)] for file in self.files.files]
        return sha256_of(*map(str, about), *map(json.dumps, probes))


@dataclasses.dataclass(frozen=True)
class Work:
    """What all phases need to know.

    Attributes:
        out: the data folder.
        recipe: the recipe.
        units: the units of the first phase, in the order of their documents.
        left_out: what the search for files left out, by reason.
    """

    out: Path
    recipe: Recipe
    units: tuple[Unit, ...]
    left_out: Mapping[str, int]

    @classmethod
    def of(cls, recipe: Recipe, out: Path) -> "Work":
        """Finds the files of a recipe.

        Raises:
            DataError: when a source has none that can be read.
        """
        units: list[Unit] = []
        left_out: dict[str, int] = {}
        for settings in recipe.sources:
            source, sections = open_source(settings)
            for reason, count in source.log.left_out.items():
                left_out[reason] = left_out.get(reason, 0) + count
            units += _units_of(source, settings, sections, len(units))
        return cls(out, recipe, tuple(units), left_out)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all files' names, sizes and ends."""
        return sha256_of(*(unit.fingerprint for unit in self.units))

    @property
    def folder(self) -> Path:
        """The folder of work."""
        return self.out / WORK

    def artifact(self, stage: str) -> Path:
        """The folder of a stage's artifact."""
        return self.out / ARTIFACTS / stage

    def open_stages(self) -> list[Stage]:
        """The stages, with their artifacts."""
        return [table.open(self.artifact(name)) for name, table in self.recipe.stages()]

    def unit_folder(self, unit: Unit) -> Path:
        """The folder of a unit's chunks."""
        return self.folder / "filter" / f"{unit.number:05d}"

    def unit_record(self, unit: Unit) -> dict[str, Any]:
        """The record of a unit that is done.

        Raises:
            DataError: when it is not.
        """
        return finished(self.unit_folder(unit) / "unit.json")

    def chunks(self) -> list[Chunk]:
        """All chunks, in the order of their documents; they must be done."""
        chunks: list[Chunk] = []
        first = 0
        for unit in self.units:
            for number, documents in enumerate(self.unit_record(unit)["documents"]):
                path = self.unit_folder(unit) / f"{number:05d}"
                chunks.append(Chunk(path, unit.source, documents, first))
                first += documents
        return chunks

    def chunks_digest(self) -> str:
        """SHA-256 over all chunks."""
        return sha256_of(*("".join(self.unit_record(unit)["chunks"]) for unit in self.units))


def open_source(settings: SourceSettings) -> tuple[Source, bool]:
    """The files of a recipe's source, and whether its documents are cut into sections.

    Raises:
        DataError: when there are none that can be read.
    """
    source = find_source(
        None if settings.path == EMBEDDED else settings.path,
        settings.field, settings.name, settings.license, settings.license_field,
    )  # fmt: skip
    return source, source.is_one_text if settings.sections is None else settings.sections


def sha256_of(*parts: str) -> str:
    """SHA-256 of a list of texts, hexadecimal."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def finished(path: Path) -> dict[str, Any]:
    """The record of a phase's unit.

    Raises:
        DataError: when the unit is not done.
    """
    try:
        return files.read_object(path, DataError)
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing: an earlier phase is not finished; run the same again"
        ) from None


def is_finished(path: Path, inputs: str) -> bool:
    """Whether a unit is done, from what it would be made from now."""
    try:
        return bool(files.read_object(path, DataError)["inputs"] == inputs)
    except (FileNotFoundError, DataError, KeyError):
        return False


def _units_of(
    source: Source, settings: SourceSettings, in_sections: bool, first: int
) -> list[Unit]:
    groups: list[list[Any]] = [[]]
    sizes = [0]
    for file in source.files:
        if sizes[-1] >= _UNIT_BYTES:
            groups.append([])
            sizes.append(0)
        groups[-1].append(file)
        sizes[-1] += _size(file.path)
    parts = [dataclasses.replace(source, files=tuple(group)) for group in groups]
    return [
        Unit(number, settings, part, in_sections, size)
        for number, (part, size) in enumerate(zip(parts, sizes, strict=True), first)
    ]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # reading it will say so
        return 0


def _probe(path: Path) -> list[Any]:
    """Size of a file and a hash of its two ends: cheap, and the same for a copy of the file."""
    try:
        with path.open("rb") as f:
            size = f.seek(0, 2)
            f.seek(0)
            ends = f.read(_PROBE)
            f.seek(max(len(ends), size - _PROBE))
            ends += f.read(_PROBE)
    except OSError as e:
        return [e.strerror]
    return [size, hashlib.sha256(ends).hexdigest()]
