"""Runs programs that a model wrote, so that they cannot touch what is the user's."""

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

PACKAGES = ("numpy",)  # besides Python's own library: public graders have it, too

# What must hold where programs have a view of their own; the weaker kinds are asked less.
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
    """Where programs run. Made by `open`.

    Attributes:
        limits: what each program may use.
        isolation: how it is shut in.
        packages: what it may import besides Python's own library.
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
        """The strongest sandbox that works on this machine, which is tried out.

        Args:
            limits: what each program may use.
            accept_weaker: take one that protects less than namespaces do.
            kind: only this kind: bubblewrap, namespaces or limits.

        Raises:
            ConfigError: for a kind that does not exist.
            UserError: when none works that is allowed.
        """
        if kind is not None and kind not in isolation.NAMES:
            raise ConfigError(
                f"no sandbox is called {kind!r}; there are {', '.join(isolation.NAMES)}"
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
                        "programs that a model wrote cannot be shut in well here "
                        f"({'; '.join(reasons) or 'only limits were asked for'}). "
                        f"{_HOW_TO_GET_IT}; or take what there is with "
                        f"--accept-weaker-sandbox. It means: {way.guarantee}"
                    )
        raise UserError(
            f"programs that a model wrote cannot be run here ({'; '.join(reasons)}). "
            f"{_HOW_TO_GET_IT}"
        )

    @property
    def kind(self) -> str:
        """What it is called: bubblewrap, namespaces or limits."""
        return self.isolation.name

    @property
    def guarantee(self) -> str:
        """What it protects from and what not, in words for the result file."""
        return self.isolation.guarantee

    def json(self) -> dict[str, Any]:
        """As it is kept in result files."""
        return {
            "kind": self.kind,
            "guarantee": self.guarantee,
            "limits": asdict(self.limits),
            "packages": {name: metadata.version(name) for name in self.packages},
        }

    def run(self, source: str) -> Outcome:
        """Runs one program.

        Raises:
            UserError: when the sandbox cannot be set up any more.
        """
        return self.run_all([source], workers=1)[0]

    def run_all(
        self,
        sources: Sequence[str],
        workers: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Outcome]:
        """Runs programs side by side.

        Args:
            sources: the programs.
            workers: how many at once; None: one a core.
            progress: told the number of finished programs, in the caller's thread.

        Returns:
            An outcome for each, in order.

        Raises:
            UserError: when the sandbox cannot be set up any more.
        """
        if not sources:
            return []
        stop = threading.Event()
        with ThreadPoolExecutor(workers or host.usable_cores(), "sandbox") as pool:
            jobs = [pool.submit(self._run, source, stop) for source in sources]
            try:
                _await(jobs, progress)
            except BaseException:  # Ctrl-C as well: end what runs, start nothing more
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
                "short of memory or processes, try again with less running beside it"
            ) from e

    def _problem(self) -> str:
        """Why this way does not work here; "" when it does."""
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
        said = outcome.stderr.strip().splitlines()
        return said[-1] if said else outcome.status


def _await(jobs: list[Future[Outcome]], progress: Callable[[int], None] | None) -> None:
    """Waits for all; raises the first error there is."""
    pending = set(jobs)
    while pending:
        done, pending = wait(pending, return_when=FIRST_COMPLETED)
        for job in done:
            job.result()
        if progress:
            progress(len(jobs) - len(pending))
