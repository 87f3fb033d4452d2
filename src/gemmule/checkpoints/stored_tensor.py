"""One tensor of a checkpoint in its file's format, read a few rows at a time.

Every reader provides its tensors as `StoredTensor`s with our parameter names and orientation.
Loading, converting and comparing only use this class, so that at most one chunk of rows is held in
addition to the result.
"""

import mmap
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress

import torch
from torch import Tensor

from gemmule.errors import CheckpointError, ConfigError

_HUGE = 2**22  # bytes from which huge pages are worth a separate mapping
CHUNK_BYTES = 2**24  # bytes of rows in a chunk: large enough to keep all cores busy

FLOATS = {  # safetensors' names of the dtypes that weights can have
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
}
_NAMES = {str(d).removeprefix("torch."): d for d in FLOATS.values()}


def parse_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Returns a float dtype given as such or by name; None stays None.

    Raises:
        ConfigError: for anything else.
    """
    if dtype is None:
        return None
    parsed = _NAMES.get(dtype) if isinstance(dtype, str) else dtype
    if parsed not in _NAMES.values():
        raise ConfigError(f"dtype {str(dtype)!r} is not one of {', '.join(_NAMES)}")
    return parsed


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype in config.json, such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")


class StoredTensor(ABC):
    """One weight matrix or vector, read lazily.

    Attributes:
        name: our parameter's name, such as "layers.0.mlp.up_proj.weight".
        shape: shape of our parameter.
        dtype: the narrowest torch dtype that holds every stored value exactly.
        stored_as: the file's name of its encoding, such as "BF16" or "Q4_K".
        where: file and name in it, for messages.
    """

    def __init__(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype, stored_as: str, where: str
    ) -> None:
        self.name, self.shape, self.dtype = name, shape, dtype
        self.stored_as, self.where = stored_as, where

    @abstractmethod
    def chunks(self) -> Iterator[Tensor]:
        """Yields consecutive rows in `dtype`, on the CPU; a chunk is valid until the next one."""

    @property
    def numel(self) -> int:
        """The number of values."""
        return int(torch.Size(self.shape).numel())

    @property
    def nbytes(self) -> int:
        """Size in `dtype`, in bytes."""
        return self.numel * self.dtype.itemsize

    @property
    def rows_at_once(self) -> int:
        """The number of rows in a chunk of this tensor."""
        row = self.nbytes // max(1, self.shape[0])
        return max(1, CHUNK_BYTES // max(1, row))

    def copy(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Copies the values into a new tensor, chunk by chunk, and checks for NaN and Inf.

        Raises:
            CheckpointError: when it holds NaN or Inf, or a value too large for `dtype`.
        """
        fresh = empty(self.shape, dtype, device)
        at = 0
        for rows in self.chunks():
            part = fresh[at : at + len(rows)]
            self._check(part.copy_(rows), rows)
            at += len(rows)
        assert at == self.shape[0]
        return fresh

    def rows_as(self, dtype: torch.dtype) -> Iterator[Tensor]:
        """Yields the chunks converted to `dtype`, with the checks of `copy`."""
        for rows in self.chunks():
            converted = rows.to(dtype)
            self._check(converted, rows)
            yield converted

    def _check(self, converted: Tensor, rows: Tensor) -> None:
        if not is_finite(converted):
            raise CheckpointError(
                f"{self.where} "
                + (f"does not fit in {converted.dtype}" if is_finite(rows) else "holds NaN or Inf")
            )


class HeldTensor(StoredTensor):
    """A tensor in memory."""

    def __init__(self, name: str, tensor: Tensor) -> None:
        stored_as = next((k for k, d in FLOATS.items() if d == tensor.dtype), str(tensor.dtype))
        super().__init__(name, tuple(tensor.shape), tensor.dtype, stored_as, name)
        self._tensor = tensor.detach()

    def chunks(self) -> Iterator[Tensor]:
        """Yields consecutive rows, moved to the CPU."""
        for rows in self._tensor.split(self.rows_at_once):
            yield rows.cpu()


def side_by_side(*tensors: StoredTensor) -> Iterator[tuple[Tensor, ...]]:
    """Yields equal rows of tensors of one shape, whose chunks may end at different rows."""
    chunks = [tensor.chunks() for tensor in tensors]
    rows = [torch.empty(0)] * len(tensors)
    for _ in range(tensors[0].shape[0]):
        rows = [r if len(r) else next(c, r) for r, c in zip(rows, chunks, strict=True)]
        count = min(map(len, rows))
        if count == 0:
            return
        yield tuple(r[:count] for r in rows)
        rows = [r[count:] for r in rows]


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Like torch.empty, in huge pages if the system has them.

    The time to fill new memory is mostly page faults: with pages of 2 MiB it is a quarter of that
    with pages of 4 KiB.
    """
    nbytes = torch.Size(shape).numel() * dtype.itemsize
    if device.type != "cpu" or nbytes < _HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # some kernels lack it
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


def is_finite(x: Tensor) -> bool:
    """Whether all elements are finite, computed without a mask as large as `x`."""
    return x.numel() == 0 or bool(torch.stack(torch.aminmax(x)).isfinite().all())


def tensor_bytes(x: Tensor) -> memoryview:
    """The bytes of `x` in row order; a copy only if `x` is not on the CPU or not contiguous."""
    flat = x.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().data


def few(names: list[str]) -> str:
    """The first four names, and the number of the others."""
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
