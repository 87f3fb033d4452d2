"""The config and tokenizer of formats that only store weights.

gemma_pytorch's files and JAX parameter trees leave the config to the program that reads them. A
config.json next to the weights takes precedence. Without one, the shapes must be those of a
published size: weights do not reveal the window, the caps and the query scale.
"""

from collections.abc import Mapping
from pathlib import Path

from gemmule.checkpoints.hf.config import from_hf, read_object
from gemmule.errors import CheckpointError, TokenizerError
from gemmule.model.config import PRESETS, GemmaConfig, preset
from gemmule.model.tokenizer import Tokenizer

PUBLISHED = ("2b", "9b", "27b")
# Rows of Google's JAX embeddings: the 256,000 tokens and 128 unused rows.
JAX_ROWS = 256_128


def config_beside(path: Path) -> GemmaConfig | None:
    """The config.json in a checkpoint's folder, if there is one.

    Raises:
        CheckpointError: when it is broken or does not describe a Gemma 2.
    """
    file = (path if path.is_dir() else path.parent) / "config.json"
    return from_hf(read_object(file), str(file)) if file.is_file() else None


def tokenizer_beside(path: Path) -> Tokenizer:
    """The tokenizer.model in a checkpoint's folder, or next to that folder.

    Raises:
        TokenizerError: when there is none, or it is not a Gemma tokenizer.
    """
    for folder in (path, path.parent) if path.is_dir() else (path.parent,):
        if (folder / "tokenizer.model").is_file():
            return Tokenizer.load(folder)
    where = path if path.is_dir() else path.parent
    raise TokenizerError(f"{path} has no tokenizer: put its tokenizer.model into {where}")


def published_config(known: Mapping[str, int], source: str) -> GemmaConfig:
    """The config of the published size with the `known` fields, and the `known` vocab_size.

    Args:
        known: fields of GemmaConfig that the shapes imply; hidden_size, intermediate_size and
            num_hidden_layers are always among them.
        source: the checkpoint, for messages.

    Raises:
        CheckpointError: when no published size fits.
    """
    fields = {name: value for name, value in known.items() if name != "vocab_size"}
    for name in PUBLISHED:
        if all(PRESETS[name][field] == value for field, value in fields.items()):
            return preset(name, **{k: v for k, v in known.items() if k == "vocab_size"})
    shown = ", ".join(f"{field} {value}" for field, value in sorted(fields.items()))
    raise CheckpointError(
        f"{source} holds only weights, whose shapes ({shown}) do not match any published "
        f"Gemma 2 ({', '.join(PUBLISHED)}): put the model's config.json (Hugging Face's format) "
        "next to it"
    )
