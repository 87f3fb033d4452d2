"""A teacher seen through the data's vocabulary, which is a part of its own.

Shapes: B sequences of a batch, T tokens of a sequence, S = T + 1, N tokens of a text, D model.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from gemmule.data.batch import Batch
from gemmule.losses.head import Head
from gemmule.model.tokenizer import Tokenizer
from gemmule.teachers.opening import DESCRIPTION, opened
from gemmule.teachers.teacher import Dropped, LocalTeacher
from gemmule.teachers.vocabulary_map import VocabularyMap

_EVERY = 32  # one token in 32 is measured: the whole head costs more than a small teacher


class MappedTeacher(LocalTeacher):
    """A teacher whose distribution is conditioned on the data's tokens.

    Args:
        teacher: the teacher itself.
        vocabulary: its id of each token of the data.
    """

    def __init__(self, teacher: LocalTeacher, vocabulary: VocabularyMap) -> None:
        self.teacher, self.vocabulary = teacher, vocabulary
        self.model = teacher.model
        self._head: Head | None = None
        self._dropped = Dropped()

    @property
    def vocab_size(self) -> int:
        """Number of the data's tokens."""
        return len(self.vocabulary.ids_V)

    @property
    def head(self) -> Head:
        """The kept rows of the teacher's head."""
        whole = self.whole_head
        if self._head is None or self._head.weight_VD.device != whole.weight_VD.device:
            self._head = self.vocabulary.kept_rows(whole)
        return self._head

    @property
    def whole_head(self) -> Head:
        """The teacher's own head."""
        return self.teacher.head

    @property
    def dropped(self) -> Dropped | None:
        """What has been measured of the probability of other tokens."""
        return self._dropped

    def hidden_states(self, batch: Batch) -> Tensor:
        """Final hidden states [B, T, D] of the teacher for its own ids of the tokens.

        A sequence that begins within a document is opened with <bos> for the teacher.
        """
        opening = opened(batch, Tokenizer.bos_id)
        ids_V = self.vocabulary.ids_V.to(batch.tokens_BT.device)
        x_BSD = self.teacher.hidden_states(
            dataclasses.replace(opening, tokens_BT=ids_V[opening.tokens_BT])
        )
        return x_BSD[:, 1:]

    @torch.no_grad()
    def measure_dropped(self, x_BTD: Tensor, batch: Batch) -> None:
        """Adds one token in 32 of a batch to `dropped`."""
        real_BT = batch.doc_ids_BT > 0
        self._dropped.add(
            self.vocabulary.dropped_probability(x_BTD[real_BT][::_EVERY], self.whole_head)
        )

    def describe(self) -> dict[str, Any]:
        """The teacher's entry, which of its tokens are kept, and where it sees <bos>."""
        about = {"vocabulary": self.vocabulary.describe(), "bos": DESCRIPTION}
        return {**self.teacher.describe(), **about}

    def compile(self) -> None:
        """Compiles the teacher's blocks where that pays."""
        self.teacher.compile()

    def to(self, device: str) -> None:
        """Moves the teacher's weights to a device."""
        self.teacher.to(device)

    @property
    def context(self) -> int | None:
        """Longest sequence that the teacher was made for, without the <bos> that may open it."""
        return None if self.teacher.context is None else self.teacher.context - 1

    def forward_flops_per_token(self, seq_len: int) -> float:
        """Operations for one token's forward pass, with the kept rows of the head."""
        whole = self.whole_head
        rows = whole.num_logits - self.vocab_size
        return self.teacher.forward_flops_per_token(seq_len) - 2.0 * rows * whole.weight_VD.shape[1]
