"""The kernels in C++, called through ctypes; native/gemmule.h is their interface.

Where the library could not be built, `available` says no and torch does the work.
"""

import ctypes
import os
import weakref
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from gemmule.errors import ConfigError
from gemmule.quant.packed import PackedMatrix

INTERFACE = 1
# Another build of it, such as one with sanitizers, can be named in the environment.
PATH = Path(os.environ.get("GEMMULE_LIBRARY") or Path(__file__).with_name("libgemmule_kernels.so"))
_FORMAT_CODES = {"f32": 0, "bf16": 1, "int4": 4, "int6": 6, "int8": 8}
INSTRUCTION_SETS = ("portable", "avx2", "avx512vnni", "amx")


class CMatrix(ctypes.Structure):
    """gm_matrix."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("format", ctypes.c_int32),
        ("rows", ctypes.c_int32),
        ("columns", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    )


class CLayer(ctypes.Structure):
    """gm_layer."""

    _fields_ = (
        *((name, CMatrix) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        ("norms", ctypes.c_void_p * 4),
        ("window", ctypes.c_int32),
        ("slot", ctypes.c_int32),
    )


class CModel(ctypes.Structure):
    """gm_model."""

    _fields_ = (
        *(
            (name, ctypes.c_int32)
            for name in ("layers", "hidden", "ffn", "heads", "kv_heads", "head_dim")
        ),
        ("vocab", ctypes.c_int32),
        ("cache", ctypes.c_int32),
        *(
            (name, ctypes.c_float)
            for name in ("eps", "attention_scale", "attention_cap", "final_cap", "embed_scale")
        ),
        ("reserved", ctypes.c_int32),
        ("embed", CMatrix),
        ("norm", ctypes.c_void_p),
        ("inv_freq", ctypes.c_void_p),
        ("layer", ctypes.POINTER(CLayer)),
    )


class CStep(ctypes.Structure):
    """gm_step."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("tokens", "spans", "outputs", "reserved")),
        *(
            (name, ctypes.c_void_p)
            for name in (
                "token", "span_first", "span_start", "span_pages", "global_pages", "local_pages",
                "pool",
            )
        ),
        ("page_bytes", ctypes.c_int64),
        *(
            (name, ctypes.c_void_p)
            for name in (
                "output_token", "output_top", "output_target", "output_z", "output_row",
            )
        ),
        ("top_stride", ctypes.c_int32),
        ("reserved2", ctypes.c_int32),
        *(
            (name, ctypes.c_void_p)
            for name in ("top_ids", "top_logits", "target_logit", "log_z", "logits")
        ),
    )  # fmt: skip


@cache
def library() -> ctypes.CDLL | None:
    """The loaded library, or None where this installation has none that fits."""
    if not PATH.exists():
        return None
    try:
        found = ctypes.CDLL(str(PATH))
        found.gm_interface.restype = ctypes.c_int32
        if found.gm_interface() != INTERFACE:
            return None
    except (OSError, AttributeError):  # built for another processor or system
        return None
    pointer, int32 = ctypes.c_void_p, ctypes.c_int32
    for name, result, arguments in (
        ("gm_isa", ctypes.c_char_p, ()),
        ("gm_set_isa", int32, (ctypes.c_char_p,)),
        ("gm_page_bytes", ctypes.c_int64, (ctypes.POINTER(CModel),)),
        ("gm_context_new", pointer, (int32,)),
        ("gm_context_free", None, (pointer,)),
        ("gm_run", int32, (pointer, ctypes.POINTER(CModel), ctypes.POINTER(CStep))),
        ("gm_linear", int32, (pointer, ctypes.POINTER(CMatrix), pointer, int32, pointer)),
        ("gm_row", None, (ctypes.POINTER(CMatrix), int32, pointer)),
        ("gm_read_speed", ctypes.c_double, (pointer, pointer, ctypes.c_int64, int32)),
    ):
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    return found


def available() -> bool:
    """Whether the library is there. GEMMULE_NATIVE=0 in the environment says no."""
    return os.environ.get("GEMMULE_NATIVE") != "0" and library() is not None


def loaded() -> ctypes.CDLL:
    """The library, for callers that made sure of it."""
    found = library()
    assert found is not None
    return found


def instruction_set() -> str:
    """What the kernels run on: one of INSTRUCTION_SETS."""
    name: bytes = loaded().gm_isa()
    return name.decode()


def instruction_sets() -> list[str]:
    """Those that this processor has, the plainest first."""
    before = instruction_set()
    found = [name for name in INSTRUCTION_SETS if loaded().gm_set_isa(name.encode()) == 0]
    loaded().gm_set_isa(before.encode())
    return found


def use_instruction_set(name: str) -> None:
    """Chooses one; for tests and measurements.

    Raises:
        ConfigError: when this processor does not have it.
    """
    if loaded().gm_set_isa(name.encode()) != 0:
        raise ConfigError(
            f"instruction set {name!r} cannot be used here; there are "
            f"{', '.join(instruction_sets())}"
        )


class Threads:
    """Threads that wait for work, and the memory they work in. One call at a time."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.handle: int | None = loaded().gm_context_new(count)
        if self.handle is None:
            raise MemoryError(f"{count} threads cannot be started")
        weakref.finalize(self, loaded().gm_context_free, self.handle)


@cache
def threads(count: int | None = None) -> Threads:
    """Threads shared by whoever asks for as many; by default as many as torch uses."""
    return Threads(count) if count is not None else threads(torch.get_num_threads())


def c_matrix(matrix: PackedMatrix) -> CMatrix:
    """Pointers into `matrix`, which must live as long as they are used."""
    scales = None if matrix.scales is None else matrix.scales.data_ptr()
    return CMatrix(
        matrix.data.data_ptr(), scales, _FORMAT_CODES[matrix.format], matrix.rows, matrix.columns, 0
    )


def linear(matrix: PackedMatrix, x_MK: Tensor, pool: Threads | None = None) -> Tensor:
    """x_MK times the matrix: fp32 [M, N]; activations are quantized as product.py says."""
    x_MK = x_MK.float().contiguous()
    y_MN = torch.empty(len(x_MK), matrix.rows)
    pool = pool or threads()
    if len(x_MK):
        done = loaded().gm_linear(
            pool.handle, c_matrix(matrix), x_MK.data_ptr(), len(x_MK), y_MN.data_ptr()
        )
        if done != 0:
            raise MemoryError("no memory for a product of matrices")
    return y_MN


@torch.library.custom_op("gemmule::packed_linear", mutates_args=(), device_types="cpu")
def packed_linear(
    x_MK: Tensor, data: Tensor, scales: Tensor | None, format: str, rows: int, columns: int
) -> Tensor:
    """`linear` as an operation of torch's, which compiled and exported graphs can hold."""
    return linear(PackedMatrix(format, rows, columns, data, scales), x_MK)


@packed_linear.register_fake
def _(
    x_MK: Tensor, data: Tensor, scales: Tensor | None, format: str, rows: int, columns: int
) -> Tensor:
    return x_MK.new_empty((x_MK.shape[0], rows), dtype=torch.float32)


def rows(matrix: PackedMatrix, ids: Sequence[int]) -> Tensor:
    """Rows by number, fp32 [len(ids), K]."""
    out = torch.empty(len(ids), matrix.columns)
    for row, number in zip(out, ids, strict=True):
        loaded().gm_row(c_matrix(matrix), number, row.data_ptr())
    return out


def read_speed(data: Tensor, pool: Threads | None = None, rounds: int = 1) -> float:
    """Bytes a second at which the threads read a tensor from memory."""
    pool = pool or threads()
    speed: float = loaded().gm_read_speed(pool.handle, data.data_ptr(), data.nbytes, rounds)
    return speed
