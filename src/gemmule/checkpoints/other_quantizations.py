"""Names the quantized forms of weights that cannot be read, by config.json or by the weights."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from gemmule.errors import CheckpointError, brief

# By quant_method of a quantization_config.
_METHODS: Mapping[str, str] = {
    "aqlm": "AQLM",
    "auto-round": "AutoRound",
    "awq": "AWQ",
    "bitnet": "BitNet",
    "bitnet_b158": "BitNet",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "eetq": "EETQ",
    "exl2": "ExLlamaV2 (EXL2)",
    "exl3": "ExLlamaV3 (EXL3)",
    "fbgemm_fp8": "FBGEMM fp8",
    "fp8": "fp8",
    "fp_quant": "FP-Quant",
    "gptq": "GPTQ",
    "higgs": "HIGGS",
    "hqq": "HQQ",
    "modelopt": "NVIDIA ModelOpt",
    "mxfp4": "MXFP4",
    "quanto": "Quanto",
    "quark": "AMD Quark",
    "quip": "QuIP#",
    "spqr": "SpQR",
    "torchao": "torchao",
    "vptq": "VPTQ",
}
# By names of weights, where no config says it.
_TENSORS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("bitsandbytes, 4 bits", re.compile(r".*\.weight\.(?:absmax|quant_map|quant_state\..+)")),
    ("bitsandbytes, 8 bits", re.compile(r".*\.(?:SCB|weight_format)")),
    ("GPTQ", re.compile(r".*\.g_idx")),
    ("GPTQ or AWQ", re.compile(r".*\.qzeros")),
    ("ExLlamaV2 (EXL2)", re.compile(r".*\.(?:q_weight|q_scale_max|q_invperm)")),
    ("ExLlamaV3 (EXL3)", re.compile(r".*\.(?:trellis|suh|svh)")),
    ("HQQ", re.compile(r".*\.W_q")),
    ("AQLM", re.compile(r".*\.(?:codebooks|codes)")),
    ("MLX", re.compile(r".*_proj\.biases")),
    ("compressed-tensors", re.compile(r".*\.(?:weight_packed|weight_shape)")),
    ("Quanto or torchao", re.compile(r".*\.weight\._(?:data|scale)|.*\.weight:_data")),
)


def method_of(values: Mapping[str, Any]) -> str | None:
    """The method by which config.json says that weights are quantized, or None."""
    for key in ("quantization_config", "compression_config"):
        entry = values.get(key)
        if entry:  # some programs leave an empty object behind when they have dequantized
            return _named(entry)
    entry = values.get("quantization")  # MLX
    if isinstance(entry, Mapping) and "bits" in entry:
        return f"MLX, {brief(entry['bits'])} bits in groups of {brief(entry.get('group_size'))}"
    return None if entry is None else brief(entry)


def _named(entry: object) -> str:
    if not isinstance(entry, Mapping):
        return brief(entry)
    method = entry.get("quant_method")
    name = _METHODS.get(method) if isinstance(method, str) else None
    if name is None and any(entry.get(f"load_in_{bits}bit") for bits in (4, 8)):
        name = _METHODS["bitsandbytes"]
    bits = entry.get("bits", entry.get("w_bit"))
    for width in (4, 8):
        if entry.get(f"load_in_{width}bit") is True:
            bits = width
    named = name or f"the unknown method {brief(method)}"
    detail = entry.get("format", entry.get("quant_type"))
    shown = [f"{bits} bits"] if isinstance(bits, int | float) else []
    shown += [str(detail)[:40]] if isinstance(detail, str) else []
    return ", ".join((named, *shown))


def method_of_names(names: Iterable[str]) -> str | None:
    """The method that the names of stored tensors show, or None."""
    names = list(names)
    for method, pattern in _TENSORS:
        if any(map(pattern.fullmatch, names)):
            return method
    return None


def refusal(method: str, source: str) -> CheckpointError:
    """The error for weights that are quantized by a method that cannot be read."""
    return CheckpointError(
        f"{source}: the weights are quantized ({method}), which cannot be read here. Give the "
        "model from before it was quantized, or a GGUF file of it; transformers, with that "
        "method's package, can run it or dequantize it"
    )
