"""A machine whose meters count what a test says."""

import datetime
from typing import Any

from gemmule.runs.emissions.embodied import Embodied
from gemmule.runs.emissions.grid import Grid
from gemmule.runs.ledger.line import Devices, Line, Part, energy_interval, times
from gemmule.runs.power.machine import MachineMeter, Source


class FakeMachine:
    """Energy that a test spends.

    Attributes:
        cpu, gpu: joules so far.
        opened: number of meters that were opened.
    """

    def __init__(self) -> None:
        self.cpu, self.gpu, self.opened = 1000.0, 50.0, 0

    def open(self) -> MachineMeter:
        """A meter of this machine."""
        self.opened += 1
        cpu, gpu = Source(lambda: self.cpu, "model"), Source(lambda: self.gpu, "counter")
        return MachineMeter(
            {"cpu": [cpu], "gpu": [gpu]},
            {"cpu": "modelled by a test", "gpu": "measured by a test", "memory": "not measured"},
            gpus=["NVIDIA H100"],
        )  # fmt: skip


def line(identifier: str, joules: float = 3600.0, **values: Any) -> Line:
    """A line of one part of a watt-hour at 500 g per kWh, with a gram of embodied carbon."""
    parts = {"cpu": Part(joules=joules, method="counter", how="counted")}
    energy = energy_interval(parts, 1.0)
    given: dict[str, Any] = {
        "id": identifier, "run": "", "name": "x", "kind": "train", "outcome": "finished",
        "began": datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC).isoformat(),
        "seconds": 10.0, "sources": [], "product": None,
        "devices": Devices(processor="P", cores=2, gpus=0, node=0, nodes=1),
        "joules": parts, "not_measured": {}, "pue": 1.0, "energy_wh": energy,
        "grid": Grid(gco2e_per_kwh=500.0, country=None, year=2020, source="a test"),
        "gco2e": times(energy, 0.5), "market": None, "market_gco2e": None,
        "embodied": Embodied(gco2e=1.0, kg=1.0, years=1.0, share=1.0, source="a test"),
        "water": None, "tokens_in": None, "tokens_out": None, "flop": None, "boundary": "a test",
    }  # fmt: skip
    return Line(**(given | values))
