"""The stage "language": keeps documents in some languages, told by py3langid.

py3langid is naive Bayes over byte n-grams, for 97 languages, with its model in the package. Why it
and not another: docs/design.md.
"""

import functools
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pydantic

from gemmule.data.recipe.stage import Outcome, Stage, StageSettings, dropped, fingerprint
from gemmule.data.sources import Document
from gemmule.errors import ConfigError, MissingExtraError

_VERSION = 1
_READ = 1000  # characters from the middle of a document: enough, and its cost does not grow


class LanguageSettings(StageSettings):
    """Settings of the stage.

    Attributes:
        keep: languages to keep, by their ISO 639-1 codes.
        min_confidence: least probability of the language, from 0 to 1.
        by_source: languages of some sources, by their name, instead of `keep`; an empty list keeps
            every document of a source, as for source code.
    """

    keep: tuple[str, ...] = pydantic.Field(default=("en",), min_length=1)
    min_confidence: float = pydantic.Field(default=0.5, ge=0, le=1)
    by_source: Mapping[str, tuple[str, ...]] = pydantic.Field(default_factory=dict)

    def fit(self, folder: Path) -> None:
        """Checks that the languages are known before anything is read."""
        known = set(_identifier().labels)
        for code in {*self.keep, *(code for codes in self.by_source.values() for code in codes)}:
            if code not in known:
                raise ConfigError(
                    f"language {code!r} is not known: use ISO 639-1 codes, of which there are "
                    f"{', '.join(sorted(known))}"
                )

    def open(self, folder: Path) -> Stage:
        """The stage."""
        return Language(self)


class Language(Stage):
    """Drops documents in other languages, and counts all by language."""

    name = "language"

    def __init__(self, settings: LanguageSettings) -> None:
        self._settings = settings
        self._identifier = _identifier()
        package = metadata.version("py3langid").encode()
        self.fingerprint = fingerprint(self.name, _VERSION, settings, package)

    def apply(self, document: Document) -> Outcome:
        """The document, if it is in one of the languages to keep."""
        keep = self._settings.by_source.get(document.source, self._settings.keep)
        if not keep:
            return Outcome(document.text)
        language, confidence = self._identifier.classify(middle(document.text))
        if confidence < self._settings.min_confidence:
            return dropped("language is uncertain", {"uncertain": 1})
        if language not in keep:
            return dropped(f"language: {language}", {language: 1})
        return Outcome(document.text, counts={language: 1})


def middle(text: str) -> str:
    """The part of a text that is looked at: headers and footers are at its ends."""
    start = max(0, (len(text) - _READ) // 2)
    return text[start : start + _READ]


@functools.cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise MissingExtraError("py3langid", "language", "telling languages apart") from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
