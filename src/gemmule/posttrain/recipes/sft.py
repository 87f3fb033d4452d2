"""Supervised fine-tuning: next-token prediction on the model's turns of conversations."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import pydantic
from pydantic import Field

from gemmule.checkpoints.load import open_checkpoint
from gemmule.data import whole_documents
from gemmule.data.dataset import Dataset
from gemmule.data.packed_text import sequence_count
from gemmule.errors import ConfigError, DataError, TokenizerError
from gemmule.model.gemma import Gemma
from gemmule.posttrain.chat_data import ChatData
from gemmule.posttrain.objectives.answer_tokens import AnswerTokens
from gemmule.posttrain.stop_rate import stop_rate
from gemmule.train.config import ObjectiveConfig, RunConfig
from gemmule.train.initial_model import initial_model
from gemmule.train.objectives.stored_distillation import StoredDistillation
from gemmule.train.recipe import Recipe, language_model_recipe
from gemmule.train.recipes.distill import open_store
from gemmule.train.recipes.pretrain import packed_text

STOP_RATE = "stop_rate"  # in result.json


class SftConfig(ObjectiveConfig):
    """Supervised fine-tuning on conversations.

    Attributes:
        targets: logit store of a teacher, recorded on the same conversations by `gemmule record`;
            None: the answers alone are learned.
        temperature: softmax temperature of both distributions, with targets.
        alpha: weight of the next-token loss, with targets.
        stop_prompts: number of held-out prompts that the trained model answers, to measure how many
            answers end by themselves; 0: that is not measured.
        max_new_tokens: limit of these answers, tokens.
    """

    kind: Literal["sft"] = "sft"
    targets: Path | None = None
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    alpha: float = Field(default=0.0, ge=0, le=1)
    stop_prompts: int = Field(default=100, ge=0)
    max_new_tokens: int = Field(default=256, gt=0)

    @pydantic.model_validator(mode="after")
    def _targets_have_their_settings(self) -> Self:
        for name in ("temperature", "alpha"):
            default = type(self).model_fields[name].default
            if self.targets is None and getattr(self, name) != default:
                raise ValueError(f"{name} has no meaning without targets: leave it out")
        return self

    @pydantic.model_validator(mode="after")
    def _a_limit_has_answers(self) -> Self:
        default = type(self).model_fields["max_new_tokens"].default
        if not self.stop_prompts and self.max_new_tokens != default:
            raise ValueError(
                "max_new_tokens limits the answers to stop_prompts, and stop_prompts is 0: leave "
                "one of the two out"
            )
        return self


def build(config: RunConfig, dataset: Dataset) -> Recipe:
    """The recipe.

    Raises:
        UserError: when a setting, the data, the logit store or the model to start from cannot be
            used.
    """
    settings = config.objective
    assert isinstance(settings, SftConfig)
    data = ChatData(dataset)
    data.check("conversations")
    check_chat_format(config, dataset)
    model = initial_model(config, dataset)
    packing = whole_documents.pack(dataset.split("train"), config.data.seq_len)
    source = packed_text(config, dataset)
    check_targets(dataset, packing)
    inputs: dict[str, Any] = {"packing": packing.summary()}
    if settings.targets is None:
        recipe = language_model_recipe(
            config, dataset, model, source, AnswerTokens(), inputs=inputs
        )
    else:
        store = open_store(config, settings.targets, model, dataset)
        source = packed_text(config, dataset, sequences=store.sequences)
        objective = StoredDistillation(store, settings.temperature, settings.alpha)
        recipe = language_model_recipe(
            config,
            dataset,
            model,
            source,
            objective,
            teachers=[store.manifest["teacher"]],
            inputs={**inputs, "targets": store.summary()},
        )
    return recipe if not settings.stop_prompts else _with_stop_rate(config, data, model, recipe)


def _with_stop_rate(config: RunConfig, data: ChatData, model: Gemma, recipe: Recipe) -> Recipe:
    """The recipe, with the share of answers that end by themselves in its result."""
    settings = config.objective
    assert isinstance(settings, SftConfig)

    def result() -> Mapping[str, Any]:
        room, tokenizer = model.config.max_position_embeddings, data.dataset.tokenizer
        asked = data.conversations("heldout")[: settings.stop_prompts]
        prompts = [c.prompt for c in asked if len(c.prompt) < room]
        limit, measured = settings.max_new_tokens, None
        if prompts:
            rate = stop_rate(model, tokenizer, prompts, max_new_tokens=limit, seed=config.seed)
            measured = {**rate, "prompt_too_long": len(asked) - len(prompts)}
        return {**recipe.result(), STOP_RATE: measured}

    return replace(recipe, result=result)


def describe_stops(result: Mapping[str, Any]) -> list[str]:
    """A line on how many answers end by themselves, where that was measured."""
    measured = result.get(STOP_RATE)
    if measured is None:
        return []
    too_long = measured.get("prompt_too_long", 0)
    return [
        f"{measured['value']:.1%} of {measured['n']} answers end by themselves (95% interval "
        f"{measured['low']:.1%} to {measured['high']:.1%}), {measured['mean_tokens']} tokens each"
        + f"; {too_long} prompts leave no room for one"
        * bool(too_long)
    ]


def with_epochs(config: RunConfig, epochs: float) -> RunConfig:
    """The settings with as many steps as a number of passes through the data takes.

    Raises:
        ConfigError: unless `epochs` is above 0.
        DataError: when the data cannot be used.
    """
    check_epochs(epochs)
    split = Dataset.open(config.data.path).split("train")
    rows = sequence_count(split, config.data.seq_len)
    steps = max(1, math.ceil(epochs * rows / config.data.batch_size))
    return config.model_copy(update={"steps": steps})


def check_epochs(epochs: float) -> None:
    """Raises ConfigError unless `epochs` is a number above 0."""
    if not 0 < epochs < math.inf:
        raise ConfigError(f"epochs is {epochs}; it must be above 0")


def check_chat_format(config: RunConfig, dataset: Dataset) -> None:
    """Raises TokenizerError where the model to start from has another chat format than the data."""
    if config.model.init is None:
        return
    with open_checkpoint(config.model.init) as checkpoint:
        if checkpoint.tokenizer.chat_format != dataset.tokenizer.chat_format:
            raise TokenizerError(
                f"{config.model.init} has another chat template or other stop tokens than those "
                f"that {dataset.path} was made with: make the data again with its tokenizer"
            )


def check_targets(dataset: Dataset, packing: whole_documents.Packing) -> None:
    """Raises DataError, with its name, for a conversation of the training split without labels."""
    split = dataset.split("train")
    left_out = set(packing.left_out)
    labels = split.read_mask(0, split.token_count)
    for n, name in enumerate(split.document_names()):
        start, stop = (int(b) for b in packing.bounds[n : n + 2])
        if n not in left_out and not labels[start + 1 : stop].any():
            raise DataError(
                f"conversation {name} of {dataset.path} has nothing to learn (its loss mask is "
                "empty): make the folder again without it"
            )
