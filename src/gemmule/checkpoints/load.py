"""Opening and loading a checkpoint, whatever its format."""

from pathlib import Path

import torch

from gemmule.checkpoints.checkpoint import Checkpoint, parse_device
from gemmule.checkpoints.hf.reader import open_hf
from gemmule.checkpoints.locate import locate
from gemmule.checkpoints.packed.reader import is_quantized, load_quantized, open_quantized
from gemmule.errors import ConfigError
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
            from gemmule.checkpoints.gguf.reader import open_gguf

            return open_gguf(found.path)
        case "gemma_pytorch":
            from gemmule.checkpoints.gemma_pytorch.reader import open_gemma_pytorch

            return open_gemma_pytorch(found.path)
        case "npz":
            from gemmule.checkpoints.jax.reader import open_npz

            return open_npz(found.path)
        case "orbax":
            from gemmule.checkpoints.jax.reader import open_orbax

            return open_orbax(found.path)
        case _:
            if is_quantized(found.path):
                return open_quantized(found.path)
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


def load_to_run(
    path: str | Path,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    quantize: str | None = None,
) -> tuple[Gemma, Tokenizer]:
    """As `load_model`, for inference alone: matrices that are packed stay packed.

    Args:
        path: as for open_checkpoint.
        dtype: of the weights; of a quantized model it asks for the values they stand for.
        device: where they go; packed ones stay on the CPU.
        quantize: "int4", "int6" or "int8" packs a floating model while it is read, without
            calibration.

    Raises:
        CheckpointError: when there is no readable model.
        TokenizerError: when its tokenizer is missing or broken.
        ConfigError: for an impossible dtype or device, or settings that exclude one another.
    """
    from gemmule.checkpoints.packed.model import QuantizedGemma
    from gemmule.checkpoints.packed.quantize import quantize_checkpoint

    on_cpu = parse_device(device).type == "cpu"
    if quantize is None:
        if dtype is None and on_cpu and is_quantized(locate(path).path):
            packed = load_quantized(path)
            return QuantizedGemma(packed), packed.tokenizer
        return load_model(path, dtype, device)
    if dtype is not None or not on_cpu:
        raise ConfigError(
            f"quantize={quantize!r} decides the weights' form, on the CPU: leave dtype and device"
        )
    with open_checkpoint(path) as checkpoint:
        if checkpoint.quantized:
            raise ConfigError(
                f"{path} is quantized already, as {checkpoint.quantized['format']}: leave quantize"
            )
        packed = quantize_checkpoint(checkpoint, quantize)
    return QuantizedGemma(packed), packed.tokenizer
