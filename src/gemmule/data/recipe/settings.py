"""A recipe: the sources of a corpus, and the settings of each stage, as one TOML file."""

import re
from collections import Counter
from pathlib import Path
from typing import Literal

import pydantic

from gemmule.config import Config, nearest
from gemmule.data.recipe.decontaminate import DecontaminateSettings
from gemmule.data.recipe.heuristics.stage import HeuristicsSettings
from gemmule.data.recipe.language import LanguageSettings
from gemmule.data.recipe.normalize import NormalizeSettings
from gemmule.data.recipe.quality import QualitySettings
from gemmule.data.recipe.redact import RedactSettings
from gemmule.data.recipe.stage import StageSettings

# The order in which stages run, whatever the order of their tables. The last two are about all
# documents at once; those before them are functions of one document. Sources are weighed against
# each other by the run that reads them (data/mixture).
ORDER = (
    "normalize", "language", "heuristics", "quality", "redact", "decontaminate",
    "near_duplicates", "split",
)  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class SourceSettings(Config):
    """One source of text: a [[sources]] table.

    Attributes:
        name: name by which the manifest and stages refer to it; letters, digits, ".", "_", "-".
        path: a file, folder or glob pattern, as for `gemmule data`; "stdlib" is the embedded
            corpus, Python's standard library.
        field: field or column of records that holds the text.
        license: its license, for the card.
        license_field: field or column of records that holds a document's own license.
        sections: whether documents are cut into sections of about 64 kB; None: a single text file
            is.
    """

    name: str
    path: Path
    field: str | None = None
    license: str | None = None
    license_field: str | None = None
    sections: bool | None = None

    @pydantic.field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError("a source's name has letters, digits, '.', '_' and '-' only")
        return name


class NearDuplicateSettings(Config):
    """Settings of the stage "near_duplicates"; exact duplicates are dropped whatever they are.

    Attributes:
        action: "group" keeps near-duplicates in one split, "drop" keeps one of each cluster,
            "ignore" does not look for them.
    """

    action: Literal["group", "drop", "ignore"] = "group"


class SplitSettings(Config):
    """Settings of the stage "split".

    Attributes:
        validation: fraction of the documents for tuning.
        heldout: fraction of the documents for the final figures.
    """

    validation: float = pydantic.Field(default=0.05, gt=0, lt=1)
    heldout: float = pydantic.Field(default=0.05, gt=0, lt=1)

    @pydantic.model_validator(mode="after")
    def _check_sum(self) -> "SplitSettings":
        if self.validation + self.heldout >= 1:
            raise ValueError("validation and heldout together leave nothing to train on")
        return self


class Recipe(Config):
    """A whole recipe. A stage whose table is absent is not run; the last two have defaults.

    Attributes:
        name: name of the corpus on a model card; None: the names of its sources.
        sources: where the text comes from.
        normalize: Unicode form, line ends, invisible characters.
        language: languages to keep.
        heuristics: rules of Gopher, C4, FineWeb, and for source code.
        quality: documents that a classifier or the teacher thinks little of.
        redact: personal data.
        decontaminate: text of benchmarks.
        near_duplicates: what becomes of documents that are nearly the same.
        split: fractions held out.
    """

    name: str | None = None
    sources: tuple[SourceSettings, ...] = pydantic.Field(min_length=1)
    normalize: NormalizeSettings | None = None
    language: LanguageSettings | None = None
    heuristics: HeuristicsSettings | None = None
    quality: QualitySettings | None = None
    redact: RedactSettings | None = None
    decontaminate: DecontaminateSettings | None = None
    near_duplicates: NearDuplicateSettings = NearDuplicateSettings()
    split: SplitSettings = SplitSettings()

    @pydantic.field_validator("sources")
    @classmethod
    def _check_names(cls, sources: tuple[SourceSettings, ...]) -> tuple[SourceSettings, ...]:
        twice = [name for name, n in Counter(s.name for s in sources).items() if n > 1]
        if twice:
            raise ValueError(f"two sources are named {twice[0]!r}: names must differ")
        return sources

    @pydantic.model_validator(mode="after")
    def _check_sources(self) -> "Recipe":
        names = [source.name for source in self.sources]
        for name, table in self.stages():
            for source in getattr(table, "by_source", ()):
                if source not in names:
                    raise ValueError(f"{name}.by_source names {source!r}; {nearest(source, names)}")
        return self

    def without_secrets(self) -> "Recipe":
        """The recipe as it may be shown and passed on: with the digest of a key in its place."""
        if self.redact is None:
            return self
        return self.model_copy(update={"redact": self.redact.without_key()})

    def stages(self) -> list[tuple[str, StageSettings]]:
        """The stages that are functions of one document, in order, with their settings."""
        tables = [(name, getattr(self, name, None)) for name in ORDER]
        return [(name, table) for name, table in tables if isinstance(table, StageSettings)]
