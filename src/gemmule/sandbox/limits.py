"""How much a program may use, and how it ended."""

from dataclasses import dataclass
from typing import Literal

from gemmule.errors import ConfigError

MIB = 2**20

Status = Literal["passed", "failed", "timeout", "memory", "output", "killed"]


@dataclass(frozen=True)
class Limits:
    """What one program may use. It never gets further processes, only threads.

    Attributes:
        wall: seconds from the program's first line to its end. More than `cpu`, so that it is
            the program's work that counts, and not what else the machine does.
        cpu: seconds of processor time, all threads together.
        memory: bytes of address space, the interpreter's own included.
        threads: threads at once; counted twenty times a second, so that a few more can pass.
        output: bytes on standard output and standard error together.
        file: bytes of one file.
        scratch: bytes of all files in its private folder.
        files: files, folders and links there; also the descriptors it may hold open.
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
                raise ConfigError(f"a program's limit of {name} is {value}: it must be above zero")
        if self.memory < 64 * MIB:
            raise ConfigError(
                f"a program may use {self.memory} bytes of memory: Python alone needs {64 * MIB}"
            )


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        status: "passed" if it came to its end; "failed" by an exception or by leaving early;
            "timeout" when wall or processor time ran out; "memory" for a MemoryError that nobody
            caught; "output" when it wrote too much; "killed" by a signal (a crash, say) or for
            too many threads or files.
        exit_code: of the process; minus the signal where one ended it.
        stdout: what it wrote, the beginning; bytes that are no UTF-8 are replaced.
        stderr: what it wrote, the end.
        seconds: from the program's first line to its end.
    """

    status: Status
    exit_code: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether it came to its end."""
        return self.status == "passed"
