"""A reward model from preference pairs."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from gemmule.checkpoints.hf.writer import save_model
from gemmule.data.dataset import Dataset
from gemmule.errors import ConfigError
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer
from gemmule.posttrain.answer_scores import AnswerScores, score_split, validation_scores
from gemmule.posttrain.answer_source import AnswerSource
from gemmule.posttrain.answer_table import AnswerTable
from gemmule.posttrain.reward_model.model import RewardModel
from gemmule.posttrain.reward_model.objective import RewardModeling
from gemmule.posttrain.reward_model.rules import compared_with_rules
from gemmule.posttrain.segments import Segments
from gemmule.train.config import ObjectiveConfig, RunConfig
from gemmule.train.initial_model import initial_model, required_start
from gemmule.train.recipe import Recipe, start_of


class RewardConfig(ObjectiveConfig):
    """A Bradley-Terry reward model; the formula is in gemmule.posttrain.reward_model.objective.

    Attributes:
        center: weight of the term that keeps the mean score of a pair at zero.
        margins: whether the margins of pairs that have one are used.
    """

    kind: Literal["reward"] = "reward"
    center: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    margins: bool = True


def build(config: RunConfig, dataset: Dataset) -> Recipe:
    """The recipe.

    Raises:
        UserError: when a setting, the data or the model to start from cannot be used.
    """
    settings = config.objective
    assert isinstance(settings, RewardConfig)
    start = required_start(config, "a reward model")
    if config.evaluation.memorization is not None:
        raise ConfigError(
            "evaluation.memorization: a reward model scores text and continues none, so there is "
            "nothing to measure: leave it out"
        )
    table = AnswerTable.read(dataset, config.data.seq_len)
    body = initial_model(config, dataset)
    parent = start_of(start, body)
    model = RewardModel.on(body)
    answers = table.answers["train"]
    pairs = list(zip(answers[::2], answers[1::2], strict=True))
    source = AnswerSource(pairs, config.data.micro_batch, config.seed)
    margins = table.margins if settings.margins else [0.0] * len(pairs)
    objective = RewardModeling(margins, settings.center)
    evaluate = functools.partial(_evaluate, config, model, table, objective)
    tokens = sum(map(len, answers)) / len(pairs)

    def result() -> dict[str, Any]:
        scores = evaluate("heldout", config.evaluation.heldout_tokens)
        judged = [table.answers["heldout"][i] for i in scores.indices]
        rules = compared_with_rules(scores.right, judged, dataset.tokenizer)
        return {"split": "heldout", **scores.result(), "rules": rules}

    return Recipe(
        model,
        source,
        objective,
        probes=[
            validation_scores(
                config.evaluation, lambda: evaluate("validation", config.evaluation.tokens)
            )
        ],
        result=result,
        parents=[parent],
        tokens_per_step=round(tokens * config.data.batch_size),
        save=_save,
    )


def _save(model: Gemma, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes body and head; an adapter, which would leave out the head, is merged before."""
    save_model(model, tokenizer, folder)


def _evaluate(
    config: RunConfig,
    model: RewardModel,
    table: AnswerTable,
    objective: RewardModeling,
    split: str,
    tokens: int | None,
) -> AnswerScores:
    def score(split: str, segments: Segments, indices: Sequence[int]) -> Tensor:
        return model.scores(segments, compiled=objective.compiled)

    batch = config.data.micro_batch * config.data.seq_len
    device = str(model.norm.weight.device)
    return score_split(table, split, score, device, batch=batch, tokens=tokens)
