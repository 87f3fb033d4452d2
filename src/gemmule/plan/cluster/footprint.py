"""Goodput, energy and carbon of a run on a cluster.

Carbon is location-based: energy at the wall times the grid's intensity, and the share of making the
devices that the run uses up, (time / lifetime) of each (ISO/IEC 21031, embodied emissions).
"""

import math
from dataclasses import dataclass

from gemmule.plan.cluster.devices import Cluster

PUE = 1.1
YEARS = 3.0  # lifetime of an accelerator and its host
HOURS_PER_YEAR = 8766.0
# Llama 3 405B: 419 unexpected interruptions in 54 days of 16,384 GPUs (arXiv 2407.21783, s. 3.3.4).
MTBF_HOURS = 54 * 24 * 16_384 / 419
# The same run's storage sustained 2 TB/s for its 16,384 GPUs.
STORAGE_BYTES_PER_DEVICE = 2e12 / 16_384
CHECKPOINT_BYTES = 12.0  # per parameter: fp32 weights and AdamW's moments
RESTART_SECONDS = 600.0  # noticing, replacing, loading: assumed


@dataclass(frozen=True)
class Goodput:
    """What interruptions cost.

    Attributes:
        fraction: time of steps that count over wall time.
        interruptions_per_day: expected interruptions of the whole cluster.
        checkpoint_seconds: duration of a checkpoint.
        checkpoint_minutes: best time between checkpoints.
    """

    fraction: float
    interruptions_per_day: float
    checkpoint_seconds: float
    checkpoint_minutes: float


def goodput(parameters: float, cluster: Cluster) -> Goodput:
    """Checkpoints at Young's interval, sqrt(2 C M), and half an interval lost per interruption.

    Young, "A first order approximation to the optimum checkpoint interval", CACM 17(9), 1974.

    Args:
        parameters: number of parameters of the trained model.
        cluster: the devices.
    """
    between = MTBF_HOURS * 3600 / cluster.count  # seconds between interruptions
    saved = CHECKPOINT_BYTES * parameters / (STORAGE_BYTES_PER_DEVICE * cluster.count)
    interval = math.sqrt(2 * saved * between)
    lost = saved / interval + (interval / 2 + RESTART_SECONDS) / between
    return Goodput(1 / (1 + lost), 86400 / between, saved, interval / 60)


@dataclass(frozen=True)
class Footprint:
    """Energy and carbon.

    Attributes:
        kwh: energy at the wall, all overheads included.
        operational_kg: kg CO2e of that energy; None where the grid's intensity is not known.
        embodied_kg: kg CO2e, the share of making the devices.
    """

    kwh: float
    operational_kg: float | None
    embodied_kg: float

    @property
    def kg(self) -> float | None:
        """Both together."""
        return None if self.operational_kg is None else self.operational_kg + self.embodied_kg


def footprint(cluster: Cluster, hours: float, grid: float | None, pue: float = PUE) -> Footprint:
    """Energy and carbon of the whole cluster.

    Args:
        cluster: the devices.
        hours: wall time of the run.
        grid: grams of CO2 equivalent per kWh; None: not known.
        pue: energy of the building over that of the machines.
    """
    device, device_hours = cluster.device, cluster.count * hours
    kwh = device_hours * (device.busy_watts + device.host_watts) * pue / 1000
    made = (device.embodied_kg + device.host_kg) * device_hours / (YEARS * HOURS_PER_YEAR)
    return Footprint(kwh, None if grid is None else kwh * grid / 1000, made)
