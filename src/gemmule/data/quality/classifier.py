"""The classifier: the probability that a document is one of the good ones.

It is what fastText is with two classes: a document's score is a linear function of which words and
pairs of words are in it. On disk it is a safetensors file and a JSON file, without any code.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmule import files
from gemmule.data.quality import artifact
from gemmule.data.quality.features import features
from gemmule.data.quality.logistic import sigmoid
from gemmule.errors import DataError

WEIGHTS, ABOUT = "classifier.safetensors", "classifier.json"
FORMAT = 1


class Classifier:
    """A fitted classifier.

    Attributes:
        bits: there are 2^bits buckets.
        about: what it was fitted to, and how well it tells held-out examples apart.

    Args:
        weights: weight of each bucket and the intercept, shape [2^bits + 1].
        about: see above.
    """

    def __init__(self, weights: npt.NDArray[np.float32], about: Mapping[str, Any]) -> None:
        self.bits = (len(weights) - 1).bit_length() - 1
        self.about = about
        self._stored = weights
        self._weights = weights[:-1].astype(np.float64)
        self._intercept = float(weights[-1])

    @property
    def fingerprint(self) -> str:
        """SHA-256, hexadecimal, of the weights."""
        return hashlib.sha256(self._stored.tobytes()).hexdigest()

    def probabilities(self, texts: Sequence[str]) -> list[float]:
        """The probability of each text; it depends on that text alone."""
        sums_D = features(texts, self.bits).sums(self._weights)
        return [float(p) for p in sigmoid(sums_D + self._intercept)]

    def save(self, folder: Path) -> None:
        """Writes it to a folder, which may exist."""
        about = {"format": FORMAT, **self.about, "fingerprint": self.fingerprint}
        artifact.save(folder, (WEIGHTS, ABOUT), {"weights": self._stored}, about)

    @classmethod
    def open(cls, folder: Path) -> "Classifier":
        """Reads what `save` wrote.

        Raises:
            DataError: when there is none, or it is damaged.
        """
        folder = files.expand(folder)
        (weights,), about = artifact.load(
            folder, (WEIGHTS, ABOUT), ("weights",), "classifier",
            "make one with gemmule quality fit",
        )  # fmt: skip
        classifier = cls(weights, {k: v for k, v in about.items() if k not in _OWN})
        if weights.dtype != np.float32 or len(weights) != 2**classifier.bits + 1:
            raise DataError(f"{folder / WEIGHTS} is not a classifier's: fit it again")
        if classifier.fingerprint != about.get("fingerprint"):
            raise DataError(f"{folder / WEIGHTS} is not what {ABOUT} describes: fit it again")
        return classifier


_OWN = ("format", "fingerprint")
