"""Preference tuning: a model learns from pairs of answers, or from answers marked good or bad."""

import functools
from collections.abc import Mapping, Sequence
from typing import Literal, Self

import pydantic
from pydantic import Field
from torch import Tensor

from gemmule.data.dataset import Dataset
from gemmule.model.gemma import Gemma
from gemmule.posttrain.answer_scores import AnswerScores, score_split, validation_scores
from gemmule.posttrain.answer_source import AnswerSource
from gemmule.posttrain.answer_table import AnswerTable
from gemmule.posttrain.mismatched import mismatched
from gemmule.posttrain.objectives.preference import (
    MISMATCHED,
    TRAIN,
    PairPreference,
    UnpairedPreference,
    answers_of,
)
from gemmule.posttrain.preference_losses import KTOLoss, PairLoss
from gemmule.posttrain.reference import Reference
from gemmule.posttrain.rendering import Rendered, longest_conversation
from gemmule.posttrain.segments import Segments
from gemmule.runs.layout import RunLayout
from gemmule.runtime.config import RuntimeConfig
from gemmule.train.config import ObjectiveConfig, RunConfig
from gemmule.train.initial_model import initial_model, required_start
from gemmule.train.recipe import Cost, Recipe, start_of

Method = Literal["dpo", "ipo", "simpo", "kto"]
_BETA: Mapping[Method, float] = {"dpo": 0.1, "ipo": 0.1, "simpo": 2.0, "kto": 0.1}
_GAMMA = 1.0
# Settings that only some methods have.
_OWN: Mapping[str, tuple[Method, ...]] = {
    "label_smoothing": ("dpo", "simpo"),
    "gamma": ("simpo",),
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
}


class PreferenceConfig(ObjectiveConfig):
    """Preference tuning; the formulas are in gemmule.posttrain.preference_losses.

    Attributes:
        method: "dpo", "ipo" or "simpo" on pairs; "kto" on pairs or on single answers that are
            marked by a field "label".
        beta: strength of the tie to the model that the run starts from, in "simpo" the scale of
            the rewards; None: 0.1, in "simpo" 2.
        label_smoothing: part of the pairs that are assumed to be labeled the wrong way round.
        gamma: margin between the rewards of the two answers, in "simpo"; None: 1.
        desirable_weight: weight of good answers, in "kto".
        undesirable_weight: weight of bad answers, in "kto".
    """

    kind: Literal["preference"] = "preference"
    method: Method = "dpo"
    beta: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    gamma: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    desirable_weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    undesirable_weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    @pydantic.model_validator(mode="after")
    def _only_settings_of_the_method(self) -> Self:
        for name, methods in _OWN.items():
            given = getattr(self, name) != type(self).model_fields[name].default
            if given and self.method not in methods:
                raise ValueError(
                    f"{name} is a setting of {' and '.join(methods)}, and the method is "
                    f"{self.method}: leave it out"
                )
        return self

    def loss(self) -> PairLoss | KTOLoss:
        """The loss with its settings."""
        beta = _BETA[self.method] if self.beta is None else self.beta
        if self.method == "kto":
            return KTOLoss(beta, self.desirable_weight, self.undesirable_weight)
        gamma = 0.0
        if self.method == "simpo":
            gamma = _GAMMA if self.gamma is None else self.gamma
        return PairLoss(self.method, beta, self.label_smoothing, gamma)


def build(config: RunConfig, dataset: Dataset) -> Recipe:
    """The recipe.

    Raises:
        UserError: when a setting, the data or the model to start from cannot be used.
    """
    settings = config.objective
    assert isinstance(settings, PreferenceConfig)
    start = required_start(config, "preference tuning")
    loss, seq_len = settings.loss(), config.data.seq_len
    table = AnswerTable.read(dataset, seq_len, unpaired=isinstance(loss, KTOLoss))
    model = initial_model(config, dataset)
    answers = table.answers[TRAIN]
    longest = longest_conversation(seq_len)
    others = mismatched(answers, longest) if isinstance(loss, KTOLoss) else []
    size = 1 if isinstance(loss, KTOLoss) else 2  # answers of an example
    examples = [tuple(answers[i : i + size]) for i in range(0, len(answers), size)]
    source = AnswerSource(examples, config.data.micro_batch, config.seed)
    reference = None
    if settings.method != "simpo":
        used = {size * i + place for i in source.first(_drawn(config)) for place in range(size)}
        groups: dict[str, Sequence[Rendered | None]] = {**table.answers}
        groups[TRAIN] = _only(answers, used)
        if others:
            groups[MISMATCHED] = _only(others, used)
        reference = Reference(groups)
    objective: PairPreference | UnpairedPreference
    if isinstance(loss, KTOLoss):
        assert reference is not None
        objective = UnpairedPreference(loss, reference, table.desirable[TRAIN], others)
    else:
        objective = PairPreference(loss, reference)
    evaluate = functools.partial(_evaluate, config, model, table, objective)
    tokens = sum(map(len, answers)) / len(answers) * size
    return Recipe(
        model,
        source,
        objective,
        probes=[
            validation_scores(
                config.evaluation, lambda: evaluate("validation", config.evaluation.tokens)
            )
        ],
        result=lambda: {
            "split": "heldout",
            **evaluate("heldout", config.evaluation.heldout_tokens).result(),
        },
        parents=[start_of(start, model)],
        tokens_per_step=round(tokens * config.data.batch_size),
        begin=None if reference is None else functools.partial(_begin, config, model, reference),
    )


def _drawn(config: RunConfig) -> int:
    return config.steps * config.data.batch_size


def _only(answers: Sequence[Rendered], used: set[int]) -> list[Rendered | None]:
    return [answer if i in used else None for i, answer in enumerate(answers)]


def _begin(
    config: RunConfig, model: Gemma, reference: Reference, layout: RunLayout, runtime: RuntimeConfig
) -> Cost:
    """Computes the reference; what training needs of it costs, the rest is evaluation."""
    data = config.data
    reference.begin(model, layout, runtime, data.micro_batch * data.seq_len)
    trained = reference.groups.keys() & {TRAIN, MISMATCHED}
    tokens = sum(reference.tokens(name) for name in trained)
    flops = model.config.forward_flops_per_token(data.seq_len) * tokens
    return Cost(flops, sum(reference.seconds[name] for name in trained))


def _evaluate(
    config: RunConfig,
    model: Gemma,
    table: AnswerTable,
    objective: PairPreference | UnpairedPreference,
    split: str,
    tokens: int | None,
) -> AnswerScores:
    """The rewards that the model implies for the answers of a split."""

    def score(split: str, segments: Segments, indices: Sequence[int]) -> Tensor:
        reference = objective.reference
        reference_S = None if reference is None else reference.of(split, list(indices))
        answers = answers_of(model, segments, reference_S, compiled=objective.compiled)
        return objective.preference_loss.rewards(answers)

    batch = config.data.micro_batch * config.data.seq_len
    device = str(model.norm.weight.device)
    return score_split(table, split, score, device, batch=batch, tokens=tokens)
