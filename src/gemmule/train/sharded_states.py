"""Training states of ranks that hold a model together: each writes its shards (torch's DCP).

A state is staged in memory and written in the background, over connections of its own, while the
next steps are taken. It gets its name once every rank has written its part. DCP's list of shards is
a pickle; shard_index.py reads it without running anything else.
"""

import datetime
import os
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import async_save

from gemmule import files
from gemmule.errors import OutputError, first_line
from gemmule.runtime.world import TIMEOUT, World
from gemmule.train.state import NOTHING, SHARDS, StateFolder, write_values
from gemmule.train.state_content import Optimizers, collect


class ShardedStates(StateFolder):
    """States of which each rank writes its shards, in the background.

    Args:
        folder: made with the first state; on a disk that all machines share.
        keep: how many states to keep.
        world: the ranks of the run, several.
    """

    def __init__(self, folder: Path, keep: int, world: World) -> None:
        super().__init__(folder, keep, world)
        # Of its own: an operation of a step at the same time would be taken for one of a save.
        timeout = datetime.timedelta(seconds=TIMEOUT)
        self._group = dist.new_group(backend="gloo", timeout=timeout)
        # Of the state that is being written: its end, where it lies, and its final place.
        self._writing: tuple[Future[Any], Path, Path] | None = None

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizers: Optimizers,
        values: Mapping[str, Any],
        tensors: Mapping[str, Tensor] = NOTHING,
    ) -> None:
        """Begins to save a state, once the one before is on disk."""
        self.wait()
        (process,) = self.world.sum([float(os.getpid()) if self.world.first else 0.0])
        path = self.path(step).absolute()
        tmp = files.staging(path, f"{process:.0f}.tmp")
        saved, scalars = collect(model, optimizers, tensors)
        if self.world.first:
            with files.writing_to(path):
                tmp.mkdir(parents=True)
                write_values(tmp, step, values, scalars)
        self.world.barrier()
        writer = FileSystemWriter(tmp / SHARDS, overwrite=False)
        writing = async_save(saved, storage_writer=writer, process_group=self._group)
        assert isinstance(writing, Future)
        self._writing = writing, tmp, path

    def wait(self) -> None:
        """Waits until every rank has written its part of the last state, which then gets its name.

        Raises:
            OutputError: when a disk has refused.
        """
        if self._writing is None:
            return
        (writing, tmp, path), self._writing = self._writing, None
        try:
            writing.result()
        except CheckpointException as e:
            rank, (error, _) = min(e.failures.items())
            with files.writing_to(path):
                if isinstance(error, OSError):
                    raise error from None
            raise OutputError(f"cannot write {path}: rank {rank}: {first_line(error)}") from None
        if self.world.first:
            with files.writing_to(path):
                for file in (*tmp.rglob("*"), tmp):
                    if file.is_dir():
                        files.fsync_dir(file)
                files.put_in_place(tmp, path)
            self.drop_old()
        self.world.barrier()
