"""Opens and loads checkpoints of any format."""

from pathlib import Path

import torch

from gemmule.checkpoints.checkpoint import Checkpoint, parse_device
from gemmule.checkpoints.hf.reader import open_hf
from gemmule.checkpoints.locate import Located, locate
from gemmule.checkpoints.packed.reader import is_quantized, load_quantized, open_quantized
from gemmule.errors import CheckpointError, ConfigError, MissingTokenizerError
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer
from gemmule.runtime.threads import set_up_torch


def open_checkpoint(path: str | Path, base: str | None = None) -> Checkpoint:
    """Opens the checkpoint that `path` names (see locate.py) without reading its weights.

    Args:
        path: a run, folder, file or hub id.
        base: if `path` is an adapter, the model to merge it into; None: the one that it names.

    Raises:
        CheckpointError: when there is no readable checkpoint.
        MissingExtraError: when its format needs a package that is not installed.
        ConfigError: for a base of something that is not an adapter.
    """
    located = locate(path, gemma_only=True)
    if base is not None and located.format != "adapter":
        raise ConfigError(f"{path} is a whole model, not an adapter: leave out its base")
    return _open_any(located, base)


def open_reward_checkpoint(path: str | Path) -> Checkpoint:
    """Opens the reward model that `path` names: a run, folder or hub id; its `score` is the head.

    Raises:
        CheckpointError: when there is no readable reward model.
    """
    located = locate(path, gemma_only=True)
    if located.format != "hf":
        raise CheckpointError(
            f"{path} is not a reward model: expected a run of gemmule reward, or a folder in "
            "Hugging Face's layout"
        )
    set_up_torch()
    return open_hf(located.path, score=True)


def _open_any(located: Located, base: str | None = None) -> Checkpoint:
    """Opens a model or an adapter."""
    set_up_torch()
    if located.format == "adapter":
        from gemmule.checkpoints.adapters.reader import open_adapter

        return open_adapter(located.path, base, _open)
    return _open(located)


def _open(located: Located) -> Checkpoint:
    """Opens a whole model."""
    match located.format:
        case "gguf":
            from gemmule.checkpoints.gguf.reader import open_gguf

            return open_gguf(located.path)
        case "torch":
            from gemmule.checkpoints.gemma_pytorch.reader import open_torch

            return open_torch(located.path)
        case "npz":
            from gemmule.checkpoints.jax.reader import open_npz

            return open_npz(located.path)
        case "orbax":
            from gemmule.checkpoints.jax.reader import open_orbax

            return open_orbax(located.path)
        case _:
            if is_quantized(located.path):
                return open_quantized(located.path)
            return open_hf(located.path)


def load_model(
    path: str | Path,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Gemma, Tokenizer]:
    """Loads the model and tokenizer at `path`; arguments as for Checkpoint.load.

    Raises:
        CheckpointError: when there is no readable model.
        TokenizerError: when its tokenizer is missing or broken.
        ConfigError: for an impossible dtype or device.
    """
    with open_checkpoint(path) as checkpoint:
        tokenizer = checkpoint.tokenizer  # first, because it fails fast
        return checkpoint.load(dtype, device), tokenizer


def load_to_run(
    path: str | Path,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    quantize: str | None = None,
) -> tuple[Gemma, Tokenizer | MissingTokenizerError]:
    """Loads a model for inference: packed matrices stay packed, and there need be no tokenizer.

    Args:
        path: as for open_checkpoint.
        dtype: dtype of the weights; given for a quantized model, its weights are dequantized.
        device: device of the weights; packed ones stay on the CPU.
        quantize: "int4", "int6" or "int8": pack a float model while it is read, without
            calibration.

    Returns:
        The model, and its tokenizer or the error that says that there is none.

    Raises:
        CheckpointError: when there is no readable model.
        TokenizerError: when its tokenizer is broken.
        ConfigError: for an impossible dtype or device, or settings that exclude each other.
    """
    from gemmule.checkpoints.packed.model import QuantizedGemma
    from gemmule.checkpoints.packed.quantize import quantize_checkpoint

    on_cpu = parse_device(device).type == "cpu"
    if quantize is None:
        located = locate(path, gemma_only=True)
        packed_here = located.format == "hf" and is_quantized(located.path)
        if packed_here and dtype is None and on_cpu:
            packed = load_quantized(located.path)
            return QuantizedGemma(packed), packed.tokenizer
        with _open_any(located) as checkpoint:
            tokenizer = checkpoint.tokenizer_if_any  # first, because it fails fast
            return checkpoint.load(dtype, device), tokenizer
    if dtype is not None or not on_cpu:
        raise ConfigError(
            f"quantize={quantize!r} sets the weights' format, on the CPU: leave out dtype and "
            "device"
        )
    with open_checkpoint(path) as checkpoint:
        if checkpoint.quantized:
            raise ConfigError(
                f"{path} is already quantized, as {checkpoint.quantized['format']}: leave out "
                "quantize"
            )
        packed = quantize_checkpoint(checkpoint, quantize)
    return QuantizedGemma(packed), packed.tokenizer
