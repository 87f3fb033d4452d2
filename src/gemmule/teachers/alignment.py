"""Alignment of two tokenizations: the spans between common token boundaries.

Where a token ends says something about what follows: after `Hello`, a tokenizer that has a piece
`Hello,` does not go on with a comma. Two tokenizers say different things, so the likelihoods that
they give to a span are not those of one event (Phan et al. 2024, arXiv 2406.16829). Before a space
that follows something else, both always have a boundary: spans between such cuts are the same
event to both, once each is joined with the next byte being a space (losses/span_likelihood.py).

Shapes: B sequences, T tokens of a student's sequence, U tokens of a teacher's sequence.
"""

import re
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gemmule.data.batch import Batch
from gemmule.losses.labels import IGNORED
from gemmule.losses.span_likelihood import NO_SPAN
from gemmule.teachers.any_tokenizer import AnyTokenizer

_BEFORE_SPACE = re.compile(r"\S(?= )")


@dataclass(frozen=True)
class Aligned:
    """One text in the teacher's tokens, and its spans.

    Attributes:
        teacher_ids: the teacher's tokens.
        student_spans: span of each of the student's tokens, NO_SPAN for a token outside of all.
        teacher_spans: span of each of the teacher's tokens.
        spans: number of spans.
        student_cuts: whether a span ends after each of the student's tokens because a space
            follows; all False for spans that end at any common boundary.
        teacher_cuts: the same of the teacher's tokens.
    """

    teacher_ids: list[int]
    student_spans: list[int]
    teacher_spans: list[int]
    spans: int
    student_cuts: list[bool]
    teacher_cuts: list[bool]


@dataclass(frozen=True)
class Cuts:
    """The spans that meet at each position of a sequence, where a space follows.

    Attributes:
        ending_BT: span that ends before the position's label, or NO_SPAN.
        starting_BT: span that starts with the label, or NO_SPAN.
    """

    ending_BT: Tensor
    starting_BT: Tensor


@dataclass(frozen=True)
class AlignedBatch:
    """A batch in the teacher's tokens, and its spans.

    Attributes:
        teacher: batch whose sequences hold the same documents as the student's.
        student_span_BT: span of the label at each position, or NO_SPAN.
        teacher_span_BU: span of the teacher's label at each position, or NO_SPAN.
        spans: number of spans in the batch.
        student_cuts: cuts in the student's sequences.
        teacher_cuts: cuts in the teacher's sequences.
    """

    teacher: Batch
    student_span_BT: Tensor
    teacher_span_BU: Tensor
    spans: int
    student_cuts: Cuts
    teacher_cuts: Cuts


def align(
    ids: list[int],
    student: AnyTokenizer,
    teacher: AnyTokenizer,
    max_tokens: int | None = None,
    *,
    at_spaces: bool = False,
) -> Aligned:
    """Tokenizes the text of `ids` for the teacher, and finds the spans between common boundaries.

    The first token of a text is not predicted unless <bos> comes before it, so a span with it does
    not count. A character that the edge of a sequence splits is left out, and a text whose tokens
    do not add up to it has no spans.

    Args:
        ids: the student's ids of a document, or of a part of one.
        student: the student's tokenizer.
        teacher: the teacher's tokenizer.
        max_tokens: limit of the teacher's tokens; later ones are left out.
        at_spaces: end spans only before a space that follows something else, and at the end of the
            text; else at every common boundary.
    """
    opened = bool(ids) and ids[0] == student.bos
    ended = len(ids) > opened and ids[-1] == student.eos
    data = b"".join(ours := student.token_bytes(ids))
    first, last = _whole_characters(data)
    try:
        text = data[first:last].decode()
    except UnicodeDecodeError:
        return Aligned([], [NO_SPAN] * len(ids), [], 0, [False] * len(ids), [])
    inner = teacher.encode(text)
    theirs = teacher.token_bytes(inner)
    if inner and b"".join(theirs) == b" " + data[first:last]:
        theirs[0] = theirs[0][1:]  # a space that the tokenizer puts before every text
    if b"".join(theirs) != data[first:last]:
        inner, theirs = [], []
    head = [teacher.bos] if opened and teacher.bos is not None else []
    tail = [teacher.eos] if ended and teacher.eos is not None and last == len(data) else []
    their_ids = [*head, *inner, *tail][:max_tokens]
    our_ends = np.cumsum([len(part) for part in ours])
    lengths = [*(0 for _ in head), *map(len, theirs), *(1 for _ in tail)]
    their_ends = first + np.cumsum(lengths)[: len(their_ids)]
    if ended:  # the end of a text is an event like any other
        our_ends[-1] += 1
    aligned = _Ends(our_ends, their_ends, first, bool(opened), bool(head), their_ids)
    if at_spaces:
        cuts = first + _before_spaces(text)
        return aligned.between(cuts, [0, our_ends[-1]] if ended else [0])
    return aligned.between_all()


@dataclass(frozen=True)
class _Ends:
    """Where the tokens of both end, in bytes of the text."""

    ours: np.ndarray
    theirs: np.ndarray
    first: int
    opened: bool
    their_opened: bool
    their_ids: list[int]

    def between_all(self) -> Aligned:
        """Spans between all common boundaries."""
        return self._spans(self._common(), np.empty(0, np.int64))

    def between(self, cuts: np.ndarray, edges: list[int]) -> Aligned:
        """Spans between those common boundaries that are cuts before a space, or edges."""
        common = np.intersect1d(self._common(), np.append(cuts, edges))
        return self._spans(common, np.intersect1d(common, cuts))

    def _common(self) -> np.ndarray:
        return np.intersect1d(np.append(self.ours, 0), np.append(self.theirs, self.first))

    def _spans(self, common: np.ndarray, cuts: np.ndarray) -> Aligned:
        number = [_numbers(ends, common) for ends in (self.ours, self.theirs)]
        for spans, has_bos in zip(number, (self.opened, self.their_opened), strict=True):
            if has_bos:
                spans[:1] = NO_SPAN  # <bos> is not part of the text
            elif len(spans) and spans[0] != NO_SPAN:
                lost = spans[0]
                for each in number:
                    each[each == lost] = NO_SPAN
        used, renumbered = np.unique(np.concatenate(number), return_inverse=True)
        shift = int(len(used) > 0 and used[0] == NO_SPAN)
        ours, theirs = np.split(renumbered - shift, [len(self.ours)])
        return Aligned(
            self.their_ids, ours.tolist(), theirs.tolist(), len(used) - shift,
            _last_at(self.ours, cuts), _last_at(self.theirs, cuts),
        )  # fmt: skip


def _last_at(ends: np.ndarray, cuts: np.ndarray) -> list[bool]:
    """Whether each token is the last one that ends at one of the cuts."""
    last = np.append(ends[1:] != ends[:-1], True)[: len(ends)]
    return (np.isin(ends, cuts) & last).tolist()


def _before_spaces(text: str) -> np.ndarray:
    """Offsets, in UTF-8 bytes, of the spaces that follow something other than white space."""
    codes = np.fromiter(map(ord, text), np.int64, len(text))
    ends = np.cumsum(1 + (codes > 0x7F) + (codes > 0x7FF) + (codes > 0xFFFF))
    return ends[[match.start() for match in _BEFORE_SPACE.finditer(text)]].astype(np.int64)


def _numbers(ends: np.ndarray, common: np.ndarray) -> np.ndarray:
    """Gap between common boundaries in which each token lies, for tokens that end at `ends`."""
    gap = np.searchsorted(common, ends, side="left") - 1
    return np.where((gap >= 0) & (gap < len(common) - 1), gap, NO_SPAN)


def _whole_characters(data: bytes) -> tuple[int, int]:
    """Bounds of `data` without the remains of characters that its edges split."""
    first = 0
    while first < min(3, len(data)) and 0x80 <= data[first] < 0xC0:
        first += 1
    for back in range(1, min(4, len(data) - first) + 1):
        lead = data[-back]
        if lead >= 0xC0:
            needed = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
            return first, len(data) - back if back < needed else len(data)
        if lead < 0x80:
            break
    return first, len(data)


def align_batch(
    batch: Batch,
    student: AnyTokenizer,
    teacher: AnyTokenizer,
    max_tokens: int | None = None,
    *,
    at_spaces: bool = False,
) -> AlignedBatch:
    """Aligns every document of a batch, including the label of a sequence's last token."""
    student_span_BT = torch.full_like(batch.tokens_BT, NO_SPAN, device="cpu")
    ending_BT, starting_BT = student_span_BT.clone(), student_span_BT.clone()
    rows: list[tuple[list[int], ...]] = []
    spans = 0
    tokens_BT, labels_BT = batch.tokens_BT.cpu(), batch.labels_BT.cpu()
    for row, doc_ids_T in enumerate(batch.doc_ids_BT.cpu()):
        values, counts = doc_ids_T.unique_consecutive(return_counts=True)
        tokens: list[int] = []
        labels: list[int] = []
        doc_ids: list[int] = []
        span_of: list[int] = []
        ending: list[int] = []
        starting: list[int] = []
        start = 0
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            stop = start + count
            if value:
                ids = tokens_BT[row, start:stop].tolist()
                follows = int(labels_BT[row, stop - 1])
                ids += [] if follows == IGNORED else [follows]
                aligned = align(ids, student, teacher, max_tokens, at_spaces=at_spaces)
                is_label = labels_BT[row, start : start + len(ids) - 1] != IGNORED
                if not is_label.all():
                    aligned = _without_masked(aligned, is_label.tolist())
                ours, theirs = (
                    [n if n == NO_SPAN else n + spans for n in numbers]
                    for numbers in (aligned.student_spans, aligned.teacher_spans)
                )
                spans += aligned.spans
                # The label of a position is the token after it.
                student_span_BT[row, start : start + len(ids) - 1] = torch.tensor(
                    ours[1:], dtype=torch.long
                )
                our_ends, our_starts = _meeting(ours, aligned.student_cuts)
                ending_BT[row, start:stop] = torch.tensor(our_ends[: stop - start])
                starting_BT[row, start:stop] = torch.tensor(our_starts[: stop - start])
                their_ends, their_starts = _meeting(theirs, aligned.teacher_cuts)
                ending += their_ends
                starting += their_starts
                tokens += aligned.teacher_ids
                labels += [*aligned.teacher_ids[1:], IGNORED][: len(aligned.teacher_ids)]
                span_of += [*theirs[1:], NO_SPAN][: len(theirs)]
                doc_ids += [value] * len(aligned.teacher_ids)
            start = stop
        rows.append((tokens, labels, doc_ids, span_of, ending, starting))
    padded = [
        _padded([row[i] for row in rows], filler)
        for i, filler in enumerate((0, IGNORED, 0, NO_SPAN, NO_SPAN, NO_SPAN))
    ]
    return AlignedBatch(
        Batch(padded[0], padded[1], padded[2]), student_span_BT, padded[3], spans,
        Cuts(ending_BT, starting_BT), Cuts(padded[4], padded[5]),
    )  # fmt: skip


def _meeting(spans: list[int], cuts: list[bool]) -> tuple[list[int], list[int]]:
    """The span that ends with each token at a cut, and the one that starts after it."""
    ending = [span if cut else NO_SPAN for span, cut in zip(spans, cuts, strict=True)]
    following = [*spans[1:], NO_SPAN][: len(spans)]
    starting = [span if cut else NO_SPAN for span, cut in zip(following, cuts, strict=True)]
    return ending, starting


def _without_masked(aligned: Aligned, is_label: list[bool]) -> Aligned:
    """The alignment without spans of which a token is excluded by the loss mask.

    Args:
        aligned: alignment of a document.
        is_label: whether each of the student's tokens after the first is a label.
    """
    masked = {
        span for span, kept in zip(aligned.student_spans[1:], is_label, strict=True) if not kept
    }
    kept = [span for span in range(aligned.spans) if span not in masked]
    number = {span: i for i, span in enumerate(kept)}
    return Aligned(
        aligned.teacher_ids,
        [number.get(span, NO_SPAN) for span in aligned.student_spans],
        [number.get(span, NO_SPAN) for span in aligned.teacher_spans],
        len(kept),
        aligned.student_cuts,
        aligned.teacher_cuts,
    )


def _padded(rows: list[list[int]], filler: int) -> Tensor:
    width = max([1, *map(len, rows)])
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows])
