"""Supervised fine-tuning: next-token prediction on the model's turns of conversations."""

from typing import Literal

from gemmule.data.dataset import Dataset
from gemmule.posttrain.chat_data import ChatData
from gemmule.train.config import ObjectiveConfig, RunConfig
from gemmule.train.initial_model import initial_model
from gemmule.train.objectives.next_token import NextToken
from gemmule.train.recipe import Recipe, language_model_recipe
from gemmule.train.recipes.pretrain import packed_text


class SftConfig(ObjectiveConfig):
    """Supervised fine-tuning on conversations."""

    kind: Literal["sft"] = "sft"


def build(config: RunConfig, dataset: Dataset) -> Recipe:
    """The recipe.

    Raises:
        UserError: when a setting, the data or the model to start from cannot be used.
    """
    ChatData(dataset).check("conversations")
    model = initial_model(config, dataset)
    source = packed_text(config, dataset)
    return language_model_recipe(config, dataset, model, source, NextToken())
