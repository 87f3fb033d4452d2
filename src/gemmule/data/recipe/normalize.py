"""The stage "normalize": one spelling for what looks the same.

Unicode's composed form (NFC), line feeds as line ends, and no characters that cannot be seen:
control characters, byte order marks, zero-width spaces, soft hyphens and bidirectional overrides.
Joiners stay, because emoji and several scripts need them.
"""

import re
import unicodedata
from pathlib import Path
from typing import Literal

from gemmule.data.recipe.stage import Outcome, Stage, StageSettings, dropped, fingerprint
from gemmule.data.sources import Document

_VERSION = 1
# Tab and line feed stay. U+0085 and U+2028/9 are line ends and handled as such.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069"
    "\ufeff\ufff9-\ufffb]"
)
_LINE_ENDS = re.compile("\r\n?|\x85|\u2028|\u2029")
_TRAILING = re.compile("(?<![ \t\u00a0\u3000])[ \t\u00a0\u3000]++$", re.MULTILINE)
_BLANK_LINES = re.compile("\n{4,}")
_SURROGATE = re.compile("[\ud800-\udfff]")


class NormalizeSettings(StageSettings):
    """Settings of the stage.

    Attributes:
        unicode: normal form: NFC, NFKC (also full-width letters, ligatures), or "none".
        invisible: whether control characters and other invisible ones are removed.
        spaces: whether spaces at line ends, and blank lines from the third on, are removed.
    """

    unicode: Literal["NFC", "NFKC", "none"] = "NFC"
    invisible: bool = True
    spaces: bool = True

    def open(self, folder: Path) -> Stage:
        """The stage."""
        return Normalize(self)


class Normalize(Stage):
    """Normalizes the text; drops documents that are empty or are not Unicode text."""

    name = "normalize"

    def __init__(self, settings: NormalizeSettings) -> None:
        self._settings = settings
        self.fingerprint = fingerprint(self.name, _VERSION, settings)

    def apply(self, document: Document) -> Outcome:
        """The document with its text in normal form."""
        text = document.text
        if not text.isascii() and _SURROGATE.search(text):
            return dropped("holds bytes that are not UTF-8, or half a surrogate pair")
        # Nearly all text has little to correct, and to look for it costs less than a substitution.
        ascii_only = text.isascii()
        if "\r" in text or not ascii_only:
            text = _LINE_ENDS.sub("\n", text)
        if self._settings.invisible:
            text = _INVISIBLE.sub("", text)
        if self._settings.unicode != "none" and not ascii_only:
            # After what stood between a letter and its accent is gone.
            text = unicodedata.normalize(self._settings.unicode, text)
        if self._settings.spaces:
            if " \n" in text or "\t\n" in text or text[-1:].isspace() or not ascii_only:
                text = _TRAILING.sub("", text)
            if "\n\n\n\n" in text:
                text = _BLANK_LINES.sub("\n\n\n", text)
        if not text.strip():
            return dropped("empty")
        return Outcome(text, counts={} if text == document.text else {"changed": 1})
