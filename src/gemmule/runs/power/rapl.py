"""RAPL: the energy counters of processors by Intel and AMD, as Linux shows them.

/sys/class/powercap/intel-rapl:N is a package (AMD's too), intel-rapl:N:M a part of it. `energy_uj`
counts microjoules and starts again at `max_energy_range_uj`, within minutes on a large processor.
Since 2020 (CVE-2020-8694) most systems let only root read it.
"""

from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


class Domain:
    """One counter.

    Attributes:
        name: "package-0", "dram", ….
    """

    def __init__(self, folder: Path) -> None:
        """Reads the counter once.

        Raises:
            OSError: when it cannot be read.
        """
        self.name = (folder / "name").read_text().strip()
        self._file = folder / "energy_uj"
        self._range = int((folder / "max_energy_range_uj").read_text())
        self._last = self._now()
        self._joules = 0.0

    def read(self) -> float:
        """Joules since the first reading; to be called before the counter has gone round."""
        now = self._now()
        self._joules += ((now - self._last) % (self._range + 1)) / 1e6
        self._last = now
        return self._joules

    def _now(self) -> int:
        return int(self._file.read_text())


def domains(root: Path = POWERCAP) -> tuple[list[Domain], list[Domain], str | None]:
    """The counters of packages and of memory, and why there are none.

    A package's counter contains those of its cores; that of memory is apart. Counters of a whole
    board (psys) contain both and are left out, as are copies of a package's (intel-rapl-mmio).

    Args:
        root: where the system lists them.
    """
    packages, memory = [], []
    folders = sorted(root.glob("intel-rapl:*"))
    if not folders:
        return [], [], "this machine shows no RAPL counter"
    try:
        for folder in folders:
            domain = Domain(folder)
            if domain.name.startswith("package"):
                packages.append(domain)
            elif domain.name == "dram":
                memory.append(domain)
    except PermissionError:
        return [], [], f"RAPL can be read by root only (chmod a+r {root}/*/energy_uj)"
    except (OSError, ValueError) as e:
        return [], [], f"RAPL cannot be read ({type(e).__name__})"
    return packages, memory, None if packages else "RAPL shows no package"
