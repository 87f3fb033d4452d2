"""What the benchmarks share: workers that take turns, medians, and one report as table and JSON.

Every contestant lives in a process of its own, so that its peak memory is its own and no setting
of one touches another. It warms up and then blocks on its standard input. The parent goes round
and asks one at a time, so that other load on the machine affects all contestants equally; how much
processor time a worker used while it should have slept is in the report.
"""

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gemmule import files
from gemmule.console import console
from gemmule.errors import GemmuleError, UserError
from gemmule.runtime import host
from worker_side import Handler, Reply, peak_mb, serve

__all__ = ["Handler", "Reply", "peak_mb"]  # a worker's side, by the same name

QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


class WorkerError(GemmuleError):
    """A contestant failed; the message holds the end of what it said."""


class Worker:
    """A contestant in its own process, seen from the parent.

    It starts with empty caches of compiled code, so that every run of a benchmark pays (and
    shows) the same for compiling.

    Args:
        script: the benchmark's file, which is a contestant when it gets --worker (see `run`).
        mode: which contestant.
        settings: JSON-able; handed to it.
        python: another interpreter to run it with.
        environment: further variables.

    Raises:
        WorkerError: from any method, when the process dies.
    """

    def __init__(
        self,
        script: str,
        mode: str,
        settings: Mapping[str, Any],
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.mode = mode
        self.idle_cpu_seconds = 0.0
        self._cache = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the worker)
        self._process = subprocess.Popen(
            [python, script, "--worker", json.dumps({"mode": mode, **settings})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={
                **os.environ,
                **QUIET,
                "TORCHINDUCTOR_CACHE_DIR": self._cache.name,
                **(environment or {}),
            },
        )

    def ask(self, **request: Any) -> Reply:
        """Sends one request and waits for its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = ""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            output = "\n".join(self._errors.read().strip().splitlines()[-12:])
            raise WorkerError(f"{self.mode} failed (exit {self._process.returncode}):\n{output}")
        reply: Reply = json.loads(line)
        self.idle_cpu_seconds += reply.pop("idle_cpu_seconds")
        return reply

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()  # it holds nothing worth saving
        self._process.communicate()
        self._errors.close()
        self._cache.cleanup()


def take_turns(
    workers: Sequence[Worker], rounds: int, **request: Any
) -> tuple[dict[str, list[Reply]], float]:
    """Asks every worker the same, round after round; each round begins with another one.

    Returns:
        Replies by mode, and the seconds it took.
    """
    replies: dict[str, list[Reply]] = {w.mode: [] for w in workers}
    began = time.monotonic()
    for i in range(rounds):
        first = i % len(workers)
        for worker in (*workers[first:], *workers[:first]):
            replies[worker.mode].append(worker.ask(**request))
        say(f"round {i + 1} of {rounds}")
    return replies, time.monotonic() - began


def median(values: Sequence[float]) -> float:
    """The median, to six figures: no clock here is better."""
    return rounded(statistics.median(values))


def rounded(value: float) -> float:
    """Six significant figures."""
    return float(f"{value:.6g}")


def parse_arguments(
    script: str, purpose: str, modes: Sequence[str], extra_modes: Sequence[str] = ()
) -> argparse.Namespace:
    """The command line every benchmark has; `modes` in the result is a checked list.

    Args:
        script: name, for the example.
        purpose: first line of --help.
        modes: contestants by default.
        extra_modes: contestants with --all, or by name.
    """
    known = [*modes, *extra_modes]
    parser = argparse.ArgumentParser(
        description=purpose, epilog=f"Example: python bench/{script} --json {script}.json"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--rounds", type=_positive, default=5, help="turns of each contestant")
    parser.add_argument("--steps", type=_positive, default=3, help="timed steps of one turn")
    parser.add_argument("--toy", action="store_true", help="tiny shapes: does it work at all?")
    parser.add_argument("--modes", metavar="A,B", help=f"contestants, of: {', '.join(known)}")
    if extra_modes:
        parser.add_argument("--all", action="store_true", help=f"also {', '.join(extra_modes)}")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.modes:
        args.modes = list(dict.fromkeys(args.modes.split(",")))
        for mode in args.modes:
            if mode not in known:
                parser.error(f"no contestant {mode!r}; there are: {', '.join(known)}")
    else:
        args.modes = known if extra_modes and args.all else list(modes)
    return args


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value


def run(
    args: argparse.Namespace,
    measure: Callable[[argparse.Namespace], dict[str, Any]],
    show: Callable[[Mapping[str, Any]], None],
    build: Callable[[Mapping[str, Any]], Handler] | None = None,
) -> int:
    """Measures, shows, writes; returns the exit status: 0, 1 (failed), 2 (the user's mistake).

    Args:
        args: the command line.
        measure: makes the report, but for machine and versions.
        show: prints it.
        build: makes a contestant of its settings. With --worker this process is one, and nothing
            else happens.
    """
    if build is not None and args.worker:
        serve(lambda: build(args.worker))
        return 0
    try:
        if args.json:  # a place that cannot be written to is found out now, not after minutes
            with files.writing_to(args.json):
                args.json.parent.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=args.json.parent).close()
        report = {
            "machine": host.machine(),
            "versions": {**host.versions(), "transformers": metadata.version("transformers")},
            **measure(args),
        }
        show(report)
        if args.json:
            files.write_json(args.json, report)
    except GemmuleError as e:
        say(str(e))
        return 2 if isinstance(e, UserError) else 1
    except KeyboardInterrupt:
        return 130
    return 0


def write_tables(page: Path, tables: Mapping[str, Sequence[str]]) -> None:
    """Puts tables into a page, each between its markers, as in <!-- NAME --> and <!-- end -->.

    Args:
        page: a file of Markdown.
        tables: lines by name.
    """
    text = page.read_text(encoding="utf-8")
    for name, lines in tables.items():
        between = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        inside = "\n".join(lines) + "\n"
        text = between.sub(lambda m, inside=inside: m[1] + inside + m[2], text)
    files.write_text(page, text)


def say(line: str) -> None:
    """One plain line to the terminal."""
    console.print(line, markup=False)
