"""Kinds of runs: for each, a function from settings and data to a `Recipe`.

A package above this one adds a kind of its own with `register_recipe(SETTINGS, build)`, where
SETTINGS derives from `ObjectiveConfig` and names the kind.
"""

from collections.abc import Callable

from gemmule.data.dataset import Dataset
from gemmule.train.config import (
    DistillConfig,
    ObjectiveConfig,
    PretrainConfig,
    RunConfig,
    register_objective,
)
from gemmule.train.recipe import Recipe
from gemmule.train.recipes import distill, pretrain

BuildRecipe = Callable[[RunConfig, Dataset], Recipe]
_RECIPES: dict[type[ObjectiveConfig], BuildRecipe] = {}


def register_recipe(settings: type[ObjectiveConfig], build: BuildRecipe) -> None:
    """Adds a kind of run.

    Args:
        settings: settings of the kind, which the group `objective` holds.
        build: function that makes its recipe; it raises a UserError for what cannot be used, and
            writes nothing.
    """
    register_objective(settings)
    _RECIPES[settings] = build


register_recipe(PretrainConfig, pretrain.build)
register_recipe(DistillConfig, distill.build)


def build_recipe(config: RunConfig, dataset: Dataset) -> Recipe:
    """The recipe of a run of any kind.

    Raises:
        UserError: when a setting, the data or a model cannot be used.
    """
    return _RECIPES[type(config.objective)](config, dataset)
