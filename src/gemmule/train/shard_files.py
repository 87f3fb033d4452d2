"""Reads what ranks have written together into the folder of a training state (torch's DCP)."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from gemmule.runtime.world import World
from gemmule.train.shard_index import ShardReader
from gemmule.train.state_content import FURTHER, owner


def read_shards(
    folder: Path, model: nn.Module, tensors: Mapping[str, Tensor], world: World
) -> dict[str, Any]:
    """Tensors of a state by key, those of parameters divided as the parameters are.

    Args:
        folder: what any number of ranks have written.
        model: model whose parameters say what each rank needs.
        tensors: further tensors by name.
        world: the ranks, each of which calls this.

    Raises:
        OSError, ValueError, RuntimeError: when it cannot be read.
    """
    reader = ShardReader(folder)
    parameters = dict(model.named_parameters())
    parts: dict[str, Tensor] = {}
    for key, stored in reader.read_metadata().state_dict_metadata.items():
        if not isinstance(stored, TensorStorageMetadata):
            raise ValueError(f"{key} is not a tensor")
        like, dtype = parameters.get(owner(key) or ""), stored.properties.dtype
        if like is not None and stored.size == like.shape:
            parts[key] = torch.zeros_like(like, dtype=dtype, requires_grad=False)
        elif key.startswith(f"{FURTHER}.") and key.partition(".")[2] in tensors:
            parts[key] = torch.zeros_like(tensors[key.partition(".")[2]], dtype=dtype)
        else:
            parts[key] = torch.zeros(stored.size, dtype=dtype)
    with warnings.catch_warnings():  # of a process alone, that it is alone
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(dict(parts), storage_reader=reader, no_dist=world.size == 1)
    return dict(parts)
