"""The models of a plan: presets, or folders whose headers are read."""

from dataclasses import dataclass
from pathlib import Path

from gemmule.checkpoints.load import open_checkpoint
from gemmule.config import nearest
from gemmule.data.dataset import Dataset
from gemmule.errors import CheckpointError, ConfigError, TokenizerError
from gemmule.model.config import PRESETS, GemmaConfig, preset
from gemmule.model.tokenizer import Tokenizer


@dataclass(frozen=True)
class Planned:
    """A model of a plan.

    Attributes:
        name: name as the user gave it.
        config: shape of the model.
        path: folder of its weights; None for a preset, which has none yet.
        tokenizer: its tokenizer's fingerprint; None for a preset, or for a model without one.
    """

    name: str
    config: GemmaConfig
    path: str | None = None
    tokenizer: str | None = None


def find(what: str, name: str, vocab_size: int | None) -> Planned:
    """The model that `name` means; no weights are read.

    Args:
        what: its role, for error messages.
        name: a preset, or a run or model folder.
        vocab_size: vocabulary size of presets; None if unknown.

    Raises:
        ConfigError: when it is neither.
        CheckpointError: when the folder holds no readable model.
    """
    if name in PRESETS:
        if vocab_size is None and "vocab_size" not in PRESETS[name]:
            raise ConfigError(
                f"preset {name} has no vocabulary of its own: give --data, or --vocab-size where "
                "there is no corpus yet"
            )
        sized = {} if vocab_size is None else {"vocab_size": vocab_size}
        return Planned(name, preset(name, **sized))
    if not Path(name).exists():
        if Path(name).name != name:
            raise CheckpointError(f"no folder {name} for the {what}: give a run or model folder")
        raise ConfigError(
            f"the {what} {name!r} is neither a preset nor a folder; {nearest(name, list(PRESETS))}"
        )
    with open_checkpoint(name) as checkpoint:
        tokenizer = checkpoint.tokenizer_if_any
        fingerprint = tokenizer.fingerprint if isinstance(tokenizer, Tokenizer) else None
        return Planned(name, checkpoint.config, name, fingerprint)


def find_both(
    teacher: str, student: str, dataset: Dataset | None, vocab_size: int | None
) -> tuple[Planned, Planned]:
    """Teacher and student, which share one vocabulary: that of the corpus if there is one.

    Raises:
        ConfigError: when their vocabularies differ, or none is known.
        TokenizerError: when a folder's tokenizer is not the corpus's.
    """
    size = dataset.tokenizer.vocab_size if dataset is not None else vocab_size
    first = find("teacher", teacher, size)
    # A teacher's head may be padded; its student's head then is, too.
    second = find("student", student, first.config.vocab_size if first.path else size)
    if dataset is not None:
        for what, model in (("teacher", first), ("student", second)):
            if model.tokenizer not in (None, dataset.tokenizer.fingerprint):
                raise TokenizerError(
                    f"the {what}, {model.name}, has another tokenizer (fingerprint "
                    f"{str(model.tokenizer)[:12]}) than the data in {dataset.path} "
                    f"({dataset.tokenizer.fingerprint[:12]}): prepare the data with "
                    f"{model.name}'s tokenizer, or choose another {what}"
                )
    if first.config.vocab_size != second.config.vocab_size:
        raise ConfigError(
            f"the teacher has a vocabulary of {first.config.vocab_size:,} and the student of "
            f"{second.config.vocab_size:,}: a student learns from a teacher of its own vocabulary"
        )
    return first, second
