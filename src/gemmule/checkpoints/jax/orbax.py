"""Reads arrays from an orbax checkpoint, each restored when it is needed."""

import importlib
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gemmule.checkpoints.jax.arrays import StoredArray, parse_array, refuse_bombs
from gemmule.errors import CheckpointError, MissingExtraError, first_line

# Folders of the parameters in checkpoints of several items, and of Kauldron's trainer.
_ITEMS = ("default", "params")
_ONE_AT_A_TIME = threading.Lock()  # a checkpointer is not thread-safe


def read_orbax(path: Path, stack: ExitStack) -> dict[str, StoredArray]:
    """The arrays by their slash-separated paths in the tree; readable until `stack` closes.

    Raises:
        CheckpointError: when orbax cannot read the metadata, or it describes something else.
        MissingExtraError: when orbax is not installed.
    """
    ocp = _orbax()
    items = [path / name for name in _ITEMS if (path / name / "_METADATA").is_file()]
    folder = path if (path / "_METADATA").is_file() or not items else items[0]
    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    stack.callback(checkpointer.close)
    try:
        tree = checkpointer.metadata(folder.absolute()).item_metadata.tree
        leaves = dict(_leaves(tree, ()))
    except Exception as e:  # orbax and tensorstore can raise anything
        raise CheckpointError(
            f"{path} is not a readable orbax checkpoint: {first_line(e)}"
        ) from None
    if any(keys[0] == "params" for keys in leaves):  # the rest belongs to a trainer
        leaves = {keys: leaf for keys, leaf in leaves.items() if keys[0] == "params"}
    arrays: dict[str, StoredArray] = {
        "/".join(keys): _OrbaxArray(checkpointer, folder, keys, leaf)
        for keys, leaf in leaves.items()
    }
    stored = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    refuse_bombs(arrays.values(), stored, path)
    return arrays


def _orbax() -> Any:
    try:
        return importlib.import_module("orbax.checkpoint")
    except ImportError:
        raise MissingExtraError("orbax-checkpoint", "jax", "reading an orbax checkpoint") from None


def _leaves(tree: object, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, (*keys, str(key)))
    else:
        yield keys, tree


class _OrbaxArray(StoredArray):
    def __init__(self, checkpointer: Any, folder: Path, keys: tuple[str, ...], leaf: Any) -> None:
        self._checkpointer, self._folder, self._keys, self._leaf = checkpointer, folder, keys, leaf
        where = f"{folder}: {'/'.join(keys)}"
        dtype = str(leaf.dtype)
        dtype = {"float64": "<f8", "float32": "<f4", "float16": "<f2"}.get(dtype, dtype)
        super().__init__(*parse_array(tuple(leaf.shape), dtype, where), where)

    def runs(self, first: int, counts: Iterable[int]) -> Iterator[Tensor]:
        """Yields consecutive runs; the whole array is held meanwhile."""
        flat = self._restored().view(-1)
        for count in counts:
            yield flat[first : first + count]
            first += count

    def _restored(self) -> Tensor:
        ocp = _orbax()
        item, how = self._leaf, ocp.RestoreArgs(restore_type=np.ndarray)
        for key in reversed(self._keys):
            item, how = {key: item}, {key: how}
        args = ocp.args.PyTreeRestore(item=item, restore_args=how, partial_restore=True)
        try:
            with _ONE_AT_A_TIME:
                array = self._checkpointer.restore(self._folder.absolute(), args=args)
            for key in self._keys:
                array = array[key]
        except Exception as e:  # as above
            raise CheckpointError(
                f"{self.where} cannot be restored ({first_line(e)}); copy the checkpoint again"
            ) from None
        if array.shape != self.shape:
            raise CheckpointError(f"{self.where} does not have the shape that its metadata states")
        raw = np.ascontiguousarray(array).view(np.uint8)
        return torch.from_numpy(raw).view(self.dtype)
