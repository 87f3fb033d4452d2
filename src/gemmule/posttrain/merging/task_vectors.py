"""Task vectors of checkpoints, read a few rows at a time, and the tensors that are made of them.

Differences and sums are float64, and rounded once to the dtype of the merged model: equal models
merge into themselves, bit for bit. Memory does not grow with the models.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from gemmule.checkpoints.checkpoint import Checkpoint
from gemmule.checkpoints.stored_tensor import FLOATS, StoredTensor, side_by_side


def layer_of(name: str) -> str:
    """The part of the model that a parameter is merged with: a layer, the embedding, the last norm.

    "layers.3.mlp.up_proj.weight" -> "layers.3". The head is the embedding.
    """
    first, second, *_ = name.split(".")
    return f"{first}.{second}" if first == "layers" else first


def grams(base: Checkpoint, models: Sequence[Checkpoint]) -> dict[str, list[list[float]]]:
    """Inner products [M, M] of the models' task vectors, by layer.

    Args:
        base: the model that they started from.
        models: models of the base's shape.
    """
    sums: dict[str, Tensor] = {}
    for tensor in base.weights():
        held = [tensor, *(model.tensors[tensor.name] for model in models)]
        for rows in side_by_side(*held):
            start = rows[0].double()
            deltas_MN = torch.stack([(r.double() - start).flatten() for r in rows[1:]])
            part = deltas_MN @ deltas_MN.T
            layer = layer_of(tensor.name)
            sums[layer] = sums[layer] + part if layer in sums else part
    return {layer: total.tolist() for layer, total in sums.items()}


class MergedTensor(StoredTensor):
    """A weighted sum of models' tensors, or a base's tensor plus one of task vectors."""

    def __init__(
        self,
        parts: Sequence[StoredTensor],
        coefficients: Sequence[float],
        base: StoredTensor | None,
        dtype: torch.dtype,
    ) -> None:
        """Takes the models' tensors with a coefficient for each, and the base's if there is one."""
        first = parts[0]
        stored_as = next(name for name, d in FLOATS.items() if d == dtype)
        super().__init__(first.name, first.shape, dtype, stored_as, f"the merge of {first.name}")
        self._parts, self._coefficients, self._base = parts, coefficients, base

    def chunks(self) -> Iterator[Tensor]:
        """Yields consecutive rows of the merged tensor."""
        held = self._parts if self._base is None else [self._base, *self._parts]
        for rows in side_by_side(*held):
            yield self._merged([r.double() for r in rows]).to(self.dtype)

    def _merged(self, rows: Sequence[Tensor]) -> Tensor:
        if self._base is None:
            total = torch.zeros_like(rows[0])
            for c, row in zip(self._coefficients, rows, strict=True):
                total += c * row
            return total
        start, *others = rows
        total = start.clone()
        for c, row in zip(self._coefficients, others, strict=True):
            total += c * (row - start)
        return total


def merged_tensors(
    base: Checkpoint | None,
    models: Sequence[Checkpoint],
    coefficients: Mapping[str, Sequence[float]],
    dtype: torch.dtype,
) -> dict[str, StoredTensor]:
    """The tensors of a merge by name.

    Args:
        base: the model that all started from; None: a weighted sum of the models themselves.
        models: the models.
        coefficients: a coefficient of each model, by layer.
        dtype: dtype of the merged weights.
    """
    return {
        tensor.name: MergedTensor(
            [model.tensors[tensor.name] for model in models],
            coefficients[layer_of(tensor.name)],
            None if base is None else base.tensors[tensor.name],
            dtype,
        )
        for tensor in models[0].weights()
    }
