from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from gemmule.errors import ConfigError
from gemmule.model.config import preset
from gemmule.runtime import device, host, memory, torch_compile
from gemmule.runtime.config import RuntimeConfig
from gemmule.runtime.world import World
from gemmule.train import memory_check
from gemmule.train.config import RunConfig

Settings = Callable[..., dict[str, Any]]


@pytest.fixture
def forget() -> Iterator[None]:
    """can_compile remembers its answer."""
    torch_compile.can_compile.cache_clear()
    yield
    torch_compile.can_compile.cache_clear()


@pytest.mark.usefixtures("forget")
def test_without_a_compiler_one_message_and_eager(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise RuntimeError("no g++")

    printed: list[str] = []
    monkeypatch.setattr(torch_compile.console, "print", lambda line, **_: printed.append(line))
    monkeypatch.setattr(torch, "compile", fail)
    config = RuntimeConfig(compile="auto", dtype="float32", threads=1)
    for _ in range(3):
        assert device.resolve(config, flops=1e18).compile is False
    assert len(printed) == 1
    assert "torch.compile does not work here (RuntimeError)" in printed[0]
    with pytest.raises(ConfigError, match="finds no working C\\+\\+ compiler"):
        device.resolve(RuntimeConfig(compile=True, dtype="float32", threads=1), flops=1.0)


def test_auto_is_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_compile, "can_compile", lambda: True)
    monkeypatch.setattr(host, "usable_cores", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rates = {torch.bfloat16: 100.0, torch.float32: 80.0}
    monkeypatch.setattr(device, "matmul_gflops", lambda device, dtype, size: rates[dtype])
    device.fastest_dtype.cache_clear()
    config = RuntimeConfig(compile="auto", dtype="auto", device="auto", threads=0)
    short = device.resolve(config, flops=1e9)
    assert (short.device, short.dtype, short.compile, short.threads) == ("cpu", "float32", False, 1)
    assert device.resolve(config, flops=1e18).compile is True
    rates[torch.bfloat16] = 200.0
    device.fastest_dtype.cache_clear()
    assert device.resolve(config, flops=1e9).dtype == "bfloat16"
    device.fastest_dtype.cache_clear()
    # What the user chose stays.
    chosen = RuntimeConfig(compile=False, dtype="float32", device="cpu", threads=1)
    assert device.resolve(chosen, flops=1e18) == chosen


class SecondOfTwo(World):
    """The second rank on a machine; the first has decided for bfloat16 and against compiling."""

    rank, size, local_rank, local_size = 1, 2, 1, 2

    def __init__(self) -> None:
        self.answers = [1.0, 0.0]

    def sum(self, values: Sequence[float]) -> list[float]:
        assert list(values) == [0.0]  # only the first rank has a say
        return [self.answers.pop(0)]


def test_ranks_share_cores_and_take_the_first_ones_choices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch_compile, "can_compile", lambda: True)
    monkeypatch.setattr(host, "usable_cores", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device, "fastest_dtype", lambda _: "float32")
    config = RuntimeConfig(dtype="auto", compile="auto")
    resolved = device.resolve(config, flops=1e18, world=SecondOfTwo())
    assert (resolved.threads, resolved.dtype, resolved.compile) == (1, "bfloat16", False)


def test_emulated_bfloat16_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def rate(device: str, dtype: torch.dtype, size: int | None) -> float:
        asked.append((dtype, size))
        return 80.0 if dtype == torch.float32 else 0.5

    monkeypatch.setattr(device, "matmul_gflops", rate)
    device.fastest_dtype.cache_clear()
    assert device.fastest_dtype("cpu") == "float32"
    assert {size for _, size in asked} == {128}
    device.fastest_dtype.cache_clear()


def test_what_cannot_fit_is_refused(tiny: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "machine", lambda: 8 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = RunConfig.parse(tiny())
    memory_check.check_memory(config, preset("200m", vocab_size=32_000))
    with pytest.raises(ConfigError, match=r"at least [\d.]+ GiB .* this machine has 8.0: use a sm"):
        memory_check.check_memory(config, preset("2b"))
    wide = RunConfig.parse(
        tiny(data={"batch_size": 2**16, "micro_batch_size": None, "seq_len": 1024})
    )
    with pytest.raises(ConfigError, match="micro_batch_size"):
        memory_check.check_memory(wide, preset("1m", vocab_size=512))
    # An unknown memory refuses nothing.
    monkeypatch.setattr(memory, "machine", lambda: None)
    memory_check.check_memory(wide, preset("27b"))
