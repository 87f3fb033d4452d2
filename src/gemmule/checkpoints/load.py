"""Opening and loading a checkpoint, whatever its format."""

from pathlib import Path

import torch

from gemmule.checkpoints.checkpoint import Checkpoint
from gemmule.checkpoints.hf import open_hf
from gemmule.checkpoints.locate import locate
from gemmule.checkpoints.quantised import is_quantised, open_quantised
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Finds and opens what `path` means (see locate.py); reads no weights yet.

    Raises:
        CheckpointError: when there is no readable checkpoint.
        MissingExtraError: when its format needs a package that is not installed.
    """
    found = locate(path)
    match found.format:
        case "gguf":
            from gemmule.checkpoints.gguf_reader import open_gguf

            return open_gguf(found.path)
        case "gemma_pytorch":
            from gemmule.checkpoints.gemma_pytorch import open_gemma_pytorch

            return open_gemma_pytorch(found.path)
        case "npz":
            from gemmule.checkpoints.jax_tree import open_npz

            return open_npz(found.path)
        case "orbax":
            from gemmule.checkpoints.jax_tree import open_orbax

            return open_orbax(found.path)
        case _:
            if is_quantised(found.path):
                return open_quantised(found.path)
            return open_hf(found.path)


def load_model(
    path: str | Path,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Gemma, Tokenizer]:
    """The model and tokenizer at `path`, in memory; arguments as for Checkpoint.load.

    Raises:
        CheckpointError: when there is no readable model.
        TokenizerError: when its tokenizer is missing or broken.
        ConfigError: for an impossible dtype or device.
    """
    with open_checkpoint(path) as checkpoint:
        tokenizer = checkpoint.tokenizer  # the smaller part first: it fails in no time
        return checkpoint.load(dtype, device), tokenizer
