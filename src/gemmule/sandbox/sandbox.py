"""Runs programs that a model wrote, isolated from the user's files, processes and network."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any, Self

from gemmule.errors import ConfigError, UserError
from gemmule.runtime import host
from gemmule.sandbox import isolation, supervise, view
from gemmule.sandbox.limits import Limits, Outcome

PACKAGES = ("numpy",)  # in addition to Python's own library: public graders have it as well

# What must hold inside a sandbox. Programs that are not jailed only have to pass the first part.
_PROBE = """
import os, socket, threading
def refused(action, *arguments):
    try:
        action(*arguments)
    except OSError:
        return True
    return False
assert refused(socket.socket), "sockets can be opened"
assert refused(os.fork), "processes can be started"
assert refused(os.kill, os.getppid(), 0), "signals can be sent"
assert refused(open, os.devnull + "x", "w"), "files can be written"
assert not any("SECRET" in name for name in os.environ)
thread = threading.Thread(target=int)
thread.start()
thread.join()
"""
_PROBE_JAILED = """
with open("/tmp/probe", "w") as f:
    f.write("x")
assert refused(open, "/probe", "w"), "the root can be written"
assert refused(os.stat, "/proc/1"), "/proc is seen"
assert set(os.listdir("/")) <= {
    "lib", "lib64", "lib32", "usr", "nix", "etc", "dev", "tmp", "packages", "runner.py", *allowed
}, f"more is seen than should be: {os.listdir('/')}"
"""
_HOW_TO_GET_IT = (
    "Install bubblewrap (apt-get install bubblewrap, dnf install bubblewrap) or allow user "
    "namespaces (sysctl kernel.unprivileged_userns_clone=1, or "
    "kernel.apparmor_restrict_unprivileged_userns=0; in Docker, --security-opt seccomp=unconfined)"
)


@dataclass(frozen=True)
class Sandbox:
    """Runs programs in isolation. Made by `open`.

    Attributes:
        limits: resource limits of each program.
        isolation: how programs are isolated.
        packages: packages that they may import, in addition to Python's own library.
    """

    limits: Limits
    isolation: isolation.Isolation
    packages: tuple[str, ...] = PACKAGES

    @classmethod
    def open(
        cls,
        limits: Limits | None = None,
        accept_weaker: bool = False,
        kind: str | None = None,
    ) -> Self:
        """Opens the strongest sandbox that works on this machine, after trying it.

        Args:
            limits: resource limits of each program.
            accept_weaker: accept a sandbox that protects less than namespaces do.
            kind: try only this kind: bubblewrap, namespaces or limits.

        Raises:
            ConfigError: for a kind that does not exist.
            UserError: if none of the allowed kinds works.
        """
        if kind is not None and kind not in isolation.NAMES:
            raise ConfigError(
                f"there is no sandbox {kind!r}; there are {', '.join(isolation.NAMES)}"
            )
        reasons = []
        for name in isolation.NAMES:
            if kind not in (None, name):
                continue
            if reason := isolation.missing(name):
                reasons.append(f"{name}: {reason}")
            for way in isolation.candidates(name) if not reason else ():
                sandbox = cls(limits or Limits(), way)
                if problem := sandbox._problem():
                    reasons.append(f"{name}: {problem}")
                elif way.jailed or accept_weaker:
                    return sandbox
                else:
                    raise UserError(
                        "programs that a model wrote cannot be isolated well here "
                        f"({'; '.join(reasons) or 'only limits were asked for'}). "
                        f"{_HOW_TO_GET_IT}; or accept a weaker sandbox with "
                        f"--accept-weaker-sandbox. It means: {way.guarantee}"
                    )
        raise UserError(
            f"programs that a model wrote cannot be run here ({'; '.join(reasons)}). "
            f"{_HOW_TO_GET_IT}"
        )

    @property
    def kind(self) -> str:
        """Name of its isolation: bubblewrap, namespaces or limits."""
        return self.isolation.name

    @property
    def guarantee(self) -> str:
        """What it protects from and what it does not, in words for the result file."""
        return self.isolation.guarantee

    def json(self) -> dict[str, Any]:
        """The form that result files keep."""
        return {
            "kind": self.kind,
            "guarantee": self.guarantee,
            "limits": asdict(self.limits),
            "packages": {name: metadata.version(name) for name in self.packages},
        }

    def run(self, source: str) -> Outcome:
        """Runs one program.

        Raises:
            UserError: if the sandbox can no longer be set up.
        """
        return self.run_all([source], workers=1)[0]

    def run_all(
        self,
        sources: Sequence[str],
        workers: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Outcome]:
        """Runs programs in parallel.

        Args:
            sources: sources of the programs.
            workers: number of programs at a time; None: one per core.
            progress: called in the caller's thread with the number of finished programs.

        Returns:
            An outcome for each program, in order.

        Raises:
            UserError: if the sandbox can no longer be set up.
        """
        if not sources:
            return []
        stop = threading.Event()
        with ThreadPoolExecutor(workers or host.usable_cores(), "sandbox") as pool:
            jobs = [pool.submit(self._run, source, stop) for source in sources]
            try:
                _await(jobs, progress)
            except BaseException:  # including Ctrl-C: end running programs, start no others
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise
        return [job.result() for job in jobs]

    def _run(self, source: str, stop: threading.Event) -> Outcome:
        try:
            return supervise.run(self.isolation, source, self.limits, self.packages, stop)
        except (supervise.CannotStart, OSError) as e:
            raise UserError(
                f"the sandbox ({self.kind}) could not start a program: {e}. If the machine is "
                "short of memory or processes, try again with less running on it"
            ) from e

    def _problem(self) -> str:
        """Why this isolation does not work here; "" if it does."""
        probe = _PROBE if self.isolation.filtered else ""
        if self.isolation.jailed:
            first = str(view.interpreter()).split("/")[1]
            probe += f"allowed = {[first]}\n{_PROBE_JAILED}"
        try:
            outcome = supervise.run(self.isolation, probe, Limits(), self.packages)
        except supervise.CannotStart as e:
            return str(e)
        except OSError as e:
            return f"{e.filename}: {e.strerror}"
        if outcome.passed:
            return ""
        lines = outcome.stderr.strip().splitlines()
        return lines[-1] if lines else outcome.status


def _await(jobs: list[Future[Outcome]], progress: Callable[[int], None] | None) -> None:
    """Waits for all jobs; raises the first error."""
    pending = set(jobs)
    while pending:
        done, pending = wait(pending, return_when=FIRST_COMPLETED)
        for job in done:
            job.result()
        if progress:
            progress(len(jobs) - len(pending))
