"""What a stage of a recipe is: a pure function of a document.

A stage keeps a document, changes its text, or drops it for a reason that is counted. What it
decides depends only on the document, on the stage's settings, and on an artifact (a model, an
index) that is made before the first document is read. So any process can apply it to any document
in any order, and the result is the same.
"""

import abc
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from gemmule.config import Config
from gemmule.data.sources import Document


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What a stage makes of a document.

    Attributes:
        text: the text to go on with; None: the document is dropped.
        reason: why it was dropped, in words that are the same for all such documents.
        counts: what the stage found in it, such as its language or addresses that it replaced.
            Sums over all documents of a source are in the manifest.
    """

    text: str | None
    reason: str | None = None
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)


def dropped(reason: str, counts: Mapping[str, int] | None = None) -> Outcome:
    """The outcome of a document that is dropped."""
    return Outcome(None, reason, counts or {})


class Stage(abc.ABC):
    """A stage with its artifact, ready to be applied.

    Attributes:
        name: name of the stage, one of `ORDER`.
        fingerprint: SHA-256 of whatever its outcomes depend on, from `fingerprint`.
    """

    name: ClassVar[str]
    fingerprint: str

    def about(self) -> dict[str, Any]:
        """What the manifest and the card say of it besides its settings, as JSON values."""
        return {}

    @abc.abstractmethod
    def apply(self, document: Document) -> Outcome:
        """What becomes of one document."""

    def apply_batch(self, documents: Sequence[Document]) -> list[Outcome]:
        """What becomes of each document; the same as one by one, for stages that are faster so."""
        return [self.apply(document) for document in documents]


class StageSettings(Config, abc.ABC):
    """Settings of a stage: the table of its name in a recipe.

    Only settings cross to other processes. The process that starts a recipe calls `fit` once, and
    each process that applies the stage calls `open`.
    """

    def named_files(self) -> tuple[Path, ...]:
        """Files outside the recipe that the artifact is made from."""
        return ()

    def fit(self, folder: Path) -> None:
        """Makes the stage's artifact in a folder of its own, unless it is there already.

        Args:
            folder: where the artifact belongs; it is kept while the recipe runs.

        Raises:
            DataError: when what the artifact is made from cannot be used.
        """

    @abc.abstractmethod
    def open(self, folder: Path) -> Stage:
        """The stage, with the artifact that `fit` made in `folder`.

        Raises:
            MissingExtraError: when the stage needs a package that is not installed.
        """


def fingerprint(name: str, version: int, settings: Config, *artifacts: bytes) -> str:
    """SHA-256, hexadecimal, of what a stage's outcomes depend on.

    Args:
        name: the stage.
        version: number that is raised when the stage's code gives other outcomes.
        settings: its settings.
        artifacts: content, or digests, of what was fitted.
    """
    about = {"stage": name, "version": version, "settings": settings.model_dump(mode="json")}
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for artifact in artifacts:
        digest.update(hashlib.sha256(artifact).digest())
    return digest.hexdigest()
