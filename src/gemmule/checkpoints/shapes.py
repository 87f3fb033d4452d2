"""The config and tokenizer of formats that only store weights.

gemma_pytorch's files and JAX parameter trees leave the config to the program that reads them. A
config.json next to the weights takes precedence. Without one, the shapes must be those of a
published size: weights do not reveal the window, the caps and the query scale.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from gemmule import files
from gemmule.checkpoints.checkpoint import EMBEDDING, HEAD
from gemmule.checkpoints.hf.config import from_hf, read_object
from gemmule.checkpoints.stored_tensor import few
from gemmule.errors import CheckpointError, MissingTokenizerError, TokenizerError
from gemmule.model.config import PRESETS, GemmaConfig, preset
from gemmule.model.tokenizer import Tokenizer

PUBLISHED = ("2b", "9b", "27b")
# Rows of Google's JAX embeddings: the 256,000 tokens and 128 unused rows.
JAX_ROWS = 256_128
_GATE = "layers.0.mlp.gate_proj.weight"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")


def config_beside(path: Path) -> GemmaConfig | None:
    """The config.json in a checkpoint's folder, if there is one.

    Raises:
        CheckpointError: when it is broken or does not describe a Gemma 2.
    """
    file = (path if path.is_dir() else path.parent) / "config.json"
    return from_hf(read_object(file), str(file)) if file.is_file() else None


def check_own_head(path: Path, names: Iterable[str]) -> None:
    """Checks that a head which config.json says is not the embedding is among the weights.

    Raises:
        CheckpointError: when it is not.
    """
    file = (path if path.is_dir() else path.parent) / "config.json"
    if not file.is_file() or HEAD in names:
        return
    if read_object(file).get("tie_word_embeddings") is False:
        raise CheckpointError(
            f"{file}: tie_word_embeddings is false, and the weights hold no {HEAD} besides the "
            "embedding; if they are one matrix, set it to true"
        )


def tokenizer_beside(path: Path) -> Tokenizer:
    """The tokenizer in a checkpoint's folder, or next to that folder; see `tokenizer_in`."""
    return tokenizer_in(*((path, path.parent) if path.is_dir() else (path.parent,)))


def tokenizer_in(*folders: Path) -> Tokenizer:
    """The tokenizer in the first of `folders` that has one.

    Raises:
        MissingTokenizerError: when there is none.
        TokenizerError: when it is not a Gemma tokenizer.
    """
    for folder in folders:
        present = [folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()]
        for file in present:
            if files.is_lfs_pointer(file):
                raise TokenizerError(f"{file} is {files.LFS_POINTER}")
        if present:
            return Tokenizer.load(folder)
    raise MissingTokenizerError(
        f"no tokenizer in {folders[0]}: put the model's tokenizer.json or tokenizer.model there to "
        "use text; token ids work without one"
    )


def config_of_shapes(shapes: Mapping[str, tuple[int, ...]], source: str) -> GemmaConfig:
    """The config of the published size with these shapes.

    Args:
        shapes: shapes by our parameter names.
        source: the checkpoint, for messages.

    Raises:
        CheckpointError: when no published size fits, or it is not a Gemma 2.
    """
    embedding, gate = shapes.get(EMBEDDING, ()), shapes.get(_GATE, ())
    if len(embedding) != 2 or not gate:
        raise CheckpointError(
            f"{source} is not a Gemma 2: it holds {few(list(shapes))}; expected {EMBEDDING} "
            f"[V, D] and {_GATE} [F, D]"
        )
    layers = {name.split(".")[1] for name in shapes if name.startswith("layers.")}
    known = {
        "vocab_size": embedding[0],
        "hidden_size": embedding[1],
        "intermediate_size": gate[0],
        "num_hidden_layers": len(layers),
    }
    return published_config(known, source)


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
