"""Settings of a training run; the resolved ones are saved with the run."""

from pathlib import Path
from typing import Literal, Self

import pydantic
from pydantic import Field

from gemmule.config import Config
from gemmule.losses.divergences import CROSS_ENTROPY, Divergence, Kind
from gemmule.runtime.config import RuntimeConfig


class OptimizerConfig(Config):
    """How weights move.

    Attributes:
        name: "muon" (hidden matrices by Muon, embedding and norms by AdamW) or "adamw".
        learning_rate: of the hidden matrices; Muon's is scaled to AdamW's update size.
        embedding_learning_rate: of embedding and norms.
        weight_decay: decoupled, on matrices only.
        clip: largest norm of the whole gradient.
    """

    name: Literal["muon", "adamw"] = "muon"
    learning_rate: float = Field(default=0.012, gt=0, allow_inf_nan=False)
    embedding_learning_rate: float = Field(default=0.024, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    momentum: float = Field(default=0.95, ge=0, lt=1)
    clip: float = Field(default=1.0, gt=0, allow_inf_nan=False)


class ScheduleConfig(Config):
    """How the learning rate moves: warm-up, then stable and decay ("wsd") or a cosine.

    Attributes:
        warmup: share of all steps spent rising from zero.
        decay: share of all steps spent falling at the end ("wsd").
        final: learning rate at the end, as a share of the peak.
    """

    name: Literal["wsd", "cosine"] = "wsd"
    warmup: float = Field(default=0.05, ge=0, lt=1)
    decay: float = Field(default=0.5, ge=0, le=1)
    final: float = Field(default=0.0, ge=0, le=1)

    @pydantic.model_validator(mode="after")
    def _fits(self) -> Self:
        if self.name == "wsd" and self.warmup + self.decay > 1:
            raise ValueError(f"warmup {self.warmup} and decay {self.decay} add up to more than 1")
        return self


class MemorizationConfig(Config):
    """What of its training text a model gives back, followed while it learns.

    Attributes:
        every: steps between measurements.
        probes: passages to try each time, and as many of validation text.
        prompt_tokens: of a passage, given to the model.
        continuation_tokens: that it is to give.
    """

    every: int = Field(default=100, gt=0)
    probes: int = Field(default=200, gt=0)
    prompt_tokens: int = Field(default=50, gt=0)
    continuation_tokens: int = Field(default=50, gt=0)


class TrainConfig(RuntimeConfig):
    """One training run.

    Attributes:
        data: folder made by `gemmule data`.
        preset: model preset, see gemmule.model.config.
        model: fields that differ from the preset.
        corpus_tokens: read only the corpus's first so many tokens; None: all.
        init: a model to start from instead of random weights (run, HF-layout folder, hub id).
        steps: optimiser steps.
        batch_size: sequences per step.
        micro_batch_size: sequences at once; gradients add up to batch_size. None: all at once.
        seq_len: tokens per sequence.
        seed: decides initial weights and batch order.
        evaluate_every: steps between evaluations on validation text.
        evaluation_tokens: validation tokens read each time.
        heldout_tokens: held-out tokens of the final figures; None is all of them.
        checkpoint_every: steps between training states.
        checkpoint_minutes: at most so many minutes between them, whatever the steps.
        keep_checkpoints: how many training states stay.
        log_every: steps between lines of metrics.jsonl.
        memorization: follow how much training text the model gives back; None: do not.
    """

    data: Path
    preset: str = "1m"
    model: dict[str, int | float] = Field(default_factory=dict)
    corpus_tokens: int | None = Field(default=None, gt=0)
    init: str | None = None
    steps: int = Field(gt=0)
    batch_size: int = Field(default=8, gt=0)
    micro_batch_size: int | None = Field(default=None, gt=0)
    seq_len: int = Field(default=256, gt=0)
    seed: int = Field(default=0, ge=0, lt=2**63)
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    evaluate_every: int = Field(default=200, gt=0)
    evaluation_tokens: int = Field(default=65536, gt=0)
    heldout_tokens: int | None = Field(default=None, gt=0)
    checkpoint_every: int = Field(default=500, gt=0)
    checkpoint_minutes: float = Field(default=5.0, gt=0)
    keep_checkpoints: int = Field(default=2, gt=0)
    log_every: int = Field(default=10, gt=0)
    memorization: MemorizationConfig | None = None

    @property
    def micro_batch(self) -> int:
        """Sequences at once."""
        return self.micro_batch_size or self.batch_size

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimiser step."""
        return self.batch_size * self.seq_len

    @pydantic.model_validator(mode="after")
    def _micro_batches_fill_the_batch(self) -> Self:
        if self.batch_size % self.micro_batch:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size "
                f"{self.micro_batch_size}"
            )
        return self


class DistillConfig(TrainConfig):
    """A training run that learns from a teacher's distribution.

    Attributes:
        teacher: run, HF-layout folder or hub id; or instead of it
        targets: a logit store, made by `gemmule record`; no teacher is loaded.
        loss: how far the student is from the teacher, see gemmule.losses.divergences.
        beta: the teacher's share in the mixture of "jsd".
        skew: of "skew_kl" the teacher's, of "skew_reverse_kl" the student's share in the mixture.
        temperature: of both distributions.
        alpha: weight of the next-token loss; 0 is the report's pure distillation.
        route_above: tokens of which the teacher's entropy is above so many nats learn from the next
            token instead; None: none do.
        cross_tokenizer: the teacher may have another tokenizer; it is learnt from by the
            likelihoods of spans, see gemmule.losses.span_likelihood.
        span_temperature: of those likelihoods, instead of `temperature`.
    """

    teacher: str | None = None
    targets: Path | None = None
    loss: Kind = CROSS_ENTROPY.kind
    beta: float = Field(default=CROSS_ENTROPY.beta, gt=0, lt=1)
    skew: float = Field(default=CROSS_ENTROPY.skew, gt=0, lt=1)
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    alpha: float = Field(default=0.0, ge=0, le=1)
    route_above: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    cross_tokenizer: bool = False
    span_temperature: float = Field(default=100.0, gt=0, allow_inf_nan=False)

    @pydantic.model_validator(mode="after")
    def _across_tokenizers_there_are_only_spans(self) -> Self:
        if not self.cross_tokenizer:
            return self
        if self.targets is not None:
            raise ValueError(
                "cross_tokenizer needs the teacher itself: a record of one holds its own pieces"
            )
        others = ("loss", "temperature", "route_above")
        given = [n for n in others if getattr(self, n) != type(self).model_fields[n].default]
        if given:
            raise ValueError(
                f"with cross_tokenizer no pieces are compared, and {given[0]} has no meaning: "
                "leave it out (span_temperature is what there is)"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _learns_from_one(self) -> Self:
        if self.route_above is not None and self.teacher is None:
            raise ValueError("route_above asks a teacher how sure it is: set teacher, not targets")
        if (self.teacher is None) == (self.targets is None):
            raise ValueError(
                "set either teacher (a model) or targets (a logit store made by gemmule record)"
            )
        return self

    @property
    def divergence(self) -> Divergence:
        """`loss` with its parameter."""
        return Divergence(self.loss, self.beta, self.skew)
