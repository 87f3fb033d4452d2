"""One batch of inputs, in a process of its own that may die of them."""

import faulthandler
import hashlib
import json
import mmap
import os
import random
import resource
import signal
import struct
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mutate import LARGEST, mutated
from mutate_pickle import MARK
from targets import Target

GROWTH_MB = 512  # of resident memory above what the sound inputs need
SPACE_BYTES = 8 * 2**30  # of addresses above that: a larger allocation is refused, not served
KEPT = 3  # inputs with the same finding
OUTSIDE = "outside.bin"  # beside the folder that is read; nothing may open it
# What no reader of weights does.
_DEEDS = {"os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn"}
_DEEDS |= {"subprocess.Popen", "pty.spawn", "socket.connect", "socket.bind"}


class Shared:
    """What parent and child both see, and what is left of a child that was killed.

    Attributes:
        done: inputs read to their end; -1 until the child is ready.
        reading: 1 while an input is read, 0 while the next one is made.
        loaded, refused, crashes, executed, memory: how these ended.
        slowest: seconds of processor time; the machine may be busy with other things.
        base: resident memory that the sound inputs need, MB.
        growth: most resident memory above that, MB.
    """

    _FIELDS = ("done", "reading", "loaded", "refused", "crashes", "executed", "memory")
    _FLOATS = ("slowest", "base", "growth")
    _LAYOUT = struct.Struct("<7q3d")

    def __init__(self) -> None:
        self._numbers = mmap.mmap(-1, self._LAYOUT.size)
        self._input = mmap.mmap(-1, LARGEST + 8)
        self.done = -1
        self.reading = self.loaded = self.refused = self.crashes = self.executed = self.memory = 0
        self.slowest = self.base = self.growth = 0.0
        self.save()

    def save(self) -> None:
        """Shows the other process the numbers."""
        names = (*self._FIELDS, *self._FLOATS)
        self._numbers[:] = self._LAYOUT.pack(*(getattr(self, name) for name in names))

    def refresh(self) -> None:
        """Takes over what the other process saved."""
        values = self._LAYOUT.unpack(self._numbers[:])
        for name, value in zip((*self._FIELDS, *self._FLOATS), values, strict=True):
            setattr(self, name, value)

    @property
    def input(self) -> bytes:
        """The input that is being read."""
        return self._input[8 : 8 + int.from_bytes(self._input[:8], "little")]

    @input.setter
    def input(self, data: bytes) -> None:
        self._input[: 8 + len(data)] = len(data).to_bytes(8, "little") + data


def resident_mb() -> float:
    """The most memory this process has had in use, MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


class Watch:
    """Notices what smuggled code would do, and readers that leave their folder."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._outside = str(folder), str(folder.parent / OUTSIDE)
        self._mark = Path(os.environ[f"{MARK}_FILE"])
        self._heard: list[str] = []
        self._on = False
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._on:
            return
        if event in _DEEDS:
            self._heard.append(f"{event} {arguments!r}"[:200])
        elif event == "open" and isinstance(arguments[0], str | os.PathLike):
            path = os.path.abspath(os.fspath(arguments[0]))  # noqa: PTH100 (follows no links)
            writes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if path == self._outside or (writes and not path.startswith(self._folder)):
                self._heard.append(f"open {path}")

    def __enter__(self) -> None:
        self._heard.clear()
        self._on = True

    def __exit__(self, *_: object) -> None:
        self._on = False

    def deeds(self) -> list[str]:
        """What was done since it was entered last that should not have been."""
        if os.environ.pop(MARK, None):
            self._heard.append("code from the input ran")
        if self._mark.exists():
            self._mark.unlink()
            self._heard.append("a command from the input ran")
        return self._heard


class Child:
    """Feeds inputs to a target and judges what comes of them."""

    def __init__(
        self, target: Target, shared: Shared, work: Path, count: int, hang_seconds: float
    ) -> None:
        self._target, self._shared, self._count = target, shared, count
        self._work, self._folder, self._hang_seconds = work, work / "now/model", hang_seconds
        self._seen: Counter[str] = Counter()
        self._watch = Watch(self._folder)
        log = (work / "log").open("w")
        os.dup2(log.fileno(), 2)
        faulthandler.enable(log)
        target.prepare(self._folder)
        for seed in target.seeds:
            assert target.run(self._folder, seed), "a sound input must load"
        shared.base = resident_mb()
        used = _addresses()
        if used:
            resource.setrlimit(resource.RLIMIT_AS, (used + SPACE_BYTES, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends even native code
        shared.done = 0
        shared.save()

    def feed(self, data: bytes) -> None:
        """One input; ends the process after the last."""
        shared, problem, loaded = self._shared, "", False
        if not shared.done:
            # Atheris sets an alarm of its own, by the clock, which a busy machine would set off.
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
        shared.input, shared.reading = data, 1
        shared.save()
        began = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, self._hang_seconds)
        try:
            with self._watch:
                loaded = self._target.run(self._folder, data)
        except BaseException as e:  # Rust panics and SystemExit are no Exceptions
            problem = describe_error(e)
        signal.setitimer(signal.ITIMER_PROF, 0)
        took = time.process_time() - began
        if took > shared.slowest:
            shared.slowest = took
            (self._work / f"slowest-{self._target.name}.input").write_bytes(data)
        shared.growth = max(shared.growth, resident_mb() - shared.base)
        deeds, grown = self._watch.deeds(), shared.growth > GROWTH_MB
        if deeds:
            shared.executed += 1
            self._record("executed", deeds[0], data)
        elif grown:
            shared.memory += 1
            self._record("memory", f"grew by {shared.growth:.0f} MB", data)
        elif problem:
            shared.crashes += 1
            self._record("crash", problem, data)
        else:
            shared.loaded += loaded
            shared.refused += not loaded
        shared.done, shared.reading = shared.done + 1, 0
        shared.save()
        if shared.done >= self._count or grown:
            os._exit(0)  # memory that has grown would be held against the next input

    def _record(self, kind: str, what: str, data: bytes) -> None:
        self._seen[what.rpartition(" (")[2]] += 1
        if self._seen[what.rpartition(" (")[2]] <= KEPT:
            record(self._work, self._target.name, kind, what, data)


def _addresses() -> int:
    """Bytes of addresses this process uses; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    except OSError:
        return 0


def describe_error(e: BaseException) -> str:
    """An exception's name, message and where it came from."""
    last = traceback.extract_tb(e.__traceback__)[-1]
    return f"{type(e).__name__}: {str(e)[:300]} ({Path(last.filename).name}:{last.lineno})"


def record(work: Path, target: str, kind: str, what: str, data: bytes) -> None:
    """Keeps an input for `run.py --replay`, and a line about it."""
    path = work / f"{target}-{hashlib.sha256(data).hexdigest()[:12]}.input"
    path.write_bytes(data)
    with (work / "findings.jsonl").open("a") as f:
        line = {"target": target, "kind": kind, "what": what, "input": path.name}
        f.write(json.dumps(line) + "\n")


Feed = Callable[[bytes], None]


def at_random(feed: Feed, target: Target, seed: int, first: int) -> None:
    """Inputs number `first` and on of a seed: each depends on its number alone."""
    while True:
        rng = random.Random(f"{seed} {target.name} {first}")
        data, other = rng.choice(target.seeds), rng.choice(target.seeds)
        feed(mutated(rng, data, other, target.mutations))
        first += 1


def guided(feed: Feed, target: Target, seed: int, first: int, corpus: Path) -> None:
    """Inputs that libFuzzer chooses by what code they reach, changed by the same mutations."""
    import atheris

    corpus.mkdir(exist_ok=True)
    for i, data in enumerate(target.seeds):
        (corpus / f"seed-{i}").write_bytes(data)

    def mutator(data: bytes, max_size: int, number: int) -> bytes:
        rng = random.Random(number)
        if rng.random() < 0.1:
            return atheris.Mutate(data, max_size)
        # Back to the sound ones now and then: damage upon damage is refused at the first look.
        start = rng.choice(target.seeds) if rng.random() < 0.5 else data
        return mutated(rng, start, rng.choice(target.seeds), target.mutations)[:max_size]

    options: dict[str, int | str] = {
        "seed": seed * 100_003 + first + 1,
        "max_len": LARGEST,
        "len_control": 0,
    }
    options |= {"timeout": 0, "rss_limit_mb": 0, "malloc_limit_mb": 0, "reload": 0}
    handlers = ("abrt", "bus", "fpe", "ill", "int", "segv", "term", "xfsz", "usr1", "usr2")
    options |= {f"handle_{name}": 0 for name in handlers}
    options |= {"verbosity": 0, "artifact_prefix": f"{corpus.parent}/"}
    arguments = [f"-{name}={value}" for name, value in options.items()]
    atheris.Setup(["fuzz", *arguments, str(corpus)], feed, custom_mutator=mutator)
    atheris.Fuzz()
