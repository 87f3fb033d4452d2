"""The stage "redact": personal data is removed, replaced or counted, by the severity of a leak."""

import hashlib
import secrets
from importlib import metadata
from pathlib import Path

import pydantic

from gemmule import files
from gemmule.data.personal_data import check_installed
from gemmule.data.recipe.stage import Outcome, Stage, StageSettings, dropped, fingerprint
from gemmule.data.redaction import ACTIONS, Action, redact
from gemmule.data.sources import Document
from gemmule.errors import ConfigError

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
        key_sha256: SHA-256 of the key, hexadecimal: what a data folder's recipe.toml has in its
            place. The key is with the artifacts.
    """

    high: Action = ACTIONS["high"]
    medium: Action = ACTIONS["medium"]
    low: Action = ACTIONS["low"]
    key: str | None = pydantic.Field(default=None, min_length=8)
    key_sha256: str | None = None

    @pydantic.model_validator(mode="after")
    def _check(self) -> "RedactSettings":
        if self.key is not None and self.key_sha256 is not None:
            raise ValueError("key and key_sha256 are both given: give the key alone")
        return self

    def without_key(self) -> "RedactSettings":
        """The same with the key's digest in its place, to be shown and passed on."""
        if self.key is None:
            return self
        return self.model_copy(update={"key": None, "key_sha256": _digest(self.key)})

    def fit(self, folder: Path) -> None:
        """Keeps the key, or a random one if there is none, in a file that only its owner can read.

        Raises:
            ConfigError: when the recipe has the digest of a key that is not there.
        """
        check_installed()
        known = _read(folder) if (folder / KEY).is_file() else None
        if self.key_sha256 is not None:
            if known is None or _digest(known) != self.key_sha256:
                raise ConfigError(
                    "[redact] has key_sha256, the digest of a key, and the key is not there: "
                    "write key = instead of it, or neither for a random key"
                )
            return
        wanted = self.key or known or secrets.token_hex(32)
        if wanted != known:
            with files.atomic_path(folder / KEY) as tmp:
                tmp.touch(mode=0o600)
                tmp.write_bytes(wanted.encode())

    def open(self, folder: Path) -> Stage:
        """The stage."""
        check_installed()
        key = self.key if self.key is not None else _read(folder)
        return Redact(self, key.encode())


def _read(folder: Path) -> str:
    return (folder / KEY).read_bytes().decode()


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


class Redact(Stage):
    """Redacts the text; a document without anything else is dropped."""

    name = "redact"

    def __init__(self, settings: RedactSettings, key: bytes) -> None:
        self._key = key
        self._actions = {name: getattr(settings, name) for name in ACTIONS}
        checks = metadata.version("python-stdnum").encode()
        named = settings.model_copy(update={"key": None, "key_sha256": None})
        self.fingerprint = fingerprint(self.name, _VERSION, named, key, checks)

    def apply(self, document: Document) -> Outcome:
        """The document without its personal data."""
        redacted = redact(document.text, self._key, self._actions)
        if not redacted.text.strip():
            return dropped("nothing but personal data", redacted.counts)
        return Outcome(redacted.text, counts=redacted.counts)
