"""One tensor of a checkpoint, in whatever form its file keeps it, read a few rows at a time.

Every reader offers its tensors as `StoredTensor`s under our parameters' names and in our
orientation; loading, converting and comparing work on these alone, so that no more than a chunk of
rows is ever held besides what is being made.
"""

import mmap
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress

import torch
from torch import Tensor

from gemmule.errors import CheckpointError, ConfigError

_HUGE = 2**22  # from here on huge pages are worth a mapping of their own
CHUNK_BYTES = 2**24  # of rows handed out at once: large enough to keep all cores busy

FLOATS = {  # safetensors' names of the dtypes weights may have
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
}
_NAMES = {str(d).removeprefix("torch."): d for d in FLOATS.values()}


def parse_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A floating dtype given as such or by name; None stays None.

    Raises:
        ConfigError: for anything else.
    """
    if dtype is None:
        return None
    found = _NAMES.get(dtype) if isinstance(dtype, str) else dtype
    if found not in _NAMES.values():
        raise ConfigError(f"dtype {str(dtype)!r} is not one of {', '.join(_NAMES)}")
    return found


def dtype_name(dtype: torch.dtype) -> str:
    """The name as config.json spells it, such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")


class StoredTensor(ABC):
    """One weight matrix or vector; nothing is read before it is asked for.

    Attributes:
        name: our parameter's name, such as "layers.0.mlp.up_proj.weight".
        shape: of our parameter.
        dtype: the narrowest torch dtype that holds every stored value exactly.
        stored_as: what the file calls its form, such as "BF16" or "Q4_K".
        where: file and name in it, for messages.
    """

    def __init__(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype, stored_as: str, where: str
    ) -> None:
        self.name, self.shape, self.dtype = name, shape, dtype
        self.stored_as, self.where = stored_as, where

    @abstractmethod
    def chunks(self) -> Iterator[Tensor]:
        """Successive rows, in `dtype`, on the CPU; each is valid until the next is asked for."""

    @property
    def numel(self) -> int:
        """How many numbers it holds."""
        return int(torch.Size(self.shape).numel())

    @property
    def nbytes(self) -> int:
        """Bytes it takes in `dtype`."""
        return self.numel * self.dtype.itemsize

    @property
    def rows_at_once(self) -> int:
        """Rows of this tensor that make up a chunk."""
        row = self.nbytes // max(1, self.shape[0])
        return max(1, CHUNK_BYTES // max(1, row))

    def copy(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A fresh tensor, filled chunk by chunk and checked for NaN and Inf.

        Raises:
            CheckpointError: when it holds NaN or Inf, or a value that `dtype` cannot.
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
        """The chunks converted to `dtype`; checked as by `copy`."""
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
    """A tensor that is in memory already."""

    def __init__(self, name: str, tensor: Tensor) -> None:
        stored_as = next((k for k, d in FLOATS.items() if d == tensor.dtype), str(tensor.dtype))
        super().__init__(name, tuple(tensor.shape), tensor.dtype, stored_as, name)
        self._tensor = tensor.detach()

    def chunks(self) -> Iterator[Tensor]:
        """See StoredTensor."""
        for rows in self._tensor.split(self.rows_at_once):
            yield rows.cpu()


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Like torch.empty, in huge pages where the system has them.

    Filling memory that was just asked for is mostly page faults: four times as fast in pages of
    2 MiB as in pages of 4 KiB.
    """
    nbytes = torch.Size(shape).numel() * dtype.itemsize
    if device.type != "cpu" or nbytes < _HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # not built into every kernel
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


def is_finite(x: Tensor) -> bool:
    """Whether no element is NaN or Inf, without a mask as large as `x`."""
    return x.numel() == 0 or bool(torch.stack(torch.aminmax(x)).isfinite().all())


def tensor_bytes(x: Tensor) -> memoryview:
    """The bytes of `x` in row order; a copy only where it is elsewhere or not contiguous."""
    flat = x.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().data


def few(names: list[str]) -> str:
    """The first four names, and how many more there are."""
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
