"""The stage "quality": documents that a classifier or the teacher thinks little of are dropped."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydantic

from gemmule import files
from gemmule.data.quality import classifier as classifiers
from gemmule.data.quality import teacher_bits
from gemmule.data.quality.classifier import Classifier
from gemmule.data.quality.teacher_bits import TeacherBits
from gemmule.data.recipe.stage import Outcome, Stage, StageSettings, dropped, fingerprint
from gemmule.data.sources import Document
from gemmule.errors import DataError

_VERSION = 1


class QualitySettings(StageSettings):
    """Settings of the stage: a classifier, a teacher's scores, or both.

    Attributes:
        classifier: folder that `gemmule quality fit` wrote.
        least: documents of a lower probability of being good are dropped.
        bits: folder that `gemmule quality score` wrote for the documents of this recipe.
        fewest_bits: documents of fewer bits per byte are dropped: boilerplate.
        most_bits: documents of more bits per byte are dropped: noise.
    """

    classifier: Path | None = None
    least: float = pydantic.Field(default=0.5, ge=0, le=1)
    bits: Path | None = None
    fewest_bits: float | None = pydantic.Field(default=None, ge=0)
    most_bits: float | None = pydantic.Field(default=None, gt=0)

    @pydantic.model_validator(mode="after")
    def _check(self) -> "QualitySettings":
        limits = (self.fewest_bits, self.most_bits)
        if self.classifier is None and self.bits is None:
            raise ValueError("[quality] names neither a classifier nor a teacher's bits")
        if (self.bits is None) != (limits == (None, None)):
            raise ValueError("bits needs fewest_bits or most_bits, and those need bits")
        if None not in limits and not self.fewest_bits < self.most_bits:  # type: ignore[operator]
            raise ValueError("fewest_bits must be below most_bits")
        return self

    def named_files(self) -> tuple[Path, ...]:
        """What classifier and scores consist of."""
        return tuple(folder / name for folder, names in self._artifacts() for name in names)

    def fit(self, folder: Path) -> None:
        """Copies the artifacts, so that they cannot change while the recipe runs."""
        if self.classifier is not None:
            Classifier.open(self.classifier)
        if self.bits is not None:
            TeacherBits.open(self.bits)
        for source, names in self._artifacts():
            _copy(source, folder, names)

    def _artifacts(self) -> list[tuple[Path, tuple[str, ...]]]:
        """Folders that are named, and the files in them."""
        named = (
            (self.classifier, (classifiers.WEIGHTS, classifiers.ABOUT)),
            (self.bits, (teacher_bits.SCORES, teacher_bits.ABOUT)),
        )
        return [(folder, names) for folder, names in named if folder is not None]

    def open(self, folder: Path) -> Stage:
        """The stage."""
        classifier = None if self.classifier is None else Classifier.open(folder)
        bits = None if self.bits is None else TeacherBits.open(folder)
        return Quality(self, classifier, bits)


def _copy(source: Path, folder: Path, names: Sequence[str]) -> None:
    if not (folder / names[-1]).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            with files.atomic_path(folder / name) as copy:
                shutil.copyfile(files.expand(source) / name, copy)


class Quality(Stage):
    """Drops documents by their probability of being good and by the teacher's bits per byte."""

    name = "quality"

    def __init__(
        self, settings: QualitySettings, classifier: Classifier | None, bits: TeacherBits | None
    ) -> None:
        self._settings, self._classifier, self._bits = settings, classifier, bits
        limits = settings.model_copy(update={"classifier": None, "bits": None})
        artifacts = [a.fingerprint.encode() for a in (classifier, bits) if a is not None]
        self.fingerprint = fingerprint(self.name, _VERSION, limits, *artifacts)

    def about(self) -> dict[str, Any]:
        """Where the scores are from."""
        about: dict[str, Any] = {}
        if self._classifier is not None:
            told = self._classifier.about
            about["classifier"] = {
                "fingerprint": self._classifier.fingerprint,
                **{key: told[key] for key in ("examples", "auc") if key in told},
            }
        if self._bits is not None:
            told = self._bits.about
            about["bits"] = {
                "fingerprint": self._bits.fingerprint,
                **{key: told[key] for key in ("teacher", "tokens") if key in told},
            }
        return about

    def apply(self, document: Document) -> Outcome:
        """The document, or why it is dropped."""
        return self.apply_batch([document])[0]

    def apply_batch(self, documents: Sequence[Document]) -> list[Outcome]:
        """All documents' words are hashed at once."""
        if self._classifier is None:
            return [self._by_bits(document, {}) for document in documents]
        texts = [document.text for document in documents]
        outcomes = []
        for document, p in zip(documents, self._classifier.probabilities(texts), strict=True):
            tenth = min(9, int(10 * p))
            counts = {f"probability {tenth / 10:.1f} to {(tenth + 1) / 10:.1f}": 1}
            if p < self._settings.least:
                outcomes.append(dropped("unlike the good examples", counts))
            else:
                outcomes.append(self._by_bits(document, counts))
        return outcomes

    def _by_bits(self, document: Document, counts: dict[str, int]) -> Outcome:
        if self._bits is None:
            return Outcome(document.text, counts=counts)
        bits = self._bits.of(document.text)
        if bits is None:
            raise DataError(
                f"the teacher's bits of {document.key} are not known: the text is not what was "
                "scored. Run gemmule quality score with this recipe again"
            )
        fewest, most = self._settings.fewest_bits, self._settings.most_bits
        if fewest is not None and bits < fewest:
            return dropped("the teacher knows it by heart", counts)
        if most is not None and bits > most:
            return dropped("the teacher makes nothing of it", counts)
        return Outcome(document.text, counts=counts)
