"""The model of a run as it is before the first step."""

import torch

from gemmule.checkpoints.load import open_checkpoint
from gemmule.data.dataset import Dataset
from gemmule.errors import ConfigError
from gemmule.model.config import GemmaConfig, preset
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer
from gemmule.teachers.gemma import load_partner
from gemmule.train.config import RunConfig
from gemmule.train.memory_check import check_memory


def required_start(config: RunConfig, what: str) -> str:
    """The model that a run must start from, `model.init`.

    Args:
        config: settings of the run.
        what: the kind of run, for the error.

    Raises:
        ConfigError: when the settings name none.
    """
    if config.model.init is None:
        raise ConfigError(
            f"{what} starts from a trained model: set model.init to one, such as a run of gemmule "
            "sft"
        )
    return config.model.init


def initial_model(config: RunConfig, dataset: Dataset) -> Gemma:
    """The model named by `model.init`, or one with random weights drawn from the run's seed.

    Raises:
        ConfigError: when the shape does not fit the data, its tokenizer or this machine's memory.
        TokenizerError: when the model to start from has another tokenizer than the data.
        CheckpointError: when the model to start from cannot be read.
    """
    if config.model.init is not None:
        model = load_partner(config.model.init, "the model to start from", dataset)
        _check_context(config, model.config)
        return model
    tokenizer = dataset.tokenizer
    shape = preset(
        config.model.preset, **{"vocab_size": tokenizer.vocab_size, **config.model.shape}
    )
    if shape.vocab_size < tokenizer.vocab_size:
        raise ConfigError(
            f"model.vocab_size = {shape.vocab_size} is smaller than the tokenizer's "
            f"vocabulary of {tokenizer.vocab_size}: leave it out, or make it at least that"
        )
    _check_context(config, shape)
    check_memory(config, shape)
    torch.manual_seed(config.seed)
    return Gemma(shape)


def run_tokenizer(config: RunConfig, dataset: Dataset) -> Tokenizer:
    """The tokenizer that is saved with the run's model: the data's.

    A run that starts from a model keeps that model's chat template and stop ids.

    Raises:
        CheckpointError: when the model to start from cannot be read.
    """
    if config.model.init is None:
        return dataset.tokenizer
    with open_checkpoint(config.model.init) as checkpoint:
        theirs = checkpoint.tokenizer
    return dataset.tokenizer.with_chat_format(
        *theirs.chat_format, theirs.named_templates, theirs.token_names
    )


def _check_context(config: RunConfig, shape: GemmaConfig) -> None:
    if config.data.seq_len > shape.max_position_embeddings:
        raise ConfigError(
            f"data.seq_len = {config.data.seq_len} is longer than the model's context of "
            f"{shape.max_position_embeddings} tokens: shorten it, or set "
            "model.max_position_embeddings"
        )
