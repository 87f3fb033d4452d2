"""What a teacher is: something that says how likely every next token is.

A `Teacher` can be recorded. A `LocalTeacher` is one whose whole distribution can be computed here,
from hidden states and a head, so that a student can also learn from it directly and a record of it
can be verified.

Shapes: B batch, T tokens of a row, D model, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gemmule.data.batch import Batch
from gemmule.losses.head import Head
from gemmule.losses.sparse_targets import Choice, SparseTargets
from gemmule.teachers.pieces import Pieces


class Teacher(Protocol):
    """Anything that targets can be recorded from."""

    @property
    def vocab_size(self) -> int:
        """Pieces that it chooses among; ids are the student's."""
        ...

    def describe(self) -> dict[str, Any]:
        """What a manifest says of it; all but `path` is part of a record's identity."""
        ...

    def targets(
        self, batch: Batch, choices: Sequence[Choice], temperature: float
    ) -> list[SparseTargets]:
        """What `choices`, one a row, keep of its distributions: T tokens each."""
        ...


class LocalTeacher(ABC):
    """A teacher that runs here.

    Attributes:
        module: its network.
        pieces: its tokenizer, where it has another one than the data; else None.
    """

    module: nn.Module
    pieces: Pieces | None = None

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Pieces that it chooses among."""

    @property
    @abstractmethod
    def head(self) -> Head:
        """The output head; its rows from `vocab_size` on are padding."""

    @abstractmethod
    def hidden_states(self, batch: Batch) -> Tensor:
        """What its head is applied to [B, T, D]; documents of a row do not see one another."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """See Teacher."""

    def compile(self) -> None:  # noqa: B027, teachers may leave it out
        """Compiles its blocks; does nothing where that is not known to pay."""

    @property
    @abstractmethod
    def context(self) -> int | None:
        """Tokens that it can see together; None where its config does not say."""

    @abstractmethod
    def forward_flops_per_token(self, seq_len: int) -> float:
        """Of one token's forward pass, head included."""

    @torch.no_grad()
    def targets(
        self, batch: Batch, choices: Sequence[Choice], temperature: float
    ) -> list[SparseTargets]:
        """See Teacher; a row's draws do not depend on the other rows."""
        x_BTD = self.hidden_states(batch)
        return [
            self.head.sparse_targets(x_TD, choose, temperature=temperature)
            for x_TD, choose in zip(x_BTD, choices, strict=True)
        ]
