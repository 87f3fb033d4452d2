"""Kinds of runs: for each, a function from settings and data to a `Recipe`.

A package above this one adds a kind of its own with `register_recipe(SETTINGS, build)`, where
SETTINGS derives from `ObjectiveConfig` and names the kind.
"""

from collections.abc import Callable

from gemmule.data.dataset import Dataset
from gemmule.errors import ConfigError
from gemmule.runtime.world import SOLO, World
from gemmule.train.config import (
    DistillConfig,
    ObjectiveConfig,
    PretrainConfig,
    RunConfig,
    register_objective,
)
from gemmule.train.recipe import Recipe
from gemmule.train.recipes import distill, pretrain

BuildRecipe = Callable[[RunConfig, Dataset, World], Recipe]
_RECIPES: dict[type[ObjectiveConfig], BuildRecipe] = {}


def register_recipe(settings: type[ObjectiveConfig], build: BuildRecipe) -> None:
    """Adds a kind of run.

    Args:
        settings: settings of the kind, which the group `objective` holds.
        build: function that makes its recipe for one of the ranks of a world; it raises a UserError
            for what cannot be used, and writes nothing. `alone` makes one of a function for kinds
            that have no ranks.
    """
    register_objective(settings)
    _RECIPES[settings] = build


def alone(build: Callable[[RunConfig, Dataset], Recipe]) -> BuildRecipe:
    """A function for a kind of run that is trained by one process."""

    def built(config: RunConfig, dataset: Dataset, world: World) -> Recipe:
        if world.size > 1:
            raise ConfigError(
                f"a run of kind {config.objective.kind!r} is trained by one process, and "
                f"{world.size} were started: start it without torchrun and --nproc"
            )
        return build(config, dataset)

    return built


register_recipe(PretrainConfig, pretrain.build)
register_recipe(DistillConfig, distill.build)


def build_recipe(config: RunConfig, dataset: Dataset, world: World = SOLO) -> Recipe:
    """The recipe of a run of any kind.

    Args:
        config: settings of the run; of several ranks, each has its own, see DataConfig.shared_by.
        dataset: its data.
        world: ranks of the run.

    Raises:
        UserError: when a setting, the data or a model cannot be used.
    """
    return _RECIPES[type(config.objective)](config, dataset, world)
