"""Writes an adapter in peft's format: adapter_config.json, adapter_model.safetensors, tokenizer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from gemmule import files
from gemmule.checkpoints.adapters.weights import MAGNITUDE, ROWS, A, B
from gemmule.checkpoints.hf.config import generation_config
from gemmule.checkpoints.hf.writer import Entry, safetensors_layout
from gemmule.checkpoints.model_folder import ADAPTER, ADAPTER_CONFIG
from gemmule.checkpoints.stored_tensor import tensor_bytes
from gemmule.checkpoints.tensor_layout import Bytes, write
from gemmule.model.tokenizer import Tokenizer

# Names of the parts in peft's files, version 0.21.
_ENDINGS = {
    A: "lora_A.weight",
    B: "lora_B.weight",
    MAGNITUDE: "lora_magnitude_vector",
    ROWS: "token_adapter.trainable_tokens_delta",
}


@dataclass(frozen=True)
class TrainedAdapter:
    """A LoRA or DoRA adapter, and what it belongs to.

    Attributes:
        base: path or hub id of the model that it changes.
        rank: rank of every product.
        alpha: numerator of the scale alpha / rank.
        dora: whether it has magnitudes.
        targets: ends of the names of the adapted modules.
        token_ids: trained rows of the embedding.
        modules: tensors by module (such as "layers.0.mlp.up_proj") and part: A [rank, inputs],
            B [outputs, rank], MAGNITUDE [outputs], or ROWS [tokens, width] of "embed_tokens".
    """

    base: str
    rank: int
    alpha: float
    dora: bool
    targets: Sequence[str]
    token_ids: Sequence[int]
    modules: Mapping[str, Mapping[str, Tensor]]


def save_adapter(adapter: TrainedAdapter, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes an adapter and its tokenizer to `folder` in one atomic replacement.

    peft loads it with `PeftModel.from_pretrained(base, folder)`, and gemmule opens the folder as
    the merged model.

    Raises:
        OutputError: when the folder cannot be written.
    """
    entries = [
        _entry(f"base_model.model.model.{module}.{_ENDINGS[part]}", tensor)
        for module, parts in adapter.modules.items()
        for part, tensor in parts.items()
    ]
    with files.atomic_dir(folder) as tmp:
        write([safetensors_layout(f"{ADAPTER}.safetensors", entries)], tmp)
        files.write_json(tmp / ADAPTER_CONFIG, _config(adapter))
        files.write_json(tmp / "generation_config.json", generation_config(tokenizer))
        tokenizer.save(tmp)


def _entry(name: str, tensor: Tensor) -> Entry:
    values = tensor.detach().cpu().float()
    return Entry(name, "F32", tuple(values.shape), values.nbytes, partial(_bytes, values))


def _bytes(values: Tensor) -> list[Bytes]:
    return [tensor_bytes(values)]


def _config(adapter: TrainedAdapter) -> dict[str, object]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base,
        "inference_mode": True,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_dora": adapter.dora,
        "target_modules": list(adapter.targets),
        "trainable_token_indices": list(adapter.token_ids) or None,
    }
