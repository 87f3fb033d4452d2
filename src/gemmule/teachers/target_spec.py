"""Settings of what is kept of a teacher's distributions."""

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

# Settings of each kind in addition to the temperature.
_OWN = {
    "sample": ("draws", "spread", "proposal"),
    "top_k": ("k",),
    "top_k_tail": ("k",),
    "top_p": ("p", "most"),
}


class TargetSpec(Config):
    """What is kept of each distribution (gemmule.losses.sparse_targets).

    Attributes:
        kind: "sample" (unbiased draws), "top_k", "top_k_tail" (the rest as one bucket) or "top_p".
        draws: draws per token of "sample". 50 take less than 40 bytes per token and teach nearly as
            much as the full distribution (docs/logit-store.md).
        spread: "systematic" draws of a token are evenly spaced over its distribution, from one
            random start, so that the count of an id is its probability times the draws, rounded up
            or down: as unbiased as "independent" draws, with half their noise or less.
        proposal: power of the teacher's probabilities that "sample" draws from. At 1 counts are
            stored, otherwise log-weights of 12 bits.
        k: ids per token of "top_k" and "top_k_tail".
        p: probability that the ids of "top_p" reach together.
        most: limit of the ids per token of "top_p".
        temperature: temperature of the teacher's softmax.
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
                    f"{name} is not a setting of {self.kind} targets, which have "
                    f"{', '.join(_OWN[self.kind])}"
                )
        return self

    def for_vocabulary(self, size: int) -> Self:
        """These settings, checked against the size of a vocabulary.

        Raises:
            ConfigError: when more ids are to be kept than there are.
        """
        if self.kind in ("top_k", "top_k_tail") and self.k > size:
            raise ConfigError(f"k = {self.k} is more than the vocabulary's {size} tokens")
        return self.model_copy(update={"most": min(self.most, size)})

    @property
    def biased(self) -> bool:
        """Whether the loss differs from that of full distillation even on average over draws."""
        return self.kind != "sample"

    @property
    def label(self) -> str:
        """A short name for tables, such as sampled-50 or top-32+tail."""
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
        """The settings of this kind, for a manifest."""
        own = ("kind", *_OWN[self.kind], "temperature")
        return {name: getattr(self, name) for name in own}

    def choice(self, seed: int, index: int) -> Choice:
        """The choice of ids for a sequence; its draws depend only on seed and index."""
        if self.kind == "top_k":
            return lambda p_CV: top_k(p_CV, self.k)
        if self.kind == "top_k_tail":
            return lambda p_CV: top_k_with_tail(p_CV, self.k)
        if self.kind == "top_p":
            return lambda p_CV: top_p(p_CV, self.p, max_ids=self.most)
        rng = np.random.default_rng([seed, index])  # the same numbers on every device

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
        """The encoding of such targets."""
        if self.kind == "sample":
            max_ids = min(self.draws, vocab_size)
            if self.proposal == 1.0:
                return TargetCodec(vocab_size, max_ids, draws=self.draws)
            return TargetCodec(vocab_size, max_ids, normalized=False)
        max_ids = self.most if self.kind == "top_p" else self.k
        return TargetCodec(vocab_size, max_ids, tail=self.kind == "top_k_tail")
