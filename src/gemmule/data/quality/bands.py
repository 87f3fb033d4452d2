"""What a limit on a score would drop: documents by bands of the score, with examples of each."""

import dataclasses
import hashlib
import heapq
import itertools
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gemmule.console import Progress
from gemmule.data.quality.classifier import Classifier
from gemmule.data.read_log import printable
from gemmule.data.redaction import hidden
from gemmule.data.sources import Document
from gemmule.errors import DataError

EXAMPLES = 3  # of each band
_EXCERPT = 200  # characters
_AT_ONCE = 256
_LOOKED_AT = 4000  # characters in which personal data is looked for

PROBABILITY_EDGES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
BITS_EDGES = (*(n / 4 for n in range(1, 17)), 5.0, 6.0, 7.0, 8.0)  # bits per byte


@dataclasses.dataclass
class _Band:
    documents: int = 0
    size: int = 0  # bytes
    # Those whose digests are largest: a random sample that does not depend on the order.
    sample: list[tuple[bytes, float, str, str]] = dataclasses.field(default_factory=list)


class Bands:
    """Counts documents by score.

    Args:
        edges: limits between bands, ascending. A document on an edge is above it.
    """

    def __init__(self, edges: Sequence[float]) -> None:
        self._edges = edges
        self._bands = [_Band() for _ in range(len(edges) + 1)]

    def add(self, score: float, document: Document, label: str = "") -> None:
        """Counts a document.

        Args:
            score: its score.
            document: the document.
            label: what else an example is to be told by, such as its class.
        """
        band = self._bands[bisect_right(self._edges, score)]
        band.documents += 1
        data = document.text.encode(errors="surrogatepass")
        band.size += len(data)
        digest = hashlib.sha256(data).digest()
        if len(band.sample) < EXAMPLES or digest > band.sample[0][0]:
            entry = (digest, score, f"{document.key} {label}".strip(), excerpt(document.text))
            if len(band.sample) < EXAMPLES:
                heapq.heappush(band.sample, entry)
            else:
                heapq.heapreplace(band.sample, entry)

    def json(self) -> list[dict[str, Any]]:
        """The bands from below, with the fractions that a limit at either side would drop."""
        total = max(1, sum(band.documents for band in self._bands))
        size = max(1, sum(band.size for band in self._bands))
        rows, below, bytes_below = [], 0, 0
        for n, band in enumerate(self._bands):
            rows.append(
                {
                    "from": self._edges[n - 1] if n else None,
                    "to": self._edges[n] if n < len(self._edges) else None,
                    "documents": band.documents,
                    "bytes": band.size,
                    "below": below / total,
                    "bytes_below": bytes_below / size,
                    "above": 1 - (below + band.documents) / total,
                    "bytes_above": 1 - (bytes_below + band.size) / size,
                    "examples": [
                        {"document": key, "score": score, "text": text}
                        for _, score, key, text in sorted(band.sample, key=lambda e: e[1])
                    ],
                }
            )
            below += band.documents
            bytes_below += band.size
        return rows


def classified(
    folder: Path, documents: Iterable[Document], progress: Progress | None = None
) -> list[dict[str, Any]]:
    """What each limit would drop of a corpus.

    Args:
        folder: folder of the classifier.
        documents: the corpus.
        progress: called as progress(done, 0, "documents").

    Raises:
        DataError: when there is no classifier, or no document.
    """
    classifier = Classifier.open(folder)
    bands = Bands(PROBABILITY_EDGES)
    stream = iter(documents)
    done = 0
    while group := list(itertools.islice(stream, _AT_ONCE)):
        scores = classifier.probabilities([document.text for document in group])
        for score, document in zip(scores, group, strict=True):
            bands.add(score, document)
        done += len(group)
        if progress:
            progress(done, 0, "documents")
    if not done:
        raise DataError("there is no document to classify")
    return bands.json()


def table_of(bands: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a table: a histogram, and what is below and above each band."""
    most = max(1, *(band["documents"] for band in bands))
    rows = [
        [
            f"{'' if band['from'] is None else format(band['from'], 'g')} … "
            f"{'' if band['to'] is None else format(band['to'], 'g')}",
            f"{band['documents']:,}",
            "█" * round(20 * band["documents"] / most),
            f"{band['below']:.1%}",
            f"{band['above']:.1%}",
        ]
        for band in bands
    ]
    return ["score", "documents", "", "below", "above"], rows


def example_lines(bands: Sequence[dict[str, Any]]) -> list[str]:
    """The examples, one a line."""
    return [
        f"{example['score']:.3f}  {printable(example['document'])}: {example['text']}"
        for band in bands
        for example in band["examples"]
    ]


def excerpt(text: str) -> str:
    """The beginning of a text on one line, without personal data."""
    shown = " ".join(hidden(text[:_LOOKED_AT]).split())
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in shown)
    return shown if len(shown) <= _EXCERPT else shown[: _EXCERPT - 1] + "…"
