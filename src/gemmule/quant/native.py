"""Bindings of the C++ kernels through ctypes; native/gemmule.h declares their interface.

The structs below mirror those of gemmule.h. Their layout is compared with the library's when it is
loaded, and a library that differs is not used. Without a library, `available` is False and torch
does the work.
"""

import ctypes
import os
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from gemmule import files
from gemmule.errors import ConfigError
from gemmule.quant.packed import PackedMatrix

INTERFACE = 1  # the meaning of the fields, which their layout cannot show
# Another build of it, such as one with sanitizers, can be named in the environment.
PATH = files.expand(
    os.environ.get("GEMMULE_LIBRARY")
    or Path(__file__).with_name(
        f"libgemmule_kernels.{'dylib' if sys.platform == 'darwin' else 'so'}"
    )
)
_FORMAT_CODES = {"f32": 0, "bf16": 1, "int4": 4, "int6": 6, "int8": 8}
INSTRUCTION_SETS = (
    "portable", "avx2", "avx_vnni", "avx512vnni", "amx", "dotprod", "i8mm",
)  # fmt: skip


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
                "output_mask",
            )
        ),
        ("top_stride", ctypes.c_int32),
        ("reserved2", ctypes.c_int32),
        *(
            (name, ctypes.c_void_p)
            for name in ("top_ids", "top_logits", "target_logit", "log_z", "logits")
        ),
    )  # fmt: skip


# Every struct that Python and the library share, by its name in gemmule.h.
STRUCTURES: Mapping[str, type[ctypes.Structure]] = {
    "gm_matrix": CMatrix,
    "gm_layer": CLayer,
    "gm_model": CModel,
    "gm_step": CStep,
}


def load(path: Path, structures: Mapping[str, type[ctypes.Structure]] = STRUCTURES) -> ctypes.CDLL:
    """Loads a library and declares the types of its functions.

    Args:
        path: the library.
        structures: the structs that it must share with Python, by their names in gemmule.h.

    Raises:
        OSError: when the file cannot be loaded on this system.
        ImportError: when it was built from other sources than this package.
    """
    library = ctypes.CDLL(str(path))
    pointer, int32, int64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
    try:
        for name, result, arguments in (
            ("gm_abi", int64, (ctypes.c_char_p,)),
            ("gm_isa", ctypes.c_char_p, ()),
            ("gm_set_isa", int32, (ctypes.c_char_p,)),
            ("gm_page_bytes", int64, (ctypes.POINTER(CModel),)),
            ("gm_context_new", pointer, (int32,)),
            ("gm_context_free", None, (pointer,)),
            ("gm_run", int32, (pointer, ctypes.POINTER(CModel), ctypes.POINTER(CStep))),
            ("gm_linear", int32, (pointer, ctypes.POINTER(CMatrix), pointer, int32, pointer)),
            ("gm_row", None, (ctypes.POINTER(CMatrix), int32, pointer)),
            ("gm_read_speed", ctypes.c_double, (pointer, pointer, int64, int32)),
        ):
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        difference = _difference(lambda name: int(library.gm_abi(name.encode())), structures)
    except AttributeError as e:
        difference = str(e)
    if difference:
        raise ImportError(
            f"{path} was built from other sources than this gemmule ({difference}): build it again "
            "with pip install"
        )
    return library


def _difference(
    native_value: Callable[[str], int], structures: Mapping[str, type[ctypes.Structure]]
) -> str | None:
    """Where the library's constants, struct sizes or field offsets differ from Python's."""
    expected = {"GM_INTERFACE": INTERFACE}
    expected |= {f"GM_{name.upper()}": code for name, code in _FORMAT_CODES.items()}
    for name, structure in structures.items():
        expected[name] = ctypes.sizeof(structure)
        for field in structure._fields_:
            expected[f"{name}.{field[0]}"] = getattr(structure, field[0]).offset
    for name, value in expected.items():
        if native_value(name) != value:
            return f"{name} is {value} here and {native_value(name)} in the library"
    return None


@cache
def _library() -> ctypes.CDLL | str:
    """The loaded library, or the reason why there is none."""
    if not PATH.exists():
        return "they were not built: was there no C++ compiler when gemmule was installed?"
    try:
        return load(PATH)
    except (OSError, ImportError) as e:
        return str(e)


def unavailable_reason() -> str | None:
    """Why the kernels cannot be used here, or None if they can."""
    if os.environ.get("GEMMULE_NATIVE") == "0":
        return "GEMMULE_NATIVE is 0"
    library = _library()
    return library if isinstance(library, str) else None


def available() -> bool:
    """Whether the kernels can be used. GEMMULE_NATIVE=0 in the environment turns them off."""
    return unavailable_reason() is None


def loaded() -> ctypes.CDLL:
    """The library, for callers that know that it is available."""
    library = _library()
    assert isinstance(library, ctypes.CDLL), library
    return library


def instruction_set() -> str:
    """The instruction set in use, one of INSTRUCTION_SETS."""
    name: bytes = loaded().gm_isa()
    return name.decode()


def instruction_sets() -> list[str]:
    """The instruction sets that this processor supports, the simplest first."""
    before = instruction_set()
    supported = [name for name in INSTRUCTION_SETS if loaded().gm_set_isa(name.encode()) == 0]
    loaded().gm_set_isa(before.encode())
    return supported


def use_instruction_set(name: str) -> None:
    """Selects an instruction set, for tests and measurements.

    Raises:
        ConfigError: when this processor does not have it.
    """
    if loaded().gm_set_isa(name.encode()) != 0:
        raise ConfigError(
            f"instruction set {name!r} cannot be used here; choose one of "
            f"{', '.join(instruction_sets())}"
        )


class Threads:
    """A pool of native threads and their buffers, for one call at a time; others wait.

    In a fork of the process the first call starts threads again.

    Raises:
        ConfigError: when the system does not start that number of threads.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.handle: int | None = loaded().gm_context_new(count)
        if self.handle is None:
            raise _no_threads(count)
        weakref.finalize(self, loaded().gm_context_free, self.handle)

    def check(self, result: float, purpose: str) -> None:
        """Raises what a call's negative result stands for.

        Args:
            result: what the library returned.
            purpose: what memory was needed for.

        Raises:
            MemoryError: when memory ran out.
            ConfigError: when the system does not start the threads.
        """
        if result == -2:
            raise _no_threads(self.count)
        if result < 0:
            raise MemoryError(f"not enough memory for {purpose}")


def _no_threads(count: int) -> ConfigError:
    return ConfigError(
        f"{count} threads cannot be started: raise the limit of processes (ulimit -u, or pids.max "
        "of the control group) or of memory, or use fewer threads: OMP_NUM_THREADS=1"
    )


@cache
def threads(count: int | None = None) -> Threads:
    """The pool of `count` threads that all callers share; None: as many threads as torch uses."""
    return Threads(count) if count is not None else threads(torch.get_num_threads())


def c_matrix(matrix: PackedMatrix) -> CMatrix:
    """Pointers into `matrix`, which must outlive them."""
    scales = None if matrix.scales is None else matrix.scales.data_ptr()
    return CMatrix(
        matrix.data.data_ptr(), scales, _FORMAT_CODES[matrix.format], matrix.rows, matrix.columns, 0
    )


def linear(matrix: PackedMatrix, x_MK: Tensor, pool: Threads | None = None) -> Tensor:
    """x_MK times the transposed matrix: fp32 [M, N]; see product.py for the arithmetic."""
    x_MK = x_MK.float().contiguous()
    y_MN = torch.empty(len(x_MK), matrix.rows)
    pool = pool or threads()
    if len(x_MK):
        done = loaded().gm_linear(
            pool.handle, c_matrix(matrix), x_MK.data_ptr(), len(x_MK), y_MN.data_ptr()
        )
        pool.check(
            done, f"a product of {len(x_MK)} rows with a {matrix.rows} x {matrix.columns} matrix"
        )
    return y_MN


@torch.library.custom_op("gemmule::packed_linear", mutates_args=(), device_types="cpu")
def packed_linear(
    x_MK: Tensor, data: Tensor, scales: Tensor | None, format: str, rows: int, columns: int
) -> Tensor:
    """`linear` as a torch operator, for compiled and exported graphs."""
    return linear(PackedMatrix(format, rows, columns, data, scales), x_MK)


@packed_linear.register_fake
def _(
    x_MK: Tensor, data: Tensor, scales: Tensor | None, format: str, rows: int, columns: int
) -> Tensor:
    return x_MK.new_empty((x_MK.shape[0], rows), dtype=torch.float32)


def rows(matrix: PackedMatrix, ids: Sequence[int]) -> Tensor:
    """Looks up rows by number: fp32 [len(ids), K]."""
    out = torch.empty(len(ids), matrix.columns)
    for row, number in zip(out, ids, strict=True):
        loaded().gm_row(c_matrix(matrix), number, row.data_ptr())
    return out


def read_speed(data: Tensor, pool: Threads | None = None, rounds: int = 1) -> float:
    """Bytes per second at which the threads read a tensor from memory."""
    pool = pool or threads()
    speed: float = loaded().gm_read_speed(pool.handle, data.data_ptr(), data.nbytes, rounds)
    pool.check(speed, "counters")
    return speed
