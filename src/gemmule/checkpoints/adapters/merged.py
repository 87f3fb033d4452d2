"""Weights with an adapter merged into them, computed a few rows at a time.

The arithmetic is peft's (tuners/lora/layer.py and variants.py): products in float32 or wider, and
the result rounded to the base's dtype once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gemmule.checkpoints.stored_tensor import StoredTensor, side_by_side
from gemmule.errors import CheckpointError

_CPU = torch.device("cpu")
_BLOCK = 2**20  # numbers in the rows that are merged at once


@dataclass(frozen=True)
class LowRank:
    """The change of a matrix [R, C]: scale * B @ A.

    Attributes:
        a: A; [rank, C], or [rank, R] for an embedding.
        b: B; [R, rank], or [C, rank] for an embedding.
        scale: factor of the product.
        transposed: whether the product is stored transposed, as for an embedding.
        rounded: whether it is rounded to the base's dtype before it is added.
        magnitudes: DoRA's norms after training: [R] of rows, or [C] of an embedding's columns.
    """

    a: StoredTensor
    b: StoredTensor
    scale: float
    transposed: bool = False
    rounded: bool = False
    magnitudes: StoredTensor | None = None

    def loaded(self) -> "_LoadedLowRank":
        """The same with its factors in memory."""
        dtype = torch.promote_types(torch.float32, torch.promote_types(self.a.dtype, self.b.dtype))
        a, b = self.a.copy(dtype, _CPU), self.b.copy(dtype, _CPU)
        magnitudes = self.magnitudes.copy(dtype, _CPU) if self.magnitudes else None
        return _LoadedLowRank(a, b, self.scale, self.transposed, magnitudes)


@dataclass(frozen=True)
class _LoadedLowRank:
    a: Tensor
    b: Tensor
    scale: float
    transposed: bool
    magnitudes: Tensor | None

    def rows(self, first: int, count: int) -> Tensor:
        """Rows of the change."""
        if self.transposed:
            product = (self.b @ self.a[:, first : first + count]).T * self.scale
            return product.contiguous()
        return self.b[first : first + count] @ self.a * self.scale


class MergedTensor(StoredTensor):
    """A matrix of the base plus the product of an adapter."""

    def __init__(self, base: StoredTensor, change: LowRank) -> None:
        super().__init__(base.name, base.shape, base.dtype, base.stored_as, change.b.where)
        self._base, self._change = base, change

    def chunks(self) -> Iterator[Tensor]:
        """Yields consecutive rows, merged and rounded to the base's dtype."""
        change = self._change.loaded()
        if change.magnitudes is None:
            yield from self._sums(change)
        elif change.transposed:
            yield from self._of_columns(change)
        else:
            yield from self._of_rows(change, change.magnitudes)

    def _sums(self, change: _LoadedLowRank) -> Iterator[Tensor]:
        for first, rows in _blocks(self._base):
            delta = change.rows(first, len(rows))
            if self._change.rounded:
                delta = delta.to(self.dtype)
            yield (rows + delta).to(self.dtype)

    def _of_rows(self, change: _LoadedLowRank, magnitudes: Tensor) -> Iterator[Tensor]:
        for first, rows in _blocks(self._base):
            summed = rows + change.rows(first, len(rows))
            factors = magnitudes[first : first + len(rows)] / torch.linalg.norm(summed, dim=1)
            yield (factors[:, None] * summed).to(self.dtype)

    def _of_columns(self, change: _LoadedLowRank) -> Iterator[Tensor]:
        assert change.magnitudes is not None
        squares = torch.zeros(self.shape[1], dtype=torch.float64)
        for first, rows in _blocks(self._base):
            squares += (rows + change.rows(first, len(rows))).double().square().sum(dim=0)
        factors = change.magnitudes / squares.sqrt().to(change.magnitudes.dtype)
        for first, rows in _blocks(self._base):
            yield (factors * (rows + change.rows(first, len(rows)))).to(self.dtype)


class WholeTensor(StoredTensor):
    """A weight that was trained as a whole, in the base's dtype as in peft."""

    def __init__(self, name: str, trained: StoredTensor, dtype: torch.dtype) -> None:
        super().__init__(name, trained.shape, dtype, trained.stored_as, trained.where)
        self._trained = trained

    def chunks(self) -> Iterator[Tensor]:
        """Yields consecutive rows, converted."""
        for rows in self._trained.chunks():
            yield rows.to(self.dtype)


class RowsTensor(StoredTensor):
    """An embedding with a few rows that were trained."""

    def __init__(self, base: StoredTensor, rows: StoredTensor, indices: Sequence[int]) -> None:
        super().__init__(base.name, base.shape, base.dtype, base.stored_as, rows.where)
        self._base, self._rows, self._indices = base, rows, torch.tensor(indices)

    def chunks(self) -> Iterator[Tensor]:
        """Yields consecutive rows, with the trained ones in their places."""
        trained = self._rows.copy(self.dtype, _CPU)
        for first, rows in _blocks(self._base):
            inside = (self._indices >= first) & (self._indices < first + len(rows))
            yield rows.index_copy(0, self._indices[inside] - first, trained[inside])


class TiedTensor(StoredTensor):
    """An embedding that is compared with the head while it is read: they must be one matrix."""

    def __init__(self, embedding: StoredTensor, head: StoredTensor, problem: str) -> None:
        super().__init__(
            embedding.name, embedding.shape, embedding.dtype, embedding.stored_as, embedding.where
        )
        self._embedding, self._head, self._problem = embedding, head, problem

    def chunks(self) -> Iterator[Tensor]:
        """Yields consecutive rows; raises CheckpointError at the first that differs."""
        for rows, same in side_by_side(self._embedding, self._head):
            if not torch.equal(rows, same.to(rows.dtype)):
                raise CheckpointError(self._problem)
            yield rows


def _blocks(tensor: StoredTensor) -> Iterator[tuple[int, Tensor]]:
    """Blocks of a tensor's rows, each with the number of its first row.

    They are smaller than chunks: of each there are a few copies in float32, in every thread.
    """
    at_once = max(1, _BLOCK // max(1, tensor.numel // max(1, tensor.shape[0])))
    first = 0
    for rows in tensor.chunks():
        for block in rows.split(at_once):
            yield first, block
            first += len(block)
