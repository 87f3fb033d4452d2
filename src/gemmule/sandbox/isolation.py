"""The kinds of isolation, strongest first, and what each of them guarantees."""

import marshal
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gemmule.sandbox import syscalls, view
from gemmule.sandbox.limits import Limits

IsolationName = Literal["bubblewrap", "namespaces", "limits"]
NAMES: tuple[IsolationName, ...] = ("bubblewrap", "namespaces", "limits")

_NAMESPACES = Path(__file__).parent / "inside" / "namespaces.py"
# No site-packages, nothing from the working folder or the user's site, no bytecode files.
_PYTHON_FLAGS = ("-s", "-P", "-S", "-B")
ENVIRONMENT = {
    "PYTHONHASHSEED": "0",  # the order of a set must not change a score
    "PYTHONUTF8": "1",
    "PYTHONIOENCODING": "utf-8:backslashreplace",
    "HOME": "/tmp",
    "TZ": "UTC",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class Isolation:
    """A way to isolate a program.

    Attributes:
        name: its name.
        filtered: whether only the system calls of `syscalls` are allowed.
        landlocked: whether only files of the view can be opened. For "limits", where all files are
            visible.
    """

    name: IsolationName
    filtered: bool = True
    landlocked: bool = False

    @property
    def jailed(self) -> bool:
        """Whether programs have their own file system, process numbers and so on."""
        return self.name != "limits"

    def command(
        self, limits: Limits, packages: tuple[str, ...], report: int, info: int
    ) -> list[str]:
        """The command that starts the runner inside the sandbox.

        Args:
            limits: limits of the program.
            packages: packages that it may import.
            report: descriptor that the runner reports to.
            info: descriptor that receives the number of the sandbox's first process.
        """
        runner = "/runner.py" if self.jailed else str(view.RUNNER)
        python = [str(view.interpreter()), *_PYTHON_FLAGS]
        command = [*python, runner, str(report)]
        seen = view.python_view(packages)
        if self.name == "bubblewrap":
            return [*_bubblewrap(seen, limits, info), "--", *command]
        if self.name == "namespaces":
            orders = {
                "view": [[s.kind, s.source, s.target] for s in seen],
                "scratch": limits.scratch,
                "files": limits.files,
                "info": info,
                "command": command,
            }
            return [*python, str(_NAMESPACES), marshal.dumps(orders).hex()]
        return command

    def orders(
        self, limits: Limits, packages: tuple[str, ...], folder: Path | None
    ) -> dict[str, Any]:
        """What the runner has to do before it runs the program.

        Args:
            limits: limits of the program.
            packages: packages that it may import.
            folder: folder made for a program that is not jailed, with its working folder in it.
        """
        return {
            "packages": [view.PACKAGES if folder is None else str(folder / "packages")],
            "parent": 0 if self.jailed else os.getpid(),
            "rlimits": _rlimits(limits),
            "readable": [*view.readable_paths(packages), str(folder)] if self.landlocked else [],
            "filter": syscalls.build_filter(writing=self.jailed) if self.filtered else b"",
        }

    @property
    def guarantee(self) -> str:
        """What it protects from and what it does not, for readers of the results."""
        if self.jailed:
            by = f" by {_bubblewrap_version()}" if self.name == "bubblewrap" else ""
            return (
                f"Programs ran in Linux namespaces of their own{by}, with a filter on system "
                "calls: no network, no other processes, none of the user's files. They saw "
                "Python's own files, read-only, and a private folder in memory. Time, memory, "
                "threads and output were limited. What is left: bugs of the kernel, and the load "
                "on the machine while they ran."
            )
        if self.landlocked:
            return (
                "WEAKER SANDBOX. Programs ran as the user's own processes, with a filter on "
                "system calls and Landlock: they could not write to any file, use the network, "
                "start or signal processes, or read files other than Python's own. They could see "
                "which files and processes there are, and had no file system, users or process "
                "numbers of their own: one gap in the filter would be a gap in everything."
            )
        if self.filtered:
            return (
                "WEAKER SANDBOX. Programs ran as the user's own processes, with a filter on "
                "system calls: they could not write to any file, use the network, or start or "
                "signal processes. They could read every file that the user can read, and what "
                "the system tells of the user's processes; they had no way to send it anywhere "
                "but into their own output."
            )
        return (
            "NO SANDBOX TO SPEAK OF. Programs ran as the user's own processes, in an empty folder "
            "and without the user's environment, and were stopped when they took too long or "
            "wrote too much. Nothing kept them from reading, changing or deleting the user's "
            "files, from using the network, or from leaving processes behind."
        )


def candidates(name: IsolationName) -> list[Isolation]:
    """The kinds of isolation called `name`, strongest first; `Sandbox.open` tries them."""
    known = syscalls.known_architecture()
    if name != "limits":
        return [Isolation(name)] if known else []
    strong = [Isolation(name, landlocked=True), Isolation(name)] if known else []
    return [*strong, Isolation(name, filtered=False)]


def missing(name: IsolationName) -> str:
    """Why `name` cannot work on this machine; "" if it may."""
    if name == "limits":
        return ""
    if sys.platform != "linux":
        return "needs Linux"
    if not syscalls.known_architecture():
        return f"its system calls on {os.uname().machine} are not known to gemmule"
    if name == "bubblewrap" and not shutil.which("bwrap"):
        return "bwrap is not installed"
    return ""


def _bubblewrap(seen: list[view.ViewEntry], limits: Limits, info: int) -> list[str]:
    bwrap = shutil.which("bwrap") or "bwrap"
    command = [
        bwrap, "--unshare-all", "--unshare-user", "--die-with-parent", "--new-session",
        "--uid", "1000", "--gid", "1000", "--hostname", "sandbox", "--cap-drop", "ALL",
        "--info-fd", str(info), "--size", str(limits.scratch), "--tmpfs", "/tmp",
    ]  # fmt: skip
    for s in seen:
        if s.kind == "link":
            command += ["--symlink", s.source, s.target]
        elif s.kind == "device":
            command += ["--dev-bind", s.source, s.target]
        else:
            command += ["--ro-bind", s.source, s.target]
    return [*command, "--remount-ro", "/", "--chdir", "/tmp"]


def _bubblewrap_version() -> str:
    """What bwrap says of itself ("bubblewrap 0.9.0"); its bare name where it is not installed."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return "bubblewrap"
    result = subprocess.run([bwrap, "--version"], capture_output=True, text=True, check=False)
    return result.stdout.strip() or "bubblewrap"


def _rlimits(limits: Limits) -> list[tuple[str, int, int]]:
    """Limits of the process, soft and hard, by the names of the module `resource`.

    The number of processes is not among them: it is counted per user, not at all for root, and the
    filter lets no process start. A core dump limit of one byte, unlike zero, also keeps the kernel
    from handing a crashed program to the system's crash reporter.
    """
    return [
        ("RLIMIT_AS", limits.memory, limits.memory),
        ("RLIMIT_CPU", limits.cpu, limits.cpu + 1),
        ("RLIMIT_FSIZE", limits.file, limits.file),
        ("RLIMIT_NOFILE", limits.files, limits.files),
        ("RLIMIT_CORE", 1, 1),
        ("RLIMIT_STACK", 8 * 2**20, 8 * 2**20),
        ("RLIMIT_MEMLOCK", 0, 0),
        ("RLIMIT_MSGQUEUE", 0, 0),
    ]
