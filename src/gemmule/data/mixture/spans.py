"""A split that consists of parts of others: one source of a recipe's folder, or several folders."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from gemmule.data.dataset import Split
from gemmule.errors import DataError


@dataclasses.dataclass(frozen=True)
class Span:
    """Documents of a split that follow one another.

    Attributes:
        split: the split.
        documents: their numbers in it.
        start: first token.
        stop: the token after the last one.
    """

    split: Split
    documents: range
    start: int
    stop: int

    @classmethod
    def whole(cls, split: Split) -> "Span":
        """All documents of a split."""
        return cls(split, range(split.document_count), 0, split.token_count)

    @classmethod
    def of_source(cls, split: Split, source: str) -> "Span":
        """The documents of one source of a recipe; empty if the split has none.

        Raises:
            DataError: when they do not follow one another.
        """
        mine = np.fromiter(
            (name == source for name in split.document_provenance("source")),
            np.bool_,
            split.document_count,
        )
        numbers = np.flatnonzero(mine)
        if not len(numbers):
            return cls(split, range(0), 0, 0)
        first, last = int(numbers[0]), int(numbers[-1]) + 1
        if last - first != len(numbers):
            raise DataError(
                f"the documents of source {source!r} are not next to each other in {split.name}: "
                "make a data folder of each source, and name the folders"
            )
        starts = np.append(split.document_starts(), split.token_count)
        return cls(split, range(first, last), int(starts[first]), int(starts[last]))

    def part_of(self, values: Iterator[str | None]) -> Iterator[str | None]:
        """Of a value for each of the split's documents, those of its own."""
        return itertools.islice(values, self.documents.start, self.documents.stop)


class SpannedSplit(Split):
    """The documents of several spans, one span after the other.

    Args:
        name: name of the split.
        spans: parts of splits that were made with the same tokenizer.
    """

    def __init__(self, name: str, spans: Sequence[Span]) -> None:
        self.name = name
        self.whole_documents = False
        self._spans = list(spans)
        self._bounds = np.cumsum([0] + [span.stop - span.start for span in spans])
        self._first_documents = np.cumsum([0] + [len(span.documents) for span in spans])
        self.token_count = int(self._bounds[-1])
        self.document_count = int(self._first_documents[-1])
        # Of a part of a split, its share by tokens: bytes are counted for whole splits.
        self.byte_count = sum(
            round(s.split.byte_count * (s.stop - s.start) / max(1, s.split.token_count))
            for s in spans
        )
        self.bos_id, self.pad_id = spans[0].split.bos_id, spans[0].split.pad_id
        self.has_mask = any(span.split.has_mask for span in spans)

    def read(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Tokens start to stop (exclusive, clipped to the split), shape [stop - start]."""
        parts = [split.read(a, b) for split, a, b in self._within(start, stop)]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def read_mask(self, start: int, stop: int) -> npt.NDArray[np.bool_]:
        """Loss mask of the tokens that `read` returns."""
        parts = [split.read_mask(a, b) for split, a, b in self._within(start, stop)]
        return np.concatenate(parts) if parts else np.empty(0, np.bool_)

    def document(self, index: int) -> npt.NDArray[np.int64]:
        """The tokens of one document, <bos> and <eos> included."""
        if not 0 <= index < self.document_count:
            raise DataError(f"no document {index}: {self.name} has {self.document_count}")
        number = int(np.searchsorted(self._first_documents, index, side="right")) - 1
        span = self._spans[number]
        return span.split.document(span.documents[index - int(self._first_documents[number])])

    def document_starts(self) -> npt.NDArray[np.int64]:
        """The index in the split of each document's <bos>, shape [document_count]."""
        parts = [
            span.split.document_starts()[span.documents.start : span.documents.stop]
            + (int(bound) - span.start)
            for span, bound in zip(self._spans, self._bounds, strict=False)
            if span.documents
        ]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def document_names(self) -> Iterator[str | None]:
        """Origin of each document, in order."""
        for span in self._spans:
            yield from span.part_of(span.split.document_names())

    def document_provenance(self, kind: str) -> Iterator[str | None]:
        """The "license" or "source" of each document, in order; None where it is not recorded."""
        for span in self._spans:
            yield from span.part_of(span.split.document_provenance(kind))

    def _within(self, start: int, stop: int) -> Iterator[tuple[Split, int, int]]:
        """The spans' tokens from start to stop: split, first token and the one after the last."""
        for span, bound in zip(self._spans, self._bounds.tolist(), strict=False):
            first = max(start - bound, 0)
            last = min(stop - bound, span.stop - span.start)
            if first < last:
                yield span.split, span.start + first, span.start + last
