"""Resource limits of a program, and its outcome."""

from dataclasses import dataclass
from typing import Literal

from gemmule.errors import ConfigError

MIB = 2**20

Status = Literal["passed", "failed", "timeout", "memory", "output", "killed"]


@dataclass(frozen=True)
class Limits:
    """What one program may use. It can start threads, but no other processes.

    Attributes:
        wall: seconds from the program's first line to its end. More than `cpu`, so that the
            program's own work decides, not the load of the machine.
        cpu: seconds of processor time, all threads together.
        memory: bytes of address space, including the interpreter's.
        threads: simultaneous threads; counted twenty times a second, so a few more can slip by.
        output: bytes on standard output and standard error together.
        file: bytes of one file.
        scratch: bytes of all files in its private folder.
        files: files, folders and links in that folder; also the number of open descriptors.
    """

    wall: float = 30.0
    cpu: int = 10
    memory: int = 1024 * MIB
    threads: int = 64
    output: int = MIB
    file: int = 16 * MIB
    scratch: int = 64 * MIB
    files: int = 256

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigError(f"the limit of {name} is {value}: it must be above zero")
        if self.memory < 64 * MIB:
            raise ConfigError(
                f"a program may use {self.memory} bytes of memory: Python alone needs {64 * MIB}"
            )


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        status: "passed" if it ran to its end; "failed" for an exception or an early exit;
            "timeout" if wall or processor time ran out; "memory" for an uncaught MemoryError;
            "output" if it wrote too much; "killed" by a signal, as in a crash, or for too many
            threads or files.
        exit_code: exit code of the process; minus the signal if one ended it.
        stdout: beginning of its standard output; bytes that are not UTF-8 are replaced.
        stderr: end of its standard error.
        seconds: time from the program's first line to its end.
    """

    status: Status
    exit_code: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether it ran to its end."""
        return self.status == "passed"
