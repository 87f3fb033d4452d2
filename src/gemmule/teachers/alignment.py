"""Alignment of two tokenizations: the spans between common token boundaries.

Shapes: B sequences, T tokens of a student's sequence, U tokens of a teacher's sequence.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gemmule.data.batch import Batch
from gemmule.losses.labels import IGNORED
from gemmule.losses.span_likelihood import NO_SPAN
from gemmule.teachers.any_tokenizer import AnyTokenizer


@dataclass(frozen=True)
class Aligned:
    """One text in the teacher's tokens, and its spans.

    Attributes:
        teacher_ids: the teacher's tokens.
        student_spans: span of each of the student's tokens, NO_SPAN for a token outside of all.
        teacher_spans: span of each of the teacher's tokens.
        spans: number of spans.
    """

    teacher_ids: list[int]
    student_spans: list[int]
    teacher_spans: list[int]
    spans: int


@dataclass(frozen=True)
class AlignedBatch:
    """A batch in the teacher's tokens, and its spans.

    Attributes:
        teacher: batch whose sequences hold the same documents as the student's.
        student_span_BT: span of the label at each position, or NO_SPAN.
        teacher_span_BU: span of the teacher's label at each position, or NO_SPAN.
        spans: number of spans in the batch.
    """

    teacher: Batch
    student_span_BT: Tensor
    teacher_span_BU: Tensor
    spans: int


def align(
    ids: list[int], student: AnyTokenizer, teacher: AnyTokenizer, max_tokens: int | None = None
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
    """
    opened = bool(ids) and ids[0] == student.bos
    ended = len(ids) > opened and ids[-1] == student.eos
    data = b"".join(ours := student.token_bytes(ids))
    first, last = _whole_characters(data)
    try:
        text = data[first:last].decode()
    except UnicodeDecodeError:
        return Aligned([], [NO_SPAN] * len(ids), [], 0)
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
    return _spans(our_ends, their_ends, first, bool(opened), bool(head), their_ids)


def _spans(
    our_ends: np.ndarray,
    their_ends: np.ndarray,
    first: int,
    opened: bool,
    their_opened: bool,
    their_ids: list[int],
) -> Aligned:
    common = np.intersect1d(np.append(our_ends, 0), np.append(their_ends, first))
    number = [_numbers(ends, common) for ends in (our_ends, their_ends)]
    for spans, has_bos in zip(number, (opened, their_opened), strict=True):
        if has_bos:
            spans[:1] = NO_SPAN  # <bos> is not part of the text
        elif len(spans) and spans[0] != NO_SPAN:
            lost = spans[0]
            for each in number:
                each[each == lost] = NO_SPAN
    used, renumbered = np.unique(np.concatenate(number), return_inverse=True)
    shift = int(len(used) > 0 and used[0] == NO_SPAN)
    ours, theirs = np.split(renumbered - shift, [len(our_ends)])
    return Aligned(their_ids, ours.tolist(), theirs.tolist(), len(used) - shift)


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
    batch: Batch, student: AnyTokenizer, teacher: AnyTokenizer, max_tokens: int | None = None
) -> AlignedBatch:
    """Aligns every document of a batch, including the label of a sequence's last token."""
    student_span_BT = torch.full_like(batch.tokens_BT, NO_SPAN, device="cpu")
    rows: list[tuple[list[int], list[int], list[int], list[int]]] = []
    spans = 0
    tokens_BT, labels_BT = batch.tokens_BT.cpu(), batch.labels_BT.cpu()
    for row, doc_ids_T in enumerate(batch.doc_ids_BT.cpu()):
        values, counts = doc_ids_T.unique_consecutive(return_counts=True)
        tokens: list[int] = []
        labels: list[int] = []
        doc_ids: list[int] = []
        span_of: list[int] = []
        start = 0
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            stop = start + count
            if value:
                ids = tokens_BT[row, start:stop].tolist()
                follows = int(labels_BT[row, stop - 1])
                ids += [] if follows == IGNORED else [follows]
                aligned = align(ids, student, teacher, max_tokens)
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
                tokens += aligned.teacher_ids
                labels += [*aligned.teacher_ids[1:], IGNORED][: len(aligned.teacher_ids)]
                span_of += [*theirs[1:], NO_SPAN][: len(theirs)]
                doc_ids += [value] * len(aligned.teacher_ids)
            start = stop
        rows.append((tokens, labels, doc_ids, span_of))
    padded = [
        _padded([row[i] for row in rows], filler)
        for i, filler in enumerate((0, IGNORED, 0, NO_SPAN))
    ]
    return AlignedBatch(Batch(padded[0], padded[1], padded[2]), student_span_BT, padded[3], spans)


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
    )


def _padded(rows: list[list[int]], filler: int) -> Tensor:
    width = max([1, *map(len, rows)])
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows])
