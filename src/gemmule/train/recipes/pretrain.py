"""Pretraining: next-token prediction on packed text."""

from gemmule.data.dataset import Dataset
from gemmule.data.mixture.mixed_dataset import MixedDataset
from gemmule.data.packed_text import PackedText
from gemmule.data.source import Source
from gemmule.runtime.world import SOLO, World
from gemmule.train.config import RunConfig
from gemmule.train.initial_model import initial_model
from gemmule.train.mixtures import mixed_text
from gemmule.train.objectives.next_token import NextToken
from gemmule.train.recipe import Recipe, language_model_recipe


def build(config: RunConfig, dataset: Dataset, world: World = SOLO) -> Recipe:
    """The recipe of one of the ranks.

    Raises:
        UserError: when a setting, the data or the model to start from cannot be used.
    """
    model = initial_model(config, dataset)
    source = text_source(config, dataset, world)
    return language_model_recipe(config, dataset, model, source, NextToken(), world=world)


def text_source(config: RunConfig, dataset: Dataset, world: World = SOLO) -> Source:
    """A rank's part of the training text: of one folder, or of several by their weights."""
    if isinstance(dataset, MixedDataset):
        return mixed_text(config, dataset, part=world.rank, parts=world.size)
    return packed_text(config, dataset, world)


def packed_text(
    config: RunConfig, dataset: Dataset, world: World = SOLO, sequences: int | None = None
) -> PackedText:
    """The training split, as far as the run reads it.

    Args:
        config: settings of the run.
        dataset: its data.
        world: ranks that share its batches.
        sequences: number of sequences to which the corpus is limited besides; None: no limit.
    """
    data = config.data
    limits = [] if sequences is None else [sequences]
    if data.corpus_tokens is not None:
        limits.append(-(-data.corpus_tokens // data.seq_len))
    return PackedText(
        dataset.split("train"),
        data.micro_batch,
        data.seq_len,
        config.seed,
        min(limits, default=None),
        part=world.rank,
        parts=world.size,
    )
