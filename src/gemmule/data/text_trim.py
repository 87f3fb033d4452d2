"""Trims a tokenizer to a text, and prepares the text with it.

The text is read twice: to count its tokens, and to compare how it is segmented before and after.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gemmule.console import Progress
from gemmule.data.corpus import NearDuplicates
from gemmule.data.dataset import Dataset
from gemmule.data.prepare import prepare
from gemmule.data.read_log import ReadLog
from gemmule.data.sources import Source, find_source
from gemmule.errors import TokenizerError
from gemmule.model.tokenizer import Tokenizer
from gemmule.model.vocabulary_trim import Trimmed, trim_tokenizer

Encode = Callable[[str], list[int]]
Stage = Callable[[str], None]
_ROW = 256  # tokens of a row of the sample
SAMPLE = 16_384  # tokens of the sample, at most


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much of a vocabulary is kept.

    Attributes:
        size: number of tokens to keep; None: as many as `coverage` takes.
        coverage: fraction of the text's tokens whose pieces have to be kept.
    """

    size: int | None = None
    coverage: float = 1.0


WHOLE = Extent()


class Kept(Protocol):
    """What trimming gives: the former ids that are kept, and the share of the text's tokens."""

    @property
    def kept_K(self) -> npt.NDArray[np.int64]:
        """The former id of each token, ascending."""
        ...

    @property
    def coverage(self) -> float:
        """Fraction of the text's tokens that are kept."""
        ...


@dataclass(frozen=True)
class TextTrim:
    """A tokenizer that was trimmed to a text.

    Attributes:
        trimmed: the trimmed vocabulary.
        segmentation: documents, equal_documents, tokens_before and tokens_after.
        counts: what was counted in the text.
    """

    trimmed: Trimmed
    segmentation: dict[str, int]
    counts: "TextCounts"


def trim_to_text(
    tokenizer: Tokenizer,
    text: Path | None,
    extent: Extent = WHOLE,
    *,
    field: str | None = None,
    subset: str | None = None,
    progress: Progress = lambda *_: None,
    stage: Stage = lambda _: None,
) -> TextTrim:
    """Trims a tokenizer to the tokens that a text uses.

    Args:
        tokenizer: the full tokenizer.
        text: file, folder or glob of the text that decides what is kept; None: the embedded corpus.
        extent: how much is kept.
        field: field or column of records that holds the text; None: "text".
        subset: configuration of a hub's data set, or "CONFIGURATION/SPLIT".
        progress: called with documents read so far, their number or 0, and the unit.
        stage: called with the name of each stage.

    Raises:
        ConfigError: when size or coverage is impossible, or the text cannot be used for it.
        DataError: when the text cannot be read.
        TokenizerError: when the tokenizer cannot be trimmed.
    """
    corpus = find_source(text, field, subset=subset)
    stage(f"counting the tokens of {corpus.name}")
    counted = TextCounts(tokenizer.vocab_size, corpus.name, tokenizer.bos_id)
    for document in documents_of(corpus, progress):
        counted.add(tokenizer.encode(document))
    trimmed = trim_tokenizer(
        tokenizer, counted.counts_V, size=extent.size, coverage=extent.coverage
    )
    stage("comparing the segmentation")
    segmentation = compare(
        corpus, tokenizer.encode, trimmed.tokenizer.encode, trimmed, progress=progress
    )
    return TextTrim(trimmed, segmentation, counted)


def prepare_trimmed(
    tokenizer: Tokenizer,
    text: Path | None,
    out: Path,
    extent: Extent = WHOLE,
    *,
    field: str | None = None,
    name: str | None = None,
    licence: str | None = None,
    license_field: str | None = None,
    subset: str | None = None,
    near_duplicates: NearDuplicates = "group",
    progress: Progress = lambda *_: None,
    stage: Stage = lambda _: None,
) -> tuple[Dataset, TextTrim]:
    """Trims a tokenizer to a text and prepares the text with it; resumable as `prepare` is.

    Arguments and errors are those of trim_to_text and of prepare.
    """
    result = trim_to_text(
        tokenizer, text, extent, field=field, subset=subset, progress=progress, stage=stage
    )
    dataset = prepare(
        text, result.trimmed.tokenizer, out, field=field, name=name, licence=licence,
        license_field=license_field, subset=subset, near_duplicates=near_duplicates,
        progress=progress,
    )  # fmt: skip
    return dataset, result


class TextCounts:
    """How often a text has each token, and rows of it that are spread evenly, by chance.

    Args:
        vocab_size: number of tokens, V.
        text: name of the text.
        bos_id: id that begins each row; None: no rows are kept.

    Attributes:
        counts_V: number of times that the text has each token.
        text: name of the text.
    """

    def __init__(self, vocab_size: int, text: str, bos_id: int | None = None) -> None:
        self.text, self._bos_id = text, bos_id
        self.counts_V = np.zeros(vocab_size, np.int64)
        self._rows: list[list[int]] = []
        self._seen = 0
        self._random = np.random.default_rng(0)

    def add(self, ids: Sequence[int]) -> None:
        """Counts the tokens of a document."""
        self.counts_V += np.bincount(np.array(ids, np.int64), minlength=len(self.counts_V))
        if self._bos_id is not None:
            for at in range(0, len(ids) - _ROW + 2, _ROW - 1):
                self._keep([self._bos_id, *ids[at : at + _ROW - 1]])

    def _keep(self, row: list[int]) -> None:
        """Reservoir sampling: each row seen so far is kept with equal probability."""
        self._seen += 1
        if len(self._rows) < SAMPLE // _ROW:
            self._rows.append(row)
        elif (at := int(self._random.integers(self._seen))) < len(self._rows):
            self._rows[at] = row

    def sample(self, tokens: int, context: int) -> list[list[int]]:
        """Rows of at most `context` tokens, about `tokens` in all; none for a short text."""
        length = min(_ROW, context)
        return [row[:length] for row in self._rows[: min(tokens, SAMPLE) // _ROW]]


def documents_of(corpus: Source, progress: Progress) -> Iterator[str]:
    """The text of each document."""
    for count, document in enumerate(corpus.documents(ReadLog()), 1):
        yield document.text
        progress(count, 0, "documents")


def compare(
    corpus: Source, before: Encode, after: Encode, trimmed: Kept, *, progress: Progress
) -> dict[str, int]:
    """Encodes the text with both vocabularies.

    Returns:
        documents, equal_documents, tokens_before and tokens_after.

    Raises:
        TokenizerError: when all of its pieces were kept and it is segmented in another way, which
            the merges of a BPE rule out.
    """
    documents = equal = tokens_before = tokens_after = 0
    for document in documents_of(corpus, progress):
        ids, new = before(document), after(document)
        same = len(ids) == len(new) and bool(np.array_equal(trimmed.kept_K[new], ids))
        if not same and trimmed.coverage == 1.0:
            raise TokenizerError(
                f"document {documents + 1} of {corpus.location} is segmented in another way by the "
                "trimmed tokenizer: the merges of this tokenizer do not have one order, so it "
                "cannot be trimmed"
            )
        documents, equal = documents + 1, equal + same
        tokens_before, tokens_after = tokens_before + len(ids), tokens_after + len(new)
    return {
        "documents": documents,
        "equal_documents": equal,
        "tokens_before": tokens_before,
        "tokens_after": tokens_after,
    }


def compared(segmentation: dict[str, int]) -> str:
    """How a text is segmented by the trimmed tokenizer, in words."""
    if segmentation["equal_documents"] == segmentation["documents"]:
        return "equal on the whole text"
    growth = segmentation["tokens_after"] / max(1, segmentation["tokens_before"]) - 1
    return f"{growth:+.2%} tokens"


def lines(trimmed: Kept, segmentation: dict[str, int], full_size: int) -> list[list[str]]:
    """A trimmed tokenizer as names and values."""
    return [
        ["vocabulary", f"{len(trimmed.kept_K):,} tokens, before {full_size:,}"],
        ["coverage", f"{trimmed.coverage:.4%} of the text's tokens"],
        ["segmentation", compared(segmentation)],
    ]
