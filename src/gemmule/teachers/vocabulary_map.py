"""A teacher whose vocabulary is larger than the data's, or has other ids for the same tokens.

Text is tokenized by the data's tokenizer, whose tokens are some of the teacher's. The teacher reads
their ids of its own, and its distribution is conditioned on them: a softmax over the kept rows of
its head, which are all that is multiplied. How much probability it gave to the other rows is
measured.

Shapes: V tokens of the data, W rows of the teacher's head, N tokens of a text, D model.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gemmule.losses.head import Head
from gemmule.model.tokenizer import Tokenizer

_CHUNK = 64  # tokens whose logits over the teacher's whole vocabulary exist at once


@dataclass(frozen=True)
class VocabularyMap:
    """Which of the teacher's ids each token of the data has.

    Attributes:
        ids_V: the teacher's id of each token, int64.
        stand_ins: number of fixed tokens that the teacher does not have; text never has them, and
            they share the row of its <pad>.
    """

    ids_V: Tensor
    stand_ins: int

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the ids, hexadecimal."""
        return hashlib.sha256(self.ids_V.numpy().tobytes()).hexdigest()

    def describe(self) -> dict[str, str | int]:
        """Its entry in a teacher's description: a store recorded with another map is another."""
        return {"kept": len(self.ids_V), "stand_ins": self.stand_ins, "sha256": self.fingerprint}

    def kept_rows(self, head: Head) -> Head:
        """The teacher's head with the rows of the data's tokens, in the data's order."""
        rows = self.ids_V.to(head.weight_VD.device)
        return Head(head.weight_VD[rows], head.cap, len(rows))

    @torch.no_grad()
    def dropped_probability(self, x_ND: Tensor, head: Head) -> Tensor:
        """The probability of all tokens that the data does not have, fp32 [N].

        Args:
            x_ND: final hidden states of the teacher.
            head: its whole head.
        """
        dropped_W = torch.ones(head.num_logits, dtype=torch.bool, device=x_ND.device)
        dropped_W[self.ids_V.to(x_ND.device)] = False
        parts = [
            (head.logits(part).float().softmax(-1) * dropped_W).sum(-1)
            for part in x_ND.split(_CHUNK)
        ]
        return torch.cat(parts) if parts else x_ND.new_zeros(0)


def map_vocabulary(ours: Tokenizer, theirs: Mapping[str, int]) -> VocabularyMap | None:
    """Finds each token of the data in the teacher's vocabulary, by its text.

    Args:
        ours: the data's tokenizer.
        theirs: the teacher's id of each piece, with U+2581 for a space.

    Returns:
        The map; None when the teacher lacks a token that text can have.
    """
    ids, stand_ins = [], 0
    for piece, control in zip(ours.pieces, ours.is_control, strict=True):
        where = theirs.get(piece.text)
        if where is None and not control:
            return None
        stand_ins += where is None
        ids.append(theirs.get("<pad>", 0) if where is None else where)
    return VocabularyMap(torch.tensor(ids), stand_ins)
