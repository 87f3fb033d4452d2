"""How the documents of a batch are laid out for a model of transformers.

A batch's sequences hold several documents, which must not attend to each other. Where the
architecture allows it (`TransformersTeacher.packs`), documents lie one after the other in rows that
are as long as the longest of them, so that hardly any padding is computed, and attention costs no
more than the longest document's. Else each document has a row of its own, padded on the right:
a causal model does not see padding.

Shapes: B sequences, T tokens of a sequence, R rows, M tokens of a row.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Document(NamedTuple):
    """A document of a batch: its sequence, its first token, and the token after its last."""

    sequence: int
    start: int
    stop: int

    @property
    def length(self) -> int:
        """Number of tokens."""
        return self.stop - self.start


Rows = list[list[Document]]  # the documents of each row, in order


def documents_of(doc_ids_BT: Tensor) -> list[Document]:
    """The documents of a batch, without padding."""
    documents = []
    for sequence, doc_ids_T in enumerate(doc_ids_BT.cpu()):
        values, counts = doc_ids_T.unique_consecutive(return_counts=True)
        stop = 0
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            start, stop = stop, stop + count
            if value:
                documents.append(Document(sequence, start, stop))
    return documents


def packed(documents: Sequence[Document]) -> Rows:
    """Rows as long as the longest document at most, filled by best fit, the longest first."""
    rows: Rows = []
    room: list[int] = []  # of each row
    by_length = sorted(documents, key=lambda document: -document.length)
    for document in by_length:
        fitting = [i for i, tokens in enumerate(room) if tokens >= document.length]
        if fitting:
            i = min(fitting, key=room.__getitem__)
            rows[i].append(document)
            room[i] -= document.length
        else:
            rows.append([document])
            room.append(by_length[0].length - document.length)
    return rows


def alone(documents: Sequence[Document], max_tokens: int) -> list[Rows]:
    """A row for each document: groups of similar length, each to be run at once.

    Args:
        documents: the documents.
        max_tokens: tokens of a group at most, padding included; a single document may have more.
    """
    groups: list[Rows] = []
    for document in sorted(documents, key=lambda document: -document.length):
        # The first document of a group is the longest; all others are padded to it.
        if groups:
            longest = groups[-1][0][0].length
            similar = 2 * document.length >= longest
            if similar and (len(groups[-1]) + 1) * longest <= max_tokens:
                groups[-1].append([document])
                continue
        groups.append([[document]])
    return groups


def laid_out(tokens_BT: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """The tokens of rows, padded with zeros, and their positions, both [R, M].

    Positions start at 0 in each document and go on through the padding after the last one.
    """
    width = max(sum(document.length for document in row) for row in rows)
    tokens_RM = tokens_BT.new_zeros(len(rows), width)
    positions_RM = torch.arange(width, device=tokens_BT.device).repeat(len(rows), 1)
    for r, row in enumerate(rows):
        at = 0
        for document in row:
            end = at + document.length
            tokens_RM[r, at:end] = tokens_BT[document.sequence, document.start : document.stop]
            positions_RM[r, at:] -= positions_RM[r, at].clone()
            at = end
    return tokens_RM, positions_RM


def put_back(x_RMD: Tensor, rows: Rows, x_BTD: Tensor) -> None:
    """Copies what was computed for the tokens of rows to their places in the batch."""
    for x_MD, row in zip(x_RMD, rows, strict=True):
        at = 0
        for document in row:
            end = at + document.length
            x_BTD[document.sequence, document.start : document.stop] = x_MD[at:end]
            at = end
