"""The stage "redact": personal data is removed, replaced or counted, by the severity of a leak."""

import secrets
from importlib import metadata
from pathlib import Path

import pydantic

from gemmule import files
from gemmule.data.personal_data import check_installed
from gemmule.data.recipe.stage import Outcome, Stage, StageSettings, dropped, fingerprint
from gemmule.data.redaction import ACTIONS, Action, redact
from gemmule.data.sources import Document

KEY = "key"  # file of the artifact
_VERSION = 1


class RedactSettings(StageSettings):
    """Settings of the stage: what is done with the data of each severity, see personal_data.py.

    Attributes:
        high: "remove" takes the data out, "replace" puts a placeholder there, which is the same
            wherever the same data is, "count" leaves it.
        medium: the same.
        low: the same.
        key: key of the placeholders. Who knows it can find out by trying what a placeholder stands
            for. None: a random one is made and kept with the recipe's other artifacts.
    """

    high: Action = ACTIONS["high"]
    medium: Action = ACTIONS["medium"]
    low: Action = ACTIONS["low"]
    key: str | None = pydantic.Field(default=None, min_length=8)

    def fit(self, folder: Path) -> None:
        """Makes a random key, if the recipe names none."""
        check_installed()
        if self.key is None and not (folder / KEY).is_file():
            folder.mkdir(parents=True, exist_ok=True)
            files.write_text(folder / KEY, secrets.token_hex(32))

    def open(self, folder: Path) -> Stage:
        """The stage."""
        check_installed()
        key = self.key if self.key is not None else files.read_text(folder / KEY)
        return Redact(self, key.encode())


class Redact(Stage):
    """Redacts the text; a document without anything else is dropped."""

    name = "redact"

    def __init__(self, settings: RedactSettings, key: bytes) -> None:
        self._key = key
        self._actions = {name: getattr(settings, name) for name in ACTIONS}
        checks = metadata.version("python-stdnum").encode()
        self.fingerprint = fingerprint(self.name, _VERSION, settings, key, checks)

    def apply(self, document: Document) -> Outcome:
        """The document without its personal data."""
        redacted = redact(document.text, self._key, self._actions)
        if not redacted.text.strip():
            return dropped("nothing but personal data", redacted.counts)
        return Outcome(redacted.text, counts=redacted.counts)
