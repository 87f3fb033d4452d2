"""Which part of a teacher's distribution is kept, as a setting."""

from typing import Any, Literal, Self

import numpy as np
import pydantic
import torch
from pydantic import Field
from torch import Tensor

from gemmule.config import Config
from gemmule.errors import ConfigError
from gemmule.losses.sparse_targets import (
    Choice,
    SparseTargets,
    sample,
    top_k,
    top_k_with_tail,
    top_p,
)
from gemmule.teachers.target_codec import TargetCodec

TargetKind = Literal["sample", "top_k", "top_k_tail", "top_p"]

# Settings that a kind has beside the temperature.
_OWN = {
    "sample": ("draws", "spread", "proposal"),
    "top_k": ("k",),
    "top_k_tail": ("k",),
    "top_p": ("p", "most"),
}


class TargetSpec(Config):
    """What is kept of each distribution, see gemmule.losses.sparse_targets.

    Attributes:
        kind: "sample" (unbiased draws), "top_k", "top_k_tail" (the rest as one bucket), "top_p".
        draws: of "sample". 50 take less than 40 bytes a token and teach nearly what the whole
            distribution does (docs/logit-store.md).
        spread: "systematic" draws of a token are evenly spaced over its distribution, from one
            random start, so that an id's count is its share of the draws rounded up or down: as
            unbiased as "independent" ones, with half their noise or less.
        proposal: power of the teacher's probabilities that "sample" draws from. At 1 counts are
            stored, otherwise log-weights of 12 bits.
        k: ids of "top_k" and "top_k_tail".
        p: mass of "top_p".
        most: ids of "top_p", at most.
        temperature: of the teacher's softmax.
    """

    kind: TargetKind = "sample"
    draws: int = Field(default=50, ge=1, le=4096)
    spread: Literal["systematic", "independent"] = "systematic"
    proposal: float = Field(default=1.0, gt=0, le=4, allow_inf_nan=False)
    k: int = Field(default=32, ge=1, le=4096)
    p: float = Field(default=0.95, gt=0, le=1)
    most: int = Field(default=512, ge=1, le=4096)
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    @pydantic.model_validator(mode="after")
    def _only_what_the_kind_has(self) -> Self:
        others = self.model_fields_set - {"kind", "temperature", *_OWN[self.kind]}
        for name in sorted(others):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} is no setting of {self.kind} targets, which have "
                    f"{', '.join(_OWN[self.kind])}"
                )
        return self

    def for_vocabulary(self, size: int) -> Self:
        """The same, checked against a vocabulary.

        Raises:
            ConfigError: when more ids are to be kept than there are.
        """
        if self.kind in ("top_k", "top_k_tail") and self.k > size:
            raise ConfigError(f"k = {self.k} is more than the vocabulary's {size} pieces")
        return self.model_copy(update={"most": min(self.most, size)})

    @property
    def biased(self) -> bool:
        """Whether the loss differs from full distillation's even on average over many tokens."""
        return self.kind != "sample"

    @property
    def label(self) -> str:
        """A short name, for tables: sampled-50, top-32+tail."""
        names = {
            "sample": f"sampled-{self.draws}",
            "top_k": f"top-{self.k}",
            "top_k_tail": f"top-{self.k}+tail",
            "top_p": f"top-p {self.p:g}",
        }
        proposal = f" of p^{self.proposal:g}" if self.proposal != 1 else ""
        loose = " independent" if self.spread == "independent" else ""
        hot = f" at T={self.temperature:g}" if self.temperature != 1 else ""
        return names[self.kind] + loose + proposal + hot

    def settings(self) -> dict[str, Any]:
        """What belongs to the kind, for a manifest."""
        own = ("kind", *_OWN[self.kind], "temperature")
        return {name: getattr(self, name) for name in own}

    def choice(self, seed: int, window: int) -> Choice:
        """What to do with the probabilities of a window's tokens; draws depend on nothing else."""
        if self.kind == "top_k":
            return lambda p_CV: top_k(p_CV, self.k)
        if self.kind == "top_k_tail":
            return lambda p_CV: top_k_with_tail(p_CV, self.k)
        if self.kind == "top_p":
            return lambda p_CV: top_p(p_CV, self.p, max_ids=self.most)
        rng = np.random.default_rng([seed, window])  # the same numbers on every device

        def draw(p_CV: Tensor) -> SparseTargets:
            if self.spread == "systematic":
                start_C1 = rng.random((len(p_CV), 1))
                uniform_CK = (np.arange(self.draws) + start_C1) / self.draws
            else:
                uniform_CK = rng.random((len(p_CV), self.draws))
            return sample(
                p_CV,
                self.draws,
                proposal=self.proposal,
                uniform_CK=torch.from_numpy(uniform_CK).to(p_CV.device),
            )

        return draw

    def codec(self, vocab_size: int) -> TargetCodec:
        """How such targets are written."""
        if self.kind == "sample":
            most = min(self.draws, vocab_size)
            if self.proposal == 1.0:
                return TargetCodec(vocab_size, most, draws=self.draws)
            return TargetCodec(vocab_size, most, normalised=False)
        most = self.most if self.kind == "top_p" else self.k
        return TargetCodec(vocab_size, most, tail=self.kind == "top_k_tail")
