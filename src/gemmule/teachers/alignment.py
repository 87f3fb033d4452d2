"""Where two tokenizers cut a text in the same places.

Shapes: B rows, T tokens of a student's row, U tokens of a teacher's row.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gemmule.data.batch import Batch
from gemmule.losses.labels import IGNORED
from gemmule.losses.span_likelihood import NO_SPAN
from gemmule.teachers.pieces import Pieces


@dataclass(frozen=True)
class Aligned:
    """One text as a teacher reads it, and its spans.

    Attributes:
        teacher_ids: the teacher's tokens.
        student_spans: of each of the student's tokens, NO_SPAN where it is in none.
        teacher_spans: of each of the teacher's.
        spans: how many.
    """

    teacher_ids: list[int]
    student_spans: list[int]
    teacher_spans: list[int]
    spans: int


@dataclass(frozen=True)
class AlignedBatch:
    """A batch as a teacher reads it.

    Attributes:
        teacher: its rows hold the same documents as the student's.
        student_span_BT: the span that each position's target belongs to.
        teacher_span_BU: likewise.
        spans: how many there are in all.
    """

    teacher: Batch
    student_span_BT: Tensor
    teacher_span_BU: Tensor
    spans: int


def align(ids: list[int], student: Pieces, teacher: Pieces, longest: int | None = None) -> Aligned:
    """Cuts the text of `ids` as a teacher does, and finds the spans between common cuts.

    A first token that nothing comes before is not predicted, and a span with one is none. Text
    that a window's edge cuts within a character is left out there, and a text whose pieces do not
    add up has no spans.

    Args:
        ids: of the student; of one document, or of a part of one.
        student: its tokenizer.
        teacher: the other one.
        longest: tokens of the teacher's, at most; later ones are left out.
    """
    opened = bool(ids) and ids[0] == student.bos
    ended = len(ids) > opened and ids[-1] == student.eos
    data = b"".join(pieces := student.pieces(ids))
    first, last = _whole_characters(data)
    try:
        text = data[first:last].decode()
    except UnicodeDecodeError:
        return Aligned([], [NO_SPAN] * len(ids), [], 0)
    inner = teacher.encode(text)
    inner_pieces = teacher.pieces(inner)
    if inner and b"".join(inner_pieces) == b" " + data[first:last]:
        inner_pieces[0] = inner_pieces[0][1:]  # a space that it puts before every text
    if b"".join(inner_pieces) != data[first:last]:
        inner, inner_pieces = [], []
    head = [teacher.bos] if opened and teacher.bos is not None else []
    tail = [teacher.eos] if ended and teacher.eos is not None and last == len(data) else []
    their_ids = [*head, *inner, *tail][:longest]
    our_ends = np.cumsum([len(p) for p in pieces])
    lengths = [*(0 for _ in head), *map(len, inner_pieces), *(1 for _ in tail)]
    their_ends = first + np.cumsum(lengths)[: len(their_ids)]
    if ended:  # the end of a text is an event as any other
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
    for spans, has_marker in zip(number, (opened, their_opened), strict=True):
        if has_marker:
            spans[:1] = NO_SPAN  # the marker is no part of the text
        elif len(spans) and spans[0] != NO_SPAN:
            lost = spans[0]
            for each in number:
                each[each == lost] = NO_SPAN
    used, renumbered = np.unique(np.concatenate(number), return_inverse=True)
    shift = int(len(used) > 0 and used[0] == NO_SPAN)
    ours, theirs = np.split(renumbered - shift, [len(our_ends)])
    return Aligned(their_ids, ours.tolist(), theirs.tolist(), len(used) - shift)


def _numbers(ends: np.ndarray, common: np.ndarray) -> np.ndarray:
    """Of tokens that end at `ends`, which gap between common cuts each lies in."""
    gap = np.searchsorted(common, ends, side="left") - 1
    return np.where((gap >= 0) & (gap < len(common) - 1), gap, NO_SPAN)


def _whole_characters(data: bytes) -> tuple[int, int]:
    """Bounds of `data` without what is left of characters that its edges cut."""
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
    batch: Batch, student: Pieces, teacher: Pieces, longest: int | None = None
) -> AlignedBatch:
    """Aligns every document of a batch, the target after a row's last token included."""
    student_span_BT = torch.full_like(batch.tokens_BT, NO_SPAN, device="cpu")
    rows: list[tuple[list[int], list[int], list[int], list[int]]] = []
    spans = 0
    tokens_BT, labels_BT = batch.tokens_BT.cpu(), batch.labels_BT.cpu()
    for row, segments_T in enumerate(batch.doc_ids_BT.cpu()):
        values, counts = segments_T.unique_consecutive(return_counts=True)
        tokens: list[int] = []
        targets: list[int] = []
        segments: list[int] = []
        where: list[int] = []
        start = 0
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            stop = start + count
            if value:
                ids = tokens_BT[row, start:stop].tolist()
                follows = int(labels_BT[row, stop - 1])
                ids += [] if follows == IGNORED else [follows]
                found = align(ids, student, teacher, longest)
                ours, theirs = (
                    [n if n == NO_SPAN else n + spans for n in numbers]
                    for numbers in (found.student_spans, found.teacher_spans)
                )
                spans += found.spans
                # A position's target is the token after it.
                student_span_BT[row, start : start + len(ids) - 1] = torch.tensor(
                    ours[1:], dtype=torch.long
                )
                tokens += found.teacher_ids
                targets += [*found.teacher_ids[1:], IGNORED][: len(found.teacher_ids)]
                where += [*theirs[1:], NO_SPAN][: len(theirs)]
                segments += [value] * len(found.teacher_ids)
            start = stop
        rows.append((tokens, targets, segments, where))
    filled = [
        _filled([row[i] for row in rows], filler)
        for i, filler in enumerate((0, IGNORED, 0, NO_SPAN))
    ]
    return AlignedBatch(Batch(filled[0], filled[1], filled[2]), student_span_BT, filled[3], spans)


def _filled(rows: list[list[int]], filler: int) -> Tensor:
    width = max([1, *map(len, rows)])
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows])
