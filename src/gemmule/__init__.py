"""Making, running and checking small Gemma 2 models.

    import gemmule
    lm = gemmule.load("runs/quickstart/student")
    print(lm.generate("def add(a, b):", max_new_tokens=32, temperature=0.0))

Importing this package is instant: torch is imported by the first call that needs it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from gemmule.infer.async_driver import AsyncEngine
    from gemmule.infer.core.request import Request
    from gemmule.infer.core.sampling import SamplingParams
    from gemmule.infer.driver import Engine
    from gemmule.infer.language_model import LanguageModel

__version__ = "0.1.0"
__all__ = [
    "AsyncEngine",
    "Engine",
    "LanguageModel",
    "Request",
    "SamplingParams",
    "__version__",
    "load",
]
# Where a name is defined: it is imported when it is first used.
_MODULES = {
    "AsyncEngine": "gemmule.infer.async_driver",
    "Engine": "gemmule.infer.driver",
    "LanguageModel": "gemmule.infer.language_model",
    "Request": "gemmule.infer.core.request",
    "SamplingParams": "gemmule.infer.core.sampling",
}


def load(
    path: "str | Path",
    dtype: "torch.dtype | str | None" = None,
    device: "torch.device | str" = "cpu",
    quantize: "str | None" = None,
) -> "LanguageModel":
    """Loads a model and its tokenizer.

    Args:
        path: a run directory, a folder in Hugging Face's layout or with an adapter of peft, a
            .gguf, .ckpt or .npz file, an orbax checkpoint, or a hub id (downloaded once).
        dtype: dtype of the weights; None: as stored (float16 and GGUF's quantized become float32).
        device: such as "cpu" or "cuda".
        quantize: "int4", "int6" or "int8" packs the weights while they are read, without
            calibration (`gemmule quantize` does better); None: as stored.

    Raises:
        CheckpointError: when there is no readable model at `path`.
        TokenizerError: when its tokenizer is missing, broken or another model's.
        ConfigError: for an impossible dtype, device or quantization.
    """
    from gemmule.infer.language_model import load as load_language_model

    return load_language_model(path, dtype=dtype, device=device, quantize=quantize)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
