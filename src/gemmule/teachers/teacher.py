"""Teachers: models whose next-token distributions a student learns.

Every `Teacher` can be recorded into a logit store. A `LocalTeacher` runs on this machine: its full
distribution can be computed from hidden states and a head, so a student can also learn from it
online, and a store can be verified against it.

Shapes: B sequences of a batch, T tokens of a sequence, D model, V vocabulary.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gemmule.data.batch import Batch
from gemmule.losses.head import Head
from gemmule.losses.sparse_targets import Choice, SparseTargets
from gemmule.teachers.any_tokenizer import AnyTokenizer


@dataclasses.dataclass
class Dropped:
    """The probability that a teacher gives to tokens that the data's vocabulary does not have.

    Attributes:
        total: sum over the tokens that were measured.
        maximum: the largest of one token.
        tokens: number of tokens that were measured.
    """

    total: float = 0.0
    maximum: float = 0.0
    tokens: int = 0

    def add(self, p_N: Tensor) -> None:
        """Adds the tokens of a batch."""
        if len(p_N):
            self.total += float(p_N.double().sum())
            self.maximum = max(self.maximum, float(p_N.max()))
            self.tokens += len(p_N)

    def to_json(self) -> dict[str, float]:
        """Its entry in a file."""
        return {"total": self.total, "maximum": self.maximum, "tokens": self.tokens}


class Teacher(ABC):
    """A model that targets can be recorded from, on this machine or on a server."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of tokens in its vocabulary; its ids are those of the data."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Its entry in a manifest; all keys except `path` are part of a store's identity."""

    @abstractmethod
    def targets(
        self, batch: Batch, choices: Sequence[Choice], temperature: float
    ) -> list[SparseTargets]:
        """What `choices`, one per sequence, keep of its distributions: T tokens each."""

    @property
    def dropped(self) -> Dropped | None:
        """What `targets` has measured of its other tokens; None: it has no others."""
        return None

    def forward_flops_per_token(self, seq_len: int) -> float:
        """Operations on this machine for one token's forward pass, head included; 0 elsewhere."""
        return 0.0


class LocalTeacher(Teacher):
    """A teacher that runs on this machine.

    Attributes:
        model: the network.
        tokenizer: its tokenizer, if that is not the data's; else None.
    """

    model: nn.Module
    tokenizer: AnyTokenizer | None = None

    @property
    @abstractmethod
    def head(self) -> Head:
        """The output head; its rows from `vocab_size` on are padding."""

    @property
    def whole_head(self) -> Head:
        """Its own output head, of which `head` may be a part."""
        return self.head

    @abstractmethod
    def hidden_states(self, batch: Batch) -> Tensor:
        """Final hidden states [B, T, D]; documents of a sequence do not attend to each other."""

    def compile(self) -> None:
        """Compiles its blocks; does nothing where that is not known to pay."""

    @property
    @abstractmethod
    def context(self) -> int | None:
        """Longest sequence it was made for, tokens; None where its config does not say."""

    @abstractmethod
    def forward_flops_per_token(self, seq_len: int) -> float:
        """Operations for one token's forward pass, head included."""

    def to(self, device: str) -> None:
        """Moves its weights to a device."""
        self.model.to(device)

    def store_bfloat16(self) -> None:
        """Rounds the weights of its linear layers, except the head, to bfloat16.

        Autocast rounds them to the same values in every product; frozen weights are not cached.
        """
        for module in self.model.modules():
            if type(module) is nn.Linear and module.weight is not self.whole_head.weight_VD:
                module.to(torch.bfloat16)

    def measure_dropped(self, x_BTD: Tensor, batch: Batch) -> None:
        """Adds some tokens of a batch to `dropped`, if there is anything to measure."""
        return

    @torch.no_grad()
    def targets(
        self, batch: Batch, choices: Sequence[Choice], temperature: float
    ) -> list[SparseTargets]:
        """What `choices` keep; the draws of a sequence do not depend on the rest of the batch."""
        x_BTD = self.hidden_states(batch)
        self.measure_dropped(x_BTD, batch)
        return self.kept(x_BTD, choices, temperature)

    def kept(
        self, x_BTD: Tensor, choices: Sequence[Choice], temperature: float
    ) -> list[SparseTargets]:
        """What `choices` keep of the distributions that belong to hidden states."""
        head = self.head.as_dtype(x_BTD.dtype)  # once for all sequences
        return [
            head.sparse_targets(x_TD, choose, temperature=temperature)
            for x_TD, choose in zip(x_BTD, choices, strict=True)
        ]
