"""Embodied carbon: the part of making a machine that an activity uses up.

M = TE x (time / lifetime) x (resources used / all resources), as in the Software Carbon Intensity
specification (ISO/IEC 21031, section "embodied emissions") and Cloud Carbon Footprint.

TE, unless footprint.toml gives it:
- a GPU: 164 kg for an H100 (NVIDIA's product carbon footprint; also for newer ones), 150 kg for
  others (Luccioni et al., "Estimating the carbon footprint of BLOOM", 2211.02001, section 4.1).
- the host of a server GPU: 5,700 kg for 8 GPUs (EcoLogits).
- else a share of a reference server with 48 cores, 256 GB and a 1 TB disk, about 815 kg by the
  factors of UBA 2021 as Boavizta gives them: processor 1.97 kg per cm2 of die + 9.14, memory 2.2
  kg per cm2 + 5.22 a module, mainboard 66, power supplies 24 a kg, case 150, assembly 6.7. The
  share is that of cores or that of memory, the larger.
"""

from collections.abc import Sequence

from gemmule.runs.emissions.settings import FootprintSettings
from gemmule.runs.schema import Amount, Group
from gemmule.runtime import host, memory

SERVER_KG, SERVER_CORES, SERVER_GB, SERVER_YEARS = 815.0, 48, 256.0, 4.0
GPU_KG, LARGE_GPU_KG, HOST_KG_PER_GPU, GPU_YEARS = 150.0, 164.0, 5700.0 / 8, 3.0
_LARGE = ("H100", "H200", "H800", "H20", "B100", "B200", "B300", "GH200")
_IN_SERVERS = (*_LARGE, "A100", "A800", "V100", "L40", "A30", "A40")
_HOURS_PER_YEAR = 8766.0


class Embodied(Group):
    """Embodied carbon of an activity.

    Attributes:
        gco2e: grams of CO2 equivalent.
        kg: kgCO2e of making what is used, the share included.
        years: how long it is used.
        share: part of the machine that is used; 1 where a user gave the kilograms.
        source: where the figures are from.
    """

    gco2e: Amount
    kg: Amount
    years: Amount
    share: Amount
    source: str


def embodied(seconds: float, gpus: Sequence[str], settings: FootprintSettings) -> Embodied:
    """The embodied carbon of using this machine for some time.

    Args:
        seconds: how long it was used.
        gpus: names of its GPUs.
        settings: settings of the machine.
    """
    if settings.embodied_kg is not None:
        kg, years = settings.embodied_kg, settings.lifetime_years or SERVER_YEARS
        return _used(seconds, kg, years, 1.0, f"{kg:g} kg in footprint.toml")
    share = _share()
    if gpus:
        kg = sum(LARGE_GPU_KG if _is(name, _LARGE) else GPU_KG for name in gpus)
        hosts = sum(HOST_KG_PER_GPU for name in gpus if _is(name, _IN_SERVERS))
        source = f"{len(gpus)} GPUs ({gpus[0]}): NVIDIA, BLOOM"
        if hosts:
            kg, share, source = kg + hosts, 1.0, f"{source}; host of 8 by EcoLogits"
        else:
            kg += SERVER_KG * share
        return _used(seconds, kg, settings.lifetime_years or GPU_YEARS, share, source)
    source = f"{share:.1%} of a reference server of {SERVER_KG:g} kg (UBA 2021 by Boavizta)"
    years = settings.lifetime_years or SERVER_YEARS
    return _used(seconds, SERVER_KG * share, years, share, source)


def _used(seconds: float, kg: float, years: float, share: float, source: str) -> Embodied:
    grams = 1000 * kg * seconds / (3600 * _HOURS_PER_YEAR * years)
    return Embodied(gco2e=grams, kg=kg, years=years, share=share, source=source)


def _share() -> float:
    size = (memory.usable() or 0) / 1e9
    return max(host.usable_cores() / SERVER_CORES, size / SERVER_GB)


def _is(name: str, kinds: Sequence[str]) -> bool:
    return any(kind in name.upper() for kind in kinds)
