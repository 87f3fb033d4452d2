"""Counters and models of power, on fake machines."""

import ctypes
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from gemmule.runs.ledger.line import MODEL_FACTOR
from gemmule.runs.power import machine, modelled, nvml, rapl
from gemmule.runs.power.machine import MachineMeter, Source


def counter(folder: Path, name: str, microjoules: int, largest: int = 999_999) -> Path:
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{largest}\n")
    return folder / "energy_uj"


def test_rapl_counts_packages_and_memory_and_goes_round(tmp_path: Path) -> None:
    package = counter(tmp_path / "intel-rapl:0", "package-0", 900_000)
    counter(tmp_path / "intel-rapl:0:0", "core", 5)
    memory = counter(tmp_path / "intel-rapl:0:1", "dram", 0)
    counter(tmp_path / "intel-rapl:1", "psys", 7)
    counter(tmp_path / "intel-rapl-mmio:0", "package-0", 1)  # the same counter once more
    packages, memories, problem = rapl.domains(tmp_path)
    assert problem is None
    assert [domain.name for domain in packages] == ["package-0"]
    assert [domain.name for domain in memories] == ["dram"]
    package.write_text("950000")
    memory.write_text("250000")
    assert packages[0].read() == pytest.approx(0.05)
    assert memories[0].read() == pytest.approx(0.25)
    package.write_text("50000")  # 999999 and then 0, 1, …
    assert packages[0].read() == pytest.approx(0.15)


def test_rapl_that_is_not_there_or_not_readable_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rapl.domains(tmp_path) == ([], [], "this machine shows no RAPL counter")
    counter(tmp_path / "intel-rapl:0", "package-0", 1)
    plain = Path.read_text

    def refused(path: Path, *args: Any, **kwargs: Any) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return plain(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", refused)
    packages, _, problem = rapl.domains(tmp_path)
    assert packages == []
    assert "by root only" in str(problem)


class FakeNvml:
    """NVML with some GPUs."""

    def __init__(self, millijoules: list[int | None], mig: bool = False) -> None:
        self.millijoules, self.mig = millijoules, mig

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = len(self.millijoules)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, handle: Any) -> int:
        handle._obj.value = index + 1
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle: Any) -> int:
        """Partitions are numbered from 101 on, two of each GPU."""
        handle._obj.value = 101 + int(uuid.removeprefix(b"MIG-"))
        return 0

    def nvmlDeviceGetUUID(self, handle: Any, text: Any, size: int) -> int:
        text.value = b"GPU-%dc%d-4d" % (handle.value // 2, handle.value)
        return 0

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, partition: Any, handle: Any) -> int:
        handle._obj.value = (partition.value - 101) // 2 + 1
        return 0

    def nvmlDeviceGetName(self, handle: Any, buffer: Any, size: int) -> int:
        buffer.value = b"NVIDIA H100"
        return 0

    def nvmlDeviceGetMigMode(self, handle: Any, mode: Any, pending: Any) -> int:
        mode._obj.value = int(self.mig)
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, value: Any) -> int:
        joules = self.millijoules[handle.value - 1]
        if joules is None:
            return 3
        value._obj.value = joules
        return 0


def test_nvml_counts_the_gpus_that_may_be_used() -> None:
    library = FakeNvml([1000, 2000, 3000])
    gpus, how = nvml.gpus({}, library)
    assert len(gpus) == 3
    assert how == "measured by the driver's counters (3 x NVIDIA H100)"
    gpus, how = nvml.gpus({"CUDA_VISIBLE_DEVICES": "2, 0"}, library)
    library.millijoules = [1500, 9999, 3000]
    assert [gpu.read() for gpu in gpus] == [0.0, 0.5]
    assert nvml.gpus({"CUDA_VISIBLE_DEVICES": ""}, library) == ([], "none found")
    assert len(nvml.gpus({"CUDA_VISIBLE_DEVICES": "0,x,1"}, library)[0]) == 1


def test_nvml_knows_a_gpu_by_the_beginning_of_its_uuid() -> None:
    library = FakeNvml([1000, 2000, 3000])  # GPU-0c1-4d, GPU-1c2-4d, GPU-1c3-4d
    gpus, _ = nvml.gpus({"CUDA_VISIBLE_DEVICES": "GPU-1c3,GPU-0c1-4d"}, library)
    library.millijoules = [1000, 2000, 4000]
    assert [gpu.read() for gpu in gpus] == [1.0, 0.0]
    for ambiguous in ("GPU-1", "GPU-7"):
        assert nvml.gpus({"CUDA_VISIBLE_DEVICES": ambiguous}, library) == ([], "none found")


def test_nvml_without_a_counter_or_divided_says_so() -> None:
    gpus, how = nvml.gpus({}, FakeNvml([1, None]))
    assert (gpus, "no energy counter" in how) == ([], True)
    assert "MIG divides the whole" in nvml.gpus({}, FakeNvml([1], mig=True))[1]
    visible = {"CUDA_VISIBLE_DEVICES": "MIG-0,MIG-1,MIG-2"}
    gpus, how = nvml.gpus(visible, FakeNvml([1, 2, 3], mig=True))
    assert (len(gpus), "2 x NVIDIA H100; of GPUs that MIG divides" in how) == (2, True)


def test_a_missing_driver_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert nvml.gpus({}) == ([], "none found")


def test_the_model_of_a_processor_is_linear_in_its_load() -> None:
    now, busy = [0.0], [0.0]
    model = modelled.CpuModel(100.0, lambda: busy[0], lambda: now[0], threads=4)
    now[0] = 10.0
    assert model.read() == pytest.approx(200.0)  # a fifth of the power
    busy[0] = 20.0
    assert model.read() == pytest.approx(200.0 + 0.8 * 100 * 20 / 4)
    busy[0] = 1e9  # clocks differ: no more than all threads
    assert model.read() == pytest.approx(1000.0)


@pytest.mark.parametrize(
    ("name", "watts"),
    [
        ("AMD EPYC 7742 64-Core Processor", 225),
        ("Intel(R) Xeon(R) Gold 6148 CPU @ 2.40GHz", 150),
        ("AMD Ryzen 9 5950X 16-Core Processor", 105),
        ("Intel(R) Core(TM) i7-9700K CPU @ 3.60GHz", 95),
        ("AMD EPYC", None),
        ("Something 3000", None),
        ("", None),
    ],
)
def test_names_of_processors(name: str, watts: float | None) -> None:
    pytest.importorskip("codecarbon")
    assert modelled.tdp_of(name) == watts


def test_a_virtual_machine_is_not_billed_for_its_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelled, "tdp_of", lambda name: 280.0)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(modelled.cgroups, "cpu_quota", lambda: None)
    about = modelled._About("AMD EPYC 7763 64-Core Processor", 2, virtual=True)
    monkeypatch.setattr(modelled, "_cpuinfo", lambda: about)
    watts, how = modelled.cpu_watts({})
    assert watts == 32
    assert "4 W for each of 8 hardware threads" in how
    about.virtual = False
    assert modelled.cpu_watts({})[0] == 560
    monkeypatch.setattr(modelled.cgroups, "cpu_quota", lambda: 2.0)  # a container
    watts, how = modelled.cpu_watts({})
    assert watts == 140
    assert "25% of it" in how
    assert modelled.cpu_watts({"force_cpu_power": "30"})[0] == 30


def test_memory_is_that_of_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelled.memory, "usable", lambda: 10_000_000_000)
    constant = modelled.memory_watts({})
    assert constant is not None
    assert constant[0] == pytest.approx(3.92)
    assert modelled.memory_watts({"force_ram_power": "7"}) == (7, "from codecarbon's settings")
    monkeypatch.setattr(modelled.memory, "usable", lambda: None)
    assert modelled.memory_watts({}) is None


def test_this_machine_has_a_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = MachineMeter.open()
    first, second = meter.read(), meter.read()
    meter.close()
    assert first.keys() == second.keys() >= {"cpu"}
    assert all(second[part] >= first[part] >= 0 for part in first)
    assert set(meter.how) == {"cpu", "memory", "gpu"}


def test_a_counter_that_fails_leaves_the_others() -> None:
    def fails() -> float:
        raise OSError("gone")

    meter = MachineMeter(
        {"cpu": [Source(lambda: 1.0, "model"), Source(lambda: 2.0, "model")],
         "gpu": [Source(fails, "counter")]},
        {"cpu": "a model", "gpu": "a counter"},
    )  # fmt: skip
    assert meter.read() == {"cpu": 3.0}
    assert "failed" in meter.how["gpu"]
    assert meter.methods == {"cpu": "model"}


def test_counters_that_go_round_are_read_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "READ_SECONDS", 0.001)
    read = threading.Event()

    def source() -> float:
        read.set()
        return 1.0

    meter = MachineMeter({"cpu": [Source(source, "counter")]}, {"cpu": ""}, goes_round=True)
    assert read.wait(10)
    meter.close()


@pytest.mark.slow
def test_the_model_holds_within_its_interval_where_a_counter_is_readable() -> None:
    """A factor of 2, busy and idle; on a machine whose counter can be read."""
    packages, _, problem = rapl.domains()
    if not packages:
        pytest.skip(f"no counter to compare with: {problem}")
    watts, _ = modelled.cpu_watts({})
    for busy in (True, False):
        model = modelled.CpuModel(watts)
        counters, _, _ = rapl.domains()
        end = time.monotonic() + 5
        while time.monotonic() < end:
            if not busy:
                time.sleep(0.1)
        counted = sum(counter.read() for counter in counters)
        assert counted / MODEL_FACTOR <= model.read() <= counted * MODEL_FACTOR
