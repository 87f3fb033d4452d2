"""Weights in fp8 with scales, as vLLM's tools, FBGEMM and compressed-tensors write them.

A weight is its fp8 number times a scale: one for the matrix, one for each row, or one for each
block of rows and columns. `X.weight_scale` and `X.weight_scale_inv` both hold what to multiply with
(facts read from transformers' integrations/finegrained_fp8.py and fbgemm_fp8.py). Scales of
activations are left out: here activations are not quantized.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from gemmule.checkpoints.safetensors_file import MappedTensor, SafetensorsEntry
from gemmule.checkpoints.stored_tensor import StoredTensor
from gemmule.errors import CheckpointError

FP8 = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
SCALES = (".weight_scale", ".weight_scale_inv")
_WEIGHT = ".weight"
_READABLE = {"fp8", "fbgemm_fp8", "compressed-tensors", "modelopt"}
# Scales of activations and of cached keys and values.
_OTHER_SCALE = re.compile(r".*\.(?:input|output|k|v|q|act\w*)_scale(?:_ub)?")


def is_fp8(values: Mapping[str, Any]) -> bool:
    """Whether a config.json says that weights are stored in fp8 that can be read here."""
    entry = values.get("quantization_config")
    if not isinstance(entry, Mapping) or entry.get("quant_method") not in _READABLE:
        return False
    method = entry["quant_method"]
    if method == "compressed-tensors":
        return entry.get("format") in {"float-quantized", "naive-quantized"}
    return method != "modelopt" or str(entry.get("quant_algo", "")).upper() == "FP8"


def is_activation_scale(name: str) -> bool:
    """Whether a tensor only matters where activations are quantized."""
    return _OTHER_SCALE.fullmatch(name) is not None


def scale_name(name: str, stored: Mapping[str, object]) -> str | None:
    """The name of the scales of the fp8 weight `name` among those stored."""
    for ending in SCALES:
        candidate = name.removesuffix(_WEIGHT) + ending
        if name.endswith(_WEIGHT) and candidate in stored:
            return candidate
    return None


def block_size(values: Mapping[str, Any]) -> tuple[int, int] | None:
    """The rows and columns of a block that has a scale, by config.json."""
    entry = values.get("quantization_config")
    size = entry.get("weight_block_size") if isinstance(entry, Mapping) else None
    if isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size):
        return size[0], size[1]
    return None


class Fp8Tensor(MappedTensor):
    """An fp8 matrix in a safetensors file times its scales, in fp32."""

    codes = FP8

    def __init__(
        self,
        entry: SafetensorsEntry,
        name: str,
        scales: StoredTensor | None,
        block: tuple[int, int] | None,
    ) -> None:
        """Checks the place of the numbers and the shape of the scales.

        Args:
            entry: the fp8 numbers.
            name: our name of the weight.
            scales: what to multiply with; None: nothing.
            block: rows and columns of a block, where scales are by blocks.

        Raises:
            CheckpointError: when the scales do not fit the matrix, or a place is outside the file.
        """
        super().__init__(entry.file, entry.name, entry.entry, entry.data, name)
        self.dtype = torch.float32
        self._scales = _Scales(self, scales, block) if scales and self.shape else None

    def chunks(self) -> Iterator[Tensor]:
        """Yields consecutive rows, multiplied by their scales."""
        first = 0
        for rows in super().chunks():
            scaled = rows.float()
            if self._scales:
                scaled *= self._scales.of_rows(first, len(rows))
            first += len(rows)
            yield scaled


class _Scales:
    """The scales of a matrix, in fp32."""

    def __init__(
        self, tensor: StoredTensor, scales: StoredTensor, block: tuple[int, int] | None
    ) -> None:
        self._stored, self._block = scales, None
        self._columns = tensor.shape[-1]
        rows, shape = tensor.shape[0], scales.shape
        if scales.numel == 1 or shape in {(rows,), (rows, 1)}:
            return
        if block is not None and len(tensor.shape) == 2:
            self._block = block
            if shape == (-(-rows // block[0]), -(-self._columns // block[1])):
                return
        raise CheckpointError(
            f"{scales.where} has the shape {list(shape)}; a weight of {list(tensor.shape)} has one "
            "scale, one for each row, or one for each block of weight_block_size in config.json"
        )

    def of_rows(self, first: int, count: int) -> Tensor:
        """The scales of `count` rows, in a shape that multiplies them."""
        scales = torch.cat([rows.float() for rows in self._stored.chunks()])
        if self._block is None:
            flat = scales.reshape(-1)
            return flat if len(flat) == 1 else flat[first : first + count, None]
        height, width = self._block
        blocks = scales[torch.arange(first, first + count) // height]
        return blocks.repeat_interleave(width, dim=1)[:, : self._columns]
