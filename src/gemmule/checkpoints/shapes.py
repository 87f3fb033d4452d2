"""A model's config and tokenizer for formats that hold weights and nothing else.

gemma_pytorch's files and JAX parameter trees leave the config to the program that reads them. A
config.json beside the weights always decides. Without one the shapes must be those of a published
size: the window, the caps and the query scale cannot be read off weights.
"""

from collections.abc import Mapping
from pathlib import Path

from gemmule.checkpoints.hf.config import from_hf, read_object
from gemmule.errors import CheckpointError, TokenizerError
from gemmule.model.config import PRESETS, GemmaConfig, preset
from gemmule.model.tokenizer import Tokenizer

PUBLISHED = ("2b", "9b", "27b")
# Rows of Google's JAX embeddings: the 256,000 pieces and 128 that stand for nothing.
JAX_ROWS = 256_128


def config_beside(path: Path) -> GemmaConfig | None:
    """The config.json in a checkpoint's folder, if there is one.

    Raises:
        CheckpointError: when it is broken or describes something else than Gemma 2.
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
    raise TokenizerError(f"{path} holds no tokenizer: put its tokenizer.model into {where}")


def published_config(known: Mapping[str, int], source: str) -> GemmaConfig:
    """The published size whose fields are the `known` ones, with its own vocabulary.

    Args:
        known: what the shapes tell, as GemmaConfig's fields: always hidden_size,
            intermediate_size and num_hidden_layers; vocab_size is taken as it is.
        source: the checkpoint, for messages.

    Raises:
        CheckpointError: when no published size fits.
    """
    fields = {name: value for name, value in known.items() if name != "vocab_size"}
    for name in PUBLISHED:
        if all(PRESETS[name][field] == value for field, value in fields.items()):
            return preset(name, **{k: v for k, v in known.items() if k == "vocab_size"})
    told = ", ".join(f"{field} {value}" for field, value in sorted(fields.items()))
    raise CheckpointError(
        f"{source} holds weights alone, and their shapes ({told}) are those of no published "
        f"Gemma 2 ({', '.join(PUBLISHED)}): put the model's config.json (Hugging Face's form) "
        "beside it"
    )
