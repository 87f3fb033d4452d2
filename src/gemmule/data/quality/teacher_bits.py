"""What a teacher makes of each document of a corpus: bits per byte, by the document's digest.

Text that the teacher predicts almost completely is boilerplate, and text that surprises it all the
way is noise, or in a language that it does not know.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmule import files
from gemmule.data.corpus import digest_of
from gemmule.data.quality import artifact
from gemmule.errors import DataError

SCORES, ABOUT = "bits.safetensors", "bits.json"
FORMAT = 1


def digest(text: str) -> int:
    """The first 8 bytes of the SHA-256 of a document's text."""
    return int.from_bytes(digest_of(text)[:8])


class TeacherBits:
    """The scores of a corpus.

    Attributes:
        about: the teacher, and how documents were scored.

    Args:
        digests: digests of the documents, ascending, shape [D].
        bits: bits per byte of each, shape [D].
        about: see above.
    """

    def __init__(
        self,
        digests: npt.NDArray[np.uint64],
        bits: npt.NDArray[np.float32],
        about: Mapping[str, Any],
    ) -> None:
        self.about = about
        self._digests, self._bits = digests, bits

    def __len__(self) -> int:
        """The number of documents."""
        return len(self._digests)

    @property
    def fingerprint(self) -> str:
        """SHA-256, hexadecimal, of documents and scores."""
        return hashlib.sha256(self._digests.tobytes() + self._bits.tobytes()).hexdigest()

    def of(self, text: str) -> float | None:
        """The score of a document; None: it was not scored."""
        wanted = np.uint64(digest(text))
        place = int(np.searchsorted(self._digests, wanted))
        if place == len(self._digests) or self._digests[place] != wanted:
            return None
        return float(self._bits[place])

    @classmethod
    def made(cls, scores: Mapping[int, float], about: Mapping[str, Any]) -> "TeacherBits":
        """From the scores by digest."""
        digests = np.array(sorted(scores), np.uint64)
        bits = np.array([scores[d] for d in digests.tolist()], np.float32)
        return cls(digests, bits, about)

    def save(self, folder: Path) -> None:
        """Writes them to a folder, which may exist."""
        about = {"format": FORMAT, **self.about, "fingerprint": self.fingerprint}
        arrays: dict[str, npt.NDArray[Any]] = {"digests": self._digests, "bits": self._bits}
        artifact.save(folder, (SCORES, ABOUT), arrays, about)

    @classmethod
    def open(cls, folder: Path) -> "TeacherBits":
        """Reads what `save` wrote.

        Raises:
            DataError: when there is none, or it is damaged.
        """
        folder = files.expand(folder)
        (digests, bits), about = artifact.load(
            folder, (SCORES, ABOUT), ("digests", "bits"), "scores",
            "make them with gemmule quality score",
        )  # fmt: skip
        scores = cls(digests, bits, about)
        if scores.fingerprint != about.get("fingerprint"):
            raise DataError(f"{folder / SCORES} is not what {ABOUT} describes: score again")
        return scores
