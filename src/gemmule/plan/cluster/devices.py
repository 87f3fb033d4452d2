"""The table of devices, and clusters of them."""

import functools
import re
import tomllib
from dataclasses import dataclass
from importlib import resources

from pydantic import Field

from gemmule.config import Config, nearest
from gemmule.errors import ConfigError

_CLUSTER = re.compile(r"(?P<device>[a-z0-9-]+?)x(?P<count>[1-9][0-9]*)")
MAX_DEVICES = 1_000_000


class Device(Config):
    """A row of devices.toml, whose head explains the fields and their units."""

    name: str
    family: str
    peak: dict[str, float]
    memory_gib: float = Field(gt=0)
    bandwidth: float = Field(gt=0)
    fast: float = Field(gt=0)
    fast_size: int = Field(ge=1)
    slow: float = Field(gt=0)
    watts: float = Field(gt=0)
    full_watts: float | None = None
    busy_watts: float = Field(gt=0)
    host_watts: float = Field(ge=0)
    embodied_kg: float = Field(ge=0)
    host_kg: float = Field(ge=0)
    source: str
    assumed: str = ""

    def peak_of(self, dtype: str) -> float:
        """FLOP/s in a data type.

        A device below its full power limit runs at a lower clock: dynamic power grows with the
        cube of the clock, so the peak shrinks with the cube root of the limit.

        Raises:
            ConfigError: when the device does not compute in it.
        """
        if dtype not in self.peak:
            raise ConfigError(f"{self.name} has no {dtype}: use {' or '.join(self.peak)}")
        return self.peak[dtype] * (self.watts / (self.full_watts or self.watts)) ** (1 / 3)

    @property
    def memory_bytes(self) -> float:
        """Memory of one device."""
        return self.memory_gib * 2**30


@functools.cache
def devices() -> dict[str, Device]:
    """Every device by the name that --cluster takes."""
    text = resources.files(__package__).joinpath("devices.toml").read_text(encoding="utf-8")
    return {
        name: Device.parse(row, source=f"devices.toml, {name}")
        for name, row in tomllib.loads(text).items()
    }


@dataclass(frozen=True)
class Cluster:
    """Equal devices.

    Attributes:
        key: name of the device in the table.
        device: the device.
        count: how many there are.
    """

    key: str
    device: Device
    count: int

    def __str__(self) -> str:
        return f"{self.key}x{self.count}"

    @classmethod
    def parse(cls, text: str) -> "Cluster":
        """Reads a device and a count, as in h100x512.

        Raises:
            ConfigError: for an unknown device, or a count that is missing or out of range.
        """
        match = _CLUSTER.fullmatch(text.strip().lower())
        if match is None:
            raise ConfigError(
                f"--cluster {text!r}: write a device and how many there are, as in h100x512; "
                f"devices: {', '.join(devices())}"
            )
        key, count = match["device"], int(match["count"][:9])
        if key not in devices():
            raise ConfigError(f"no device {key!r} in the table; {nearest(key, list(devices()))}")
        if count > MAX_DEVICES:
            raise ConfigError(f"--cluster {text!r}: at most {MAX_DEVICES:,} devices")
        return cls(key, devices()[key], count)
