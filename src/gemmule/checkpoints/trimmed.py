"""A checkpoint with some rows of its embedding, for a trimmed vocabulary.

Shapes: K kept tokens, D model.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor

from gemmule.checkpoints.checkpoint import EMBEDDING, HEAD, Checkpoint
from gemmule.checkpoints.stored_tensor import StoredTensor
from gemmule.model.vocabulary_trim import Trimmed


class SelectedRows(StoredTensor):
    """Some rows of a stored tensor, in ascending order.

    Args:
        tensor: the whole tensor.
        rows_K: indices of the rows, ascending.
    """

    def __init__(self, tensor: StoredTensor, rows_K: Tensor) -> None:
        shape = (len(rows_K), *tensor.shape[1:])
        super().__init__(tensor.name, shape, tensor.dtype, tensor.stored_as, tensor.where)
        self._tensor, self._rows_K = tensor, rows_K

    def chunks(self) -> Iterator[Tensor]:
        """Yields the selected rows of each chunk of the whole tensor."""
        start = 0
        for rows in self._tensor.chunks():
            first, last = torch.searchsorted(
                self._rows_K, torch.tensor([start, start + len(rows)])
            ).tolist()
            if first < last:
                yield rows[self._rows_K[first:last] - start]
            start += len(rows)


def trimmed_checkpoint(source: Checkpoint, trimmed: Trimmed) -> Checkpoint:
    """The model with the rows of the kept tokens, which serve as its head too.

    It reads the files of `source`, which must stay open.

    Raises:
        CheckpointError: when the source's head is not its embedding.
    """
    source.check_head()
    rows_K = torch.from_numpy(np.ascontiguousarray(trimmed.kept_K))
    tensors = {name: tensor for name, tensor in source.tensors.items() if name != HEAD}
    tensors[EMBEDDING] = SelectedRows(tensors[EMBEDDING], rows_K)
    return dataclasses.replace(
        source,
        config=source.config.model_copy(update={"vocab_size": len(rows_K)}),
        tensors=tensors,
        read_tokenizer=lambda: trimmed.tokenizer,
        stack=ExitStack(),
    )
