"""Adapters that peft itself makes and merges, on a model that is saved in a folder."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

QUERY = "base_model.model.model.layers.0.self_attn.q_proj"
EMBEDDING = "base_model.model.model.embed_tokens"


@contextmanager
def quiet() -> Iterator[None]:
    """Without peft's warnings, which are about tied heads and about initial weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def base_model(base: Path, dtype: torch.dtype = torch.float32, rows: int | None = None) -> Any:
    """transformers' model, with `rows` tokens."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        base, dtype=dtype, attn_implementation="eager"
    )
    if rows is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
    return model


def train_adapter(base: Path, folder: Path, rows: int | None = None, **config: Any) -> Path:
    """Saves an adapter whose trained weights are random; unless named, on q and v."""
    config = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]} | config
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        model = peft.get_peft_model(base_model(base, rows=rows), peft.LoraConfig(**config))
        for parameter in model.parameters():
            if parameter.requires_grad:  # in place: adapters of a tied head share memory
                parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
        model.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Merged:
    """What peft makes of an adapter.

    Attributes:
        weights: by our names, without the head.
        head: the head's weight.
        before: logits of TOKENS before merging.
    """

    weights: dict[str, Tensor]
    head: Tensor
    before: Tensor


def merged_by_peft(
    base: Path,
    folder: Path,
    tokens: Tensor,
    dtype: torch.dtype = torch.float32,
    rows: int | None = None,
) -> Merged:
    """Loads and merges an adapter with peft."""
    with quiet(), torch.no_grad():
        model = peft.PeftModel.from_pretrained(base_model(base, dtype, rows), folder)
        before = model(tokens).logits
        state = model.merge_and_unload().state_dict()
    head = state.pop("lm_head.weight")
    return Merged({k.removeprefix("model."): v for k, v in state.items()}, head, before)


def edit_config(folder: Path, **changes: Any) -> None:
    """Changes settings of an adapter."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, changes: dict[str, Tensor | None]) -> None:
    """Replaces tensors of an adapter; None removes one."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path) | changes
    save_file({k: v for k, v in tensors.items() if v is not None}, path)
