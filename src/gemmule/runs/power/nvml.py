"""NVML: the energy counters of NVIDIA's GPUs, through the driver's own library.

nvmlDeviceGetTotalEnergyConsumption counts millijoules since the driver was loaded, from Volta on. A
partition of a GPU (MIG) has no counter: the whole GPU's is read, and it is said.
"""

import ctypes
import os
from collections.abc import Mapping
from typing import Any

_UUID_BYTES = 96  # NVML_DEVICE_UUID_V2_BUFFER_SIZE
_LIBRARY = "libnvidia-ml.so.1"
_NAME_BYTES = 96


class Gpu:
    """One GPU.

    Attributes:
        name: its name, as in "NVIDIA H100 80GB HBM3".
        partitioned: whether it is divided by MIG.
    """

    def __init__(self, library: Any, handle: Any) -> None:
        """Reads the counter once.

        Raises:
            OSError: when it has none.
        """
        self._library, self._handle = library, handle
        buffer = ctypes.create_string_buffer(_NAME_BYTES)
        library.nvmlDeviceGetName(handle, buffer, _NAME_BYTES)
        self.name = buffer.value.decode(errors="replace") or "GPU"
        mode, pending = ctypes.c_uint(0), ctypes.c_uint(0)
        known = library.nvmlDeviceGetMigMode(handle, ctypes.byref(mode), ctypes.byref(pending)) == 0
        self.partitioned = known and mode.value == 1
        self._first = self._now()

    def read(self) -> float:
        """Joules since the first reading.

        Raises:
            OSError: when the driver refuses.
        """
        return (self._now() - self._first) / 1000

    def _now(self) -> int:
        value = ctypes.c_ulonglong(0)
        status = self._library.nvmlDeviceGetTotalEnergyConsumption(
            self._handle, ctypes.byref(value)
        )
        if status != 0:
            raise OSError(f"NVML error {status}")
        return value.value


def gpus(environment: Mapping[str, str] = os.environ, library: Any = None) -> tuple[list[Gpu], str]:
    """The GPUs that this process may use, and how their energy is known or why not.

    Those that CUDA_VISIBLE_DEVICES leaves out belong to others.

    Args:
        environment: environment variables.
        library: NVML; None loads the driver's.
    """
    if library is None:
        try:
            library = ctypes.CDLL(_LIBRARY)
        except OSError:
            return [], "none found"
    if library.nvmlInit_v2() != 0:
        return [], "none found: NVIDIA's driver is not running"
    count = ctypes.c_uint(0)
    library.nvmlDeviceGetCount_v2(ctypes.byref(count))
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    result = []
    for handle in _handles(library, count.value, visible):
        try:
            result.append(Gpu(library, handle))
        except OSError as e:
            return [], f"not measured: a GPU has no energy counter ({e})"
    if not result:
        return [], "none found"
    names = ", ".join(sorted({gpu.name for gpu in result}))
    shared = "; of GPUs that MIG divides the whole" if any(g.partitioned for g in result) else ""
    return result, f"measured by the driver's counters ({len(result)} x {names}{shared})"


def _handles(library: Any, count: int, visible: str | None) -> list[Any]:
    """Handles of the GPUs that are listed by number or UUID; of all if nothing is listed.

    A UUID may be cut short, as CUDA allows, if only one GPU's begins so.

    Of a partition it is that of the whole GPU, once.
    """
    names = [str(i) for i in range(count)] if visible is None else visible.split(",")
    handles: dict[int | None, Any] = {}
    for name in (name.strip() for name in names):
        handle = ctypes.c_void_p()
        if name.isdigit() and int(name) < count:
            status = library.nvmlDeviceGetHandleByIndex_v2(int(name), ctypes.byref(handle))
        elif name.startswith("GPU-"):
            matches = [i for i in range(count) if _uuid(library, i).startswith(name)]
            if len(matches) != 1:
                break
            status = library.nvmlDeviceGetHandleByIndex_v2(matches[0], ctypes.byref(handle))
        elif name.startswith("MIG-"):
            status = library.nvmlDeviceGetHandleByUUID(name.encode(), ctypes.byref(handle))
        else:
            break  # as CUDA does: what follows an invalid entry is not visible
        if status == 0 and name.startswith("MIG-"):
            whole = ctypes.c_void_p()
            status = library.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(
                handle, ctypes.byref(whole)
            )
            handle = whole
        if status == 0:
            handles.setdefault(handle.value, handle)
    return [*handles.values()]


def _uuid(library: Any, number: int) -> str:
    """UUID of a GPU; empty where NVML does not tell it."""
    handle, text = ctypes.c_void_p(), ctypes.create_string_buffer(_UUID_BYTES)
    status = library.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(handle))
    if status == 0:
        status = library.nvmlDeviceGetUUID(handle, text, _UUID_BYTES)
    return text.value.decode() if status == 0 else ""
