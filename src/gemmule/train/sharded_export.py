"""Writes the model of a run whose ranks hold it in shards: one tensor is whole at a time."""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from gemmule import files
from gemmule.checkpoints.checkpoint import Checkpoint
from gemmule.checkpoints.hf.writer import layouts, write_companions
from gemmule.checkpoints.stored_tensor import HeldTensor
from gemmule.checkpoints.tensor_layout import write
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer
from gemmule.runtime.world import World
from gemmule.train.sharding import whole


class ShardedTensor(HeldTensor):
    """A tensor that is divided over ranks, all of which read it at the same time."""

    def chunks(self) -> Iterator[Tensor]:
        """Yields consecutive rows, gathered from all ranks, on the CPU."""
        for rows in whole(self._tensor).split(self.rows_at_once):
            yield rows.cpu()


def save_sharded(model: Gemma, tokenizer: Tokenizer, folder: Path, world: World) -> None:
    """Writes what `save_model` writes; every rank calls it, and the first one writes.

    Raises:
        OutputError: on the first rank, when the folder cannot be written.
    """
    tensors = {name: ShardedTensor(name, tensor) for name, tensor in model.state_dict().items()}
    checkpoint = Checkpoint(Path(), "memory", model.config, tensors, lambda: tokenizer)
    if world.first:
        with files.atomic_dir(folder) as tmp:
            write(layouts(checkpoint), tmp)
            write_companions(checkpoint, tmp, None)
        return
    for layout in layouts(checkpoint):  # takes part in gathering each tensor
        for place in layout.places:
            for _ in place.data():
                pass
