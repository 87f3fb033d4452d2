"""`MachineMeter`: joules of processor, memory and GPUs since it was opened, and how each is known.

    meter = MachineMeter.open()
    meter.read()        # {"cpu": 12.5, "memory": 0.8}
    meter.methods       # {"cpu": "model", "memory": "model"}
    meter.close()

Counters count what the whole machine draws, other programs included. A part that cannot be read is
not in the result, and `how` says why.
"""

import configparser
import contextlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from gemmule.runs.power import modelled, nvml, rapl
from gemmule.runtime import host

READ_SECONDS = 15.0
"""Time between readings of counters that go round; theirs take minutes for it."""

Method = Literal["counter", "model"]
_SECTION = "codecarbon"


@dataclass(frozen=True)
class Source:
    """What the energy of one part is read from.

    Attributes:
        read: returns joules since the start; an OSError means that it can no longer be read.
        method: "counter" where it is measured, "model" where it is computed.
    """

    read: Callable[[], float]
    method: Method


class MachineMeter:
    """Energy of the parts of a machine. All methods may be called from any thread.

    Attributes:
        how: how "cpu", "memory" and "gpu" are known, or why not.
        gpus: names of the GPUs.
    """

    def __init__(
        self, sources: Mapping[str, Sequence[Source]], how: Mapping[str, str], *,
        gpus: Sequence[str] = (), goes_round: bool = False,
    ) -> None:  # fmt: skip
        """Reads `sources`; see `open`.

        Args:
            sources: sources of each part, which add up.
            how: how each part is known.
            gpus: names of the GPUs.
            goes_round: whether a counter has to be read from time to time.
        """
        self.how, self.gpus = dict(how), tuple(gpus)
        self._sources = {part: tuple(each) for part, each in sources.items()}
        self._lock, self._closed = threading.Lock(), threading.Event()
        if goes_round:
            threading.Thread(target=self._keep_reading, name="energy", daemon=True).start()

    @classmethod
    def open(cls) -> Self:
        """A meter of this machine, from now on. Takes some milliseconds."""
        settings = user_settings()
        packages, memory, problem = rapl.domains()
        sources: dict[str, list[Source]] = {}
        how: dict[str, str] = {}
        name = host.processor()
        if packages:
            sources["cpu"] = [Source(domain.read, "counter") for domain in packages]
            how["cpu"] = f"measured by RAPL (the processor's own energy counter), {name}"
        else:
            watts, origin = modelled.cpu_watts(settings)
            sources["cpu"] = [Source(modelled.CpuModel(watts).read, "model")]
            law = "TDP x (0.2 + 0.8 load)"
            how["cpu"] = f"modelled from TDP ({law}; {origin}; {name}): {problem}"
        if memory:
            sources["memory"] = [Source(domain.read, "counter") for domain in memory]
            how["memory"] = "measured by RAPL"
        elif (constant := modelled.memory_watts(settings)) is not None:
            watts, origin = constant
            sources["memory"] = [Source(modelled.ConstantPower(watts).read, "model")]
            how["memory"] = f"modelled: a constant {watts:.3g} W, {origin}"
        else:
            how["memory"] = "not measured: its size is not known"
        gpus, how["gpu"] = nvml.gpus()
        if gpus:
            sources["gpu"] = [Source(gpu.read, "counter") for gpu in gpus]
        return cls(sources, how, gpus=[gpu.name for gpu in gpus], goes_round=bool(packages))

    @property
    def methods(self) -> dict[str, Method]:
        """How the energy of each part comes about that can be read."""
        return {part: each[0].method for part, each in self._sources.items()}

    def read(self) -> dict[str, float]:
        """Joules since the start by part."""
        with self._lock:
            joules = {}
            for part, sources in [*self._sources.items()]:
                try:
                    joules[part] = sum(source.read() for source in sources)
                except (OSError, ValueError) as e:
                    del self._sources[part]
                    self.how[part] = f"not measured: the counter failed ({type(e).__name__})"
            return joules

    def close(self) -> None:
        """Ends the readings in the background."""
        self._closed.set()

    def _keep_reading(self) -> None:
        while not self._closed.wait(READ_SECONDS):
            self.read()


def user_settings() -> dict[str, str]:
    """The user's settings of codecarbon: of the home folder and of the environment.

    A file in the current folder, which codecarbon itself also reads, is not: that folder may be
    anyone's.
    """
    parser = configparser.ConfigParser()
    with contextlib.suppress(RuntimeError, configparser.Error):  # no home folder; a broken file
        parser.read(Path.home() / ".codecarbon.config")
    settings = dict(parser[_SECTION]) if parser.has_section(_SECTION) else {}
    prefix = f"{_SECTION}_"
    for name, value in os.environ.items():
        if name.lower().startswith(prefix):
            settings[name.lower().removeprefix(prefix)] = value
    return settings
